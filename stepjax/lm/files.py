"""Files that a kill leaves whole, and records that notice when they are damaged.

What is written here is the old content or the new, never a part of it. A record that
says how other files are to be used has a digest of itself (`seal`), because a changed
number in it would be believed. Files of earlier versions have none; `read_json` reads
them all the same, so that finished runs stay of use.
"""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any, TextIO

_SEAL = "sha256"  # field with the digest of all other fields


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[TextIO]:
    """Opens a temporary file that takes the place of `path` when the block ends.

    The temporary file lies in the same folder and is on the disk (fsync) before it is
    renamed. When the block raises, it is deleted and an earlier `path` stays as it was.

    Args:
      path: the file to write; its folder must exist.

    Yields:
      The open file: text in UTF-8, lines end with a newline on every system.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def seal(value: dict[str, Any]) -> dict[str, Any]:
    """Returns a JSON object with one field more: the SHA-256 of all others.

    Args:
      value: what `json` can write.
    """
    return value | {_SEAL: _digest(value)}


def unseal(value: Any, place: object, *, needed: bool = False) -> Any:
    """Returns what was given to `seal`, after checking that it is the same.

    Args:
      value: what was read.
      place: where it was read, for people.
      needed: whether a value without a digest is refused, too.

    Raises:
      ValueError: "PLACE: ...; expected ..." when it has changed.
    """
    if not isinstance(value, dict) or _SEAL not in value:
        if needed:
            raise ValueError(
                f"{place}: there is no {_SEAL!r} in it; expected a record with a "
                "digest of itself."
            )
        return value
    rest = {name: item for name, item in value.items() if name != _SEAL}
    if value[_SEAL] != (found := _digest(rest)):
        raise ValueError(
            f"{place}: this has changed since it was written; its content has the "
            f"SHA-256 {found[:16]}..., expected {str(value[_SEAL])[:16]}..."
        )
    return rest


def _digest(value: dict[str, Any]) -> str:
    """Returns the SHA-256 of a value as JSON, which is the same after it was read."""
    read = json.loads(json.dumps(value))
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()


def write_json(path: str | os.PathLike, value: Any, *, sealed: bool = False) -> None:
    """Writes a value as JSON with sorted keys, in full or not at all.

    Args:
      path: the file; its folder is made when it is missing.
      value: what `json` can write.
      sealed: whether the file gets a digest of itself; the value is an object then.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        value = seal(value) if sealed else value
        json.dump(value, file, indent=1, sort_keys=True, ensure_ascii=False)
        file.write("\n")


def read_json(path: str | os.PathLike, *, sealed: bool = False) -> Any:
    """Returns the value of a JSON file, without the digest that it has of itself.

    Args:
      path: the file.
      sealed: whether a file without a digest of itself is refused. Files of earlier
        versions have none.

    Raises:
      ValueError: when the file holds no JSON, or has changed since it was written.
    """
    remedy = (
        "Put it back, or delete it if a command of stepjax made it, and run that "
        "command again."
    )
    with open(path, encoding="utf-8") as file:
        try:
            value = json.load(file)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}: broken JSON ({error}); expected a whole file. {remedy}"
            ) from error
    try:
        return unseal(value, path, needed=sealed)
    except ValueError as error:
        raise ValueError(f"{error} {remedy}") from error
