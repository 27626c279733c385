r"""Templates, the step format, verdicts and boxed answers (standard library only).

A solution is written as steps, each of which begins on a new line with a marker
("Step 3: "); the last one holds the final answer in \boxed{}. A judgment of two next
steps ends with a verdict, "[[A]]" or "[[B]]" (arXiv 2503.03746, sections 3 and 4).

The newline after a prompt, a step or a candidate always belongs to what comes before,
so that every response begins right after a newline.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from stepjax import verdicts

CHATS = ("none", "template")  # what goes around a prompt: see `Templates.chat`

SOLVE = r"""Solve the mathematics problem below, one logical step at a time.
Begin each step on a new line with "Step n: ", where n counts up from 1. Do only one
thing in a step, and say why it holds. Close the last step with the final answer in
\boxed{}.

Problem:
{problem}

Solution:
"""

JUDGE = """You are an impartial judge of mathematical reasoning. You are shown a \
question, the steps of a solution so far, and two candidates, A and B, for the step \
that comes next. Decide which candidate is the better next step.
Judge correctness first: are its statements and calculations true, and do they follow \
from the question and the steps so far? Then judge helpfulness: does it bring the \
solution closer to the answer?
Explain your comparison before you decide. The order in which the candidates are \
shown, their length and their names must not influence you.
End with your verdict on the last line: [[A]] if candidate A is better, [[B]] if \
candidate B is better.

[Start of question]
{problem}
[End of question]

[Start of steps so far]
{steps}
[End of steps so far]

[Start of candidate A]
{a}
[End of candidate A]

[Start of candidate B]
{b}
[End of candidate B]

