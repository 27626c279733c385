"""Runs ``stepjax`` commands as processes that are forked from one that has imported it.

So a process costs no imports, and with the cache of JAX no compilations either. Several
of them can be the hosts of one run. A signal can be sent to a process by itself, in a
chosen call of a function, so that it comes at the same place each time.
"""

import atexit
import contextlib
import functools
import importlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import xla_flags

from stepjax.run.monitor import Monitor

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = ROOT / "tests/reliability/brief_config.py"
# Called once per unit of work: an update or a batch of the reference, a batch of the
# reference that is kept, an expansion of a search, a measured problem or judgment, a
# problem with rollouts, an iteration of a tree.
UNITS = (
    "stepjax.lm.train:put_batch",
    "stepjax.run.reference_pass:Row",
    "stepjax.search:transition",
    "stepjax.evaluation.stages:Row",
    "stepjax.initial_data.rollouts:StepValues",
    "stepjax.initial_data.mcts:back_up",
)


class Blow(NamedTuple):
    """A signal that a process sends to itself in a call of a function.

    Attributes:
      function: "module:name".
      call: number of the call, from 1.
      number: of the signal.
      after: seconds from the call to the signal, which is sent meanwhile by a thread;
        0 sends it within the call.
    """

    function: str
    call: int
    number: int = signal.SIGKILL
    after: float = 0.0


class Ended(NamedTuple):
    """How a process ended.

    Attributes:
      status: its exit status; -9 when it was killed.
      text: what it printed.
      seconds: from the signal to its end; 0 when none was sent.
      calls: function of `UNITS` → how often it was called, unless it was killed.
      ended: when, in seconds since 1970.
    """

    status: int
    text: str
    seconds: float
    calls: dict[str, int]
    ended: float

    def last(self) -> str:
        """Returns the last line that it printed."""
        return self.text.rstrip().rpartition("\n")[2]


