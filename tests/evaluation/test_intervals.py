"""95 % intervals against the literature, their equation, and arithmetic by hand."""

import math

import numpy as np
import pytest
from scipy import stats

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


def test_no_rounding_puts_a_rate_outside_of_its_interval():
    for total in range(1, 300):
        for right in (0, 1, total - 1, total):
            low, high = intervals.wilson(right, total)
            assert 0 <= low <= right / total <= high <= 1


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


@pytest.mark.parametrize(
    ("gained", "lost"), [(1, 0), (5, 1), (1, 5), (30, 10), (3, 3), (0, 60), (7, 8)]
)
def test_mcnemar_is_a_binomial_test(gained, lost):
    expected = stats.binomtest(gained, gained + lost, 0.5).pvalue
    assert intervals.mcnemar(gained, lost) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_of_a_table_of_the_literature():
    # A. Agresti, Categorical Data Analysis, 2nd edition, table 10.1: 150 and 86 of 1600
    # changed their mind, which is 4.17 standard errors apart.
    assert intervals.mcnemar(150, 86) == pytest.approx(3.7e-5, rel=0.05)
    assert intervals.mcnemar(0, 0) == 1


def resampled(benchmarks, seed):
    """The bootstrap in the words of its definition: problems are drawn one by one."""
    random, means = np.random.default_rng(seed), []
    for _ in range(4000):
        drawn = [random.choice(values, size=len(values)) for values in benchmarks]
        means.append(np.mean([values.mean() for values in drawn]))
    return np.mean([values.mean() for values in benchmarks]), *np.percentile(
        means, (2.5, 97.5)
    )


@pytest.mark.parametrize("counts", [[(7, 0, 9), (31, 0, 50)], [(6, 2, 20), (3, 9, 40)]])
def test_the_mean_of_benchmarks_resamples_problems_within_each(counts):
    parts = [[1] * up + [-1] * down + [0] * (n - up - down) for up, down, n in counts]
    expected = resampled([np.array(values) for values in parts], seed=5)
    found = intervals.mean_of_benchmarks(counts)
    assert found[0] == pytest.approx(expected[0])
    # Percentiles of 4,000 and 10,000 draws of means that are 0.06 to 0.1 apart.
    assert found[1:] == pytest.approx(expected[1:], abs=0.012)
    assert found == intervals.mean_of_benchmarks(counts)  # the seed is fixed


def test_every_benchmark_counts_the_same_in_the_mean():
    mean, low, high = intervals.mean_of_benchmarks([(10, 0, 10), (0, 0, 1000)])
    assert (mean, low, high) == (0.5, 0.5, 0.5)  # nothing differs when drawn again
    for counts in ([], [(0, 0, 0)]):
        with pytest.raises(ValueError, match="expected at least one benchmark"):
            intervals.mean_of_benchmarks(counts)


def test_the_ratio_of_two_means_by_hand():
    exact = intervals.ratio_of_means([20, 22], [40, 44])
    assert exact == pytest.approx((0.5, 0.5, 0.5))
    ratio, low, high = intervals.ratio_of_means([1.0], [2.0])
    assert (ratio, low, high) == (0.5, -math.inf, math.inf)
    # The others may well be 0: no bound.
    assert intervals.ratio_of_means([1, 2, 3], [-1, 0, 2])[1:] == (-math.inf, math.inf)
    with pytest.raises(ValueError, match="2 and 3 values; expected as many"):
        intervals.ratio_of_means([1, 2], [1, 2, 3])


def test_the_bounds_of_a_ratio_are_where_a_t_test_says_so():
    ones, others = (
        np.array([13.0, 10.5, 15.0, 12.1, 14.2]),
        np.array([20, 21, 24, 19, 22]),
    )
    ratio, low, high = intervals.ratio_of_means(ones, others)
    assert low < ratio < high
    for bound in (low, high):
        _, below, above = intervals.mean_and_interval(ones - bound * others)
        assert min(abs(below), abs(above)) == pytest.approx(0, abs=1e-9)


def test_the_interval_of_a_ratio_holds_the_true_one_as_often_as_it_says():
    rng, held, cases = np.random.default_rng(0), 0, 2000
    for _ in range(cases):
        common = rng.normal(0, 2, 5)
        ones, others = 12 + common + rng.normal(0, 1, 5), 20 + common
        _, low, high = intervals.ratio_of_means(ones, others)
        held += low <= 0.6 <= high
    assert 0.94 < held / cases < 0.96
