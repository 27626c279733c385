"""Limits of the grader that an answer has met, so that it was not compared to its end.

Every comparison of answers takes a bounded time: a formula that is too long, a list of
too many items or a power that is too large counts as not equal. `met` notes it where it
happens, and `noted` collects the notes of one comparison.
"""

import contextlib
import contextvars
from collections.abc import Iterator

# A list of each thread of its own; None where nobody asks.
_notes: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar(
    "limits of the grader", default=None
)


def met(limit: str) -> None:
    """Notes that a limit was met.

    Args:
      limit: in words, as "a list of more than 24 items".
    """
    notes = _notes.get()
    if notes is not None:
        notes.append(limit)


@contextlib.contextmanager
def noted() -> Iterator[list[str]]:
    """Collects the limits that are met inside of the block, in their order."""
    notes: list[str] = []
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)
