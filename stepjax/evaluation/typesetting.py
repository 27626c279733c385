r"""How final answers are typeset: one notation for all, and what an item consists of.

"5 and 9", "$5$, $9$" and "9;5" hold the same items. The item "x = 5 cm" has a name, a
body and a unit.
"""

import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

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
second seconds sec s
minute minutes min
hour hours hr hrs h
day days
week weeks
month months
year years
am
pm
"""
_UNITS = {
    name: line.split()[0] for line in _UNIT_NAMES.split("\n") for name in line.split()
}
_LONG_UNITS = sorted((name for name in _UNITS if len(name) > 1), key=len, reverse=True)
_POWER = r"\s*\^\s*\{?\s*([23])\s*\}?"
TEXT = r"\\text\s*\{([^{}]*)\}"
_TEXT_UNIT = re.compile(rf"(?P<body>.*[\w}})\]])\s*{TEXT}(?:{_POWER})?", re.DOTALL)
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
_BASE = re.compile(
    r"(?P<sign>-?)\(?(?P<body>[0-9][0-9A-Z]*)\)?_\s*"
    r"(?:\{\s*(?:\\text\s*\{)?\s*(\w+)\s*\}?\s*\}|(\d))"
)
_BASES = dict(
    zip("two three four five six seven eight nine".split(), "23456789", strict=True)
) | {"ten": "10", "twelve": "12", "sixteen": "16"}
_TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_VARIABLE = r"\\?[A-Za-z]+(?:_\{?\w+\}?)?'?"
_NAME = re.compile(
    rf"([A-Za-z]'?(?:_\{{?\w+\}}?)?|\\[a-z]+|[A-Za-z]\([A-Za-z]\)|[A-Z]{{2,3}}"
    r"|m?\s*\\angle\s*[A-Z]{1,3}|\\overline\{[A-Z]{2}\}|\|[a-z]\|"
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
_FRACTIONS = {
    sign: f"\\frac{{{unicodedata.normalize('NFKC', sign)[0]}}}"
    f"{{{unicodedata.normalize('NFKC', sign)[2:]}}}"
    for sign in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
}
_POWERS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_NAMES = "arcsin|arccos|arctan|sin|cos|tan|cot|sec|csc|ln|log|sqrt|pi"
_SHORT_WORDS = frozenset("no on yes odd all one two six ten".split())
LONGEST = 400  # characters of a number or a formula


class Item(NamedTuple):
    """An answer, or one of several that belong together.

    Attributes:
      name: of the variable in "x = 5"; else "".
      body: the value itself, without blanks that mean nothing.
      unit: after the value; else "".
      words: whether it is text, not mathematics.
    """

    name: str
    body: str
    unit: str
    words: bool


def notation(text: str) -> str:
    """Brings different ways to typeset the same thing to one; ";" separates items."""
    text = re.sub(r"^\s*\*\*(.*)\*\*\s*$", r"\1", text, flags=re.DOTALL)
    text = re.sub(r"(?<=\d)(?:\{,\}|,\\!|\\,|\\!)\s*(?=\d{3})", "", text)
    text = re.sub(r"(?<![\\\d]),|(?<!\\),(?!\d)", ";", text)
    money = r"\s*(?:\\\$|\$(?=[^$]*(?:\$[^$]*\$[^$]*)*$))\s*(?=[\d.])"
    text = re.sub(rf"^{money}([\d.,]+)\s*\$?\s*$", r"\1\\text{dollars}", text)
    text = text.replace("\\$", "").replace("$", "")
    text = re.sub(r"^\s*\\[(\[](.*)\\[)\]]\s*$", r"\1", text, flags=re.DOTALL)
    text = re.sub(r"\\(?:text)?color\s*\{[^{}]*\}", "", text)
    text = re.sub(r"^\s*\\text\s*\{[^{}]*\banswer\b[^{}]*\}", "", text)
    text = re.sub(r"\\(?:math(?:bf|it|sf|tt)|boldsymbol|bm)(?![a-z])", "", text)
    text = re.sub(r"\\mathrm\s*\{([a-zA-Z])\}", r"\1", text)
    text = re.sub(rf"\\operatorname\s*\{{({_NAMES})\}}", r"\\\1 ", text)
    text = re.sub(r"\{([^{}]*)\\over(?![a-z])([^{}]*)\}", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\^\s*\{?\s*\\prime\s*\}?", "'", text)
    text = re.sub(r"\\[lr]angle(?![a-z])", _bracket, text)
    rows = r"\\begin\{array\}\{[^{}]*\}(.*?)\\end\{array\}"
    array = rf"(?:\\left)?[(\[]\s*{rows}\s*(?:\\right)?[)\]]"
    text = re.sub(array, r"\\begin{pmatrix}\1\\end{pmatrix}", text, flags=re.DOTALL)
    text = re.sub("[½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞]", lambda found: _FRACTIONS[found[0]], text)
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda x: f"^{{{x[0].translate(_POWERS)}}}", text)
    text = re.sub(r"(?<![\\a-zA-Z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<![\\a-zA-Z])pi(?![a-zA-Z])", r"\\pi ", text)
    text = re.sub(r"(?<=[)\]}])\s*U\s*(?=[(\[\\])", r"\\cup ", text)
    text = re.sub(r"\{([^{}]*)\\choose(?![a-z])([^{}]*)\}", r"\\binom{\1}{\2}", text)
    number, power = r"(?<![\w.])(\d+(?:\.\d+)?)", r"([+-]?\d{1,3})(?![\w.^])"
    text = re.sub(rf"{number}[eE]{power}", r"\1\\cdot10^{\2}", text)
    to = r"\\text\s*\{\s*to\s*\}|to|\\colon"
    text = re.sub(rf"(?<=\d)\s*(?:{to})\s*(?=\d)", ":", text)
    for mark, latex in (
        *(("−", "-"), ("°", r"^\circ"), ("π", r"\pi "), ("∞", r"\infty ")),
        *(("√", r"\sqrt"), ("\u200b", ""), ("\xa0", " "), ("ℝ", r"\mathbb{R}")),
    ):
        text = text.replace(mark, latex)
    text = re.sub(r"(?<!\\)\\[,;:! ]|\\q?quad(?![a-z])|~", " ", text)
    text = " ".join(text.split())
    text = re.sub(r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![a-zA-Z])\s*", "", text)
    text = re.sub(r"\\(?:displaystyle|limits)(?![a-z])", "", text)
    text = re.sub(r"\\[dtc]frac(?![a-z])", r"\\frac", text)
    text = re.sub(r"\\(?:mbox|mathrm|textbf|textrm|textit)(?![a-z])", r"\\text", text)
    degree = r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\s*\\degree(?![a-z])"
    text = re.sub(degree, r"\\degree ", text)
    text = re.sub(r"\\?%\s*\.?\s*$", r"\\text{percent}", text)
    text = re.sub(r"\\?%", "", text)
    text = re.sub(r"(?i)(?<![a-z])([ap])\.\s*m\b\.?", r"\1m", text)
    text = re.sub(r"\\frac\s*(\d)", r"\\frac{\1}", text)
    text = re.sub(r"(\\frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}", text)
    text = re.sub(r"\\sqrt\s*(\d)", r"\\sqrt{\1}", text)
    text = re.sub(r"\\boxed(?![a-z])", "", text)
    text = re.sub(r"^(?i:(?:the )?(?:final )?answer(?: is|:))\s*", "", text)
    text = re.sub(r"^(?:\\approx|≈|=)\s*", "", text)
    empty = r"^(?i:(?:\\text\{)?(?:no solutions?|(?:the )?empty set)\.?\}?)$"
    text = re.sub(empty, r"\\emptyset", text)
    text = re.sub(r"\\mathbb\s+([A-Z])(?![a-z])", r"\\mathbb{\1}", text)
    text = re.sub(r"^\\text\s*\{\s*((?i:all real)[^{}]*)\}", r"\1", text)
    reals = r"(?i:all real(?:s| numbers))"
    text = re.sub(rf"^{reals}$", r"\\mathbb{R}", text)
    left_out = r"(?i:except(?: for)?|excluding|other than)\s*(?:[a-z]\s*=\s*)?"
    text = re.sub(rf"^{reals},?\s+{left_out}(.*\d.*)$", _without, text)
    # Lists: "5 and 9", "5 \text{ or } 9" and "5,9" are the same.
    joint = r"\\text\s*\{\s*[,;]?\s*(?:and|or)\s*\}|(?<![a-z\\])(?:and|or)(?![a-z])"
    return re.sub(rf"\s*[,;]?\s*(?:{joint})\s*", ";", text).strip().rstrip(" .")


def _without(found: re.Match) -> str:
    """Returns "all real numbers except 2 and 3" as a difference of sets."""
    return (
        r"\mathbb{R}\setminus\{"
        + re.sub(r"\s*\b(?:and|or)\b\s*", ",", found[1])
        + r"\}"
    )


def _bracket(found: re.Match) -> str:
    return "(" if found[0][1] == "l" else ")"


def _without_choice(found: re.Match) -> str:
    """Takes the letter of a choice away that stands before its value."""
    return "" if re.fullmatch(r"\s*\([A-E]\)\s*", found[1]) else found[0]


def _unit(words: str, power: str | None) -> str:
    """Names a unit so that different spellings of it agree."""
    words = words.casefold().replace(".", "").strip()
    words = {"mph": "mile/hour", "kph": "km/hour"}.get(words, words)
    parts = re.split(r"\s*/\s*|\s+per\s+", words)
    if len(parts) == 2 and _UNITS.keys() >= {*parts}:
        return "/".join(_UNITS[part] for part in parts)
    prefix, _, rest = words.partition(" ")
    if prefix in ("square", "sq", "cubic") and rest:
        words, power = rest.strip(), "3" if prefix == "cubic" else "2"
    return _UNITS[words] + (f"^{power}" if power else "") if words in _UNITS else ""


def parse(text: str) -> Item:
    """Takes an item apart: name, value and unit."""
    text = text.strip().rstrip(" .")
    name, unit = "", ""
    if not _TRIGONOMETRY.search(text):
        unit = "degree" if text.endswith(r"\degree") else ""
        text = text.replace(r"\degree ", "").replace(r"\degree", "")
    text = re.sub(rf"^(?:{TEXT})\s*(?=[^\s])", _without_choice, text)
    text = re.sub(r"^\](?=.*[,;])", "(", re.sub(r"(?<=\w)\[$", ")", text))
    match = _NAME.fullmatch(text)
    if match:
        name, text = match[1], match[2]
    whole = re.fullmatch(rf"\(?{TEXT}\)?", text)
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
        base = match[3] or match[4]
        text = match["sign"] + match["body"]
        unit = f"base {_BASES.get(base.casefold(), base)}"
    if unit in ("am", "pm"):
        text = text.removesuffix(":00")
    body = re.sub(TEXT, r"\1", text)
    body = re.sub(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])", "", body).rstrip(".")
    body = re.sub(r"^\(([A-Z])\)$", r"\1", re.sub(r"\s+", " ", body))
    words = bool(whole and re.search("[A-Za-z]", body)) or _is_words(body)
    return Item(name, body, unit, words)


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


def unit(text: str) -> str:
    r"""Returns the unit that a text names, as in `Item`; "" for none that is known.

    Args:
      text: as a benchmark gives it: "minutes", "km/h", "%", "^{\circ}".
    """
    found = (parse(notation(each)).unit for each in (f"1 {text}", rf"1\text{{{text}}}"))
    return next(filter(None, found), "")


def equation(item: Item) -> str:
    """Puts the name, if there is one, back in front of the value."""
    return f"{item.name}={item.body}" if item.name else item.body


def number(body: str) -> Fraction | None:
    """Reads an integer, a decimal, a fraction or a mixed number exactly."""
    if len(body) > LONGEST:
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
