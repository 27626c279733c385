"""What `stepjax solve` has found, for the page: accuracy against tokens."""

import re
from collections.abc import Mapping
from typing import Any

from stepjax.evaluation import answers, budgets
from stepjax.evaluation.methods import METHODS
from stepjax.evaluation.solve import Choice, Solved
from stepjax.report import plots
from stepjax.report.charts import Chart

PATTERN = "M*_*_solve-*-*.json"  # of results in DIR/eval
_NAME = re.compile(r"M(\d+)_(.+)_solve-(\w+)-(\d+)")
_TEXT = (
    "Tokens that the model wrote for one problem on average, as a solver and as a "
    "judge. Whiskers are 95 % intervals (Wilson)."
)


def groups(results: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Solved]]:
    """Returns what can be compared: results of one model, one file and one grader.

    Args:
      results: stem of a file of `PATTERN` → what it holds. Those of problems whose
        answers are not known are left out.

    Returns:
      Title → its results, by method and n, without their items.
    """
    found: dict[tuple, list[Solved]] = {}
    for stem, result in results.items():
        name, metrics = _NAME.fullmatch(stem), result["metrics"]
        if not name or name[3] not in METHODS or "accuracy" not in metrics:
            continue
        grader = result.get("grader", answers.VERSION), result.get("grading", "lenient")
        title = _title(int(name[1]), name[2], metrics["count"], *grader)
        one = Solved(Choice(name[3], int(name[4])), dict(metrics), [])
        found.setdefault((int(name[1]), name[2], title), []).append(one)
    order = list(METHODS)
    return {
        key[-1]: sorted(found[key], key=lambda x: (order.index(x.choice[0]), x.choice))
        for key in sorted(found)
    }


def _title(number: int, name: str, count: int, grader: int, grading: str) -> str:
    title = f"M{number}, {count} problems of {name}"
    if grading != "lenient":
        title += f", {grading} grading"
    return title if grader == answers.VERSION else f"{title}, grader {grader}"


def charts(found: Mapping[str, list[Solved]]) -> list[Chart]:
    """Returns a chart of each group."""
    made = []
    for title, solved in found.items():
        curves: dict[str, list[tuple[float, ...]]] = {name: [] for name in METHODS}
        for one in sorted(solved, key=lambda one: one.metrics["tokens"]):
            rates = (100 * one.metrics[key] for key in ("accuracy", "low", "high"))
            point = one.metrics["tokens"], *rates
            curves[one.choice.method].append(point)
        plot = plots.against_tokens(curves, note=f"Accuracy against tokens: {title}")
        made.append(Chart(title, plot, _TEXT))
    return made


def tables(
    found: Mapping[str, list[Solved]],
) -> list[tuple[str, list[dict[str, str]]]]:
    """Returns (title, rows) of the tables of each group."""
    made = []
    for title, solved in found.items():
        made.append((title, budgets.table(solved)))
        equal = budgets.equal_budgets(solved)
        made.append((f"{title}: right % (n) within a budget of tokens", equal))
    return made
