"""Who is there, before JAX joins the hosts: JAX ends the process without a name.

The first host listens where JAX will listen afterwards. Each other host says its number
and name there. When all have come, or the time is over, the first host tells all of
them who has come.
"""

import contextlib
import json
import socket
import time

_HELLO_SECONDS = 5  # the longest wait for a host that has connected to say its number
_RETRY_SECONDS = 0.2


def roll_call(address: str, count: int, here: int, seconds: float) -> None:
    """Waits until all hosts have come.

    Args:
      address: "HOST:PORT" of the first host.
      count: how many hosts there are.
      here: number of this one, from 0.
      seconds: the longest wait.

    Raises:
      TimeoutError: with the hosts that did not come.
      ValueError: when the address cannot be used.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(
            f"JAX_COORDINATOR_ADDRESS={address!r}; expected HOST:PORT, the name or "
            "address of the first host and a free port there."
        )
    deadline = time.monotonic() + seconds
    if here == 0:
        missing = _call(int(port), count, deadline)
    else:
        missing = _answer((host.strip("[]"), int(port)), here, deadline)
    if missing:
        names = [f"host {n} ({address})" if n == 0 else f"host {n}" for n in missing]
        raise TimeoutError(
            f"after {seconds:.0f} s, {', '.join(names)} of {count} hosts did not come; "
            "expected the same command on every host. Look at what it printed there. "
            "--host-timeout=SECONDS sets how long hosts wait."
        )


def _call(port: int, count: int, deadline: float) -> list[int]:
    """Waits for the other hosts, as the first one; returns those that are missing."""
    came: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listener(port))
        while len(came) + 1 < count and (left := deadline - time.monotonic()) > 0:
            listener.settimeout(left)
            try:
                connection = stack.enter_context(listener.accept()[0])
                connection.settimeout(_HELLO_SECONDS)
                number = json.loads(_line(connection))["host"]
            except (OSError, ValueError, LookupError, TypeError):
                continue  # time is over, or somebody else knocked
            if number in range(1, count):
                came[number] = connection
        missing = [n for n in range(1, count) if n not in came]
        for connection in came.values():
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps({"missing": missing}).encode() + b"\n")
    return missing


def _listener(port: int) -> socket.socket:
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=dual)
    except OSError as error:
        raise ValueError(
            f"port {port} of JAX_COORDINATOR_ADDRESS cannot be used on the first host "
            f"({error.strerror}); expected a free port. End what uses it, or name "
            "another one on every host."
        ) from error


def _answer(address: tuple[str, int], here: int, deadline: float) -> list[int]:
    """Says that this host has come; returns those that are missing."""
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(address, timeout=left) as connection:
                connection.sendall(json.dumps({"host": here}).encode() + b"\n")
                # The first host, which may have come later, decides.
                connection.settimeout(left + _HELLO_SECONDS)
                return json.loads(_line(connection))["missing"]
        except (OSError, ValueError, LookupError, TypeError):
            time.sleep(_RETRY_SECONDS)  # the first host has not come yet
    return [0]


def _line(connection: socket.socket) -> bytes:
    """Reads one line, of at most a million bytes."""
    with connection.makefile("rb") as file:
        return file.readline(1_000_000)
