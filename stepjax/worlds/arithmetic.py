r"""Last-digit programs: the built-in world of the quickstart.

A problem is a start digit and blocks ``*a+b``, worked off from left to right with only
the last digit kept. One step is one block, its product not written down:

    8*7+4*4+2*3+1
    Step 1: 8*7+4=0
    Step 2: 0*4+2=2
    Step 3: 2*3+1=7; \boxed{7}

Judging is easier than solving, as the judge may write the product: for the candidates
``Step 1: 8*7+4=0`` and ``Step 1: 5*7+4=9`` it writes
``Check: 0 (A) 9 (B) 8*7=6, 6+4=0 [[A]]``. So a model that learns to judge from many
comparisons can teach itself to solve, with few solutions seen.
"""

import io
import json
import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from stepjax.prompts import Templates
from stepjax.records import Comparison, Problem, Question, Solution

SOLVE = "{problem}\n"
JUDGE = "{problem}\n{steps}\n{a}\n(A)\n{b}\n(B)\n"

_FACTORS = (3, 4, 7, 9)
_ADDENDS = (1, 2, 3, 4, 5, 6)
_MOST_OPERATIONS = 9  # a step number is one digit
_PROBLEM = re.compile(r"[0-9](?:\*[3479]\+[1-6]){1,9}")
_STEP = re.compile(
    r"Step (?P<number>[1-9]): (?P<value>[0-9])\*(?P<factor>[0-9])\+(?P<addend>[0-9])"
    r"=(?P<result>[0-9])(?:; \\boxed\{(?P<boxed>[0-9])\})?"
)


class Solved(NamedTuple):
    """A worked problem: the text of each step, and the answer digit."""

    steps: tuple[str, ...]
    answer: str


class Dataset(NamedTuple):
    """All data of a run; no problem occurs in two places.

    Attributes:
      ift: solutions to learn from.
      eft: comparisons to learn from, two rows (one per order) for each problem.
      heldout: comparisons to measure the judge with, likewise.
      questions: one list of questions without answers for each iteration.
      test: benchmark problems.
    """

    ift: list[Solution]
    eft: list[Comparison]
    heldout: list[Comparison]
    questions: list[list[Question]]
    test: list[Problem]


def templates() -> Templates:
    """The world's templates: short ones, as the models that learn them are tiny."""
    return Templates(solve=SOLVE, judge=JUDGE)


def problems(
    count: int, *, seed: int, operations: int = 3, exclude: Iterable[str] = ()
) -> list[str]:
    """Draws distinct problems, the same ones for the same arguments.

    Args:
      count: how many.
      seed: of the draw.
      operations: blocks per problem, 1 to 9; there are ``10 * 24**operations``
        different problems.
      exclude: problems that must not come out.

    Returns:
      Problem texts in random order.

    Raises:
      ValueError: if count is negative or there are not enough problems.
    """
    if not 1 <= operations <= _MOST_OPERATIONS:
        raise ValueError(f"operations={operations}; expected 1 to {_MOST_OPERATIONS}")
    space = 10 * (len(_FACTORS) * len(_ADDENDS)) ** operations
    known = set(filter(_PROBLEM.fullmatch, exclude))
    excluded = {problem for problem in known if problem.count("*") == operations}
    if not 0 <= count <= space - len(excluded):
        raise ValueError(
            f"{count} problems asked for; expected 0 to {space - len(excluded)} (there "
            f"are {space}, {len(excluded)} are excluded): use more operations"
        )
    rng = random.Random(f"last-digit programs, {operations} operations, seed {seed}")
    drawn = rng.sample(range(space), count + len(excluded))
    texts = (_problem_text(number, operations) for number in drawn)
    return [text for text in texts if text not in excluded][:count]


def solve(problem: str) -> Solved:
    """Works a problem off; ValueError if the text is no problem of this world."""
    steps = []
    while (step := _right_step(problem, steps)) is not None:
        steps.append(step)
    return Solved(tuple(steps), _STEP.fullmatch(steps[-1])["result"])


def solution(id: str, problem: str) -> Solution:
    """The solved problem as a row of instruction data; ValueError as in ``solve``."""
    return Solution(id, problem, *solve(problem))


def is_right(problem: str, steps: Sequence[str], step: str) -> bool:
    """Whether a next step is exactly right after the given steps, right or wrong.

    The running value is the result that the last step wrote, even if that is wrong.
    This is gold knowledge: only for making SFT data and for evaluation, never for
    anything that a self-rewarding stage learns from.

    Args:
      problem: problem text; ValueError if it is not of this world.
      steps: the steps so far.
      step: the next step's text, without a newline.

    Returns:
      True if right. False after a step without a readable result and after the end.
    """
    return step == _right_step(problem, steps)


