"""Tables of the paper beside the run's own figures, where the run has any.

The paper's Table 1 and its judge accuracy are in `charts.published_tables`. Published
figures are those of `published`; what it does not state is "-".
"""

from collections.abc import Mapping, Sequence
from typing import Any

from stepjax.report import published
from stepjax.report.charts import Results

Table = tuple[str, list[dict[str, str]]]  # title, rows
_MISSING = "-"
_OWN = "own test"
_BOTH = ("sum", "consistent")  # values of `judge.score` that ask both orders


def tables(
    results: Results,
    benchmarks: Mapping[str, Results],
    settings: Mapping[str, Any],
    counts: Mapping[str, int],
) -> list[Table]:
    """Returns the tables to which a run has something to put.

    Args:
      results: of each model, M0 first.
      benchmarks: name of a file that the run was measured on → the same for this file.
      settings: of the run, as nested dictionaries; {} where they are not known.
      counts: file of the run's data → its rows, from the manifest of the data.
    """
    columns = {_OWN: results}
    for name, found in benchmarks.items():
        if (of := published.curve(name)[0]) in published.BENCHMARKS:
            columns.setdefault(of, found)
    drawn = [
        ("Change of greedy accuracy from M1 to the last model, points", gains(columns)),
        (
            "Test-time search, accuracy in % (own test: the first eval.search_count "
            "problems)",
            searched(columns),
        ),
        ("Steps per greedy solution and tokens per step", lengths(columns)),
        ("Comparing two steps, and scoring solutions", agreement(results, settings)),
        ("Data", data(results, counts)),
        ("Training and search", training(settings)),
    ]
    return [table for table in drawn if table[1]]


def _value(results: Results, number: int, part: str, name: str) -> float | None:
    return results[number].get(part, {}).get("metrics", {}).get(name)


def _measured(results: Results, part: str, name: str) -> list[int]:
    """Returns the numbers of the models from M1 on that have a metric."""
    every = range(1, len(results))
    return [n for n in every if _value(results, n, part, name) is not None]


def _last(columns: Mapping[str, Results], part: str, name: str) -> int:
    """Returns the number of the newest model with a metric, 0 if there is none."""
    return max(max(_measured(r, part, name), default=0) for r in columns.values())


def _row(head: Mapping[str, str], cells: Mapping[str, float | None], form: str) -> dict:
    """Returns a row: a column for the own test and for each benchmark of the paper."""
    names = (_OWN, *published.BENCHMARKS, "mean")
    found = {name: cells.get(name) for name in names}
    texts = {k: _MISSING if v is None else form.format(v) for k, v in found.items()}
    return {**head, **texts}


def _published(model: str) -> dict[str, float]:
    names = (*published.BENCHMARKS, "mean")
    return dict(zip(names, published.ACCURACY[model], strict=True))


def gains(columns: Mapping[str, Results]) -> list[dict[str, str]]:
    """Returns by how much the last model is better than M1, on each benchmark."""
    last, changes = _last(columns, "greedy", "accuracy"), {}
    for name, results in columns.items():
        measured = _measured(results, "greedy", "accuracy")
        if last > 1 and {1, last} <= {*measured}:
            first, now = (
                _value(results, number, "greedy", "accuracy") for number in (1, last)
            )
            changes[name] = 100 * (now - first)
    if not changes:
        return []
    rows = [_row({"M1 to the last": f"this run, M1 to M{last}"}, changes, "{:+.1f}")]
    for size in ("7B SRLM", "7B", "72B"):
        first, now = _published(f"{size} M1"), _published(f"{size} M4")
        change = {name: now[name] - first[name] for name in now}
        head = {"M1 to the last": f"paper, {size}, M1 to M4"}
        rows.append(_row(head, change, "{:+.1f}"))
    return rows


def searched(columns: Mapping[str, Results]) -> list[dict[str, str]]:
    """Returns accuracy of M1 and of the last model, greedy and with a step search."""
    last = _last(columns, "search", "accuracy")
    rows = []
    for number in sorted({1, last} - {0}) if last else ():
        for part, said in (("greedy", "greedy"), ("search", "test-time search")):
            found = {
                name: _value(results, number, part, "accuracy")
                for name, results in columns.items()
                if number < len(results)
            }
            cells = {name: 100 * v for name, v in found.items() if v is not None}
            if cells:
                rows.append(
                    _row({"model": f"this run, M{number}, {said}"}, cells, "{:.1f}")
                )
    for model in ("72B M1", "72B M4") if rows else ():
        for suffix in ("", ", test-time search"):
            said = suffix or ", greedy"
            head = {"model": f"paper, {model}{said}"}
            rows.append(_row(head, _published(f"{model}{suffix}"), "{:.1f}"))
    return rows


