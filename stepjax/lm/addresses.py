"""Which paths are addresses: gs://bucket/file, https://host/file.

Object storage is read and written through etils.epath; no other address is opened as a
file. Only the standard library is imported.
"""

import os
import re

STORAGE = ("gs://", "s3://", "az://")  # of what etils.epath opens
# Also hf:https://..., and gs:/..., which pathlib makes of gs://...
_ADDRESS = re.compile(r"[A-Za-z][\w+.:-]*://|(gs|s3|az|hf|https?|file):/")


def is_address(path: str | os.PathLike[str]) -> bool:
    """Whether a path is an address, and no path on a disk of this computer."""
    return _ADDRESS.match(os.fspath(path)) is not None


def is_unreachable(path: str | os.PathLike[str]) -> bool:
    """Whether a path is an address that nothing here opens, such as https://..."""
    return is_address(path) and not os.fspath(path).startswith(STORAGE)
