r"""Final answers: taking them out of a solution and comparing them with the gold one.

An answer is a list of one or more items: "5 and 9" are two. Items are compared as
normalised texts, then as exact fractions, and then as formulas (`formulas`, `values`).
What is in no grammar is equal only to the same text. Strict grading takes an answer
from a closed box only, and compares texts and fractions only.
"""

import functools
import re
from fractions import Fraction
from typing import Any, NamedTuple

from stepjax.evaluation import formulas, limits, typesetting, values
from stepjax.evaluation.typesetting import LONGEST, Item
from stepjax.prompts import boxed

# Of this grader. It is raised with every change by which an answer could be graded
# otherwise than before; result files state it.
VERSION = 1

_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")
_HEADING = re.compile(
    r"(?i).*:|.*\b(?:solution|step|method|case|proof|part|approach|note|answer)s?\b.*"
)


def inputs() -> dict[str, str]:
    """Returns the grader's number as an input of a result that it has graded.

    So a result of an earlier grader is not taken for one of this grader. Results of the
    first grader do not have this input.
    """
    return {"grader": str(VERSION)} if VERSION > 1 else {}


def extract(text: str, *, strict: bool = False) -> str | None:
    r"""Takes the final answer out of a solution.

    Args:
      text: the solution, as written by a model or a person.
      strict: whether only the form counts that the prompt asks for, a closed box.

    Returns:
      The contents of the last closed \boxed{...} that is not empty, or the number or
      letter behind the last \boxed without braces; without one, what follows "####" on
      the last line that begins with it and is no heading; None without either. No other
      words are looked for: "the answer is 7" has no answer.
    """
    answer = boxed(re.sub(r"\\boxed\{\s*\}", "", text))
    if answer is None and not strict:
        bare = re.findall(r"\\boxed\s+(-?\d[\d.,]*\d|-?\d|[A-Za-z])(?![A-Za-z])", text)
        lines = re.findall(r"^####[ \t]*(\S.*)$", text, flags=re.MULTILINE)
        found = bare or [line for line in lines if not _HEADING.fullmatch(line.strip())]
        answer = found[-1] if found else None
    return None if answer is None else answer.strip()


class Grade(NamedTuple):
    """What the grader says of an answer.

    Attributes:
      right: whether it means the same as the gold one.
      limit: which limit of the grader the comparison met, in words, so that the answer
        counts as wrong without having been compared to its end; "" for none, and for
        an answer that is right.
    """

    right: bool
    limit: str = ""


