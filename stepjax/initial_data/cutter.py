r"""The rule-based cutter: the text of a solution to its logical steps.

The text is masked first: formulas, drawings, code, braces and parentheses become
placeholders of the same length, so that no cut can fall inside them. The cuts are then
found in the masked text. Reading and cutting take time in proportion to its length.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from stepjax.prompts import boxed

MOST_STEPS = 20  # a search makes at most this many steps (search.max_expansions)
_LONG = 200  # characters; a longer paragraph is cut into sentences
_ENOUGH = 80  # characters; sentences are joined until they have this many
_SHORT = 12  # characters; a shorter paragraph ("OR") joins the next one
_WINDOW = 30  # characters that are looked at on each side of a possible cut

# "Step 3:" at the start of a line or a sentence, with the marks that people put there.
_NUMBER = r"step\s+\d{1,4}"
_BLANK = r"[^\S\n]"
_OWN_MARKER = re.compile(
    rf"""
    (?:^{_BLANK}*|(?<=[.!?。]){_BLANK}+)
    (?:
        (?:\#{{1,6}}{_BLANK}+)?
        (?:
            (?:\*\*|__){_NUMBER}\s*(?:[.:)]\s*)?(?:\*\*|__)(?:{_BLANK}*[.:)])?
          | \\textbf\{{{_NUMBER}\s*[.:)]?\}}(?:{_BLANK}*[.:)])?
          | (?P<bold>\*\*|__)?{_NUMBER}(?:\s*[:)]|\.(?!\d)|\s+[-–—](?=\s)|{_BLANK}*$)
        )
        {_BLANK}*
    )+
    """,
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)

_INLINE, _DISPLAY, _CODE = "\ue000", "\ue001", "\ue002"  # what masks consist of
_OWN_PLACEHOLDERS = str.maketrans(dict.fromkeys(_INLINE + _DISPLAY + _CODE, "x"))
_LINE_ENDS = str.maketrans(dict.fromkeys("\r\v\f\x1c\x1d\x1e\x85\u2028\u2029", "\n"))
_TOKEN = re.compile(
    r"\\begin\{([^{}\n]{1,40})\}|\\end\{([^{}\n]{1,40})\}|\[asy\]|```"
    r"|\\(?:text\w{0,6}|mbox|hbox|emph)[ ]?\{|\\[\[\]()]|\\.|\$\$?|[{}()]|\n[ \t]*\n",
    re.DOTALL,
)
_CLOSES = {"]": "[", ")": "(", "}": "{"}
# Environments of text: their contents are cut like any other text.
_TEXT_ENVIRONMENTS = frozenset(
    "center description document enumerate itemize lemma proof quote solution "
    "theorem".split()
)
# Characters in parentheses: "(a)" numbers an item; longer ones are cut like other text.
_SHORTEST_ASIDE, _LONGEST_ASIDE = 5, 300
_CLOSING = re.compile(r"(?:\s|\\end\{[^{}]*\}|\\[\])\\]|[$})])+$")

_ITEM = re.compile(
    r"\d{1,3}[.)](?:\s|\ue000)|[(（]?[a-zA-Z\d]{1,3}[)）]\s|[-*•]\s|\#{1,6}\s"
    r"|\*\*\S|\\item\b"
)
_HEADING = re.compile(r"\s*(?:\#{1,6}\s.*|(?:\*\*|__)[^*_]*(?:\*\*|__)[.:]?)")
_CONTINUES = re.compile(r"[)\]},;:.!?=<>+/^_&|，。；：、）-]|\*(?!\*)")
_ENDED = re.compile(r"[.!?。！？…।؟۔][\"'”’)\]*_»」』）]{0,4}$")
_NO_END = re.compile(
    r"(?:\.\.|…)[\"'”’)\]]{0,2}$"  # an ellipsis
    r"|(?:^|[^\w.])(?:[A-Za-z]\.){1,5}$"  # e.g. i.e. U.S. and initials
    r"|(?:^|\W)(?:cf|vs|figs?|eqs?|eqn|dr|mrs?|ms|prof|st|nos?|thm|prop|lem|def|sec|ch"
    r"|resp|approx|etc|al|ex|cor|pp?|jr|sr|viz|ca)\.$"
    r"|(?:^|\n)\s{0,20}\d{1,3}\.$",  # the number of a list item
    re.IGNORECASE,
)
_CONNECTS = re.compile(
    r"(?:^|\W)(?:so|is|are|that|get|gets|have|has|and|or|the|an?|of|to|where|with|thus"
    r"|therefore|gives|then|if|for|in|by|be|as|from|when|obtain|find|hence|[-+=*/(])$",
    re.IGNORECASE,
)
_CANDIDATE = re.compile(
    r"\s+|(?<=[。！？])(?=[^\s。！？”’」』）])"
    r"|(?<=\ue001)(?=[^\s\ue001.,])|(?<=\ue001[.,])(?=\S)"
)


# What GSM8K's solutions do not have, where each line is a step: empty lines, displays,
# drawings, headings, items, and lines that go on in the next one.
_NOT_LINES = re.compile(
    r"\n[ \t]*\n|\\\[|\$\$|\\begin|\[asy\]|```"
    r"|^[ \t]*(?:\#+ .*\n|\d{1,3}[.)]\s|[-*•]\s)|\n[ \t]*[a-z]{2}"
    r"|(?:[,:，：]|\b(?i:to|have|then|or|and|so|get|is|are|that|where|gives|thus))"
    r"[ \t]*\n",
    re.MULTILINE,
)


def cut(text: str, most: int = MOST_STEPS) -> list[str]:
    r"""Cuts the text of a solution into steps by rule.

    A text with "Step n:" markers of its own is cut there. A text of short plain lines,
    as in GSM8K, is cut at each. Any other is cut at paragraphs, list items and lines,
    and a paragraph of more than 200 characters at sentences. Nothing is cut inside
    formulas, drawings, code, braces and parentheses; a displayed formula stays with the
    sentence that leads to it. What follows the boxed answer joins the last step.

    Args:
      text: the solution.
      most: steps at most; neighbours are joined until there are no more.

    Returns:
      Texts of the steps on one line each, without markers. Together they are the text
      but for white space and its own "Step n:" markers.

    Raises:
      ValueError: most is below 1.
    """
    if most < 1:
        raise ValueError(
            f"most is {most}; expected 1 step or more in a solution. Raise it."
        )
    text = _with_newlines(text)
    markers = list(_OWN_MARKER.finditer(text))
    if markers:
        starts = [0, *(match.start() for match in markers)]
        pieces = [text[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]
        pieces = [without_markers(piece) for piece in pieces]
        if _short(pieces[0]) or _HEADING.fullmatch(pieces[0].strip()):
            pieces[:2] = ["".join(pieces[:2])]
    else:
        pieces = list(_pieces(text))
    steps = [" ".join(piece.split()) for piece in pieces]
    steps = _end_with_the_answer([step for step in steps if step])
    return _at_most(steps, most)


def without_markers(text: str) -> str:
    """Returns a text without its own "Step n:" markers."""
    return _OWN_MARKER.sub(
        lambda match: f"\n{match['bold'] or ''}", _with_newlines(text)
    )


def _with_newlines(text: str) -> str:
    r"""Returns a text whose lines all end with "\n"."""
    return text.replace("\r\n", "\n").translate(_LINE_ENDS)


def _short(piece: str) -> bool:
    return len(piece.strip()) < _SHORT


def _pieces(text: str) -> Iterator[str]:
    """Yields paragraphs, list items and lines; sentences where those are long."""
    masked = _masked(text)
    if not _NOT_LINES.search(text.strip()):
        lines = list(re.finditer(r"[^\n]+", masked))
        if len(lines) > 1 and max(len(line[0]) for line in lines) <= _LONG:
            yield from (text[line.start() : line.end()] for line in lines)
            return
    blocks = [[0]]  # of each paragraph: where its sentences begin
    for match in _CANDIDATE.finditer(masked):
        strength = _strength(masked, match.start(), match.end())
        if strength == 2 and _visible(masked, blocks[-1][0], match.start()) >= _SHORT:
            blocks.append([match.end()])
        elif strength:
            blocks[-1].append(match.end())
    ends = [*(block[0] for block in blocks[1:]), len(text)]
    for sentences, end in zip(blocks, ends, strict=True):
        start = sentences[0]
        if _visible(masked, start, end) > _LONG:
            for sentence in sentences[1:]:
                enough = _visible(masked, start, sentence) >= _ENOUGH
                rest = end - sentence >= _ENOUGH // 2
                if enough and (rest or "\\boxed" in text[sentence:end]):
                    yield text[start:sentence]
                    start = sentence
        yield text[start:end]


def _visible(masked: str, start: int, end: int) -> int:
    """Counts characters, without the code of drawings."""
    return end - start - masked.count(_CODE, start, end)


def _end_with_the_answer(steps: list[str]) -> list[str]:
    r"""Joins what follows the last box to its step, and boxes that are close together.

    A search ends at the first step that holds a box, so only the last step may hold
    one. Boxes that are far apart are left: `ift.check_cut` refuses such a solution.
    """
    holders = [n for n, step in enumerate(steps) if boxed(step) is not None]
    if not holders:
        return steps
    first = holders[-1]
    for holder in reversed(holders):
        if sum(map(len, steps[holder : holders[-1] + 1])) <= 2 * _LONG:
            first = holder
    return [*steps[:first], " ".join(steps[first:])]


def _at_most(steps: Sequence[str], most: int) -> list[str]:
    """Joins neighbours into at most so many steps of similar length."""
    if len(steps) <= most:
        return list(steps)
    total = sum(map(len, steps))
    groups: dict[int, list[str]] = {}
    before = 0
    for step in steps:
        middle = before + len(step) / 2
        groups.setdefault(int(middle * most / total), []).append(step)
        before += len(step)
    return [" ".join(group) for group in groups.values()]


def _strength(masked: str, start: int, end: int) -> int:
    """Says how good a cut is: 2 for a paragraph or line, 1 for a sentence, 0 for none.

    Args:
      masked: the masked text.
      start: where the white space of the cut begins.
      end: where it ends.
    """
    left, right = masked[max(0, start - _WINDOW) : start], masked[end : end + _WINDOW]
    if not left.strip() or not right or right[0] in (_DISPLAY, _CODE):
        return 0
    newlines = masked.count("\n", start, end)
    if left[-1] in ":：" or (
        newlines and _HEADING.fullmatch(masked, masked.rfind("\n", 0, start) + 1, start)
    ):
        return 0
    if newlines and _ITEM.match(right):
        return 2
    if left[-1] in ",，、" or right[0].islower() or _CONTINUES.match(right):
        return 0
    ended = bool(_ENDED.search(left)) and not _NO_END.search(left)
    if newlines > 1:
        return 2
    fresh = right[0].isalnum()
    after_display = left[-1] in (_DISPLAY, _CODE) or left[-2:-1] == _DISPLAY
    if newlines:
        complete = fresh and not _CONNECTS.search(left)
        return 2 if ended or complete else 0
    return 1 if ended or (after_display and fresh) else 0


def _masked(text: str) -> str:
    """Replaces what must not be cut by placeholders of the same length.

    The last placeholder is a full stop or comma where the contents end with one.
    """
    masked, done = [], 0
    for start, end, placeholder in _outermost(_spans(text)):
        masked.append(text[done:start].translate(_OWN_PLACEHOLDERS))
        last = _CLOSING.sub("", text[max(start, end - _WINDOW) : end])[-1:]
        if placeholder == _CODE or last not in set(".!?,:"):
            last = placeholder
        masked.append(placeholder * (end - start - 1) + last)
        done = end
    masked.append(text[done:].translate(_OWN_PLACEHOLDERS))
    return "".join(masked)


def _outermost(spans: list[tuple[int, int, str]]) -> Iterator[tuple[int, int, str]]:
    """Yields the (start, end, placeholder) that lie in no other one, in order."""
    done = 0
    for start, end, placeholder in sorted(spans):
        if start >= done:
            yield start, end, placeholder
            done = end


def _spans(text: str) -> list[tuple[int, int, str]]:
    """Finds formulas, drawings, code, braces and parentheses that are closed.

    As in TeX, an empty line ends a formula inside a line that nobody closed.
    """
    spans = []
    opened: list[tuple[str, int]] = []
    counts: Counter[str] = Counter()  # of what is open, so that no search is needed
    formulas = 0
    last = {close: text.rfind(close) for close in ("[/asy]", "```")}
    skip = 0

    def drop() -> tuple[str, int]:
        nonlocal formulas
        kind, start = opened.pop()
        counts[kind] -= 1
        formulas -= kind not in "{("
        return kind, start

    def push(kind: str, start: int) -> None:
        nonlocal formulas
        opened.append((kind, start))
        counts[kind] += 1
        formulas += kind not in "{("

    def close(kind: str, end: int) -> None:
        while counts[kind]:
            found, start = drop()
            if found == kind:
                aside = kind in "({" or kind in ("$", r"\(", "text{")
                if kind != "(" or _SHORTEST_ASIDE <= end - start <= _LONGEST_ASIDE:
                    spans.append((start, end, _INLINE if aside else _DISPLAY))
                return

    def dollar(at: int) -> None:
        while counts["$"] and opened[-1][0] not in ("$", "text{"):
            drop()
        if not opened or opened[-1][0] != "$":
            push("$", at)
        elif _price(text, opened[-1][1], at):
            drop()
            push("$", at)
        else:
            close("$", at + 1)

    for match in _TOKEN.finditer(text):
        token, start = match[0], match.start()
        if start < skip:
            continue
        if token in ("[asy]", "```"):
            end = {"[asy]": "[/asy]", "```": "```"}[token]
            if last[end] >= match.end():
                skip = text.index(end, match.end()) + len(end)
                spans.append((start, skip, _CODE))
        elif match[1]:
            if match[1].rstrip("*") not in _TEXT_ENVIRONMENTS:
                push(match[1], start)
        elif match[2]:
            close(match[2], match.end())
        elif token == "$":
            dollar(start)
        elif token == "$$":
            if counts["$"]:
                dollar(start)
                dollar(start + 1)
            elif counts["$$"]:
                close("$$", match.end())
            else:
                push("$$", start)
        elif token in (r"\]", r"\)"):
            close("\\" + _CLOSES[token[1]], match.end())
        elif token in (r"\[", r"\("):
            while counts["$"] and not counts["text{"]:
                drop()
            push(token, start)
        elif token.endswith("{") and token != r"\{":
            push("{" if token == "{" else "text{", start)
        elif token == "}":
            while counts["text{"] and opened[-1][0] not in ("{", "text{"):
                drop()
            close(opened[-1][0] if counts["text{"] else "{", match.end())
        elif token in ("(", ")") and not formulas:
            if token == "(":
                push("(", start)
            else:
                close("(", match.end())
        elif token[0] == "\n":
            while opened and opened[-1][0] in ("$", "$$", r"\(", "{", "(", "text{"):
                drop()
    return spans


def _price(text: str, opened: int, at: int) -> bool:
    """Says whether "$" at `opened` was a price, and the one at `at` begins anew."""
    after = text[at + 1 : at + 2]
    return text[opened + 1 : opened + 2].isdigit() and (
        after.isdigit()
        or (text[at - 1].isspace() and (after.isalnum() or after in tuple("\\-+(|{[")))
    )
