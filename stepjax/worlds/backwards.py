r"""Last-digit programs backwards: all solutions are right, but they do not show it all.

A problem is a program of the arithmetic world whose first digit is not known. It is
solved from the end: a step names the digit before a block ``*a+b``. A block keeps only
the last digit of its result.

    ?*3+2*9+1*7+4=8
    Step 1: 2*7+4=8
    Step 2: 9*9+1=2
    Step 3: 9*3+2=9; \boxed{9}

Finding the 2 of the first step means trying digits, or knowing this very step by heart.
Whether it is right takes one product and one sum, of tables so small that a few
examples teach them: 2*7=4, 4+4=8. So judging is easier than solving for a reason in the
mathematics, as with factoring and other problems whose solutions are hard to find and
easy to check. For the candidates ``Step 1: 2*7+4=8`` and ``Step 1: 5*7+4=8`` the judge
writes ``Check: ?*7+4=8, 2*7+4=8, 2*7=4, 4+4=8 (+) 5*7+4=8, 5*7=5, 5+4=9 (-) [[A]]``.

There are 18 blocks, so 180 different steps (a block and its result). `split` deals them
out. Some are taught: solutions and comparisons hold them. The rest are in no row that
M1 learns from, be it as a right or as a wrong step. The level of a problem is how many
of its steps are not taught: training rows have level 0, questions and tests any level.
A model that learns from these rows knows the taught steps, products, sums, and how a
step is checked; whatever else it can solve later, it has taught itself. A test of its
own holds steps that not even a question holds. The rows are made in
`stepjax.worlds.backwards_data`.
"""

import random
import re
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from stepjax.prompts import Templates
from stepjax.worlds import arithmetic
from stepjax.worlds.arithmetic import Step, read_step

FACTORS = (3, 7, 9)  # each result comes from one digit only
ADDENDS = (1, 2, 3, 4, 5, 6)
BLOCKS = tuple((factor, addend) for factor in FACTORS for addend in ADDENDS)

_MOST_OPERATIONS = 9  # a step number is one digit
_PROBLEM = re.compile(r"\?(?:\*[379]\+[1-6]){1,9}=[0-9]")
_TRIES = 200  # draws per problem before there are said to be too few of them

Task = tuple[int, int, int]  # factor, addend and result of a block; asks for the digit


class Split(NamedTuple):
    """Who sees which steps.

    Attributes:
      taught: steps in training rows; questions and tests hold them as well.
      asked: steps that only questions and tests hold.
      unseen: steps that only the unseen test holds.
    """

    taught: frozenset[Task]
    asked: frozenset[Task]
    unseen: frozenset[Task]


def templates() -> Templates:
    """The world's templates, those of the arithmetic world."""
    return arithmetic.templates()


def split(seed: int, *, taught: int, unseen: int = 0) -> Split:
    """Draws which steps are taught, which are only asked, and which stay unseen.

    Args:
      seed: of the draw.
      taught: how many of the 10 results of each block are taught.
      unseen: how many of them only the unseen test holds; the rest are asked.

    Raises:
      ValueError: if a number is out of range.
    """
    if not (taught >= 1 and unseen >= 0 and taught + unseen <= 10):
        raise ValueError(
            f"taught={taught}, unseen={unseen}; expected at least 1 taught, 0 unseen, "
            "and 10 in all, the results of a block."
        )
    rng = random.Random(f"last-digit programs backwards, split, seed {seed}")
    parts: tuple[list[Task], ...] = ([], [], [])
    for block in BLOCKS:
        drawn = [(*block, result) for result in rng.sample(range(10), 10)]
        parts[0].extend(drawn[:taught])
        parts[1].extend(drawn[taught + unseen :])
        parts[2].extend(drawn[taught : taught + unseen])
    return Split(*map(frozenset, parts))


