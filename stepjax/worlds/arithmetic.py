r"""Last-digit programs: the built-in world of the quickstart.

A problem is a start digit and blocks ``*a+b``, worked off from left to right with only
the last digit kept. One step is one block, its product not written down:

    8*7+4*4+2*3+1
    Step 1: 8*7+4=0
    Step 2: 0*4+2=2
    Step 3: 2*3+1=7; \boxed{7}

Judging is easier than solving, as the judge may write the product: for the candidates
``Step 1: 8*7+4=0`` and ``Step 1: 5*7+4=9`` it writes
``Check: 8*7=6, 8*7+4=0, 8*7+4=0 (+) 5 (-) [[A]]``.

There are 24 blocks, so 240 different steps (a digit and a block), and two things make
the world a test (`Split`). First, the author of the solutions cannot work out some of
the steps and guesses their digit, so a model that learns to solve from these solutions
does no better there. The comparisons are right on all steps, so the same model learns
to judge these steps, and can teach itself to solve them. Second, some blocks occur only
in a test of their own, so that all its steps are new. The rows are made in
`stepjax.worlds.arithmetic_data`.
"""

import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from stepjax.prompts import Templates
from stepjax.worlds import tokens

SOLVE = "{problem}\n"
JUDGE = "{problem}\n{steps}\n{a}\n(A)\n{b}\n(B)\n"
SINGLE = "{problem}\n{steps}\n{step}\n(?)\n"  # of a judge that sees one step

_FACTORS = (3, 4, 7, 9)
_ADDENDS = (1, 2, 3, 4, 5, 6)
BLOCKS = tuple((factor, addend) for factor in _FACTORS for addend in _ADDENDS)
_MOST_OPERATIONS = 9  # a step number is one digit
_PROBLEM = re.compile(r"[0-9](?:\*[3479]\+[1-6]){1,9}")
_STEP = re.compile(
    r"Step ([1-9]): ([0-9])\*([0-9])\+([0-9])=([0-9])(?:; \\boxed\{([0-9])\})?"
)

_PIECE = re.compile(r"Step [0-9]: |[*+][0-9]|; \\boxed\{| \([AB+-]\) |Check: |.")
_MARKERS = [f"Step {number}: " for number in range(1, _MOST_OPERATIONS + 1)]
_WORDS = [f"*{factor}" for factor in _FACTORS] + [f"+{addend}" for addend in _ADDENDS]
_WORDS += [" (A) ", " (B) ", ", ", "; \\boxed{", " [[A]]", " [[B]]"]
_WRONG_RESULT = 0.5  # share of the corrupted steps in which the digit alone is wrong
_WRONG_BOX = 0.5  # share of the garbled last steps in which only the box is wrong
_EARLY_BOX = 0.3  # share of the other garbled steps in which only a box is too much
_NO_BOX = 0.25  # share of the wrong boxes that are missing, others hold a wrong digit
_DOUBLED = 0.3  # share of the others in which one piece is written twice
_CUT = 0.3  # share of the rest in which other pieces take the place of the end
_SPAN = 2  # most pieces that are left out and put in at one place
_LONGEST = 10  # pieces of a garbled step, without its marker
_JUDGED = (" (+) ", " (-) ", "? ", "?", "Check: ")  # words of judgments
_JUNK = (*_WORDS[:-2], *_MARKERS, *_JUDGED, *"0123456789=}")  # no verdict is put in


class Solved(NamedTuple):
    """A worked problem: the text of each step, and the answer digit."""

    steps: tuple[str, ...]
    answer: str


class Split(NamedTuple):
    """Who sees what.

    Attributes:
      guessed: steps, each as its operands, that the author of solutions guesses.
      judged: blocks (factor, addend) of everything but the unseen test.
      unseen: blocks of the unseen test only.
    """

    guessed: frozenset[tuple[int, int, int]]
    judged: tuple[tuple[int, int], ...]
    unseen: tuple[tuple[int, int], ...]


class Step(NamedTuple):
    """A step that was read; `boxed` is its digit in the box, None without a box."""

    number: int
    value: int
    factor: int
    addend: int
    result: int
    boxed: int | None

    @property
    def operands(self) -> tuple[int, int, int]:
        """Value, factor and addend."""
        return self.value, self.factor, self.addend


