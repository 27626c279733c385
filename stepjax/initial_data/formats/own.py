r"""Rows in our own form, "jsonl", read as people write them.

A row of one kind has the fields of its record in `stepjax.records`. Besides:

- The name of a field may be in capitals; "question" is another name of "problem", and
  "unique_id" of "id". A row without an id gets one.
- Published benchmarks have a few fields more; see `published` in this folder.
- A number may stand where a text is expected, in an id and in an answer. The answer of
  a problem may be missing where its "solution" has a \boxed{}, and GSM8K's last line
  "#### 72" gives the answer 72.
- Steps without markers are numbered. A marker with a wrong number is an error.
- Further fields are passed over, unless the reader is strict.

`parse` takes one row apart. Errors are "reason; expected ...".
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from stepjax import prompts, records
from stepjax.initial_data.formats import fields, meaning, published
from stepjax.initial_data.formats.worked import closing
from stepjax.prompts import Templates

_OTHER_NAMES = {"question": "problem", "unique_id": "id"}
# What may tell the answer of a problem whose row has no field "answer".
_ANSWERS = ("final_answer", "solution")
_OF_PROBLEMS = (*_ANSWERS, *published.FIELDS)


def parse(
    row: dict[str, Any],
    name: str,
    templates: Templates,
    *,
    to: type,
    strict: bool = False,
) -> list:
    """Makes the record of a row.

    Args:
      row: the JSON object.
      name: id of a row without one.
      templates: their step marker begins each step.
      to: the record's type, one of those in `stepjax.records`.
      strict: whether further fields, other names and numbers are errors, and so is a
        missing id.

    Raises:
      ValueError: "reason; expected ..." for a field that is missing or of another kind.
    """
    if strict:
        made = records.from_object(row, to)
        if to is records.Problem:
            fields.text(row, "answer")
    else:
        made = _tolerant(row, name, templates, to)
    meaning.check(made, templates)  # first, for messages about what the row has
    meaning.check_own(made)
    return [made]


def _tolerant(row: dict[str, Any], name: str, templates: Templates, to: type) -> Any:
    named = _with_our_names(row, to)
    _check_given(row, named, to)
    return _MAKERS[to](named, fields.identity(named, name), templates)


def unread(row: dict[str, Any], to: type) -> set[str]:
    """Returns the names of the fields of a row that `parse` passes over."""
    read = {field.name for field in dataclasses.fields(to)}
    read |= set(_OF_PROBLEMS) if to is records.Problem else set()
    return {given for given in row if _our_name(given) not in read}


def _our_name(given: str) -> str:
    plain = given.strip().lower()
    return _OTHER_NAMES.get(plain, plain)


def _with_our_names(row: dict[str, Any], to: type) -> dict[str, Any]:
    """Returns a row under our names, without fields that are null."""
    ours = {field.name for field in dataclasses.fields(to)}
    row = {name: value for name, value in row.items() if value is not None}
    named = {name: value for name, value in row.items() if name in ours}
    for given, value in row.items():
        named.setdefault(_our_name(given), value)
    return named


def _check_given(row: dict[str, Any], named: dict[str, Any], to: type) -> None:
    """Raises ValueError for a field that is null, and that no other one replaces."""
    needed = {
        f.name for f in dataclasses.fields(to) if f.default is dataclasses.MISSING
    }
    needed -= named.keys() | {"id"}
    if to is records.Solution or any(name in named for name in _ANSWERS):
        needed.discard("answer")  # a boxed one will do
    for given, value in row.items():
        name = _our_name(given)
        if value is None and name in needed:
            wanted = {"answer": fields.TEXT_OR_NUMBER}.get(name, "something in it")
            raise ValueError(f"field {given!r} {fields.EMPTY}; expected {wanted}.")


def _question(row: dict, identity: str, t: Templates) -> records.Question:
    return records.Question(identity, published.text(row))


def _problem(row: dict, identity: str, t: Templates) -> records.Problem:
    made = identity, published.text(row), answer(row)
    return records.Problem(*made, **published.grading(row))


def answer(row: dict[str, Any]) -> str:
    r"""Takes the answer of a problem: a text or a number.

    Where the row has no field "answer", it is what "final_answer" holds (OlympiadBench:
    a list of texts), or the last \boxed{} of "solution" (MATH).

    Raises:
      ValueError: when there is none, or it is neither a text nor a number.
    """
    if "answer" in row:
        stated = fields.answer(row)
        last = re.search(r"^#### *(\S.*?)\s*\Z", stated, re.MULTILINE)  # GSM8K
        return last[1].replace(",", "") if last else stated
    final = row.get("final_answer")
    if isinstance(final, list):
        return ",".join(
            fields.answer({"final_answer": x}, "final_answer") for x in final
        )
    if final is not None:
        return fields.answer(row, "final_answer")
    boxed = prompts.boxed(fields.text(row, "solution")) if "solution" in row else None
    if boxed is None:
        raise ValueError(
            f"no answer (the fields {sorted(row)} are there); expected the field "
            "'answer', or a \\boxed{} in the field 'solution'."
        )
    return boxed


def _worked(row: dict, identity: str, t: Templates) -> records.Worked:
    stated = fields.answer(row) if "answer" in row else ""
    problem, solution = (fields.text(row, name) for name in ("problem", "solution"))
    return records.Worked(identity, problem, solution, stated)


def _solution(row: dict, identity: str, t: Templates) -> records.Solution:
    r"""Makes an IFT row; its last step gets the \boxed{} that ends a search."""
    if "steps" not in row and "solution" in row:
        raise ValueError(
            "field 'solution' and no field 'steps'; expected a list of steps. The "
            "format 'math' cuts whole solutions into steps."
        )
    problem, steps = fields.text(row, "problem"), list(_steps(t, row, "steps"))
    boxed = prompts.boxed(steps[-1]) if steps else None
    stated = fields.answer(row).strip() if "answer" in row else ""
    stated = stated or boxed or ""
    if steps and not stated:
        raise ValueError(
            f"no answer: the last step is {steps[-1][:60]!r}, without a \\boxed{{}}; "
            "expected one, or the field 'answer'."
        )
    if steps and boxed is None:
        steps[-1] += f" {closing(stated)}"
    return records.Solution(identity, problem, tuple(steps), stated)


def _comparison(row: dict, identity: str, t: Templates) -> records.Comparison:
    problem, steps = fields.text(row, "problem"), _steps(t, row, "steps")
    a, b = _two(t, row, ("a", "b"), len(steps) + 1)
    verdict = fields.field(row, "verdict", str).strip()
    written = fields.field({"explanation": "", **row}, "explanation", str)
    return records.Comparison(
        identity, problem, steps, a, b, verdict, _explanation(t, written, verdict)
    )


def _explanation(t: Templates, text: str, side: str) -> str:
    """Returns an explanation without white space in front and a verdict at its end."""
    end = prompts.verdict(t, side) if side in tuple(prompts.SIDES) else ""
    if end and text.rstrip().endswith(end):
        text = text.rstrip().removesuffix(end)
    text = text.lstrip()
    return text if not text or text[-1].isspace() else f"{text}\n"


def _preference(row: dict, identity: str, t: Templates) -> records.Preference:
    problem, steps = fields.text(row, "problem"), _steps(t, row, "steps")
    both = _two(t, row, ("chosen", "rejected"), len(steps) + 1)
    return records.Preference(identity, problem, steps, *both)


def _labels(row: dict, identity: str, t: Templates) -> records.StepLabels:
    problem, steps = fields.text(row, "problem"), _steps(t, row, "steps")
    labels = [
        int(label) if isinstance(label, bool) else label
        for label in fields.field(row, "labels", list)
    ]
    return records.StepLabels(identity, problem, steps, tuple(labels))


def _steps(t: Templates, row: dict[str, Any], name: str) -> tuple[str, ...]:
    texts = fields.field(row, name, list)
    for number, text in enumerate(texts, 1):
        if isinstance(text, str):
            _check_number(t, number, text)
    return fields.steps(t, texts)


def _two(
    t: Templates, row: dict[str, Any], names: tuple[str, str], number: int
) -> tuple[str, str]:
    """Takes the two next steps of a row."""
    texts = [fields.text(row, name) for name in names]
    for text in texts:
        _check_number(t, number, text)
    first, second = (fields.step(t, number, text) for text in texts)
    return first, second


def _check_number(t: Templates, number: int, text: str) -> None:
    """Raises ValueError for a step that begins with the marker of another one.

    So do words that count along, such as "Stage 1:", where the marker is "Step 1: ".
    """
    before, _, after = t.step.partition("{n}")
    ours = rf"\s*{re.escape(before)}(\d+){re.escape(after.rstrip())}"
    found = re.match(rf"{ours}|\s*(?!Step\b)[A-Za-z]+ +{number}[:.)]", text)
    if found and (found[1] is None or int(found[1]) != number):
        raise ValueError(
            f"step {number} begins with {text.strip()[:40]!r}; expected "
            f"{prompts.marker(t, number)!r}, or no marker at all."
        )


_MAKERS: dict[type, Callable[[dict[str, Any], str, Templates], Any]] = {
    records.Question: _question,
    records.Problem: _problem,
    records.Worked: _worked,
    records.Solution: _solution,
    records.StepLabels: _labels,
    records.Comparison: _comparison,
    records.Preference: _preference,
}