Judgment:
"""

# The same for a judge that may also say that neither is better (`judge.tie`).
JUDGE_OR_TIE = JUDGE.replace(
    "candidate B is better.\n",
    "candidate B is better, [[C]] if neither is better than the other.\n",
)
SIDES = "ABC"  # what a verdict can say: A is better, B is better, or neither is


@dataclass(frozen=True)
class Templates:
    """The wordings of a run; `check_templates` says whether they can be used.

    Attributes:
      solve: prompt of the solver; holds "{problem}" and ends with a newline. The
        first step follows.
      judge: prompt of the judge; holds "{problem}", then "{steps}", "{a}" and "{b}",
        each of these three once and alone on its own line; ends with a newline. The
        explanation and the verdict follow.
      step: marker that begins step number n; holds "{n}".
      verdict: form of the verdict; holds "{side}", for which "A" or "B" is put in.
      chat: what goes around the prompts: "none", or "template" for the tokenizer's own
        chat template, whose user message each prompt then is.
    """

    solve: str = SOLVE
    judge: str = JUDGE
    step: str = "Step {n}: "
    verdict: str = "[[{side}]]"
    chat: str = "none"


class JudgePieces(NamedTuple):
    """The fixed texts of the judge's prompt for one problem.

    The whole prompt is head + "".join(step + "\\n" for step in steps) + before_a +
    a + "\\n" + between + b + "\\n" + tail.

    Attributes:
      head: from the start to where the steps begin.
      before_a: from the end of the steps to candidate A; may be empty.
      between: from the end of candidate A to candidate B; may be empty.
      tail: from the end of candidate B to the end; may be empty.
    """

    head: str
    before_a: str
    between: str
    tail: str


def check_templates(t: Templates) -> None:
    """Checks that templates follow the rules that `Templates` states.

    Args:
      t: the templates.

    Raises:
      ValueError: a prompt breaks a rule of `check_prompt`; `step` or `verdict`
        cannot tell where a step begins or which side won; or `chat` is unknown.
    """
    check_prompt("solve", t.solve)
    check_prompt("judge", t.judge, ("{steps}", "{a}", "{b}"))
    before, placeholder, after = t.step.partition("{n}")
    if not placeholder or "{n}" in after or "\n" in t.step:
        raise ValueError(
            f"template 'step' is {t.step!r}; expected one {{n}} and no newline, as in "
            "'Step {n}: '."
        )
    if not before:
        raise ValueError(
            f"template 'step' is {t.step!r}; expected some text before {{n}}, or "
            "every line that begins with a digit would begin a step."
        )
    if not after or after[0].isdigit():
        raise ValueError(
            f"template 'step' is {t.step!r}; expected text that is no digit after "
            "{n}, or step 1 would be mistaken for step 12."
        )
    if t.verdict.count("{side}") != 1:
        raise ValueError(
            f"template 'verdict' is {t.verdict!r}; expected one {{side}}, as in "
            "'[[{side}]]'."
        )
    if t.chat not in CHATS:
        raise ValueError(f"prompts.chat={t.chat!r}; expected one of {CHATS}.")


def check_prompt(name: str, text: str, placeholders: Sequence[str] = ()) -> None:
    """Checks the template of a prompt.

    Args:
      name: of the template, for the message.
      text: the template; holds "{problem}" and ends with a newline.
      placeholders: what it holds after "{problem}", in this order, each once and alone
        on its own line.

    Raises:
      ValueError: a placeholder is missing, repeated or out of order, or is not alone
        on its own line; or the text does not end with a newline.
    """
    if "{problem}" not in text:
        raise ValueError(
            f"template {name!r} has no {{problem}}; expected it where the text "
            "of the problem goes."
        )
    if not text.endswith("\n"):
        raise ValueError(
            f"template {name!r} ends with {text[-20:]!r}; expected a newline at "
            "its end, since the response starts on a line of its own."
        )
    places = [text.find("{problem}")]
    lines = text.split("\n")
    for placeholder in placeholders:
        if text.count(placeholder) != 1 or lines.count(placeholder) != 1:
            raise ValueError(
                f"template {name!r} has {placeholder} {text.count(placeholder)} "
                f"times, {lines.count(placeholder)} of them alone on a line; expected "
                "it once, alone on its own line."
            )
        places.append(text.find(placeholder))
    if places != sorted(places):
        order = ", then ".join(("{problem}", *placeholders))
        raise ValueError(
            f"template {name!r} has its placeholders out of order; expected {order}."
        )


def solve_prompt(t: Templates, problem: str) -> str:
    """Renders the solver's prompt.

    Args:
      t: the templates.
      problem: text of the problem; put in as it is, braces and all.

    Returns:
      The prompt, with a newline at its end. Step 1 follows.
    """
    return t.solve.replace("{problem}", problem)


def judge_pieces(t: Templates, problem: str) -> JudgePieces:
    """Cuts the judge's prompt for one problem where steps and candidates go.

    The newline that ends a placeholder's own line is dropped: steps and candidates
    bring their own. Each piece is therefore empty or ends with a newline.

    Args:
      t: the templates.
      problem: text of the problem; put in as it is, so a problem that holds "{a}"
        keeps it.

    Returns:
      The pieces; `JudgePieces` says how they make up the prompt.

    Raises:
      ValueError: the templates break a rule of `check_templates`.
    """
    check_templates(t)
    pieces = re.split(r"^\{(?:steps|a|b)\}\n", t.judge, flags=re.MULTILINE)
    return JudgePieces(*(piece.replace("{problem}", problem) for piece in pieces))


def marker(t: Templates, n: int) -> str:
    """Gives the text that begins step number n, for example "Step 3: ".

    Args:
      t: the templates.
      n: number of the step, from 1.

    Returns:
      The marker.

    Raises:
      ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"step number is {n}; expected 1 or more.")
    return t.step.replace("{n}", str(n))


def numbered(t: Templates, texts: Iterable[str]) -> tuple[str, ...]:
    """Puts the markers "Step 1: ", "Step 2: ", ... before the texts of steps.

    Args:
      t: the templates.
      texts: of the steps, without markers.
    """
    return tuple(marker(t, n) + text for n, text in enumerate(texts, 1))


def verdict(t: Templates, side: Literal["A", "B", "C"]) -> str:
    """Gives the text of a verdict, for example "[[A]]".

    Args:
      t: the templates.
      side: the better candidate, or "C" for neither.

    Returns:
      The text that ends a judgment.

    Raises:
      ValueError: side is none of these.
    """
    if side not in tuple(SIDES):
        raise ValueError(f"side is {side!r}; expected 'A', 'B' or 'C'.")
    return t.verdict.replace("{side}", side)


def held_verdict(t: Templates, text: str) -> str:
    """Finds a verdict in the exact form of the templates, in a text that is judged.

    A step with one is no step: the model has slipped into judging, and a judgment that
    quotes the step would seem to decide for it. Nothing is looked for where the form is
    the letter alone or with one more character ("{side}."), as a step may say "A." for
    other reasons.

    Returns:
      The verdict, or "" for none.
    """
    if len(t.verdict.replace("{side}", "").strip()) < 2:
        return ""
    return next((v for v in (verdict(t, side) for side in SIDES) if v in text), "")


