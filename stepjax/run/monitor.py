"""What a person sees of a run: progress, log.txt, metrics on disk, the final tables."""

import atexit
import contextlib
import datetime
import functools
import io
import json
import math
import pathlib
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorboardX
from rich import console as rich_console
from rich import live
from tensorboardX import summary

import stepjax
from stepjax import interrupts
from stepjax.lm import files, ordinary
from stepjax.run import wandb_curves
from stepjax.run.progress import Clock, Progress, duration
from stepjax.run.text_table import text_table

_LINE_SECONDS = 30  # between two lines of a stage
_QUIET_SECONDS = 3  # of silence before the first line about work that takes long
_TRAININGS = ("sft", "dpo")  # stages with a curve for each model
# Numbers that tell nothing over the models: intervals, and counts of what is measured.
_NO_CURVE = re.compile(r"low|high|left_out|(.*_)?count")
_MAIN_CURVE = "eval/test_greedy/accuracy"  # beside the settings in TensorBoard


class Monitor:
    """Shows progress and writes ``log.txt``, ``metrics.jsonl`` and TensorBoard events.

    In a terminal, a stage is drawn as a bar. Elsewhere (a file, CI, nohup) it prints
    a line after 3 seconds, one every 30 seconds, and one at its end. The same lines go
    to ``log.txt`` in the run directory in both cases, so a history is always there; a
    run that continues appends to it. A stage that is run again from some point replaces
    its own later lines in ``metrics.jsonl``: each (stage, model, step) is there once.
    What is wrong with one of these files is said once and stops nothing.

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
        wandb: str = "",
        console: rich_console.Console | None = None,
        clock: Clock | None = None,
    ):
        """Names the run's files.

        Args:
          workdir: the run directory.
          quiet: writes and prints nothing, for all hosts but the first.
          wandb: the project of Weights & Biases that gets the numbers too, or "".
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
        self._announced: list[str] = []  # lines that log.txt gets before its next one
        self._lock = threading.Lock()  # lines come from two threads
        self._folder, self._project = workdir / "tensorboard", wandb
        self._failed: set[Any] = set()  # files and the like that cannot be written

    @functools.cached_property
    def _events(self) -> tensorboardX.SummaryWriter:
        """The event file; a run with nothing left to do makes none.

        It begins with the settings of the run, as TensorBoard's hyperparameters.
        """
        # A queue without a limit: its reader ends when the disk is full.
        threading.excepthook = _say_nothing_of_events
        events = tensorboardX.SummaryWriter(str(self._folder), max_queue=0)
        atexit.register(_close_quietly, events)
        settings = self._settings()
        if settings:
            for part in summary.hparams(settings, {_MAIN_CURVE: 0.0}):
                events.file_writer.add_summary(part)
        return events

    @functools.cached_property
    def _curves(self) -> wandb_curves.Curves:
        """The same numbers in Weights & Biases; begun with the first of them."""
        folder = self.path.parent
        return wandb_curves.Curves(self._project, folder, self._settings())

    def _settings(self) -> dict[str, str | int | float | bool]:
        config = self.path.with_name("config.json")
        return _flat(files.read_json(config)) if config.exists() else {}

    def close(self) -> None:
        """Writes the events that are still in memory to disk, and sends the rest."""
        events = self.__dict__.pop("_events", None)
        if events:
            with self._harmless(self._folder):
                events.close()
        curves = self.__dict__.pop("_curves", None)
        if curves:
            with self._harmless(f"wandb={self._project!r}"):
                curves.close()

    @contextlib.contextmanager
    def _harmless(self, path: pathlib.Path | str) -> Iterator[None]:
        """Goes on when a log cannot be written, and says so the first time."""
        try:
            yield
        except Exception as error:  # a log is not worth a run
            if path not in self._failed:
                self._failed.add(path)
                reason = getattr(error, "strerror", None) or error
                self.show(f"{path} cannot be written ({reason}); the run goes on")

    # Lines and bars.

    def say(self, text: str) -> None:
        """Prints a line, in a terminal above the bar, and appends it to log.txt."""
        self.keep(text)
        self.show(text)

    def announce(self, text: str) -> None:
        """Prints a line now, and appends it to log.txt before the next line there.

        So a command that has nothing to do leaves log.txt as it is.
        """
        if not self.quiet:
            with self._lock:
                self._announced.append(self._dated(text, "log.txt"))
            self.show(text)

    def keep(self, text: str) -> None:
        """Appends a line to log.txt, after what was announced before it."""
        if self.quiet:
            return
        with self._harmless(self.log_path), self._lock:
            ordinary.check(self.log_path)  # a pipe waits for somebody who reads it
            with open(self.log_path, "a", encoding="utf-8") as file:
                file.writelines([*self._announced, self._dated(text, "log.txt")])
            self._announced.clear()

    def show(self, text: str) -> None:
        """Prints a line, with the time where it may be read later."""
        if self.quiet:
            return
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
    def during(self, text: str, total: int = 0) -> Iterator[Callable[[int], None]]:
        """Explains a silence: prints what is done when it has taken 3 seconds.

        Prints it again every 30 seconds. Nothing goes to log.txt: these lines are for
        people who wait.

        Args:
          text: what is done, e.g. "loading M1".
          total: units of work, if they are counted.

        Yields:
          ``advance(units)``, for units that are counted.
        """
        stage = Progress(text, total, "row", 0, self._clock)
        if self.quiet:
            yield stage.advance
            return

        def tick() -> None:
            said = f"{text}, {duration(stage.elapsed())} so far"
            if stage.done:
                said += f": {stage.done:,} of {total:,}, {duration(stage.left())} left"
            self.show(said)

        with self._ticks(tick):
            yield stage.advance

    @contextlib.contextmanager
    def progress(
        self, name: str, total: int, unit: str, done: int = 0, *, stops: bool = True
    ) -> Iterator[Callable[[int, str], None]]:
        """Shows how far a stage is, how fast it is, and how long it still takes.

        The rate is the mean of this process's part of the stage, the time of
        compilation included.

        Args:
          name: model and stage, e.g. "M1 search".
          total: units of work.
          unit: what is counted, in the singular.
          done: units that an earlier process finished.
          stops: whether the stage does not begin after a signal.

        Yields:
          ``advance(units, note)``; a note, e.g. the loss, stays until the next one.

        Raises:
          interrupts.Stopped: a signal asked to stop.
        """
        if stops:
            interrupts.check(f"all that was done before {name} is saved")
        stage = Progress(name, total, unit, done, self._clock)
        if self.quiet:
            yield stage.advance
            return

        def tick() -> None:
            self.keep(stage.line())
            if not self._draws:
                self.show(stage.line())

        try:
            with self._ticks(tick), self._bar(stage):
                try:
                    yield stage.advance
                    early = stage.done < stage.total
                    how = "stopped after" if interrupts.asked() else "done early, in"
                    stage.end(how if early else "done in")
                except BaseException:
                    stage.end("stopped after")
                    raise
        finally:
            tick()

    def _bar(self, stage: Progress) -> contextlib.AbstractContextManager:
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
        with self._harmless(self.path):
            ordinary.check(self.path)
            rows, broken = _metrics(self.path)
            if broken:
                shown = ", ".join(map(str, broken[:10])) + ", ..." * (len(broken) > 10)
                self.say(f"{self.path}: broken lines are left out: {shown}")
            kept = [
                line
                for line, row in rows
                if (row["stage"], row["model"]) != (stage, model)
                or 0 < step >= row["step"]
            ]
            with files.replacing(self.path) as file:
                file.writelines(f"{line}\n" for line in kept)

    def log(
        self,
        stage: str,
        model: str,
        step: int,
        metrics: dict[str, Any],
        *,
        speeds: Mapping[str, float] | None = None,
    ) -> None:
        """Appends one line of metrics, and adds the numbers to TensorBoard's curves.

        The curves of a training are "STAGE/MODEL/NAME" over its updates. Every other
        stage measures a model once, and has one curve "STAGE/NAME" over the numbers of
        the models; the ends of intervals and counts of items make none.

        Args:
          stage: e.g. "sft/mixed" or "eval/test_greedy".
          model: name of the model.
          step: updates done, or the number of the model.
          metrics: name → number.
          speeds: curves only. They differ each time that the same run is made, so that
            they are no part of ``metrics.jsonl``.
        """
        if self.quiet:
            return
        row = {"stage": stage, "model": model, "step": step, **metrics}
        with self._harmless(self.path):
            ordinary.check(self.path)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        training = stage.split("/")[0] in _TRAININGS
        place = f"{stage}/{model}" if training else stage
        numbers = {
            name: value
            for name, value in (metrics | dict(speeds or {})).items()
            if isinstance(value, int | float) and math.isfinite(value)
            if training or not _NO_CURVE.fullmatch(name)
        }
        if self._folder not in self._failed:
            with self._harmless(self._folder):
                for name, value in numbers.items():
                    self._events.add_scalar(f"{place}/{name}", value, step)
                self._events.flush()
        elsewhere = f"wandb={self._project!r}"
        if self._project and elsewhere not in self._failed:
            with self._harmless(elsewhere):
                self._curves.log(place, step, numbers)

    def log_text(self, stage: str, step: int, text: str) -> None:
        """Adds a text to TensorBoard, e.g. two samples of an evaluation."""
        if not self.quiet and self._folder not in self._failed:
            lines = text.splitlines()  # as code, so that nothing in it is markup
            code = "".join(f"    {line}\n" for line in lines)
            with self._harmless(self._folder):
                self._events.add_text(stage, code, step)
                self._events.flush()

    def rows(self) -> list[dict[str, Any]]:
        """Returns all metrics lines, without broken ones."""
        return [row for _, row in _metrics(self.path)[0]] if self.path.is_file() else []

    # The end.

    def table(
        self,
        title: str,
        rows: Sequence[dict[str, str]],
        legend: Mapping[str, str] | None = None,
    ) -> str:
        """Prints rows of text as a table and returns it as plain text.

        Args:
          title: goes above the table.
          rows: column → text.
          legend: column → what it says, printed below for the columns that are there.
        """
        text = text_table(rows, title)
        known = {name: (legend or {}).get(name) for name in rows[0]}
        text += "".join(f"{name}: {said}\n" for name, said in known.items() if said)
        if not self.quiet:
            print(text)
        return text