def grade(
    prediction: str | None,
    gold: str,
    *,
    tolerance: str = "",
    unit: str = "",
    strict: bool = False,
) -> Grade:
    """Grades a predicted answer by what its benchmark states.

    Args:
      prediction: a model's final answer, or None when it gave none.
      gold: the benchmark's answer.
      tolerance: the largest difference from the gold number that is right, e.g. "0.1";
        with commas one for each answer of a list, where an empty one is exact; "" for
        none. It is for numbers only.
      unit: the unit of the gold answer; a prediction with another unit is wrong, and
        one without a unit is not. "" for none.
      strict: whether only the gold answer itself is right, as the same text in any
        notation or as an equal number, with the same unit, and with the items of a list
        in the same order. Tolerance and unit of the benchmark are not used then.
    """
    with limits.noted() as met:
        if strict:
            right = prediction is not None and _alike(prediction, gold)
            return Grade(right, "" if right else next(iter(met), ""))
        right = _equivalent(prediction, gold, unit)
        if not right and tolerance and prediction is not None:
            right = _within(prediction, gold, tolerance.split(","), unit)
    return Grade(right, "" if right else next(iter(met), ""))


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

    Example:
      >>> equivalent("1,234", "1234"), equivalent("0.5", r"\frac12")
      (True, True)
      >>> equivalent(None, "7")
      False
    """
    return _equivalent(prediction, gold, "")


def _equivalent(prediction: str | None, gold: str, unit: str) -> bool:
    if prediction is None:
        return False
    if _is_too_long(prediction, gold):
        return False
    unit = typesetting.unit(unit) if unit else ""
    return any(
        _same_list(ours, golds, unit)
        for ours in _readings(prediction)
        for golds in _readings(gold)
    )


def _is_too_long(prediction: str, gold: str) -> bool:
    """Whether a text is too long for a final answer, which is noted then."""
    if len(prediction) <= max(LONGEST, 2 * len(gold)):
        return False
    limits.met(f"an answer of more than {LONGEST} characters")
    return True


def _alike(prediction: str, gold: str) -> bool:
    """Whether two answers are the same texts or equal numbers, item by item."""
    if _is_too_long(prediction, gold):
        return False
    ours, golds = (
        [typesetting.parse(x) for x in _split(_without_commas(typesetting.notation(t)))]
        for t in (prediction, gold)
    )
    return len(ours) == len(golds) and all(map(_is_alike, ours, golds))


def _is_alike(ours: Item, gold: Item) -> bool:
    if not gold.body or (ours.name, ours.unit) != (gold.name, gold.unit):
        return False
    # The notation writes ", " as ";".
    if ours.body.replace(";", ",") == gold.body.replace(";", ","):
        return True
    value = typesetting.number(gold.body)
    return value is not None and typesetting.number(ours.body) == value


def _within(prediction: str, gold: str, allowed: list[str], unit: str) -> bool:
    """Whether all numbers are as near to the gold ones as is allowed, in any order."""
    if _is_too_long(prediction, gold):
        return False
    golds, ours = (
        [typesetting.parse(item) for item in _readings(text)[0]]
        for text in (gold, prediction)
    )
    allowed = allowed * (len(golds) if len(allowed) == 1 else 1)
    if not len(allowed) == len(golds) == len(ours) <= values.MOST_ITEMS:
        return False
    unit = typesetting.unit(unit)
    if any(item.unit not in ("", unit) for item in ours if unit):
        return False
    left = list(map(_number, ours))
    for item, most in zip(golds, allowed, strict=True):
        wanted, most = _number(item), Fraction(most.strip() or 0)
        if wanted is None or None in left:
            return False
        place = next((n for n, x in enumerate(left) if abs(x - wanted) <= most), None)
        if place is None:
            return False
        del left[place]
    return True


def _number(item: Item) -> Fraction | None:
    """Returns the real number of an item, or None when it has none."""
    found = typesetting.number(item.body)
    if found is None and len(item.body) <= LONGEST:
        formula = _formula(item.body)
        found = formula and values.number(formula, _digits(item.body))
    return found


# Lists.


def _readings(text: str) -> list[list[str]]:
    """Returns the lists of items that a text can mean; "70,110" is one number or two.

    A comma between digits separates the groups of a number only if three digits follow
    each, no blank stands beside it, and no bracket is around it.
    """
    text = typesetting.notation(text)
    inner = re.fullmatch(r"\\\{(.*)\\\}", text, re.DOTALL)
    is_set = bool(inner) and _is_list(inner[1])
    if is_set:
        text = inner[1]
    words = re.fullmatch(typesetting.TEXT, text)
    if words and re.fullmatch(r"\s*\w{1,3}(?:\s*[,;]\s*\w{1,3})+\s*", words[1]):
        text = words[1]  # the names of several choices
    apart = _split(text)
    joined = _split(_without_commas(text))
    groups = _THOUSANDS.findall(text)
    if apart == joined or any(",0" in group for group in groups):  # 070 is no item
        readings = [joined]
    else:
        readings = [joined, apart]
    if is_set:  # each member counts once
        readings = [[*dict.fromkeys(map(str.strip, items))] for items in readings]
    return [[part for x in items for part in _both_signs(x)] for items in readings]


def _is_list(text: str) -> bool:
    """Whether the text between two braces lists numbers: no condition, no inner set."""
    return text.strip() != "" and not re.search(
        r"[|:∅]|\\mid|\\[{}]|\\emptyset|\\varnothing", text
    )


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


def _same_list(ours: list[str], golds: list[str], unit: str) -> bool:
    """Whether two lists of items mean the same; the unit is that of the gold items."""
    if max(len(ours), len(golds)) > values.MOST_ITEMS:
        if len(ours) == len(golds):
            limits.met(values.TOO_MANY)
        return [*map(str.strip, ours)] == [*map(str.strip, golds)]
    left, right = (
        [typesetting.parse(item) for item in items] for items in (ours, golds)
    )
    right = [item if item.unit else item._replace(unit=unit) for item in right]
    if not all(item.body for item in left + right):
        return False
    if len(left) == len(right):
        return values.same_items(left, right, _same)
    if 1 not in (len(left), len(right)):
        return False
    return _same_point(left, right) or _same_conditions(left, right)


def _same_point(left: list[Item], right: list[Item]) -> bool:
    """Whether a point is given by its coordinates: "x = 1, y = 2" for (1, 2)."""
    several, (one,) = (left, right) if len(right) == 1 else (right, left)
    names = [item.name for item in several]
    point = _formula(one.body)
    if "" in names or len({*names}) < len(names) or point is None:
        return False
    several = sorted(several, key=lambda item: item.name)
    if one.name and re.split("[,;]", one.name.strip("()")) != sorted(names):
        return False
    text = ",".join(item.body for item in several)
    return _same_formula(f"({text})", one.body)


def _same_conditions(left: list[Item], right: list[Item]) -> bool:
    """Whether a set of numbers is given by several relations: "x < 1 or x > 3"."""
    several, (one,) = (left, right) if len(right) == 1 else (right, left)
    read = [_formula(typesetting.equation(item)) for item in several]
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


def _same(ours: Item, gold: Item) -> bool:
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
        return _same_formula(typesetting.equation(ours), typesetting.equation(gold))
    if ours.body == gold.body:
        return True
    mine, golds = typesetting.number(ours.body), typesetting.number(gold.body)
    if mine is not None and golds is not None:
        return mine == golds or (
            ("percent" in (ours.unit, gold.unit) and ours.unit != gold.unit)
            and (mine / 100 if ours.unit else mine)
            == (golds / 100 if gold.unit else golds)
        )
    return _same_formula(ours.body, gold.body)


def _same_formula(ours: str, gold: str) -> bool:
    if max(len(ours), len(gold)) > LONGEST:
        limits.met(f"a formula of more than {LONGEST} characters")
        return False
    left, right = _formula(ours), _formula(gold)
    if left is None or right is None:
        return False
    return values.equal(left, right, _digits(ours, gold))


def _formula(text: str) -> formulas.Formula | None:
    found = _read(text)
    if found is formulas.TooDeep:
        limits.met("a formula that is nested too deep")
        return None
    return found


@functools.lru_cache(maxsize=4096)
def _read(text: str) -> Any:
    """Reads a formula; returns None for none, and `TooDeep` for one beyond a limit."""
    try:
        return formulas.read(text)
    except formulas.TooDeep:
        return formulas.TooDeep
    except formulas.NotAFormula:
        return None


def _digits(*texts: str) -> int:
    return 60 + 2 * sum(map(len, texts))