def lengths(columns: Mapping[str, Results]) -> list[dict[str, str]]:
    """Returns steps and their lengths of M1 and of the last model."""
    rows = []
    for name, results in columns.items():
        measured = _measured(results, "greedy", "steps_per_solution")
        if measured:
            ends = measured[0], measured[-1]
            said = f"this run, {name}, M{ends[0]} and M{ends[1]}"
            keys = ("steps_per_solution", "tokens_per_step")
            found = [_value(results, n, "greedy", key) for key in keys for n in ends]
            rows.append(_lengths(said, found))
    if rows:
        said = "paper, 7B, MATH, over the iterations"
        rows.append(_lengths(said, published.LENGTHS))
    return rows


def _lengths(solutions: str, values: Sequence[float]) -> dict[str, str]:
    cells = {
        "steps, first": f"{values[0]:.2f}",
        "steps, last": f"{values[1]:.2f}",
        "tokens/step, first": f"{values[2]:.1f}",
        "tokens/step, last": f"{values[3]:.1f}",
    }
    return {"greedy solutions of": solutions} | cells


def agreement(results: Results, settings: Mapping[str, Any]) -> list[dict[str, str]]:
    """Returns how often a judge contradicts itself, and agrees with the truth.

    Consistency is the share of pairs whose winner does not depend on the order. In the
    paper people are the truth. Here it is the gold of a world, about the model's own
    steps, and where there is none, held-out comparisons. A judge that does not see both
    orders has no row.
    """
    judge, rows = settings.get("judge", {}), []
    if judge.get("kind") != "comparisons" or judge.get("score") not in _BOTH:
        return []
    for number in _measured(results, "search", "flip_rate")[-1:]:
        flips = _value(results, number, "search", "flip_rate")
        truth, agreed = "gold", _value(results, number, "search", "judge_sampled")
        if agreed is None:
            truth, agreed = "held out", _value(results, number, "judge", "accuracy")
        name = f"this run, M{number}, pairs of steps"
        rows.append(_agreement(name, 1 - flips, agreed, truth))
    for name, (consistent, agreed) in published.AGREEMENT.items() if rows else ():
        rows.append(_agreement(f"paper, {name}", consistent, agreed, "people"))
    return rows


def _agreement(
    judge: str, consistent: float, agreed: float | None, truth: str
) -> dict[str, str]:
    return {
        "judge": judge,
        "consistency": f"{consistent:.2f}",
        "agreement": _MISSING if agreed is None else f"{agreed:.2f}",
        "with": _MISSING if agreed is None else truth,
    }


def data(results: Results, counts: Mapping[str, int]) -> list[dict[str, str]]:
    """Returns how many rows M1 learned from, and what each iteration made.

    Args:
      results: of each model, M0 first.
      counts: file of the run's data → its rows.
    """
    rows = []
    for name, said in (("ift", "IFT"), ("eft", "EFT"), ("heldout", "EFT, held out")):
        if name in counts:
            rows.append((f"{said}, rows", f"{counts[name]:,}", published.DATA[name]))
    for number, found in enumerate(results):
        made = found.get("own_search", {}).get("counts", {})
        if {"questions", "pairs"} <= made.keys():
            questions = published.QUESTIONS.get(number)
            asked = _MISSING if questions is None else f"{questions:,}"
            rows.append((f"questions of M{number}", f"{made['questions']:,}", asked))
            rows.append((f"pairs of M{number}", f"{made['pairs']:,}", _MISSING))
    names = ("data", "this run", "paper")
    return [dict(zip(names, row, strict=True)) for row in rows]


def training(settings: Mapping[str, Any]) -> list[dict[str, str]]:
    """Returns settings beside those that the paper states.

    Those of the PRM and of the tree search are there if the run makes its EFT rows.
    """
    if not settings:
        return []
    rows, makes = [], settings.get("data", {}).get("make_eft")
    for name, stated in published.SETTINGS.items():
        if makes or not name.startswith(("prm.", "mcts.")):
            found = dict.fromkeys(_setting(settings, name.split(".")))
            row = {"setting": name, "this run": ", ".join(found), "paper": stated}
            rows += [row] if found else []
    return rows


def _setting(value: Any, path: Sequence[str]) -> list[str]:
    """Returns the texts of a setting; of a list of phases, one of each."""
    if isinstance(value, (list, tuple)):
        return [text for item in value for text in _setting(item, path)]
    if not path:
        return [f"{value:g}" if isinstance(value, float) else str(value)]
    if not hasattr(value, "keys") or path[0] not in value:  # or it is a ConfigDict
        return []
    return _setting(value[path[0]], path[1:])
