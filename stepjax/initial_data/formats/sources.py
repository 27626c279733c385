"""Files of public data sets, in their upstream schemas, to records.

`FORMATS` says which format gives which records. `read` reads a file or a folder in one
of them; `readers` gives those that make one kind of record.
"""

import functools
import json
import os
from collections.abc import Callable
from typing import Any

from stepjax import records
from stepjax.initial_data import step_values
from stepjax.initial_data.formats import (
    fields,
    files,
    meaning,
    own,
    preferences,
    prm800k,
    step_labels,
    tfds,
    word_problems,
    worked,
)
from stepjax.prompts import Templates

# (row, name, templates) → records; raises ValueError("reason; expected ...").
Parse = Callable[[dict[str, Any], str, Templates], list]
# (path, templates, strict=False) → records; see `read`.
Reader = Callable[..., list]

TYPES = {
    "question": records.Question,
    "problem": records.Problem,
    "worked": records.Worked,
    "solution": records.Solution,
    "labels": records.StepLabels,
    "comparison": records.Comparison,
    "preference": records.Preference,
}
# Formats whose rows are solutions. As questions, those of one problem are one.
SOLUTIONS = ("prm800k", "processbench")
_ASKED = ("question", "problem")


def _values(row: dict[str, Any], name: str, templates: Templates) -> list:
    """Makes step labels of the values that rollouts estimated."""
    return step_values.labels(records.from_object(row, step_values.StepValues))


def _value_pairs(row: dict[str, Any], name: str, templates: Templates) -> list:
    """Makes preferences of steps whose values differ by at least a half."""
    values = records.from_object(row, step_values.StepValues)
    return step_values.pairs(values, margin=0.5)


_WORKED: dict[str, Parse] = {
    "question": worked.question,
    "problem": worked.worked_problem,
    "worked": worked.worked,
}
# Format → what it gives → how one row is taken apart.
FORMATS: dict[str, dict[str, Parse]] = {
    "jsonl": {to: functools.partial(own.parse, to=kind) for to, kind in TYPES.items()},
    "gsm8k": {
        "question": worked.gsm8k_question,
        "problem": worked.gsm8k_problem,
        "worked": worked.gsm8k_worked,
        "solution": worked.gsm8k_solution,
    },
    "math": _WORKED,
    "numina": _WORKED,
    "benchmark": {to: functools.partial(own.parse, to=TYPES[to]) for to in _ASKED},
    "word_problems": {
        "question": worked.question,
        "problem": worked.problem,
        "solution": word_problems.solution,
    },
    "prm800k": {
        "question": prm800k.question,
        "problem": prm800k.problem,
        "labels": prm800k.labels,
        "comparison": prm800k.comparisons,
        "preference": prm800k.preferences,
    },
    "processbench": {"question": worked.question, "labels": step_labels.processbench},
    "math_shepherd": {"labels": step_labels.math_shepherd},
    "stepwise": {"labels": step_labels.stepwise},
    "step_dpo": {"preference": preferences.step_dpo},
    "trl": {"preference": preferences.trl},
    "values": {"labels": _values, "preference": _value_pairs},
}


def parser(form: str, to: str) -> Parse:
    """Returns how the rows of a format are taken apart.

    Args:
      form: the format, one of `FORMATS`.
      to: the records wanted, one of `TYPES`.

    Raises:
      ValueError: for a format that is not known, or does not give these records.
    """
    if to not in TYPES:
        raise ValueError(f"records {to!r}; expected one of {tuple(TYPES)}.")
    known = tuple(name for name in FORMATS if to in FORMATS[name])
    if form not in FORMATS:
        raise ValueError(f"format {form!r}; expected one of {known} for {to!r}.")
    if to not in FORMATS[form]:
        raise ValueError(
            f"format {form!r} gives {tuple(FORMATS[form])}; expected one of these "
            f"instead of {to!r}, or one of the formats {known}."
        )
    return FORMATS[form][to]


def read(
    path: str | os.PathLike,
    form: str,
    to: str,
    templates: Templates,
    rejects: files.Rejects | None = None,
    *,
    strict: bool = False,
) -> list:
    """Reads the records of a file or a folder.

    Args:
      path: a file or a folder, see `files.rows`, or an address of TFDS, see `tfds`.
      form: its format, one of `FORMATS`.
      to: the records wanted, one of `TYPES`.
      templates: their step marker begins each step.
      rejects: where bad rows are listed; None stops at the first.
      strict: whether rows of our own format may hold nothing but the fields of the
        record; see `own`. Otherwise fields that are passed over are named in one line.

    Returns:
      The records, in the order of the rows. A problem with several solutions in PRM800K
      or ProcessBench is one question, that of its first row. An id that the source does
      not give holds the format, the file's name and the row's index from 0:
      "gsm8k-train-17".

    Raises:
      ValueError: "PATH:LINE (id ID): reason; expected ..." for a row that does not fit
        the format, or an id that an earlier row has, unless it is listed; or when no
        row is left; see also `files.rows` and `parser`.
    """
    parse, kind = parser(form, to), TYPES[to] if form == "jsonl" else None
    if strict and kind:
        parse = functools.partial(parse, strict=True)
    return read_with(path, parse, form, templates, rejects, own_type=kind)


