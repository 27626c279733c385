"""What safety costs: its seconds inside one run, as a share of the run.

    python tests/reliability/measure_cost.py OUT.json run --config=... --workdir=DIR

runs that command with a clock around each function that is there for safety only. The
time of a function inside another one counts for the inner one. Two runs, with and
without, would differ by more than what is measured.
"""

import functools
import json
import os
import pathlib
import sys
import threading
import time

_spent: dict[str, list[float]] = {}  # what for → calls, seconds, seconds of a CPU
_inside = threading.local()


def clocked(owner: object, name: str, what: str) -> None:
    """Puts a clock around a function of a module or a class."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def timed(*args, **kwargs):
        outer = getattr(_inside, "inner", [0.0, 0.0])
        _inside.inner = [0.0, 0.0]  # of clocked functions inside this one
        began = time.perf_counter(), time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            ended = time.perf_counter(), time.process_time()
            whole = [e - b for e, b in zip(ended, began, strict=True)]
            own = [w - i for w, i in zip(whole, _inside.inner, strict=True)]
            old = _spent.get(what, [0, 0.0, 0.0])
            _spent[what] = [old[0] + 1, old[1] + own[0], old[2] + own[1]]
            _inside.inner = [o + w for o, w in zip(outer, whole, strict=True)]

    setattr(owner, name, timed)


def main() -> int:
    """Runs the command, and writes the seconds of each kind to OUT.json."""
    from stepjax import interrupts
    from stepjax import main as command_line
    from stepjax.lm import checkpoint, files, weights
    from stepjax.run import journal, lock, manifest, rundir

    clocked(os, "fsync", "fsync of files and folders")
    clocked(files, "_digest", "digests of records")
    clocked(checkpoint, "array_digests", "digests of arrays")
    for module in (manifest, rundir):  # one function, found in two places
        clocked(module, "file_digest", "digests of files")
    clocked(weights, "check_finite", "are parameters finite?")
    clocked(checkpoint.TrainSaver, "save", "saved states of trainings")
    clocked(journal.Journal, "add", "journals")
    clocked(lock, "take", "the lock")
    clocked(files, "remove_left", "removing what killed processes left")
    clocked(interrupts, "asked", "looking for a signal")
    clocked(interrupts, "check", "looking for a signal")
    out = pathlib.Path(sys.argv[1])
    sys.argv = ["stepjax", *sys.argv[2:]]
    began = time.perf_counter(), time.process_time()
    status = command_line.main(sys.argv)
    ended = time.perf_counter(), time.process_time()
    seconds, cpu = (e - b for e, b in zip(ended, began, strict=True))
    safe = sum(spent[1] for spent in _spent.values())
    busy = sum(spent[2] for spent in _spent.values())
    figures = {
        "seconds": seconds,
        "CPU seconds": cpu,
        "share": safe / seconds,
        "share of CPU seconds": busy / cpu,
        "spent": {k: _spent[k] for k in sorted(_spent)},
    }
    out.write_text(json.dumps(figures, indent=1))
    print(json.dumps(figures, indent=1))
    return status


if __name__ == "__main__":
    sys.exit(main())
