"""Ratings of whole solutions in the world of backward programs, for `stepjax.srlm`."""

import random
from collections.abc import Collection, Sequence

from stepjax import srlm
from stepjax.prompts import boxed
from stepjax.worlds import backwards as world

_WRONG_STEP = 0.3  # share of the steps that are wrong, if that leads to taught steps


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
    taught: Collection[world.Task],
) -> list[srlm.Rating]:
    """Rates a solution in which a step is wrong with probability 0.3.

    The score is the number of right steps, each judged from what the step before it
    found. The explanation checks each step, see `backwards.working`. A mistake that
    leads to a task that is not taught is not made.

    Args:
      id: the row's id.
      problem: problem text; ValueError if it is not of this world.
      rng: picks the mistakes; it is advanced.
      undecided: not used, as every solution has a rating.
      taught: the tasks that the rows may hold, see `backwards.split`.

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
            if leads_to_taught(problem, [*steps, wrong], taught):
                step = wrong
        text += world.working(problem, steps, [step])
        score += step == right
        steps.append(step)
    return [srlm.Rating(id, problem, tuple(steps), score, text)]


def leads_to_taught(
    problem: str, steps: Sequence[str], taught: Collection[world.Task]
) -> bool:
    """Whether all tasks after these steps, solved rightly, are taught."""
    steps = list(steps)
    while (task := world.due(problem, steps)) is not None:
        if task not in taught:
            return False
        steps.append(world.right_step(problem, steps))
    return True