def read_with(
    path: str | os.PathLike,
    parse: Parse,
    form: str,
    templates: Templates,
    rejects: files.Rejects | None = None,
    *,
    own_type: type | None = None,
) -> list:
    """Reads the records of a file with a given function for its rows; see `read`.

    Args:
      path: a file or a folder, see `files.rows`, or an address of TFDS, see `tfds`.
      parse: takes one row apart.
      form: name of the format, for the ids; ids of "jsonl" and "benchmark" go without.
      templates: their step marker begins each step.
      rejects: where bad rows are listed; None stops at the first.
      own_type: the type of the records where the rows are in our own format: of a
        dataset of TFDS, only its fields are taken.
    """
    rejects = rejects or files.Rejects(collect=False)
    prefix = "" if form in ("jsonl", "benchmark") else f"{form}-"
    made: list = []
    places: dict[str, str] = {}
    unread: set[str] = set()
    unanswered: list[str] = []
    if tfds.is_address(str(path)):
        found = tfds.rows(str(path), rejects, own_type)
    else:
        found = files.rows(path, rejects)
    for place, row in found:
        try:
            new = parse(row, prefix + place.name, templates)
            for record in new:
                meaning.check(record, templates)
                if record.id in places:
                    raise ValueError(
                        f"id {record.id!r} is at {places[record.id]} already; "
                        "expected every id once."
                    )
        except ValueError as error:
            text = json.dumps(row, ensure_ascii=False, default=str)
            rejects.add(place, str(error), text, _shown_id(row))
            continue
        if own_type:
            unread |= own.unread(row, own_type)
        places.update((record.id, str(place)) for record in new)
        unanswered += [
            f"{place} (id {record.id[:60]})"
            for record in new
            if isinstance(record, records.Problem) and fields.is_blank(record.answer)
        ]
        made += new
    if form in SOLUTIONS and made and type(made[0]) in map(TYPES.get, _ASKED):
        asked: dict[str, Any] = {}
        for record in made:
            asked.setdefault(record.problem, record)
        made = list(asked.values())
    if unread:
        names = ", ".join(sorted(unread))
        rejects.say(f"{path}: these fields are not read: {names}")
    if unanswered:
        _check_answers(path, unanswered, len(made), rejects)
    if not rejects.kept:
        raise ValueError(
            f"{path}: all of the {rejects.read} rows are bad, the first because: "
            f"{rejects.rows[0]['reason']} Is it in the format {form!r}?"
        )
    return made


def _check_answers(
    path: str | os.PathLike, unanswered: list[str], count: int, rejects: files.Rejects
) -> None:
    """Names the problems without an answer, as proofs are; refuses nothing but them."""
    if len(unanswered) == count:
        raise ValueError(
            f"{path}: none of the {count} problems has an answer; expected some, "
            "because nothing could be right. Take a file with answers."
        )
    rejects.say(
        f"{unanswered[0]}: this problem has no answer, as have {len(unanswered)} of "
        f"{count} in all; whatever a model says to them counts as wrong."
    )


def readers(to: str) -> dict[str, Reader]:
    """Returns the readers that make one kind of record, by format.

    Args:
      to: the records wanted, one of `TYPES`.
    """
    names = (form for form, makes in FORMATS.items() if to in makes)
    return {form: functools.partial(_read, form=form, to=to) for form in names}


def _read(
    path: str | os.PathLike,
    templates: Templates,
    form: str,
    to: str,
    *,
    strict: bool = False,
) -> list:
    rejects = files.Rejects(collect=False, say=_say)
    return read(path, form, to, templates, rejects, strict=strict)


def _say(text: str) -> None:
    print(f"stepjax: {text}", flush=True)


def _shown_id(row: dict[str, Any]) -> str:
    """Returns the id that a row states, cut to a length for messages, or ""."""
    found = [value for name, value in row.items() if name.strip().lower() == "id"]
    stated = fields.number_as_text(found[0]) if found else ""
    return stated[:60] if isinstance(stated, str) else ""