def corrupt(problem: str, steps: Sequence[str], rng: random.Random) -> str:
    r"""Makes a plausible wrong next step.

    In 80 % only the result digit is changed. In 10 % the running value is miscopied, in
    10 % a factor or an addend; the result then agrees with the miscopy and differs from
    the right one. The \boxed{} of a last step agrees with the step's own result.

    Args:
      problem: problem text.
      steps: the steps so far.
      rng: source of the choices; it is advanced.

    Returns:
      The step's text.

    Raises:
      ValueError: if no next step follows, see ``is_right``.
    """
    right = _right_step(problem, steps)
    if right is None:
        raise ValueError(
            f"problem {problem!r} has no next step after {list(steps)}; expected fewer "
            "steps than operations, the last one with a result"
        )
    number, last = len(steps) + 1, "boxed" in right
    value, factor, addend = operands = _operands(right)
    result = _result(*operands)
    kind = rng.random()
    if kind < 0.8:
        wrong = rng.choice([digit for digit in range(10) if digit != result])
        return _step_text(number, operands, wrong, last)
    if kind < 0.9:
        miscopies = [(other, factor, addend) for other in range(10)]
    else:
        miscopies = [(value, other, addend) for other in _FACTORS]
        miscopies += [(value, factor, other) for other in _ADDENDS]
    miscopy = rng.choice([copy for copy in miscopies if _result(*copy) != result])
    return _step_text(number, miscopy, _result(*miscopy), last)


def comparisons(id: str, problem: str, rng: random.Random) -> list[Comparison]:
    """Compares the right step with a corrupted one at a random place of a problem.

    Args:
      id: the rows' ids are this and "-ab" or "-ba".
      problem: problem text; ValueError if it is not of this world.
      rng: picks the step's position and the corruption; it is advanced.

    Returns:
      Two rows, one per order, see ``comparison_from``.
    """
    solved = solve(problem)
    position = rng.randrange(len(solved.steps))
    steps = solved.steps[:position]
    wrong = corrupt(problem, steps, rng)
    return comparison_from(id, problem, steps, solved.steps[position], wrong)


def comparison_from(
    id: str, problem: str, steps: Sequence[str], right: str, wrong: str
) -> list[Comparison]:
    """Makes the two rows, one per order, that compare a right and a wrong step.

    The explanation copies the result digit of each candidate ("?" for one that has not
    the form of the step that is due), then works the right result out. It ends with a
    space: the verdict follows at once.

    Args:
      id: the rows' ids are this and "-ab" (the right step is A) or "-ba".
      problem: problem text.
      steps: the steps before the two candidates, right or wrong.
      right: the right next step.
      wrong: any other text, corrupted or sampled.

    Raises:
      ValueError: if ``right`` is not right, or ``wrong`` is.
    """
    expected = _right_step(problem, steps)
    if right != expected or wrong == expected:
        raise ValueError(
            f"the right step {right!r} and the wrong step {wrong!r} were given; "
            f"expected {expected!r} as the right one only"
        )
    value, factor, addend = _operands(right)
    product, result = value * factor % 10, _result(value, factor, addend)
    check = f"{value}*{factor}={product}, {product}+{addend}={result}"
    rows = []
    for order, a, b, verdict in (("ab", right, wrong, "A"), ("ba", wrong, right, "B")):
        copied = f"{_copied_result(a, right)} (A) {_copied_result(b, right)} (B)"
        text = f"Check: {copied} {check} "
        row_id = f"{id}-{order}"
        rows.append(Comparison(row_id, problem, tuple(steps), a, b, verdict, text))
    return rows


def dataset(
    *,
    seed: int,
    ift: int,
    eft: int,
    heldout: int,
    questions: Sequence[int],
    test: int,
    operations: int = 3,
) -> Dataset:
    """Makes all data of a run, disjoint as problems, the same for the same arguments.

    Args:
      seed: of all draws.
      ift: number of solutions.
      eft: number of problems to compare steps of; each gives two rows.
      heldout: the same, for measuring the judge.
      questions: number of questions of each iteration.
      test: number of benchmark problems.
      operations: blocks per problem.

    Raises:
      ValueError: if a count is negative or there are not enough problems.
    """
    counts = [ift, eft, heldout, test, *questions]
    if min(counts) < 0:
        raise ValueError(f"counts are {counts}; expected none below 0")
    drawn = iter(problems(sum(counts), seed=seed, operations=operations))

    def take(name: str, count: int) -> list[tuple[str, str]]:
        return [(f"arith-{name}-{index}", next(drawn)) for index in range(count)]

    def compare(name: str, count: int) -> list[Comparison]:
        rng = random.Random(f"last-digit programs, {name} steps, seed {seed}")
        rows = (comparisons(*item, rng) for item in take(name, count))
        return [row for both in rows for row in both]

    def ask(number: int, count: int) -> list[Question]:
        return [Question(*item) for item in take(f"q{number}", count)]

    return Dataset(
        ift=[solution(*item) for item in take("ift", ift)],
        eft=compare("eft", eft),
        heldout=compare("heldout", heldout),
        questions=[ask(*item) for item in enumerate(questions, start=1)],
        test=[Problem(*item, solve(item[1]).answer) for item in take("test", test)],
    )


