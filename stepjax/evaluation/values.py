"""Whether two formulas of final answers are equal.

Rational numbers are compared exactly. Other numbers, such as the root of 12, are
computed with more digits than both texts have characters, so that no decimal number
that somebody writes passes for a root. Variables take a few rational values, the same
in both formulas. Nothing is simplified, so every comparison takes a bounded time.

mpmath has the functions; a context of its own keeps the precision of other threads.
"""

import functools
import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import mpmath

from stepjax.evaluation import limits, real_sets
from stepjax.evaluation.formulas import Formula
from stepjax.evaluation.real_sets import Interval

_EXACT_BITS = 20_000  # of an exact power; larger ones are rounded
_LARGEST_EXPONENT = 10**5  # of any power; towers of powers exceed it at once
_LARGEST_FACTORIAL = 3000
_OF_ANY_SIZE = ("ln", "abs", "floor", "ceil")  # functions that stay quick
_REALS = r"\mathbb{R}"  # the symbol of all real numbers
_POINTS = 4  # values that variables take
MOST_ITEMS = 24  # of two lists that are compared in any order
TOO_MANY = f"a list of more than {MOST_ITEMS} items"


class NoValue(ValueError):
    """A formula has no number, or none that can be computed."""


def _too_large(what: str) -> NoValue:
    """Notes that a number is beyond a limit of the grader; returns what to raise."""
    limits.met(f"{what} that is too large")
    return NoValue(f"{what} that is too large")


def equal(one: Formula, other: Formula, digits: int) -> bool:
    """Says whether two formulas are equal.

    Args:
      one: from `formulas.read`.
      other: from `formulas.read`.
      digits: of the numbers, at least two for each character of both texts.
    """
    if one == other:
        return True
    context = mpmath.MPContext()
    context.dps = digits
    return _Comparison(context).equal(one, other)


def number(formula: Formula, digits: int) -> Fraction | None:
    """Returns the real number of a formula, or None when it has none up to 10^30.

    Args:
      formula: from `formulas.read`.
      digits: to which a number that is no fraction is rounded.
    """
    context = mpmath.MPContext()
    context.dps = digits
    try:
        found = _Comparison(context).number(formula, {})
    except (NoValue, ArithmeticError, ValueError, OverflowError):
        return None
    if isinstance(found, Fraction):
        return found
    if context.im(found) or not abs(found) <= 10**30:
        return None
    return Fraction(context.nstr(context.re(found), digits))


def same_items(one: Sequence, other: Sequence, equal) -> bool:
    """Says whether two lists have the same items, in any order.

    Args:
      one: any items.
      other: any items.
      equal: ``equal(a, b)`` of an item of each.
    """
    if len(one) != len(other):
        return False
    if len(one) > MOST_ITEMS:
        limits.met(TOO_MANY)
        return False
    left = list(other)
    for item in one:
        place = next((n for n, each in enumerate(left) if equal(item, each)), None)
        if place is None:
            return False
        del left[place]
    return True


