"""What unfinished work has done so far, kept so that it can go on after a kill."""

import glob
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import logging

from stepjax import interrupts, trajectory
from stepjax.lm import files, hosts


class Row(NamedTuple):
    """What was found for one row of an evaluation, or for one batch."""

    at: int
    found: Any


class Journal:
    """Where an unfinished search can go on: one numbered line per pause.

    Each host writes its own file and reads the files of all hosts, so that a run may go
    on with another number of hosts.

    Attributes:
      path: this host's file.
      closed: id → closed search, of all hosts.
      active: slot → this host's search in flight at the last pause.
    """

    def __init__(
        self,
        path: pathlib.Path,
        inputs: dict[str, str],
        *,
        to_row: Callable[[Any], dict[str, Any]] = trajectory.to_row,
        from_row: Callable[[dict[str, Any]], Any] = trajectory.from_row,
        name: Callable[[Any], str] = lambda search: search.question.id,
        say: Callable[[str], None] = logging.warning,
    ):
        """Reads what an earlier run left, if it worked on the same inputs.

        Args:
          path: the first host's file; the name of another host's file ends with the
            host's number.
          inputs: name → digest of what is searched with.
          to_row: a search → JSON object.
          from_row: the inverse.
          name: a search → id of its question.
          say: called with a sentence about a damaged file.
        """
        self._first, self._inputs, self._say = path, inputs, say
        self._to_row, self._from_row, self._name = to_row, from_row, name
        number = hosts.index()
        name = path.name if not number else f"{path.stem}.{number}.jsonl"
        self.path = path.with_name(name)
        self.closed: dict[str, Any] = {}
        self.active: dict[int, Any] = {}
        self._lines = 1  # of this host's file, with the first one
        self.read()
        hosts.barrier(f"{path} read")
        if not self.path.exists():
            with files.named(self.path):
                self.path.write_text(self._head() + "\n", "utf-8")

    def _head(self) -> str:
        return files.sealed_line({"inputs": dict(sorted(self._inputs.items()))})

    def read(self) -> None:
        """Reads the files of all hosts, and cuts what is damaged off this host's own.

        A line that has changed since it was written, or is not in its place, costs
        itself and the lines after it, which go on from it; what they hold is searched
        again.
        """
        for path in _journals(self._first):
            # The last line may end within a character.
            *lines, _ = path.read_bytes().split(b"\n")
            whole, head = [self._head().encode()], lines[:1]
            if head and head != whole:
                self._say(
                    f"{path}: its first line is damaged or names other inputs, so "
                    "nothing of it is used"
                )
            for number, line in enumerate(lines[1:] if head == whole else (), 2):
                try:
                    self._take(line, number, path == self.path)
                except (ValueError, LookupError, TypeError, RecursionError) as error:
                    reason = str(error).partition("; ")[0]
                    self._say(
                        f"{path}: line {number} of {len(lines)} is damaged ({reason}), "
                        "so it and the lines after it are searched again"
                    )
                    break
                whole.append(line)
            if path == self.path:
                self._lines = len(whole)
                with files.replacing(path) as file:
                    file.writelines(line.decode("utf-8") + "\n" for line in whole)

    def _take(self, line: bytes, number: int, own: bool) -> None:
        """Takes over one line.

        Args:
          line: of the file of a host.
          number: of the line, from 1.
          own: whether it is this host's.

        Raises:
          ValueError: when it is damaged.
        """
        place = f"line {number}"
        row = files.unsealed_line(line, place)
        if row["line"] != number:
            raise ValueError(f"{place}: it was written as line {row['line']}")
        states = [self._from_row(item) for item in row["closed"]]
        active = {slot: self._from_row(item) for slot, item in row["active"]}
        self.closed |= {self._name(state): state for state in states}
        if own:
            self.active = active

    def add(self, closed: Sequence[Any], active: Mapping[int, Any]) -> None:
        """Keeps the searches closed since the last pause, and those in flight."""
        self.closed |= {self._name(state): state for state in closed}
        self.active = dict(active)
        self._lines += 1
        row = {
            "line": self._lines,
            "closed": list(map(self._to_row, closed)),
            "active": [[slot, self._to_row(state)] for slot, state in active.items()],
        }
        with files.named(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(files.sealed_line(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def rest(self, mine: Sequence, slots: int) -> tuple[list, dict[int, Any]]:
        """Returns what is left to search of this host's questions.

        Args:
          mine: this host's questions. With another number of hosts than before, some
            of those in flight are now another host's.
          slots: problems in flight on this host.

        Returns:
          (questions that were not begun, slot → search in flight).
        """
        active = {
            slot: state
            for slot, state in self.active.items()
            if slot < slots and state.question in mine
        }
        begun = {self._name(state) for state in active.values()} | self.closed.keys()
        return [question for question in mine if question.id not in begun], active

    def join(self) -> None:
        """Waits until no host works on this any more, and reads what they have done.

        Raises:
          interrupts.Stopped: a signal asked to stop.
        """
        if hosts.count() > 1:
            hosts.barrier(f"{self._first.name} written")
            interrupts.check("all that was done is saved")
            self.read()


def of_rows(
    path: pathlib.Path,
    inputs: dict[str, str],
    say: Callable[[str], None] = logging.warning,
) -> Journal:
    """Returns a journal of work whose rows are done in order: number → its `Row`."""
    return Journal(
        path,
        inputs,
        say=say,
        to_row=Row._asdict,
        from_row=lambda row: Row(**row),
        name=lambda row: row.at,
    )


def _journals(first: pathlib.Path) -> list[pathlib.Path]:
    """Returns the journals of all hosts, also of hosts that have left the run."""
    numbered = sorted(first.parent.glob(f"{glob.escape(first.stem)}.*.jsonl"))
    return [path for path in (first, *numbered) if path.exists()]
