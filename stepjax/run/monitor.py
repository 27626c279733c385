"""What a person sees of a run: progress, log.txt, metrics on disk, the final tables."""

import contextlib
import datetime
import functools
import json
import math
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorboardX
from rich import cells, live, progress_bar, table
from rich import console as rich_console

import stepjax
from stepjax.lm import files
from stepjax.records import read_objects
from stepjax.run.text_table import text_table

_LINE_SECONDS = 30  # between two lines of a stage
_QUIET_SECONDS = 3  # of silence before the first line about work that takes long
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


class Monitor:
    """Shows progress and writes ``log.txt``, ``metrics.jsonl`` and TensorBoard events.

    In a terminal, a stage is drawn as a bar. Elsewhere (a file, CI, nohup) it prints
    a line after 3 seconds, one every 30 seconds, and one at its end. The same lines go
    to ``log.txt`` in the run directory in both cases, so a history is always there; a
    run that continues appends to it. A stage that is run again from some point replaces
    its own later lines in ``metrics.jsonl``: each (stage, model, step) is there once.

    Attributes:
      path: ``metrics.jsonl``.
      log_path: ``log.txt``.
      quiet: whether nothing is written or printed.
      console: standard error.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        quiet: bool = False,
        *,
        console: rich_console.Console | None = None,
        clock: Clock | None = None,
    ):
        """Names the run's files.

        Args:
          workdir: the run directory.
          quiet: writes and prints nothing, for all hosts but the first.
          console: where to print; None for standard error.
          clock: None for the machine's.
        """
        self.path, self.quiet = workdir / "metrics.jsonl", quiet
        self.log_path = workdir / "log.txt"
        # Whether it is a terminal is asked of the file, not of the environment: CI
        # sets FORCE_COLOR, and bars in a log are of no use.
        self.console = console or rich_console.Console(
            file=sys.stderr, highlight=False, force_terminal=sys.stderr.isatty()
        )
        self._draws = self.console.is_terminal and not self.console.is_dumb_terminal
        self._clock = clock or Clock()
        self._days: dict[str, datetime.date] = {}  # of the last lines, by place
        self._lock = threading.Lock()  # lines come from two threads
        self._folder = workdir / "tensorboard"

    @functools.cached_property
    def _events(self) -> tensorboardX.SummaryWriter:
        """The event file; a run with nothing left to do makes none."""
        return tensorboardX.SummaryWriter(str(self._folder), write_to_disk=True)

    def close(self) -> None:
        """Writes the events that are still in memory to disk."""
        events = self.__dict__.pop("_events", None)
        if events:
            events.close()

    # Lines and bars.

    def say(self, text: str) -> None:
        """Prints a line, in a terminal above the bar, and appends it to log.txt."""
        if not self.quiet:
            self._keep(text)
            self._show(text)

    def _keep(self, text: str) -> None:
        """Appends a line to log.txt."""
        with self._lock, open(self.log_path, "a", encoding="utf-8") as file:
            file.write(self._dated(text, "log.txt"))

    def _show(self, text: str) -> None:
        """Prints a line, with the time where it may be read later."""
        if self._draws:
            self.console.print(text, markup=False)
            return
        with self._lock:
            line = self._dated(text, "printed")
            print(line, end="", file=self.console.file, flush=True)

    def _dated(self, text: str, place: str) -> str:
        """Returns a line with its time, after one with the date if the day is new."""
        now = self._clock.now()
        line = f"{now:%H:%M:%S} {text}\n"
        if self._days.get(place) == now.date():
            return line
        self._days[place] = now.date()
        return f"{now.date()}, stepjax {stepjax.__version__}\n{line}"

    @contextlib.contextmanager
    def during(self, text: str) -> Iterator[None]:
        """Explains a silence: prints what is done when it has taken 3 seconds.

        Prints it again every 30 seconds. Nothing goes to log.txt: these lines are for
        people who wait.

        Args:
          text: what is done, e.g. "loading M1".
        """
        if self.quiet:
            yield
            return
        began = self._clock.seconds()

        def tick() -> None:
            passed = self._clock.seconds() - began
            self._show(f"{text}, {_duration(passed)} so far")

        with self._ticks(tick):
            yield

    @contextlib.contextmanager
    def progress(
        self, name: str, total: int, unit: str, done: int = 0
    ) -> Iterator[Callable[[int, str], None]]:
        """Shows how far a stage is, how fast it is, and how long it still takes.

        The rate is the mean of this process's part of the stage, the time of
        compilation included.

        Args:
          name: model and stage, e.g. "M1 search".
          total: units of work.
          unit: what is counted, in the singular.
          done: units that an earlier process finished.

        Yields:
          ``advance(units, note)``; a note, e.g. the loss, stays until the next one.
        """
        stage = Progress(name, total, unit, done, self._clock)
        if self.quiet:
            yield stage.advance
            return

        def tick() -> None:
            self._keep(stage.line())
            if not self._draws:
                self._show(stage.line())

        try:
            with self._ticks(tick), self._bar(stage):
                try:
                    yield stage.advance
                    early = stage.done < stage.total
                    stage.end("done early, in" if early else "done in")
                except BaseException:
                    stage.end("stopped after")
                    raise
        finally:
            tick()

    def _bar(self, stage: "Progress") -> contextlib.AbstractContextManager:
        if not self._draws:
            return contextlib.nullcontext()
        return live.Live(
            get_renderable=lambda: stage.bar(self.console.width), console=self.console
        )

    @contextlib.contextmanager
    def _ticks(self, tick: Callable[[], None]) -> Iterator[None]:
        """Calls `tick` after 3 seconds and then every 30, in a thread.

        The thread has ended when the context is left, however that comes about.
        """
        over = threading.Event()

        def run() -> None:
            seconds = _QUIET_SECONDS
            while not self._clock.wait(over, seconds):
                tick()
                seconds = _LINE_SECONDS

        thread = threading.Thread(target=run, name="stepjax-monitor", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    # Metrics.

    def restart(self, stage: str, model: str, step: int = 0) -> None:
        """Drops the stage's lines after `step`, before they are written again."""
        if self.quiet or not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8").split("\n")
        kept = []
        for line in filter(None, lines):
            try:
                row = json.loads(line)
            except ValueError:
                continue  # the torn last line of a killed run
            later = row["step"] > step or step == 0
            if not (row["stage"] == stage and row["model"] == model and later):
                kept.append(line)
        with files.replacing(self.path) as file:
            file.writelines(f"{line}\n" for line in kept)

    def log(self, stage: str, model: str, step: int, metrics: dict[str, Any]) -> None:
        """Appends one line of metrics and the same numbers as TensorBoard scalars."""
        if self.quiet:
            return
        row = {"stage": stage, "model": model, "step": step, **metrics}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in metrics.items():
            if isinstance(value, int | float) and math.isfinite(value):
                self._events.add_scalar(f"{stage}/{model}/{name}", value, step)
        self._events.flush()

    def rows(self) -> list[dict[str, Any]]:
        """Returns all metrics lines."""
        return [row for _, row in read_objects(self.path)] if self.path.exists() else []

    # The end.

    def table(self, title: str, rows: Sequence[dict[str, str]]) -> str:
        """Prints rows of text as a table and returns it as plain text."""
        text = text_table(rows, title)
        if not self.quiet:
            print(text)
        return text


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
        elapsed, rate = _duration(self.elapsed()), self.rate()
        if rate:
            parts.append(_rate(rate))
        if self.outcome:
            parts.append(f"{self.outcome} {elapsed}")
        elif rate:
            parts.append(f"{_duration(self.left())} left")
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


def _duration(seconds: float) -> str:
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
