"""Whether a path is an ordinary file: pipes and devices are never opened.

Opening a pipe waits for a writer that may never come, and a device such as /dev/zero
never ends. A folder that somebody else made may hold links to either.
"""

import os
import stat

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def kind(path: str | os.PathLike) -> str:
    """Returns "a pipe", "a device" or "a socket", links followed; "" for all else.

    Args:
      path: may be missing, and may be an address of object storage.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # missing; whoever opens it says so
        return ""
    return _KINDS.get(stat.S_IFMT(mode), "")


def check(path: str | os.PathLike) -> None:
    """Raises ValueError for a pipe, a device or a socket, which are not read."""
    if found := kind(path):
        raise ValueError(
            f"{path}: this is {found}; expected an ordinary file. Copy what it gives "
            "into a file, and name that."
        )


def check_folder(folder: str | os.PathLike) -> None:
    """Raises ValueError when something in a folder is no ordinary file or folder."""
    if os.path.isdir(folder):
        for name in sorted(os.listdir(folder)):
            check(os.path.join(folder, name))
