"""Rows of files: JSON, JSON lines, CSV, TSV, all also with gzip; parquet; or a folder.

A row that cannot be used stops the reading with its file, its line and the reason. With
`Rejects` it is listed instead, and the counts add up: read = kept + rejected. A file
that cannot be read to its end always stops the reading, and so does a file without
rows: nobody could say which rows are missing.
"""

import collections
import contextlib
import functools
import gzip
import io
import json
import os
import re
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from stepjax.initial_data.formats import csv_files, json_text
from stepjax.lm import ordinary
from stepjax.own_files import in_utf8

SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet")
# Ending of a table → what is between its cells. Tables are read when they are named; in
# a folder, they are passed over.
_LINE_BYTES = 64 * 2**20  # of one row of JSON lines
_TEXT_BYTES = 4 * 2**30  # of a file that is read whole, unpacked
TABLES = {".csv": ",", ".csv.gz": ",", ".tsv": "\t", ".tsv.gz": "\t"}


class Place(NamedTuple):
    """Where a row is; `str` gives "PATH:LINE", for messages.

    Attributes:
      file: path of the file.
      line: number of the line on which the row begins, from 1. Parquet has no lines:
        there it is the number of the row.
      row: number of the row in its file, from 1.
      name: for the id of a row without one: the name of the file without its ending,
        and the row's index from 0 ("train-17"). Where a folder is read, it begins with
        the path within the folder ("algebra/train-17"). A JSON file that holds one
        object needs no index ("algebra/17").
    """

    file: str
    line: int
    row: int
    name: str

    def __str__(self) -> str:
        shown = "" if self.row == self.line else f" (row {self.row})"
        return f"{self.file}:{self.line}{shown}"


class Rejects:
    """Counts the rows that are read; lists the bad ones, or stops at the first.

    Attributes:
      read: rows so far, good and bad.
      rows: the bad ones as {"file", "line", "reason", "row"}; "row" is the text.
      reasons: how often a reason was given, without the values that it quotes.
      say: prints a line for people.
    """

    def __init__(
        self, collect: bool = True, say: Callable[[str], None] = lambda text: None
    ):
        """Begins to count.

        Args:
          collect: whether bad rows are listed; otherwise the first one is an error.
          say: is told about every ten seconds how many rows have been read.
        """
        self.read = 0
        self.rows: list[dict[str, Any]] = []
        self.reasons: collections.Counter[str] = collections.Counter()
        self.say = say
        self._collect, self._said = collect, time.monotonic()

    @property
    def kept(self) -> int:
        """Rows that were read and not rejected."""
        return self.read - len(self.rows)

    def count(self) -> None:
        """Counts one more row that has been read."""
        self.read += 1
        if time.monotonic() - self._said > 10:
            self._said = time.monotonic()
            self.say(f"{self.read:,} rows are read, {len(self.rows):,} rejected")

    def add(self, place: Place, reason: str, text: str, identity: str = "") -> None:
        """Lists a row that has been counted.

        Args:
          place: where it is.
          reason: why it is not used: "reason; expected ...".
          text: the row.
          identity: the row's own id, if it has one.

        Raises:
          ValueError: "PATH:LINE (id ID): reason" when bad rows are not listed.
        """
        if not self._collect:
            named = f" (id {identity})" if identity else ""
            raise ValueError(f"{place}{named}: {reason}")
        self.reasons[_kind(reason)] += 1
        row = {"file": place.file, "line": place.line, "reason": reason, "row": text}
        self.rows.append(row)


def _kind(reason: str) -> str:
    """Returns a reason without the values that it quotes, so that it can be counted."""
    if re.match(r"id .* is at ", reason, re.DOTALL):
        return "an earlier row has the same id"
    return re.split(r" is | begins with | ends with |; | \(", reason)[0]


