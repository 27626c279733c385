"""config.json, the settings of a run in its directory, and its return when it is lost.

The manifest of each stage has the digest of the file at that time. So a lost file is
written again from the settings of a command, if these give the same bytes.
"""

import pathlib
import tempfile
from typing import Any

from stepjax.lm import files
from stepjax.run.manifest import file_digest

NAME = "config.json"


def write(folder: pathlib.Path, settings: dict[str, Any]) -> None:
    """Writes the settings of a run, with a digest of themselves.

    Args:
      folder: the run directory.
      settings: JSON values.
    """
    files.write_json(folder / NAME, settings, sealed=True)


def read(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the settings of a run.

    Raises:
      FileNotFoundError: the file is gone.
      ValueError: the file is damaged.
    """
    settings = files.read_json(folder / NAME)
    if not isinstance(settings, dict):
        raise ValueError(
            f"{folder / NAME}: there are no settings in it; expected some."
        )
    return settings


def is_of(settings: dict[str, Any], digest: str) -> bool:
    """Whether settings are those of a file.

    Args:
      settings: JSON values.
      digest: SHA-256 of the file; earlier versions wrote it without its own digest.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / NAME
        for sealed in (True, False):
            files.write_json(path, settings, sealed=sealed)
            if file_digest(path) == digest:
                return True
    return False