class Nursery:
    """Starts processes; see `nursery`."""

    def __init__(self, process: subprocess.Popen):
        self._process = process

    def _ask(self, order: Any) -> Any:
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def start(
        self,
        arguments: Sequence[str],
        log: pathlib.Path,
        *,
        blow: Blow | None = None,
        environment: dict[str, str] | None = None,
    ) -> int:
        """Starts a command; returns the number of its process.

        Args:
          arguments: after ``stepjax``.
          log: gets what it prints, after what is there.
          blow: a signal to itself.
          environment: variables to set.
        """
        return self._ask(
            {
                "arguments": list(map(str, arguments)),
                "log": str(log),
                "blow": blow,
                "environment": environment or {},
            }
        )

    def wait(self, pid: int, log: pathlib.Path, seconds: float = 1800) -> Ended:
        """Waits until a process has ended, and ends it if that takes too long."""
        began, status = time.monotonic(), None
        while (status := self._ask({"poll": pid})) is None:
            if time.monotonic() - began > seconds:
                os.kill(pid, signal.SIGKILL)
                raise AssertionError(f"{pid} hangs: {log.read_text()[-3000:]}")
            time.sleep(0.05)
        ended, struck = time.time(), log.with_suffix(f".{pid}.struck")
        took = ended - float(struck.read_text()) if struck.exists() else 0.0
        counted = log.with_suffix(f".{pid}.calls")
        calls = json.loads(counted.read_text()) if counted.exists() else {}
        return Ended(status, log.read_text("utf-8", "replace"), took, calls, ended)

    def hosts(
        self,
        count: int,
        arguments: Sequence[str],
        folder: pathlib.Path,
        *,
        devices: int = 1,
        blows: dict[int, Blow] | None = None,
        missing: Sequence[int] = (),
        seconds: float = 1800,
    ) -> list[Ended]:
        """Runs a command as several hosts; returns how each of them ended.

        Args:
          count: how many hosts there are.
          arguments: after ``stepjax``.
          folder: gets what they print.
          devices: of each host.
          blows: number of a host → its signal.
          missing: hosts that are not started.
          seconds: after which they hang.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started = {}
        for host in (n for n in range(count) if n not in missing):
            log = folder / f"host_{host}.log"
            log.write_bytes(b"")
            environment = {
                "XLA_FLAGS": xla_flags.devices(devices),
                "NPROC": str(count * devices),
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(host),
            }
            started[host] = (
                log,
                self.start(
                    [*arguments, f"--hosts={count}"],
                    log,
                    blow=(blows or {}).get(host),
                    environment=environment,
                ),
            )
        return [self.wait(pid, log, seconds) for log, pid in started.values()]


@contextlib.contextmanager
def nursery(cache: pathlib.Path) -> Iterator[Nursery]:
    """Starts the process that starts others.

    Args:
      cache: folder for compiled programs, kept from one nursery to the next.
    """
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags.QUICK,
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    }
    process = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        yield Nursery(process)
    finally:
        process.stdin.close()
        process.wait()


def serve() -> None:
    """Reads orders from standard input, and forks a process for each command."""
    import gc

    import transformers  # noqa: F401, is imported late otherwise
    from absl import flags  # noqa: F401

    from stepjax import iterate, main  # noqa: F401
    from stepjax.cli import options  # noqa: F401

    gc.collect()
    gc.freeze()
    while line := sys.stdin.readline():
        order = json.loads(line)
        if "poll" in order:
            pid, status = os.waitpid(order["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if not answer:
                _become(order)
        print(json.dumps(answer), flush=True)


def _become(order: dict[str, Any]) -> None:
    from stepjax import main

    log = pathlib.Path(order["log"])
    os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), 2)
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(order["environment"])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    own = log.with_suffix(f".{os.getpid()}")
    _count(own.with_suffix(f"{own.suffix}.calls"))
    if order["blow"]:
        _arm(Blow(*order["blow"]), own.with_suffix(f"{own.suffix}.struck"))
    sys.argv = ["stepjax", *order["arguments"]]
    main.entry()


def _replace(function: str, make: Callable) -> None:
    """Replaces the function "module:name" by what `make` returns for it."""
    module, _, name = function.partition(":")
    owner = importlib.import_module(module)
    setattr(owner, name, make(getattr(owner, name)))


def _count(file: pathlib.Path) -> None:
    """Counts the calls of `UNITS` and writes the counts when the process ends."""
    calls = dict.fromkeys(UNITS, 0)

    def counting(function: str, original: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[function] += 1
            return original(*args, **kwargs)

        return call

    for function in UNITS:
        _replace(function, functools.partial(counting, function))
    atexit.register(lambda: file.write_text(json.dumps(calls)))


def _arm(blow: Blow, struck: pathlib.Path) -> None:
    """Lets this process send a signal to itself in one call of a function."""
    calls = []

    def strike() -> None:
        time.sleep(blow.after)
        struck.write_text(str(time.time()))
        os.kill(os.getpid(), blow.number)

    def striking(original: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(None)
            if len(calls) == blow.call and blow.after:
                threading.Thread(target=strike, daemon=True).start()
            elif len(calls) == blow.call:
                strike()
            return original(*args, **kwargs)

        return call

    _replace(blow.function, striking)


def results(folder: pathlib.Path, *, but_logps: bool = False) -> dict[str, Any]:
    """Returns what a run has made, without times: equal for equal runs.

    Args:
      folder: of the run.
      but_logps: leave out log-probabilities of candidates, whose last digits depend on
        the order in which contexts are computed.
    """

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                k: kept(v) for k, v in value.items() if not (but_logps and "logp" in k)
            }
        return [kept(v) for v in value] if isinstance(value, list) else value

    found: dict[str, Any] = {}
    for path in sorted([*folder.glob("M*/*.json"), *folder.glob("eval/*.json")]):
        record = json.loads(path.read_text("utf-8"))
        parts = ("arrays", "counts", "metrics", "items")
        found[str(path.relative_to(folder))] = {
            part: kept(record[part]) for part in parts if part in record
        }
    for path in sorted(folder.rglob("*.jsonl")):
        if path.name != "metrics.jsonl":
            rows = path.read_text("utf-8").splitlines()
            rows = [kept(json.loads(row)) for row in rows]
            found[str(path.relative_to(folder))] = rows
    found["metrics"] = kept(Monitor(folder).rows())
    return found


if __name__ == "__main__":
    serve()
