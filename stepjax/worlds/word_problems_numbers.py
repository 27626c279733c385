"""The same word problem with other numbers: more calculations to learn from.

Bryan has 56 books in each of his 9 bookshelves.    * 56 9
Bryan has 83 books in each of his 4 bookshelves.    * 83 4
"""

import random
import re
from fractions import Fraction

from stepjax import prompts
from stepjax.initial_data.formats import word_problems as form
from stepjax.initial_data.formats import worked
from stepjax.prompts import Templates
from stepjax.records import Solution
from stepjax.worlds.equations import Equation, Operation, read_equation

_CALCULATIONS = 6  # of a drill
_TRIES = 200  # draws of numbers before there are none
# A whole number that is not a part of a decimal, a fraction, a time or a word.
_WHOLE = re.compile(r"(?<![\w.,/:$-])\$?([0-9]{1,4})(?![\w/:-]|[.,][0-9])")


def with_other_numbers(row: Equation, rng: random.Random) -> Equation | None:
    """Draws other numbers for a problem, and works out its answer with them.

    A new number has as many digits as the old one. Every result stays a whole number
    above 0, and no two numbers of a problem are the same. A number stays as it is where
    it is 0 or 1 (singular and plural), is not whole, is twice in the text or in the
    equation, or is only in one of the two.

    Args:
      row: the problem.
      rng: source of the numbers; it is advanced.

    Returns:
      The problem, with the id of `row`; None where no number can change, or no numbers
      were found that give whole results.
    """
    spans: dict[str, list[re.Match]] = {}
    for found in _WHOLE.finditer(row.problem):
        spans.setdefault(found[1], []).append(found)
    symbols = row.equation.split()
    places = {
        symbol: found[0]
        for symbol, found in spans.items()
        if symbols.count(symbol) == len(found) == 1 and int(symbol) > 1
    }
    if not places or not _whole(row.equation):
        return None
    kept = {Fraction(text) for text in spans if text not in places}
    kept |= {Fraction(s) for s in symbols if form.NUMBER.fullmatch(s)} - {
        Fraction(s) for s in places
    }
    for _ in range(_TRIES):
        new = {old: str(_drawn(len(old), rng)) for old in places}
        values = [Fraction(number) for number in new.values()]
        if len(set(values) | kept) < len(values) + len(kept):
            continue
        equation = " ".join(new.get(symbol, symbol) for symbol in symbols)
        if any(new[old] != old for old in new) and _whole(equation):
            break
    else:
        return None
    text = row.problem
    for old, found in sorted(places.items(), key=lambda item: -item[1].start(1)):
        text = text[: found.start(1)] + new[old] + text[found.end(1) :]
    node, operations = read_equation(equation)
    value = operations[-1].value if operations else node
    return Equation(row.id, text, form.written(value), equation)


def drill(id: str, rng: random.Random, templates: Templates) -> Solution:
    """Makes a solution of `_CALCULATIONS` plain calculations with whole results.

    The numbers have one to three digits, most often two. Sums and differences are
    drawn more often than products and quotients. The answer is the last result.

    Args:
      id: name of the row.
      rng: source of the numbers; it is advanced.
      templates: their step marker begins each step.
    """
    drawn = [_calculation(rng) for _ in range(_CALCULATIONS)]
    asked = [form.expression(*operation[:3]) for operation in drawn]
    lines = [f"{form.calculation(*operation)}." for operation in drawn]
    answer = form.written(drawn[-1].value)
    lines[-1] += f" {worked.closing(answer)}"
    steps = prompts.numbered(templates, lines)
    problem = f"Work out {', '.join(asked[:-1])}, and {asked[-1]}."
    return Solution(id, problem, steps, answer)


def _calculation(rng: random.Random) -> Operation:
    """Draws an operation whose result is a whole number of 0 or more."""
    symbol = rng.choices("+-*/", (4, 4, 2, 2))[0]
    one, two = (_drawn(rng.choices((1, 2, 3), (3, 5, 2))[0], rng) for _ in range(2))
    if symbol in "*/":
        one, two = _drawn(rng.choice((1, 2)), rng), rng.randint(2, 20)
    if symbol == "-":
        one, two = max(one, two), min(one, two)
    if symbol == "/":
        one *= two
    values = Fraction(one), Fraction(two)
    return Operation(symbol, *values, form.apply(symbol, *values))


def _drawn(digits: int, rng: random.Random) -> int:
    """Returns a number of that many digits, from 2 on."""
    return rng.randint(max(2, 10 ** (digits - 1)), 10**digits - 1)


def _whole(equation: str) -> bool:
    """Whether every result is a whole number above 0."""
    try:
        operations = read_equation(equation)[1]
    except ValueError:  # it divides by 0
        return False
    values = [operation.value for operation in operations]
    return all(value > 0 and value.denominator == 1 for value in values)
