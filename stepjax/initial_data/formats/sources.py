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
    files,
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
Reader = Callable[[str | os.PathLike, Templates], list]  # (path, templates) → records

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
_ASKED = (records.Question, records.Problem)


def _own(row: dict[str, Any], name: str, templates: Templates, to: str) -> list:
    """Makes the record of a row in our own format."""
    return [records.from_object(row, TYPES[to])]


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
    "jsonl": {to: functools.partial(_own, to=to) for to in TYPES},
    "gsm8k": {
        "question": worked.gsm8k_question,
        "problem": worked.gsm8k_problem,
        "worked": worked.gsm8k_worked,
        "solution": worked.gsm8k_solution,
    },
    "math": _WORKED,
    "numina": _WORKED,
    "benchmark": {"question": worked.question, "problem": worked.problem},
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
) -> list:
    """Reads the records of a file or a folder.

    Args:
      path: a file or a folder, see `files.rows`, or an address of TFDS, see `tfds`.
      form: its format, one of `FORMATS`.
      to: the records wanted, one of `TYPES`.
      templates: their step marker begins each step.
      rejects: where bad rows are listed; None stops at the first.

    Returns:
      The records, in the order of the rows. A problem with several solutions in PRM800K
      or ProcessBench is one question, that of its first row. An id that the source does
      not give holds the format, the file's name and the row's index from 0:
      "gsm8k-train-17".

    Raises:
      ValueError: "PATH:LINE: reason; expected ..." for a row that does not fit the
        format, or an id that an earlier row has, unless it is listed; or when no row
        is left; see also `files.rows` and `parser`.
    """
    parse, own = parser(form, to), TYPES[to] if form == "jsonl" else None
    return read_with(path, parse, form, templates, rejects, own=own)


def read_with(
    path: str | os.PathLike,
    parse: Parse,
    form: str,
    templates: Templates,
    rejects: files.Rejects | None = None,
    *,
    own: type | None = None,
) -> list:
    """Reads the records of a file with a given function for its rows; see `read`.

    Args:
      path: a file or a folder, see `files.rows`, or an address of TFDS, see `tfds`.
      parse: takes one row apart.
      form: name of the format, for the ids; ids of "jsonl" and "benchmark" go without.
      templates: their step marker begins each step.
      rejects: where bad rows are listed; None stops at the first.
      own: the type of the records where the rows are in our own format: of a dataset of
        TFDS, only its fields are taken.
    """
    rejects = rejects or files.Rejects(collect=False)
    prefix = "" if form in ("jsonl", "benchmark") else f"{form}-"
    made: list = []
    places: dict[str, str] = {}
    if tfds.is_address(str(path)):
        found = tfds.rows(str(path), rejects, own)
    else:
        found = files.rows(path, rejects)
    for place, row in found:
        try:
            new = parse(row, prefix + place.name, templates)
            for record in new:
                if record.id in places:
                    raise ValueError(
                        f"id {record.id!r} is at {places[record.id]} already; "
                        "expected every id once."
                    )
        except ValueError as error:
            rejects.add(
                place, str(error), json.dumps(row, ensure_ascii=False, default=str)
            )
            continue
        places.update((record.id, str(place)) for record in new)
        made += new
    if form in SOLUTIONS and made and isinstance(made[0], _ASKED):
        asked: dict[str, Any] = {}
        for record in made:
            asked.setdefault(record.problem, record)
        made = list(asked.values())
    if not rejects.kept:
        raise ValueError(
            f"{path}: all of the {rejects.read} rows are bad, the first because: "
            f"{rejects.rows[0]['reason']} Is it in the format {form!r}?"
        )
    return made


def readers(to: str) -> dict[str, Reader]:
    """Returns the readers that make one kind of record, by format.

    Args:
      to: the records wanted, one of `TYPES`.
    """
    names = (form for form, makes in FORMATS.items() if to in makes)
    return {form: functools.partial(_read, form=form, to=to) for form in names}


def _read(path: str | os.PathLike, templates: Templates, form: str, to: str) -> list:
    return read(path, form, to, templates)