def train_tokenizer(directory: str | Path) -> None:
    r"""Makes the world's tokenizer: 128 pieces, the same bytes every time.

    Its pieces are the printable ASCII characters, the newline and the world's own words
    (``"*7"``, ``"Step 1: "``, ``" [[A]]"``). There is an end-of-sequence token, but
    neither BOS nor padding. Other characters become the unknown token. Transformers
    reads the texts ``</s>`` and ``<unk>`` as those tokens, sentencepiece does not.

    Args:
      directory: folder for ``tokenizer.model`` (sentencepiece) and, with the same ids,
        ``tokenizer.json`` and ``tokenizer_config.json`` (transformers); made if absent.
    """
    import sentencepiece  # these two are needed here only
    import tokenizers

    words = [f"*{factor}" for factor in _FACTORS]
    words += [f"+{addend}" for addend in _ADDENDS]
    words += [f"Step {number}: " for number in range(1, _MOST_OPERATIONS + 1)]
    words += ["Check: ", " (A) ", " (B) ", "(A)\n", "(B)\n", ", ", "; \\boxed{"]
    words += ["[[A]]", "[[B]]", " [[A]]", " [[B]]", "\n"]
    characters = "".join(map(chr, range(ord(" "), ord("~") + 1)))
    space = "\u2581"  # how sentencepiece writes it
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(solve("8*7+4*4+2*3+1").steps),
        model_writer=model,
        model_type="bpe",  # without merges: words and characters fill the vocabulary
        vocab_size=2 + len(words) + len(characters),
        user_defined_symbols=[word.replace(" ", space) for word in words],
        required_chars=characters.replace(" ", space),
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        **{"unk_id": 0, "eos_id": 1, "bos_id": -1, "pad_id": -1},
        **{"num_threads": 1, "minloglevel": 2},
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    names = [pieces.id_to_piece(token) for token in range(pieces.vocab_size())]
    texts = {word.replace(" ", space): word for word in words}
    ids = {texts.get(name, name): token for token, name in enumerate(names)}

    fast = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab=ids, merges=[], unk_token="<unk>", fuse_unk=True)
    )
    fast.normalizer = tokenizers.normalizers.Replace(" ", space)
    fast.decoder = tokenizers.decoders.Replace(space, " ")
    fast.add_special_tokens(["<unk>", "</s>"])
    fast.add_tokens([tokenizers.AddedToken(word, normalized=False) for word in words])
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    config |= {"unk_token": "<unk>", "clean_up_tokenization_spaces": False}
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    (folder / "tokenizer.json").write_text(fast.to_str(pretty=True), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), "utf-8")


def _problem_text(number: int, operations: int) -> str:
    """The problem with this number, 0 <= number < 10 * 24**operations."""
    number, start = divmod(number, 10)
    text = str(start)
    for _ in range(operations):
        number, factor = divmod(number, len(_FACTORS))
        number, addend = divmod(number, len(_ADDENDS))
        text += f"*{_FACTORS[factor]}+{_ADDENDS[addend]}"
    return text


def _parse(problem: str) -> tuple[int, list[tuple[int, int]]]:
    """The start digit and the (factor, addend) blocks of a problem text."""
    if not _PROBLEM.fullmatch(problem):
        raise ValueError(
            f"problem {problem!r} is not of this world; expected a digit and 1 to "
            f"{_MOST_OPERATIONS} blocks like '*7+4' with factors from {_FACTORS} and "
            f"addends from {_ADDENDS}"
        )
    blocks = [(int(block[0]), int(block[2])) for block in problem.split("*")[1:]]
    return int(problem[0]), blocks


def _result(value: int, factor: int, addend: int) -> int:
    """The digit that a step with these operands comes to."""
    return (value * factor + addend) % 10


def _step_text(number: int, operands: Sequence[int], result: int, last: bool) -> str:
    """A step's text; the operands are value, factor and addend."""
    value, factor, addend = operands
    boxed = f"; \\boxed{{{result}}}" if last else ""
    return f"Step {number}: {value}*{factor}+{addend}={result}{boxed}"


def _operands(step: str) -> tuple[int, int, int]:
    """Value, factor and addend of a well-formed step."""
    match = _STEP.fullmatch(step)
    return int(match["value"]), int(match["factor"]), int(match["addend"])


def _right_step(problem: str, steps: Sequence[str]) -> str | None:
    """The right next step, None after an unreadable step or after the end."""
    value, blocks = _parse(problem)
    if len(steps) >= len(blocks):
        return None
    if steps:
        match = _STEP.fullmatch(steps[-1])
        if match is None:
            return None
        value = int(match["result"])
    number = len(steps) + 1
    operands = (value, *blocks[len(steps)])
    return _step_text(number, operands, _result(*operands), number == len(blocks))


def _copied_result(step: str, right: str) -> str:
    """The result digit that a step of the due form states, else "?"."""
    match, due = _STEP.fullmatch(step), _STEP.fullmatch(right)
    if match is None or match["number"] != due["number"]:
        return "?"
    boxed = match["result"] if due["boxed"] else None
    return match["result"] if match["boxed"] == boxed else "?"
