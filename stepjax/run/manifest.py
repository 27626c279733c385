"""The manifest of a finished stage, and the digests that it holds.

A file has the SHA-256 of its bytes. A model has the digest of its arrays, so that a
lost model which was made again, bit for bit, is the same input as before.
"""

import hashlib
import json
import os
import pathlib
from typing import Any

from stepjax.lm import files

_PARTS = ("inputs", "files")  # that every manifest has


def file_digest(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file.

    Raises:
      ValueError: when it is missing.
    """
    if not path.is_file():
        raise ValueError(
            f"{path} is missing; expected the result of an earlier stage. `stepjax "
            "run` on the same --workdir makes it."
        )
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_digest(manifest: pathlib.Path) -> str:
    """Returns the digest of the arrays of a finished model.

    Args:
      manifest: the file of its stage.

    Raises:
      ValueError: when it is missing or damaged.
    """
    if not manifest.is_file():
        raise ValueError(
            f"{manifest} is missing; expected a finished model. `stepjax run` on the "
            "same --workdir makes it."
        )
    try:
        arrays = files.read_json(manifest)["arrays"]
    except (ValueError, LookupError, TypeError) as error:
        reason = str(error).partition("; ")[0]
        if not isinstance(error, ValueError):
            reason = f"{manifest}: it names no arrays"
        raise ValueError(
            f"{reason}; expected what the training of a model has written. `stepjax "
            "run` on the same --workdir makes the model again."
        ) from error
    return hashlib.sha256(json.dumps(arrays, sort_keys=True).encode()).hexdigest()


def read(path: pathlib.Path) -> dict[str, Any]:
    """Returns what the manifest of a stage or the file of an evaluation holds.

    Raises:
      ValueError: when it is damaged, see `files.read_json`, or is something else.
    """
    manifest = files.read_json(path)
    absent = list(_PARTS)
    if isinstance(manifest, dict):
        parts = {"arrays": {}} | manifest  # only a model has arrays
        names = (*_PARTS, "arrays")
        absent = [name for name in names if not isinstance(parts.get(name), dict)]
    if absent:
        raise ValueError(
            f"{path}: there are no {' and '.join(absent)} in it; expected what a "
            "finished stage has written. Put it back, or run `stepjax run` on the same "
            "--workdir, which makes it again."
        )
    return manifest


def changed_file(path: pathlib.Path, manifest: dict[str, Any]) -> str:
    """Returns which file of a stage is gone or has changed, in words; "" for none.

    Args:
      path: of the manifest.
      manifest: what it holds.
    """
    for name, digest in manifest["files"].items():
        file = pathlib.Path(os.path.normpath(path.parent / name))
        if not file.is_file():
            return f"{file} is gone"
        if file_digest(file) != digest:
            return f"{file} has changed since it was written"
    return ""


def check(file: pathlib.Path, path: pathlib.Path) -> None:
    """Checks that a file is still what its stage has written.

    Args:
      file: that is about to be read.
      path: of the manifest of the stage; without one there is nothing to check.

    Raises:
      ValueError: it has changed, or the manifest is damaged.
    """
    if path.exists() and (wrong := changed_file(path, read(path))):
        raise ValueError(
            f"{wrong}; expected {file} and what belongs to it as `stepjax` wrote them. "
            "`stepjax run` on the same --workdir makes them again."
        )


def is_whole(path: pathlib.Path) -> bool:
    """Whether a stage is finished, and its manifest and files are not damaged.

    Args:
      path: of the manifest.
    """
    try:
        return not changed_file(path, read(path))
    except (FileNotFoundError, ValueError):
        return False
