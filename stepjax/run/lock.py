"""One command at a time writes into a run directory.

The file ``.lock`` in the directory says who: host, process, the time when the process
was started, and since when it holds the lock. Its making is atomic on local disks and
on NFS (a link), where ``flock`` is not to be relied on. Its owner writes it again
every 15 seconds, so its time of change is a sign of life.

A lock is left behind by a process that was killed. It is stale, and is replaced, when

*   it is of this host, and that process is gone, or its number was given to another
    process, which was started at another time;
*   it is of another host, or of another container, and there was no sign of life for
    180 seconds, by the clock of the file system.
"""

import atexit
import contextlib
import datetime
import errno
import json
import os
import pathlib
import socket
import threading
import time
import uuid
from typing import Any

from stepjax.lm import files

NAME = ".lock"
BEAT_SECONDS = 15  # between two signs of life
STALE_SECONDS = 180  # without one, the lock of another host is stale
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)

_held: dict[pathlib.Path, "_Beat"] = {}  # locks of this process


def take(folder: pathlib.Path) -> None:
    """Locks a run directory for this process, which may hold its lock already.

    Args:
      folder: the run directory; made when it is missing.

    Raises:
      ValueError: when another process holds the lock.
    """
    path = folder.absolute() / NAME
    if path in _held or folder.exists() and not folder.is_dir():
        return  # who opens the run says what a file there means
    files.make_folder(folder)
    mine = _self()
    text = json.dumps(mine, sort_keys=True).encode()
    while not _made(path, text):
        theirs = _read(path)
        if theirs is None:
            continue  # it was released just now
        if not _is_stale(path, theirs):
            raise ValueError(_refusal(path, theirs))
        _remove(path, theirs)
        if _made(path, text):
            time.sleep(0.5)  # for others who found the same stale lock
        if _read(path) == mine:
            break
    _held[path] = _Beat(path, text)


def is_others(folder: pathlib.Path) -> bool:
    """Whether another process works in a run directory now."""
    path = folder.absolute() / NAME
    found = None if path in _held else _read(path)
    return found is not None and not _is_stale(path, found)


def release(folder: pathlib.Path) -> None:
    """Unlocks a run directory, if this process holds its lock."""
    beat = _held.pop(folder.absolute() / NAME, None)
    if beat:
        beat.end()


@atexit.register
def release_all() -> None:
    """Unlocks all run directories that this process holds."""
    for path in list(_held):
        release(path.parent)


def _self() -> dict[str, Any]:
    """Returns who this process is."""
    now = datetime.datetime.now().astimezone()
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "processes": _processes(),
        "pid": pid,
        "started": _started(pid),
        "since": now.isoformat(sep=" ", timespec="seconds"),
        "token": uuid.uuid4().hex,
    }


def _processes() -> str:
    """Returns which processes this one sees: a container has its own numbers."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """Returns when a process was started; None when there is no such process.

    Returns:
      Ticks of the clock since the machine was started, from Linux; "" where the system
      does not tell.
    """
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except OSError:
            return ""  # it is somebody else's
        return ""
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]  # a zombie has ended


def _made(path: pathlib.Path, text: bytes) -> bool:
    """Makes the file, unless it is there; returns whether it did.

    It is a link to a file that is whole: a kill in between leaves no empty lock. Where
    a file system has no links, it is made empty and then written.
    """
    if path.exists():
        return False
    whole = path.with_name(f"{NAME}.{uuid.uuid4().hex}.tmp")
    try:
        with files.named(path), open(whole, "wb") as opened:
            opened.write(text)
            opened.flush()
            os.fsync(opened.fileno())
        os.link(whole, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _written(path, text)
    finally:
        whole.unlink(missing_ok=True)
    return True


def _written(path: pathlib.Path, text: bytes) -> bool:
    """Makes the file where there are no links; returns whether it did."""
    try:
        with files.named(path), open(path, "xb") as opened:
            opened.write(text)
            opened.flush()
            os.fsync(opened.fileno())
    except FileExistsError:
        return False
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def _read(path: pathlib.Path) -> dict[str, Any] | None:
    """Returns what a lock says; None when it is gone, {} when it says nothing.

    A lock that was just made is empty for a moment.
    """
    for attempt in range(10):
        time.sleep(0.05 * bool(attempt))
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            continue
        if isinstance(found, dict) and isinstance(found.get("pid"), int):
            return found
    return {}


def _is_stale(path: pathlib.Path, lock: dict[str, Any]) -> bool:
    """Whether the process that made a lock is gone for sure, or silent for long."""
    if _is_here(lock):
        started = _started(lock["pid"])
        known = lock.get("started") and started
        return started is None or bool(known and started != lock["started"])
    return _silence(path) > STALE_SECONDS


def _is_here(lock: dict[str, Any]) -> bool:
    """Whether this process sees the process that made a lock."""
    place = lock.get("host"), lock.get("processes")
    return place == (socket.gethostname(), _processes())


def _silence(path: pathlib.Path) -> float:
    """Returns the seconds since the last sign of life, by the file system's clock."""
    probe = path.with_name(f"{NAME}.{uuid.uuid4().hex}.tmp")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
    finally:
        probe.unlink(missing_ok=True)


def _remove(path: pathlib.Path, stale: dict[str, Any]) -> None:
    """Removes a stale lock, but not the one that another process has just made."""
    aside = path.with_name(f"{NAME}.{uuid.uuid4().hex}.tmp")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if _read(aside) != stale:
        with contextlib.suppress(OSError):
            os.link(aside, path)
    aside.unlink(missing_ok=True)


def _refusal(path: pathlib.Path, lock: dict[str, Any]) -> str:
    """Returns who holds a lock, since when, and what to do, as one sentence."""
    folder = path.parent
    if not lock:
        return (
            f"{path} cannot be read; expected the lock of another command on {folder}. "
            f"If no other command works there, delete {path}."
        )
    who = f"process {lock['pid']} on host {lock.get('host')}"
    text = f"{folder} is in use by {who} since {lock.get('since')}; expected one "
    text += "command at a time. Wait until it has ended"
    if _is_here(lock):
        return f"{text}, or end it with `kill {lock['pid']}`; it saves its work."
    seconds = max(0, _silence(path))
    return (
        f"{text}. Its last sign of life was {seconds:.0f} s ago; if it is gone for "
        f"sure, delete {path}, or wait: after {STALE_SECONDS} s without a sign of life "
        "the lock counts no more."
    )


class _Beat:
    """Gives signs of life while this process holds a lock."""

    def __init__(self, path: pathlib.Path, text: bytes):
        self._path, self._text = path, text
        self._over = threading.Event()
        thread = threading.Thread(target=self._run, name="stepjax-lock", daemon=True)
        thread.start()

    def _run(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            # NFS may be away for a while; a lock that is gone is not made again.
            with contextlib.suppress(OSError):
                if not self._is_mine():
                    return
                with open(self._path, "r+b") as file:
                    file.write(self._text)

    def _is_mine(self) -> bool:
        return self._path.read_bytes() == self._text

    def end(self) -> None:
        """Removes the lock, unless it is another process's by now."""
        self._over.set()
        with contextlib.suppress(OSError):
            if self._is_mine():
                self._path.unlink()
