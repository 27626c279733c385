"""SIGTERM, SIGHUP and Ctrl-C set a flag; the work stops after the unit that it is at.

A unit is an update of a training, a turn of a search, or a batch of an evaluation. The
work that is done is saved first, so the same command repeats nothing. An exception
would not do: Python drops one that is raised inside a callback of a library, and then
the run goes on.

On several hosts a signal to one of them stops all of them, see `stepjax.lm.alive`. Most
units are done by all hosts together. They count these units, and stop after the same
one. In a search or an evaluation each host works by itself (`apart`) and stops after
its own unit; then it waits for the other hosts where that work ends.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, Protocol

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SAID = b"stepjax: stopping after this unit of work; a second signal ends it at once.\n"
_TWICE_SECONDS = 1  # `timeout` of GNU sends its signal twice: one that counts

_DEFAULTS = signal.SIG_DFL, signal.default_int_handler

_asked: list[int] = []  # the signal that came, if any
_before: dict[int, Any] = {}  # handlers that `listen` has replaced
_watching: list[tuple[int, threading.Thread]] = []  # the pipe of signals, its reader
_others: list["Others"] = []  # the other hosts, if there are any
_apart: list[bool] = []  # not empty inside of `apart`
_saved: list[str] = []  # what was saved by this host when it stopped inside of `apart`


class Others(Protocol):
    """The other hosts of the run.

    Attributes:
      signal: the signal for which all hosts stop, once they have agreed after which
        unit; 0 before.
    """

    signal: int

    def ask(self, number: int) -> None:
        """Asks all hosts to stop, because this signal came."""

    def reached(self) -> bool:
        """Counts a unit of all hosts; returns whether they stop after this one."""


class Stopped(BaseException):
    """The work stopped because a signal asked for it.

    It is no `Exception`, so that what handles errors of the work lets it pass.
    """

    def __init__(self, saved: str):
        """Keeps what was saved, in words, e.g. "update 7 of 40 is saved"."""
        super().__init__(saved)
        self.saved = saved


def until_begun() -> None:
    """From here on, a signal ends the process: there is nothing to save yet.

    An exception would not do here either: imports turn it into other errors.
    """
    for number in SIGNALS:
        if signal.getsignal(number) in _DEFAULTS:
            signal.signal(number, _quit)


def listen(others: Others | None = None) -> None:
    """From here on, the first signal sets the flag and the second one ends the process.

    Signals that somebody else handles, or that the process was started to ignore, stay
    as they are. Nothing happens outside of the main thread, where Python sets no
    handlers.

    Args:
      others: the other hosts, which are to stop together with this one.
    """
    _others[:] = [others] if others else []
    if threading.current_thread() is not threading.main_thread() or _before:
        return
    heard: list[float] = []

    def handler(number: int, frame: Any) -> None:
        _hear(number, heard)

    for number in SIGNALS:
        before = signal.getsignal(number)
        default = _DEFAULTS[number == signal.SIGINT]
        if before in (*_DEFAULTS, _quit):
            _before[number] = default if before is _quit else before
            signal.signal(number, handler)
    if _before:
        # Python calls its handlers between two lines of Python only, and a compilation
        # is one line that takes minutes. A thread hears of a signal at once.
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        thread = threading.Thread(target=_watch, args=(read,), daemon=True)
        thread.start()
        _watching.append((write, thread))


def end() -> None:
    """Forgets the signal that came and gives the handlers back."""
    for number, handler in _before.items():
        signal.signal(number, handler)
    _before.clear()
    while _watching:
        write, thread = _watching.pop()
        signal.set_wakeup_fd(-1)
        os.close(write)
        thread.join()
    _asked.clear()
    _others.clear()
    _saved.clear()


def _watch(pipe: int) -> None:
    """Hears of signals until the other end of the pipe is closed."""
    heard: list[float] = []
    with open(pipe, "rb", buffering=0) as numbers:
        while number := numbers.read(1):
            if number[0] in SIGNALS:
                _hear(number[0], heard)


def _hear(number: int, heard: list[float]) -> None:
    """Takes note of a signal; `heard` says when the ones before came this way."""
    heard.append(time.monotonic())
    if heard[-1] - heard[0] > _TWICE_SECONDS:
        _say(b"stepjax: the second signal; stopped without saving.\n")
        os._exit(128 + number)
    _ask(number)


def _ask(number: int) -> None:
    if not _asked:
        _asked.append(number)
        _say(_SAID)
        if _others:
            _others[0].ask(number)


def _say(text: bytes) -> None:
    """Prints a line, if there is still somebody who can read it."""
    with contextlib.suppress(OSError):
        os.write(2, text)


def _quit(number: int, frame: Any) -> None:
    _say(b"stepjax: interrupted before anything was begun.\n")
    os._exit(128 + number)


def nobody_reads() -> bool:
    """Asks to stop, because nobody reads what is printed.

    Returns:
      Whether that was asked: only between `listen` and `end` there is work to stop.
    """
    if _watching:
        _ask(signal.SIGPIPE)
    return bool(_watching)


def asked() -> bool:
    """Whether a signal asked to stop, and all hosts know where."""
    return bool(_others[0].signal if _others else _asked)


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Inside, each host works by itself and stops after its own unit of work.

    `check` then raises `Stopped` without waiting for the other hosts. On several hosts
    it ends here. All of them have to wait for each other after it, and then to call
    `check`, which raises `Stopped` on every host.
    """
    _apart.append(True)
    try:
        yield
    except Stopped as stopped:
        if not _others:
            raise
        _saved[:] = [stopped.saved]
    finally:
        _apart.pop()


def reached() -> bool:
    """Whether to stop here. On several hosts all call this at the same units."""
    if _others and not _apart:
        return _others[0].reached()
    return asked()


def check(saved: str) -> None:
    """Stops here if a signal asked for it; see `reached`.

    Args:
      saved: what is saved, in words.

    Raises:
      Stopped: when it did.
    """
    if reached():
        raise Stopped(_saved.pop() if _saved else saved)


def status() -> int:
    """Returns the exit status of a stopped process: 128 + the number of its signal."""
    number = _others[0].signal if _others else 0
    return 128 + (number or (_asked[0] if _asked else signal.SIGINT))
