"""The final tables of a run: models, what did not end or was refused, iterations."""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stepjax.evaluation import intervals
from stepjax.lm import files

_MISSING = "-"
_RARE = ("no answer", "ungraded")  # columns that are left out where all are 0

# Name of a stage in `results` → its name in tables.
STAGES = {
    "trained": "train",
    "own_search": "search questions",
    "greedy": "eval greedy",
    "unseen": "eval unseen",
    "judge": "eval judge",
    "search": "eval search",
    "training": "eval training",
}

# Column → what it says, printed below the tables.
LEGEND = {
    "greedy % [95 %]": "test problems that the model solves alone, with an interval",
    "search %": "test problems that it solves when it samples and judges its steps",
    "unseen %": "problems solved whose single steps occur in no training data",
    "judge %": "held-out comparisons that it judges right",
    "judge % [95 %]": "comparisons of labelled steps that it judges right",
    "sampled %": "its judgments of a right and a wrong step of its own that are right",
    "tie %": "searched steps without a preference, often since all samples agree",
    "flip %": "pairs of steps whose winner depends on which one is shown first",
    "sampled": "how many judgments of a right and a wrong step of its own there are",
    "Brier": "mean squared error of its probabilities of these: 0 perfect, 0.25 a coin",
    "cycles %": "triples of steps whose preferences go in a circle",
    "longer %": "pairs of steps of different lengths that the longer one wins",
    "steps": "steps per greedy solution",
    "tokens/step": "tokens per step of greedy solutions",
    "finished %": "greedy solutions that end within eval.max_tokens",
    "no answer": "greedy solutions that end without a final answer",
    "ungraded": "greedy answers that met a limit of the grader; they count as wrong",
    "both orders %": "pairs of labelled steps that are judged right in both orders",
    "erroneous": "judged solutions that have an error",
    "right ones": "judged solutions that have none",
    "found %": "solutions with an error whose first error the judge finds",
    "accepted %": "right solutions in which the judge rejects no step",
    "F1 [95 %]": "harmonic mean of these two, as in ProcessBench, with an interval",
    "too long": "rows beyond judge.context_tokens, which are not judged",
    "complete %": "searches of test problems that reach the end of a solution",
    "cut off %": "sampled steps that did not end within search.max_step_tokens",
    "no marker %": "sampled steps that do not begin with the marker of their step",
    "misshapen %": "sampled steps that are refused for another reason",
    "unparsed %": "judgments in which no verdict can be read",
    "gain [95 %]": "change of greedy accuracy in percentage points, with an interval",
    "informative %": "searched steps with two or more candidates and a preference",
    "pairs": "preferences that the model made from the questions",
    "right %": "pairs with a right step over a wrong one",
    "reversed %": "pairs with a wrong step over a right one",
    "judged right %": "as sampled %, in the search that made the pairs",
    "chosen logp": "log-probability of a chosen step in nats, before → after training",
    "rejected logp": "the same of a rejected step",
    "KL/token": "how far training moved the model, in nats per token",
}


def tables(workdir: pathlib.Path, models: int) -> list[list[dict[str, str]]]:
    """Reads what the stages measured.

    Rates of ties, flips and unparsed verdicts are those of the search evaluation, so
    that all models are compared on the same problems.

    Args:
      workdir: the run directory.
      models: M0 ... M`models`.

    Returns:
      Five tables: models; their judges; what did not end or was refused; iterations;
      seconds. "-" is where a stage did not run. Columns with nothing else are left out.
    """
    parts = [results(workdir, number) for number in range(models + 1)]
    known = [number for number in range(models + 1) if parts[number]]
    drawn = [
        [_model_row(f"M{number}", parts[number]) for number in known],
        [_judge_row(f"M{number}", parts[number]) for number in known],
        [_refused_row(f"M{number}", parts[number]) for number in known],
        [
            _iteration_row(number, parts[number], parts[number + 1])
            for number in known
            if number and number < models and "trained" in parts[number + 1]
        ],
        [_seconds_row(f"M{number}", parts[number]) for number in known],
    ]
    return list(map(_without_empty_columns, drawn))


