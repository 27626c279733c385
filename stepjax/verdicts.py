r"""Where a judgment gives its verdict: a grammar (standard library only).

A *mark* is a verdict as the templates write it, "[[A]]", with blanks or emphasis
around its letter at most: "[[ A ]]", "[[**A**]]". Its square brackets may be escaped,
as in Markdown: "\[\[A\]\]". `find` takes the last mark that the judge gives. It only
mentions a mark that

- stands in a thought: the text from <think> to </think>. If the judge never writes
  </think>, all text after <think> is thought. If the prompt ended with <think>, all
  text before </think> is thought;
- stands in an echo of the prompt: in a line of it that names two sides, or between the
  lines that frame the question, the steps or a candidate there; behind a first line in
  [ ] or < >, also where the second line lacks;
- stands in a line that begins with ">", or in a quotation, in quotation marks or
  backticks. A mark that is alone in them, "`[[A]]`", is given where only punctuation
  follows to the end of the text;
- has a condition, see below;
- is one of several choices: only "or", "and", "vs", "versus", a comma, a slash or a bar
  between two marks of different sides ("[[A]] or [[B]]");
- is asked or refused: "?" comes right behind it, or one of "not", "n't", "not be",
  "than", "over", "instead of", "superior to", "preferred to" and "preferable to" right
  before it ("[[B]], not [[A]]"), or "prefer", a side and "to" ("I prefer [[B]] to
  [[A]]"), or only ">" stands between it and another mark ("[[B]] > [[A]]").

Emphasis and other text around a mark change nothing: "**[[A]]**", "Verdict: [[A]].",
"[[A]] because B divides by 0". Everything else is no mark: another letter, "[[a]]",
"[A]", or a form of other templates, such as "\boxed{A}".

A mark has a condition where

- the text explains the mark: right behind it comes "means", "stands for" or "=", as in
  "[[A]] means that candidate A is better";
- a word of a condition comes right behind it: "if", "when", "whenever", "unless" or "in
  case" ("[[A]] if candidate A is better");
- its sentence begins with a word of a condition, perhaps behind "so", "now", "then",
  "well", "and" or "but", and the text up to the next comma is about a side ("if A
  divides by 0, ...", "when the first one ...") or says how one is ("better", "right",
  "equal", ...). Other conditions count only where a mark of another side beside it has
  one too ("If x is 5, [[A]]. If x is 6, [[B]].");
- "otherwise", ", else" or "or else" stands before it in its sentence, and what happens
  otherwise does not end before it, at ")", ", so" or ", hence" ("B must hold, otherwise
  2 = 3, so [[B]]");
- "otherwise" comes right behind it, and then nothing, just a side, or another mark in
  the same sentence ("[[A]], otherwise [[B]]").

"If we compare both steps", "when I check A" and "when A and B are checked" only say
that somebody looks, and are no conditions.

A sentence ends at a line's end, and at ".", "!" or "?" before white space. Reading
takes time in proportion to the length of the text.

A judgment that a model of ours writes ends on the device right behind the first mark
that is written exactly as in the templates (`self_judge`). What would have made it a
mere mention must then stand before it; where that is <think>, there is no verdict.
"""

import bisect
import re
from typing import NamedTuple

