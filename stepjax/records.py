"""The rows that stages exchange, and how they are read from and written to disk.

A file of records is JSON lines: UTF-8, one object per line. Only "\\n" ends a line,
since texts may hold U+2028.
"""

import dataclasses
import functools
import json
import os
import re
import reprlib
import typing
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from stepjax.lm import files, ordinary

_RARE = {"rare": True}  # of a field that `write_jsonl` leaves out where it is empty
_TOLERANCE = re.compile(r"(\d{1,12}(\.\d{0,12})?|\.\d{1,12})([eE][+-]?\d{1,2})?")


@dataclasses.dataclass(frozen=True)
class Question:
    """A problem without its answer: all that the self-rewarding stages get to see.

    Attributes:
      id: name of the row, unique in its file.
      problem: text of the problem.
    """

    id: str
    problem: str


@dataclasses.dataclass(frozen=True)
class Problem:
    """A benchmark item.

    Attributes:
      id: name of the row, unique in its file.
      problem: text of the problem.
      answer: the gold answer, as the benchmark gives it.
      tolerance: the largest difference from a gold number that is still right, such as
        "0.1", where the benchmark allows one; with commas one for each answer of a
        list, where an empty one allows none. "": none.
      unit: of the answer, where the benchmark gives it apart from the answer. "": none.

    Raises:
      ValueError: the tolerance is no number.
    """

    id: str
    problem: str
    answer: str
    tolerance: str = dataclasses.field(default="", metadata=_RARE)
    unit: str = dataclasses.field(default="", metadata=_RARE)

    def __post_init__(self):
        for part in self.tolerance.split(",") if self.tolerance else ():
            if part.strip() and not _TOLERANCE.fullmatch(part.strip()):
                raise ValueError(
                    f"field 'tolerance' is {reprlib.repr(self.tolerance)}; expected a "
                    "number such as '0.1' or '1e-2', or several with commas between "
                    "them."
                )


@dataclasses.dataclass(frozen=True)
class Solution:
    r"""One row of instruction fine-tuning data (IFT).

    Attributes:
      id: name of the row, unique in its file.
      problem: text of the problem.
      steps: texts of the steps, each from its marker ("Step 1: ...") on and without
        a newline at its end; the last one holds a closed \boxed{}.
      answer: the final answer.
    """

    id: str
    problem: str
    steps: tuple[str, ...]
    answer: str


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One row of evaluation fine-tuning data (EFT): two next steps, in one order.

    Attributes:
      id: name of the row, unique in its file.
      problem: text of the problem.
      steps: texts of the steps so far, each from its marker on; may be empty.
      a: text of the next step that is shown first, from its marker on.
      b: text of the next step that is shown second, from its marker on.
      verdict: the better one, "A" or "B"; or "C", neither is better, for a judge that
        may say so (`judge.tie`).
      explanation: what the judge says before its verdict.

    Raises:
      ValueError: the verdict is none of these.
    """

    id: str
    problem: str
    steps: tuple[str, ...]
    a: str
    b: str
    verdict: Literal["A", "B", "C"]
    explanation: str = ""

    def __post_init__(self):
        if self.verdict not in ("A", "B", "C"):
            raise ValueError(
                f"field 'verdict' is {reprlib.repr(self.verdict)}; expected 'A' or "
                "'B' (or 'C' with judge.tie=True)."
            )


@dataclasses.dataclass(frozen=True)
class Worked:
    r"""A problem with its whole solution as one text, not cut into steps yet.

    Attributes:
      id: name of the row, unique in its file.
      problem: text of the problem.
      solution: text of the solution.
      answer: the final answer, or "" where the source does not state it apart.
    """

    id: str
    problem: str
    solution: str
    answer: str = ""


@dataclasses.dataclass(frozen=True)
class StepLabels:
    """A solution, finished or not, whose steps are labelled: what a PRM learns from.

    Attributes:
      id: name of the row, unique in its file.
      problem: text of the problem.
      steps: texts of the steps, each from its marker on; at least one.
      labels: for each step the probability, 0 to 1, that it is right. A hard label is
        0 or 1. None marks a step that nobody has labelled.

    Raises:
      ValueError: the labels are not one number from 0 to 1, or None, per step; or no
        step has a label.
    """

    id: str
    problem: str
    steps: tuple[str, ...]
    labels: tuple[float | None, ...]

    def __post_init__(self):
        labels = self.labels
        shown = f"field 'labels' is {reprlib.repr(labels)}"
        if not isinstance(labels, list | tuple):
            raise ValueError(f"{shown}; expected a list of numbers.")
        if not all(map(is_share_or_none, labels)):
            raise ValueError(f"{shown}; expected numbers from 0 to 1, or null.")
        if len(labels) != len(self.steps) or all(label is None for label in labels):
            raise ValueError(
                f"{shown} for {len(self.steps)} steps; expected one label per step, "
                "and a number for one step at least."
            )
        object.__setattr__(self, "labels", tuple(labels))


@dataclasses.dataclass(frozen=True)
class Preference:
    """Two next steps after the same context, the better one first.

    Attributes:
      id: name of the row, unique in its file.
      problem: text of the problem.
      steps: texts of the steps so far, each from its marker on; may be empty.
      chosen: text of the better next step, from its marker on.
      rejected: text of the worse next step, from its marker on.
    """

    id: str
    problem: str
    steps: tuple[str, ...]
    chosen: str
    rejected: str


def is_share_or_none(value: Any) -> bool:
    """Whether a value is a number from 0 to 1, or None."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value is None or (number and 0 <= value <= 1)


