r"""Division by multiplication: a world in which all solutions are right, but few.

A problem is a number from 1 to 16 and some operations, worked off from left to right
with the numbers modulo 17, so that each division has exactly one result:

    12/5/7*3
    Step 1: 12/5=16
    Step 2: 16/7=12
    Step 3: 12*3=2; \boxed{2}

12/5 is the number that gives 12 when it is multiplied by 5. No rule leads to it in one
step: it must be known, or found by trying numbers. Whether 16 is right takes one
multiplication and one comparison: 5*16 is 80, and 80 = 4*17 + 12. So judging is easier
than solving for a reason in the mathematics, as with factoring and other problems whose
solutions are hard to find and easy to check. For the candidates ``Step 1: 12/5=16`` and
``Step 1: 12/5=3`` the judge writes ``Check: 12, 5*16=12 (+) 5*3=15 (-) [[A]]``.

The level of a problem is its number of divisions. There are 240 different divisions (16
numbers by 2 to 16). `split` deals them out. Some are taught: solutions and comparisons
of level 1 hold them. The rest are in no row that M1 learns from, be it as a right or as
a wrong step. Products are taught, all of them. Questions and tests have the highest
level, and any divisions. A model that learns from these rows knows the products, the
taught divisions, and how a division is checked; whatever else it can divide later, it
has taught itself. A test of its own holds divisions that not even a question holds.
The rows are made in `stepjax.worlds.division_data`.
"""

import random
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from stepjax.prompts import Templates
from stepjax.worlds import tokens

SOLVE = "{problem}\n"
JUDGE = "{problem}\n{steps}\n{a}\n(A)\n{b}\n(B)\n"
MODULUS = 17
NUMBERS = tuple(range(1, MODULUS))
OPERANDS = NUMBERS[1:]  # multiplying by 1 or dividing by 1 would be no step

_MOST_OPERATIONS = 9  # a step number is one digit
_NUMBER = "(?:1[0-6]|[1-9])"
_PROBLEM = re.compile(rf"{_NUMBER}(?:[*/](?:1[0-6]|[2-9])){{1,9}}")
_STEP = re.compile(
    rf"Step ([1-9]): ({_NUMBER})([*/])({_NUMBER})=({_NUMBER})"
    rf"(?:; \\boxed\{{({_NUMBER})\}})?"
)
_PIECE = re.compile(rf"{_NUMBER}|; \\boxed\{{|.")
_JUNK = (*map(str, NUMBERS), *"*/=}", "; \\boxed{", ", ", " (A) ", " [[A]]")
_WRONG_BOX = 0.3  # share of the garbled steps that lack a box or have one too many
_TRIES = 200  # draws per problem before there are said to be too few of them

Division = tuple[int, int]  # the number that is divided, and the divisor


class Split(NamedTuple):
    """Who sees which divisions.

    Attributes:
      taught: of training rows, and of questions and tests, too.
      asked: of questions and tests only.
      unseen: of the unseen test only.
    """

    taught: frozenset[Division]
    asked: frozenset[Division]
    unseen: frozenset[Division]


class Step(NamedTuple):
    """A step that was read; `boxed` is its number in the box, None without a box."""

    number: int
    value: int
    symbol: str
    operand: int
    result: int
    boxed: int | None


def templates() -> Templates:
    """The world's templates: short ones, as the models that learn them are tiny."""
    return Templates(solve=SOLVE, judge=JUDGE)


def split(seed: int, *, taught: int, unseen: int = 0) -> Split:
    """Draws which divisions are taught, which are only asked, and which stay unseen.

    Args:
      seed: of the draw.
      taught: how many of the 15 divisors of each number are taught.
      unseen: how many of them only the unseen test holds; the rest are asked.

    Raises:
      ValueError: if a number is out of range.
    """
    if not (taught >= 1 and unseen >= 0 and taught + unseen <= len(OPERANDS)):
        raise ValueError(
            f"taught={taught}, unseen={unseen}; expected at least 1 taught, 0 unseen, "
            f"and {len(OPERANDS)} in all, the divisors of a number."
        )
    rng = random.Random(f"division by multiplication, split, seed {seed}")
    parts: tuple[list[Division], ...] = ([], [], [])
    for value in NUMBERS:
        drawn = [(value, divisor) for divisor in rng.sample(OPERANDS, len(OPERANDS))]
        parts[0].extend(drawn[:taught])
        parts[1].extend(drawn[taught + unseen :])
        parts[2].extend(drawn[taught : taught + unseen])
    return Split(*map(frozenset, parts))


