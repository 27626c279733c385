"""Traces of where the time goes, for xprof and TensorBoard (``stepjax run --profile``).

A trace grows by megabytes per second, so that only a few units of each training and of
each search are in it. The first ones are left out: they compile.
"""

import contextlib
import pathlib
import re
from collections.abc import Callable, Iterator

import jax

_FIRST, _COUNT = 3, 3  # the units that are traced


class Profiler:
    """Traces a few units of each stage of a run, if it is asked to."""

    def __init__(self, folder: pathlib.Path | None, say: Callable[[str], None]):
        """Traces nothing yet.

        Args:
          folder: where the traces go, one folder per stage; None traces nothing.
          say: is told where a trace is, or why there is none.
        """
        self._folder, self._say = folder, say

    @contextlib.contextmanager
    def of(self, name: str, unit: str) -> Iterator[Callable[[], None]]:
        """Traces some units of a stage.

        Args:
          name: of the stage, e.g. "M1 search".
          unit: what is counted, in the singular.

        Yields:
          A function to call before each unit.
        """
        if self._folder is None:
            yield lambda: None
            return
        folder = self._folder / re.sub(r"\W+", "-", name)
        begun = running = 0

        def before_unit() -> None:
            nonlocal begun, running
            begun += 1
            if begun == _FIRST:
                running = self._harmless(name, jax.profiler.start_trace, str(folder))
            elif begun == _FIRST + _COUNT:
                stop(begun - 1)

        def stop(last: int) -> None:
            nonlocal running
            if running and self._harmless(name, jax.profiler.stop_trace):
                self._say(
                    f"--profile: {unit}s {_FIRST} to {last} of {name} are in {folder} "
                    f"(pip install xprof; xprof {self._folder})"
                )
            running = False

        try:
            yield before_unit
        finally:
            if running:
                stop(begun)
            elif 0 < begun < _FIRST:
                self._say(
                    f"--profile: {name} had {begun} {unit}{'s' * (begun > 1)}, and a "
                    f"trace begins with number {_FIRST}: there is none of it"
                )

    def _harmless(self, name: str, function: Callable, *arguments: str) -> bool:
        """Calls a function of JAX's profiler; whether that went well."""
        try:
            function(*arguments)
        except Exception as error:  # a trace is not worth a run
            self._say(f"--profile: no trace of {name} ({error}); the run goes on")
            return False
        return True
