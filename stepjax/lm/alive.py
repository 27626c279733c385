"""Signs of life between hosts, and the unit of work after which all of them stop.

Every host writes a number that grows into the key-value store of `jax.distributed`,
which the first host keeps, and reads the numbers of the other hosts. When a number has
not grown for too long, that host is named and the process ends. Otherwise an exchange
between devices would wait for the lost host for ever, or JAX would end the process with
a stack trace.

A signal that comes to one host stops all of them. They count the units of work that
they do together. When a host has heard of the signal, it writes how many units it has
done, and begins no further one until it has read the numbers of all hosts. They stop
after one unit more than the largest number. So the work of a host on which others wait
is never missing. `orbax.checkpoint.multihost.reached_preemption` counts like this too,
but it does not know Ctrl-C, nor searches, in which hosts do different numbers of units.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

BEAT_SECONDS = 1.0  # between two signs of life
_ROOT = "stepjax/hosts/"
_SAID = b"stepjax: a signal came to a host; all hosts stop after this unit of work.\n"


class Watch:
    """What this host knows about the other hosts, in the form of `interrupts.Others`.

    Attributes:
      signal: the signal for which all hosts stop, once they have agreed after which
        unit; 0 before.
    """

    def __init__(
        self,
        store: Any,
        here: int,
        names: Sequence[str],
        seconds: float,
        on_lost: Callable[[str], None],
    ):
        """Begins to give signs of life, and to look for those of the other hosts.

        Args:
          store: the client of `jax.distributed`.
          here: number of this host.
          names: of all hosts.
          seconds: without a sign of life, after which a host is lost.
          on_lost: ends the process; called from another thread with a sentence that
            names the lost host.
        """
        self._store, self._here, self._names = store, here, list(names)
        self._seconds, self._on_lost = seconds, on_lost
        self._heard = self._beats = self._units = self._stop_at = self.signal = 0
        self._lock, self._wake = threading.Lock(), threading.Event()
        self._over = False
        now = time.monotonic()
        self._last = {n: ("", now) for n in range(len(names)) if n != here}
        self._thread = threading.Thread(
            target=self._run, name="stepjax-hosts", daemon=True
        )
        self._thread.start()

    def ask(self, number: int) -> None:
        """Asks all hosts to stop, because this signal came."""
        self._heard = number
        self._wake.set()

    def reached(self) -> bool:
        """Counts a unit of all hosts; returns whether they stop after this one."""
        with self._lock:
            self._units += 1
            return bool(self._stop_at) and self._units >= self._stop_at

    def leave(self, reason: str) -> None:
        """Tells the other hosts that this one ends, and gives them time to read it.

        Args:
          reason: a sentence for the other hosts; "" if they end by themselves, so that
            nothing has to be told.
        """
        self._over = True
        if not reason:
            return
        try:
            self._write(f"left/{self._here}", reason)
        except Exception:  # the first host is gone already
            return
        time.sleep(3 * BEAT_SECONDS)

    def end(self) -> None:
        """Gives no further sign of life, and waits until nothing is under way.

        A thread that is inside of JAX when Python ends can abort the process.
        """
        self._over = True
        self._wake.set()
        self._thread.join(10 * BEAT_SECONDS)

    def wait_for_cause(self) -> None:
        """Waits until a lost host is named, which ends the process, if one is lost."""
        time.sleep(self._seconds + 3 * BEAT_SECONDS)

    def _write(self, name: str, value: str) -> None:
        self._store.key_value_set(f"{_ROOT}{name}", value, allow_overwrite=True)

    def _run(self) -> None:
        while not self._over:
            self._wake.wait(BEAT_SECONDS)
            self._wake.clear()
            found = self._beat()
            if "stop" in found and not self.signal:
                self._agree(int(found["stop"]))

    def _beat(self) -> dict[str, str]:
        """Gives a sign of life; returns what all hosts have written, by name."""
        found: dict[str, str] = {}
        self._beats += 1
        try:
            self._write(f"alive/{self._here}", str(self._beats))
            if self._heard and not self.signal:
                with contextlib.suppress(Exception):  # another host was the first
                    self._store.key_value_set(f"{_ROOT}stop", str(self._heard))
            read = self._store.key_value_dir_get(_ROOT)
            found = {name.removeprefix(_ROOT): value for name, value in read}
        except Exception:  # the first host does not answer, which counts as silence
            pass
        self._look(found)
        return found

    def _look(self, found: dict[str, str]) -> None:
        """Ends the process when a host is lost."""
        now = time.monotonic()
        for number, (value, since) in self._last.items():
            new, name = found.get(f"alive/{number}", value), self._names[number]
            reason = found.get(f"left/{number}")
            if self._over:
                return
            if reason is not None:
                self._on_lost(f"host {number} ({name}) has ended: {reason}")
            elif new != value:
                self._last[number] = new, now
            elif now - since > self._seconds and (found or not number):
                self._on_lost(lost(number, name, self._seconds))

    def _agree(self, number: int) -> None:
        """Finds the unit after which all hosts stop; meanwhile none goes on."""
        with self._lock:
            self._write(f"at/{self._here}", str(self._units))
            units: dict[str, str] = {}
            while len(units) < len(self._names):
                time.sleep(0.05)
                found = self._beat()
                units = {key: n for key, n in found.items() if key[:3] == "at/"}
            self._stop_at = 1 + max(map(int, units.values()))
            self.signal = number
        if not self._heard:
            os.write(2, _SAID)


def lost(number: int, name: str, seconds: float) -> str:
    """Returns a sentence about a host that gives no sign of life."""
    return (
        f"host {number} ({name}) has given no sign of life for {seconds:.0f} s. Look "
        "at what it printed last. The same command on all hosts continues."
    )
