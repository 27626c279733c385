"""Judgments of next steps of word problems: wrong steps, and explanations that teach.

An explanation redoes the calculation that is due, then checks both candidates:

    The last calculation is 76 - 25 = 51. A: 76 / 25 = 3, ends, wrong.
    B: 76 - 25 = 51, ends, right. [[B]]

With the style "worked" it also does the calculation digit by digit, as small models
often get a sum of two-digit numbers wrong:

    The last calculation is 76 - 25. 76 - 20 = 56, 56 - 5 = 51. A: 76 / 25 = 3, …
"""

import random
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from stepjax import prompts
from stepjax.initial_data import eft
from stepjax.initial_data.formats import word_problems as form
from stepjax.prompts import Templates
from stepjax.records import Comparison, Preference
from stepjax.worlds import equations
from stepjax.worlds import word_problems as world
from stepjax.worlds.equations import Equation, Operation

EXPLANATIONS = ("short", "worked", "none")  # data.explanations

# How often a corrupted step has each mistake, if the problem allows it. Of the wrong
# first steps that SmolLM2-135M sampled after SFT on solutions and drills, 27 % had a
# wrong operation, 23 % wrong operands, 5 % the wrong order, 37 % wrong arithmetic, 6 %
# ended early and 1 % went on. The last two are drawn more often, so that the judge sees
# enough of them, and arithmetic less often.
SHARES = {
    world.OPERATION: 0.3,
    world.OPERANDS: 0.2,
    world.ORDER: 0.07,
    world.ARITHMETIC: 0.25,
    world.ENDS_EARLY: 0.11,
    world.GOES_ON: 0.07,
}
# Of the swapped operands: 3 - 4 = 1 for 4 - 3 = 1, the rest is worked out: 3 - 4 = -1.
RESULT_KEPT = 0.5
_TRIES = 20  # draws of another wrong step before there is none
_NUMBER = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]{1,40}(?:\.[0-9]+)?")


# Wrong steps.


def corrupt(
    row: Equation,
    steps: Sequence[str],
    rng: random.Random,
    step: str = Templates.step,
) -> str:
    """Makes a wrong next step of the right one, with one mistake.

    The kinds of mistakes are drawn with `SHARES`. With a wrong operation, wrong or
    swapped operands the result belongs to the wrong calculation, so that only the
    choice is wrong; half of the swapped ones keep the right result (`RESULT_KEPT`).
    Wrong operands come from the problem's text, its equation, and earlier results.

    Args:
      row: the problem.
      steps: the steps so far, all right.
      rng: source of the choices; it is advanced.
      step: form of a step's marker.

    Raises:
      ValueError: if no operation is due.
    """
    move = world.next_move(row, steps)
    if move is None:
        raise ValueError(
            f"problem {row.id!r} has no calculation after {list(steps)}; expected "
            "fewer steps than operations, all of them right."
        )
    kinds = list(SHARES)
    while kinds:
        kind = rng.choices(kinds, [SHARES[kind] for kind in kinds])[0]
        kinds.remove(kind)
        made = _WRONG[kind](row, steps, move, rng)
        for operation, ends in made:
            box = _box(row, operation, move.operation) if ends else None
            text = world.step_text(len(steps) + 1, operation, box=box, step=step)
            if world.mistake(row, steps, text) == kind:
                return text
    raise AssertionError(f"no mistake can be made in {row.id!r} after {list(steps)}.")


def _box(row: Equation, operation: Operation, right: Operation) -> str:
    """Returns what a step with this calculation boxes."""
    if operation.value == right.value == world.value_of(row):
        return row.answer
    return world.in_box(operation.value)


def _wrong_operations(row, steps, move, rng) -> list[tuple[Operation, bool]]:
    symbol, left, right, _ = move.operation
    others = [other for other in "+-*/" if other != symbol]
    return _worked([(other, left, right) for other in others], move, rng)


def _wrong_operands(row, steps, move, rng) -> list[tuple[Operation, bool]]:
    symbol, left, right, _ = move.operation
    known = sorted(_numbers(row, steps) - {left, right})
    made = [(symbol, left, other) for other in known]
    made += [(symbol, other, right) for other in known]
    return _worked(made, move, rng)


def _swapped(row, steps, move, rng) -> list[tuple[Operation, bool]]:
    symbol, left, right, value = move.operation
    if rng.random() < RESULT_KEPT:
        return [(Operation(symbol, right, left, value), move.last)]
    return _worked([(symbol, right, left)], move, rng)


def _slips(row, steps, move, rng) -> list[tuple[Operation, bool]]:
    results = slips(move.operation.value)
    rng.shuffle(results)
    return [(move.operation._replace(value=value), move.last) for value in results]


def _other_end(row, steps, move, rng) -> list[tuple[Operation, bool]]:
    return [(move.operation, not move.last)]


_WRONG = {
    world.OPERATION: _wrong_operations,
    world.OPERANDS: _wrong_operands,
    world.ORDER: _swapped,
    world.ARITHMETIC: _slips,
    world.ENDS_EARLY: _other_end,
    world.GOES_ON: _other_end,
}


