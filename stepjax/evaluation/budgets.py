"""Accuracy against tokens: the table and the plot of test-time methods."""

import math
import pathlib
from collections.abc import Sequence

from matplotlib.figure import Figure

from stepjax.evaluation.solve import Solved, Task, stem_of
from stepjax.lm import files, hosts
from stepjax.run.run import Run

_BUDGETS = 8  # columns of `equal_budgets` from which budgets grow in larger steps

LEGEND = {
    "n": "solutions, beams or searches; of step_search the candidates per step",
    "right % [95 %]": "problems with the right answer, with an interval",
    "solver": "tokens per problem that the model wrote as a solver",
    "judge": "tokens per problem that it wrote as a judge",
    "budget": "both together",
    "read": "tokens per problem that it read: prompts, and what the judge is shown",
}


def report(run: Run, number: int, task: Task, solved: Sequence[Solved]) -> None:
    """Prints what was found; where answers are known, writes ``eval/…_solve.md``, .png.

    Args:
      run: the run.
      number: of the model.
      task: the problems.
      solved: what each method found, from `solve.solve`.
    """
    if not hosts.first() or not task.problems:
        return
    if len(task.problems) == 1:
        for one in solved:
            print(_solution(one))
        return
    rows = table(solved)
    run.monitor.table(
        f"M{number} {task.name}: {len(task.problems)} problems", rows, LEGEND
    )
    path = run.dir.path / "eval" / stem_of(run, number, task)
    written = [f"{path.name}-METHOD-N.jsonl"]
    if "accuracy" in solved[0].metrics:
        equal = equal_budgets(solved)
        run.monitor.table("right % (n) within a budget of tokens per problem", equal)
        with files.replacing(path.with_suffix(".md")) as file:
            file.write(f"{markdown(rows)}\n{markdown(equal)}")
        title = f"M{number}, {len(task.problems)} problems of {task.name}"
        plot(solved, path.with_suffix(".png"), title)
        written += [f"{path.name}.md", f"{path.name}.png"]
    run.tell(f"in {path.parent}: {', '.join(written)}")


def _solution(one: Solved) -> str:
    """Returns the solution of the only problem, its answer, and what it took."""
    (item,) = one.items
    tokens = item["tokens"]
    answer = "none" if item["prediction"] is None else item["prediction"]
    right = {True: ", right", False: ", wrong"}.get(item.get("right"), "")
    return (
        f"{one.choice}:\n{item['text']}\nanswer: {answer}{right} "
        f"({tokens['solver']} tokens written, {tokens['judge']} judged, "
        f"{tokens['read']} read)\n"
    )


def table(solved: Sequence[Solved]) -> list[dict[str, str]]:
    """Returns a table with a row for each method and n."""
    rows = []
    for choice, metrics, _ in solved:
        row = {"method": choice.method, "n": str(choice.n)}
        if "accuracy" in metrics:
            rates = (100 * metrics[key] for key in ("accuracy", "low", "high"))
            row["right % [95 %]"] = "{:.1f} [{:.1f}, {:.1f}]".format(*rates)
        names = ("solver_tokens", "judge_tokens", "tokens", "read_tokens")
        heads = ("solver", "judge", "budget", "read")
        for head, name in zip(heads, names, strict=True):
            row[head] = f"{metrics[name]:.0f}"
        rows.append(row)
    return rows


def equal_budgets(solved: Sequence[Solved]) -> list[dict[str, str]]:
    """Returns a table of accuracies in percent at equal budgets of tokens.

    The first budget is a tenth more than the least that was used, and each further one
    is twice as large, or 4 times where there would be too many. A cell is the result
    of a method's largest use within the budget; its n is in brackets.

    Args:
      solved: of problems whose answers are known.
    """
    used = [one.metrics["tokens"] for one in solved]
    budgets = [math.ceil(1.1 * min(used))]
    factor = 2 if max(used) <= budgets[0] * 2 ** (_BUDGETS - 1) else 4
    while budgets[-1] < max(used):
        budgets.append(factor * budgets[-1])
    rows = []
    for method in dict.fromkeys(one.choice.method for one in solved):
        row = {"method": method}
        for budget in budgets:
            within = [
                one
                for one in solved
                if one.choice.method == method and one.metrics["tokens"] <= budget
            ]
            most = max(within, key=lambda one: one.metrics["tokens"], default=None)
            row[f"{budget} tokens"] = (
                f"{100 * most.metrics['accuracy']:.1f} ({most.choice.n})"
                if most
                else "-"
            )
        rows.append(row)
    return rows


def markdown(rows: Sequence[dict[str, str]]) -> str:
    """Returns a table in Markdown."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(r.values()) for r in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def plot(solved: Sequence[Solved], path: pathlib.Path, title: str) -> None:
    """Draws accuracy over the tokens generated and judged per problem.

    Args:
      solved: of problems whose answers are known.
      path: the PNG file to write.
      title: goes above the plot.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for method in dict.fromkeys(one.choice.method for one in solved):
        own = [one.metrics for one in solved if one.choice.method == method]
        own.sort(key=lambda metrics: metrics["tokens"])
        rates = [100 * metrics["accuracy"] for metrics in own]
        below = [rate - 100 * m["low"] for rate, m in zip(rates, own, strict=True)]
        above = [100 * m["high"] - rate for rate, m in zip(rates, own, strict=True)]
        axes.errorbar(
            [metrics["tokens"] for metrics in own],
            rates,
            [below, above],
            marker="o",
            markersize=4,
            capsize=2,
            linewidth=1.2,
            elinewidth=0.6,
            label=method,
        )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set_xlabel("tokens per problem, generated and judged")
    axes.set_ylabel("right answers, % (95 % intervals)")
    axes.set_title(title, size=10)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    files.make_folder(path.parent)
    figure.savefig(path, dpi=150)
