"""95 % intervals against the literature, their equation, and arithmetic by hand."""

import math

import numpy as np
import pytest

from stepjax.evaluation import intervals


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [
        # R. G. Newcombe, Statistics in Medicine 17, 857-872 (1998), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 1 - 0.1611, 1.0000),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_interval_of_the_literature(right, total, low, high):
    np.testing.assert_allclose(intervals.wilson(right, total), (low, high), atol=5e-5)


def test_wilson_interval_solves_its_equation():
    for right, total in [(1, 3), (7, 9), (250, 500), (499, 500)]:
        rate = right / total
        for end in intervals.wilson(right, total):
            distance = abs(rate - end) / math.sqrt(end * (1 - end) / total)
            assert distance == pytest.approx(1.959964, abs=1e-5)


def test_paired_gain_by_hand():
    def items(right, ids="abcdefghij"):
        return [{"id": i, "right": i in right} for i in ids]

    gain, low, high = intervals.paired_gain(items("abc"), items("bcde")[::-1])
    # Bonett and Price: two gained, one lost, of ten; one more of each, of twelve.
    up, down = 3 / 12, 2 / 12
    spread = 1.959964 * math.sqrt((up + down - (up - down) ** 2) / 12)
    assert gain == pytest.approx(0.1)
    assert (low, high) == pytest.approx((up - down - spread, up - down + spread))
    same = intervals.paired_gain(items("abc"), items("abc"))
    assert same[0] == 0 and same[1] == -same[2] < 0
    with pytest.raises(ValueError, match="expected the same problems"):
        intervals.paired_gain(items("a"), items("a", "abc"))


def test_intervals_over_seeds_by_hand():
    # t(0.975, 4 degrees of freedom) = 2.776 445, standard deviation of 1 ... 5: 1.581
    mean, low, high = intervals.mean_and_interval([1, 2, 3, 4, 5])
    assert mean == 3 and low + high == pytest.approx(6)
    assert high == pytest.approx(3 + 2.776445 * math.sqrt(2.5 / 5), abs=1e-5)
    assert intervals.mean_and_interval([2.0]) == (2.0, -math.inf, math.inf)