def read_objects(path: str | os.PathLike) -> Iterator[tuple[str, dict[str, Any]]]:
    r"""Reads the JSON objects of a file, one per line.

    Args:
      path: the file, UTF-8. Only "\n" ends a line. Blank lines are passed over.

    Yields:
      (place, object): where the object is, as "PATH:LINE" with lines counted
      from 1 (for messages), and the object.

    Raises:
      ValueError: "PATH: reason" when the file cannot be opened, "PATH:LINE: reason"
        for bytes that are not UTF-8, broken JSON, or JSON that is not an object.
    """
    for number, _, line in _lines(path):
        place = f"{path}:{number}"
        yield place, parse(line, place)


def _lines(path: str | os.PathLike) -> Iterator[tuple[int, int, bytes]]:
    """Yields (number from 1, first byte, bytes) of each line that is not blank."""
    ordinary.check(path)
    try:
        file = open(path, "rb")
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read ({error.strerror}); "
            "expected a file of JSON lines. Check the path."
        ) from error
    start = 0
    with file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, start, line
            start += len(line)


def parse(line: bytes, place: str) -> dict[str, Any]:
    """Returns the JSON object of a line.

    Args:
      line: in UTF-8.
      place: where it is, for messages.

    Raises:
      ValueError: "PLACE: reason; expected ..." when it is not one JSON object.
    """
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{place}: broken JSON ({error}); expected one JSON object, "
            "whole and in UTF-8. The file may be cut off or damaged."
        ) from error
    if not isinstance(value, dict):
        raise ValueError(
            f"{place}: {reprlib.repr(value)} is no JSON object; "
            "expected one JSON object per line."
        )
    return value


def from_object(value: dict[str, Any], record_type: type) -> Any:
    """Makes one record of a JSON object.

    Args:
      value: the object.
      record_type: the dataclass of the record; see `read_jsonl`.

    Raises:
      ValueError: "reason; expected ..." for a missing, unknown or mistyped field.
    """
    fields, required, kinds = _fields(record_type)
    expected = f"expected the fields {fields} of {record_type.__name__}."
    for name in value:
        if name not in kinds:
            raise ValueError(f"unknown field {name!r}; {expected}")
    arguments = {}
    for name, kind in kinds.items():
        if name not in value:
            if name in required:
                raise ValueError(f"missing field {name!r}; {expected}")
            continue
        item = value[name]
        if kind is str and not isinstance(item, str):
            raise ValueError(
                f"field {name!r} is {reprlib.repr(item)}; expected a string."
            )
        if kind == tuple[str, ...]:
            if not isinstance(item, list) or not all(
                isinstance(text, str) for text in item
            ):
                raise ValueError(
                    f"field {name!r} is {reprlib.repr(item)}; expected a list of "
                    "strings."
                )
            item = tuple(item)
        arguments[name] = item
    return record_type(**arguments)


@functools.cache
def _fields(record_type: type) -> tuple[str, frozenset[str], dict[str, Any]]:
    """Returns the names of all fields, those without a default, and name → type."""
    fields = dataclasses.fields(record_type)
    required = [f.name for f in fields if f.default is dataclasses.MISSING]
    hints = typing.get_type_hints(record_type)
    kinds = {field.name: hints[field.name] for field in fields}
    return ", ".join(kinds), frozenset(required), kinds


