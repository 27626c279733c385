"""Self-Rewarding Language Models (arXiv 2401.10020), the baseline without steps.

The same loop on whole solutions: a candidate is a solution, and the model rates each
one alone, with a digit, instead of comparing steps in pairs. Everything that is
different from the paper's method is here, and `judge.kind` = "ratings" chooses it:
`SOLUTION` says what a candidate is, `ratings` what the judge is asked and how its
answers count, `Rating` is a row of EFT data.
"""

import dataclasses
import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

from stepjax import prompts
from stepjax.codec import Codec
from stepjax.judge import Call, Judgments, Request
from stepjax.propose import Unit
from stepjax.trajectory import NO_MARKER, OTHER, Verdict

RATE = """You are an impartial judge of mathematical reasoning. You are shown a \
question and a solution. Rate the solution from 0 to 5: give one point for each of the \
following that holds.
- It answers the question that was asked.
- Its plan can lead to the answer.
- Its first half has no mistake.
- Its second half has no mistake.
- Its final answer is right.
Explain every point that you give or withhold before you rate. End with your rating on \
the last line, for example: Score: 3

[Start of question]
{problem}
[End of question]

[Start of solution]
{solution}
[End of solution]

Judgment:
"""


class Texts(NamedTuple):
    """The wordings of ratings; `check_texts` says whether they can be used.

    Attributes:
      rate: prompt of the judge; holds "{problem}", then "{solution}" once and alone on
        its own line; ends with a newline. The explanation and the rating follow.
      rating: form of a rating; ends with "{score}", for which one digit is put in.
    """

    rate: str = RATE
    rating: str = "Score: {score}"


@dataclasses.dataclass(frozen=True)
class Rating:
    """One row of EFT data of whole solutions.

    Attributes:
      id: name of the row, unique in its file.
      problem: text of the problem.
      steps: texts of the solution's steps, each from its marker on.
      score: what the solution gets, one digit.
      explanation: what the judge says before the score.

    Raises:
      ValueError: the score is not a digit.
    """

    id: str
    problem: str
    steps: tuple[str, ...]
    score: int
    explanation: str = ""

    def __post_init__(self):
        if type(self.score) is not int or not 0 <= self.score <= 9:
            raise ValueError(f"field 'score' is {self.score!r}; expected 0 to 9.")


def check_texts(texts: Texts) -> None:
    """Checks that the wordings follow the rules that `Texts` states.

    Raises:
      ValueError: a placeholder is missing, repeated or out of order, or is not alone
        on its own line; the prompt does not end with a newline; or `rating` does not
        end with the digit.
    """
    prompts.check_prompt("rate", texts.rate, ("{solution}",))
    before, placeholder, after = texts.rating.partition("{score}")
    if not before or not placeholder or after.strip("]})"):
        raise ValueError(
            f"template 'rating' is {texts.rating!r}; expected some text and then "
            "{score} (closing brackets may follow), as in 'Score: {score}'."
        )


def write_rating(texts: Texts, score: int) -> str:
    """Returns the text of a rating, for example "Score: 3".

    Raises:
      ValueError: score is not 0 to 9.
    """
    if not 0 <= score <= 9:
        raise ValueError(f"score is {score}; expected 0 to 9.")
    return texts.rating.replace("{score}", str(score))


def read_rating(texts: Texts, judgment: str) -> int | None:
    """Returns the last rating of a judgment, 0 to 9, or None when it has none.

    A longer number, such as "13" or "3.5", is no rating, and neither is "-3".
    """
    before, _, after = texts.rating.partition("{score}")
    number = rf"{re.escape(before)}([+-]?\d+(?:[.,]\d+)?){re.escape(after)}"
    found = re.findall(number, judgment)
    return int(found[-1]) if found and re.fullmatch(r"[0-9]", found[-1]) else None


def _no_stops(templates: prompts.Templates) -> tuple[str, ...]:
    del templates  # only EOS ends a solution
    return ()


def _solution_fault(templates: prompts.Templates, number: int, text: str) -> str | None:
    """A solution can be cut into steps and holds a closed box."""
    del number  # a solution begins with step 1
    try:
        prompts.split_steps(templates, text)
    except ValueError:
        return NO_MARKER
    return OTHER if prompts.boxed(text) is None else None


SOLUTION = Unit(_no_stops, _solution_fault)


def ratings(texts: Texts) -> Judgments:
    """Returns the kind of judgment that rates each solution alone.

    A call of candidate i is (i, i), and the winner of its verdict is the digit.

    Args:
      texts: the wordings.

    Raises:
      ValueError: for wordings that break a rule of `check_texts`.
    """
    check_texts(texts)
    head, tail = re.split(r"^\{solution\}\n", texts.rate, flags=re.MULTILINE)
    tail = tail.replace("{problem}", "")

    def context(
        codec: Codec, problem: str, steps: Sequence[Sequence[int]]
    ) -> tuple[int, ...]:
        del steps  # a solution follows the problem alone
        return codec.opening(head, problem)

    def rate(codec: Codec, solution: Sequence[int]) -> tuple[int, ...]:
        return codec.as_line(solution) + codec.closing(tail)

    def question(codec: Codec, request: Request, call: Call) -> tuple[int, ...]:
        return rate(codec, request.candidates[call[0]])

    def example(codec: Codec, row: Rating):
        prompts.check_steps(codec.templates, row.steps)
        solution = sum((codec.line(text + "\n") for text in row.steps), ())
        digit = write_rating(texts, row.score)
        response = (*codec.line(row.explanation + digit), codec.tokenizer.eos_id)
        prompt = context(codec, row.problem, ()) + rate(codec, solution)
        return prompt, response, digit

    def ends(templates: prompts.Templates) -> tuple[str, ...]:
        del templates
        return tuple(write_rating(texts, n) for n in range(10))

    def parse(templates: prompts.Templates, judgment: str) -> str | None:
        del templates
        digit = read_rating(texts, judgment)
        return None if digit is None else str(digit)

    return Judgments(
        record=Rating,
        example=example,
        held_out=_held_out,
        context=context,
        question=question,
        ends=ends,
        parse=parse,
        calls=_one_call_each,
        scores=scores,
        graded=graded,
    )


def _held_out(codec: Codec, row: Rating):
    solution = sum((codec.step(text) for text in row.steps), ())
    return (), (solution,), str(row.score)


def _one_call_each(count: int, seed: Sequence[int]) -> list[Call]:
    del seed  # nothing is drawn
    return [(i, i) for i in range(count)]


def scores(count: int, verdicts: Sequence[Verdict]) -> list[int | None]:
    """Returns the rating of each candidate, None where it could not be read."""
    given = {v.a: int(v.winner) for v in verdicts if v.winner is not None}
    return [given.get(i) for i in range(count)]


def graded(verdicts: Sequence[Verdict], right: Sequence[bool]) -> list[bool]:
    """Returns whether the right solution of each right and wrong pair is rated higher.

    A rating that could not be read counts as lower than 0.

    Args:
      verdicts: the ratings.
      right: whether each candidate is right.
    """
    given = [-1 if s is None else s for s in scores(len(right), verdicts)]
    both = itertools.permutations(range(len(right)), 2)
    return [given[i] > given[j] for i, j in both if right[i] and not right[j]]
