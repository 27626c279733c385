"""Several hosts that run one program together.

Every host runs the same command. Training is one program over the devices of all
hosts. Sampling, judging and grading are split by problems: each host works on its own
devices, and their results are merged from files in the run directory, which all hosts
must see. Hosts wait for each other with a time limit, and name the hosts that are
missing (`roll_call`, `barrier`) or lost (`alive`).
"""

import collections
import ctypes
import json
import os
import pathlib
import re
import signal
import socket
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from stepjax.lm import alive
from stepjax.lm.roll_call import roll_call

WAIT_SECONDS = 3600  # the longest wait for a host that is alive, but slow
LOST_SECONDS = 300  # the longest wait for a host that has not started, or is lost
_TPU_PORT = 8482  # where JAX joins the hosts of a TPU slice
_NAME_BYTES = 64  # the longest name of a host on Linux

_passed: collections.Counter = collections.Counter()  # barriers so far, by name
_names: list[str] = []  # of all hosts, once they have joined
_watch: list[alive.Watch] = []  # of the other hosts, once they have joined
_handlers: list[Any] = []  # C functions that must not be collected


def start(
    expected: int,
    seconds: float = LOST_SECONDS,
    on_lost: Callable[[str], None] | None = None,
) -> None:
    """Joins the other hosts, before anything is compiled.

    On a TPU slice JAX finds them itself; elsewhere ``JAX_COORDINATOR_ADDRESS``,
    ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID`` say where the first host is, how many
    hosts there are, and which one this is.

    Args:
      expected: number of hosts; with 1 there is nobody to join.
      seconds: the longest wait for a host that has not started or is lost.
      on_lost: ends the process when a host is lost: called from another thread, with
        a sentence that names the host. None leaves that to JAX.

    Raises:
      ValueError: when there are more or fewer hosts.
      TimeoutError: when not all of them come in time.
    """
    slice_hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    here = [name for name in slice_hosts.split(",") if name]
    told_count = os.environ.get("JAX_NUM_PROCESSES", "")
    announced = int(told_count) if told_count.isdecimal() else len(here) or 1
    if announced != expected and (announced > 1 or told_count.isdecimal()):
        raise ValueError(
            f"--hosts={expected} and the environment tells of {announced} hosts; "
            f"expected --hosts={announced}, and the same command on each of them."
        )
    told = _told_by_environment()
    if told or expected > 1:
        _join(expected, seconds, told, here)
    if count() != expected:
        raise ValueError(
            f"--hosts={expected}, but {count()} hosts joined; expected equal numbers. "
            f"Run the same command on every host of the slice, with --hosts={count()}."
        )
    if expected > 1:
        barrier("start")
        _names[:] = _host_names()
        if on_lost:
            store = distributed.global_state.client  # JAX has no public name for it
            _watch[:] = [alive.Watch(store, index(), _names, seconds, on_lost)]
            _on_abort(seconds, on_lost)


def _told_by_environment() -> dict[str, Any]:
    """Returns what variables say of this host, for `jax.distributed`; {} for nothing.

    Raises:
      ValueError: when one of them is missing, or is no number.
    """
    names = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
    address, hosts, number = (os.environ.get(name, "") for name in names)
    if not hosts and not number:
        return {}
    numbers = hosts.isdecimal() and number.isdecimal()
    if not (address and numbers and int(number) < int(hosts)):
        found = ", ".join(f"{name}={os.environ.get(name, '')!r}" for name in names)
        raise ValueError(
            f"{found}; expected HOST:PORT of the first host, the number of hosts, and "
            "the number of this host, which begins at 0 and is less than the number of "
            "hosts. Set all three on every host, or none on a TPU slice."
        )
    return {
        "coordinator_address": address,
        "num_processes": int(hosts),
        "process_id": int(number),
    }


def _join(
    expected: int, seconds: float, told: dict[str, Any], here: Sequence[str]
) -> None:
    """Joins the other hosts.

    Args:
      expected: how many hosts there are.
      seconds: the longest wait for a host that has not started.
      told: see `_told_by_environment`.
      here: names of the hosts of a TPU slice, where they are known.

    Raises:
      ValueError: when JAX does not find the other hosts.
      TimeoutError: when not all of them come in time.
    """
    # Also for one process of many CPU devices, so that sums are added in one order.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # `alive` takes its place; it would take SIGTERM away from the process.
    jax.config.update("jax_enable_preemption_service", False)
    number = os.environ.get("TPU_WORKER_ID", "")
    if told and expected > 1:
        address = told["coordinator_address"]
        roll_call(address, expected, told["process_id"], seconds)
    elif len(here) == expected > 1 and number.isdecimal():
        roll_call(f"{here[0]}:{_TPU_PORT}", expected, int(number), seconds)
    try:
        # JAX ends the process when these limits are over, and names nobody. They are
        # longer than ours, for the case that ours do not work.
        jax.distributed.initialize(
            **told,
            initialization_timeout=int(seconds) + 60,
            heartbeat_timeout_seconds=int(seconds) + 60,
        )
    except Exception as error:
        raise ValueError(
            f"JAX did not join {expected} hosts ({_told(error)}); expected the same "
            "command on every host, and a TPU slice, or JAX_COORDINATOR_ADDRESS, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID."
        ) from error


