r"""Final answers: taking them out of a solution and comparing them with the gold one.

An answer is a list of one or more items: "5 and 9" are two. Items are compared as
normalised texts, then as exact fractions, and then as formulas (`formulas`, `values`).
What is in no grammar is equal only to the same text.
"""

import functools
import re
from fractions import Fraction
from typing import NamedTuple

from stepjax.evaluation import formulas, values
from stepjax.prompts import boxed

# Units that may follow a number without \text{}; each line has the names of one unit.
# Answers with different units differ; a unit that only one of them has is ignored.
_UNIT_NAMES = """
percent
degree degrees deg
radian radians rad
dollar dollars usd
cent cents
euro euros
pound pounds lb lbs
mm millimeter millimeters millimetre millimetres
cm centimeter centimeters centimetre centimetres
m meter meters metre metres
km kilometer kilometers kilometre kilometres
inch inches in
foot feet ft
yard yards yd
mile miles mi
milligram milligrams
g gram grams
kg kilogram kilograms
oz ounce ounces
ml milliliter milliliters millilitre millilitres
liter liters litre litres
second seconds sec
minute minutes min
hour hours hr hrs
day days
week weeks
month months
year years
am
pm
mph
"""
_UNITS = {
    name: line.split()[0] for line in _UNIT_NAMES.split("\n") for name in line.split()
}
_LONG_UNITS = sorted((name for name in _UNITS if len(name) > 1), key=len, reverse=True)
_POWER = r"\s*\^\s*\{?\s*([23])\s*\}?"
_TEXT = r"\\text\s*\{([^{}]*)\}"
_TEXT_UNIT = re.compile(rf"(?P<body>.*[\w}})\]])\s*{_TEXT}(?:{_POWER})?", re.DOTALL)
_BARE_UNIT = re.compile(
    rf"(?P<body>.*[\d}})])\s*((?:(?:square|sq\.?|cubic)\s+)?(?:{'|'.join(_LONG_UNITS)}))"
    rf"\.?(?:{_POWER})?",
    re.DOTALL | re.IGNORECASE,
)
# Words behind a number that are no unit of the list, as in "7 apples".
_THINGS = re.compile(
    r"(?P<body>.*[\d}])\s+(?!(?:sqrt|times|dozen)\b)[a-z]{3,}(?: [a-z]+){,2}"
)
_LARGE = re.compile(r"(?:hundred|thousand|[mb]illion|squared|cubed|factorial)\b")
_BASE = re.compile(r"(?P<body>-?[0-9][0-9A-Z]*)_\s*(?:\{\s*(\w+)\s*\}|(\d))")
_VARIABLE = r"\\?[A-Za-z]+(?:_\{?\w+\}?)?'?"
_NAME = re.compile(
    rf"([A-Za-z]'?(?:_\{{?\w+\}}?)?|\\[a-z]+|[A-Za-z]\([A-Za-z]\)|[A-Z]{{2,3}}"
    r"|m?\s*\\angle\s*[A-Z]{1,3}|\\overline\{[A-Z]{2}\}"
    rf"|\({_VARIABLE}(?:[,;]\s*{_VARIABLE})+\))\s*"
    r"(?:=|\\in(?![a-z])|\\approx(?![a-z])|≈)\s*([^=]+)"
)

_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d*)?|\d+(?:\.\d*)?|\.\d+)"
_NUMBER = re.compile(rf"[+-]?\s*(?:{_DECIMAL}|\d{{1,3}}(?: \d{{3}})+)")
_RATIO = re.compile(
    rf"(?P<sign>[+-]?)\s*(?P<whole>\d+\s|\d+(?=\\))?\s*"
    rf"(?:\\frac\{{(?P<up>[+-]?{_DECIMAL})\}}\{{(?P<down>[+-]?{_DECIMAL})\}}"
    rf"|(?P<left>{_DECIMAL})/(?P<right>{_DECIMAL}))"
)
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")
_LONGEST = 400  # characters; a longer text is no final answer, unless the gold is long
_MOST_ITEMS = 24  # of a list
_SHORT_WORDS = frozenset("no on yes odd all one two six ten".split())
_HEADING = re.compile(
    r"(?i).*:|.*\b(?:solution|step|method|case|proof|part|approach|note|answer)s?\b.*"
)


