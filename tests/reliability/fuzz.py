"""What a fuzzed input is, and how it is tried: it must end as one of two things.

A generator makes an input of a seed and knows whether it is wrong. Trying it must end,
within a generous time limit, in success or in one `ValueError` that says what was found
and what was expected. Everything else is a failure: another exception (for a person a
traceback), a hang, a wrong input that is accepted, a right one that is refused.
"""

import collections
import contextlib
import io
import signal
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

_SAYS_WHAT_TO_DO = (
    "expected",
    "Did you mean",  # a mistyped setting
    "value should be one of",  # a mistyped option
    "then run the same command again",  # an error of the operating system
)
LIMIT = 120  # seconds; the longest one takes a few on a busy computer


class Case(NamedTuple):
    """An input and how it is tried.

    Attributes:
      what: what was done to it, for people.
      wrong: whether it must be refused; None where either end is right, such as after
        a random byte.
      attempt: tries it.
      named: texts that the message must hold.
    """

    what: str
    wrong: bool | None
    attempt: Callable[[], Any]
    named: tuple[str, ...] = ()


class TimeOut(BaseException):
    """No `Exception`, so that nothing that is tried can catch it."""


@contextlib.contextmanager
def limited(seconds: float):
    """Raises `TimeOut` in the block after so many seconds."""

    def stop(*_):
        raise TimeOut

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def fault(case: Case) -> str:
    """Tries a case; returns what is wrong with its end, "" when all is right."""
    try:
        with limited(LIMIT), contextlib.redirect_stdout(io.StringIO()):
            case.attempt()
    except TimeOut:
        return f"hangs for {LIMIT} s"
    except ValueError as error:
        return refused(case, str(error))
    except BaseException as error:
        return f"traceback: {type(error).__name__}: {str(error)[:200]}"
    return "wrongly accepted" if case.wrong else ""


def refused(case: Case, message: str) -> str:
    """Returns what is wrong with a refusal and its message."""
    if case.wrong is False:
        return f"wrongly refused: {message[:300]}"
    if not any(words in message for words in _SAYS_WHAT_TO_DO):
        return f"does not say what was expected: {message[:300]}"
    if len(message) > 3000:
        return f"a message of {len(message)} characters: {message[:300]}"
    absent = [name for name in case.named if name not in message]
    return f"does not name {absent}: {message[:300]}" if absent else ""


def run(cases: Iterable[tuple[str, Case]]) -> tuple[list[str], dict[str, Any]]:
    """Tries cases; returns what is wrong, and figures about each kind.

    Args:
      cases: ("KIND, what tells it from others of its kind", case).
    """
    faults: list[str] = []
    figures: dict[str, Any] = collections.defaultdict(collections.Counter)
    for name, case in cases:
        began = time.monotonic()
        found = fault(case)
        seconds = time.monotonic() - began
        counts = figures[name.partition(",")[0]]
        counts["tried"] += 1
        counts["wrong"] += case.wrong is True
        counts["right"] += case.wrong is False
        counts["faults"] += bool(found)
        counts["worst_seconds"] = round(max(counts["worst_seconds"], seconds), 2)
        if found:
            faults.append(f"{name}: {case.what}: {found}")
    return faults, {kind: dict(counts) for kind, counts in figures.items()}