def _close_quietly(events: tensorboardX.SummaryWriter) -> None:
    """Closes the event file when the process ends, also when its disk has failed.

    tensorboardX would do the same after this, and print a traceback.
    """
    try:
        events.close()
    except OSError:
        events.file_writer.event_writer = io.BytesIO()  # it can be closed


def _say_nothing_of_events(args: threading.ExceptHookArgs) -> None:
    """Handles an exception that ended a thread, except one that writes events.

    The main thread writes to the same file, and says what is wrong with it.
    """
    if not type(args.thread).__module__.startswith("tensorboardX"):
        threading.__excepthook__(args)


def _metrics(path: pathlib.Path) -> tuple[list[tuple[str, dict]], list[int]]:
    """Returns the lines of metrics as text and row, and the numbers of broken lines."""
    rows, broken = [], []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line:
            continue
        try:
            text = line.decode("utf-8")
            row = json.loads(text)
            good = {"stage", "model"} <= row.keys() and type(row["step"]) is int
        except (ValueError, LookupError, AttributeError, RecursionError):
            good = False
        if good:
            rows.append((text, row))
        else:
            broken.append(number)
    return rows, broken


def _flat(values: Any, at: str = "") -> dict[str, str | int | float | bool]:
    """Returns settings as one level: "search.width" → 4; lists become text."""
    if not isinstance(values, dict):
        return {at: values if isinstance(values, int | float) else str(values)}
    parts = (_flat(value, f"{at}.{name}".strip(".")) for name, value in values.items())
    return {name: value for part in parts for name, value in part.items()}