def problems(
    count: int,
    *,
    seed: int,
    level: int,
    divisions: Collection[Division],
    operations: int = 3,
    exclude: Iterable[str] = (),
) -> list[str]:
    """Draws distinct problems, the same ones for the same arguments.

    Args:
      count: how many.
      seed: of the draw.
      level: how many of the operations are divisions, at places drawn anew for each
        problem; the other operations are multiplications.
      divisions: those that the problems may hold; each number must have one.
      operations: steps of a problem, 1 to 9.
      exclude: problems that must not be drawn.

    Raises:
      ValueError: if a number is out of range or there are not enough problems.
    """
    if not (1 <= operations <= _MOST_OPERATIONS and 0 <= level <= operations):
        raise ValueError(
            f"operations={operations}, level={level}; expected 1 to {_MOST_OPERATIONS} "
            "operations, and a level from 0 to their number."
        )
    divisors: dict[int, list[int]] = {}
    for value, divisor in sorted(divisions):
        divisors.setdefault(value, []).append(divisor)
    if level and len(divisors) < len(NUMBERS):
        raise ValueError(
            f"only {sorted(divisors)} can be divided; expected at least one divisor "
            f"for each number from 1 to {MODULUS - 1}."
        )
    name = f"division by multiplication, {operations} operations, level {level}"
    rng = random.Random(f"{name}, seed {seed}")
    excluded, drawn = set(exclude), dict[str, None]()
    for _ in range(_TRIES * (count + len(excluded))):
        if len(drawn) >= count:
            break
        text = _draw(rng, level, operations, divisors)
        if text not in excluded:
            drawn[text] = None
    if len(drawn) < count:
        raise ValueError(
            f"{count} problems of level {level} asked for, but only {len(drawn)} were "
            f"found; expected fewer problems, or more operations than {operations}."
        )
    return list(drawn)


def _draw(
    rng: random.Random, level: int, operations: int, divisors: dict[int, list[int]]
) -> str:
    """Draws one problem."""
    places = set(rng.sample(range(operations), level))
    value = rng.choice(NUMBERS)
    text = str(value)
    for place in range(operations):
        symbol = "/" if place in places else "*"
        operand = rng.choice(divisors[value] if symbol == "/" else OPERANDS)
        text += f"{symbol}{operand}"
        value = result(value, symbol, operand)
    return text


def result(value: int, symbol: str, operand: int) -> int:
    """Multiplies or divides modulo 17."""
    factor = operand if symbol == "*" else pow(operand, -1, MODULUS)
    return value * factor % MODULUS


def divisions(problem: str) -> list[Division]:
    """The divisions of a problem; their number is its level."""
    value, operations = _parse(problem)
    found = []
    for symbol, operand in operations:
        if symbol == "/":
            found.append((value, operand))
        value = result(value, symbol, operand)
    return found


def solve(problem: str) -> tuple[str, ...]:
    """The steps of a problem; ValueError if the text is no problem of this world."""
    steps: list[str] = []
    while (step := right_step(problem, steps)) is not None:
        steps.append(step)
    return tuple(steps)


def answer(problem: str) -> str:
    """The answer of a problem; ValueError if the text is none of this world."""
    return str(read_step(solve(problem)[-1]).result)


def read_step(text: str) -> Step | None:
    """Reads a step; None if it does not have the form of this world's steps."""
    match = _STEP.fullmatch(text)
    if match is None:
        return None
    number, value, symbol, operand, stated, boxed = match.groups()
    box = None if boxed is None else int(boxed)
    return Step(int(number), int(value), symbol, int(operand), int(stated), box)


def due(problem: str, steps: Sequence[str]) -> tuple[int, str, int] | None:
    """The operation of the next step: value, symbol, operand.

    The value is the result that the last step wrote, even if that is wrong.

    Args:
      problem: problem text; ValueError if it is not of this world.
      steps: the steps so far, right or wrong.

    Returns:
      None after an unreadable step or after the end.
    """
    value, operations = _parse(problem)
    if len(steps) >= len(operations):
        return None
    if steps:
        last = read_step(steps[-1])
        if last is None:
            return None
        value = last.result
    return value, *operations[len(steps)]


def right_step(problem: str, steps: Sequence[str]) -> str | None:
    """The right next step, None where none is `due`.

    This is gold knowledge: only for making SFT data and for evaluation, never for
    anything that a self-rewarding stage learns from.
    """
    operation = due(problem, steps)
    if operation is None:
        return None
    last = len(steps) + 1 == len(_parse(problem)[1])
    return _step_text(len(steps) + 1, operation, result(*operation), last)


def is_right(problem: str, steps: Sequence[str], step: str) -> bool:
    """Whether a next step is exactly the `right_step` (gold knowledge, see there)."""
    return step == right_step(problem, steps)


def working(operation: tuple[int, str, int], candidates: Sequence[int | None]) -> str:
    """Checks results of an operation by multiplication: "12, 5*16=12 (+) 5*3=15 (-) ".

    The result of a multiplication is worked out, and the candidates compared with it:
    "12*3=2, 2 (+) 9 (-) ". That of a division is multiplied by the divisor, and the
    product compared with the number that is divided.

    Args:
      operation: value, symbol, operand.
      candidates: results that candidates state; None stands for a candidate without the
        form of the due step, which is wrong.
    """
    value, symbol, operand = operation
    if symbol == "*":
        product = result(value, "*", operand)
        text = f"{value}*{operand}={product}, "
    else:
        product, text = value, f"{value}, "
    for stated in candidates:
        if stated is None:
            text += "? (-) "
            continue
        reached = stated
        if symbol == "/":
            reached = result(operand, "*", stated)
            text += f"{operand}*{stated}="
        text += f"{reached} {'(+)' if reached == product else '(-)'} "
    return text