def read_jsonl(path: str | os.PathLike, record_type: type) -> list:
    r"""Reads a file of records, checking every row.

    Args:
      path: the file, UTF-8. Only "\n" ends a line.
      record_type: the dataclass of its rows; its fields are str, tuple[str, ...]
        (a JSON list of strings), or checked by the dataclass itself.

    Returns:
      The records, in the file's order; an empty file gives an empty list.

    Raises:
      ValueError: "PATH:LINE: reason; expected ..." (lines from 1) for broken JSON, or
        an id that an earlier line has; "PATH:LINE (id ID): reason; expected ..." for a
        missing, unknown or mistyped field, or a verdict other than "A" or "B"; "PATH:
        reason; expected ..." when the file cannot be opened.
    """
    return [record for *_, record in read_placed(path, record_type)]


class Rows(Sequence):
    """The rows of a file of records, each read when it is asked for; 12 bytes for each.

    Going through them reads the file once, checking every row as `read_jsonl` does.
    Asking for one that has changed since the rows were counted is an error.
    """

    def __init__(self, path: str | os.PathLike, record_type: type):
        """Finds where each row begins.

        Args:
          path: the file, see `read_jsonl`.
          record_type: the dataclass of its rows.

        Raises:
          ValueError: "PATH: reason" when the file cannot be opened.
        """
        self._path, self._record_type = path, record_type
        self._starts, self._sums = array("q"), array("I")
        for _, start, line in _lines(path):
            self._starts.append(start)
            self._sums.append(zlib.crc32(line))

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[Any]:
        return (row for *_, row in read_placed(self._path, self._record_type))

    def __getitem__(self, number: int) -> Any:
        start, checksum = self._starts[number], self._sums[number]
        return read_at(self._path, start, self._record_type, checksum)


def read_at(
    path: str | os.PathLike, start: int, record_type: type, checksum: int
) -> Any:
    """Reads one row of a file of records.

    Args:
      path: the file.
      start: its first byte.
      record_type: the dataclass of its rows.
      checksum: CRC-32 of its line.

    Raises:
      ValueError: when the row is another one: the file has been changed.
    """
    with open(path, "rb") as file:
        file.seek(start)
        line = file.readline()
    if zlib.crc32(line) != checksum:
        raise ValueError(
            f"{path}: the row at byte {start} has changed since this command first "
            "read the file; expected the same rows until it ends. Put the file back "
            "and run the same command again."
        )
    return from_object(parse(line, f"{path}, byte {start}"), record_type)


def read_placed(
    path: str | os.PathLike, record_type: type
) -> Iterator[tuple[int, Any]]:
    """Reads a file of records one by one, checking every row as `read_jsonl` does.

    Yields:
      (number of its first byte, CRC-32 of its line, the record).
    """
    seen: set[int] = set()  # hashes, because the ids of a long file take much memory
    for number, start, line in _lines(path):
        place = f"{path}:{number}"
        value = parse(line, place)
        try:
            record = from_object(value, record_type)
        except ValueError as error:
            given = value.get("id")
            named = f" (id {given[:60]})" if isinstance(given, str) and given else ""
            raise ValueError(f"{place}{named}: {error}") from error
        if hash(record.id) in seen:
            _check_new(path, place, record.id)
        seen.add(hash(record.id))
        yield start, zlib.crc32(line), record


def _check_new(path: str | os.PathLike, place: str, id: str) -> None:
    """Raises ValueError when a line before `place` has this id."""
    for earlier, value in read_objects(path):
        if earlier == place:
            return
        if value["id"] == id:
            raise ValueError(
                f"{place}: id {id!r} is at {earlier} already; expected every id once."
            )


def write_jsonl(path: str | os.PathLike, rows: Iterable[Any]) -> None:
    r"""Writes rows as JSON lines, all of them or nothing.

    A kill leaves the old file or the new one, never a part (`files.replacing`).

    Args:
      path: the file to write; its folder must exist.
      rows: dataclasses, whose keys are written in the order of their fields, without
        rare ones that are empty; or dicts, whose keys are written in their own order.

    Raises:
      ValueError: "PATH:LINE: reason" when a row has no JSON or no UTF-8 form: NaN or
        infinity, half of a surrogate pair, a value that is not JSON's. An earlier
        file at `path` is left as it was.
    """
    with files.replacing(path) as file:
        for number, row in enumerate(rows, 1):
            if dataclasses.is_dataclass(row):
                named = dataclasses.fields(row)
                values = [(field, getattr(row, field.name)) for field in named]
                row = {f.name: v for f, v in values if v or "rare" not in f.metadata}
            try:
                text = json.dumps(row, ensure_ascii=False, allow_nan=False)
                file.write(text + "\n")
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"{path}:{number}: row cannot be written ({error}); expected "
                    "strings, finite numbers, and lists and dicts of them."
                ) from error
