r"""Where a judgment gives its verdict: a grammar (standard library only).

A *mark* is a verdict as the templates write it, "[[A]]", with blanks or emphasis
around its letter at most: "[[ A ]]", "[[**A**]]". `find` takes the last mark that the
judge gives. It only mentions a mark that

- stands in an echo of the prompt: in a line of it that names two sides, or between the
  lines that frame the question, the steps or a candidate there; behind a first line in
  [ ] or < >, also where the second line lacks;
- stands in a line that begins with ">", or in a quotation, in quotation marks or
  backticks. A mark that is alone in them, "`[[A]]`", is given where only punctuation
  follows to the end of the text;
- has a condition: "if", "when", "whenever", "unless", "in case", "otherwise", "means",
  "stands for" or "=" comes right behind it ("[[A]] if candidate A is better"), or its
  sentence begins with one of "if", "when", "whenever", "unless" and "in case", or has
  "otherwise", ", else" or "or else" before it;
- is one of several choices: only "or", "and", "vs", "versus", a comma, a slash or a bar
  between two marks of different sides ("[[A]] or [[B]]");
- is asked or refused: "?" comes right behind it, or one of "not", "n't", "not be",
  "than", "over", "instead of", "superior to", "preferred to" and "preferable to" right
  before it ("[[B]], not [[A]]"), or "prefer", a side and "to" ("I prefer [[B]] to
  [[A]]"), or only ">" stands between it and another mark ("[[B]] > [[A]]").

Emphasis and other text around a mark change nothing: "**[[A]]**", "Verdict: [[A]].",
"[[A]] because B divides by 0". Everything else is no mark: another letter, "[[a]]",
"[A]", or a form of other templates, such as "\boxed{A}".

A sentence ends at a line's end, and at ".", "!" or "?" before white space. Reading
takes time in proportion to the length of the text.

A judgment that a model of ours writes ends on the device right behind the first mark
that is written exactly as in the templates (`self_judge`). What would have made it a
mere mention must then stand before it.
"""

import bisect
import re
from typing import NamedTuple

_AROUND = r"[*_~ \t]*"  # emphasis and blanks
_CONDITION = r"if|when|whenever|unless|in case"
_SENTENCE = re.compile(r"\n|[.!?][*_\"'”`)]*\s")
_OPENS_WITH_CONDITION = re.compile(rf"\W*(?:{_CONDITION})\b", re.IGNORECASE)
_HOLDS_ELSE = re.compile(r"\botherwise\b|(?:[,;]\s*|\bor\s+)else\b", re.IGNORECASE)
_CONDITION_BEHIND = re.compile(
    r"[*_~\"'”’`]*\?|[*_~\"'”’`,:( \t]*"
    rf"(?:=|(?:(?:only )?(?:{_CONDITION})|otherwise|means|stands for)\b)",
    re.IGNORECASE,
)
_REFUSED = re.compile(
    r"\b(?:(?:(?:can)?not|(?:is|was|could|would|should|do|does|ca)n['’]t)(?: be)?"
    r"|(?:than|over|instead of|(?:superior|preferred|preferable) to)"
    r"|prefer\W{1,8}[ABC]\W{1,8}to)[*_~\"'“‘`: \t]*\Z",
    re.IGNORECASE,
)
_WORSE = re.compile(rf"{_AROUND}>{{1,2}}{_AROUND}")  # between the better and the worse
_JOINS = re.compile(
    r"[*_~\"'“”‘’`\s]*(?:,?\s*\b(?:or|and|vs\.?|versus)\b|[,/|])[*_~\"'“”‘’`\s]*",
    re.IGNORECASE,
)
_QUOTATION = re.compile(r"\"[^\"\n]*\"|“[^“”\n]*”|‘[^‘’\n]*’|`[^`\n]*`")
_WORD = re.compile(r"\w")
_NEAR = 40  # characters around a mark in which words about it are looked for


class Mark(NamedTuple):
    """A verdict in a text.

    Attributes:
      side: "A", "B" or "C".
      start: of its first character.
      end: behind its last character.
    """

    side: str
    start: int
    end: int


def marks(form: str, text: str, sides: str = "AB") -> list[Mark]:
    """Returns all verdicts in a text, also those that are only mentioned.

    Args:
      form: of a verdict; holds "{side}" once.
      text: any text.
      sides: the letters that count.
    """
    before, _, after = form.partition("{side}")
    # A form that begins or ends with its letter has it as a whole word.
    opening = rf"{re.escape(before.rstrip())}{_gap(before)}" if before else r"(?<!\w)"
    closing = rf"{_AROUND}{re.escape(after.lstrip())}" if after.strip() else r"(?!\w)"
    found = re.finditer(rf"{opening}([{sides}]){closing}", text)
    return [Mark(match[1], *match.span()) for match in found]