class _Answer(NamedTuple):
    name: str  # of the variable in "x = 5"; else ""
    body: str  # the value itself
    unit: str  # after the value; else ""
    words: bool  # the answer is text, not mathematics


def extract(text: str) -> str | None:
    r"""Takes the final answer out of a solution.

    Args:
      text: the solution, as written by a model or a person.

    Returns:
      The contents of the last closed \boxed{...}, or the number or letter behind the
      last \boxed without braces; without one, what follows "####" on the last line that
      begins with it and is no heading; None without either.
    """
    answer = boxed(text)
    if answer is None:
        bare = re.findall(r"\\boxed\s+(-?\d[\d.,]*\d|-?\d|[A-Za-z])(?![A-Za-z])", text)
        lines = re.findall(r"^####[ \t]*(\S.*)$", text, flags=re.MULTILINE)
        found = bare or [line for line in lines if not _HEADING.fullmatch(line.strip())]
        answer = found[-1] if found else None
    return None if answer is None else answer.strip()


def equivalent(prediction: str | None, gold: str) -> bool:
    r"""Says whether a predicted answer means the same as the gold one.

    The comparison is exact: 0.333 is not 1/3. It ignores notation (\dfrac, \left,
    thousands commas, "x =" in front), the order of a list or a set, and units, percent
    signs and degrees that only one side has. It takes a bounded time for every text,
    and can be called from any thread.

    Args:
      prediction: a model's final answer, or None when it gave none.
      gold: the benchmark's answer.

    Returns:
      True when they are equivalent. No answer and an empty one are never right.

    Raises:
      ModuleNotFoundError: a formula and no mpmath.

    Example:
      >>> equivalent("1,234", "1234"), equivalent("0.5", r"\frac12")
      (True, True)
      >>> equivalent(None, "7")
      False
    """
    if prediction is None or len(prediction) > max(_LONGEST, 2 * len(gold)):
        return False
    return any(
        _same_list(ours, golds)
        for ours in _readings(prediction)
        for golds in _readings(gold)
    )


# Lists.


def _readings(text: str) -> list[list[str]]:
    """Returns the lists of items that a text can mean; "70,110" is one number or two.

    A comma between digits separates the groups of a number only if three digits follow
    each, no blank stands beside it, and no bracket is around it.
    """
    text = _notation(text)
    inner = re.fullmatch(r"\\\{(.*)\\\}", text, re.DOTALL)
    if inner and _is_list(inner[1]):
        text = inner[1]
    words = re.fullmatch(_TEXT, text)
    if words and re.fullmatch(r"\s*\w{1,3}(?:\s*[,;]\s*\w{1,3})+\s*", words[1]):
        text = words[1]  # the names of several choices
    apart = _split(text)
    joined = _split(_without_commas(text))
    readings = [apart] if apart == joined else [joined, apart]
    return [
        [part for item in items for part in _both_signs(item)] for items in readings
    ]


def _is_list(text: str) -> bool:
    """Whether what stands in braces are the members of a set: no condition, no set."""
    return text.strip() != "" and not re.search(r"[|:]|\\mid|\\[{}]", text)


def _depths(text: str) -> list[int]:
    """Returns for each character how many brackets are open before it."""
    depths, depth = [], 0
    for character in text:
        depth -= character in ")]}"
        depths.append(depth)
        depth += character in "([{"
    return depths


def _without_commas(text: str) -> str:
    """Takes the commas out of numbers such as 1,234 that are in no brackets."""
    depths = _depths(text)

    def joined(found: re.Match) -> str:
        return found[0] if depths[found.start()] else found[0].replace(",", "")

    return _THOUSANDS.sub(joined, text)


def _split(text: str) -> list[str]:
    """Splits a text at the commas and semicolons that are in no brackets."""
    parts, start = [], 0
    for place, depth in enumerate(_depths(text)):
        if depth == 0 and text[place] in ",;":
            parts.append(text[start:place])
            start = place + 1
    return [*parts, text[start:]]


def _both_signs(item: str) -> list[str]:
    r"""Returns the two values of an item with \pm; else the item."""
    if not re.search(r"\\[pm][mp](?![a-z])|±", item):
        return [item]
    item = item.replace("±", r"\pm")
    made = []
    for plus, minus in ("+-", "-+"):
        text = re.sub(r"\\pm(?![a-z])", plus, item)
        made.append(re.sub(r"\\mp(?![a-z])", minus, text))
    return made