def templates() -> Templates:
    """The world's templates: short ones, as the models that learn them are tiny."""
    return Templates(solve=SOLVE, judge=JUDGE)


def split(seed: int, *, guessed_share: float = 0.0, unseen_blocks: int = 0) -> Split:
    """Draws which steps are guessed, and which blocks stay unseen.

    The unseen blocks are spread over the factors and the addends as evenly as can be.

    Args:
      seed: of the draw.
      guessed_share: share of the judged blocks' steps that are guessed.
      unseen_blocks: number of blocks that only the unseen test holds.

    Raises:
      ValueError: if a number is out of range.
    """
    if not (0 <= guessed_share < 1 and 0 <= unseen_blocks <= len(BLOCKS) // 2):
        raise ValueError(
            f"guessed_share={guessed_share}, unseen_blocks={unseen_blocks}; expected a "
            f"share from 0 to below 1, and 0 to {len(BLOCKS) // 2} blocks."
        )
    rng = random.Random(f"last-digit programs, split, seed {seed}")
    drawn = rng.sample(BLOCKS, len(BLOCKS))
    while not _evenly_spread(drawn[:unseen_blocks]):
        rng.shuffle(drawn)
    unseen, judged = drawn[:unseen_blocks], drawn[unseen_blocks:]
    steps = [(value, *block) for block in judged for value in range(10)]
    guessed = rng.sample(steps, round(guessed_share * len(steps)))
    return Split(frozenset(guessed), tuple(judged), tuple(unseen))


def _evenly_spread(blocks: Sequence[tuple[int, int]]) -> bool:
    """Whether no factor and no addend is in more of the blocks than it must be."""
    factors = [factor for factor, _ in blocks]
    addends = [addend for _, addend in blocks]
    return all(
        max(map(part.count, known)) <= -(-len(blocks) // len(known))
        for part, known in ((factors, _FACTORS), (addends, _ADDENDS))
    )


def problems(
    count: int,
    *,
    seed: int,
    operations: int = 3,
    blocks: Sequence[tuple[int, int]] = BLOCKS,
    exclude: Iterable[str] = (),
) -> list[str]:
    """Draws distinct problems, the same ones for the same arguments.

    Args:
      count: how many.
      seed: of the draw.
      operations: blocks per problem, 1 to 9; there are
        ``10 * len(blocks)**operations`` different problems.
      blocks: those that the problems are made of.
      exclude: problems that must not be drawn.

    Returns:
      Problem texts in random order.

    Raises:
      ValueError: if count is negative or there are not enough problems.
    """
    if not 1 <= operations <= _MOST_OPERATIONS:
        raise ValueError(f"operations={operations}; expected 1 to {_MOST_OPERATIONS}.")
    space = 10 * len(blocks) ** operations
    known = set(filter(_PROBLEM.fullmatch, exclude))
    excluded = {
        problem
        for problem in known
        if problem.count("*") == operations and set(_parse(problem)[1]) <= set(blocks)
    }
    if not 0 <= count <= space - len(excluded):
        raise ValueError(
            f"{count} problems asked for; expected 0 to {space - len(excluded)} (there "
            f"are {space}, {len(excluded)} are excluded). Use more operations."
        )
    rng = random.Random(f"last-digit programs, {operations} operations, seed {seed}")
    drawn = rng.sample(range(space), count + len(excluded))
    texts = (_problem_text(number, operations, blocks) for number in drawn)
    return [text for text in texts if text not in excluded][:count]


def solve(problem: str) -> Solved:
    """Works a problem off; ValueError if the text is no problem of this world."""
    steps: list[str] = []
    while (step := right_step(problem, steps)) is not None:
        steps.append(step)
    return Solved(tuple(steps), str(read_step(steps[-1]).result))


def read_step(text: str) -> Step | None:
    """Reads a step; None if it does not have the form of this world's steps."""
    match = _STEP.fullmatch(text)
    if match is None:
        return None
    return Step(*(None if part is None else int(part) for part in match.groups()))


def right_step(problem: str, steps: Sequence[str]) -> str | None:
    """The right next step, None after an unreadable step or after the end.

    The running value is the result that the last step wrote, even if that is wrong.
    This is gold knowledge: only for making SFT data and for evaluation, never for
    anything that a self-rewarding stage learns from.

    Args:
      problem: problem text; ValueError if it is not of this world.
      steps: the steps so far, right or wrong.
    """
    value, blocks = _parse(problem)
    if len(steps) >= len(blocks):
        return None
    if steps:
        last = read_step(steps[-1])
        if last is None:
            return None
        value = last.result
    number = len(steps) + 1
    operands = (value, *blocks[len(steps)])
    return _step_text(number, operands, _result(*operands), number == len(blocks))


def is_right(problem: str, steps: Sequence[str], step: str) -> bool:
    """Whether a next step is exactly the `right_step` (gold knowledge, see there)."""
    return step == right_step(problem, steps)


def with_result(step: str, digit: int) -> str:
    """A step with another result, in its box too if it has one."""
    parts = read_step(step)
    return _step_text(parts.number, parts.operands, digit, parts.boxed is not None)


def working(right: str) -> str:
    """Works a right step out: "8*7=6, 8*7+4=0", the product, then what is due."""
    step = read_step(right)
    product = step.value * step.factor % 10
    return f"{step.value}*{step.factor}={product}, {right.split(': ', 1)[1]}"


def until_wrong(step: str, right: str) -> str:
    """Copies a step as far as it agrees with the right one, and the first other piece.

    Without the marker: "8*7+4=0" of a right step, "8*7+4=9" of one with another result,
    "5" of "Step 1: 5*7+4=9" where ``8*7+4=0`` is due.

    Args:
      step: a next step of any form.
      right: the right one.
    """
    marker = right[: right.index(": ") + 2]
    pieces = _PIECE.findall(step.removeprefix(marker))
    due = _PIECE.findall(right.removeprefix(marker))
    agree = 0
    while agree < min(len(pieces), len(due)) and pieces[agree] == due[agree]:
        agree += 1
    return "".join(pieces[: agree + 1])


def corrupt(problem: str, steps: Sequence[str], rng: random.Random) -> str:
    r"""Makes a plausible wrong next step.

    In half of the draws the result digit alone is wrong, as it mostly is in the steps
    that a model samples. Otherwise the running value, the factor or the addend is
    miscopied, each equally likely, with the result that belongs to the miscopy. That
    result may be the right one, as in ``5*7+1=6`` where ``5*3+1=6`` is due. The
    \boxed{} of a last step agrees with the result.

    Args:
      problem: problem text.
      steps: the steps so far.
      rng: source of the choices; it is advanced.

    Returns:
      The step's text.

    Raises:
      ValueError: if no next step follows, see ``right_step``.
    """
    right = right_step(problem, steps)
    if right is None:
        raise ValueError(
            f"problem {problem!r} has no next step after {list(steps)}; expected fewer "
            "steps than operations, the last one with a result."
        )
    step = read_step(right)
    value, factor, addend = step.operands
    miscopied = [
        [_worked(other, factor, addend) for other in range(10)],
        [_worked(value, other, addend) for other in _FACTORS],
        [_worked(value, factor, other) for other in _ADDENDS],
    ]
    due = step.operands, step.result
    digits = [(step.operands, digit) for digit in range(10)]
    kind = digits if rng.random() < _WRONG_RESULT else rng.choice(miscopied)
    operands, result = rng.choice([other for other in kind if other != due])
    return _step_text(step.number, operands, result, step.boxed is not None)


def garble(step: str, rng: random.Random) -> str:
    r"""Spoils the form of a step, as a model does that is unsure.

    The marker stays. In half of the draws of a last step only its \boxed{} is wrong: it
    is missing (a quarter) or holds another digit. In 30 % of the draws of another step
    it has one. Otherwise `read_step` cannot read the text: in 30 % a piece is written
    twice, else other pieces come in, at the end, where they replace all that follows
    some place, or at one place or two. Half of these pieces are copied from the step
    itself, half are any words of this world, also of its judgments.

    Args:
      step: a step of this world.
      rng: source of the choices; it is advanced.
    """
    marker = step[: step.index(": ") + 2]
    boxed = read_step(step).boxed is not None
    if rng.random() < (_WRONG_BOX if boxed else _EARLY_BOX):
        return _wrongly_boxed(step, rng)
    while True:
        pieces = _PIECE.findall(step.removeprefix(marker))
        if rng.random() < _DOUBLED:
            place = rng.randrange(len(pieces))
            pieces.insert(place, pieces[place])
        elif rng.random() < _CUT:
            place = rng.randrange(len(pieces))
            pieces[place:] = _other_pieces(pieces, 2 * _SPAN, rng)
        else:
            for _ in range(rng.choice((1, 1, 2))):
                place = rng.randrange(len(pieces) + 1)
                end = place + rng.randrange(_SPAN + 1)
                pieces[place:end] = _other_pieces(pieces, _SPAN, rng)
        text = marker + "".join(pieces[:_LONGEST])
        if read_step(text) is None and text.removeprefix(marker).strip():
            return text


def _wrongly_boxed(step: str, rng: random.Random) -> str:
    """The step with a box too few or too many, or with another digit in its box."""
    parts = read_step(step)
    plain = _step_text(parts.number, parts.operands, parts.result, last=False)
    if parts.boxed is None:
        return f"{plain}; \\boxed{{{parts.result}}}"
    if rng.random() < _NO_BOX:
        return plain
    digit = (parts.boxed + rng.randrange(1, 10)) % 10
    return f"{plain}; \\boxed{{{digit}}}"


def _other_pieces(pieces: Sequence[str], most: int, rng: random.Random) -> list[str]:
    """Up to `most` pieces, each one of these or any word."""
    count = rng.randrange(most + 1)
    return [rng.choice(rng.choice((pieces or _JUNK, _JUNK))) for _ in range(count)]


def _worked(*operands: int) -> tuple[tuple[int, ...], int]:
    """The operands, and the digit that is their result."""
    return operands, _result(*operands)


def train_tokenizer(directory: str | Path) -> None:
    r"""Makes the world's tokenizer: 131 pieces, the same bytes every time.

    Its pieces are the printable ASCII characters, the newline and the world's own words
    (``"*7"``, ``"Step 1: "``, ``" [[A]]"``). There is an end-of-sequence token, but
    neither BOS nor padding; see `tokens.train_tokenizer`.

    Args:
      directory: folder for ``tokenizer.model`` (sentencepiece) and, with the same ids,
        ``tokenizer.json`` and ``tokenizer_config.json`` (transformers); made if absent.
    """
    words = [*_MARKERS, *_WORDS, "Check: ", "(A)\n", "(B)\n", "[[A]]", "[[B]]", "\n"]
    words += ["(?)\n", " (+) ", " (-) "]
    tokens.train_tokenizer(directory, words, solve("8*7+4*4+2*3+1").steps)


def _problem_text(number: int, operations: int, blocks: Sequence) -> str:
    """The problem with this number, 0 <= number < 10 * len(blocks)**operations."""
    number, start = divmod(number, 10)
    text = str(start)
    for _ in range(operations):
        number, block = divmod(number, len(blocks))
        factor, addend = blocks[block]
        text += f"*{factor}+{addend}"
    return text


def _parse(problem: str) -> tuple[int, list[tuple[int, int]]]:
    """The start digit and the (factor, addend) blocks of a problem text."""
    if not _PROBLEM.fullmatch(problem):
        raise ValueError(
            f"problem {problem!r} is not of this world; expected a digit and 1 to "
            f"{_MOST_OPERATIONS} blocks like '*7+4' with factors from {_FACTORS} and "
            f"addends from {_ADDENDS}."
        )
    blocks = [(int(block[0]), int(block[2])) for block in problem.split("*")[1:]]
    return int(problem[0]), blocks


def _result(value: int, factor: int, addend: int) -> int:
    """The digit that is the result of a step with these operands."""
    return (value * factor + addend) % 10


def _step_text(number: int, operands: Sequence[int], result: int, last: bool) -> str:
    """A step's text; the operands are value, factor and addend."""
    value, factor, addend = operands
    boxed = f"; \\boxed{{{result}}}" if last else ""
    return f"Step {number}: {value}*{factor}+{addend}={result}{boxed}"
