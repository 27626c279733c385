"""What an error of the operating system means for a person, and what to do about it.

Libraries hand such errors on in wrappings of their own; those that are not written in
Python, as text.
"""

import errno
import os
import re

_AGAIN = "then run the same command again: nothing that was finished is lost"
_NETWORK = "See whether the server of that disk is up and mount it again"
_DAMAGED = "See what the system says of that disk (`dmesg`) or use another one"
_RIGHTS = "Give the user who runs stepjax the right to write there (`ls -ld` shows it)"
_REMEDIES = {
    errno.ENOSPC: "Make room on that disk: `df -h` shows its space, `df -i` its inodes",
    errno.EDQUOT: "Delete something there or ask for a larger quota",
    errno.EFBIG: "Use a file system that takes larger files, or raise `ulimit -f`",
    errno.EROFS: "Mount that disk for writing, or name a folder on another one",
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EIO: _DAMAGED,
    errno.ESTALE: _NETWORK,
    errno.ETIMEDOUT: _NETWORK,
    errno.EHOSTDOWN: _NETWORK,
    errno.ENOTCONN: _NETWORK,
    errno.EREMOTEIO: _NETWORK,
    errno.ENOTDIR: "A part of this path is a file: name a path that leads through "
    "folders only",
    errno.EISDIR: "A folder is where a file should be: move it away",
    errno.EEXIST: "A file, or a link that leads nowhere, is where a folder should be: "
    "move it away",
    errno.ENOENT: "It is gone, or a link leads nowhere: put it back",
    errno.ENOTEMPTY: "Move away what others have put there",
    errno.ELOOP: "Remove the links that lead in a circle",
    errno.ENAMETOOLONG: "Choose a shorter name",
    errno.EMFILE: "Raise the limit of open files (`ulimit -n`)",
    errno.ENFILE: "Close other programs: the system has too many open files",
    errno.ENOMEM: "Make memory free",
    errno.EBUSY: "End what uses it",
}
# As tensorstore writes it, "... No space left on device [os_error_code='28']", and
# libraries in Rust (safetensors, tokenizers), "No space left on device (os error 28)".
_IN_TEXT = re.compile(r"\[os_error_code='(\d+)'\]|\(os error (\d+)\)")
_PATH_IN_TEXT = re.compile(r"""["'](/[^"'\\]+)""")


def sentence(error: OSError) -> str:
    """Returns which file, what is wrong with it, and what to do."""
    reason = error.strerror or os.strerror(error.errno or 0)
    names = [os.fsdecode(n) for n in (error.filename, error.filename2) if n is not None]
    where = " → ".join(map(str, names))
    remedy = _REMEDIES.get(error.errno, "Remove the cause")
    return f"{where}{': ' if where else ''}{reason}. {remedy}; {_AGAIN}."


def find(error: BaseException | None) -> OSError | None:
    """Returns the error of the operating system behind an exception, if there is one.

    Args:
      error: also a group of exceptions, one with a cause, or one that is text.
    """
    seen: list[BaseException] = []
    waiting = [error]
    while waiting:
        error = waiting.pop(0)
        if error is None or error in seen:
            continue
        seen.append(error)
        if isinstance(error, OSError) and error.errno:
            return error
        if isinstance(error, BaseExceptionGroup):
            waiting += error.exceptions
        found = _IN_TEXT.search(str(error))
        if found:
            path = _PATH_IN_TEXT.search(str(error))
            number = int(found[1] or found[2])
            return OSError(number, os.strerror(number), path[1] if path else None)
        waiting.append(error.__cause__)
    return None
