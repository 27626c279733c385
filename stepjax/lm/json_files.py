"""Reads JSON that somebody else wrote: of limited size, and to the letter."""

import json
import reprlib
from typing import Any

from etils import epath

from stepjax.lm import limits, ordinary


def read_json(path: epath.Path) -> dict[str, Any]:
    """Reads a JSON object that somebody else wrote.

    Raises:
      ValueError: with the path, when the file is missing, a pipe or a device, larger
        than `limits.JSON_BYTES`, not JSON, or no object; also for a name that an
        object has twice, and for NaN and infinity, which are no JSON.
    """
    ordinary.check(path)
    try:
        with path.open("rb") as file:
            content = file.read(limits.JSON_BYTES + 1)
    except OSError as error:
        raise ValueError(
            f"{path}: {error.strerror or error}; expected a Hugging Face model "
            "directory."
        ) from error
    except ImportError as error:  # what reads this kind of path is not installed
        raise ValueError(
            f"{path}: {error}; expected a path that can be read here. Install that "
            "package with pip, or copy the directory to a disk."
        ) from error
    if len(content) > limits.JSON_BYTES:
        raise ValueError(
            f"{path}: the file is larger than {limits.JSON_BYTES:,} bytes; expected a "
            "small file of settings. Download it again."
        )
    try:
        data = parse_json(content)
    except ValueError as error:
        raise ValueError(
            f"{path}: not JSON ({error}); expected a JSON object. Download it again."
        ) from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: {reprlib.repr(data)}; expected a JSON object.")
    return data


def parse_json(content: bytes) -> Any:
    """Returns the value of a JSON text in UTF-8, read to the letter.

    Raises:
      ValueError: for another encoding, NaN or infinity, a name that an object has
        twice, and lists within lists without end.
    """
    try:
        return json.loads(
            content.decode("utf-8"),
            parse_constant=_no_constant,
            object_pairs_hook=_every_name_once,
        )
    except RecursionError as error:
        raise ValueError("lists or objects within each other without end") from error


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _every_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {reprlib.repr(twice)} is there twice")
    return made
