"""The tables of `eval.benchmarks`: accuracy of all models, and tests between them."""

import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from stepjax.evaluation import benchmarks, grading, intervals
from stepjax.lm import files

# Column → what it says, where `tables.LEGEND` has no such column.
LEGEND = {
    "mean [95 %]": "of the benchmarks, each counting the same; bootstrap over problems",
    "right": "greedy solutions with the right answer",
    "wrong": "with another answer",
    "unfinished": "cut off at eval.max_tokens before a right answer",
    "p": "exact McNemar test of no change; not corrected for the number of tests",
}
_MISSING = "-"

# Of each model: name of a benchmark → its result with greedy decoding.
Results = Sequence[Mapping[str, Mapping[str, Any]]]


def tables(workdir: pathlib.Path, models: int) -> list[tuple[str, list[dict]]]:
    """Reads what `eval.benchmarks` measured; returns titles and rows of tables.

    Args:
      workdir: the run directory.
      models: M0 ... M`models`.

    Returns:
      Accuracy; what became of the solutions; paired gains. None without benchmarks.
    """
    names = benchmarks.noted(workdir / "eval")
    results = [_results(workdir, number, names) for number in range(models + 1)]
    short = benchmarks.short_names(names)
    drawn = [
        ("benchmarks: greedy % [95 %]", _accuracy(results, short)),
        ("benchmarks: what became of the solutions", _outcomes(results, short)),
        ("benchmarks: changes between models", _changes(results, short)),
    ]
    return [(title, rows) for title, rows in drawn if rows]


def _results(
    workdir: pathlib.Path, number: int, names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    paths = {n: workdir / "eval" / f"M{number}_{n}_greedy.json" for n in names}
    return {
        name: files.read_json(path) for name, path in paths.items() if path.exists()
    }


def _accuracy(results: Results, short: Mapping[str, str]) -> list[dict[str, str]]:
    """Returns a row for each model, with a column for each benchmark and their mean."""
    rows = []
    for number, found in enumerate(results):
        if not found:
            continue
        row, counts = {"model": f"M{number}"}, []
        for name, shown in short.items():
            row[shown] = _MISSING
            if name in found:
                metrics = found[name]["metrics"]
                row[shown] = _percent(
                    *(metrics[k] for k in ("accuracy", "low", "high"))
                )
                right = sum(bool(item["right"]) for item in found[name]["items"])
                counts.append((right, 0, metrics["count"]))
        if len(short) > 1:  # a mean of other benchmarks could not be compared
            whole = len(counts) == len(short)
            mean = intervals.mean_of_benchmarks(counts) if whole else ()
            row["mean [95 %]"] = _percent(*mean) if whole else _MISSING
        rows.append(row)
    return rows


def _outcomes(results: Results, short: Mapping[str, str]) -> list[dict[str, str]]:
    """Returns a row for each benchmark and model: how many solutions came to what."""
    rows = []
    for (name, shown), (number, found) in itertools.product(
        short.items(), enumerate(results)
    ):
        if name not in found:
            continue
        items = found[name]["items"]
        counts = {"right": sum(bool(item["right"]) for item in items)}
        counts |= grading.outcomes(items)
        named = {
            k.removesuffix("_count").replace("_", " "): n for k, n in counts.items()
        }
        row = {"benchmark": shown, "model": f"M{number}"}
        rows.append({k: str(v) for k, v in (row | named).items()})
    return rows


def _changes(results: Results, short: Mapping[str, str]) -> list[dict[str, str]]:
    """Returns the gain of each model over the one before, and of the last over M1."""
    known = [number for number, found in enumerate(results) if found]
    pairs = list(itertools.pairwise(known))
    trained = [number for number in known if number]
    if len(trained) > 2:
        pairs.append((trained[0], trained[-1]))
    rows = []
    for before, after in pairs:
        counts = []
        for name, shown in short.items():
            one, other = (results[n].get(name) for n in (before, after))
            if not one or not other or _grader(one) != _grader(other):
                continue  # two graders may say different things of one answer
            gained, lost, total = intervals.changes(one["items"], other["items"])
            counts.append((gained, lost, total))
            gain = intervals.paired_gain(one["items"], other["items"])
            p = intervals.mcnemar(gained, lost)
            said = f"{p:.3f}" if p >= 0.001 else "below 0.001"
            rows.append(_change(before, after, shown, _percent(*gain), said))
        if 1 < len(counts) == len(short):
            gain = _percent(*intervals.mean_of_benchmarks(counts))
            rows.append(_change(before, after, "mean", gain, _MISSING))
    return rows


def _change(before: int, after: int, name: str, gain: str, p: str) -> dict[str, str]:
    models = f"M{before} → M{after}"
    return {"models": models, "benchmark": name, "gain [95 %]": gain, "p": p}


def _grader(result: dict) -> tuple[int | None, str]:
    """Returns the grader of a result, and whether it was strict."""
    return result.get("grader"), result.get("grading", "lenient")


def _percent(rate: float, low: float, high: float) -> str:
    return f"{100 * rate:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
