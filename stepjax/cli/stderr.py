"""Standard error that may lose its reader while a run works."""

import io

from stepjax import interrupts


class Stderr(io.TextIOWrapper):
    """Progress that cannot be printed ends no run in the middle of its work.

    The other end of a pipe is gone after Ctrl-C in ``stepjax run 2>&1 | tee log``, and
    a terminal after its window was closed. Without a reader of the pipe the run saves
    its work and stops, as after a signal. Other errors, such as a full disk behind
    ``2> log``, are passed over: log.txt has the same lines.
    """

    def write(self, text: str) -> int:
        """Writes a text; returns its length."""
        try:
            return super().write(text)
        except OSError as error:
            _pass_over(error)
            return len(text)

    def flush(self) -> None:
        """Writes what is not written yet."""
        try:
            super().flush()
        except OSError as error:
            _pass_over(error)


def _pass_over(error: OSError) -> None:
    if isinstance(error, BrokenPipeError) and not interrupts.nobody_reads():
        raise error
