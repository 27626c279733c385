"""Sets of real numbers as intervals: their unions, common parts and complements."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Interval(NamedTuple):
    """Real numbers between two ends, each with whether it belongs to them."""

    low: Any
    low_in: bool
    high: Any
    high_in: bool


def joined(intervals: Sequence[Interval]) -> list[Interval]:
    """Returns the union of intervals, in order and without those that touch."""
    found: list[Interval] = []
    for interval in sorted(intervals, key=lambda x: (x.low, not x.low_in)):
        last = found[-1] if found else None
        if last is None or not _touch(last, interval):
            found.append(interval)
        else:
            found[-1] = Interval(*last[:2], *max(last[2:], interval[2:]))
    return found


def _touch(last: Interval, interval: Interval) -> bool:
    """Whether an interval has no gap to the one before it, `last`."""
    if interval.low == last.high:
        return interval.low_in or last.high_in
    return interval.low < last.high


def common(some: Sequence[Interval], others: Sequence[Interval]) -> list[Interval]:
    """Returns what is in one of the first and in one of the second intervals."""
    found = []
    for one in some:
        for other in others:
            low, low_in = max(one[:2], other[:2], key=lambda end: (end[0], not end[1]))
            high, high_in = min(one[2:], other[2:], key=lambda end: (end[0], end[1]))
            if low < high or low == high and low_in and high_in:
                found.append(Interval(low, low_in, high, high_in))
    return found


def outside(intervals: Sequence[Interval], infinity: Any) -> list[Interval]:
    """Returns the real numbers that are in none of the intervals.

    Args:
      intervals: from `joined`.
      infinity: the number behind all others.
    """
    low, low_in, found = -infinity, False, []
    for interval in intervals:
        if low < interval.low or low == interval.low and low_in > interval.low_in:
            found.append(Interval(low, low_in, interval.low, not interval.low_in))
        low, low_in = interval.high, not interval.high_in
    if low < infinity:
        found.append(Interval(low, low_in, infinity, False))
    return found


def same(
    one: Sequence[Interval],
    other: Sequence[Interval],
    close: Callable[[Any, Any], bool],
) -> bool:
    """Says whether two sets from `joined` are the same.

    Args:
      one: a set.
      other: a set.
      close: whether two ends are the same number.
    """
    return len(one) == len(other) and all(
        a[1::2] == b[1::2] and close(a.low, b.low) and close(a.high, b.high)
        for a, b in zip(one, other, strict=True)
    )
