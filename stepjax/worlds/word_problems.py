r"""Word problems whose equations are known: which next steps are right, and why not.

A problem comes with its equation in prefix form, for example ``- + 8 3 2`` for
(8 + 3) - 2. A solution does one operation per step, and its last step boxes the answer:

    Step 1: 8 + 3 = 11.
    Step 2: 11 - 2 = 9. The answer is \boxed{9}.

A step is right if all of this holds (`mistake` names what does not):

- The steps before it are right calculations.
- It holds one calculation, ``x op y = z``, and its result is true.
- The operation is due: both operands are members of the same sum or product of the
  equation. Sums and products can be worked off in any order, so 8 - 2, or 3 - 2, is
  also due in the example; x and y can change places in x + y and in x * y.
- It boxes the right answer if it is the last operation, and otherwise boxes nothing.

A solution that multiplies a sum out, (8 + 3) * 2 as 8 * 2 + 3 * 2, is not accepted, and
neither is another operation whose result happens to be the same, 2 + 2 for 2 * 2: with
numbers as small as these a wrong operation often gives the right number.

This is gold knowledge: only for making SFT data and for evaluation, never for anything
that a self-rewarding stage learns from.
"""

import functools
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from stepjax import prompts
from stepjax.initial_data.formats import word_problems as form
from stepjax.initial_data.formats import worked
from stepjax.prompts import Templates
from stepjax.worlds.equations import (
    Equation,
    Group,
    Move,
    Operation,
    moves,
    read_equation,
)

SOLVE = "Problem: {problem}\nSolve it, one calculation per step, and box the answer.\n"
JUDGE = (
    "Compare two next steps, A and B. Work out the next calculation, check both, and "
    "choose the better one: [[A]] or [[B]].\nProblem: {problem}\nSteps so far:\n"
    "{steps}\nStep A:\n{a}\nStep B:\n{b}\nCheck:\n"
)

# What is wrong with a step.
OPERATION = "operation"  # the due operands, but another operation
OPERANDS = "operands"  # operands that no due operation has
ORDER = "order"  # a - b for b - a, or a / b for b / a
ARITHMETIC = "arithmetic"  # a due operation with a wrong result
ENDS_EARLY = "ends early"  # it boxes an answer before the last operation
GOES_ON = "goes on"  # no box in the last operation, or an operation after it
BOX = "box"  # a due last operation, but another number in the box
FORM = "form"  # neither a calculation nor an answer that can be read
CONTEXT = "context"  # a step before it is wrong, so nothing can be right
MISTAKES = (
    *(OPERATION, OPERANDS, ORDER, ARITHMETIC, ENDS_EARLY, GOES_ON, BOX, FORM),
    CONTEXT,
)

_PLACES = 2  # fewest decimals of a result that is rounded
_SIGNS = str.maketrans({"×": "*", "÷": "/", "−": "-"})  # noqa: RUF001
_PLAIN = r"-?\$?(?:[0-9]{1,3}(?:,[0-9]{3}){1,12}|[0-9]{1,40})(?:\.[0-9]{1,40})?"
_FRACTION = re.compile(r"(-?[0-9]{1,40}(\.[0-9]{1,40})?)(?:/([0-9]{1,40}))?")
_OPERAND = rf"(?:\({_PLAIN}(?:/[0-9]{{1,40}})?\)|{_PLAIN})"
_RESULT = rf"{_PLAIN}(?:/[0-9]{{1,40}})?"
_CALCULATION = re.compile(
    rf"({_OPERAND}) ?([-+*/]) ?({_OPERAND}) ?= ?(?:about )?({_RESULT})"
    rf"(?:, about ({_RESULT}))?"
)


class Number(NamedTuple):
    """A number as a step writes it, with its count of decimals."""

    value: Fraction
    places: int


class Calculation(NamedTuple):
    """A calculation as a step writes it; `about` is its result again, rounded."""

    symbol: str
    left: Number
    right: Number
    result: Number
    about: Number | None


class Step(NamedTuple):
    """What is read from a step: its only calculation, and what is in its box."""

    calculation: Calculation | None
    boxed: str | None


def templates() -> Templates:
    """Returns the world's templates: short ones, for small models."""
    return Templates(solve=SOLVE, judge=JUDGE)


# Steps.


@functools.lru_cache(maxsize=65536)
def read_step(text: str) -> Step:
    """Reads a step: its calculation, if it has exactly one, and its box."""
    plain = text.translate(_SIGNS)
    found = list(_CALCULATION.finditer(plain))
    boxed = prompts.boxed(text)
    if len(found) != 1:
        return Step(None, boxed)
    before, after = plain[: found[0].start()], plain[found[0].end() :]
    joined = before.rstrip()[-1:], after.lstrip()[:1]
    if joined[0] in tuple("+-*/=()0123456789") or joined[1] in tuple("+-*/="):
        return Step(None, boxed)  # a part of something longer
    left, symbol, right, result, about = found[0].groups()
    numbers = [read_number(part) for part in (left, right, result)]
    rounded = read_number(about) if about else None
    if None in numbers:
        return Step(None, boxed)
    return Step(Calculation(symbol, *numbers, rounded), boxed)


def read_number(text: str) -> Number | None:
    """Reads a number as steps write it; None for another text, or a division by 0."""
    plain = text.strip().strip("()").replace("$", "").replace(",", "")
    found = _FRACTION.fullmatch(plain)
    if found is None or found[3] and not int(found[3]):
        return None
    return Number(Fraction(found[1]) / int(found[3] or 1), len(found[2] or ".") - 1)