def _worked(
    calculations: list[tuple[str, Fraction, Fraction]],
    move: equations.Move,
    rng: random.Random,
) -> list[tuple[Operation, bool]]:
    """Returns calculations with their results in random order, plain results first.

    A result is plain if it is not negative and has at most two decimals, as most
    results of word problems.
    """
    rng.shuffle(calculations)
    made = [(*item, form.apply(*item)) for item in calculations]
    done = [Operation(*item) for item in made if item[3] is not None]
    done.sort(key=lambda item: item.value < 0 or (item.value * 100).denominator > 1)
    return [(operation, move.last) for operation in done]


def _numbers(row: Equation, steps: Sequence[str]) -> set[Fraction]:
    """Returns the numbers that a wrong operand can be."""
    numbers = {Fraction(text.replace(",", "")) for text in _NUMBER.findall(row.problem)}
    symbols = row.equation.split()
    numbers |= {Fraction(text) for text in symbols if form.NUMBER.fullmatch(text)}
    calculations = (world.read_step(text).calculation for text in steps)
    return numbers | {c.result.value for c in calculations if c}


def slips(value: Fraction) -> list[Fraction]:
    """Returns typical wrong results: off by one or two, by a carry, or in one digit."""
    text = form.written(abs(value))
    digits, _, denominator = text.partition("/")
    unit = Fraction(1, 10 ** len(digits.partition(".")[2]))
    sign, size = (-1 if value < 0 else 1), Fraction(digits)
    made = [size + n * unit for n in (-10, -2, -1, 1, 2, 10)]
    places = [n for n, digit in enumerate(digits) if digit.isdigit()]
    for place in places:
        for digit in "0123456789":
            changed = f"{digits[:place]}{digit}{digits[place + 1 :]}"
            if digit != digits[place] and (
                changed[0] != "0" or place or len(places) < 2
            ):
                made.append(Fraction(changed))
    for one, two in zip(places, places[1:], strict=False):
        swapped = list(digits)
        swapped[one], swapped[two] = digits[two], digits[one]
        made.append(Fraction("".join(swapped)))
    below = int(denominator or 1)
    wrong = {sign * other / below for other in made if other >= 0}
    return sorted(wrong - {value})


# Judgments.


def comparisons(
    id: str,
    row: Equation,
    rng: random.Random,
    undecided: float = 0.0,
    *,
    style: str = "short",
    step: str = Templates.step,
) -> list[Comparison]:
    """Compares a corrupted next step with the right one at a random place.

    Args:
      id: the rows' ids are this and "-ab" or "-ba".
      row: the problem.
      rng: picks the place and the mistakes; it is advanced.
      undecided: share of the comparisons in which both steps are wrong.
      style: of the explanation, one of `EXPLANATIONS`.
      step: form of a step's marker.

    Returns:
      Two rows, one per order; none for an equation without an operation.
    """
    length = len(equations.read_equation(row.equation)[1])
    if not length:
        return []
    steps: list[str] = []
    for _ in range(rng.randrange(length)):
        steps.append(world.right_step(row, steps, step))
    wrong = corrupt(row, steps, rng, step)
    other = world.right_step(row, steps, step)
    if rng.random() < undecided:
        drawn = (corrupt(row, steps, rng, step) for _ in range(_TRIES))
        other = next((text for text in drawn if text != wrong), other)
    return comparison_from(id, row, steps, other, wrong, style=style)


def comparison_from(
    id: str,
    row: Equation,
    steps: Sequence[str],
    one: str,
    other: str,
    *,
    style: str = "short",
) -> list[Comparison]:
    """Makes the two rows, one per order, that compare two next steps.

    Where both are right or both are wrong there is no preference, and the verdict is
    the candidate that is shown first: a judge that learns this contradicts itself when
    it is asked in both orders, which counts for neither candidate.

    Args:
      id: the rows' ids are this and "-ab" or "-ba".
      row: the problem.
      steps: the steps so far, all right.
      one: a next step; the first one shown in row "-ab".
      other: another next step, corrupted or sampled.
      style: of the explanation, one of `EXPLANATIONS`.

    Raises:
      ValueError: if the two are the same, or a step before them is wrong.
    """
    if one == other or world.remaining(row, steps) is None:
        raise ValueError(
            f"the next steps {one!r} and {other!r} were given after {list(steps)}; "
            "expected two different ones after steps that are all right."
        )
    rows = []
    for order, a, b in (("ab", one, other), ("ba", other, one)):
        kinds = [world.mistake(row, steps, text) for text in (a, b)]
        verdict = "B" if kinds[0] is not None and kinds[1] is None else "A"
        text = "" if style == "none" else explanation(row, steps, a, b, style)
        rows.append(
            Comparison(f"{id}-{order}", row.problem, tuple(steps), a, b, verdict, text)
        )
    return rows


