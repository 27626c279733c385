"""One command at a time writes into a run directory.

The file ``.lock`` in the directory says who: host, process, the time when the process
was started, and since when it holds the lock. It appears whole, under its name, or not
at all (`os.link`, which is atomic on local disks and on NFS, where ``flock`` is not to
be relied on). Its owner writes it again every 15 seconds, as a sign of life.

A lock is left behind by a process that was killed. It is stale, and is replaced, when

*   it is of this machine, and that process is gone, or its number was given to another
    process, which was started at another time;
*   it is of another machine or container, there was no sign of life for 180 seconds by
    the clock of the file system, and none comes while a new command waits for it. The
    waiting alone decides when the machine was started anew since.

Who replaces a stale lock holds a lock on that lock meanwhile, so that two commands
which find the same one do not both get it. A process whose lock was replaced, because
its machine was asleep for long, ends at once when it notices.
"""

import atexit
import contextlib
import datetime
import errno
import hashlib
import json
import os
import pathlib
import socket
import sys
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
    text = json.dumps(_self(), sort_keys=True).encode()
    _hold(path, text)
    _held[path] = _Beat(path, text)
    for left in folder.glob(f"{NAME}.*"):  # of commands that were killed
        found = _read(left)
        if found is not None and _is_stale(left, found, wait=False):
            left.unlink(missing_ok=True)


def _hold(path: pathlib.Path, text: bytes) -> None:
    """Makes a lock with this text, in the place of a stale one if there is one.

    Raises:
      ValueError: when another process holds it.
    """
    tries = 0
    while not _made(path, text):
        kept = _bytes(path)
        theirs = _read(path)
        if kept is None or theirs is None:
            continue  # it was released just now
        if not _is_stale(path, theirs):
            raise ValueError(_refusal(path, theirs))
        # Only who holds the lock on this stale lock may replace it.
        claim = path.with_name(f"{NAME}.{hashlib.sha256(kept).hexdigest()[:16]}")
        try:
            _hold(claim, text)
        except ValueError:  # another command replaces it now; see who has it then
            tries += 1
            if tries > 50:
                raise
            time.sleep(0.1)
            continue
        try:
            if _bytes(path) == kept:
                _replace(path, text)
                return
        finally:
            claim.unlink(missing_ok=True)


def is_others(folder: pathlib.Path) -> bool:
    """Whether another process works in a run directory now."""
    path = folder.absolute() / NAME
    found = None if path in _held else _read(path)
    return found is not None and not _is_stale(path, found, wait=False)


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
        "boot": _boot(),
        "processes": _processes(),
        "pid": pid,
        "started": _started(pid),
        "since": now.isoformat(sep=" ", timespec="seconds"),
        "token": uuid.uuid4().hex,
    }


def _boot() -> str:
    """Returns what tells this start of this machine from all other ones, on Linux."""
    try:
        return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


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


def _written(path: pathlib.Path, text: bytes) -> pathlib.Path:
    """Returns a new file beside a lock, with this text, which is on the disk."""
    temporary = path.with_name(f"{NAME}.{uuid.uuid4().hex}.tmp")
    with files.named(path):
        _create(temporary, text)
    return temporary


def _create(path: pathlib.Path, text: bytes) -> None:
    """Makes a file with this text, which is on the disk, or leaves none.

    Raises:
      FileExistsError: when it is there already; it then stays as it is.
    """
    file = open(path, "xb")
    try:
        with file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _made(path: pathlib.Path, text: bytes) -> bool:
    """Makes the file, unless it is there; returns whether it did."""
    if path.exists():
        return False
    temporary = _written(path, text)
    try:
        os.link(temporary, path)
    except (FileExistsError, FileNotFoundError):
        return _bytes(path) == text  # NFS may say so of a link that it has made
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _made_without_link(path, text)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _made_without_link(path: pathlib.Path, text: bytes) -> bool:
    """Makes the file where there are no links: first empty, then with its text."""
    try:
        with files.named(path):
            _create(path, text)
    except FileExistsError:
        return False
    return True


