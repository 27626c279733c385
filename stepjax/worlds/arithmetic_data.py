"""The rows of a run in the arithmetic world: solutions, judgments, questions, tests."""

import dataclasses
import random
from collections.abc import Callable, Container, Sequence
from typing import NamedTuple

from stepjax.initial_data.eft import BOTH_WRONG
from stepjax.records import Comparison, Problem, Question, Solution, StepLabels
from stepjax.worlds import arithmetic as world

_AFTER_MISTAKE = 0.2  # share of the comparisons after step 1 that follow a wrong step
_GARBLED = 0.25  # share of the wrong steps that do not even have the form of a step
_LABELLED_WRONG = 0.4  # share of the labelled steps that are wrong


class Dataset(NamedTuple):
    """All data of a run; no problem occurs in two places.

    Attributes:
      ift: solutions to learn from, with the guesses of their author.
      eft: judgments to learn from, by default comparisons: two rows for each problem,
        one per order.
      heldout: judgments to measure the judge with; exactly one of two steps is right.
      questions: one list of questions without answers for each iteration.
      test: benchmark problems of the blocks that are judged and asked.
      unseen: benchmark problems whose blocks occur nowhere else.
      labels: step labels that a PRM learns from.
      labels_heldout: step labels to measure the PRM with.
      tree_questions: questions without answers for the tree search.
    """

    ift: list[Solution]
    eft: list
    heldout: list
    questions: list[list[Question]]
    test: list[Problem]
    unseen: list[Problem]
    labels: list[StepLabels]
    labels_heldout: list[StepLabels]
    tree_questions: list[Question]


def dataset(
    *,
    seed: int,
    ift: int,
    eft: int,
    heldout: int,
    questions: Sequence[int],
    test: int,
    operations: int = 3,
    guessed_share: float = 0.0,
    unseen_blocks: int = 0,
    judgments: Callable[..., list] | None = None,
    labels: int = 0,
    labels_heldout: int = 0,
    tree_questions: int = 0,
) -> Dataset:
    """Makes all data of a run, disjoint as problems, the same for the same arguments.

    Args:
      seed: of all draws.
      ift: number of solutions.
      eft: number of problems to judge; each gives two comparisons.
      heldout: number of further problems to judge, for measuring the judge.
      questions: number of questions of each iteration.
      test: number of benchmark problems, and as many unseen ones if any block is
        unseen.
      operations: blocks per problem.
      guessed_share: share of the steps that solutions guess, see `arithmetic.split`.
      unseen_blocks: number of blocks that only unseen test problems hold.
      judgments: (id, problem, rng, share of undecided rows) → rows of a problem to
        judge; None takes `comparisons`.
      labels: number of solutions with step labels to learn from.
      labels_heldout: number of further ones, for measuring.
      tree_questions: number of questions for the tree search.

    Raises:
      ValueError: if a count is out of range or there are not enough problems.
    """
    counts = {"ift": ift, "eft": eft, "heldout": heldout, "test": test}
    counts |= {f"q{number}": count for number, count in enumerate(questions, start=1)}
    counts |= {"labels": labels, "labels_heldout": labels_heldout}
    counts |= {"tree_questions": tree_questions}
    if min(counts.values()) < 0:
        raise ValueError(f"counts are {list(counts.values())}; expected none below 0.")
    split = world.split(seed, guessed_share=guessed_share, unseen_blocks=unseen_blocks)
    shape = {"seed": seed, "operations": operations}
    drawn = iter(world.problems(sum(counts.values()), blocks=split.judged, **shape))
    named = {
        name: [(f"arith-{name}-{number}", next(drawn)) for number in range(count)]
        for name, count in counts.items()
    }
    unseen = world.problems(test, blocks=split.unseen, **shape) if split.unseen else []
    named["unseen"] = [(f"arith-unseen-{n}", text) for n, text in enumerate(unseen)]

    def rng(name: str) -> random.Random:
        return random.Random(f"last-digit programs, {name}, seed {seed}")

    def judge(name: str, undecided: float) -> list:
        make, draws = judgments or comparisons, rng(name)
        return [row for item in named[name] for row in make(*item, draws, undecided)]

    def solve(name: str) -> list[Problem]:
        return [Problem(*item, world.solve(item[1]).answer) for item in named[name]]

    def label(name: str) -> list[StepLabels]:
        draws = rng(name)
        return [step_labels(*item, draws) for item in named[name]]

    guesses = rng("guesses")
    return Dataset(
        ift=[solution(*item, split.guessed, guesses) for item in named["ift"]],
        eft=judge("eft", BOTH_WRONG),
        heldout=judge("heldout", 0.0),
        questions=[
            [Question(*item) for item in named[f"q{number}"]]
            for number in range(1, len(questions) + 1)
        ],
        test=solve("test"),
        unseen=solve("unseen"),
        labels=label("labels"),
        labels_heldout=label("labels_heldout"),
        tree_questions=[Question(*item) for item in named["tree_questions"]],
    )


def solution(
    id: str,
    problem: str,
    guessed: Container[tuple[int, int, int]],
    rng: random.Random,
) -> Solution:
    """Solves a problem, guessing the digit of some steps; the rest follows from it.

    Args:
      id: the row's id.
      problem: problem text; ValueError if it is not of this world.
      guessed: operands of the steps that are guessed, each digit equally likely.
      rng: draws the guesses; it is advanced.
    """
    steps: list[str] = []
    while (step := world.right_step(problem, steps)) is not None:
        if world.read_step(step).operands in guessed:
            step = world.with_result(step, rng.randrange(10))
        steps.append(step)
    return Solution(id, problem, tuple(steps), str(world.read_step(steps[-1]).result))


