"""Judges on labelled steps: what files give, and figures recomputed by hand."""

import json
import os
import pathlib
import statistics

import numpy as np
import pytest

from stepjax.evaluation import grading, intervals, judge_sets
from stepjax.initial_data import prm
from stepjax.judge import comparisons
from stepjax.prompts import Templates
from stepjax.records import Comparison, StepLabels
from stepjax.trajectory import Verdict

T = Templates()


def rated(text, rating):
    return {"text": text, "rating": rating}


PRM800K = {
    "question": {"problem": "1+1+1?", "ground_truth_answer": "3"},
    "label": {
        "steps": [
            {
                "completions": [rated("2.", 1), rated("3.", -1), rated("4.", -1)],
                "chosen_completion": 0,
            },
            {
                "completions": [rated("so 3", 1), rated("so 4", 0)],
                "chosen_completion": 0,
            },
        ]
    },
}


def bench(name, steps, label, problem="1+1?"):
    return {"id": name, "problem": problem, "steps": steps, "label": label}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# Files.


@pytest.mark.parametrize(
    "row, expected",
    [
        (PRM800K, "prm800k"),
        (bench("a", ["x"], 0), "processbench"),
        ({"id": "a", "problem": "x", "steps": [], "a": "b", "b": "c"}, None),
        ({"id": "a", "a": "b", "b": "c", "verdict": "A"}, "jsonl"),
        ({"problem": "x", "answer": "1", "label": 3}, None),
        ({"question": "x", "answer": "1"}, None),
    ],
)
def test_files_are_known_by_their_first_row(tmp_path, row, expected):
    assert judge_sets.form(write(tmp_path / "x.jsonl", row)) == expected


def test_prm800k_gives_one_pair_of_a_step_in_both_orders(tmp_path):
    found = judge_sets.read(write(tmp_path / "x.jsonl", PRM800K), T)
    good, bad = "Step 1: 2.", "Step 1: 3."
    assert [(r.a, r.b, r.verdict) for r in found.comparisons] == [
        (good, bad, "A"),
        (bad, good, "B"),
    ]
    assert found.solutions == []


def test_processbench_gives_pairs_only_behind_the_same_steps(tmp_path):
    rows = [
        bench("a", ["1+1=2", "so 2"], -1),
        bench("b", ["1+1=3", "so 3"], 0),  # another first step than a's
        bench("c", ["1+1=2", "so 4", "bye"], 1),  # another second step than a's
        bench("d", ["1+1=4"], 0),  # b has a wrong first step already
        bench("e", ["1+1=3"], 0, problem="2+2?"),  # of another problem
        bench("f", ["2=2", "so 5"], 1),  # no other solution begins so
    ]
    found = judge_sets.read(write(tmp_path / "x.jsonl", *rows), T)
    assert [(r.id, r.steps, r.a, r.b, r.verdict) for r in found.comparisons] == [
        ("a-1-ab", (), "Step 1: 1+1=2", "Step 1: 1+1=3", "A"),
        ("a-1-ba", (), "Step 1: 1+1=3", "Step 1: 1+1=2", "B"),
        ("a-2-ab", ("Step 1: 1+1=2",), "Step 2: so 2", "Step 2: so 4", "A"),
        ("a-2-ba", ("Step 1: 1+1=2",), "Step 2: so 4", "Step 2: so 2", "B"),
    ]
    assert list(map(judge_sets.first_error, found.solutions)) == [-1, 0, 1, 0, 0, 1]


def test_a_step_that_is_called_right_and_wrong_makes_no_pair():
    both = [
        StepLabels("a", "x", ("Step 1: y",), (1,)),
        StepLabels("b", "x", ("Step 1: y",), (0,)),
    ]
    assert judge_sets.alternatives(both) == []


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = write(tmp_path / "x.jsonl", {"problem": "x", "answer": "1"})
    with pytest.raises(ValueError, match="no labelled solution and no comparison"):
        judge_sets.read(path, T)


