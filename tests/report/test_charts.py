"""Charts and plots: their points, their tables, and that they follow the theme."""

import re
import xml.etree.ElementTree

import numpy as np
import pytest

from stepjax.report import charts, plots, published
from stepjax.report.plots import Series


def result(accuracy, right, low=0.1, high=0.9, **metrics):
    """A result of a mode of evaluation; `right` says which problems were solved."""
    items = [{"id": n, "right": mark == "+"} for n, mark in enumerate(right)]
    metrics |= {"accuracy": accuracy, "low": low, "high": high}
    return {"metrics": metrics, "items": items, "seconds": 3.0}


RESULTS = [
    {"greedy": result(0.25, "+---"), "judge": result(0.5, "++--")},
    {"greedy": result(0.75, "+++-"), "judge": result(0.75, "+++-")},
]


def texts(svg):
    return ["".join(e.itertext()) for e in xml.etree.ElementTree.fromstring(svg).iter()]


def test_a_curve_is_drawn_at_its_points():
    curve = Series("a", [(0, 10.0), (2, 30.0), (3, 20.0)])
    svg = plots.lines([curve], "percent", note="n", ends=(0, 40)).svg
    (path,) = re.findall(
        r'<path d="([^"]*)"[^>]*stroke: var\(--c1\); stroke-width: 1.8', svg
    )
    points = [tuple(map(float, p)) for p in re.findall(r"[ML] (\S+) (\S+)", path)]
    (x0, y0), (x2, y2), (x3, y3) = points
    assert (x2 - x0) / (x3 - x2) == pytest.approx(2, rel=1e-4)
    assert (y0 - y2) / (y3 - y2) == pytest.approx(2, rel=1e-4)


def test_a_plot_has_only_colours_of_the_page():
    curves = [Series(f"{n}", [(0, 1.0), (1, 2.0)], [(0, 2), (1, 3)]) for n in range(7)]
    curves.append(Series("paper", [(0, 1.0), (1, 2.0)], published=True))
    drawn = plots.lines(curves, "x", note="n")
    assert not re.search(r"#[0-9a-f]{6}\b", drawn.svg)
    assert [colour for _, colour in drawn.legend] == [
        *(f"--c{n}" for n in range(1, 8)),
        "--paper",
    ]
    bars = plots.bars({"M0": {"b": 2.0}}, ("a", "b"), "s", note="bars")
    assert bars.legend == [("b", "--c2")]  # the same colour with or without "a"
    assert not re.search(r"#[0-9a-f]{6}\b", bars.svg)


def test_points_over_tokens_are_on_a_logarithmic_axis():
    curve = [(32.0, 40.0, 30.0, 50.0), (64.0, 60.0, 50.0, 70.0), (256.0, 80.0, 70, 90)]
    curves = {"a": curve, "none": [], "$b$": curve[:1]}
    drawn = plots.against_tokens(curves, note="n")
    assert drawn.legend == [("a", "--c1"), ("$b$", "--c3")]
    (path,) = re.findall(
        r'<path d="([^"]*)"[^>]*stroke: var\(--c1\); stroke-width: 1.8', drawn.svg
    )
    (x0, y0), (x1, y1), (x2, y2) = (
        tuple(map(float, p)) for p in re.findall(r"[ML] (\S+) (\S+)", path)
    )
    assert (x2 - x1) / (x1 - x0) == pytest.approx(2, rel=1e-4)
    assert y0 - y1 == pytest.approx(y1 - y2, rel=1e-4)
    assert not re.search(r"#[0-9a-f]{6}\b", drawn.svg)
    whiskers = re.findall(r'<path d="M (\S+) (\S+) \nL (\S+) (\S+) ', drawn.svg)
    heights = [abs(float(y) - float(z)) for x, y, w, z in whiskers if x == w]
    assert sum(h == pytest.approx(y0 - y1, rel=1e-3) for h in heights) >= 3


def test_names_that_mean_something_elsewhere_are_text():
    drawn = plots.lines([Series("a", [(0, 1.0)])], '<b>$x_1$ & "', note='<"&>')
    assert '<b>$x_1$ & "' in texts(drawn.svg)
    root = xml.etree.ElementTree.fromstring(drawn.svg)
    assert root.attrib["aria-label"] == '<"&>'


def test_two_plots_of_a_page_share_no_names_of_clip_paths():
    curve = Series("a", [(0, 1.0), (1, 2.0)])
    both = [plots.lines([curve], "x", note=note).svg for note in ("one", "two")]
    names = [set(re.findall(r'<clipPath id="([^"]*)"', svg)) for svg in both]
    assert names[0] and names[1] and not names[0] & names[1]
    assert both[0] == plots.lines([curve], "x", note="one").svg


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("", "mean of six benchmarks"),
        ("GSM8K_test", "GSM8K"),
        ("math", "MATH"),
        ("math-500", "mean of six benchmarks"),
        ("AIME2024", "AIME24"),
        ("aime2025", "mean of six benchmarks"),
        ("gaokao2023en", "Gaokao"),
        ("olympiad_bench", "Olympiad"),
        ("amc23", "AMC23"),
    ],
)
def test_the_papers_curve_is_of_the_benchmark_of_the_same_name(name, of):
    assert published.curve(name)[0] == of


