"""The final table of a run: one row for each model, and the seconds of its stages."""

import pathlib

from stepjax.lm import checkpoint


def tables(
    workdir: pathlib.Path, models: int
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Reads what the stages measured.

    Rates of ties, flips and unparsed verdicts are those of the search evaluation, so
    that all models are compared on the same problems; questions and pairs are those
    that a model made for the next one.

    Args:
      workdir: the run directory.
      models: M0 ... M`models`.

    Returns:
      Rows of the results, and rows of the seconds; "-" where a stage did not run.
    """
    rows, seconds = [], []
    for number in range(models + 1):
        folder = workdir / f"M{number}"
        files = {
            "trained": folder / "manifest.json",
            "made": folder / "search.json",
            "greedy": workdir / "eval" / f"M{number}_test_greedy.json",
            "judge": workdir / "eval" / f"M{number}_heldout_judge.json",
            "search": workdir / "eval" / f"M{number}_test_search.json",
        }
        parts = {k: checkpoint.read_json(p) for k, p in files.items() if p.exists()}
        if parts:
            rows.append(_table_row(f"M{number}", parts))
            seconds.append(_seconds_row(f"M{number}", parts))
    return rows, seconds


def _rate(value: float) -> str:
    return f"{100 * value:.1f}"


def _interval(metrics: dict[str, float]) -> str:
    low, high = _rate(metrics["low"]), _rate(metrics["high"])
    return f"{_rate(metrics['accuracy'])} [{low}, {high}]"


def _table_row(name: str, parts: dict[str, dict]) -> dict[str, str]:
    """Returns one row of the final table; "-" where a stage did not run."""
    missing = "-"
    greedy = parts.get("greedy", {}).get("metrics")
    judged = parts.get("judge", {}).get("metrics")
    found = parts.get("search", {}).get("metrics")
    made = parts.get("made", {}).get("counts")
    return {
        "model": name,
        "greedy % [95 %]": _interval(greedy) if greedy else missing,
        "search %": _rate(found["accuracy"]) if found else missing,
        "judge %": _rate(judged["accuracy"]) if judged else missing,
        "questions": str(made["questions"]) if made else missing,
        "pairs": str(made["pairs"]) if made else missing,
        "tie %": _rate(found["tie_rate"]) if found else missing,
        "flip %": _rate(found["flip_rate"]) if found else missing,
        "unparsed %": _rate(found["unparsed_rate"]) if found else missing,
        "steps": f"{greedy['steps_per_solution']:.2f}" if greedy else missing,
        "tokens/step": f"{greedy['tokens_per_step']:.1f}" if greedy else missing,
    }


def _seconds_row(name: str, parts: dict[str, dict]) -> dict[str, str]:
    """Returns the seconds of the stages that made and measured a model."""
    titles = {
        "trained": "train",
        "made": "search questions",
        "greedy": "eval greedy",
        "judge": "eval judge",
        "search": "eval search",
    }
    return {"model": name} | {
        title: f"{parts[key]['seconds']:.1f}" if key in parts else "-"
        for key, title in titles.items()
    }
