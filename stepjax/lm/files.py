"""Files that a kill leaves whole, and records that notice when they are damaged.

What is written here is the old content or the new, never a part of it. A record that
says how other files are to be used has a digest of itself (`seal`), because a changed
number in it would be believed. Files of earlier versions have none; `read_json` reads
them all the same, so that finished runs stay of use.

For a loss of power the order is: a file's content (fsync), its name (rename), and the
folder that holds the name (fsync). What a record commits is on the disk before it.
"""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Any, TextIO

from stepjax import os_errors
from stepjax.lm import ordinary

_SEAL = "sha256"  # field with the digest of all other fields
_LINE_START = len(f'{{"{_SEAL}": "", ') + 64  # characters of `sealed_line`
# What a killed process leaves: of `replacing`, of a lock, of `tempfile`, and of orbax.
_LEFT = re.compile(r"\..+\.[0-9a-z_]+\.tmp|.+\.orbax-checkpoint-tmp(-.*)?")


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
        with named(path):
            with open(temporary, "w", encoding="utf-8", newline="\n") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync(path.parent)
    finally:
        with contextlib.suppress(OSError):  # the first error is the one that counts
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def named(path: str | os.PathLike) -> Iterator[None]:
    """Gives a file's name to an error of the disk that has none: of write, of fsync.

    Such an error of a library, see `os_errors.find`, becomes an `OSError`; but a
    ValueError stays, because it says already what is wrong.
    """
    try:
        yield
    except Exception as error:
        found = None if isinstance(error, ValueError) else os_errors.find(error)
        if not found or found is error and found.filename is not None:
            raise
        name = os.fspath(path) if found.filename is None else found.filename
        raise OSError(found.errno, os.strerror(found.errno), name) from error


def sync(*paths: str | os.PathLike) -> None:
    """Waits until files, or the names in folders, are on the disk."""
    for path in paths:
        with named(path):
            opened = os.open(path, os.O_RDONLY)
            try:
                os.fsync(opened)
            except OSError as error:  # some network disks cannot do it for folders
                if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                    raise
            finally:
                os.close(opened)


def sync_all(folder: str | os.PathLike) -> None:
    """Waits until a folder, all that is in it and its own name are on the disk."""
    folder = pathlib.Path(folder)
    sync(*folder.rglob("*"), folder, folder.parent)


def make_folder(path: str | os.PathLike) -> None:
    """Makes a folder, and the folders above it, so that a loss of power keeps them."""
    path = pathlib.Path(path)
    if path.is_dir():
        return
    made = [p for p in (path, *path.parents) if not p.exists()]
    path.mkdir(parents=True, exist_ok=True)
    sync(*(p.parent for p in made))


def remove_left(folder: pathlib.Path) -> None:
    """Removes the temporary files and folders that killed processes have left.

    Args:
      folder: of a run, locked by this process, so that nobody else writes there.
    """
    for parent, folders, names in os.walk(folder):
        for name in filter(_LEFT.fullmatch, folders):
            shutil.rmtree(os.path.join(parent, name))
        for name in filter(_LEFT.fullmatch, names):
            pathlib.Path(parent, name).unlink(missing_ok=True)
        folders[:] = [name for name in folders if not _LEFT.fullmatch(name)]


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
      needed: whether a value without a digest is refused as well.

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


def sealed_line(value: dict[str, Any]) -> str:
    """Returns a JSON object as one line that begins with the SHA-256 of the rest.

    Unlike `seal` it takes the text as it is, so a long line is written only once.

    Args:
      value: what `json` can write.
    """
    text = json.dumps(value, ensure_ascii=False)
    return f'{{"{_SEAL}": "{_of_text(text)}", {text[1:]}'


def unsealed_line(line: bytes, place: object) -> dict[str, Any]:
    """Returns what was given to `sealed_line`, after checking that it is the same.

    Args:
      line: what was read, without the newline.
      place: where it was read, for people.

    Raises:
      ValueError: "PLACE: ...; expected ..." when it has changed.
    """
    start, text = line[:_LINE_START].decode("utf-8"), line[_LINE_START:].decode("utf-8")
    text = f"{{{text}"
    if start != f'{{"{_SEAL}": "{_of_text(text)}", ':
        raise ValueError(
            f"{place}: this has changed since it was written; expected a line that "
            "begins with the SHA-256 of the rest."
        )
    return json.loads(text)


def _of_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(value: dict[str, Any]) -> str:
    """Returns the SHA-256 of a value as JSON, which is the same after it was read."""
    read = json.loads(json.dumps(value))
    return _of_text(json.dumps(read, sort_keys=True))


def write_json(path: str | os.PathLike, value: Any, *, sealed: bool = False) -> None:
    """Writes a value as JSON with sorted keys, in full or not at all.

    Args:
      path: the file; its folder is made when it is missing.
      value: what `json` can write.
      sealed: whether the file gets a digest of itself; the value is an object then.
    """
    path = pathlib.Path(path)
    make_folder(path.parent)
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
      ValueError: when the file holds no JSON, has changed since it was written, or is
        a pipe or a device.
    """
    remedy = (
        "Put it back, or delete it if a command of stepjax made it, and run that "
        "command again."
    )
    ordinary.check(path)
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
