"""How a command ends: its exit status, and the sentence that says why.

An error that stepjax or the operating system has raised is one sentence. Any other one
is a fault of the program and has a traceback.
"""

import contextlib
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

from stepjax import interrupts, os_errors

if TYPE_CHECKING:
    from stepjax.lm import alive


def on_all_hosts(work: Callable[[], None]) -> int:
    """Does the work of a command, and tells the other hosts if this one fails.

    Returns:
      The exit status.
    """
    try:
        status = _work(work)
    except Exception as error:
        if not _watch():
            raise
        if _is_of_the_devices(error):
            say(f"stepjax: {type(error).__name__}: {str(error)[:300]}")
            say("stepjax: waiting until it is known which host is lost, if one is")
            _watch().wait_for_cause()
        traceback.print_exc()
        status = 1
    if status == 1 and _watch():
        _watch().leave("Look at what it printed last.")
        _leave(status)
    return status


def _watch() -> "alive.Watch | None":
    """Returns the watch over the other hosts; None for one host."""
    if "stepjax.lm.hosts" not in sys.modules:
        return None
    from stepjax.lm import hosts

    return hosts.watch()


def end_watch() -> None:
    """Ends the watch over the other hosts, as the last thing that a process does."""
    watch = _watch()
    if watch:
        watch.end()


def _work(work: Callable[[], None]) -> int:
    """Does the work of a command; returns the exit status."""
    try:
        work()
    except BrokenPipeError:
        raise
    except Exception as error:
        ours = isinstance(error, ValueError | FloatingPointError) and _is_ours(error)
        late = isinstance(error, TimeoutError) and not error.strerror  # another host
        if late or ours and not (_watch() and _is_of_the_devices(error)):
            return refused(str(error), 1)
        found = os_errors.find(error)
        if not found:
            raise
        return refused(os_errors.sentence(found), 1)
    except interrupts.Stopped as stopped:
        text = f"stopped: {stopped.saved}; the same command continues."
        status = refused(text, interrupts.status())
        if _watch():
            from stepjax.lm import hosts

            hosts.barrier("stopped")  # none needs this one any more
        return status
    except KeyboardInterrupt:
        return refused("interrupted; the same command continues.", interrupts.status())
    finally:
        interrupts.end()
        _unlock()
    return 0


def refused(text: str, status: int) -> int:
    """Prints why a command has failed; returns the exit status that is given."""
    # A path or a text of thousands of characters would hide the sentence around it.
    text = re.sub(r"\S{400,}", lambda long: f"{long[0][:150]}...{long[0][-50:]}", text)
    print("\n".join(f"stepjax: {line}" for line in text.split("\n")), file=sys.stderr)
    return status


def say(text: str) -> None:
    """Prints a line for people, at once."""
    print(text, file=sys.stderr, flush=True)


def without_a_host(text: str) -> None:
    """Ends the process, which another host has left."""
    refused(text, 1)
    _leave(1)


def _leave(status: int) -> None:
    """Ends the process at once, without waiting for other hosts."""
    _unlock()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)


def _unlock() -> None:
    if "stepjax.run.lock" in sys.modules:
        from stepjax.run import lock

        lock.release_all()


def _is_of_the_devices(error: BaseException | None) -> bool:
    """Whether XLA raised the error, as it does when another host is lost."""
    while error and type(error).__name__ != "JaxRuntimeError":
        error = error.__cause__
    return error is not None


def _is_ours(error: Exception) -> bool:
    """Whether stepjax itself raised the error, so that it needs no traceback."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    return pathlib.Path(last).is_relative_to(pathlib.Path(__file__).parents[1])
