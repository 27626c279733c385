"""How far a stage is, as a line of text and as a bar; how busy a search was."""

import datetime
import threading
import time
from collections.abc import Mapping, Sequence

from rich import cells, progress_bar, table

_BAR = 4, 24  # characters of a bar, at least and at most
_FIRST = "compiling or first batch"  # what happens while nothing is done yet
_NAME = 18  # characters that a stage's name is padded to, where there is room


class Clock:
    """Tells the time and waits; tests use one that they move themselves."""

    def now(self) -> datetime.datetime:
        """Returns date and time of the day, for people."""
        return datetime.datetime.now()

    def seconds(self) -> float:
        """Returns seconds since some moment in the past; they never go back."""
        return time.monotonic()

    def wait(self, over: threading.Event, seconds: float) -> bool:
        """Waits for the event, at most these seconds; returns whether it came."""
        return over.wait(seconds)


class Progress:
    """How far a stage is, as a line of text and as a bar.

    Attributes:
      done: units that are done, those of an earlier process included.
      note: what `advance` was last told, e.g. the loss.
      outcome: "" while the stage runs.
    """

    def __init__(self, name: str, total: int, unit: str, done: int, clock: Clock):
        """Begins the stage; for the arguments see `Monitor.progress`."""
        self.name, self.total, self.done = name, total, done
        self.units = f"{unit}es" if unit.endswith("ch") else f"{unit}s"
        self.note, self.outcome = "", ""
        self._clock, self._earlier = clock, done
        self._began, self._ended = clock.seconds(), 0.0

    def advance(self, units: int, note: str = "") -> None:
        """Counts units as done; keeps the old note when there is no new one."""
        self.done += units
        self.note = note or self.note

    def end(self, outcome: str) -> None:
        """Stops the time; `outcome` is the words before it, e.g. "done in"."""
        self._ended, self.outcome = self._clock.seconds(), outcome

    def elapsed(self) -> float:
        """Returns seconds since the stage began in this process."""
        end = self._ended if self.outcome else self._clock.seconds()
        return end - self._began

    def rate(self) -> float:
        """Returns units per second; 0 where nothing is done yet."""
        units, elapsed = self.done - self._earlier, self.elapsed()
        return units / elapsed if units > 0 and elapsed > 0 else 0.0

    def left(self) -> float:
        """Returns the seconds left at this rate, which must be above 0."""
        return max(0, self.total - self.done) / self.rate()

    def line(self) -> str:
        """Returns the state in words."""
        parts = [self.name, f"{self.done}/{self.total} {self.units}"]
        elapsed, rate = duration(self.elapsed()), self.rate()
        if rate:
            parts.append(_rate(rate))
        if self.outcome:
            parts.append(f"{self.outcome} {elapsed}")
        elif rate:
            parts.append(f"{duration(self.left())} left")
        else:
            parts.append(f"{elapsed} so far, {_FIRST}")
        return "  ".join([*parts, self.note] if self.note else parts)

    def bar(self, width: int) -> table.Table:
        """Returns the state as one line of at most `width` characters.

        It shows the time left, or the time so far while there is no rate yet or when
        the stage has ended. What a narrow terminal has no room for is left out: the bar
        first, then the time so far, the unit, the rate.
        """
        total = str(self.total)
        parts = {
            "count": f"{self.done:>{len(total)}}/{total}",
            "unit": self.units,
            "rate": _rate(self.rate()) if self.rate() else "",
            "elapsed": _clock_time(self.elapsed()),
            "left": "",
            "note": self.note,
        }
        if not self.outcome:
            left = self.rate() and f"{_clock_time(self.left())} left"
            parts["left"] = left or _FIRST
            parts["elapsed"] = "" if left else parts["elapsed"]
        for name in ("", "elapsed", "unit", "rate", "left", "note"):
            parts.pop(name, None)
            rest = " ".join(filter(None, parts.values()))
            room = width - cells.cell_len(self.name) - len(rest) - 2
            if room >= -1:
                break
        least, most = _BAR
        columns = [self.name, rest]
        if room > least:
            gap = max(0, min(_NAME - cells.cell_len(self.name), room - 2 * least))
            bar = progress_bar.ProgressBar(
                total=max(self.total, 1),
                completed=self.done if self.total else 1,
                width=min(room - gap, most),
            )
            columns = [self.name + " " * gap, bar, rest]
        grid = table.Table.grid(padding=(0, 1))
        for _ in columns:
            grid.add_column(no_wrap=True, overflow="crop")
        grid.add_row(*columns)
        return grid


def _rate(rate: float) -> str:
    """Returns a rate, given per second, in words; per minute or hour when below 1."""
    if rate >= 1:
        value, unit = rate, "s"
    elif 60 * rate >= 1:
        value, unit = 60 * rate, "min"
    else:
        value, unit = 3600 * rate, "h"
    return f"{value:.1f}/{unit}" if value < 100 else f"{value:.0f}/{unit}"


def duration(seconds: float) -> str:
    """Returns a duration in words: "8 s", "4 min 05 s", "2 h 05 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _clock_time(seconds: float) -> str:
    """Returns a duration as a clock shows it: "2:05:00"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def usage_line(
    in_flight: Sequence[int], slots: int, useful: Mapping[str, float]
) -> str:
    """Returns how busy a search kept the devices, in words.

    Args:
      in_flight: for each round of the search, the problems that were in flight.
      slots: problems that can be in flight.
      useful: "candidates", "judgments" → share of the tokens decoded for them that
        became text. The rest was computed while shorter texts waited for the longest
        of their round, or for rows that held no text.
    """
    busy = sum(in_flight) / len(in_flight) / slots
    text = f"search: {busy:.0%} of slots busy"
    parts = [f"{name} {share:.0%}" for name, share in useful.items()]
    return f"{text}; useful decoding: {', '.join(parts)}" if parts else text