def compiled(workdir: pathlib.Path, models: int) -> list[dict[str, str]]:
    """Returns how many programs XLA compiled in each stage, and how long that took.

    What was read from the cache (`compile_cache`) does not count. A stage that was
    interrupted has what its last command compiled.

    Args:
      workdir: the run directory.
      models: M0 ... M`models`.

    Returns:
      A row per model, as in the last of `tables`; none where no stage has counted.
    """

    def cell(manifest: Mapping[str, Any]) -> str:
        count = manifest.get("compiled")  # absent in runs of earlier versions
        if count is None:
            return _MISSING
        seconds = f" in {count['seconds']:.1f} s" if count["programs"] else ""
        return f"{count['programs']}{seconds}"

    parts = [results(workdir, number) for number in range(models + 1)]
    rows = [
        {"model": f"M{number}"}
        | {title: cell(own.get(key, {})) for key, title in STAGES.items()}
        for number, own in enumerate(parts)
        if own
    ]
    rows = _without_empty_columns(rows)
    return rows if any(len(row) > 1 for row in rows) else []


def _without_empty_columns(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Leaves out columns that say nothing of any model."""
    empty = {name: (_MISSING, "0") for name in _RARE}
    filled = {
        k for row in rows for k, x in row.items() if x not in empty.get(k, _MISSING)
    }
    return [{k: text for k, text in row.items() if k in filled} for row in rows]


def results(workdir: pathlib.Path, number: int) -> dict[str, dict[str, Any]]:
    """Returns the manifests of the stages that made, used and measured a model.

    Args:
      workdir: the run directory.
      number: of the model.

    Returns:
      Name → manifest, for stages that are finished: "trained" (the stage that made the
      model), "own_search" (its search of questions), and the modes of `stages.evaluate`
      on the run's own data.
    """
    folder, evals = workdir / f"M{number}", workdir / "eval"
    paths = {
        "trained": folder / "manifest.json",
        "own_search": folder / "search.json",
        "greedy": evals / f"M{number}_test_greedy.json",
        "unseen": evals / f"M{number}_unseen_greedy.json",
        "judge": evals / f"M{number}_heldout_judge.json",
        "search": evals / f"M{number}_test_search.json",
        "training": evals / f"M{number}_pairs_training.json",
    }
    return {k: files.read_json(p) for k, p in paths.items() if p.exists()}


def benchmarks(
    model: str, measured: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> list[dict[str, str]]:
    """Returns a table with a row for each benchmark.

    Args:
      model: its name.
      measured: from `stages.evaluate`: benchmark → mode → metrics.
    """

    def cell(metrics: Mapping[str, float] | None) -> str:
        if metrics is None:
            return _MISSING
        return _interval(*(metrics[key] for key in ("accuracy", "low", "high")))

    rows = []
    for benchmark, by_mode in measured.items():
        greedy, search = by_mode.get("greedy"), by_mode.get("search")
        if greedy is search is None:
            continue
        rows.append(
            {
                model: benchmark,
                "problems": str(greedy["count"]) if greedy else _MISSING,
                "greedy % [95 %]": cell(greedy),
                "searched": str(search["count"]) if search else _MISSING,
                "search % [95 %]": cell(search),
            }
        )
    return _without_empty_columns(rows)


def judge_sets(
    model: str, measured: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> list[dict[str, str]]:
    """Returns a table with a row for each file of judged steps.

    Args:
      model: its name.
      measured: from `stages.evaluate`: benchmark → mode → metrics.
    """
    return judged_files(
        [
            ({model: benchmark}, by_mode["judge"])
            for benchmark, by_mode in measured.items()
            if benchmark != "test" and "judge" in by_mode
        ]
    )


def judged_files(
    measured: Sequence[tuple[dict[str, str], Mapping[str, float]]],
) -> list[dict[str, str]]:
    """Returns a table with a row for each result on a file of judged steps.

    Args:
      measured: first cells of a row, and the metrics of `judge_sets.metrics`.
    """
    rows = [head | _judged_row(metrics) for head, metrics in measured]
    return _without_empty_columns(rows)


def _judged_row(metrics: Mapping[str, float]) -> dict[str, str]:
    def cell(form: Callable[..., str], *names: str) -> str:
        known = all(name in metrics for name in names)
        return form(*(metrics[name] for name in names)) if known else _MISSING

    return {
        "pairs": cell(str, "count"),
        "judge % [95 %]": cell(_interval, "accuracy", "low", "high"),
        "both orders %": cell(_percent, "both_orders"),
        "flip %": cell(_percent, "flip_rate"),
        "unparsed %": cell(_percent, "unparsed_rate"),
        "erroneous": cell(str, "first_error_count"),
        "found %": cell(_percent, "first_error_accuracy"),
        "right ones": cell(str, "no_error_count"),
        "accepted %": cell(_percent, "no_error_accuracy"),
        "F1 [95 %]": cell(_interval, "first_error_f1", "f1_low", "f1_high"),
        "too long": cell(str, "too_long"),
    }


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _interval(rate: float, low: float, high: float) -> str:
    return f"{_percent(rate)} [{_percent(low)}, {_percent(high)}]"


def _cell(parts: Mapping[str, dict], part: str, name: str, form=_percent, at="metrics"):
    value = parts.get(part, {}).get(at, {}).get(name)
    return _MISSING if value is None else form(value)


def _model_row(name: str, parts: dict[str, dict]) -> dict[str, str]:
    cell, accuracy = functools.partial(_cell, parts), _MISSING
    if "greedy" in parts:
        metrics = parts["greedy"]["metrics"]
        accuracy = _interval(*(metrics[key] for key in ("accuracy", "low", "high")))
    return {
        "model": name,
        "greedy % [95 %]": accuracy,
        "search %": cell("search", "accuracy"),
        "unseen %": cell("unseen", "accuracy"),
        "judge %": cell("judge", "accuracy"),
        "sampled %": cell("search", "judge_sampled"),
        "tie %": cell("search", "tie_rate"),
        "flip %": cell("search", "flip_rate"),
        "steps": cell("greedy", "steps_per_solution", "{:.2f}".format),
        "tokens/step": cell("greedy", "tokens_per_step", "{:.1f}".format),
    }


def _judge_row(name: str, parts: dict[str, dict]) -> dict[str, str]:
    cell = functools.partial(_cell, parts, "search")
    return {
        "model": name,
        "sampled": cell("judge_sampled_count", str),
        "Brier": cell("judge_brier", "{:.3f}".format),
        "cycles %": cell("cycle_rate"),
        "longer %": cell("longer_wins"),
    }


def _refused_row(name: str, parts: dict[str, dict]) -> dict[str, str]:
    cell = functools.partial(_cell, parts)
    return {
        "model": name,
        "finished %": cell("greedy", "finished_rate"),
        "no answer": cell("greedy", "no_answer_count", str),
        "ungraded": cell("greedy", "ungraded_count", str),
        "complete %": cell("search", "complete_rate"),
        "cut off %": cell("search", "cut_off_rate"),
        "no marker %": cell("search", "unmarked_rate"),
        "misshapen %": cell("search", "misshapen_rate"),
        "unparsed %": cell("search", "unparsed_rate"),
    }


def _iteration_row(number: int, before: dict, after: dict) -> dict[str, str]:
    trained = after.get("training", {})
    cell = functools.partial(_cell, before | {"training": trained})
    gain = _MISSING
    if "greedy" in before and "greedy" in after:
        items = before["greedy"]["items"], after["greedy"]["items"]
        gain = _interval(*intervals.paired_gain(*items))

    def change(side: str) -> str:
        keys = (f"{side}_logp_before", f"{side}_logp_after")
        ends = [cell("training", key, "{:.2f}".format) for key in keys]
        return _MISSING if _MISSING in ends else " → ".join(ends)

    return {
        "iteration": f"M{number} → M{number + 1}",
        "gain [95 %]": gain,
        "questions": cell("own_search", "questions", str, "counts"),
        "informative %": cell("own_search", "informative_rate", at="counts"),
        "pairs": cell("own_search", "pairs", str, "counts"),
        "right %": cell("training", "pairs_right"),
        "reversed %": cell("training", "pairs_reversed"),
        "judged right %": cell("training", "judge_sampled"),
        "updates": _cell(after, "trained", "updates", str, "counts"),
        "chosen logp": change("chosen"),
        "rejected logp": change("rejected"),
        "KL/token": cell("training", "kl", "{:.3f}".format),
    }


def _seconds_row(name: str, parts: dict[str, dict]) -> dict[str, str]:
    return {"model": name} | {
        title: f"{parts[key]['seconds']:.1f}" if key in parts else _MISSING
        for key, title in STAGES.items()
    }
