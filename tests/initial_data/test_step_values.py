"""From values of a solution's beginnings to labels and pairs of steps."""

import json

import pytest

from stepjax import records
from stepjax.initial_data.step_values import StepValues, labels, pairs
from stepjax.records import Preference, StepLabels

ABC = ("Step 1: a", "Step 2: b", "Step 3: c")


def row(*values, steps=ABC):
    return StepValues("q", "problem", (steps,), (values,))


def label_rows(*values, hard=False):
    return [made.labels for made in labels(row(*values), hard=hard)]


def test_a_label_is_the_share_of_the_value_that_a_step_keeps():
    assert label_rows(0.8, 0.4, 0.4, 0.1) == [(0.5, 1.0, 0.25)]
    assert label_rows(0.5, 1.0, 0.75, 0.0) == [(1.0, 0.75, 0.0)]  # 2 is cut to 1
    assert label_rows(0.25, 0.0, 0.0, 1.0) == [(0.0, None, None)]  # 0 is before them
    assert label_rows(0.0, 0.5, 0.25, None) == [(None, 0.5, None)]
    assert label_rows(0.0, 0.0, 0.5, None) == []  # not one label
    assert label_rows(None, None, None, 1.0) == []


def test_a_hard_label_says_whether_any_completion_is_right():
    assert label_rows(0.8, 0.125, 0.0, 0.0, hard=True) == [(1.0, 0.0, 0.0)]
    assert label_rows(0.0, 0.0, 0.5, None, hard=True) == [(0.0, 1.0, None)]


def test_each_solution_gets_a_row_with_its_number():
    two = StepValues("q", "problem", ((), ABC[:1], ABC), ((1.0,), (1, 1), (1, 1, 0, 0)))
    assert labels(two) == [
        StepLabels("q-2", "problem", ABC[:1], (1.0,)),
        StepLabels("q-3", "problem", ABC, (1.0, 0.0, None)),
    ]


def test_pairs_are_of_steps_after_the_same_steps_whose_values_differ_enough():
    solutions = (
        ("Step 1: a", "Step 2: b"),
        ("Step 1: A", "Step 2: b"),
        ("Step 1: a", "Step 2: c", "Step 3: d"),
        ("Step 1: x", "Step 2: e"),
        ("Step 1: a", "Step 2: f"),
        ("Step 1: A", "Step 2: z"),
    )
    values = (
        (0.5, 0.5, 0.0),
        (0.5, 0.75, 0.75),
        (0.5, 0.5, 1.0, 1.0),
        (0.5, 0.125, 1.0),
        (0.5, 0.5, None),
        (0.5, 0.75, 0.5),
    )
    made = StepValues("q", "problem", solutions, values)
    first = Preference("q-1-1", "problem", (), "Step 1: A", "Step 1: x")
    second = Preference("q-1-2", "problem", ("Step 1: a",), "Step 2: c", "Step 2: b")
    third = Preference("q-2-2", "problem", ("Step 1: A",), "Step 2: b", "Step 2: z")
    assert pairs(made, margin=0.625) == [first, second]
    assert pairs(made, margin=0.626) == [second]
    assert pairs(made, margin=1.0) == [second]
    assert pairs(made, margin=0.25) == [first, second, third]


def test_equal_values_never_make_a_pair():
    same = StepValues("q", "p", (ABC[:1], ("Step 1: z",)), ((0.5, 0.5), (0.5, 0.5)))
    assert pairs(same, margin=1e-9) == []
    for margin in (0, -0.5, 1.01, float("nan")):
        with pytest.raises(ValueError, match="expected a number above 0 and at most 1"):
            pairs(same, margin=margin)


def test_values_are_written_and_read_back(tmp_path):
    rows = [row(0.5, None, 1.0, 0), StepValues("r", "\u2028", ((),), ((0.125,),))]
    records.write_jsonl(tmp_path / "values.jsonl", rows)
    assert records.read_jsonl(tmp_path / "values.jsonl", StepValues) == rows


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("values", [[0.5, 1.5]], "numbers from 0 to 1 or null per solution"),
        ("values", [[0.5, float("nan")]], "numbers from 0 to 1 or null per solution"),
        ("values", [[0.5, True]], "numbers from 0 to 1 or null per solution"),
        ("values", [0.5, 0.5], "one list of numbers"),
        ("values", "text", "one list of numbers"),
        ("values", [[0.5]], "has .1. numbers for solutions of .1. steps; expected one"),
        ("values", [], "has .. numbers for solutions of .1. steps"),
        ("solutions", [["a", 1]], "one list of texts per solution"),
        ("solutions", ["Step 1: a"], "one list of texts per solution"),
    ],
)
def test_values_that_do_not_fit_are_refused_at_their_line(
    tmp_path, field, value, reason
):
    good = {"id": "q", "problem": "p", "solutions": [["a"]], "values": [[1, 0.5]]}
    path = tmp_path / "values.jsonl"
    path.write_text(json.dumps(good) + "\n" + json.dumps(good | {field: value}) + "\n")
    with pytest.raises(ValueError, match=rf"values.jsonl:2 \(id q\): field .*{reason}"):
        records.read_jsonl(path, StepValues)