@pytest.mark.skipif(
    "STEPJAX_DATA" not in os.environ,
    reason="STEPJAX_DATA is unset: no folder with processbench/ and prm800k/ to read",
)
def test_published_files_are_read():
    data = pathlib.Path(os.environ["STEPJAX_DATA"])
    for path in sorted((data / "processbench").glob("*.jsonl")):
        rows = [json.loads(line) for line in open(path, encoding="utf-8")]
        found = judge_sets.read(path, T)
        labels = [judge_sets.first_error(s) for s in found.solutions]
        assert labels == [row["label"] for row in rows]
        assert {len(row.steps) for row in found.comparisons} == {0}
    found = judge_sets.read(data / "prm800k" / "phase1_test_rebuilt.jsonl", T)
    assert len(found.comparisons) > 100 and found.solutions == []


# First errors.


def asked_judge(said):
    """A judge that says what a dictionary has for a problem and step number."""
    asked = []

    def judge(requests, calls):
        assert len({request.slot for request in requests}) == len(requests)
        asked.append([(r.problem, len(r.steps)) for r in requests])
        return [
            [Verdict(*call, said[r.problem][len(r.steps)], "why") for call in own]
            for r, own in zip(requests, calls, strict=True)
        ]

    return judge, asked


def labelled(problem, steps, first):
    labels = [1] * steps if first < 0 else [1] * first + [0]
    labels += [None] * (steps - len(labels))
    texts = tuple(f"Step {n}: {n}" for n in range(1, steps + 1))
    return StepLabels(f"id {problem}", problem, texts, tuple(labels))


SOLUTIONS = [
    labelled("1", 3, -1),  # all accepted
    labelled("2", 2, 1),  # found
    labelled("3", 4, 2),  # too early
    labelled("4", 1, -1),  # called wrong
    labelled("5", 3, 0),  # missed
    labelled("6", 3, 1),  # a verdict cannot be read
]
SAID = {"1": "AAA", "2": "AB", "3": "ABBB", "4": "B", "5": "AAA", "6": ["A", None, "B"]}


