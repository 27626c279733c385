"""What a judge is asked, and the readings of equation 2 by hand."""

import math

import pytest
from fakes import verdicts_of
from hypothesis import given
from hypothesis import strategies as st

from stepjax.judge import (
    Request,
    comparisons,
    graded,
    ordered_pairs,
    position_flips,
    win_counts,
)
from stepjax.records import Comparison
from stepjax.trajectory import Verdict

SUM = "8*7+4*4+2*3+1"


# Equation 2.

TABLES = [
    # Everyone agrees: 0 beats all, 1 beats 2.
    ("01A 02A 10B 12A 20B 21B", 3, [4, 2, 0], [2, 1, 0]),
    # The first one shown always wins.
    ("01A 02A 10A 12A 20A 21A", 3, [2, 2, 2], [0, 0, 0]),
    # A circle: 0 beats 1 beats 2 beats 0, in both orders.
    ("01A 02B 10B 12A 20A 21B", 3, [2, 2, 2], [1, 1, 1]),
    # 0 and 1 flip; 2 loses to 0 both ways, to 1 once and is unparsed once.
    ("01B 02A 10B 12A 20B 21-", 3, [3, 2, 0], [1, 0, 0]),
    # A win and an unparsed call is no consistent win.
    ("01A 10-", 2, [1, 0], [0, 0]),
    ("01- 10-", 2, [0, 0], [0, 0]),
    ("", 1, [0], [0]),
    ("", 0, [], []),
    # Four candidates: 0 and 3 are equal by sum, 0 is ahead by consistency. 1 and 2
    # never met: each won one of four calls against two others, so 1.5 of six.
    ("01A 10B 02A 20B 03B 30A 13B 31B 23B 32B", 4, [4, 1.5, 1.5, 4], [2, 0, 0, 1]),
]


@pytest.mark.parametrize(("table", "count", "total", "consistent"), TABLES)
def test_sum_and_consistent_scores_by_hand(table, count, total, consistent):
    verdicts = verdicts_of(table)
    assert win_counts(count, verdicts, "sum") == total
    assert win_counts(count, verdicts, "consistent") == consistent
    assert win_counts(count, verdicts[::-1], "sum") == total


def test_single_scores_by_hand():
    # One order per pair: 1 beats 0, 0 beats 2, 1 beats 2; 3 beats 0, others unparsed.
    verdicts = verdicts_of("10A 02A 21B 03B 31- 23-")
    assert win_counts(4, verdicts, "single") == [1, 2, 0, 1]


def test_unknown_reading_is_refused():
    with pytest.raises(ValueError, match=r"score='median'.*'consistent'"):
        win_counts(2, [], "median")


@given(st.integers(0, 5), st.data())
def test_each_parsed_call_scores_once(count, data):
    pairs = ordered_pairs(count, "sum", ())
    winners = data.draw(st.tuples(*(st.sampled_from(["A", "B", None]) for _ in pairs)))
    verdicts = [Verdict(*p, w) for p, w in zip(pairs, winners, strict=True)]
    total = win_counts(count, verdicts, "sum")
    assert all(type(n) is int for n in total)
    assert sum(total) == sum(w is not None for w in winners)
    assert all(0 <= n <= 2 * (count - 1) for n in total)
    consistent = win_counts(count, verdicts, "consistent")
    assert all(2 * c <= n for c, n in zip(consistent, total, strict=True))
    flipped, both = position_flips(verdicts)
    assert sum(consistent) == both - flipped


def test_position_flips_by_hand():
    assert position_flips(verdicts_of("01A 10B 02A 20A 12B 21B")) == (2, 3)
    assert position_flips(verdicts_of("01A 10A")) == (1, 1)
    assert position_flips(verdicts_of("01B 10A")) == (0, 1)
    assert position_flips(verdicts_of("01A 10- 02- 20- 12A")) == (0, 0)
    assert position_flips([]) == (0, 0)


# Which calls are made.


@pytest.mark.parametrize("score", ["sum", "consistent"])
def test_both_orders_of_every_pair_are_asked(score):
    assert ordered_pairs(2, score, (1,)) == [(0, 1), (1, 0)]
    pairs = ordered_pairs(6, score, (1,))
    assert len(pairs) == len(set(pairs)) == 30
    assert all(a != b and 0 <= a < 6 and 0 <= b < 6 for a, b in pairs)
    assert ordered_pairs(1, score, (1,)) == ordered_pairs(0, score, (1,)) == []


def test_single_order_is_drawn_by_seed():
    drawn = [ordered_pairs(5, "single", (3, n, 1, 0)) for n in range(200)]
    again = [ordered_pairs(5, "single", (3, n, 1, 0)) for n in range(200)]
    assert drawn == again
    for pairs in drawn:
        assert len(pairs) == 10
        assert {frozenset(pair) for pair in pairs} == {
            frozenset((i, j)) for i in range(5) for j in range(i)
        }
    # Mixed: of 2000 fair draws, within five standard deviations of a half.
    swapped = sum(a > b for pairs in drawn for a, b in pairs)
    assert abs(swapped - 1000) < 5 * math.sqrt(500)
    assert len({tuple(pairs) for pairs in drawn}) > 150
    assert ordered_pairs(1, "single", (1,)) == []


# What is asked.


def test_an_eft_row_is_an_example_and_a_held_out_question(codec):
    steps, a, b = ("Step 1: 8*7+4=0",), "Step 2: 0*4+2=2", "Step 2: 0*4+2=5"
    row = Comparison("r", SUM, steps, a, b, "B", "Check: ")
    judgments = comparisons()
    assert judgments.record is Comparison
    prompt, response, verdict = judgments.example(codec, row)
    assert (prompt, response) == codec.comparison(row) and verdict == "[[B]]"
    ids, candidates, gold = judgments.held_out(codec, row)
    assert ids == (codec.step(steps[0]),) and gold == "B"
    assert candidates == (codec.step(a), codec.step(b))
    asked = Request(0, "r", SUM, ids, candidates, (0, 0, 2, 0))
    question = judgments.question(codec, asked, (0, 1))
    assert judgments.context(codec, SUM, ids) + question == prompt


def test_calls_with_one_right_candidate_are_graded_by_hand():
    verdicts = verdicts_of("01A 10A 02- 20B 12A 21B")
    # 1 and 2 are of equal worth: their two calls have no right answer.
    assert graded(verdicts, [True, False, False]) == [True, False, False, True]
    assert graded(verdicts, [True, True, True]) == graded([], []) == []