def _same_list(ours: list[str], golds: list[str]) -> bool:
    if max(len(ours), len(golds)) > _MOST_ITEMS:
        return [*map(str.strip, ours)] == [*map(str.strip, golds)]
    left, right = ([_parse(item) for item in items] for items in (ours, golds))
    if not all(item.body for item in left + right):
        return False
    if len(left) == len(right):
        return values.same_items(left, right, _same)
    if 1 not in (len(left), len(right)):
        return False
    return _same_conditions(left, right)


def _same_conditions(left: list[_Answer], right: list[_Answer]) -> bool:
    """Whether a set of numbers is given by several relations: "x < 1 or x > 3"."""
    several, (one,) = (left, right) if len(right) == 1 else (right, left)
    read = [_formula(_equation(item)) for item in several]
    other = _formula(one.body)
    if other is None or any(item is None or item[0] != "relation" for item in read):
        return False
    digits = _digits(*(item.body for item in [*left, *right]))
    for kind in ("union", "intersection"):
        whole = read[0]
        for item in read[1:]:
            whole = (kind, whole, item)
        if values.equal(whole, other, digits):
            return True
    return False


# Items.


def _same(ours: _Answer, gold: _Answer) -> bool:
    """Says whether two items mean the same."""
    if ours.unit and gold.unit and ours.unit != gold.unit:
        return False
    if ours.unit.startswith("base") and not gold.unit:
        return False
    if ours.words or gold.words:
        mine, golds = (re.sub(r"\s", "", x.body).casefold() for x in (ours, gold))
        return mine == golds
    if ours.name != gold.name and (
        (ours.name and gold.name) or "=" in ours.body + gold.body
    ):  # two equations in several variables, or in different ones
        return _same_formula(_equation(ours), _equation(gold))
    if ours.body == gold.body:
        return True
    mine, golds = _number(ours.body), _number(gold.body)
    if mine is not None and golds is not None:
        return mine == golds or (
            ("percent" in (ours.unit, gold.unit) and ours.unit != gold.unit)
            and (mine / 100 if ours.unit else mine)
            == (golds / 100 if gold.unit else golds)
        )
    return _same_formula(ours.body, gold.body)


def _same_formula(ours: str, gold: str) -> bool:
    if max(len(ours), len(gold)) > _LONGEST:
        return False
    left, right = _formula(ours), _formula(gold)
    if left is None or right is None:
        return False
    return values.equal(left, right, _digits(ours, gold))


@functools.lru_cache(maxsize=4096)
def _formula(text: str) -> formulas.Formula | None:
    try:
        return formulas.read(text)
    except formulas.NotAFormula:
        return None


def _digits(*texts: str) -> int:
    return 60 + 2 * sum(map(len, texts))