def explanation(
    row: Equation, steps: Sequence[str], a: str, b: str, style: str = "short"
) -> str:
    """Explains a judgment: the due calculation, then a sentence about each candidate.

    It ends with a space, after which the verdict follows at once. Where several
    operations are due, it names that of a right candidate, if there is one.

    Args:
      row: the problem.
      steps: the steps so far, all right.
      a: the next step that is shown first.
      b: the next step that is shown second.
      style: "short" or "worked".
    """
    return _explained(row, steps, {"A": a, "B": b}, style)


def appraisal(
    row: Equation, steps: Sequence[str], text: str, style: str, name: str = "A"
) -> str:
    """Explains the judgment of one next step, as `explanation` explains that of two."""
    return _explained(row, steps, {name: text}, style)


def _explained(
    row: Equation, steps: Sequence[str], candidates: Mapping[str, str], style: str
) -> str:
    due = world.next_move(row, steps)
    for text in reversed(candidates.values()):
        if world.mistake(row, steps, text) is None:
            due = world.move_of(row, steps, text) or due
    if due is None:
        start = "All calculations are done. "
    else:
        which = "last" if due.last else "next"
        done = worked(due.operation) if style == "worked" else ""
        done = done or form.calculation(*due.operation)
        start = f"The {which} calculation is {done}. "
    said = (_said(row, steps, *side) for side in candidates.items())
    return start + "".join(f"{text} " for text in said)


def worked(operation: Operation) -> str:
    """Writes a calculation in easier ones: "76 - 25. 76 - 20 = 56, 56 - 5 = 51".

    Sums, differences and products are worked off digit by digit, a quotient is checked
    by the product. The result is the last number. "" where that makes nothing easier:
    for small numbers, for decimals and below 0.
    """
    symbol, left, right, value = operation
    if any(n.denominator > 1 or n < 0 for n in operation[1:]) or max(left, right) < 10:
        return ""
    start = form.expression(symbol, left, right)
    if symbol == "/":
        return f"{start}. {form.calculation('*', right, value, left)}, so {value}"
    parts, lines = _places(right), []
    if symbol == "*" and len(parts) == 1:
        left, right, parts = right, left, _places(left)
    if len(parts) < 2:
        return ""
    if symbol in "+-":
        at = left
        for part in parts:
            result = form.apply(symbol, at, part)
            lines.append(form.calculation(symbol, at, part, result))
            at = result
    else:
        lines += [form.calculation("*", left, part, left * part) for part in parts]
        at = left * parts[0]
        for part in parts[1:]:
            lines.append(form.calculation("+", at, left * part, at + left * part))
            at += left * part
    return f"{start}. {', '.join(lines)}"


def _places(number: Fraction) -> list[Fraction]:
    """Returns the values of the digits of a whole number that are not 0."""
    digits = str(number)
    values = [int(d) * 10 ** (len(digits) - n - 1) for n, d in enumerate(digits)]
    return [Fraction(value) for value in values if value]


def _said(row: Equation, steps: Sequence[str], name: str, text: str) -> str:
    """Returns the sentence about a candidate: what it does, and whether that is right.

    The word comes last, when what it depends on has been written.
    """
    stated, boxed = world.read_step(text)
    parts, result = [], None
    if stated is not None:
        symbol, *numbers, _ = stated
        parts.append(form.calculation(symbol, *(number.value for number in numbers)))
        result = numbers[-1].value
    if boxed is not None:
        number = world.read_number(boxed)
        answer = "no number" if number is None else form.written(number.value)
        ends = number is not None and number.value == result
        parts.append("ends" if ends else f"answers {answer}")
    right = world.mistake(row, steps, text) is None
    parts = parts or ["no clear calculation"]
    return f"{name}: {', '.join(parts)}, {'right' if right else 'wrong'}."


# The world as a teacher.


def answers(
    pairs: Sequence[Preference],
    rows: Sequence[Equation | None],
    templates: Templates,
    *,
    style: str = "short",
) -> list[dict[str, Any]]:
    """Returns the answers to ``eft.requests(pairs, templates)``.

    Args:
      pairs: two next steps each. Where they are the same, or a step before them is
        wrong, or the equation is not known, the answer says so and has no verdict.
      rows: the problem of each pair, or None where its equation is not known.
      templates: the prompt texts.
      style: of the explanations, one of `EXPLANATIONS`.

    Returns:
      Rows of a file for `teacher.replay`, in the order of the prompts.
    """
    texts: list[str] = []
    for pair, row in zip(pairs, rows, strict=True):
        if row is None:
            texts += ["The equation of this problem is not known."] * 2
        elif pair.chosen == pair.rejected:
            texts += ["The two steps are the same."] * 2
        elif world.remaining(row, pair.steps) is None:
            texts += ["A step before these two is wrong."] * 2
        else:
            for made in comparison_from(
                pair.id, row, pair.steps, pair.chosen, pair.rejected, style=style
            ):
                texts.append(
                    made.explanation + prompts.verdict(templates, made.verdict)
                )
    return eft.replay_rows(pairs, texts, templates)
