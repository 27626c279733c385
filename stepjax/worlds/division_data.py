"""The rows of a run in the division world: solutions, judgments, questions, tests."""

import functools
import random
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from stepjax.initial_data.eft import BOTH_WRONG
from stepjax.records import Comparison, Problem, Question, Solution
from stepjax.worlds import division as world

_EASY = 1  # most divisions of a problem that M1 learns from
_PRODUCTS = 0.25  # share of the comparisons at any step, mostly a multiplication
_AFTER_MISTAKE = 0.2  # share of the comparisons after step 1 that follow a wrong step
_GARBLED = 0.1  # share of the wrong steps that do not even have the form of a step


class Dataset(NamedTuple):
    """All data of a run; no problem occurs in two places.

    Attributes:
      ift: right solutions to learn from, half of them without a division, half of them
        with one that is taught.
      eft: judgments to learn from, of problems with one division that is taught; by
        default comparisons: two rows for each problem, one per order.
      heldout: judgments of further such problems, to measure the judge with; exactly
        one of two steps is right.
      questions: one list of questions without answers for each iteration, of the
        highest level, with divisions that are taught and that are not.
      test: benchmark problems of the same kind as the questions.
      levels: level → benchmark problems of that level, for each level below the
        highest.
      unseen: benchmark problems with one division, which occurs nowhere else.
    """

    ift: list[Solution]
    eft: list
    heldout: list
    questions: list[list[Question]]
    test: list[Problem]
    levels: dict[int, list[Problem]]
    unseen: list[Problem]


def dataset(
    *,
    seed: int,
    ift: int,
    eft: int,
    heldout: int,
    questions: Sequence[int],
    test: int,
    operations: int,
    taught: int,
    unseen: int = 0,
    judgments: Callable[..., list] | None = None,
) -> Dataset:
    """Makes all data of a run, disjoint as problems, the same for the same arguments.

    Args:
      seed: of all draws.
      ift: number of solutions.
      eft: number of problems to judge; each gives two comparisons.
      heldout: number of further problems to judge, for measuring the judge.
      questions: number of questions of each iteration.
      test: number of benchmark problems of each level.
      operations: steps of a problem, at least 2; it is the highest level.
      taught: divisors of each number, of 15, that are taught, see `division.split`.
      unseen: divisors of each number that only unseen test problems hold.
      judgments: (id, problem, rng, share of undecided rows) → rows of a problem to
        judge; None takes `comparisons`.

    Raises:
      ValueError: if a count is out of range or there are not enough problems.
    """
    if operations <= _EASY:
        raise ValueError(
            f"data.operations={operations} with data.world='division'; expected at "
            f"least {_EASY + 1}, because problems with {_EASY} division are taught."
        )
    parts = world.split(seed, taught=taught, unseen=unseen)
    tested = parts.taught | parts.asked
    shape = {"seed": seed, "operations": operations}

    def draw(level: int, allowed, counts: dict[str, int]) -> dict[str, list]:
        """Draws problems with ids for several names."""
        total = sum(counts.values())
        drawn = iter(world.problems(total, level=level, divisions=allowed, **shape))
        return {
            name: [(f"division-{name}-{n}", next(drawn)) for n in range(count)]
            for name, count in counts.items()
        }

    asked = {f"q{number}": count for number, count in enumerate(questions, start=1)}
    half = ift // 2
    easy = {"ift-divide": half, "eft": eft, "heldout": heldout, "level_1": test}
    named = draw(0, (), {"ift-multiply": ift - half, "level_0": test})
    named |= draw(_EASY, parts.taught, easy)
    for level in range(_EASY + 1, operations):
        named |= draw(level, tested, {f"level_{level}": test})
    named |= draw(operations, tested, {"test": test} | asked)
    if parts.unseen:
        named |= draw(_EASY, parts.unseen, {"unseen": test})

    def judge(name: str, undecided: float) -> list:
        make = judgments or functools.partial(comparisons, taught=parts.taught)
        rng = random.Random(f"division by multiplication, {name}, seed {seed}")
        return [row for item in named[name] for row in make(*item, rng, undecided)]

    def solved(name: str) -> list[Problem]:
        items = named.get(name, ())
        return [Problem(id, text, world.answer(text)) for id, text in items]

    return Dataset(
        ift=[solution(*i) for i in named["ift-multiply"] + named["ift-divide"]],
        eft=judge("eft", BOTH_WRONG),
        heldout=judge("heldout", 0.0),
        questions=[[Question(*item) for item in named[name]] for name in asked],
        test=solved("test"),
        levels={level: solved(f"level_{level}") for level in range(operations)},
        unseen=solved("unseen"),
    )


