"""The charts and tables of the page, from what the stages of a run have measured."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from stepjax.evaluation import intervals, tables
from stepjax.report import plots, published
from stepjax.report.plots import Plot, Series

_PERCENT = (-2, 102)  # ends of an axis: points at 0 and 100 % are seen whole
_PARTS = tuple(tables.STAGES.values())

Results = Sequence[Mapping[str, Mapping[str, Any]]]  # of each model, `tables.results`


class Chart(NamedTuple):
    """One chart of the page.

    Attributes:
      title: above it.
      plot: with its legend.
      text: below it, what to look for; "" for nothing.
    """

    title: str
    plot: Plot
    text: str


def accuracy(results: Results, benchmarks: Mapping[str, Results]) -> list[Chart]:
    """Returns accuracy over the models: of the run's own test, then of benchmarks.

    Args:
      results: of each model, M0 first.
      benchmarks: name of a file that the run was measured on → the same for this file.
    """
    charts = []
    for name, found in {"test": results, **benchmarks}.items():
        of, points = published.curve("" if name == "test" else name)
        curves = [
            _rates(found, "greedy", "greedy"),
            _rates(found, "search", "test-time search"),
            _rates(found, "unseen", "unseen steps"),
        ]
        if not any(curve.points for curve in curves):
            continue
        paper = Series(f"paper, 7B, {of}", points, published=True)
        plot = plots.lines(
            [*curves, paper], "accuracy, %", note=f"Accuracy on {name}", ends=_PERCENT
        )
        title = "the run's own test" if name == "test" else name
        text = "Bands are 95 % intervals (Wilson)."
        if of not in published.BENCHMARKS:
            text += " The paper's curve is of other problems: compare shapes only."
        charts.append(Chart(f"Accuracy: {title}", plot, text))
        if name == "test":
            charts += _gains(found)
    return charts


def _gains(results: Results) -> list[Chart]:
    """Returns by how much each model is better than the one before."""
    gains = [
        (n, intervals.paired_gain(before["greedy"]["items"], now["greedy"]["items"]))
        for n, (before, now) in enumerate(zip(results, results[1:], strict=False), 1)
        if "greedy" in before and "greedy" in now
    ]
    if not gains:
        return []
    points = [(n, 100 * gain) for n, (gain, _, _) in gains]
    ends = [(100 * low, 100 * high) for _, (_, low, high) in gains]
    paper = published.curve("")[1]
    rises = [
        (n, now - before)
        for (_, before), (n, now) in zip(paper, paper[1:], strict=False)
    ]
    curves = [
        Series("this run, greedy", points, ends),
        Series("paper, 7B, mean of six benchmarks", rises, published=True),
    ]
    plot = plots.lines(curves, "percentage points", note="Gain over the model before")
    text = "The band is the 95 % interval for two models on the same problems."
    return [Chart("Gain over the model before", plot, text)]


def judging(results: Results, verdicts: Sequence[Mapping[str, tuple]]) -> list[Chart]:
    """Returns the judge's accuracy, what it cannot decide, and its biases.

    Args:
      results: of each model, M0 first.
      verdicts: of each model, `calibration.counts_of_verdicts`, and as "first_wins"
        `calibration.first_wins`; {} where it searched nothing.
    """
    paper = list(enumerate(published.JUDGE["7B"]))
    right = [
        _rates(results, "judge", "held-out comparisons"),
        Series("its own samples", _points(results, "search", "judge_sampled")),
        Series("paper, 7B, held-out comparisons", paper, published=True),
    ]
    undecided = [
        Series("ties", _points(results, "search", "tie_rate")),
        Series("flips", _points(results, "search", "flip_rate")),
        Series("no verdict", _points(results, "search", "unparsed_rate")),
        _counted(verdicts, "cycle_rate", "circles"),
    ]
    biased = [
        _counted(verdicts, "first_wins", "first one shown wins"),
        _counted(verdicts, "longer_wins", "longer one wins"),
    ]
    charts = []
    if any(curve.points for curve in right[:2]):
        charts.append(
            Chart(
                "Judge accuracy",
                plots.lines(right, "right, %", note="Judge accuracy"),
                "Comparisons whose right answer is known, held out from training or "
                "made of the model's own samples.",
            )
        )
    if any(curve.points for curve in undecided):
        charts.append(
            Chart(
                "What the judge leaves open",
                plots.lines(
                    undecided, "share, %", note="Ties, flips, circles", ends=_PERCENT
                ),
                "Ties: searched steps without a preference. Flips: pairs whose winner "
                "depends on the order. Circles: how often each of three candidates "
                "beats one of the other two, where all three pairs are decided.",
            )
        )
    if any(curve.points for curve in biased):
        charts.append(
            Chart(
                "Bias of the judge",
                plots.lines(
                    biased, "share, %", note="Bias of the judge", ends=_PERCENT
                ),
                "Of all calls, how often the first one shown wins: 50 % is no bias. Of "
                "pairs of different lengths, how often the longer one wins: it may "
                "deserve to, so look at the change. Bands are 95 % intervals.",
            )
        )
    stated = {
        f"M{number}": rows
        for number, result in enumerate(results)
        if (rows := result.get("search", {}).get("reliability"))
    }
    # Verdicts without a probability count as 0 or 1, which says nothing of the judge.
    if any(
        0.05 < row["probability"] < 0.95 for rows in stated.values() for row in rows
    ):
        charts.append(
            Chart(
                "How sure the judge is",
                plots.reliability(stated, note="Reliability of the judge"),
                "The judge's probability that the step shown first is the better one, "
                "and how often it is, for tenths of the probability; larger points are "
                "more calls. Below the dashed line on its right half, and above it on "
                "its left half, the judge is too sure.",
            )
        )
    return charts


def steps(results: Results) -> list[Chart]:
    """Returns how many steps a greedy solution has, and how long they are."""
    number = Series("steps", _points(results, "greedy", "steps_per_solution", 1))
    length = Series("tokens", _points(results, "greedy", "tokens_per_step", 1))
    if not number.points:
        return []
    return [
        Chart(
            "Steps per solution",
            plots.lines(
                [number], "steps", note="Steps per greedy solution", from_zero=True
            ),
            published.STEPS,
        ),
        Chart(
            "Tokens per step",
            plots.lines([length], "tokens", note="Tokens per step", from_zero=True),
            "Of greedy solutions of the run's own test.",
        ),
    ]


def training(results: Results) -> list[Chart]:
    """Returns what each iteration of step-wise DPO did to the pairs it trained on."""
    sides = [
        Series(
            f"{side}, {when}", _points(results, "training", f"{side}_logp_{when}", 1)
        )
        for side in ("chosen", "rejected")
        for when in ("before", "after")
    ]
    drift = Series("KL", _points(results, "training", "kl", 1))
    if not drift.points:
        return []
    quality = [
        Series(name, _points(results, "training", f"pairs_{key}"))
        for key, name in (
            ("right", "right over wrong"),
            ("reversed", "wrong over right"),
            ("both_right", "both right"),
            ("both_wrong", "both wrong"),
        )
    ]
    known = [
        Chart(
            "What the pairs are worth",
            plots.lines(quality, "pairs, %", note="Quality of pairs", ends=_PERCENT),
            "Chosen and rejected steps of the same pairs, by the gold of the world.",
        )
        for _ in quality[0].points[:1]
    ]
    return known + [
        Chart(
            "Log-probability of a step",
            plots.lines(sides, "nats per step", note="Log-probabilities of steps"),
            "Chosen and rejected steps of the pairs that the model named below was "
            "trained on, before and after. Chosen steps that fall too are a warning.",
        ),
        Chart(
            "KL divergence",
            plots.lines(
                [drift],
                "nats per token",
                note="KL divergence per token",
                from_zero=True,
            ),
            "How far one iteration moved the model, on the chosen and rejected steps.",
        ),
    ]


def costs(results: Results, sampled: Sequence[Mapping[str, Mapping]]) -> list[Chart]:
    """Returns seconds and sampled tokens of each stage.

    Args:
      results: of each model, M0 first.
      sampled: of each model, part → counts with "tokens"; see `build`.
    """
    seconds = {
        f"M{number}": {
            tables.STAGES[part]: found[part]["seconds"]
            for part in tables.STAGES
            if part in found
        }
        for number, found in enumerate(results)
    }
    tokens = {
        f"M{number}": {tables.STAGES[p]: c["tokens"] for p, c in counts.items()}
        for number, counts in enumerate(sampled)
    }
    return [
        Chart(
            "Time",
            plots.bars(seconds, _PARTS, "seconds", note="Seconds of each stage"),
            "Compilation included.",
        ),
        Chart(
            "Tokens sampled",
            plots.bars(tokens, _PARTS, "tokens", note="Tokens sampled in each stage"),
            "Greedy solutions and candidate steps. Judgments are kept as texts; their "
            "tokens are not counted here.",
        ),
    ]


def sampled_table(sampled: Sequence[Mapping[str, Mapping]]) -> list[dict[str, str]]:
    """Returns what each stage sampled, as a table: tokens, samples and judgments."""
    return [
        {"model": f"M{number}", "stage": tables.STAGES[part]}
        | {
            name: f"{counts[name]:,}" if name in counts else "-"
            for name in ("tokens", "samples", "judgments")
        }
        for number, parts in enumerate(sampled)
        for part, counts in parts.items()
    ]


def published_tables(
    results: Results, benchmarks: Mapping[str, Results]
) -> list[tuple[str, list[dict[str, str]]]]:
    """Returns the paper's Table 1 and its judge accuracy, the run's own rows first."""
    columns: dict[str, Results] = collections.defaultdict(list)
    for name, found in benchmarks.items():
        if (of := published.curve(name)[0]) in published.BENCHMARKS:
            columns.setdefault(of, found)
    rows = []
    for number in range(len(results)):
        row = {"model": f"this run, M{number}"}
        for name in published.BENCHMARKS:
            measured = dict(_points(columns[name], "greedy", "accuracy"))
            row[name] = f"{measured[number]:.1f}" if number in measured else "-"
        if set(row.values()) - {"-", row["model"]}:
            rows.append(row | {"mean": "-"})
    names = (*published.BENCHMARKS, "mean")
    for model, values in published.ACCURACY.items():
        texts = [f"{value:.1f}" for value in values]
        rows.append(
            {"model": f"paper, {model}", **dict(zip(names, texts, strict=True))}
        )
    judged = dict(_points(results, "judge", "accuracy"))
    count = max([len(published.JUDGE["7B"]), *(number + 1 for number in judged)])
    found = {"this run": [judged.get(number) for number in range(count)]}
    for size, values in published.JUDGE.items():
        found[f"paper, {size}"] = [*values, *[None] * (count - len(values))]
    judges = [
        {"judge accuracy, %": name}
        | {f"M{n}": "-" if v is None else f"{v:.1f}" for n, v in enumerate(values)}
        for name, values in found.items()
    ]
    return [
        ("Accuracy with greedy decoding, % (the paper's Table 1)", rows),
        ("Judge accuracy on held-out comparisons", judges),
    ]


def _points(
    results: Results, part: str, metric: str, factor: float = 100
) -> list[tuple[int, float]]:
    """Returns (number of the model, value) where a model has the metric."""
    found = [(n, r.get(part, {}).get("metrics", {})) for n, r in enumerate(results)]
    return [(n, factor * metrics[metric]) for n, metrics in found if metric in metrics]


def _rates(results: Results, part: str, name: str) -> Series:
    """Returns accuracy with its intervals."""
    low, high = (_points(results, part, end) for end in ("low", "high"))
    ends = [(a, b) for (_, a), (_, b) in zip(low, high, strict=True)]
    return Series(name, _points(results, part, "accuracy"), ends)


def _counted(counts: Sequence[Mapping[str, tuple]], key: str, name: str) -> Series:
    """Returns shares of counts with their intervals."""
    known = [(n, *found.get(key, (0, 0))) for n, found in enumerate(counts)]
    known = [(n, part, whole) for n, part, whole in known if whole]
    ends = [intervals.wilson(part, whole) for _, part, whole in known]
    return Series(
        name,
        [(n, 100 * part / whole) for n, part, whole in known],
        [(100 * low, 100 * high) for low, high in ends],
    )