def _replace(path: pathlib.Path, text: bytes) -> None:
    temporary = _written(path, text)
    try:
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _bytes(path: pathlib.Path) -> bytes | None:
    """Returns what is in a file; None when it is gone."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _read(path: pathlib.Path) -> dict[str, Any] | None:
    """Returns what a lock says; None when it is gone, {} when it says nothing.

    Where there are no links, a lock that was just made is empty for a moment.
    """
    for attempt in range(10):
        time.sleep(0.05 * bool(attempt))
        kept = _bytes(path)
        if kept is None:
            return None
        with contextlib.suppress(ValueError):
            found = json.loads(kept)
            pid = found.get("pid") if isinstance(found, dict) else None
            if isinstance(pid, int) and 0 < pid < 2**31:
                return found
    return {}


def _is_stale(path: pathlib.Path, lock: dict[str, Any], wait: bool = True) -> bool:
    """Whether the process that made a lock is gone for sure, or silent for long.

    Args:
      path: of the lock.
      lock: what it says.
      wait: whether to wait for a sign of life of a process that has been silent;
        without waiting such a lock does not count as stale.
    """
    if not lock:  # nobody can have written it for long, or it is damaged
        seconds = STALE_SECONDS if _bytes(path) else 5
        return _silence(path) > seconds
    if _is_here(lock):
        started = _started(lock["pid"])
        known = lock.get("started") and started
        return started is None or bool(known and started != lock["started"])
    restarted = lock.get("host") == socket.gethostname() and _boot() != lock.get("boot")
    silent = restarted or _silence(path) > STALE_SECONDS
    return bool(silent and wait) and not _gives_signs(path, lock)


def _is_here(lock: dict[str, Any]) -> bool:
    """Whether this process sees the process that made a lock."""
    place = lock.get("host"), lock.get("boot"), lock.get("processes")
    return place == (socket.gethostname(), _boot(), _processes())


def _gives_signs(path: pathlib.Path, lock: dict[str, Any]) -> bool:
    """Whether a lock is written again within the time between two signs of life.

    The clock of the file system may have jumped, so its age alone proves nothing.
    """
    seconds = 2 * BEAT_SECONDS
    print(
        f"stepjax: {path.parent} is locked by process {lock.get('pid')} on host "
        f"{lock.get('host')}, which was silent; waiting {seconds} s for a sign of life",
        file=sys.stderr,
        flush=True,
    )
    before, end = _changed(path), time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(min(0.5, BEAT_SECONDS))
        if _changed(path) != before:
            return True
    return False


def _changed(path: pathlib.Path) -> float | None:
    """Returns when a file was changed, in seconds; None when it is gone.

    The file is opened for that, because NFS then asks its server.
    """
    try:
        with open(path, "rb") as file:
            return os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None


def _silence(path: pathlib.Path) -> float:
    """Returns the seconds since the last sign of life, by the file system's clock."""
    probe = path.with_name(f"{NAME}.{uuid.uuid4().hex}.tmp")
    try:
        probe.touch()
        now, before = _changed(probe), _changed(path)
    finally:
        probe.unlink(missing_ok=True)
    return 0.0 if now is None or before is None else now - before


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
        self._path, self._text, self._process = path, text, os.getpid()
        self._over, self._turn = threading.Event(), threading.Lock()
        thread = threading.Thread(target=self._run, name="stepjax-lock", daemon=True)
        thread.start()

    def _run(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            # NFS may be away for a while. What `end` removes is not made again.
            with contextlib.suppress(OSError), self._turn:
                if not self._over.is_set():
                    self._beat()

    def _beat(self) -> None:
        """Gives one sign of life; ends the process if another one has the lock."""
        kept = _bytes(self._path)
        if kept is None:
            _made(self._path, self._text)  # somebody has deleted it
        elif kept == self._text:
            with open(self._path, "r+b") as file:
                file.write(self._text)
        elif not self._over.is_set() and (theirs := _read(self._path)):
            who = f"process {theirs.get('pid')} on host {theirs.get('host')}"
            print(
                f"stepjax: {self._path.parent} was taken over by {who}, because this "
                f"process gave no sign of life; process {os.getpid()} ends, so that "
                "only one writes there.",
                file=sys.stderr,
                flush=True,
            )
            os._exit(1)

    def end(self) -> None:
        """Removes the lock, unless it is another process's by now.

        A process that was forked from the owner does not remove it.
        """
        self._over.set()
        if os.getpid() != self._process:
            return
        with contextlib.suppress(OSError), self._turn:
            if _bytes(self._path) == self._text:
                self._path.unlink()