def _notation(text: str) -> str:
    """Brings different ways to typeset the same thing to one; ";" separates items."""
    text = re.sub(r"(?<=\d)(?:\{,\}|,\\!|\\,|\\!)\s*(?=\d{3})", "", text)
    text = re.sub(r"(?<![\\\d]),|(?<!\\),(?!\d)", ";", text)
    money = r"\s*(?:\\\$|\$(?=[^$]*(?:\$[^$]*\$[^$]*)*$))\s*(?=[\d.])"
    text = re.sub(rf"^{money}([\d.,]+)\s*\$?\s*$", r"\1\\text{dollars}", text)
    text = text.replace("\\$", "").replace("$", "")
    text = re.sub(r"^\s*\\[(\[](.*)\\[)\]]\s*$", r"\1", text, flags=re.DOTALL)
    for mark, latex in (
        *(("−", "-"), ("°", r"^\circ"), ("π", r"\pi "), ("∞", r"\infty ")),
        *(("√", r"\sqrt"), ("\u200b", ""), ("\xa0", " "), ("ℝ", r"\mathbb{R}")),
    ):
        text = text.replace(mark, latex)
    text = re.sub(r"(?<!\\)\\[,;:! ]|\\q?quad(?![a-z])|~", " ", text)
    text = " ".join(text.split())
    text = re.sub(r"\\(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z])\s*", "", text)
    text = re.sub(r"\\(?:displaystyle|limits)(?![a-z])", "", text)
    text = re.sub(r"\\[dtc]frac(?![a-z])", r"\\frac", text)
    text = re.sub(r"\\(?:mbox|mathrm|textbf|textrm|textit)(?![a-z])", r"\\text", text)
    text = re.sub(r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\degree", "", text)
    text = re.sub(r"\\?%\s*\.?\s*$", r"\\text{percent}", text)
    text = re.sub(r"\\?%", "", text)
    text = re.sub(r"(?i)(?<![a-z])([ap])\.\s*m\b\.?", r"\1m", text)
    text = re.sub(r"\\frac\s*(\d)", r"\\frac{\1}", text)
    text = re.sub(r"(\\frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}", text)
    text = re.sub(r"\\sqrt\s*(\d)", r"\\sqrt{\1}", text)
    text = re.sub(r"\\boxed(?![a-z])", "", text)
    text = re.sub(r"^(?i:(?:the )?(?:final )?answer(?: is|:))\s*", "", text)
    text = re.sub(r"^(?:\\approx|≈|=)\s*", "", text)
    text = re.sub(
        r"^(?i:(?:\\text\{)?all real(?:s| numbers)\}?)$", r"\\mathbb{R}", text
    )
    # Lists: "5 and 9", "5 \text{ or } 9" and "5,9" are the same.
    joint = r"\\text\s*\{\s*[,;]?\s*(?:and|or)\s*\}|(?<![a-z\\])(?:and|or)(?![a-z])"
    return re.sub(rf"\s*[,;]?\s*(?:{joint})\s*", ";", text).strip().rstrip(" .")


def _unit(words: str, power: str | None) -> str:
    """Names a unit so that different spellings of it agree."""
    words = words.casefold().replace(".", "").strip()
    prefix, _, rest = words.partition(" ")
    if prefix in ("square", "sq", "cubic") and rest:
        words, power = rest.strip(), "3" if prefix == "cubic" else "2"
    return _UNITS[words] + (f"^{power}" if power else "") if words in _UNITS else ""


def _parse(text: str) -> _Answer:
    """Takes an item apart: name, value and unit."""
    text = text.strip().rstrip(" .")
    name, unit = "", ""
    match = _NAME.fullmatch(text)
    if match:
        name, text = match[1], match[2]
    whole = re.fullmatch(rf"\(?{_TEXT}\)?", text)
    if whole:
        text = whole[1].strip().rstrip(" .")
    match = _TEXT_UNIT.fullmatch(text) or _BARE_UNIT.fullmatch(text)
    if match and match["body"][-1] != "_" and re.search(r"\d", match["body"]):
        text, unit = match["body"].strip(), _unit(match[2], match[3])
    match = _THINGS.fullmatch(text)
    if match and not _LARGE.search(text):
        text = match["body"]
    match = _BASE.fullmatch(text)
    if match:
        text, unit = match["body"], f"base {match[2] or match[3]}"
    body = re.sub(_TEXT, r"\1", text)
    body = re.sub(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])", "", body).rstrip(".")
    body = re.sub(r"^\(([A-Z])\)$", r"\1", re.sub(r"\s+", " ", body))
    words = bool(whole and re.search("[A-Za-z]", body)) or _is_words(body)
    return _Answer(name, body, unit, words)


def _is_words(body: str) -> bool:
    """Whether letters are words, or names of points, and not a product of variables."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z' -]*", body):
        return False
    plain = body.isalpha()
    return (
        not plain
        or len(body) > 3
        or (len(body) > 1 and body.isupper())
        or body.casefold() in _SHORT_WORDS
    )


def _equation(answer: _Answer) -> str:
    """Puts the name, if there is one, back in front of the value."""
    return f"{answer.name}={answer.body}" if answer.name else answer.body


def _number(body: str) -> Fraction | None:
    """Reads an integer, a decimal, a fraction or a mixed number exactly."""
    if len(body) > _LONGEST:
        return None
    match = _NUMBER.fullmatch(body)
    if match:
        return Fraction(re.sub(r"[, ]|\.$", "", body))
    match = _RATIO.fullmatch(body)
    if not match:
        return None
    upper, lower = (
        Fraction(part.replace(",", "").rstrip("."))
        for part in (match["up"] or match["left"], match["down"] or match["right"])
    )
    if lower == 0:
        return None
    value = upper / lower
    if match["whole"]:
        if not 0 < value < 1:  # a product, not a mixed number
            return None
        value += int(match["whole"])
    return -value if match["sign"] == "-" else value
