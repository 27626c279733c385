"""Files that a kill leaves whole: the old content or the new, never a part of it."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any, TextIO


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


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes a value as JSON with sorted keys, in full or not at all.

    Args:
      path: the file; its folder is made when it is missing.
      value: what `json` can write.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        json.dump(value, file, indent=1, sort_keys=True, ensure_ascii=False)
        file.write("\n")


def read_json(path: str | os.PathLike) -> Any:
    """Returns the value of a JSON file.

    Raises:
      ValueError: when the file holds no JSON.
    """
    with open(path, encoding="utf-8") as file:
        try:
            return json.load(file)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}: broken JSON ({error}); expected a whole file. Put it back, "
                "or delete it if a command of stepjax made it, and run that command "
                "again."
            ) from error
