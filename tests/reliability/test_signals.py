"""SIGTERM and Ctrl-C in every phase: no unit of work is lost, and none is done twice.

A short version of this is in tests/test_interrupts.py. With STEPJAX_FIGURES=FOLDER the
runs, the compiled programs and what is done are kept there, so that a test that was
stopped goes on.
"""

import collections
import json
import os
import pathlib
import random
import signal
import statistics

import pytest
from commands import left
from forks import Blow, nursery, results

CONFIG = pathlib.Path(__file__).parent / "many_units_config.py"
EACH = 10  # of each signal, in each phase
# Commands in the order of a run, each with its phases: name → a function that is called
# once per unit of it. A signal comes in its first or second call, or soon after it.
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
INITIAL_DATA = (
    (
        ("init-data", "prm"),
        {
            "preparation": "stepjax.run.prepare:prepare",
            "policy": "stepjax.lm.train:put_batch",
            "rollouts": "stepjax.initial_data.rollouts:StepValues",
            "PRM": "stepjax.lm.train:put_batch",
        },
    ),
    (("init-data", "mcts"), {"tree search": "stepjax.initial_data.mcts:back_up"}),
)
ONCE = ("preparation",)  # phases whose function is called once in a process


def carry_out(nurse, place, name, commands, config, *, signals):
    """Carries out commands, with signals or in peace.

    Args:
      nurse: starts processes.
      place: folder of the run, of its logs and of what is done.
      name: of the run.
      commands: such as `COMMANDS`.
      config: after ``--config=``.
      signals: whether signals are sent.

    Returns:
      Two tables: the function that is called once per unit → its number of calls; and
      phase → seconds from each signal to the end of the process.
    """
    rng, kept = random.Random(0), place / f"{name}.jsonl"
    rows = list(map(json.loads, kept.read_text().splitlines())) if kept.exists() else []
    done = {(row["command"], row["order"]): row for row in rows}
    for command, functions in commands:
        blows = [
            (phase, number, function)
            for phase, function in functions.items()
            for number in (signal.SIGTERM, signal.SIGINT) * EACH
            if signals
        ]
        arguments = [*command, f"--config={config}", f"--workdir={place / name}"]
        for order, (phase, number, function) in enumerate([*blows, ("", 0, "")]):
            after = rng.choice([0, 0.003, 0.01, 0.03])
            call = 1 if phase in ONCE else rng.randint(1, 2)
            key = " ".join(command), order
            if key not in done:
                blow = Blow(function, call, number, after) if phase else None
                log = place / f"{name}_{'_'.join(command)}_{order}.log"
                log.unlink(missing_ok=True)
                ended = nurse.wait(nurse.start(arguments, log, blow=blow), log)
                done[key] = {
                    "command": key[0],
                    "order": order,
                    "phase": phase,
                    "status": ended.status,
                    "seconds": ended.seconds,
                    "calls": ended.calls,
                }
                check(ended, phase, number)
                with open(kept, "a") as file:
                    file.write(json.dumps(done[key]) + "\n")
            if done[key]["status"] == 0:
                break
    calls, seconds = collections.Counter(), collections.defaultdict(list)
    for row in done.values():
        calls.update(row["calls"])
        if row["status"]:
            seconds[row["phase"]].append(row["seconds"])
    return dict(calls), dict(seconds)


def check(ended, phase, number):
    """Checks that a process stopped as the signal asks, or had nothing left to do."""
    said = phase, number, ended.text[-2000:]
    assert "Traceback" not in ended.text and "Exception" not in ended.text, said
    if ended.status:
        assert phase and ended.status == 128 + number, said
        assert ended.last().startswith("stepjax: stopped: "), said
        assert ended.last().endswith("; the same command continues."), said


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["", "initial_data"], ids=["run", "initial_data"])
def test_signals_in_every_phase_lose_nothing_and_repeat_nothing(kind, tmp_path):
    place = pathlib.Path(os.environ.get("STEPJAX_FIGURES", tmp_path)) / "signals" / kind
    place.mkdir(parents=True, exist_ok=True)
    commands = INITIAL_DATA if kind else COMMANDS
    how = place, "whole", commands, f"{CONFIG}:{kind}" if kind else CONFIG
    with nursery(place / "compiled") as nurse:
        units, none = carry_out(nurse, *how, signals=False)
        assert none == {} and any(units.values())
        how = place, "run", *how[2:]
        done, seconds = carry_out(nurse, *how, signals=True)
    figures = {
        phase: {
            "signals": len(values),
            "median": statistics.median(values),
            "worst": max(values),
        }
        for phase, values in seconds.items()
    }
    figures["units, of an unbroken run"], figures["units"] = units, done
    (place / "figures.json").write_text(json.dumps(figures, indent=1))
    assert done == units
    one, other = (results(place / name, but_logps=True) for name in ("run", "whole"))
    assert one == other
    assert left(place / "run") == []
    expected = {phase for _, functions in commands for phase in functions}
    assert seconds.keys() == expected
    assert all(len(values) == 2 * EACH for values in seconds.values()), figures