def stated_result(step: str, right: str) -> int | None:
    """The result that a step states, None if it has not the form of the right one."""
    stated, wanted = read_step(step), read_step(right)
    if stated is None or stated.number != wanted.number:
        return None
    boxed = None if wanted.boxed is None else stated.result
    return stated.result if stated.boxed == boxed else None


def corrupt(
    problem: str,
    steps: Sequence[str],
    rng: random.Random,
    taught: Collection[Division],
) -> str:
    r"""Makes a plausible wrong next step.

    Half of the draws state another result. The other half work out another operation,
    with another value, operand or symbol, each equally likely, so that the result is
    another one, too. The \boxed{} of a last step agrees with it.

    Args:
      problem: problem text.
      steps: the steps so far.
      rng: source of the choices; it is advanced.
      taught: divisions that another operation may be.

    Raises:
      ValueError: if no next step follows, see `due`.
    """
    right = right_step(problem, steps)
    if right is None:
        raise ValueError(
            f"problem {problem!r} has no next step after {list(steps)}; expected fewer "
            "steps than operations, the last one with a result."
        )
    number, value, symbol, operand, stated, boxed = read_step(right)
    own = value, symbol, operand
    other = rng.choice([n for n in NUMBERS if n != stated])
    if rng.random() < 0.5:
        return _step_text(number, own, other, boxed is not None)
    kinds = [
        [(other, symbol, operand) for other in NUMBERS],
        [(value, symbol, other) for other in OPERANDS],
        [(value, "*/".replace(symbol, ""), operand)],
    ]
    wrong = [
        [o for o in kind if result(*o) != stated and is_taught(o, taught)]
        for kind in kinds
    ]
    wrong = [kind for kind in wrong if kind]
    if not wrong:
        return _step_text(number, own, other, boxed is not None)
    operation = rng.choice(rng.choice(wrong))
    return _step_text(number, operation, result(*operation), boxed is not None)


def is_taught(operation: tuple[int, str, int], taught: Collection[Division]) -> bool:
    """Whether an operation is a multiplication or one of these divisions."""
    value, symbol, operand = operation
    return symbol == "*" or (value, operand) in taught


def garble(step: str, rng: random.Random) -> str:
    r"""Spoils the form of a step, as a model does that is unsure.

    In 30 % of the draws the \boxed{} of a last step is missing, or another step has
    one; otherwise a piece is left out, replaced or put in, so that `read_step` cannot
    read the text. The marker stays.

    Args:
      step: a step of this world.
      rng: source of the choices; it is advanced.
    """
    if rng.random() < _WRONG_BOX:
        number, *operation, stated, boxed = read_step(step)
        return _step_text(number, tuple(operation), stated, boxed is None)
    marker = step[: step.index(": ") + 2]
    pieces = _PIECE.findall(step.removeprefix(marker))
    while True:
        place, left_out = rng.randrange(len(pieces) + 1), rng.randrange(2)
        put_in = [rng.choice(_JUNK) for _ in range(rng.randrange(3))]
        text = marker + "".join([*pieces[:place], *put_in, *pieces[place + left_out :]])
        if read_step(text) is None and text.removeprefix(marker).strip():
            return text


def train_tokenizer(directory: str | Path) -> None:
    """Makes the world's tokenizer, see `tokens.train_tokenizer`."""
    words = [f"Step {number}: " for number in range(1, _MOST_OPERATIONS + 1)]
    words += [str(number) for number in NUMBERS if number > 9]
    words += [", ", "; \\boxed{", "Check: ", "(A)\n", "(B)\n", "(?)\n"]
    words += [" (+) ", " (-) ", "[[A]]", "[[B]]", "\n"]
    tokens.train_tokenizer(directory, words, solve("12/5/7*3"))


def _parse(problem: str) -> tuple[int, list[tuple[str, int]]]:
    """The first number and the operations of a problem text."""
    if not _PROBLEM.fullmatch(problem):
        raise ValueError(
            f"problem {problem!r} is not of this world; expected a number from 1 to "
            f"{MODULUS - 1} and 1 to {_MOST_OPERATIONS} operations like '*7' or '/7' "
            f"with operands from 2 to {MODULUS - 1}."
        )
    value, *operations = re.findall(r"[*/]?\d+", problem)
    return int(value), [(text[0], int(text[1:])) for text in operations]


def _step_text(
    number: int, operation: tuple[int, str, int], stated: int, last: bool
) -> str:
    """A step's text; the operation is value, symbol, operand."""
    value, symbol, operand = operation
    boxed = f"; \\boxed{{{stated}}}" if last else ""
    return f"Step {number}: {value}{symbol}{operand}={stated}{boxed}"
