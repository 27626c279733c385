"""Equations of word problems: which operations are due, in any order that holds.

An equation in prefix form, such as ``- + 8 3 2`` for (8 + 3) - 2, is read as nested
sums and products (`Group`). An operation of two members of one sum or product is due;
its result takes their place (`moves`).
"""

import dataclasses
import functools
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from stepjax.initial_data.formats import word_problems as form


@dataclasses.dataclass(frozen=True)
class Equation:
    """A problem whose equation is known.

    Attributes:
      id: name of the row, unique in its file.
      problem: text of the problem.
      answer: the answer, a number as text; it may be rounded.
      equation: in prefix form, with blanks between its symbols.
    """

    id: str
    problem: str
    answer: str
    equation: str


class Operation(NamedTuple):
    """One operation with its result."""

    symbol: str
    left: Fraction
    right: Fraction
    value: Fraction


class Group(NamedTuple):
    """A sum or a product that is not worked off.

    Attributes:
      symbol: "+" for a sum, "*" for a product.
      members: numbers or groups of the other kind, each with whether it is subtracted
        (in a sum) or divided by (in a product).
    """

    symbol: str
    members: tuple[tuple["Fraction | Group", bool], ...]


class Move(NamedTuple):
    """A due operation, and what is left of the equation after it."""

    operation: Operation
    rest: Fraction | Group

    @property
    def last(self) -> bool:
        """Whether nothing is left to do after it."""
        return isinstance(self.rest, Fraction)


@functools.lru_cache(maxsize=65536)
def read_equation(text: str) -> tuple[Fraction | Group, tuple[Operation, ...]]:
    """Reads an equation in prefix form.

    Returns:
      (the equation as nested sums and products, its operations in the order in which
      `formats.word_problems.solution` does them).

    Raises:
      ValueError: for an equation that cannot be read, or that divides by 0.
    """
    operations: list[Operation] = []

    def read(symbols: Iterator[str]) -> tuple[Fraction | Group, Fraction]:
        symbol = next(symbols, "")
        if form.NUMBER.fullmatch(symbol):
            return Fraction(symbol), Fraction(symbol)
        if symbol not in ("+", "-", "*", "/"):
            raise ValueError(
                f"the equation is {text[:60]!r}; expected + - * / before their two "
                "numbers, as in '- + 8 3 2'."
            )
        left, one = read(symbols)
        right, two = read(symbols)
        value = form.apply(symbol, one, two)
        if value is None:
            raise ValueError(
                f"the equation {text[:60]!r} divides by 0; expected another number."
            )
        operations.append(Operation(symbol, one, two, value))
        kind = "+" if symbol in "+-" else "*"
        members = _members(kind, left, False)
        members += _members(kind, right, symbol in "-/")
        return Group(kind, members), value

    symbols = text.split()
    rest = iter(symbols if len(symbols) <= form.MOST_SYMBOLS else ())
    node, _ = read(rest)
    if next(rest, None) is not None:
        raise ValueError(
            f"the equation is {text[:60]!r}; expected one expression, and nothing "
            "after it."
        )
    return node, tuple(operations)


def _members(kind: str, node: Fraction | Group, inverse: bool) -> tuple:
    """Returns a node as members of a group: a group of the same kind is opened."""
    if isinstance(node, Group) and node.symbol == kind:
        return tuple((member, own != inverse) for member, own in node.members)
    return ((node, inverse),)


def moves(node: Fraction | Group) -> Iterator[Move]:
    """Yields the due operations of what is left of an equation.

    Of a + b only one order is yielded.
    """
    if isinstance(node, Fraction):
        return
    symbol, members = node
    for place, (member, inverse) in enumerate(members):
        for operation, rest in moves(member):
            own = (*members[:place], (rest, inverse), *members[place + 1 :])
            yield Move(operation, Group(symbol, own))
    numbers = [
        n for n, (member, _) in enumerate(members) if isinstance(member, Fraction)
    ]
    for i in numbers:
        for j in numbers:
            found = _combined(symbol, members[i], members[j]) if i != j else None
            if found is None or (i > j and found[0].symbol == symbol):
                continue
            operation, inverse = found
            own = list(members)
            own[min(i, j)] = (operation.value, inverse)
            del own[max(i, j)]
            if all(inverse for _, inverse in own):
                continue  # its result would have the wrong sign, or be upside down
            only = len(own) == 1
            yield Move(operation, own[0][0] if only else Group(symbol, tuple(own)))


def _combined(symbol: str, one: tuple, two: tuple) -> tuple[Operation, bool] | None:
    """Returns the operation of two members, and whether its result is an inverse."""
    (left, first), (right, second) = one, two
    if first != second:
        symbol = {"+": "-", "*": "/"}[symbol]
    value = form.apply(symbol, left, right)
    if value is None or first != second and first and not _sensible(symbol, value):
        return None
    return Operation(symbol, left, right, value), first


def _sensible(symbol: str, value: Fraction) -> bool:
    """Whether people subtract, or divide by, this difference or quotient.

    Of 12 - 10 + 3 they take 10 - 3 and subtract it from 12, but not 3 - 10. Of
    12 / 6 * 2 they take 6 / 2 and divide 12 by it, but not 6 / 12.
    """
    return value > (0 if symbol == "-" else 1)
