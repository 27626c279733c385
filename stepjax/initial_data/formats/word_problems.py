r"""Word problems with an equation: a step-by-step solution by rule, without a teacher.

The equation is in prefix form with the problem's own numbers: "- + 8 3 2" means
(8 + 3) - 2. Each operation is one step: "Step 1: 8 + 3 = 11.", then "Step 2: 11 - 2 =
9. The answer is \boxed{9}.".
"""

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from stepjax import prompts
from stepjax.initial_data.formats import fields, worked
from stepjax.prompts import Templates
from stepjax.records import Solution

NUMBER = re.compile(r"-?[0-9]{1,40}(\.[0-9]{1,40})?")
MOST_SYMBOLS = 99  # of an equation; a longer one is no word problem
_TOLERANCE = Fraction(1, 1000)  # answers are rounded: 10 / 3 has the answer 3.33333


def solution(row: dict[str, Any], name: str, templates: Templates) -> list[Solution]:
    """Makes a step-by-step solution (IFT) of {"problem", "equation", "answer"}.

    All numbers are exact. A number without an end stays a fraction, and where the
    answer is rounded the last step says so: "10 / 3 = 10/3, about 3.33333.".

    Args:
      row: of the data set; the answer is a number, perhaps as text. An "id" is kept.
      name: id of a row without one.
      templates: their step marker begins each step.

    Raises:
      ValueError: when the equation or the answer cannot be read, when it divides by 0,
        or when it gives a number that is further than 0.001 from the answer.
    """
    problem, answer = fields.text(row, "problem"), fields.answer(row).strip()
    equation = fields.text(row, "equation")
    if not NUMBER.fullmatch(answer):
        raise ValueError(f"field 'answer' is {answer[:40]!r}; expected a number.")
    symbols = equation.split()
    lines: list[str] = []
    rest = iter(symbols if len(symbols) <= MOST_SYMBOLS else ())
    value = _evaluate(rest, lines)
    if value is None or next(rest, None) is not None:
        raise ValueError(
            f"the equation is {equation[:60]!r}; expected + - * / before their two "
            f"numbers, as in '- + 8 3 2', and at most {MOST_SYMBOLS} of them in all."
        )
    exact = Fraction(answer)
    if abs(value - exact) > max(_TOLERANCE, abs(exact) / 10**9):
        raise ValueError(
            f"the equation {equation[:60]!r} gives {written(value)[:40]} and the "
            f"answer is {answer}; expected the same number."
        )
    about = "" if value == exact else f", about {answer}"
    end = worked.closing(answer)
    lines[-1:] = [f"{lines[-1]}{about}. {end}" if lines else end]
    lines[:-1] = [f"{line}." for line in lines[:-1]]
    steps = prompts.numbered(templates, lines)
    return [Solution(fields.identity(row, name), problem, steps, answer)]


def written(value: Fraction) -> str:
    """Writes a number in full: 7, -2.5, or 10/3 where its decimals have no end."""
    places, rest = 0, value.denominator
    for prime in (2, 5):
        times = 0
        while rest % prime == 0:
            rest, times = rest // prime, times + 1
        places = max(places, times)
    if rest > 1:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(value.numerator) * 10**places // value.denominator)
    digits = digits.rjust(places + 1, "0")
    whole, decimals = digits[: len(digits) - places], digits[len(digits) - places :]
    return "-" * (value < 0) + whole + (f".{decimals}" if decimals else "")


def _evaluate(symbols: Iterator[str], lines: list[str]) -> Fraction | None:
    """Takes one expression off the symbols and adds a line per operation.

    Returns its value, or None when the symbols are no expression.
    """
    symbol = next(symbols, "")
    if NUMBER.fullmatch(symbol):
        return Fraction(symbol)
    if symbol not in ("+", "-", "*", "/"):
        return None
    left = _evaluate(symbols, lines)
    right = _evaluate(symbols, lines) if left is not None else None
    if right is None:
        return None
    value = apply(symbol, left, right)
    if value is None:
        raise ValueError("the equation divides by 0; expected another number.")
    lines.append(calculation(symbol, left, right, value))
    return value


def apply(symbol: str, left: Fraction, right: Fraction) -> Fraction | None:
    """Returns the result of an operation; None for a division by 0."""
    if symbol == "+":
        return left + right
    if symbol == "-":
        return left - right
    if symbol == "*":
        return left * right
    return left / right if right else None


def calculation(symbol: str, left: Fraction, right: Fraction, result: Fraction) -> str:
    """Writes a calculation: "10 / 4 = 2.5"."""
    return f"{expression(symbol, left, right)} = {written(result)}"


def expression(symbol: str, left: Fraction, right: Fraction) -> str:
    """Writes an operation without its result: "10 / 4"."""
    return f"{_operand(left)} {symbol} {_operand(right, second=True)}"


def _operand(value: Fraction, second: bool = False) -> str:
    """Writes an operand, in brackets where it would be misread without them."""
    shown = written(value)
    return f"({shown})" if "/" in shown or second and value < 0 else shown
