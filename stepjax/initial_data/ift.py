r"""Instruction fine-tuning data (IFT): worked solutions, cut into steps.

A rule cuts a solution without any teacher (`cutter.cut`), or a teacher cuts it
(`teacher_prompt`, `read_teacher_cut`). Both cuts pass the same check (`check_cut`): the
steps are the solution, word for word, and the last one holds the boxed answer
(arXiv 2503.03746, section 4.1).
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stepjax.initial_data.cutter import without_markers
from stepjax.initial_data.formats.worked import closing
from stepjax.prompts import Templates, boxed, marker, numbered
from stepjax.records import Solution, Worked


@dataclass(frozen=True)
class Rejected:
    """A worked solution that did not become IFT data.

    Attributes:
      id: id of the worked solution.
      reason: why, in the words of `check_cut`.
    """

    id: str
    reason: str


def _squeezed(text: str) -> str:
    """Returns a text without its white space."""
    return "".join(text.split())


def check_cut(original: str, steps: Sequence[str]) -> str | None:
    r"""Says why a cut is refused, whether a rule or a teacher made it.

    White space, and "Step n:" markers at the start of a step or of a line of the
    original, are not compared.

    Args:
      original: the solution.
      steps: texts of the steps, without the markers that they will get.

    Returns:
      None for a cut that may be used, else the first reason that holds:
      - "no boxed answer": the original has no closed \boxed{}, or an empty one;
      - "no steps";
      - "the boxed answer is gone": the steps have no box, or one with other contents;
      - "steps differ from the solution beyond white space";
      - "the boxed answer is cut in two";
      - "a step before the last one holds a boxed answer", where a search would end.
    """
    answer = boxed(original)
    if not (answer or "").strip():
        return "no boxed answer"
    if not any(map(str.strip, steps)):
        return "no steps"
    joined = "\n".join(steps)
    if _squeezed(boxed(joined) or "") != _squeezed(answer):
        return "the boxed answer is gone"
    if _squeezed(without_markers(joined)) != _squeezed(without_markers(original)):
        return "steps differ from the solution beyond white space"
    holders = [n for n, step in enumerate(steps, 1) if boxed(step) is not None]
    if not holders:
        return "the boxed answer is cut in two"
    if holders != [len(steps)]:
        return "a step before the last one holds a boxed answer"
    return None


def teacher_prompt(templates: Templates, worked: Worked) -> str:
    """Asks a teacher to cut a solution into steps without changing its words.

    Args:
      templates: their step marker is to begin each step.
      worked: the problem and its solution.

    Returns:
      The prompt; `read_teacher_cut` reads the answer to it.
    """
    first, second = marker(templates, 1), marker(templates, 2)
    return (
        "Cut the solution below into logical steps. Copy it word for word, from its "
        "first word to its last, and change nothing: add no words, leave none out, "
        "correct nothing, and keep every formula as it is written. Do only one thing "
        f'in a step. Begin each step on a new line with its number: "{first}", '
        f'"{second}" and so on. Keep each formula whole, with the sentence that leads '
        "to it. Nothing may follow the step with the boxed answer. Write the steps "
        "and nothing else.\n\n"
        f"Problem:\n{worked.problem.strip()}\n\n"
        f"Solution:\n{worked.solution.strip()}\n\n"
        "The same solution, cut into steps:\n"
    )


def read_teacher_cut(text: str, templates: Templates) -> list[str]:
    """Reads the steps that a teacher wrote.

    Every line that begins with a marker begins a step; the marker may be bold, as in
    "**Step 2:**". A code fence around the whole answer is dropped. Nothing else is: a
    sentence before the first step becomes a step, and `check_cut` then refuses the cut.

    Args:
      text: the teacher's answer to `teacher_prompt`.
      templates: their step marker begins each step.

    Returns:
      Texts of the steps on one line each, without markers; [] for an answer without
      markers.
    """
    lines = text.replace("\r\n", "\n").strip().split("\n")
    if len(lines) > 2 and lines[0].startswith("```") and lines[-1].strip() == "```":
        lines = lines[1:-1]
    before, _, after = templates.step.partition("{n}")
    own = re.compile(rf"\s*{re.escape(before)}\d{{1,4}}{re.escape(after.rstrip())}")
    steps: list[list[str]] = [[]]
    for line in lines:
        found = own.match(line)
        rest = line[found.end() :] if found else without_markers(line)
        if rest != line:
            steps.append([])
        steps[-1].append(rest)
    if len(steps) == 1:
        return []
    joined = (" ".join(" ".join(step).split()) for step in steps)
    return [step for step in joined if step]


def solutions(
    worked: Sequence[Worked],
    templates: Templates,
    cuts: Iterable[Sequence[str]],
    *,
    close: bool = False,
) -> tuple[list[Solution], list[Rejected]]:
    r"""Makes IFT data of worked solutions and their cuts.

    Args:
      worked: the problems and their solutions.
      templates: their step marker begins each step.
      cuts: for each worked solution the texts of its steps, without markers: what
        `cutter.cut` or `read_teacher_cut` returns.
      close: append "The answer is \boxed{N}." to the last step of a solution without
        a boxed answer, where its row states the answer N. Without it such a solution
        is rejected.

    Returns:
      (kept, rejected), together one per row. The answer of a kept solution is the
      row's, or the contents of its last box where the row states none.

    Raises:
      ValueError: the number of cuts is not the number of solutions.
    """
    cuts = list(cuts)
    if len(cuts) != len(worked):
        raise ValueError(
            f"{len(cuts)} cuts for {len(worked)} solutions; expected one cut per "
            "solution, and an empty one where there is none."
        )
    kept, rejected = [], []
    for row, pieces in zip(worked, cuts, strict=True):
        original, steps = row.solution, [" ".join(piece.split()) for piece in pieces]
        sentence = closing(row.answer)
        if close and row.answer and boxed(original) is None and any(steps):
            if boxed(sentence) == row.answer:  # not so with braces that do not match
                original = f"{original} {sentence}"
                steps[-1] = f"{steps[-1]} {sentence}".strip()
        reason = check_cut(original, steps)
        if reason:
            rejected.append(Rejected(row.id, reason))
            continue
        texts = (without_markers(step).strip() for step in steps)
        texts = [text for text in texts if text]
        answer = row.answer or boxed(texts[-1]).strip()
        kept.append(Solution(row.id, row.problem, numbered(templates, texts), answer))
    return kept, rejected


def summary(kept: Sequence[Solution], rejected: Sequence[Rejected]) -> str:
    """Describes IFT data: how many solutions were kept, and why others were not.

    Args:
      kept: the solutions.
      rejected: the rows that did not become solutions.

    Returns:
      Lines of text, each with a newline: the counts add up to the number of rows.
    """
    rows = len(kept) + len(rejected)
    lines = [f"{rows} worked solutions"]
    steps = sum(len(row.steps) for row in kept)
    size = sum(len(step) for row in kept for step in row.steps)
    mean = ""
    if kept:
        mean = (
            f", {steps / len(kept):.1f} steps per solution and "
            f"{size / steps:.0f} characters per step on average"
        )
    lines.append(f"{len(kept)} kept{mean}")
    reasons = Counter(row.reason for row in rejected)
    lines += [f"{count} rejected: {reason}" for reason, count in reasons.most_common()]
    return "".join(f"{line}\n" for line in lines)
