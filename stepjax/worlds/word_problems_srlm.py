"""Ratings of whole solutions of word problems, for `stepjax.srlm`.

The score is the number of right steps, and the explanation checks one after another:

    The next calculation is 8 + 3 = 11. 1: 8 + 3 = 12, wrong. 2: after a wrong step.
    [[0]]
"""

import random
import re

from stepjax import prompts, srlm
from stepjax.initial_data.formats import word_problems as form
from stepjax.initial_data.formats import worked
from stepjax.prompts import Templates
from stepjax.worlds import word_problems as world
from stepjax.worlds import word_problems_judgments as judgments
from stepjax.worlds.equations import Equation, read_equation

TEXTS = srlm.Texts(
    rate=(
        "Rate a solution. Work out each calculation, check each step, and end with the "
        "number of right steps, such as [[2]].\nProblem: {problem}\nSolution:\n"
        "{solution}\nCheck:\n"
    ),
    rating="[[{score}]]",
)

_WRONG_STEP = 0.4  # share of the steps of a rated solution, up to the first wrong one
_HIGHEST = 9  # a score is one digit
# The first calculation of an equation: an operation before two numbers.
_CALCULATION = re.compile(r"[-+*/] -?[0-9.]+ -?[0-9.]+(?![^ ])")


def is_right(row: Equation, solution: str) -> bool:
    """Whether a whole solution has the right answer in its box (gold knowledge)."""
    boxed = prompts.boxed(solution)
    return boxed is not None and world.answers(row, boxed)


def ratings(
    id: str,
    row: Equation,
    rng: random.Random,
    undecided: float = 0.0,
    *,
    style: str = "short",
    step: str = Templates.step,
) -> list[srlm.Rating]:
    """Rates a solution in which a step is wrong with probability 0.4.

    Behind its first wrong step the solution goes on with the wrong result.

    Args:
      id: the row's id.
      row: the problem.
      rng: picks the mistakes; it is advanced.
      undecided: not used, as every solution has a rating.
      style: of the explanation, see `word_problems_judgments`.
      step: form of a step's marker.

    Returns:
      One row; none for an equation without an operation.
    """
    del undecided
    steps = _solution(row, rng, step)
    text, score = "", 0
    for count, one in enumerate(steps):
        before, name = steps[:count], str(count + 1)
        if world.remaining(row, before) is None:
            text += f"{name}: after a wrong step. "
        else:
            text += judgments.appraisal(row, before, one, style, name)
        score += world.is_right(row, before, one)
    text, score = "" if style == "none" else text, min(score, _HIGHEST)
    return [srlm.Rating(id, row.problem, tuple(steps), score, text)] if steps else []


def _solution(row: Equation, rng: random.Random, step: str) -> list[str]:
    """Solves a problem by rule, perhaps with a mistake; [] without an operation."""
    steps, left = [], row.equation
    for operation in read_equation(row.equation)[1]:
        if rng.random() < _WRONG_STEP:
            steps.append(judgments.corrupt(row, steps, rng, step))
            stated, boxed = world.read_step(steps[-1])
            if boxed is None:
                left = _CALCULATION.sub(form.written(stated.result.value), left, 1)
                steps += _carried_on(left, len(steps) + 1, step)
            break
        steps.append(world.right_step(row, steps, step))
        left = _CALCULATION.sub(form.written(operation.value), left, 1)
    return steps


def _carried_on(equation: str, number: int, step: str) -> list[str]:
    """Returns the steps of an equation, from a number on.

    None where it holds a fraction or divides by 0; the solution breaks off there.
    """
    try:
        value, operations = read_equation(equation)
    except ValueError:
        return []
    if not operations:
        start = prompts.marker(Templates(step=step), number)
        return [start + worked.closing(world.in_box(value))]
    boxes = [None] * (len(operations) - 1) + [world.in_box(operations[-1].value)]
    return [
        world.step_text(number + n, operation, box=box, step=step)
        for n, (operation, box) in enumerate(zip(operations, boxes, strict=True))
    ]