def _gap(before: str) -> str:
    """Returns what may stand before the letter; a blank of the form is required."""
    return rf"[ \t]{_AROUND}" if before != before.rstrip() else _AROUND


def find(form: str, prompt: str, text: str, sides: str = "AB") -> Mark | None:
    """Finds the verdict that a judgment gives; the module says which one that is.

    Args:
      form: of a verdict; holds "{side}" once.
      prompt: template of the judge, whose echoes do not count.
      text: what the judge wrote.
      sides: the verdicts that count, "AB" or "ABC".

    Returns:
      The last given verdict, or None when none is given.
    """
    every = marks(form, text, sides)
    if not every:
        return None
    listed = _listed(every, text)
    hidden = bytearray(len(text))
    for start, end in _echoes(form, prompt, text) + _lines_of_quotation(text):
        hidden[start:end] = b"\1" * (end - start)
    quotations = [match.span() for match in _QUOTATION.finditer(text)]
    for number in reversed(range(len(every))):
        mark = every[number]
        if number in listed or hidden[mark.start]:
            continue
        if number and _WORSE.fullmatch(text, every[number - 1].end, mark.start):
            continue
        if _is_quoted(mark, quotations, text) or _is_conditional(mark, text):
            continue
        return mark
    return None


def _listed(every: list[Mark], text: str) -> set[int]:
    """Returns the numbers of the marks that are one of several choices."""
    found: set[int] = set()
    for number, (one, other) in enumerate(zip(every, every[1:], strict=False)):
        between = text[one.end : other.start]
        if one.side != other.side and len(between) <= _NEAR:
            if _JOINS.fullmatch(between):
                found |= {number, number + 1}
    return found


def _echoes(form: str, prompt: str, text: str) -> list[tuple[int, int]]:
    """Returns where a text repeats the prompt, as (start, end)."""
    lines = prompt.splitlines()
    spans = []
    for line in lines:
        if len({mark.side for mark in marks(form, line, "ABC")}) > 1:
            found = re.finditer(re.escape(line.strip()), text)
            spans += [match.span() for match in found]
    for number in range(1, len(lines) - 1):
        if re.fullmatch(r"\{\w+\}", lines[number]):
            opened, closed = lines[number - 1].strip(), lines[number + 1].strip()
            if _WORD.search(opened) and _WORD.search(closed):
                spans += _framed(opened, closed, text)
    return spans


def _framed(opened: str, closed: str, text: str) -> list[tuple[int, int]]:
    """Returns where a text repeats two lines of the prompt and what is between them."""
    spans, at, is_tag = [], 0, opened[0] in "[<" and opened[-1] in "]>"
    first = re.compile(rf"^[ \t]*{re.escape(opened)}[ \t]*$", re.MULTILINE)
    last = re.compile(rf"^[ \t]*{re.escape(closed)}[ \t]*$", re.MULTILINE)
    while start := first.search(text, at):
        end = last.search(text, start.end())
        if not end and not is_tag:
            break
        at = end.end() if end else len(text)
        spans.append((start.start(), at))
    return spans


def _lines_of_quotation(text: str) -> list[tuple[int, int]]:
    return [m.span() for m in re.finditer(r"^[ \t]*>.*$", text, re.MULTILINE)]


def _is_quoted(mark: Mark, quotations: list[tuple[int, int]], text: str) -> bool:
    """Whether a mark stands in a quotation and is not the end of the text."""
    number = bisect.bisect(quotations, (mark.start, 0)) - 1
    if number < 0 or quotations[number][1] <= mark.start:
        return False
    start, end = quotations[number]
    around = text[start : mark.start] + text[mark.end : end]
    return bool(_WORD.search(around) or _WORD.search(text, end))


def _is_conditional(mark: Mark, text: str) -> bool:
    """Whether a mark has a condition, or is asked or refused."""
    if _CONDITION_BEHIND.match(text[mark.end : mark.end + _NEAR]):
        return True
    if _REFUSED.search(text[max(mark.start - _NEAR, 0) : mark.start]):
        return True
    start = max(mark.start - 500, 0)
    ends = [match.end() for match in _SENTENCE.finditer(text, start, mark.start)]
    sentence = text[ends[-1] if ends else start : mark.start]
    return bool(_OPENS_WITH_CONDITION.match(sentence) or _HOLDS_ELSE.search(sentence))
