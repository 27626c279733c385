"""Several hosts that run one program together.

Every host runs the same command. Training is one program over the devices of all
hosts; sampling, judging and grading is split by problems, each host on its own
devices, and what the hosts made is merged from files in the run directory, which all
of them see. Hosts wait for each other with a limit, and say who is missing.
"""

import collections
import json
import os
import pathlib
import re
import socket
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax._src import distributed  # the one way to wait with a limit

WAIT_SECONDS = 3600  # for the slowest host, at most
_JOIN_SECONDS = 300  # for all hosts to start

_passed: collections.Counter = collections.Counter()  # barriers, by name


def start(expected: int) -> None:
    """Joins the other hosts, before anything is compiled.

    On a TPU slice JAX finds them itself; elsewhere ``JAX_COORDINATOR_ADDRESS``,
    ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID`` say who and where they are.

    Args:
      expected: how many hosts there are; 1 joins nobody.

    Raises:
      ValueError: when there are more or fewer hosts, or not all come in time.
    """
    here = [
        name for name in os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if name
    ]
    announced = int(os.environ.get("JAX_NUM_PROCESSES", len(here) or 1))
    if announced != expected and (announced > 1 or "JAX_NUM_PROCESSES" in os.environ):
        raise ValueError(
            f"--hosts={expected} and the environment tells of {announced} hosts; "
            f"expected --hosts={announced}, and the same command on every one of them."
        )
    if "JAX_NUM_PROCESSES" in os.environ or expected > 1:
        _join(expected)
    if count() != expected:
        raise ValueError(
            f"--hosts={expected} and {count()} hosts are here; expected as many. Run "
            f"the same command on every host of the slice, with --hosts={count()}."
        )
    if expected > 1:
        client = distributed.global_state.client
        client.key_value_set(f"stepjax/host/{index()}", socket.gethostname())
        barrier("start")


def _join(expected: int) -> None:
    # Also for one process of many CPU devices, so that sums are added in one order.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    told = {}
    if "JAX_PROCESS_ID" in os.environ:
        told = {
            "coordinator_address": os.environ["JAX_COORDINATOR_ADDRESS"],
            "num_processes": int(os.environ["JAX_NUM_PROCESSES"]),
            "process_id": int(os.environ["JAX_PROCESS_ID"]),
        }
    try:
        jax.distributed.initialize(**told, initialization_timeout=_JOIN_SECONDS)
    except Exception as error:
        raise ValueError(
            f"not all of {expected} hosts joined within {_JOIN_SECONDS} s "
            f"({_told(error)}); expected the same command on every host."
        ) from error


def _told(error: Exception) -> str:
    """What JAX says about who is missing, in short."""
    text = " ".join(str(error).split())
    tasks = sorted(set(re.findall(r"task:(\d+)", text.partition("timed out task")[2])))
    if tasks:
        return f"missing: host {', '.join(tasks)}"
    return text[:300]


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
    """Returns this host's part of the work: every n-th item, so that parts are even."""
    return items[index() :: count()]


def barrier(name: str, seconds: float | None = None) -> None:
    """Waits until every host is here.

    Args:
      name: what was done, for people; hosts must come to the same barriers in turn.
      seconds: limit; None for `WAIT_SECONDS`.

    Raises:
      TimeoutError: with the names of the hosts that did not come.
    """
    if count() == 1:
        return
    seconds = WAIT_SECONDS if seconds is None else seconds
    client = distributed.global_state.client
    _passed[name] += 1
    key = f"stepjax/barrier/{name}/{_passed[name]}"
    client.key_value_set(f"{key}/{index()}", "here")
    try:
        client.wait_at_barrier(key, int(seconds * 1000))
    except Exception as error:
        here = {
            int(k.rsplit("/", 1)[1]) for k, _ in client.key_value_dir_get(f"{key}/")
        }
        names = dict(client.key_value_dir_get("stepjax/host/"))
        missing = [
            f"host {n} ({names.get(f'stepjax/host/{n}', 'name unknown')})"
            for n in range(count())
            if n not in here
        ]
        if not missing:
            raise
        raise TimeoutError(
            f"after {seconds:.0f} s at {name!r}: {', '.join(missing)} did not come. "
            "Look at what they print last; the same command continues the run."
        ) from error


def agreed(name: str, decide: Callable[[], Any]) -> Any:
    """Returns what the first host decides, on every host.

    Args:
      name: of the decision; hosts must come to the same decisions in turn.
      decide: called on the first host only; returns a JSON value.

    Raises:
      TimeoutError: when the first host decides nothing in time.
    """
    if count() == 1:
        return decide()
    client = distributed.global_state.client
    _passed[name] += 1
    key = f"stepjax/agreed/{name}/{_passed[name]}"
    if first():
        value = decide()
        client.key_value_set(key, json.dumps(value))
        return value
    try:
        return json.loads(client.blocking_key_value_get(key, WAIT_SECONDS * 1000))
    except Exception as error:
        raise TimeoutError(
            f"after {WAIT_SECONDS} s the first host has not said {name!r}; look at "
            "what it prints last. The same command continues the run."
        ) from error


def merge(items: list[Any], folder: pathlib.Path, name: str) -> list[Any]:
    """Returns the items of all hosts, in the order that `share` took them from.

    Args:
      items: this host's, JSON values.
      folder: seen by all hosts; one file a host is written there, read, and deleted.
      name: of the files.
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
