"""Ratings of whole solutions in the division world, for `stepjax.srlm`."""

import random
from collections.abc import Collection, Sequence

from stepjax import srlm
from stepjax.prompts import boxed
from stepjax.worlds import division as world
from stepjax.worlds.arithmetic_srlm import TEXTS  # noqa: F401, the same in both worlds

_WRONG_STEP = 0.3  # share of the steps of a rated solution


def is_right(problem: str, steps: Sequence[str], solution: str) -> bool:
    """Whether a whole solution has the right answer in its box (gold knowledge)."""
    del steps  # a whole solution follows the problem alone
    return boxed(solution) == world.answer(problem)


def ratings(
    id: str,
    problem: str,
    rng: random.Random,
    undecided: float,
    *,
    taught: Collection[world.Division],
) -> list[srlm.Rating]:
    """Rates a solution in which a step is wrong with probability 0.3.

    The score is the number of right steps, each judged from what the step before it
    wrote. The explanation checks each step, see `division.working`. A mistake that
    leads to a division that is not taught is not made.

    Args:
      id: the row's id.
      problem: problem text; ValueError if it is not of this world.
      rng: picks the mistakes; it is advanced.
      undecided: not used, as every solution has a rating.
      taught: the divisions that the rows may hold, see `division.split`.

    Returns:
      One row.
    """
    del undecided
    steps: list[str] = []
    text, score = "Check: ", 0
    while (right := world.right_step(problem, steps)) is not None:
        step = right
        if rng.random() < _WRONG_STEP:
            wrong = world.corrupt(problem, steps, rng, taught)
            if _leads_to_taught(problem, [*steps, wrong], taught):
                step = wrong
        stated = world.stated_result(step, right)
        text += world.working(world.due(problem, steps), [stated])
        score += step == right
        steps.append(step)
    return [srlm.Rating(id, problem, tuple(steps), score, text)]


def _leads_to_taught(
    problem: str, steps: list[str], taught: Collection[world.Division]
) -> bool:
    """Whether all operations after these steps, done rightly, are taught."""
    while (operation := world.due(problem, steps)) is not None:
        if not world.is_taught(operation, taught):
            return False
        steps = [*steps, world.right_step(problem, steps)]
    return True