class _Comparison:
    """Comparisons at one precision."""

    def __init__(self, context):
        self._mp = context
        self._close = context.mpf(10) ** -(context.dps * 6 // 10)

    def equal(self, one: Formula, other: Formula) -> bool:
        one, other = _spread(one), _spread(other)
        kinds = one[0], other[0]
        if kinds == ("sequence", "sequence"):
            return one[1::2] == other[1::2] and self._each(one[2], other[2])
        if kinds == ("matrix", "matrix"):
            return len(one[1]) == len(other[1]) and all(
                map(self._each, one[1], other[1])
            )
        if "matrix" in kinds and "sequence" in kinds:  # a vector
            rows, items = (one, other) if kinds[0] == "matrix" else (other, one)
            parts = [item for row in rows[1] for item in row]
            return 1 in (len(rows[1]), len(rows[1][0])) and self._each(parts, items[2])
        if kinds == ("set", "set"):
            return same_items(one[1], other[1], self.equal)
        if "sequence" in kinds and (ratio := _ratio(one) or _ratio(other)):
            return self.equal(ratio, other if _ratio(one) else one)
        if "text" in kinds or "matrix" in kinds:
            return False
        sets = self._set(one), self._set(other)
        names = [{*_names(x)} - {_REALS} for x in (one, other)]
        if None not in sets:
            if all(names) and names[0] != names[1] and "builder" not in kinds:
                return False  # x > 2 and y > 2
            return real_sets.same(*sets, self.close)
        if kinds == ("relation", "relation"):
            return self._same_relation(one, other)
        return self._same_value(one, other)

    def _each(self, one: Sequence[Formula], other: Sequence[Formula]) -> bool:
        return len(one) == len(other) and all(map(self.equal, one, other))

    # Numbers and expressions.

    def _same_value(self, one: Formula, other: Formula) -> bool:
        names = sorted({*_names(one), *_names(other)})
        met = 0
        for point in range(_POINTS if names else 1):
            values = {name: _value_of(name, point) for name in names}
            found = []
            for formula in (one, other):
                try:
                    found.append(self.number(formula, values))
                except (NoValue, ArithmeticError, ValueError, OverflowError):
                    found.append(None)
            if found == [None, None]:
                continue
            if None in found or not self.close(*found):
                return False
            met += 1
        return met > 0

    def close(self, one: Any, other: Any) -> bool:
        """Whether two computed numbers are the same."""
        if isinstance(one, Fraction) and isinstance(other, Fraction):
            return one == other
        one, other = self._rounded(one), self._rounded(other)
        if self._mp.isinf(one) or self._mp.isinf(other):
            return one == other
        size = max(abs(one), abs(other))
        if self._mp.log10(size + 1) > self._mp.dps // 3:
            limits.met("numbers that are too large")
            return False  # not all digits are there
        return abs(one - other) <= self._close * max(size, self._close)

    def _rounded(self, value: Any) -> Any:
        if isinstance(value, Fraction):
            return self._mp.mpf(value.numerator) / value.denominator
        return value

    def number(self, formula: Formula, values: dict[str, Fraction]) -> Any:
        """Returns the number of a formula: a Fraction, or one of mpmath.

        Args:
          formula: without a set, a sequence or a relation.
          values: of its symbols.

        Raises:
          NoValue: when it has none.
        """
        kind, *parts = formula
        if kind == "number":
            return parts[0]
        if kind == "symbol":
            if parts[0] not in values:
                raise NoValue(parts[0])
            return values[parts[0]]
        if kind == "constant":
            return self._constant(parts[0])
        if kind in ("sum", "product"):
            numbers = [self.number(part, values) for part in parts[0]]
            operation = self._add if kind == "sum" else self._multiply
            return functools.reduce(operation, numbers)
        if kind == "negative":
            return -self.number(parts[0], values)
        if kind == "inverse":
            below = self.number(parts[0], values)
            if not below:
                raise NoValue("a division by 0")
            return 1 / below
        if kind == "power":
            return self._power(*(self.number(part, values) for part in parts))
        if kind == "call":
            numbers = [self.number(part, values) for part in parts[1:]]
            return self._call(parts[0], *numbers)
        raise NoValue(kind)

    def _constant(self, name: str) -> Any:
        constants = {"pi": self._mp.pi, "e": self._mp.e, "infinity": self._mp.inf}
        return self._mp.mpc(0, 1) if name == "i" else +constants[name]

    def _pair(self, one: Any, other: Any) -> tuple[Any, Any]:
        if isinstance(one, Fraction) and isinstance(other, Fraction):
            return one, other
        return self._rounded(one), self._rounded(other)

    def _add(self, one: Any, other: Any) -> Any:
        one, other = self._pair(one, other)
        return one + other

    def _multiply(self, one: Any, other: Any) -> Any:
        one, other = self._pair(one, other)
        return one * other

    def _power(self, base: Any, exponent: Any) -> Any:
        if abs(exponent) > _LARGEST_EXPONENT:
            raise _too_large("a power")
        whole = isinstance(exponent, Fraction) and exponent.denominator == 1
        if whole and isinstance(base, Fraction):
            if not base and exponent < 0:
                raise NoValue("a division by 0")
            size = max(base.numerator.bit_length(), base.denominator.bit_length())
            if size * abs(exponent) <= _EXACT_BITS:
                return base ** int(exponent)
        base = self._rounded(base)
        if whole:
            return base ** int(exponent)
        if isinstance(exponent, Fraction):
            return self._root(base**exponent.numerator, exponent.denominator)
        return base**exponent

    def _root(self, inside: Any, degree: Any) -> Any:
        inside = self._rounded(inside)
        odd = degree % 2 == 1
        if odd and self._mp.im(inside) == 0 and self._mp.re(inside) < 0:
            return -self._mp.root(-self._mp.re(inside), int(degree))
        return self._mp.root(inside, int(degree))

    def _call(self, name: str, first: Any, *rest: Any) -> Any:
        mp = self._mp
        if name == "root":
            (degree,) = rest
            if not isinstance(degree, Fraction) or degree.denominator != 1:
                return self._power(first, 1 / degree)
            if degree > 1000:
                raise _too_large("the degree of a root")
            if degree < 1:
                raise NoValue("the degree of a root")
            exact = _exact_root(first, int(degree))
            return self._root(first, degree) if exact is None else exact
        if name in ("abs", "floor", "ceil") and isinstance(first, Fraction):
            functions = {"abs": abs, "floor": math.floor, "ceil": math.ceil}
            return Fraction(functions[name](first))
        if name in ("max", "min"):
            numbers = [first, *rest]
            if any(mp.im(self._rounded(number)) for number in numbers):
                raise NoValue("an order of complex numbers")
            return (max if name == "max" else min)(numbers, key=self._rounded)
        if name in ("factorial", "binomial", "gcd", "lcm"):
            return self._whole(name, first, *rest)
        first = self._rounded(first)
        if name == "log":
            return mp.log(first, self._rounded(rest[0]))
        if abs(first) > _LARGEST_EXPONENT and name not in _OF_ANY_SIZE:
            raise _too_large(f"{name} of a number")
        names = {"arcsin": "asin", "arccos": "acos", "arctan": "atan", "abs": "fabs"}
        return getattr(mp, names.get(name, name))(first)

    def _whole(self, name: str, *numbers: Any) -> Any:
        """Returns a function of whole numbers; factorials also of other ones."""
        counted = name in ("factorial", "binomial")
        if counted and any(abs(number) > _LARGEST_FACTORIAL for number in numbers):
            raise _too_large(f"{name} of a number")
        if all(isinstance(n, Fraction) and n.denominator == 1 for n in numbers):
            whole = [int(number) for number in numbers]
            if not counted:
                return Fraction(getattr(math, name)(*whole))
            if min(whole) >= 0:
                exact = math.factorial if name == "factorial" else math.comb
                return Fraction(exact(*whole))
        if not counted:
            raise NoValue(f"{name} of numbers that are not whole")
        return getattr(self._mp, name)(*map(self._rounded, numbers))

    # Sets of real numbers.

    def _set(self, formula: Formula) -> list[Interval] | None:
        """Returns a set as intervals that do not touch; None for something else."""
        try:
            intervals = self._intervals(formula)
        except (NoValue, ArithmeticError, ValueError, OverflowError):
            return None
        return None if intervals is None else real_sets.joined(intervals)

    def _intervals(self, formula: Formula) -> list[Interval] | None:
        kind, *parts = formula
        if kind == "set":
            numbers = [self._real(part) for part in parts[0]]
            return [Interval(number, True, number, True) for number in numbers]
        if kind == "symbol" and parts[0] == _REALS:
            return [Interval(-self._mp.inf, False, self._mp.inf, False)]
        if kind == "sequence" and len(parts[1]) == 2 and parts[0] != ":":
            low, high = map(self._real, parts[1])
            if not low < high:
                return None
            return [Interval(low, parts[0] == "[", high, parts[2] == "]")]
        if kind in ("union", "intersection", "difference"):
            one, other = map(self._intervals, parts)
            if one is None or other is None:
                return None
            if kind == "union":
                return one + other
            if kind == "difference":
                other = real_sets.outside(real_sets.joined(other), self._mp.inf)
            return real_sets.common(one, other)
        if kind == "relation":
            return self._solutions(*parts)
        if kind == "builder":
            variable, condition = parts
            if variable[0] == "relation" and variable[2] == ["in"]:  # x in the reals
                variable, members = variable[1]
                condition = ("intersection", members, condition)
            if variable[0] == "symbol" and variable[1] in _names(condition):
                return self._intervals(condition)
        return None

    def _real(self, formula: Formula) -> Any:
        value = self._rounded(self.number(formula, {}))
        if self._mp.im(value):
            raise NoValue("a complex number")
        return self._mp.re(value)

    def _solutions(self, sides: list[Formula], signs: list[str]):
        """Returns the numbers x of "1 < x", "1 < x <= 2" or "x != 2"."""
        places = [n for n, side in enumerate(sides) if side[0] == "symbol"]
        if len(places) != 1 or {"=", "in"} & {*signs} or len(sides) > 3:
            return None
        if len(sides) == 3 and (places != [1] or signs[0][0] != signs[1][0]):
            return None
        infinity = self._mp.inf
        found = [Interval(-infinity, False, infinity, False)]
        for place, sign in enumerate(signs):
            symbol_left = sides[place][0] == "symbol"
            number = self._real(sides[place + symbol_left])
            if sign == "!=":
                excluded = [Interval(number, True, number, True)]
                allowed = real_sets.outside(excluded, infinity)
            elif (sign[0] == "<") == symbol_left:
                allowed = [Interval(-infinity, False, number, "=" in sign)]
            else:
                allowed = [Interval(number, "=" in sign, infinity, False)]
            found = real_sets.common(found, allowed)
        return found

    # Equations.

    def _same_relation(self, one: Formula, other: Formula) -> bool:
        """Whether two equations are multiples of each other, or relations the same."""
        (_, sides, signs), (_, others, other_signs) = one, other
        if len(signs) == len(other_signs) == 1 == len({*signs, *other_signs}):
            if self._each(sides, others):
                return True
            if signs[0] in ("=", "!="):
                names = sorted({*_names(one), *_names(other)})
                return self._multiples(_difference(sides), _difference(others), names)
            return False
        return signs == other_signs and self._each(sides, others)

    def _multiples(self, one: Formula, other: Formula, names: Sequence[str]) -> bool:
        if {*_names(one)} != {*_names(other)}:
            return False
        ratios = []
        for point in range(_POINTS):
            values = {name: _value_of(name, point) for name in names}
            try:
                pair = [self.number(formula, values) for formula in (one, other)]
                if not pair[0] and not pair[1]:
                    continue
                ratios.append(self._multiply(pair[0], 1 / pair[1]))
            except (NoValue, ArithmeticError, ValueError, OverflowError):
                return False
        return bool(ratios) and all(
            ratio and self.close(ratio, ratios[0]) for ratio in ratios
        )


def _difference(sides: Sequence[Formula]) -> Formula:
    left, right = sides
    return ("sum", [left, ("negative", right)])


def _names(formula: Any) -> Iterator[str]:
    """Yields the names of the symbols of a formula."""
    if isinstance(formula, tuple) and formula and formula[0] == "symbol":
        yield formula[1]
    elif isinstance(formula, tuple | list):
        yield from itertools.chain.from_iterable(map(_names, formula))


def _value_of(name: str, point: int) -> Fraction:
    """Returns the value of a symbol: positive at even points, negative at odd ones."""
    digest = hashlib.sha256(f"{name} {point}".encode()).digest()
    size = Fraction(int.from_bytes(digest[:2]) % 3989 + 11, 499)
    return -size if point % 2 else size


def _exact_root(value: Any, degree: int) -> Fraction | None:
    """Returns the root of a fraction if it is a fraction."""
    if not isinstance(value, Fraction) or value < 0:
        return None
    if max(value.numerator, value.denominator).bit_length() > _EXACT_BITS:
        return None
    parts = [_whole_root(n, degree) for n in (value.numerator, value.denominator)]
    return None if None in parts else Fraction(*parts)


def _whole_root(value: int, degree: int) -> int | None:
    low, high = 0, 1 << (value.bit_length() // degree + 1)
    while low < high:
        middle = (low + high) // 2
        if middle**degree < value:
            low = middle + 1
        else:
            high = middle
    return low if low**degree == value else None


def _spread(formula: Formula) -> Formula:
    """Returns numbers times a matrix as one matrix."""
    if formula[0] == "negative" and formula[1][0] in ("matrix", "product"):
        formula = ("product", [("number", Fraction(-1)), formula[1]])
    if formula[0] != "product":
        return formula
    matrices = [part for part in formula[1] if part[0] == "matrix"]
    if len(matrices) != 1:
        return formula
    rest = [part for part in formula[1] if part[0] != "matrix"]
    rows = [[("product", [*rest, x]) for x in row] for row in matrices[0][1]]
    return ("matrix", rows)


def _ratio(formula: Formula) -> Formula | None:
    """Returns a ratio of two numbers, such as 2:3, as a quotient."""
    if formula[:2] != ("sequence", ":") or len(formula[2]) != 2:
        return None
    return ("product", [formula[2][0], ("inverse", formula[2][1])])
