"""Biases of the judge, counted by hand."""

import pytest
from hostile_run import ALONE, BACK, FLIP, PAIR, REFUSED, candidate, expansion, state

from stepjax.evaluation import biases


def of(*expansions):
    return biases.biases([state("q", "count", *expansions)])


def test_calls_that_the_first_one_wins_are_counted_where_there_is_a_verdict():
    # 01A 10B 02A 20B 12A, and 21 without a verdict.
    assert of(PAIR)["first"] == (3, 5)
    assert of(PAIR, FLIP)["first"] == (5, 7)


def test_the_longer_one_is_counted_only_where_lengths_differ():
    # Of 5, 2 and 2 tokens, the middle one is longer: it wins one call of three.
    assert of(PAIR)["longer"] == (1, 3)
    assert of(FLIP)["longer"] == (1, 2)
    assert of(ALONE, BACK)["longer"] == (0, 0)


@pytest.mark.parametrize(
    ("table", "circle"),
    [
        ("01A 10B 12A 21B 20A 02B", True),
        ("01A 12A 20A", True),
        ("01A 10B 12A 21B 02A 20B", False),
        # 0 against 1 flips, so there is no circle.
        ("01A 10A 12A 21B 20A 02B", False),
        ("01A 12A 20-", False),
    ],
)
def test_a_circle_needs_a_net_winner_of_each_of_its_pairs(table, circle):
    three = tuple(map(candidate, "abc"))
    made = expansion(1, three, table, "append")
    assert biases.has_circle(made) == circle
    assert of(made)["circle"] == (circle, 1)


def test_a_circle_of_four_is_found_and_two_candidates_cannot_make_one():
    four = tuple(map(candidate, "abcd"))
    table = "01A 12A 23A 30A"
    assert biases.has_circle(expansion(1, four, table, "append"))
    assert of(FLIP, REFUSED)["circle"] == (0, 0)