def test_published_means_are_those_of_the_six_benchmarks():
    for model, (*six, mean) in published.ACCURACY.items():
        assert len(six) == len(published.BENCHMARKS), model
        assert sum(six) / 6 == pytest.approx(mean, abs=0.051), model
    points = published.curve("gsm8k")[1]
    assert points == [(0, 70.1), (1, 88.5), (2, 88.8), (3, 88.5), (4, 88.8)]


def test_accuracy_comes_with_the_gain_over_the_model_before():
    first, gain = charts.accuracy(RESULTS, {})
    names = [name for name, _ in first.plot.legend]
    assert names == ["greedy", "paper, 7B, mean of six benchmarks"]
    assert "other problems" in first.text
    assert gain.title == "Gain over the model before"
    (named,) = charts.accuracy([{}, {}], {"gsm8k": RESULTS})
    assert named.title == "Accuracy: gsm8k" and "other problems" not in named.text


def test_charts_of_what_was_not_measured_are_left_out():
    assert (
        charts.accuracy([{}], {}) == charts.steps([{}]) == charts.training([{}]) == []
    )
    assert charts.judging([{}], [{}]) == []
    (judge,) = charts.judging(RESULTS, [{}, {}])
    assert judge.title == "Judge accuracy"
    counts = [{}, {"first_wins": (3, 4), "cycle_rate": (0, 0)}]
    _, bias = charts.judging(RESULTS, counts)
    assert bias.title == "Bias of the judge"
    assert bias.plot.legend == [("first one shown wins", "--c1")]


def test_reliability_is_drawn_of_probabilities_and_not_of_hard_verdicts():
    def row(probability, right, count=10):
        return {"probability": probability, "right": right, "count": count}

    def judged(*rows):
        return [{}, {"search": {"metrics": {}, "reliability": list(rows)}}]

    hard = judged(row(0.0, 0.1), row(1.0, 0.9))
    assert charts.judging(hard, [{}, {}]) == []
    (chart,) = charts.judging(judged(row(0.2, 0.3), row(0.8, 0.7, 1000)), [{}, {}])
    assert chart.title == "How sure the judge is"
    assert chart.plot.legend == [("M1", "--c1")]
    (path,) = re.findall(
        r'<path d="([^"]*)"[^>]*stroke: var\(--c1\); stroke-width: 1.8',
        chart.plot.svg,
    )
    places = np.array(re.findall(r"[ML] ([\d.]+) ([\d.]+)", path), float)
    across, up = places[1] - places[0]
    assert across > 0 > up  # to the right and up, less steep than the diagonal
    (diagonal,) = re.findall(
        r'<path d="([^"]*)"[^>]*stroke-dasharray[^>]*stroke: var\(--paper\)',
        chart.plot.svg,
    )
    ends = np.array(re.findall(r"[ML] ([\d.]+) ([\d.]+)", diagonal), float)
    slope = (ends[1] - ends[0])[1] / (ends[1] - ends[0])[0]
    assert up / across == pytest.approx(slope * 0.4 / 0.6, rel=1e-3)


def test_training_shows_pairs_log_probabilities_and_drift():
    sides = [
        f"{s}_logp_{w}" for s in ("chosen", "rejected") for w in ("before", "after")
    ]
    metrics = dict.fromkeys(sides, -1.0) | {"kl": 0.1}
    found = [{}, {}, {"training": {"metrics": metrics}}]
    assert [chart.title for chart in charts.training(found)] == [
        "Log-probability of a step",
        "KL divergence",
    ]
    worth = {
        f"pairs_{k}": 0.25 for k in ("right", "reversed", "both_right", "both_wrong")
    }
    found[2] = {"training": {"metrics": metrics | worth}}
    assert charts.training(found)[0].title == "What the pairs are worth"


def test_own_figures_stand_above_the_papers():
    (_, accuracy), (_, judge) = charts.published_tables(RESULTS, {"MATH": RESULTS})
    own = [row for row in accuracy if row["model"].startswith("this run")]
    assert (
        [row["MATH"] for row in own]
        == ["25.0", "75.0"]
        == [row["MATH"] for row in accuracy[:2]]
    )
    assert {row["GSM8K"] for row in own} == {"-"}
    assert accuracy[2] | {"x": ""} == {
        **{"model": "paper, 7B M0", "GSM8K": "70.1", "MATH": "51.7", "Gaokao": "51.2"},
        **{
            "Olympiad": "21.3",
            "AIME24": "0.0",
            "AMC23": "22.5",
            "mean": "36.1",
            "x": "",
        },
    }
    assert list(judge[0].values()) == ["this run", "50.0", "75.0", "-", "-", "-"]


def test_seconds_and_tokens_are_counted_by_stage():
    sampled = [{"greedy": {"tokens": 1200, "samples": 4}}]
    assert charts.sampled_table(sampled) == [
        {"model": "M0", "stage": "eval greedy", "tokens": "1,200"}
        | {"samples": "4", "judgments": "-"}
    ]
    time, tokens = charts.costs(RESULTS[:1], sampled)
    assert [name for name, _ in time.plot.legend] == ["eval greedy", "eval judge"]
    assert tokens.plot.legend == time.plot.legend[:1]
