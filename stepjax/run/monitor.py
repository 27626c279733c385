"""What a person sees of a run: progress bars, metrics on disk, the final table."""

import contextlib
import functools
import io
import json
import math
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorboardX
from rich import console as rich_console
from rich import progress, table

from stepjax.records import read_objects


class Monitor:
    """Writes ``metrics.jsonl`` and TensorBoard events, and draws progress bars.

    A stage that is run again from some point replaces its own later lines, so each
    (stage, model, step) stands once.
    """

    def __init__(self, workdir: pathlib.Path, quiet: bool = False):
        """Names the run's files.

        Args:
          workdir: the run directory.
          quiet: writes and prints nothing, for all hosts but the first.
        """
        self.path, self.quiet = workdir / "metrics.jsonl", quiet
        self.console = rich_console.Console(
            file=sys.stderr, highlight=False, quiet=quiet
        )
        self._folder = workdir / "tensorboard"

    @functools.cached_property
    def _events(self) -> tensorboardX.SummaryWriter:
        """The event file; a run with nothing left to do makes none."""
        return tensorboardX.SummaryWriter(str(self._folder), write_to_disk=True)

    def close(self) -> None:
        """Brings the events that still wait in memory to disk."""
        events = self.__dict__.pop("_events", None)
        if events:
            events.close()

    def say(self, text: str) -> None:
        """Prints a line above the progress bars."""
        self.console.print(text, markup=False)

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
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        temporary.replace(self.path)

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

    @contextlib.contextmanager
    def progress(
        self, name: str, total: int, unit: str, done: int = 0
    ) -> Iterator[Callable[[int, str], None]]:
        """Shows a bar with rate and time left.

        Args:
          name: what is running.
          total: units of work.
          unit: what is counted, for the rate.
          done: units that an earlier run finished.

        Yields:
          ``advance(units, note)``.
        """
        bar = progress.Progress(
            progress.TextColumn("{task.description:<24}"),
            progress.BarColumn(bar_width=24),
            progress.MofNCompleteColumn(),
            _Rate(unit),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[note]}"),
            console=self.console,
        )
        with bar:
            task = bar.add_task(name, total=total, completed=done, note="")

            def advance(units: int, note: str = "") -> None:
                bar.update(task, advance=units, **({"note": note} if note else {}))

            yield advance

    def table(self, title: str, rows: Sequence[dict[str, str]]) -> str:
        """Prints rows of text as a table and returns it as plain text."""
        text = text_table(rows, title)
        if not self.quiet:
            print(text)
        return text


def text_table(rows: Sequence[dict[str, str]], title: str | None = None) -> str:
    """Returns rows of text, all with the same columns, as a plain-text table."""
    drawn = table.Table(title=title, title_justify="left")
    for number, name in enumerate(rows[0]):
        drawn.add_column(name, justify="right" if number else "left")
    for row in rows:
        drawn.add_row(*row.values())
    plain = rich_console.Console(width=200, record=True, file=io.StringIO())
    plain.print(drawn)
    return plain.export_text()


class _Rate(progress.ProgressColumn):
    """Units a second of a task."""

    def __init__(self, unit: str):
        super().__init__()
        self.unit = unit

    def render(self, task):
        """Returns the rate as text."""
        speed = task.finished_speed or task.speed
        return f"{speed:.1f} {self.unit}/s" if speed else f"- {self.unit}/s"
