"""Ratings of whole solutions in the arithmetic world, for `stepjax.srlm`."""

import random
from collections.abc import Sequence

from stepjax import srlm
from stepjax.prompts import boxed
from stepjax.worlds import arithmetic as world
from stepjax.worlds import arithmetic_data

TEXTS = srlm.Texts(rate="{problem}\n{solution}\n(?)\n", rating="[[{score}]]")

_WRONG_STEP = 0.3  # share of the steps of a rated solution


def is_right(problem: str, steps: Sequence[str], solution: str) -> bool:
    """Whether a whole solution has the right answer in its box (gold knowledge)."""
    del steps  # a whole solution follows the problem alone
    return boxed(solution) == world.solve(problem).answer


def ratings(
    id: str, problem: str, rng: random.Random, undecided: float
) -> list[srlm.Rating]:
    """Rates a solution in which each step is wrong with probability 0.3.

    The score is the number of right steps, each judged from what the step before it
    wrote. The explanation works each step out and marks it:
    ``Check: 0 8*7=6, 6+4=0 (+) 5 0*4=0, 0+2=2 (-) ...``.

    Args:
      id: the row's id.
      problem: problem text; ValueError if it is not of this world.
      rng: picks the mistakes; it is advanced.
      undecided: not used, as every solution has a rating.

    Returns:
      One row.
    """
    del undecided
    length = len(world.solve(problem).steps)
    wrong_at = {place for place in range(length) if rng.random() < _WRONG_STEP}
    steps = arithmetic_data.written(problem, length, wrong_at, rng)
    parts = []
    for place, step in enumerate(steps):
        right = world.right_step(problem, steps[:place])
        digit = _result(step, right)
        mark = arithmetic_data.mark(step, right)
        parts.append(f"{digit} {_look_ups(right)} {mark} ")
    score, text = length - len(wrong_at), "Check: " + "".join(parts)
    return [srlm.Rating(id, problem, tuple(steps), score, text)]


def _result(step: str, right: str) -> str:
    """Returns the result digit of a step that has the due form, else "?"."""
    stated, due = world.read_step(step), world.read_step(right)
    if stated is None or stated.number != due.number:
        return "?"
    boxed = None if due.boxed is None else stated.result
    return str(stated.result) if stated.boxed == boxed else "?"


def _look_ups(right: str) -> str:
    """The two look-ups of a right step, written out: "8*7=6, 6+4=0"."""
    step = world.read_step(right)
    product = step.value * step.factor % 10
    first = f"{step.value}*{step.factor}={product}"
    return f"{first}, {product}+{step.addend}={step.result}"