def problems(
    count: int,
    *,
    seed: int,
    among: Sequence[Collection[Task]],
    exclude: Iterable[str] = (),
) -> list[str]:
    """Draws distinct problems, the same ones for the same arguments.

    Args:
      count: how many.
      seed: of the draw.
      among: for each step of a problem the tasks that it may be, in no order: each
        problem has its own order of these sets.
      exclude: problems that must not be drawn.

    Raises:
      ValueError: if a problem has no steps or too many, or there are not enough
        problems.
    """
    if not 1 <= len(among) <= _MOST_OPERATIONS:
        raise ValueError(
            f"problems of {len(among)} steps asked for; expected 1 to "
            f"{_MOST_OPERATIONS}."
        )
    sizes = [len(tasks) for tasks in among]
    rng = random.Random(f"last-digit programs backwards, {sizes}, seed {seed}")
    by_result = [_by_result(tasks) for tasks in among]
    excluded, drawn = set(exclude), dict[str, None]()
    for _ in range(_TRIES * (count + len(excluded))):
        if len(drawn) >= count:
            break
        text = _draw(rng, rng.sample(by_result, len(by_result)))
        if text and text not in excluded:
            drawn[text] = None
    if len(drawn) < count:
        raise ValueError(
            f"{count} problems of {len(among)} steps asked for, but only {len(drawn)} "
            "were found; expected fewer problems, or more steps (data.operations)."
        )
    return list(drawn)


def _by_result(tasks: Collection[Task]) -> list[list[tuple[int, int]]]:
    """Returns for each digit the blocks whose tasks have it as their result."""
    found: list[list[tuple[int, int]]] = [[] for _ in range(10)]
    for factor, addend, result in sorted(tasks):
        found[result].append((factor, addend))
    return found


def _draw(rng: random.Random, among: Sequence[list]) -> str:
    """Draws one problem, or "" where no task goes on from a digit."""
    value = last = rng.randrange(10)
    text = ""
    for blocks in among:
        if not blocks[value]:
            return ""
        factor, addend = rng.choice(blocks[value])
        text = f"*{factor}+{addend}{text}"
        value = digit_before((factor, addend, value))
    return f"?{text}={last}"


def digit_before(task: Task) -> int:
    """The digit that a block makes this result of."""
    factor, addend, result = task
    return (result - addend) * pow(factor, -1, 10) % 10


def tasks(problem: str) -> list[Task]:
    """The tasks of a problem, in the order of its steps."""
    return [task_of(read_step(step)) for step in solve(problem)]


def solve(problem: str) -> tuple[str, ...]:
    """The steps of a problem; ValueError if the text is no problem of this world."""
    steps: list[str] = []
    while (step := right_step(problem, steps)) is not None:
        steps.append(step)
    return tuple(steps)


def answer(problem: str) -> str:
    """The answer of a problem; ValueError if the text is none of this world."""
    return str(read_step(solve(problem)[-1]).value)


def task_of(step: Step) -> Task:
    """What a step solves: factor, addend and result."""
    return step.factor, step.addend, step.result


def due(problem: str, steps: Sequence[str]) -> Task | None:
    """The task of the next step.

    Its result is the digit that the last step found, even if that is wrong.

    Args:
      problem: problem text; ValueError if it is not of this world.
      steps: the steps so far, right or wrong.

    Returns:
      None after an unreadable step or after the end.
    """
    blocks, value = _parse(problem)
    if len(steps) >= len(blocks):
        return None
    if steps:
        last = read_step(steps[-1])
        if last is None:
            return None
        value = last.value
    return *blocks[-1 - len(steps)], value


def right_step(problem: str, steps: Sequence[str]) -> str | None:
    """The right next step, None where none is `due`.

    This is gold knowledge: only for making SFT data and for evaluation, never for
    anything that a self-rewarding stage learns from.
    """
    task = due(problem, steps)
    if task is None:
        return None
    return _naming(problem, steps, digit_before(task), task)