@pytest.mark.parametrize("slots", [1, 4, 8])
def test_the_first_rejected_step_is_the_answer(codec, slots):
    judge, asked = asked_judge(SAID)
    done = []
    items = judge_sets.locate(
        judge, codec, SOLUTIONS, slots=slots, on_done=lambda batch: done.append(batch)
    )
    assert [item["prediction"] for item in items] == [-1, 1, 1, 0, -1, None]
    assert [item["answer"] for item in items] == [-1, 1, 2, -1, 0, 1]
    right = [True, True, False, False, False, False]
    assert [item["right"] for item in items] == right
    assert [len(item["verdicts"]) for item in items] == [3, 2, 2, 1, 3, 2]
    assert sum(done, []) == items and len(done) == -(-6 // slots)
    if slots == 4:  # no step is asked behind a rejected one
        assert asked == [
            [("1", 0), ("2", 0), ("3", 0), ("4", 0)],
            [("1", 1), ("2", 1), ("3", 1)],
            [("1", 2)],
            [("5", 0), ("6", 0)],
            [("5", 1), ("6", 1)],
            [("5", 2)],
        ]
    found = judge_sets.first_error_metrics(items)
    assert found["first_error_count"] == 4 and found["no_error_count"] == 2
    assert found["first_error_accuracy"] == 1 / 4 and found["no_error_accuracy"] == 0.5
    assert found["first_error_f1"] == pytest.approx(
        statistics.harmonic_mean([0.25, 0.5])
    )
    assert found["unread_rate"] == pytest.approx(1 / 6)
    assert found["f1_low"] < found["first_error_f1"] < found["f1_high"]


def test_the_figures_are_those_of_a_prm_that_says_the_same(codec):
    judge, _ = asked_judge(SAID)
    solutions = SOLUTIONS[:5]  # a PRM has an answer for each step
    found = judge_sets.first_error_metrics(
        judge_sets.locate(judge, codec, solutions, slots=8)
    )
    said = [[{"A": 0.9, "B": 0.1}[v] for v in SAID[s.problem]] for s in solutions]
    of_prm = prm.first_error_metrics(solutions, said)
    assert found["first_error_accuracy"] == of_prm["wrong_accuracy"]
    assert found["no_error_accuracy"] == of_prm["right_accuracy"]
    assert found["first_error_f1"] == pytest.approx(of_prm["f1"])


def test_f1_needs_solutions_of_both_kinds(codec):
    judge, _ = asked_judge(SAID)
    items = judge_sets.locate(judge, codec, SOLUTIONS[1:3], slots=2)
    found = judge_sets.first_error_metrics(items)
    assert found == {
        "first_error_accuracy": 0.5,
        "first_error_count": 2,
        "no_error_count": 0,
        "unread_rate": 0.0,
    }


@pytest.mark.parametrize(
    "one, other, mean",
    [((0, 9), (9, 9), 0.0), ((0, 5), (0, 5), 0.0), ((5, 5), (3, 3), 1.0)],
)
def test_the_ends_of_a_harmonic_mean(one, other, mean):
    middle, low, high = intervals.harmonic_mean(one, other)
    assert middle == mean and 0 <= low <= middle <= high <= 1


@pytest.mark.parametrize("p, n, q, m", [(0.3, 160, 0.8, 140), (0.02, 400, 0.97, 200)])
def test_the_interval_of_a_harmonic_mean_holds_the_truth(p, n, q, m):
    rng, truth = np.random.default_rng(7), 2 * p * q / (p + q)
    draws = zip(rng.binomial(n, p, 2000), rng.binomial(m, q, 2000), strict=True)
    found = (intervals.harmonic_mean((int(x), n), (int(y), m)) for x, y in draws)
    share = np.mean([low <= truth <= high for _, low, high in found])
    assert 0.93 < share < 0.98


# Pairs.


def both_orders(name):
    same = name, ("Step 1: 1",)
    return [
        Comparison(f"{name}-ab", *same, "Step 2: 2", "Step 2: 3", "A"),
        Comparison(f"{name}-ba", *same, "Step 2: 3", "Step 2: 2", "B"),
    ]


def test_accuracy_on_pairs(codec):
    rows = [row for name in "1234" for row in both_orders(name)]
    said = iter(["A", "B", "A", "A", "B", "A", None, "B"])

    def judge(requests, calls):
        assert calls == [[(0, 1)]] * len(requests)
        return [[Verdict(0, 1, next(said), "")] for _ in requests]

    items = grading.judge_accuracy(
        judge, codec, rows, slots=3, judgments=comparisons("sum")
    )
    found = judge_sets.pair_metrics(rows, items)
    assert found["accuracy"] == 4 / 8  # 2, 1, 0 and 1 of two
    assert (found["count"], found["judgments"]) == (4, 8)
    assert (found["low"], found["high"]) == intervals.wilson(2, 4)
    assert found["both_orders"] == 1 / 4
    assert found["flip_rate"] == pytest.approx(1 / 3)  # of three pairs with verdicts
    assert found["unparsed_rate"] == 1 / 8


def test_a_judge_of_single_steps_is_asked_about_each_of_a_pair(codec):
    rows, shown = both_orders("1"), []

    def judge(requests, calls):
        assert calls == [[(0, 0)]] * len(requests)
        shown.extend(codec.text(*r.candidates) for r in requests)
        return [[Verdict(0, 0, "A", "")] for _ in requests]

    alone = comparisons("sum")._replace(held_out=judge_sets.stated_alone)
    items = grading.judge_accuracy(judge, codec, rows, slots=2, judgments=alone)
    found = judge_sets.pair_metrics(rows, items)
    assert shown == ["Step 2: 2", "Step 2: 3"]
    assert found["accuracy"] == 0.5 and found["both_orders"] == 0
    assert found["count"] == 1 and "flip_rate" not in found
