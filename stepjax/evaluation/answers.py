r"""Final answers: taking them out of a solution and comparing them with the gold one.

Three comparisons, cheapest first: normalised strings, exact fractions, and only for
what is left (roots, intervals, sets, formulas) the math-verify package.
"""

import re
import threading
from fractions import Fraction
from typing import NamedTuple

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
_BASE = re.compile(r"(?P<body>[0-9][0-9A-Z]*)_\s*(?:\{\s*(\w+)\s*\}|(\d))")
_NAME = re.compile(r"([A-Za-z](?:\([A-Za-z]\))?)\s*(?:=|\\in(?![a-z]))\s*([^=]+)")

_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d*)?|\d+(?:\.\d*)?|\.\d+)"
_NUMBER = re.compile(rf"[+-]?\s*(?:{_DECIMAL}|\d{{1,3}}(?: \d{{3}})+)")
_RATIO = re.compile(
    rf"(?P<sign>[+-]?)\s*(?P<whole>\d+\s|\d+(?=\\))?\s*"
    rf"(?:\\frac\{{(?P<up>[+-]?{_DECIMAL})\}}\{{(?P<down>[+-]?{_DECIMAL})\}}"
    rf"|(?P<left>{_DECIMAL})/(?P<right>{_DECIMAL}))"
)
_LONGEST = 400  # characters; a longer text is no final answer, unless the gold is long


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
      The contents of the last closed \boxed{...}; without one, what follows "####" on
      the last line that begins with it; None without either.
    """
    answer = boxed(text)
    if answer is None:
        lines = re.findall(r"^####[ \t]*(\S.*)$", text, flags=re.MULTILINE)
        answer = lines[-1] if lines else None
    return None if answer is None else answer.strip()


def equivalent(prediction: str | None, gold: str) -> bool:
    r"""Says whether a predicted answer means the same as the gold one.

    The comparison is exact: 0.333 is not 1/3. It ignores notation (\dfrac, \left,
    thousands commas, "x =" in front), and units, percent signs and degrees that only
    one side has. Symbolic answers are compared by math-verify, which stops after some
    seconds per pair by means of a signal, so they need the main thread of the process.

    Args:
      prediction: a model's final answer, or None when it gave none.
      gold: the benchmark's answer.

    Returns:
      True when they are equivalent. No answer and an empty one are never right.

    Raises:
      ModuleNotFoundError: a symbolic answer and no math-verify.
      ValueError: a symbolic answer outside the main thread.

    Example:
      >>> equivalent("1,234", "1234"), equivalent("0.5", r"\frac12")
      (True, True)
      >>> equivalent(None, "7")
      False
    """
    if prediction is None or len(prediction) > max(_LONGEST, 2 * len(gold)):
        return False
    left, right = _parse(prediction), _parse(gold)
    if not left.body or not right.body:
        return False
    if left.unit and right.unit and left.unit != right.unit:
        return False
    if left.words or right.words:
        ours, golds = (
            re.sub(r"\s", "", side.body).casefold() for side in (left, right)
        )
        return ours == golds
    if left.name != right.name and (
        (left.name and right.name) or "=" in left.body + right.body
    ):  # two equations in several variables, or in different ones
        return _symbolic(_equation(left), _equation(right))
    if left.body == right.body:
        return True
    ours, golds = _number(left.body), _number(right.body)
    if ours is not None and golds is not None:
        return ours == golds or (
            ("percent" in (left.unit, right.unit) and left.unit != right.unit)
            and (ours / 100 if left.unit else ours)
            == (golds / 100 if right.unit else golds)
        )
    return _symbolic(left.body, right.body)


def _notation(text: str) -> str:
    """Brings different ways to typeset the same thing to one."""
    text = text.replace("\\$", "").replace("$", "")
    text = re.sub(r"^\s*\\[(\[](.*)\\[)\]]\s*$", r"\1", text, flags=re.DOTALL)
    for mark, latex in (
        ("−", "-"),
        ("°", r"^\circ"),
        ("π", r"\pi "),
        ("∞", r"\infty "),
    ):
        text = text.replace(mark, latex)
    text = re.sub(r"(?<=\d)(?:\{,\}|,\\!)\s*(?=\d{3})", "", text)
    text = re.sub(r"(?<!\\)\\[,;:! ]|\\q?quad(?![a-z])|~", " ", text)
    text = " ".join(text.split())
    text = re.sub(r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])", "", text)
    text = re.sub(r"\\[dtc]frac(?![a-z])", r"\\frac", text)
    text = re.sub(r"\\(?:mbox|mathrm|textbf|textrm|textit)(?![a-z])", r"\\text", text)
    text = re.sub(r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\degree", "", text)
    text = re.sub(r"\\?%\s*\.?\s*$", r"\\text{percent}", text)
    text = re.sub(r"\\?%", "", text)
    text = re.sub(r"(?i)(?<![a-z])([ap])\.\s*m\b\.?", r"\1m", text)
    text = re.sub(r"\\frac\s*(\d)", r"\\frac{\1}", text)
    text = re.sub(r"(\\frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}", text)
    text = re.sub(r"\\sqrt\s*(\d)", r"\\sqrt{\1}", text)
    # Lists: "5 and 9", "5 \text{ or } 9" and "5,9" are the same.
    joint = r"\\text\s*\{\s*,?\s*(?:and|or)\s*\}|(?<![a-z\\])(?:and|or)(?![a-z])"
    return re.sub(rf"\s*,?\s*(?:{joint})\s*", ",", text).strip().rstrip(" .")


def _unit(words: str, power: str | None) -> str:
    """Names a unit so that different spellings of it agree."""
    words = words.casefold().replace(".", "").strip()
    prefix, _, rest = words.partition(" ")
    if prefix in ("square", "sq", "cubic") and rest:
        words, power = rest.strip(), "3" if prefix == "cubic" else "2"
    return _UNITS[words] + (f"^{power}" if power else "") if words in _UNITS else ""


def _parse(text: str) -> _Answer:
    """Takes an answer apart: name, value and unit."""
    text = _notation(text)
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
    match = _BASE.fullmatch(text)
    if match:
        text, unit = match["body"], f"base {match[2] or match[3]}"
    body = re.sub(_TEXT, r"\1", text)
    body = re.sub(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])", "", body).rstrip(".")
    body = re.sub(r"^\(([A-Z])\)$", r"\1", re.sub(r"\s+", " ", body))
    return _Answer(name, body, unit, bool(whole and re.search("[A-Za-z]", body)))


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


def _symbolic(prediction: str, gold: str) -> bool:
    """Compares two LaTeX expressions with math-verify; its failures are "not equal"."""
    if max(len(prediction), len(gold)) > _LONGEST:
        return False
    if threading.current_thread() is not threading.main_thread():
        raise ValueError(
            f"comparing {prediction!r} with {gold!r} outside the main thread; expected "
            "the main thread, where math-verify's time limit works. Compare there."
        )
    try:
        from math_verify import parse, verify
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"comparing {prediction!r} with {gold!r} needs math-verify; expected it to "
            "be installed. Run pip install -e '.[train]' in the checkout of stepjax."
        ) from error
    try:
        return bool(verify(parse(f"${gold}$"), parse(f"${prediction}$")))
    except Exception:  # whatever an untrusted expression does to the parser
        return False