_AROUND = r"[*_~ \t]*"  # emphasis and blanks
_THOUGHT = re.compile(r"<(/?)think(?:ing)?>", re.IGNORECASE)
_SENTENCE = re.compile(r"\n|[.!?][*_\"'”`)]*\s")
_CONDITION = r"\b(?:if|when|whenever|unless|in case)\b"
_OPENS_WITH_CONDITION = re.compile(
    rf"\W*(?:(?:so|now|then|well|and|but)\b\W*)?{_CONDITION}", re.IGNORECASE
)
_CONDITION_BEHIND = re.compile(
    rf"[*_~\"'”’`,:( \t]*(?:only )?{_CONDITION}", re.IGNORECASE
)
_EXPLAINED = re.compile(
    r"[*_~\"'”’`]*\?|[*_~\"'”’`,:( \t]*(?:=|(?:means|stands for)\b)", re.IGNORECASE
)
# A condition up to its comma. ", and" goes on; "If, as said, A ..." is taken whole.
_CLAUSE = re.compile(
    r"\s*,.*|.*?(?=[,;:](?!\s*(?:and|or|but)\b)|\bthen\b|\Z)", re.IGNORECASE | re.DOTALL
)
_LOOK = r"check|consider|look|read"
_LOOKS = re.compile(
    r"\W*(?:(?:I|we|you)\s+(?:\w+\s+)?)?"
    rf"(?:(?:{_LOOK}|weigh)(?:ing)?|(?:compar|examin|evaluat)(?:e|ing)|verify(?:ing)?)\b"
    rf"|.*\bare\s+(?:\w+\s+)?(?:(?:{_LOOK}|weigh|compar|examin|evaluat|verifi)(?:ed)?)\b",
    re.IGNORECASE | re.DOTALL,
)
_OF_A_SIDE = re.compile(
    r"\b(?:candidate|(?<!by )step(?! by)|first|second|former|latter|n?either"
    r"|(?<!pick )(?<!choose )(?<!select )one)\b|(?-i:(?<![^\W_])[ABC](?![^\W_]))",
    re.IGNORECASE,
)
_HOW_ONE_IS = re.compile(
    r"\b(?:better|best|worse|worst|good|bad|right(?!-hand| hand| side)|wrong|true|false"
    r"|(?:in)?(?:correct|valid)|equal(?:ly)?|same|ties?|tied|wins?|prefer(?:s|red|able)?"
    r"|errors?|mistakes?|holds?|works?|fails?|checks out)\b",
    re.IGNORECASE,
)
_ELSE = re.compile(r"\botherwise\b|(?:[,;]\s*|\bor\s+)else\b", re.IGNORECASE)
_ELSE_IS_OVER = re.compile(
    r"\)|[,;]\s*(?:and\s+)?(?:so|hence|thus|therefore)\b(?! that)", re.IGNORECASE
)
_OTHERWISE_BEHIND = re.compile(
    r"[*_~\"'”’`,;:( \t]*(?:and )?otherwise\b", re.IGNORECASE
)
_A_SIDE_AT_MOST = re.compile(r"\W*(?:(?:[Cc]andidate\s+)?[ABC]\W*)?")
_BETWEEN_CONDITIONS = re.compile(rf"{_CONDITION}|\b(?:otherwise|else)\b", re.IGNORECASE)
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
_FAR = 500  # characters around a mark in which its sentence is looked for


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
    opening = rf"{_written(before.rstrip())}{_gap(before)}" if before else r"(?<!\w)"
    closing = rf"{_AROUND}{_written(after.lstrip())}" if after.strip() else r"(?!\w)"
    found = re.finditer(rf"{opening}([{sides}]){closing}", text)
    return [Mark(match[1], *match.span()) for match in found]


def _gap(before: str) -> str:
    """Returns what may stand before the letter; a blank of the form is required."""
    return rf"[ \t]{_AROUND}" if before != before.rstrip() else _AROUND


def _written(text: str) -> str:
    """Returns a pattern for a text whose square brackets may all be escaped."""
    escaped = re.sub(r"([\[\]])", r"\\\1", text)
    return rf"(?:{re.escape(text)}|{re.escape(escaped)})"


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
    text = _without_thoughts(form, prompt, text)
    every = marks(form, text, sides)
    if not every:
        return None
    listed = _listed(every, text)
    hidden, quotations = _hidden(form, prompt, text), _quotations(text)
    for number in reversed(range(len(every))):
        mark = every[number]
        if number in listed or hidden[mark.start]:
            continue
        if number and _WORSE.fullmatch(text, every[number - 1].end, mark.start):
            continue
        if _is_quoted(mark, quotations, text) or _is_refused(mark, text):
            continue
        if not _is_conditional(number, every, text):
            return mark
    return None


def _without_thoughts(form: str, prompt: str, text: str) -> str:
    """Returns a text of the same length in which thoughts are line ends.

    A tag in an echo or in a quotation is a text of others.
    """
    if not _THOUGHT.search(text):
        return text
    hidden, quotations = _hidden(form, prompt, text), _quotations(text)
    tags = [
        tag
        for tag in _THOUGHT.finditer(text)
        if not hidden[tag.start()] and not _around(tag.start(), quotations)
    ]
    start = 0 if tags and tags[0][1] else None
    pieces, at = [], 0
    for tag in tags:
        if start is None and not tag[1]:
            start = tag.start()
        elif start is not None and tag[1]:
            pieces += [text[at:start], "\n" * (tag.end() - start)]
            start, at = None, tag.end()
    end = len(text) if start is None else start
    return "".join([*pieces, text[at:end], "\n" * (len(text) - end)])