def step_labels(id: str, problem: str, rng: random.Random) -> StepLabels:
    """Writes a solution with wrong steps, and labels each step 1 (right) or 0.

    40 % of the steps are wrong, most of them by `arithmetic.corrupt`, 25 % of them by
    `arithmetic.garble`. A step is right if it goes on rightly from the steps before it,
    even if those are wrong. After a garbled step nothing can go on, so the solution
    ends there.

    Args:
      id: the row's id.
      problem: problem text; ValueError if it is not of this world.
      rng: draws the mistakes; it is advanced.
    """
    steps: list[str] = []
    labels: list[float] = []
    while (right := world.right_step(problem, steps)) is not None:
        wrong = rng.random() < _LABELLED_WRONG
        steps.append(_wrong_step(problem, steps, rng) if wrong else right)
        labels.append(0.0 if wrong else 1.0)
    return StepLabels(id, problem, tuple(steps), tuple(labels))


def comparisons(
    id: str, problem: str, rng: random.Random, undecided: float = 0.0
) -> list[Comparison]:
    """Compares two steps at a random place of a problem.

    In 20 % of the comparisons after step 1 an earlier step is wrong, and the steps
    after it go on from its wrong result. 25 % of the wrong candidates are made by
    `arithmetic.garble`, the rest by `arithmetic.corrupt`.

    Args:
      id: the rows' ids are this and "-ab" or "-ba".
      problem: problem text; ValueError if it is not of this world.
      rng: picks the place and the corruptions; it is advanced.
      undecided: share of the problems in which both steps are wrong, otherwise one is
        right.

    Returns:
      Two rows, one per order, see ``comparison_from``.
    """
    length = len(world.solve(problem).steps)
    position = rng.randrange(length)
    mistake = position and rng.random() < _AFTER_MISTAKE
    wrong_at = {rng.randrange(position)} if mistake else set()
    steps = written(problem, position, wrong_at, rng)
    first = _wrong_step(problem, steps, rng)
    if rng.random() >= undecided:
        other = world.right_step(problem, steps)
    else:
        while (other := _wrong_step(problem, steps, rng)) == first:
            pass
    return comparison_from(id, problem, steps, other, first)


def _wrong_step(problem: str, steps: list[str], rng: random.Random) -> str:
    if rng.random() < _GARBLED:
        return world.garble(world.right_step(problem, steps), rng)
    return world.corrupt(problem, steps, rng)


def written(
    problem: str, count: int, wrong_at: set[int], rng: random.Random
) -> list[str]:
    """Returns the first `count` steps, corrupted at the given places."""
    steps: list[str] = []
    for place in range(count):
        right = world.right_step(problem, steps)
        steps.append(world.corrupt(problem, steps, rng) if place in wrong_at else right)
    return steps


def comparison_from(
    id: str, problem: str, steps: Sequence[str], one: str, other: str
) -> list[Comparison]:
    """Makes the two rows, one per order, that compare two steps.

    The explanation works the right result out, then copies each candidate. It marks a
    right one at its end, and a wrong one at the first piece that is not the right
    step's. It ends with a space, after which the verdict follows at once.

    Where neither step is right there is no preference, and the verdict is the candidate
    that is shown first. A judge that learns this contradicts itself when it is asked in
    both orders, which counts for neither candidate. Without such rows a model learns to
    make one of two wrong results look right.

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

    def explain(a: str, b: str) -> str:
        return f"Check: {world.working(right)}, {_marked(a, right)}{_marked(b, right)}"

    row = Comparison(id, problem, tuple(steps), one, other, "A")
    return in_both_orders(row, right, explain)


def in_both_orders(
    row: Comparison, right: str | None, explain: Callable[[str, str], str]
) -> list[Comparison]:
    """Makes two rows of one comparison, one per order.

    Args:
      row: its id, problem, steps and candidates; its verdict is not read.
      right: the right next step. A candidate that is the same text wins; where neither
        is, the one that is shown first does.
      explain: (first candidate, second candidate) → explanation.

    Raises:
      ValueError: if the candidates are the same, or no next step is due.
    """
    if right is None or row.a == row.b:
        raise ValueError(
            f"the next steps {row.a!r} and {row.b!r} were given; expected two "
            f"different ones where {right!r} is due."
        )
    return [
        dataclasses.replace(
            row,
            id=f"{row.id}-{order}",
            a=a,
            b=b,
            verdict="B" if b == right else "A",
            explanation=explain(a, b),
        )
        for order, a, b in (("ab", row.a, row.b), ("ba", row.b, row.a))
    ]


def appraise(row: Comparison) -> tuple[str, str]:
    """Judges the first step of a comparison alone (gold knowledge: for SFT data only).

    The explanation works the right result out, then copies and marks that of the step,
    as `comparison_from` does for two steps.

    Args:
      row: from `comparison_from`.

    Returns:
      ("A" if the step is right, else "B", explanation).
    """
    right = world.right_step(row.problem, row.steps)
    text = f"Check: {world.working(right)}, {_marked(row.a, right)}"
    return "A" if row.a == right else "B", text


def _marked(step: str, right: str) -> str:
    """A step as far as it is right, marked "(+)", or "(-)" where it goes wrong."""
    return f"{world.until_wrong(step, right)} {mark(step, right)} "


def mark(step: str, right: str) -> str:
    """Returns "(+)" for the right step and "(-)" for another one."""
    return "(+)" if step == right else "(-)"
