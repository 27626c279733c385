"""Samples of evaluations as text."""

import pytest

from stepjax.evaluation import samples

RIGHT = {
    "id": "p1",
    "problem": "5*3",
    "answer": "15",
    "prediction": "15",
    "right": True,
    "text": "Step 1: 5*3=15\nStep 2: \\boxed{15}",
    "finished": True,
}
WRONG = RIGHT | {"id": "p2", "prediction": None, "right": False, "finished": False}


@pytest.mark.parametrize(
    ("items", "names"),
    [
        ([WRONG, WRONG | {"id": "x"}, RIGHT], ["p1", "p2"]),
        ([RIGHT, RIGHT | {"id": "x"}, RIGHT], ["p1", "x"]),
        ([WRONG], ["p2"]),
        ([], []),
    ],
)
def test_one_right_and_one_wrong_item_are_picked(items, names):
    assert [item["id"] for item in samples.pick(items)] == names


def test_an_answer_stands_under_its_problem():
    assert samples.text_of(RIGHT) == (
        "p1: right, answer 15, right is 15\n    5*3\n    Step 1: 5*3=15\n"
        "    Step 2: \\boxed{15}"
    )
    head, *_ = samples.text_of(WRONG).split("\n")
    assert head == "p2: wrong, answer none, right is 15, not ended"
    closed = {k: v for k, v in RIGHT.items() if k != "finished"} | {"status": "budget"}
    head, *_ = samples.text_of(closed).split("\n")
    assert head == "p1: right, answer 15, right is 15, closed because of its budget"


def test_a_judgment_stands_under_its_steps_and_candidates():
    item = {
        "id": "r",
        "problem": "5*3",
        "steps": ["Step 1: 5"],
        "candidates": ["x", "y"],
    }
    item |= {"answer": "B", "prediction": "A", "right": False, "response": "so [[A]]"}
    assert samples.text_of(item) == (
        "r: wrong, verdict A, right is B\n    5*3\n    Step 1: 5\n    A: x\n    B: y\n"
        "    judgment: so [[A]]"
    )


def test_a_long_text_is_cut():
    assert samples.indented("ab\n" * 300, by=2).endswith(
        "  ab\n  ab [... 100 more characters]"
    )
