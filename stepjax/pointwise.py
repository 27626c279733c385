"""Judging each next step alone: `judge.score` = "pointwise", an ablation.

The paper compares every two candidates, w (w - 1) calls for w of them. Here each one is
shown alone, and the judge says whether it is right: w calls. The verdicts keep their
form. "A" accepts the step and "B" rejects it.

The EFT rows are the same comparisons: of each row the judge learns to judge the step
that is shown first. What it says about it comes from `Appraise`.
"""

import re
from collections.abc import Callable, Sequence

from stepjax import prompts
from stepjax.codec import Codec
from stepjax.judge import VALUES, Call, Judgments, Request, majority, preference
from stepjax.prompts import Templates
from stepjax.records import Comparison
from stepjax.trajectory import Verdict

SCORE = "pointwise"  # value of `judge.score`
RIGHT = 0.5  # a score below it says that the step is wrong

SINGLE = """You are an impartial judge of mathematical reasoning. You are shown a \
question, the steps of a solution so far, and a candidate for the step that comes next.
Decide whether the candidate is right: are its statements and calculations true, and \
do they follow from the question and the steps so far?
Explain before you decide. The length of the candidate must not influence you.
End with your verdict on the last line: [[A]] if the candidate is right, [[B]] if it \
is wrong.

[Start of question]
{problem}
[End of question]

[Start of steps so far]
{steps}
[End of steps so far]

[Start of candidate]
{step}
[End of candidate]

Judgment:
"""

# A comparison → ("A" if the step that it shows first is right, else "B", explanation).
Appraise = Callable[[Comparison], tuple[str, str]]


def stated(row: Comparison) -> tuple[str, str]:
    """Appraises the first step of a comparison by its verdict alone.

    The better step counts as right and the other one as wrong. The explanation is left
    out, because it compares two steps.
    """
    return row.verdict, ""


def appraisals(
    template: str = SINGLE, value: str = "hard", appraise: Appraise = stated
) -> Judgments:
    """Returns the judgments that judge each next step alone.

    A call of candidate i is (i, i). Score_i is 1 if the judge accepts it, 0 if it
    rejects it, or the share of several explanations that accept it. With
    ``value="probability"`` it is the mean probability of "A". It is None where no
    verdict was read.

    Args:
      template: prompt of the judge; holds "{problem}", then "{steps}" and "{step}",
        each once and alone on its own line; ends with a newline.
      value: what a verdict counts, one of `judge.VALUES`.
      appraise: what the judge learns from an EFT row.

    Raises:
      ValueError: for a template that breaks a rule, or an unknown value.
    """
    prompts.check_prompt("single", template, ("{steps}", "{step}"))
    if value not in VALUES:
        raise ValueError(f"judge.value={value!r}; expected one of {VALUES}.")
    pieces = re.split(r"^\{(?:steps|step)\}\n", template, flags=re.MULTILINE)
    head, before, tail = (pieces[0], *(p.replace("{problem}", "") for p in pieces[1:]))

    def context(
        codec: Codec, problem: str, steps: Sequence[Sequence[int]]
    ) -> tuple[int, ...]:
        return sum(map(codec.as_line, steps), codec.opening(head, problem))

    def ask(codec: Codec, step: Sequence[int]) -> tuple[int, ...]:
        opened = codec.middle(before)
        return opened + codec.as_line(step) + codec.closing(tail)

    def question(codec: Codec, request: Request, call: Call) -> tuple[int, ...]:
        return ask(codec, request.candidates[call[0]])

    def example(codec: Codec, row: Comparison):
        prompts.check_steps(codec.templates, row.steps)
        side, explanation = appraise(row)
        verdict = prompts.verdict(codec.templates, side)
        prompt = context(codec, row.problem, list(map(codec.step, row.steps)))
        response = codec.line(explanation + verdict)
        response = (*response, codec.tokenizer.eos_id)
        return prompt + ask(codec, codec.step(row.a)), response, verdict

    def held_out(codec: Codec, row: Comparison):
        steps = tuple(map(codec.step, row.steps))
        return steps, (codec.step(row.a),), appraise(row)[0]

    def scores(count: int, verdicts: Sequence[Verdict]) -> list[float | None]:
        found: list[list[float]] = [[] for _ in range(count)]
        for verdict in verdicts:
            p = preference(verdict)
            if p is not None:
                found[verdict.a].append(p)
        return [round(sum(own) / len(own), 6) if own else None for own in found]

    return Judgments(
        record=Comparison,
        example=example,
        held_out=held_out,
        context=context,
        question=question,
        ends=_ends,
        parse=prompts.parse_verdict,
        calls=_one_call_each,
        scores=scores,
        graded=graded,
    )


def prompt_text(
    template: str, problem: str, steps: Sequence[str], candidate: str
) -> str:
    """Returns the prompt of one judgment as text, for a server that judges.

    Args:
      template: see `appraisals`.
      problem: text of the problem.
      steps: texts of the steps so far.
      candidate: text of the next step that is judged.
    """
    pieces = re.split(r"^\{(?:steps|step)\}\n", template, flags=re.MULTILINE)
    head, before, tail = (piece.replace("{problem}", problem) for piece in pieces)
    so_far = "".join(f"{step}\n" for step in steps)
    return f"{head}{so_far}{before}{candidate}\n{tail}"


def _ends(templates: Templates) -> tuple[str, ...]:
    return tuple(prompts.verdict(templates, side) for side in "AB")


def _one_call_each(count: int, seed: Sequence[int]) -> list[Call]:
    del seed  # nothing is drawn
    return [(i, i) for i in range(count)]


def graded(verdicts: Sequence[Verdict], right: Sequence[bool]) -> list[bool]:
    """Returns whether the judge was right about each candidate that it judged.

    Args:
      verdicts: the calls; an unparsed one is wrong.
      right: whether each candidate is right.
    """
    said = {"A": True, "B": False}
    return [said.get(v.winner) == right[v.a] for v in majority(verdicts)]
