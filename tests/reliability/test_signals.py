"""SIGTERM and Ctrl-C in every phase: no unit of work is lost, and none is done twice.

A short version of this is in tests/test_interrupts.py.
"""

import collections
import json
import os
import pathlib
import random
import signal
import statistics

import pytest
from forks import Blow, left, nursery, results

CONFIG = pathlib.Path(__file__).parent / "many_units_config.py"
EACH = int(os.environ.get("RELIABILITY_SIGNALS", "10"))  # of each signal, in each phase
# Commands in the order of a run, each with its phases: name → a function that is called
# once per unit of it. A signal comes in its first or second call.
COMMANDS = (
    (
        ("eval", "--model=M0", "--mode=greedy"),
        {"greedy evaluation": "stepjax.evaluation.grading:right_so_far"},
    ),
    (
        ("eval", "--model=M0", "--mode=judge"),
        {"judge evaluation": "stepjax.evaluation.grading:right_so_far"},
    ),
    (
        ("sft",),
        {
            "save": "stepjax.lm.checkpoint:save_tree",
            "SFT": "stepjax.lm.train:put_batch",
        },
    ),
    (
        ("eval", "--model=M1", "--mode=search"),
        {"search evaluation": "stepjax.search:slots_to_refill"},
    ),
    (("search", "--model=M1"), {"search": "stepjax.search:slots_to_refill"}),
    (
        ("dpo", "--model=M1"),
        {
            "reference": "stepjax.run.reference_pass:Row",
            "step-DPO": "stepjax.lm.train:_not_finite",
        },
    ),
)


def carry_out(nurse, folder, logs, phases, rng):
    """Carries out the commands with signals.

    Args:
      nurse: starts processes.
      folder: of the run.
      logs: folder of what they print.
      phases: whether signals are sent, or the commands are left in peace.
      rng: decides when the signals come.

    Returns:
      (calls of each function that stands for a unit, phase → seconds from a signal to
      the end of the process, phase → signals that came when nothing was left to do).
    """
    calls, seconds = collections.Counter(), collections.defaultdict(list)
    finished = collections.Counter()
    logs.mkdir(parents=True)
    for command, functions in COMMANDS:
        blows = [
            (phase, number, function)
            for phase, function in functions.items()
            for number in (signal.SIGTERM, signal.SIGINT) * EACH
            if phases
        ]
        arguments = [*command, f"--config={CONFIG}", f"--workdir={folder}"]
        for order, (phase, number, function) in enumerate([*blows, ("", 0, "")]):
            after = rng.choice([0, 0.01, 0.05, 0.2])
            blow = Blow(function, rng.randint(1, 2), number, after) if phase else None
            log = logs / f"{'_'.join(command)}_{order}.log"
            ended = nurse.wait(nurse.start(arguments, log, blow=blow), log)
            calls.update(ended.calls)
            said = phase, number, ended.text[-2000:]
            assert "Traceback" not in ended.text and "Exception" not in ended.text, said
            if ended.status == 0:
                finished[phase] += bool(phase)
                break
            assert phase and ended.status == 128 + number, said
            assert ended.last().startswith("stepjax: stopped: "), said
            assert ended.last().endswith("; the same command continues."), said
            seconds[phase].append(ended.seconds)
        assert ended.status == 0, said
    return dict(calls), dict(seconds), dict(finished)


@pytest.mark.slow
def test_signals_in_every_phase_lose_nothing_and_repeat_nothing(tmp_path):
    cache = os.environ.get("RELIABILITY_CACHE") or tmp_path / "compiled"
    rng = random.Random(0)
    with nursery(pathlib.Path(cache)) as nurse:
        whole = tmp_path / "whole"
        units, none, _ = carry_out(nurse, whole, tmp_path / "logs_whole", False, rng)
        assert none == {} and min(units.values()) > 0
        folder = tmp_path / "run"
        done, seconds, _ = carry_out(nurse, folder, tmp_path / "logs", True, rng)
    figures = {
        phase: [len(values), statistics.median(values), max(values)]
        for phase, values in seconds.items()
    }
    if path := os.environ.get("RELIABILITY_FIGURES"):
        path = pathlib.Path(path)
        kept = json.loads(path.read_text()) if path.exists() else {}
        kept["signals: number, median and longest seconds to the end"] = figures
        path.write_text(json.dumps(kept | {"units": [units, done]}, indent=1))
    assert done == units
    assert results(folder, but_logps=True) == results(whole, but_logps=True)
    assert left(folder) == []
    assert all(len(values) >= 2 * EACH for values in seconds.values()), figures
