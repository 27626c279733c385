"""The rows of a run on backward programs: solutions, judgments, questions, tests."""

import functools
import random
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from stepjax.initial_data.eft import BOTH_WRONG
from stepjax.records import Comparison, Problem, Question, Solution
from stepjax.worlds import arithmetic, arithmetic_data
from stepjax.worlds import backwards as world

_AFTER_MISTAKE = 0.2  # share of the comparisons after step 1 that follow a wrong step
_GARBLED = 0.25  # share of the wrong steps that do not even have the form of a step


class Dataset(NamedTuple):
    """All data of a run; no problem occurs in two places.

    Attributes:
      ift: solutions to learn from; all of their steps are right and taught.
      eft: judgments to learn from, of problems whose steps are taught; by default
        comparisons: two rows for each problem, one per order.
      heldout: judgments of further such problems, to measure the judge with; exactly
        one of two steps is right.
      questions: one list of questions without answers for each iteration, with steps
        that are taught and steps that are not, of any level.
      test: benchmark problems of the same kind as the questions.
      levels: for each level, benchmark problems with that many steps that are not
        taught.
      unseen: benchmark problems in which one step occurs nowhere else, and all other
        steps are taught.
    """

    ift: list[Solution]
    eft: list
    heldout: list
    questions: list[list[Question]]
    test: list[Problem]
    levels: list[list[Problem]]
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
      test: number of benchmark problems of each kind.
      operations: steps of a problem.
      taught: results of each block, of 10, that are taught, see `backwards.split`.
      unseen: results of each block that only the unseen test holds.
      judgments: (id, problem, rng, share of undecided rows) → rows of a problem to
        judge; None takes `comparisons`.

    Raises:
      ValueError: if a count is out of range or there are not enough problems.
    """
    parts = world.split(seed, taught=taught, unseen=unseen)
    seen: set[str] = set()

    def draw(among: Sequence[Collection], counts: dict[str, int]) -> dict[str, list]:
        """Draws problems with ids for several names."""
        total = sum(counts.values())
        drawn = world.problems(total, seed=seed, among=among, exclude=seen)
        seen.update(drawn)
        left = iter(drawn)
        return {
            name: [(f"backwards-{name}-{n}", next(left)) for n in range(count)]
            for name, count in counts.items()
        }

    asked = {f"q{number}": count for number, count in enumerate(questions, start=1)}
    easy = [parts.taught] * operations
    mostly = [parts.taught | parts.asked] * operations
    # Tests first, so that their levels are not those of what training leaves over, and
    # questions last, so that more of them change nothing else.
    named = draw(mostly, {"test": test})
    highest = operations if parts.asked else 0
    for level in range(highest + 1):
        mixed = [parts.asked] * level + easy[level:]
        named |= draw(mixed, {f"level_{level}": test})
    if parts.unseen:
        named |= draw([parts.unseen, *easy[1:]], {"unseen": test})
    named |= draw(easy, {"heldout": heldout, "ift": ift, "eft": eft})
    named |= draw(mostly, asked)

    def judge(name: str, undecided: float) -> list:
        make = judgments or functools.partial(comparisons, taught=parts.taught)
        rng = random.Random(f"last-digit programs backwards, {name}, seed {seed}")
        return [row for item in named[name] for row in make(*item, rng, undecided)]

    def solved(name: str) -> list[Problem]:
        items = named.get(name, ())
        return [Problem(id, text, world.answer(text)) for id, text in items]

    return Dataset(
        ift=[solution(*item) for item in named["ift"]],
        eft=judge("eft", BOTH_WRONG),
        heldout=judge("heldout", 0.0),
        questions=[[Question(*item) for item in named[name]] for name in asked],
        test=solved("test"),
        levels=[solved(f"level_{level}") for level in range(highest + 1)],
        unseen=solved("unseen"),
    )


def further(
    count: int,
    *,
    seed: int,
    operations: int,
    taught: int,
    unseen: int,
    seen: Collection[str],
) -> list[str]:
    """Draws problems of the same kind as the questions of `dataset`.

    Args:
      count: how many.
      seed: of the run.
      operations: as in `dataset`.
      taught: as in `dataset`.
      unseen: as in `dataset`.
      seen: problems that must not be drawn, those that the run has.

    Raises:
      ValueError: when there are not enough problems.
    """
    parts = world.split(seed, taught=taught, unseen=unseen)
    among = [parts.taught | parts.asked] * operations
    return world.problems(count, seed=seed, among=among, exclude=seen)


def solution(id: str, problem: str) -> Solution:
    """Solves a problem; ValueError if the text is not of this world."""
    return Solution(id, problem, world.solve(problem), world.answer(problem))


def comparisons(
    id: str,
    problem: str,
    rng: random.Random,
    undecided: float = 0.0,
    *,
    taught: Collection[world.Task],
) -> list[Comparison]:
    """Compares two steps at a random place of a problem.

    In 20 % of the comparisons after step 1 the step before is wrong, unless this leads
    to a task that is not taught. 25 % of the wrong candidates are made by
    `arithmetic.garble`, the rest by `backwards.corrupt`.

    Args:
      id: the rows' ids are this and "-ab" or "-ba".
      problem: problem text; ValueError if it is not of this world.
      rng: picks the place and the corruptions; it is advanced.
      undecided: share of the problems in which both steps are wrong, otherwise one is
        right.
      taught: the tasks that the rows may hold, see `backwards.split`.

    Returns:
      Two rows, one per order, see ``comparison_from``.
    """
    right = world.solve(problem)
    steps = list(right[: rng.randrange(len(right))])
    if steps and rng.random() < _AFTER_MISTAKE:
        wrong = world.corrupt(problem, steps[:-1], rng, taught)
        if world.due(problem, [*steps[:-1], wrong]) in taught:
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
    taught: Collection[world.Task],
) -> str:
    if rng.random() < _GARBLED:
        return arithmetic.garble(world.right_step(problem, steps), rng)
    return world.corrupt(problem, steps, rng, taught)


def comparison_from(
    id: str, problem: str, steps: Sequence[str], one: str, other: str
) -> list[Comparison]:
    """Makes the two rows, one per order, that compare two steps.

    The explanation checks each candidate and marks it right or wrong, see
    `backwards.working`. It ends with a space, after which the verdict follows at once.
    Where neither step is right there is no preference, and the verdict is the candidate
    that is shown first, as in the arithmetic world.

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

    def explain(*candidates: str) -> str:
        return f"Check: {world.working(problem, steps, candidates)}"

    row = Comparison(id, problem, tuple(steps), one, other, "A")
    return arithmetic_data.in_both_orders(row, right, explain)


def appraise(row: Comparison) -> tuple[str, str]:
    """Judges the first step of a comparison alone (gold knowledge: for SFT data only).

    Args:
      row: from `comparison_from`.

    Returns:
      ("A" if the step is right, else "B", explanation).
    """
    text = f"Check: {world.working(row.problem, row.steps, [row.a])}"
    return "A" if world.is_right(row.problem, row.steps, row.a) else "B", text
