"""Runs ``stepjax`` commands in forked children of a process that has imported stepjax.

A child costs no imports and, with a cache of compiled programs, no compilation. The
parent must not have started a device of JAX; `ready` imports everything and checks it.
"""

import contextlib
import os
import pathlib
import signal
import sys
import time
import traceback

_CACHE = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


def ready(cache: pathlib.Path) -> None:
    """Imports stepjax for all children, which keep compiled programs in a folder."""
    names = _CACHE | {"JAX_COMPILATION_CACHE_DIR": str(cache.resolve())}
    for name, value in names.items():
        os.environ.setdefault(name, value)
    sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
    import runs  # noqa: F401
    from jax._src import xla_bridge

    if xla_bridge.backends_are_initialized():
        raise RuntimeError("a device is in use; expected none before the first fork")


def start(arguments, log, *, quick=False, stop=None) -> int:
    """Starts ``stepjax ARGUMENTS`` in a child; returns its process number.

    Args:
      arguments: of the command.
      log: file for what it prints.
      quick: whether as `runs.quick_runs` does.
      stop: (name of a method, text, n): the child dies after the n-th call of it whose
        folder or file has the text in its path. "save" is that of `TrainSaver`, "add"
        that of `Journal`.
    """
    child = os.fork()
    if child:
        return child
    status = 98
    try:
        with open(log, "wb", buffering=0) as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
        import runs

        if stop:
            _die_after(*stop)
        with runs.quick_runs() if quick else contextlib.nullcontext():
            status = runs.command(*arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(child: int, seconds: float = 1800) -> int | None:
    """Returns the exit status of a child; None when it was killed after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _die_after(name, text, count):
    from stepjax.lm.checkpoint import TrainSaver
    from stepjax.run.journal import Journal

    owner = {"save": TrainSaver, "add": Journal}[name]
    original, calls = getattr(owner, name), []

    def call(self, *args, **options):
        result = original(self, *args, **options)
        place = self.directory if name == "save" else self.path
        if text in str(place):
            calls.append(place)
        if len(calls) == count:
            os._exit(9)
        return result

    setattr(owner, name, call)