def rows(
    path: str | os.PathLike, rejects: Rejects | None = None
) -> Iterator[tuple[Place, dict[str, Any]]]:
    r"""Reads the rows of a file, or of all files in a folder.

    The ending of a file's name says what it is: `.parquet`; `.csv` or `.tsv`, see
    `csv_files`; `.json`, which holds one array of objects, one object, or JSON lines
    all the same; anything else is JSON lines, where only "\n" ends a line. With `.gz`
    behind it, it is unpacked first. A byte order mark at the start of a file is passed
    over, and so are blank lines.

    Of a folder, all files with one of the endings `SUFFIXES` are read, also those in
    folders within it and behind links, in the order of their paths. Hidden files and
    folders are passed over. So are files with other endings, and `rejects` says how
    many.

    Args:
      path: the file or folder.
      rejects: where rows are counted and bad ones listed; None stops at the first.

    Yields:
      (place, object) of each row that is a JSON object.

    Raises:
      ValueError: "PATH:LINE: reason" for a row that is no object, whole and in UTF-8,
        unless it is listed. "PATH: reason" for a file or folder that cannot be read
        to its end, or that has no rows, or whose name is not UTF-8.
    """
    rejects = rejects or Rejects(collect=False)
    path = Path(path)
    folder = path.is_dir()
    for file in _files(path, rejects) if folder else [path]:
        if not in_utf8(str(file)):
            raise ValueError(
                f"{str(file)!a}: the name is not UTF-8, so no id can be made of it; "
                "expected another name. Rename it."
            )
        name = file.relative_to(path).as_posix() if folder else file.name
        endings = (*SUFFIXES, *TABLES)
        ending = next((end for end in endings if name.lower().endswith(end)), None)
        stem = name[: -len(ending)] if ending else name.removesuffix(file.suffix)
        before = rejects.read
        ordinary.check(file)
        with _readable(file):
            _check_kind(file)
            if ending == ".parquet":
                yield from _parquet(file, stem, rejects)
            elif ending in (".json", ".json.gz"):
                yield from _json(file, stem, rejects)
            elif ending in TABLES:
                yield from _csv(file, stem, rejects, TABLES[ending])
            else:
                if ending is None:
                    _check_lines(file)
                with _opened(file) as lines:
                    yield from _lines(file, lines, stem, rejects)
        if rejects.read == before:
            raise ValueError(
                f"{file}: no rows; expected at least one. The file is empty: take it "
                "away, or get it again."
            )


# First bytes of a file → (what it is, the endings that say so, what to do).
_KINDS = {
    b"\x1f\x8b": ("packed by gzip", ".gz", "Give it a name that ends with .gz"),
    b"PAR1": ("a parquet table", ".parquet", "Give it a name that ends with .parquet"),
    b"PK\x03\x04": (
        "a spreadsheet or a zip archive",
        "",
        "Save the spreadsheet as CSV, or unpack the archive",
    ),
}


def _check_kind(file: Path) -> None:
    """Raises ValueError for a file that is packed, or a table, without its ending."""
    with open(file, "rb") as opened:
        first = opened.read(4)
    for start, (kind, known, remedy) in _KINDS.items():
        if first.startswith(start) and file.suffix.lower() != known:
            raise ValueError(
                f"{file}: the file is {kind}; expected JSON, JSON lines, CSV, TSV (all "
                f"also packed by gzip) or parquet, as its name says. {remedy}."
            )


def _check_lines(file: Path) -> None:
    """Raises ValueError for a file of another ending that does not begin as JSON."""
    with _opened(file) as lines:
        stripped = (
            line.strip(b"\xef\xbb\xbf \t\r\n") for _, line in _numbered(file, lines)
        )
        first = next(filter(None, stripped), b"{")
    if not first.startswith(b"{"):
        endings = ", ".join(name for name in (*SUFFIXES, *TABLES) if "gz" not in name)
        raise ValueError(
            f"{file}: the ending of its name does not say what the file holds, and it "
            f"begins with {first[:30].decode('utf-8', 'backslashreplace')!r}, which is "
            f"no row of JSON lines; expected a name that ends with one of {endings} "
            "(also with .gz). Rename it."
        )


def _files(folder: Path, rejects: Rejects) -> list[Path]:
    """Returns the files of a folder that hold rows, in order."""
    found, others = [], []
    seen: dict[tuple[int, int], str] = {}
    for parent, folders, names in os.walk(
        folder, onerror=_unreadable, followlinks=True
    ):
        status = os.stat(parent)
        earlier = seen.setdefault((status.st_dev, status.st_ino), parent)
        if earlier != parent:
            raise ValueError(
                f"{parent}: a link leads to {earlier}, so its files would be read "
                "twice; expected every folder once. Take the link away."
            )
        folders[:] = [name for name in folders if name[0] != "."]
        for name in names:
            if name[0] != ".":
                rows = name.lower().endswith(SUFFIXES)
                (found if rows else others).append(Path(parent, name))
    if not found:
        raise ValueError(
            f"{folder}: no file to read in this folder; expected files that end with "
            f"{', '.join(SUFFIXES)}."
        )
    if others:
        rejects.say(
            f"{folder}: {len(found):,} files are read; {len(others):,} files with "
            f"other endings are passed over, such as {min(others).name!a}"
        )
    return sorted(found)


def _unreadable(error: OSError) -> None:
    raise ValueError(
        f"{error.filename}: this folder cannot be read ({error.strerror}); expected to "
        "read all folders within. Check its permissions."
    ) from error


@contextlib.contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Turns what opening and unpacking raise into ValueError("PATH: reason")."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        words = getattr(error, "strerror", None) or error
        raise ValueError(
            f"{file}: cannot be read ({words}); expected a whole file of JSON, JSON "
            "lines, CSV, TSV (also with .gz) or parquet. Check the path, or get the "
            "file again."
        ) from error


def _opened(file: Path) -> BinaryIO:
    return gzip.open(file) if file.suffix.lower() == ".gz" else open(file, "rb")