def _hidden(form: str, prompt: str, text: str) -> bytearray:
    """Returns for each character whether an echo or a quoted line holds it."""
    hidden = bytearray(len(text))
    for start, end in _echoes(form, prompt, text) + _lines_of_quotation(text):
        hidden[start:end] = b"\1" * (end - start)
    return hidden


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


def _quotations(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in _QUOTATION.finditer(text)]


def _around(place: int, quotations: list[tuple[int, int]]) -> tuple[int, int] | None:
    """Returns the quotation that a place is in."""
    number = bisect.bisect(quotations, (place, 0)) - 1
    if number < 0 or quotations[number][1] <= place:
        return None
    return quotations[number]


def _is_quoted(mark: Mark, quotations: list[tuple[int, int]], text: str) -> bool:
    """Whether a mark stands in a quotation and is not the end of the text."""
    found = _around(mark.start, quotations)
    if found is None:
        return False
    start, end = found
    around = text[start : mark.start] + text[mark.end : end]
    return bool(_WORD.search(around) or _WORD.search(text, end))


def _is_refused(mark: Mark, text: str) -> bool:
    """Whether a mark is asked, explained or refused."""
    before = text[max(mark.start - _NEAR, 0) : mark.start]
    behind = text[mark.end : mark.end + _NEAR]
    return bool(_EXPLAINED.match(behind) or _REFUSED.search(before))


def _is_conditional(number: int, every: list[Mark], text: str) -> bool:
    """Whether a mark has a condition that counts."""
    kind = _condition(number, every, text)
    if kind != "other":
        return kind != ""
    for beside in (number - 1, number + 1):
        if not 0 <= beside < len(every) or every[beside].side == every[number].side:
            continue
        one, other = every[min(number, beside)], every[max(number, beside)]
        if _BETWEEN_CONDITIONS.search(text, one.end, other.start):
            if _condition(beside, every, text):
                return True
    return False


def _condition(number: int, every: list[Mark], text: str) -> str:
    """Returns what condition a mark has.

    Args:
      number: of the mark.
      every: all marks.
      text: that holds them.

    Returns:
      "" for none; "side" for one about a side, for one that comes behind the mark, and
      for what happens otherwise; "other" for one about something else.
    """
    mark = every[number]
    later = every[number + 1].start if number + 1 < len(every) else len(text)
    end = min(mark.end + _FAR, len(text))
    found = _SENTENCE.search(text, mark.end, end)
    end = found.start() if found else end
    behind = text[mark.end : min(end, later)]
    if found := _CONDITION_BEHIND.match(behind):
        clause = _CLAUSE.match(behind, found.end())[0]
        if not _only_looks(clause):
            return "side"
    if found := _OTHERWISE_BEHIND.match(behind):
        if later < end or _A_SIDE_AT_MOST.fullmatch(behind, found.end()):
            return "side"
    start = max(mark.start - _FAR, 0)
    ends = [match.end() for match in _SENTENCE.finditer(text, start, mark.start)]
    sentence = text[ends[-1] if ends else start : mark.start]
    if found := [*_ELSE.finditer(sentence)]:
        # Brackets that open and close within it do not end it.
        rest = re.sub(r"\([^()]*\)", "", sentence[found[-1].end() :])
        if not _ELSE_IS_OVER.search(rest):
            return "side"
    if found := _OPENS_WITH_CONDITION.match(sentence):
        clause = _CLAUSE.match(sentence, found.end())[0]
        if _only_looks(clause):
            return ""
        return "side" if _is_about_a_side(clause) else "other"
    return ""


def _is_about_a_side(clause: str) -> bool:
    return bool(_OF_A_SIDE.search(clause) or _HOW_ONE_IS.search(clause))


def _only_looks(clause: str) -> bool:
    """Whether a clause says no more than that somebody looks at candidates."""
    return bool(_LOOKS.match(clause)) and not _HOW_ONE_IS.search(clause)