def solution(id: str, problem: str) -> Solution:
    """Solves a problem; ValueError if the text is not of this world."""
    return Solution(id, problem, world.solve(problem), world.answer(problem))


def comparisons(
    id: str,
    problem: str,
    rng: random.Random,
    undecided: float = 0.0,
    *,
    taught: Collection[world.Division],
) -> list[Comparison]:
    """Compares two steps of a problem, mostly at a division.

    Three of four comparisons are at a division, if there is one, the rest at a random
    place. In 20 % of the comparisons after step 1 the step before is wrong, unless this
    leads to a division that is not taught. 10 % of the wrong candidates are made by
    `division.garble`, the rest by `division.corrupt`.

    Args:
      id: the rows' ids are this and "-ab" or "-ba".
      problem: problem text; ValueError if it is not of this world.
      rng: picks the place and the corruptions; it is advanced.
      undecided: share of the problems in which both steps are wrong, otherwise one is
        right.
      taught: the divisions that the rows may hold, see `division.split`.

    Returns:
      Two rows, one per order, see ``comparison_from``.
    """
    right = world.solve(problem)
    divided = [n for n, text in enumerate(right) if "/" in text]
    everywhere = not divided or rng.random() < _PRODUCTS
    position = rng.randrange(len(right)) if everywhere else rng.choice(divided)
    steps = list(right[:position])
    if steps and rng.random() < _AFTER_MISTAKE:
        wrong = world.corrupt(problem, steps[:-1], rng, taught)
        if world.is_taught(world.due(problem, [*steps[:-1], wrong]), taught):
            steps[-1] = wrong
    first = _wrong_step(problem, steps, rng, taught)
    if rng.random() >= undecided:
        other = world.right_step(problem, steps)
    else:
        while (other := _wrong_step(problem, steps, rng, taught)) == first:
            pass
    return comparison_from(id, problem, steps, other, first)


def _wrong_step(
    problem: str,
    steps: Sequence[str],
    rng: random.Random,
    taught: Collection[world.Division],
) -> str:
    if rng.random() < _GARBLED:
        return world.garble(world.right_step(problem, steps), rng)
    return world.corrupt(problem, steps, rng, taught)


def comparison_from(
    id: str, problem: str, steps: Sequence[str], one: str, other: str
) -> list[Comparison]:
    """Makes the two rows, one per order, that compare two steps.

    The explanation checks each candidate by multiplication and marks it right or wrong,
    see `division.working`. It ends with a space, after which the verdict follows at
    once. Where neither step is right there is no preference, and the verdict is the
    candidate that is shown first, as in the arithmetic world.

    Args:
      id: the rows' ids are this and "-ab" or "-ba".
      problem: problem text.
      steps: the steps before the two candidates, right or wrong.
      one: a next step; the first one shown in row "-ab".
      other: another next step, corrupted or sampled.

    Raises:
      ValueError: if the two are the same, or no next step is due.
    """
    right = world.right_step(problem, steps)
    if right is None or one == other:
        raise ValueError(
            f"the next steps {one!r} and {other!r} were given; expected two different "
            f"ones where {right!r} is due."
        )
    rows = []
    for order, a, b in (("ab", one, other), ("ba", other, one)):
        stated = [world.stated_result(step, right) for step in (a, b)]
        text = f"Check: {world.working(world.due(problem, steps), stated)}"
        verdict = "B" if b == right else "A"
        rows.append(
            Comparison(f"{id}-{order}", problem, tuple(steps), a, b, verdict, text)
        )
    return rows