def agrees(stated: Number, value: Fraction) -> bool:
    """Whether a number is written for a value.

    A value whose decimals have no end may be rounded to two decimals or more. The last
    of many decimals may be wrong, as in data that went through floating point.
    """
    off = abs(stated.value - value)
    if not off or stated.places < _PLACES:
        return not off
    rounded = "/" in form.written(value) and off * 10**stated.places <= Fraction(1, 2)
    return rounded or off <= abs(value) / 10**9


def remaining(row: Equation, steps: Sequence[str]) -> Fraction | Group | None:
    """Returns what is left of an equation after some steps.

    Returns:
      A group, or a number when everything is done; None after a step whose calculation
      is not right.
    """
    node, _ = read_equation(row.equation)
    for text in steps:
        calculation = read_step(text).calculation
        move = _found(node, calculation) if calculation else None
        if move is None or not _true(row, calculation, move):
            return None
        node = move.rest
    return node


def _found(node: Fraction | Group, stated: Calculation) -> Move | None:
    """Returns the due operation that a step does, whatever its result, or None."""
    for move in moves(node):
        operation = move.operation
        if operation.symbol == stated.symbol and (
            _operands(stated, operation.left, operation.right)
            or stated.symbol in "+*"
            and _operands(stated, operation.right, operation.left)
        ):
            return move
    return None


def move_of(row: Equation, steps: Sequence[str], candidate: str) -> Move | None:
    """Returns the due operation that a next step does, whatever its result, or None."""
    node, stated = remaining(row, steps), read_step(candidate).calculation
    return None if node is None or stated is None else _found(node, stated)


def _operands(stated: Calculation, left: Fraction, right: Fraction) -> bool:
    return agrees(stated.left, left) and agrees(stated.right, right)


def _true(row: Equation, stated: Calculation, move: Move) -> bool:
    """Whether the result of a due operation is right, exact and rounded.

    The last result may be rounded as the answer is.
    """
    value, about = move.operation.value, stated.about
    if about is None or agrees(about, value):
        return agrees(stated.result, value)
    answered = move.last and about.value == Fraction(row.answer)
    return answered and agrees(stated.result, value)


def is_right(row: Equation, steps: Sequence[str], candidate: str) -> bool:
    """Whether a next step is right, see the top of this file."""
    return mistake(row, steps, candidate) is None


def mistake(row: Equation, steps: Sequence[str], candidate: str) -> str | None:
    """Returns what is wrong with a next step, one of `MISTAKES`; None if it is right.

    Args:
      row: the problem.
      steps: texts of the steps so far.
      candidate: text of the next step.
    """
    node, step = remaining(row, steps), read_step(candidate)
    stated = step.calculation
    if node is None:
        return CONTEXT
    if stated is None:
        if step.boxed is None or "=" in candidate:
            return FORM
        if isinstance(node, Group):
            return ENDS_EARLY
        return None if answers(row, step.boxed) else BOX
    if isinstance(node, Fraction):
        return GOES_ON
    move = _found(node, stated)
    if move is None:
        return _wrong_choice(node, stated)
    if not _true(row, stated, move):
        return ARITHMETIC
    if move.last != (step.boxed is not None):
        return GOES_ON if move.last else ENDS_EARLY
    return BOX if move.last and not answers(row, step.boxed) else None


def _wrong_choice(node: Group, stated: Calculation) -> str:
    """Returns what is wrong with an operation that is not due."""
    kinds = set()
    for operation, _ in moves(node):
        ends = operation.left, operation.right
        if _operands(stated, *ends) or _operands(stated, *ends[::-1]):
            kinds.add(ORDER if operation.symbol == stated.symbol else OPERATION)
    return ORDER if ORDER in kinds else OPERATION if kinds else OPERANDS


def answers(row: Equation, boxed: str) -> bool:
    """Whether the text in a box is the answer of a problem."""
    number = read_number(boxed)
    if number is None:
        return False
    return number.value == Fraction(row.answer) or agrees(number, value_of(row))


def value_of(row: Equation) -> Fraction:
    """Returns the exact answer of a problem."""
    node, operations = read_equation(row.equation)
    return operations[-1].value if operations else node


def in_box(value: Fraction) -> str:
    """Writes a number as an answer: rounded where its decimals have no end."""
    text = form.written(value)
    return f"{float(value):.5f}" if "/" in text else text


def next_move(row: Equation, steps: Sequence[str]) -> Move | None:
    """Returns the due operation that a solution by rule does next.

    None when nothing is left to do, or after a wrong step.
    """
    node, operations = read_equation(row.equation)
    node = remaining(row, steps)
    found = [] if node is None else list(moves(node))
    for operation in operations:
        for move in found:
            if move.operation == operation:
                return move
    return found[0] if found else None


def right_step(row: Equation, steps: Sequence[str], step: str) -> str | None:
    """Returns the next step of a solution by rule; None after a wrong step.

    Args:
      row: the problem.
      steps: texts of the steps so far.
      step: form of a step's marker, see `prompts.Templates`.
    """
    move, number = next_move(row, steps), len(steps) + 1
    if move is not None:
        box = row.answer if move.last else None
        return step_text(number, move.operation, box=box, step=step)
    if remaining(row, steps) is None:
        return None
    start = prompts.marker(Templates(step=step), number)
    return start + worked.closing(row.answer)


def step_text(number: int, operation: Operation, *, box: str | None, step: str) -> str:
    """Writes a step.

    Args:
      number: of the step, from 1.
      operation: its calculation; the result is written as it is given.
      box: text of the box, or None for a step that is not the last one.
      step: form of a step's marker, see `prompts.Templates`.
    """
    start = prompts.marker(Templates(step=step), number)
    text = start + form.calculation(*operation)
    if box is None:
        return f"{text}."
    about = "" if Fraction(box) == operation.value else f", about {box}"
    return f"{text}{about}. {worked.closing(box)}"