def _on_abort(seconds: float, on_lost: Callable[[str], None]) -> None:
    """Lets `on_lost` have the last word where JAX aborts without the first host.

    JAX aborts within C++ as soon as the process of the first host is gone.
    """
    if first():
        return
    address = distributed.global_state.coordinator_address
    host, _, port = address.rpartition(":")

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def aborted(number: int) -> None:
        try:
            socket.create_connection((host.strip("[]"), int(port)), seconds).close()
        except OSError:
            on_lost(
                f"host 0 ({_names[0]}) has ended or cannot be reached. Look at what it "
                "printed last. The same command on all hosts continues."
            )

    ctypes.CDLL(None).signal(signal.SIGABRT, aborted)
    _handlers.append(aborted)


def watch() -> alive.Watch | None:
    """Returns the watch over the other hosts; None for one host."""
    return _watch[0] if _watch else None


def _host_names() -> list[str]:
    """Returns the names of all hosts, by number; all hosts call this together."""
    name = socket.gethostname().encode()[:_NAME_BYTES]
    names = multihost_utils.process_allgather(
        np.frombuffer(name.ljust(_NAME_BYTES, b"\0"), np.uint8)
    )
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in names]


def _told(error: Exception) -> str:
    """Returns what JAX's error says about who is missing, in short."""
    missing = _missing(error)
    return f"missing: {missing}" if missing else " ".join(str(error).split())[:300]


def _missing(error: Exception) -> str:
    """Returns the hosts that JAX's error says it waited for in vain; "" for none.

    The error ends in one line per missing host, "1" or "/job:…/task:1" by version of
    JAX, and leaves some of them out when they are many; before that it says how many
    came: "# of tasks that reached the barrier: 1/3."
    """
    text = str(error)
    lines = text.partition("timed out task")[2]
    numbers = sorted({int(n) for n in re.findall(r"^(?:\S*task:)?(\d+)$", lines, re.M)})
    missing = [f"host {n}" + (f" ({_names[n]})" if _names else "") for n in numbers]
    came = re.search(r"reached the barrier: (\d+)/(\d+)", text)
    more = int(came[2]) - int(came[1]) - len(numbers) if came else 0
    return ", ".join(missing + ([f"{more} more"] if numbers and more > 0 else []))


def count() -> int:
    """Returns how many hosts there are."""
    return jax.process_count()


def index() -> int:
    """Returns the number of this host, from 0."""
    return jax.process_index()


def first() -> bool:
    """Whether this host writes what is written once."""
    return index() == 0


def share(items: Sequence) -> Sequence:
    """Returns this host's items: every n-th of n hosts, so that shares are even."""
    return items[index() :: count()]


def barrier(name: str, seconds: float | None = None) -> None:
    """Waits until every host is here.

    Args:
      name: what was done, for people; all hosts must come to the same barriers in the
        same order.
      seconds: the longest wait; None for `WAIT_SECONDS`.

    Raises:
      TimeoutError: with the names of the hosts that did not come.
    """
    if count() == 1:
        return
    seconds = WAIT_SECONDS if seconds is None else seconds
    _passed[name] += 1
    wait = multihost.get_barrier_sync_fn()
    try:
        wait(key=f"stepjax/{name}/{_passed[name]}", timeout_ms=int(seconds * 1000))
    except Exception as error:
        missing = _missing(error)
        if not missing:
            raise
        raise TimeoutError(
            f"after {seconds:.0f} s at {name!r}: {missing} did not come. "
            "Look at what they print last; the same command continues the run."
        ) from error


def agreed(name: str, decide: Callable[[], Any]) -> Any:
    """Returns what the first host decides, on every host.

    Args:
      name: of the decision, for people; all hosts must come to the same decisions in
        the same order.
      decide: called on the first host only; returns a JSON value.

    Raises:
      TimeoutError: with the names of the hosts that did not come in time.
    """
    if count() == 1:
        return decide()
    text = json.dumps(decide()).encode() if first() else b""
    barrier(name)  # waits with a limit, which the exchange below has not
    size = int(multihost.broadcast_one_to_all(np.int32(len(text))))
    room = 1 << max(size - 1, 255).bit_length()  # few sizes, so few compilations
    padded = np.frombuffer(text.ljust(room, b"\0"), np.uint8)
    return json.loads(bytes(multihost.broadcast_one_to_all(padded)[:size]))


def merge(items: list[Any], folder: pathlib.Path, name: str) -> list[Any]:
    """Returns the items of all hosts, in the order that `share` took them from.

    Args:
      items: this host's results, JSON values.
      folder: seen by all hosts; each host writes one file there, all hosts read it,
        and it is deleted.
      name: the files' name begins with it.
    """
    if count() == 1:
        return items
    folder.mkdir(parents=True, exist_ok=True)
    paths = [
        folder / f"{name}.part-{n:05d}-of-{count():05d}.json" for n in range(count())
    ]
    paths[index()].write_text(json.dumps(items), encoding="utf-8")
    barrier(f"{name} written")
    parts = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    barrier(f"{name} read")
    paths[index()].unlink()
    merged = [None] * sum(map(len, parts))
    for number, part in enumerate(parts):
        merged[number :: count()] = part
    return merged
