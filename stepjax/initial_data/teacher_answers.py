"""The answers of a teacher, and the file that keeps them.

The file has JSON lines, one per answer, with the fields key, model, prompt, text,
finished, tokens, and a digest of these. Each answer is written to the disk as it
arrives, so a run that is killed asks again only for the answers that were on their way,
and one that finds a damaged line only for the answer in it.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import reprlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from absl import logging

from stepjax.lm import addresses, files
from stepjax.records import read_objects

_LINE_START = b'{"key": "'  # what each line of kept answers begins with


class Request(NamedTuple):
    """What a teacher is asked.

    Attributes:
      prompt: the whole text; a server gets it as one message of the user.
      model: name of the model that answers.
      temperature: 0 is greedy.
      max_tokens: most tokens of the answer.
    """

    prompt: str
    model: str
    temperature: float
    max_tokens: int

    def key(self) -> str:
        """Returns the SHA-256 of the request as JSON with sorted keys, in hex."""
        fields = self._asdict() | {"temperature": float(self.temperature)}
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("ascii")).hexdigest()


class Answer(NamedTuple):
    """What a teacher answered.

    Attributes:
      text: the answer.
      finished: whether the teacher came to an end by itself; False where max_tokens
        or the server cut the answer off.
      tokens: tokens of the prompt and the answer together, as the server counts them.
    """

    text: str
    finished: bool = True
    tokens: int = 0


class Kept:
    """The file of answers, open for one process; use it in a ``with`` block.

    Attributes:
      path: the file.
      spent: tokens of all answers in the file.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        say: Callable[[str], None] = logging.warning,
    ):
        """Opens, locks and reads the file; it is made if it is missing.

        A last line that a kill has cut off is removed. A damaged line is passed over.

        Args:
          path: the file.
          say: called with a sentence about each damaged line.

        Raises:
          ValueError: another process uses the file, or it holds something else than
            answers; then it is left as it was.
        """
        if addresses.is_address(path):
            raise ValueError(
                f"{path}: answers cannot be kept on object storage, since each is "
                "written as it comes; expected a file on a local disk."
            )
        self.path = pathlib.Path(path)
        self.spent = 0
        self._answers: dict[str, Answer] = {}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+b", buffering=0)
        except OSError as error:
            raise ValueError(
                f"{self.path}: cannot be opened for writing ({error.strerror}); "
                "expected a file for the teacher's answers."
            ) from error
        try:
            self._lock()
            self._mend()
            damaged = _passed_over(say) if self._is_ours() else None
            for place, row, answer in read_answers(self.path, damaged):
                if "key" not in row:
                    raise ValueError(
                        f"{place}: field 'key' is missing; expected a file in which "
                        "a teacher keeps its answers. A file without keys can only be "
                        "replayed: teacher.backend='replay'."
                    )
                self._answers.setdefault(row["key"], answer)
                self.spent += answer.tokens
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Kept":
        return self

    def __exit__(self, *exception) -> None:
        self._file.close()  # this also unlocks it

    def __contains__(self, request: Request) -> bool:
        return request.key() in self._answers

    def __getitem__(self, request: Request) -> Answer:
        return self._answers[request.key()]

    def add(self, request: Request, answer: Answer) -> None:
        """Writes an answer to the disk; OSError leaves the file as it was."""
        row = {
            "key": request.key(),
            "model": request.model,
            "prompt": request.prompt,
            **answer._asdict(),
        }
        size = self._file.seek(0, os.SEEK_END)
        try:
            text = json.dumps(files.seal(row))
            left = memoryview(text.encode("ascii") + b"\n")
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(size)  # a later line must not continue a part of one
            raise
        self._answers.setdefault(row["key"], answer)
        self.spent += answer.tokens

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise ValueError(
                    f"{self.path}: another process keeps a teacher's answers in this "
                    "file at the moment; expected to be the only one. Wait until it "
                    "has ended, or name another file."
                ) from error
            raise ValueError(
                f"{self.path}: cannot be locked ({error.strerror}); expected a file "
                "on a disk that knows locks. Use a local disk."
            ) from error

    def _is_ours(self) -> bool:
        """Whether a line of the file has the digest that `add` gives it."""
        for line in self.path.read_bytes().split(b"\n"):
            with contextlib.suppress(ValueError, RecursionError):
                files.unseal(json.loads(line.decode("utf-8")), self.path, needed=True)
                return True
        return False

    def _mend(self) -> None:
        """Removes a last line that was cut off, or gives a whole one its newline."""
        self._file.seek(0)
        data = self._file.read()
        start = data.rfind(b"\n") + 1
        tail = data[start:]
        if not tail:
            return
        if not (tail.startswith(_LINE_START) or _LINE_START.startswith(tail)):
            raise ValueError(
                f"{self.path}: the last line begins with {tail[:20]!r} and has no end; "
                "expected a file of a teacher's answers. Name another file; or, if "
                "only this line is damaged, delete it."
            )
        try:
            json.loads(tail)
        except ValueError:
            self._file.truncate(start)
        else:
            self._file.write(b"\n")


def _passed_over(say: Callable[[str], None]) -> Callable[[ValueError], None]:
    """Returns a function that says what is wrong with a line, and what follows."""

    def damaged(error: ValueError) -> None:
        reason = str(error).partition("; ")[0]
        say(f"{reason}, so this answer of the teacher is asked for again if needed")

    return damaged


def read_answers(
    path: str | os.PathLike, damaged: Callable[[ValueError], None] | None = None
) -> Iterator[tuple[str, dict[str, Any], Answer]]:
    """Reads a file of answers, checking every row.

    Args:
      path: the file; only "prompt" and "text" must be there, the other fields have
        the defaults of `Answer`.
      damaged: called with what is wrong with a row, which is then passed over; None
        raises it.

    Yields:
      (place, row, answer): "PATH:LINE", the JSON object without its digest, and the
      answer in it.

    Raises:
      ValueError: the file cannot be read, or a row is malformed, or has changed since
        it was written.
    """
    if damaged is None:
        for place, row in read_objects(path):
            yield place, *_checked(place, row)
        return
    for number, line in enumerate(pathlib.Path(path).read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            found = _checked(place, _object(place, line))
        except ValueError as error:
            damaged(error)
            continue
        yield place, *found


def _object(place: str, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: broken JSON ({error}); expected a line.") from error
    if not isinstance(row, dict):
        raise ValueError(f"{place}: this is no JSON object; expected one.")
    return row


def _checked(place: str, row: dict[str, Any]) -> tuple[dict[str, Any], Answer]:
    """Returns a row without its digest, if it has one, and the answer in it.

    Raises:
      ValueError: it is malformed, or has changed since it was written.
    """
    kinds = dict(key=str, model=str, prompt=str, text=str, finished=bool, tokens=int)
    expected = "expected a file of a teacher's answers, with the fields "
    expected += ", ".join(kinds)
    row = files.unseal(row, place)
    for name, value in row.items():
        if name not in kinds:
            raise ValueError(f"{place}: unknown field {name!r}; {expected}.")
        if type(value) is not kinds[name] or (name == "tokens" and value < 0):
            kind = {str: "a string", bool: "true or false", int: "a number from 0"}
            raise ValueError(
                f"{place}: field {name!r} is {reprlib.repr(value)}; expected "
                f"{kind[kinds[name]]}."
            )
    for name in ("prompt", "text"):
        if name not in row:
            raise ValueError(f"{place}: missing field {name!r}; {expected}.")
    return row, Answer(**{name: row[name] for name in Answer._fields if name in row})