def _numbered(file: Path, lines: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yields the lines of a file with their numbers; none may take all memory."""
    read = functools.partial(lines.readline, _LINE_BYTES + 1)
    for number, line in enumerate(iter(read, b""), 1):
        if len(line) > _LINE_BYTES:
            raise ValueError(
                f"{file}:{number}: the row has more than {_LINE_BYTES:,} bytes; "
                "expected less, with a newline at the end. The file may be damaged."
            )
        yield number, line


def _lines(
    file: Path, lines: BinaryIO, stem: str, rejects: Rejects
) -> Iterator[tuple[Place, dict[str, Any]]]:
    row = 0
    for number, line in _numbered(file, lines):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        row += 1
        place = Place(str(file), number, row, f"{stem}-{row - 1}")
        rejects.count()
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        try:
            value = json_text.parse_object(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            rejects.add(
                place, json_text.broken(error), line.decode("utf-8", "backslashreplace")
            )
        except ValueError as error:
            rejects.add(place, str(error), line.decode("utf-8"))
        else:
            yield place, value


def _text(file: Path) -> str:
    """Returns what a file holds."""
    with _opened(file) as opened:
        content = opened.read(_TEXT_BYTES + 1)
    if len(content) > _TEXT_BYTES:
        raise ValueError(
            f"{file}: the file holds more than {_TEXT_BYTES:,} bytes; expected less. "
            "Write it as JSON lines, which are read one by one."
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{file}:{line}: the text is not UTF-8 ({error}); expected it to be. Save "
            "the file as UTF-8, or get it again if it is damaged."
        ) from error


def _csv(
    file: Path, stem: str, rejects: Rejects, between: str
) -> Iterator[tuple[Place, dict[str, Any]]]:
    try:
        found = enumerate(csv_files.objects(_text(file), between), 1)
        for row, (line, value, reason) in found:
            place = Place(str(file), line, row, f"{stem}-{row - 1}")
            rejects.count()
            if reason:
                rejects.add(place, reason, json.dumps(value, ensure_ascii=False))
            else:
                yield place, value
    except csv_files.Broken as error:
        raise ValueError(f"{file}:{error}") from error


def _json(
    file: Path, stem: str, rejects: Rejects
) -> Iterator[tuple[Place, dict[str, Any]]]:
    text = _text(file)
    if text.lstrip()[:1] == "[":
        yield from _array(file, text, stem, rejects)
        return
    try:
        value = json_text.DECODER.decode(text)
    except (ValueError, RecursionError):
        # Not one value: JSON lines, or broken in a line that is named now.
        yield from _lines(file, io.BytesIO(text.encode()), stem, rejects)
        return
    place = Place(str(file), 1, 1, stem)
    rejects.count()
    try:
        value = json_text.checked(value, text)
    except ValueError as error:
        rejects.add(place, str(error), text)
    else:
        yield place, value


def _array(
    file: Path, text: str, stem: str, rejects: Rejects
) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Reads one row after the other, so that each one's line is known."""
    blank = re.compile(r"[ \t\r\n]*")
    at, line, row = text.index("[") + 1, 1 + text.count("\n", 0, text.index("[")), 0
    separator = ""
    while True:
        begin = blank.match(text, at).end()
        line += text.count("\n", at, begin)
        if text[begin : begin + 1] == "]" and separator != ",":
            break
        row += 1
        place = Place(str(file), line, row, f"{stem}-{row - 1}")
        try:
            value, end = json_text.DECODER.raw_decode(text, begin)
            at = blank.match(text, end).end()
            separator = text[at : at + 1]
            if separator not in (",", "]") or not separator:
                raise ValueError("no comma and no ] after the row")
        except (ValueError, RecursionError) as error:
            # Where the next row begins cannot be told, so there is no going on.
            raise ValueError(f"{place}: {json_text.broken(error)}") from error
        rejects.count()
        try:
            value = json_text.checked(value, text[begin:end])
        except ValueError as error:
            rejects.add(place, str(error), text[begin:end])
        else:
            yield place, value
        line += text.count("\n", begin, at)
        at += separator == ","
    if text[begin + 1 :].strip():
        raise ValueError(
            f"{file}:{line}: text after the end of the array; expected one array of "
            "objects and nothing else."
        )


def _parquet(
    file: Path, stem: str, rejects: Rejects
) -> Iterator[tuple[Place, dict[str, Any]]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(
            f"{file}: pyarrow is not installed, which reads parquet files; expected it "
            'to be there. Install it: pip install -e ".[data]"'
        ) from error
    number = 0
    try:
        for batch in parquet.ParquetFile(file).iter_batches(batch_size=1024):
            for value in batch.to_pylist():
                number += 1
                rejects.count()
                yield Place(str(file), number, number, f"{stem}-{number - 1}"), value
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(
            f"{file}: cannot be read after row {number} ({error}); expected a whole "
            "parquet file. Get the file again."
        ) from error