def step_stops(t: Templates) -> tuple[str, ...]:
    r"""Gives the strings that end a step: the beginnings of the next one.

    Args:
      t: the templates.

    Returns:
      Nine strings, for example "\nStep 1" ... "\nStep 9": the next marker up to the
      first digit of its number (which is never 0).
    """
    before = t.step.partition("{n}")[0]
    return tuple(f"\n{before}{digit}" for digit in range(1, 10))


def check_steps(t: Templates, steps: Sequence[str]) -> None:
    """Checks that steps are written in the step format.

    Args:
      t: the templates.
      steps: texts of the steps, from step 1 on; may be empty.

    Raises:
      ValueError: a step does not begin with its own marker, has nothing after it,
        ends with a newline, or holds the beginning of a further step.
    """
    stops = step_stops(t)
    for number, step in enumerate(steps, 1):
        expected = marker(t, number)
        if not step.startswith(expected):
            raise ValueError(
                f"step {number} begins with {step[:40]!r}; expected the marker "
                f"{expected!r}."
            )
        if not step[len(expected) :].strip():
            raise ValueError(
                f"step {number} has nothing after its marker {expected!r}; expected "
                "the text of the step."
            )
        if step.endswith("\n"):
            raise ValueError(
                f"step {number} ({expected!r}) ends with a newline; expected none, "
                "since the newline between steps is not part of a step."
            )
        if any(stop in step for stop in stops):
            raise ValueError(
                f"step {number} ({expected!r}) holds a line that begins like another "
                "step; expected one step. Cut the text there."
            )


def split_steps(t: Templates, text: str) -> list[str]:
    r"""Cuts the text of a solution into its steps.

    Every line that begins like a step ("Step 2") begins one, exactly as in sampling;
    other lines belong to the step above them.

    Args:
      t: the templates.
      text: the solution; begins with the marker of step 1.

    Returns:
      Texts of the steps, each from its marker on, without newlines at its end.

    Raises:
      ValueError: the text does not begin with step 1, the numbers have a gap, or a
        step is empty.
    """
    before = t.step.partition("{n}")[0]
    pieces = re.split(rf"\n(?={re.escape(before)}[1-9])", text)
    steps = [piece.rstrip("\n") for piece in pieces]
    check_steps(t, steps)
    return steps


def boxed(text: str) -> str | None:
    r"""Finds the contents of the last closed \boxed{...}.

    Nested braces are matched; \{ and \} count as text. Where a box holds another box,
    the inner one is taken. A form without braces, as in "\boxed 7", is no box.

    Args:
      text: any text; reading it takes time in proportion to its length.

    Returns:
      The contents as they are, or None when no box is closed.

    Example:
      >>> boxed(r"\boxed{1}, so \boxed{\frac{1}{2}} and \boxed{unfinished")
      '\\frac{1}{2}'
    """
    contents = None
    last_start = -1
    opened: list[int | None] = []  # where a box's contents start; None: another brace
    token = r"\\boxed\{|\\\\(?!boxed\{)|\\[{}]|[{}]"
    for match in re.finditer(token, text):
        if match[0] == r"\boxed{":
            opened.append(match.end())
        elif match[0] == "{":
            opened.append(None)
        elif match[0] == "}" and opened:
            start = opened.pop()
            if start is not None and start > last_start:
                contents, last_start = text[start : match.start()], start
    return contents


def parse_verdict(
    t: Templates, text: str, sides: str = "AB"
) -> Literal["A", "B", "C"] | None:
    """Reads the verdict of a judgment: the last one that it gives.

    A verdict in an echo of the prompt or in a quotation, with a condition, as one of
    several choices, asked or refused is not given; `stepjax.verdicts` has the grammar.

    Args:
      t: the templates.
      text: what the judge wrote.
      sides: the verdicts that count, "AB" or "ABC".

    Returns:
      One of the sides, or None when no verdict is given.

    Example:
      >>> parse_verdict(Templates(), "I write [[A]] if A is better. **[[ B ]]**, then.")
      'B'
    """
    found = find_verdict(t, text, sides)
    return None if found is None else found.side


def find_verdict(t: Templates, text: str, sides: str = "AB") -> verdicts.Mark | None:
    """Finds the verdict of `parse_verdict`, with its place in the text."""
    return verdicts.find(t.verdict, t.judge, text, sides)