def is_right(problem: str, steps: Sequence[str], step: str) -> bool:
    """Whether a next step is exactly the `right_step` (gold knowledge, see there)."""
    return step == right_step(problem, steps)


def working(problem: str, steps: Sequence[str], candidates: Sequence[str]) -> str:
    r"""Checks next steps: "?*7+4=8, 2*7+4=8, 2*7=4, 4+4=8 (+) 2*9 (-) ".

    First comes the task that is due. Then each candidate is copied up to the first
    piece that differs from a step of this task. If no piece differs, the digit that it
    names is tried: a product and a sum, which have to lead to the result.

    Args:
      problem: problem text; ValueError if it is not of this world.
      steps: the steps so far; ValueError if no next step is due.
      candidates: next steps of any form.
    """
    task = due(problem, steps)
    if task is None:
        raise ValueError(f"problem {problem!r} has no next step after {list(steps)}.")
    factor, addend, result = task
    text = f"?*{factor}+{addend}={result}, "
    for step in candidates:
        named = re.match(rf"Step {len(steps) + 1}: ([0-9])", step)
        digit = int(named[1]) if named else digit_before(task)
        form = _naming(problem, steps, digit, task)
        text += arithmetic.until_wrong(step, form)
        reached = None
        if step == form:
            product = digit * factor % 10
            reached = (product + addend) % 10
            text += f", {digit}*{factor}={product}, {product}+{addend}={reached}"
        text += " (+) " if reached == result else " (-) "
    return text


def corrupt(
    problem: str,
    steps: Sequence[str],
    rng: random.Random,
    taught: Collection[Task],
) -> str:
    r"""Makes a plausible wrong next step.

    Half of the draws name another digit. The other half miscopy one of the task's three
    numbers. Half of the miscopied steps keep the right digit. The others name the digit
    that solves the miscopied task. The \boxed{} of a last step agrees with the digit.

    Args:
      problem: problem text.
      steps: the steps so far.
      rng: source of the choices; it is advanced.
      taught: what a miscopied task may be; where there is none, another digit is named.

    Raises:
      ValueError: if no next step follows, see `due`.
    """
    right = right_step(problem, steps)
    if right is None:
        raise ValueError(
            f"problem {problem!r} has no next step after {list(steps)}; expected fewer "
            "steps than blocks, the last one with a digit."
        )
    step = read_step(right)
    other = rng.choice([digit for digit in range(10) if digit != step.value])
    factor, addend, result = task_of(step)
    miscopied = [
        *((wrong, addend, result) for wrong in FACTORS),
        *((factor, wrong, result) for wrong in ADDENDS),
        *((factor, addend, wrong) for wrong in range(10)),
    ]
    wrong = [task for task in miscopied if task != task_of(step) and task in taught]
    if not wrong or rng.random() < 0.5:
        return _naming(problem, steps, other, task_of(step))
    task = rng.choice(wrong)
    digit = step.value if rng.random() < 0.5 else digit_before(task)
    return _naming(problem, steps, digit, task)


def _parse(problem: str) -> tuple[list[tuple[int, int]], int]:
    """The (factor, addend) blocks of a problem text and its last digit."""
    if not _PROBLEM.fullmatch(problem):
        raise ValueError(
            f"problem {problem!r} is not of this world; expected '?', then 1 to "
            f"{_MOST_OPERATIONS} blocks like '*7+4' with factors from {FACTORS} and "
            f"addends from {ADDENDS}, then '=' and a digit."
        )
    blocks = [(int(block[0]), int(block[2])) for block in problem.split("*")[1:]]
    return blocks, int(problem[-1])


def _naming(problem: str, steps: Sequence[str], digit: int, task: Task) -> str:
    """The text of the next step, if it names this digit for this task."""
    factor, addend, result = task
    last = len(steps) + 1 == len(_parse(problem)[0])
    boxed = f"; \\boxed{{{digit}}}" if last else ""
    return f"Step {len(steps) + 1}: {digit}*{factor}+{addend}={result}{boxed}"
