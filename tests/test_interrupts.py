"""Signals stop a run after a unit of work, and nothing is done twice."""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import xla_flags
from runs import CONFIG, command, copy_run, finished_run, session_folder
from tiny_config import get_config

import stepjax
from stepjax import dpo, interrupts, iterate, records, search
from stepjax.evaluation import grading, stages
from stepjax.lm import files, train
from stepjax.run import lock
from stepjax.run.monitor import Monitor
from stepjax.run.run import Run

# A process in the background of a shell may have Ctrl-C ignored, one under nohup
# SIGHUP, and hand that on.
HEARS_CTRL_C = """import os, signal, sys
for number in signal.SIGINT, signal.SIGHUP:
    signal.signal(number, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""

pytestmark = pytest.mark.usefixtures("quick_runs")


def stopped(work, folder, owner, name, at):
    """Sends this process SIGTERM in a call of `owner.name`; returns what was saved.

    Args:
      work: what is done with the run.
      folder: of the run.
      owner: holds `name`.
      name: of a function.
      at: number of the call.
    """
    original, calls = getattr(owner, name), []

    def call(*args, **kwargs):
        calls.append(args)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    run = Run(get_config(), folder)
    interrupts.listen()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, call)
            with pytest.raises(interrupts.Stopped) as raised:
                work(run)
        assert interrupts.status() == 143
    finally:
        interrupts.end()
        lock.release(folder)
    return raised.value.saved


def same_but_rounding(one, other):
    """Equal JSON values, but for the last digits of log-probabilities."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            if "logp" in key:
                np.testing.assert_allclose(one[key], other[key], rtol=1e-5)
            else:
                same_but_rounding(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            same_but_rounding(a, b)
    else:
        assert one == other


STUCK = """import ctypes
from stepjax import interrupts
interrupts.listen()
print("listening", flush=True)
mutex = ctypes.create_string_buffer(64)
for _ in range(2):  # the second time waits for ever, and Python runs no handler
    ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""
WORKS = """import time
from stepjax import interrupts
interrupts.listen()
print("listening", flush=True)
while True:
    time.sleep(0.3)
    try:
        interrupts.check("all")
    except interrupts.Stopped as stopped:
        print(stopped.saved)
        raise SystemExit(interrupts.status())
"""


@contextlib.contextmanager
def listening(program):
    """Starts a program and kills it at the end, even when the test fails."""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=pathlib.Path(stepjax.__file__).parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline() == "listening\n"
            yield process
        finally:
            process.kill()


def test_the_second_signal_ends_a_process_that_is_stuck():
    with listening(STUCK) as process:
        process.terminate()
        said = process.stderr.readline()
        assert said.startswith("stepjax: stopping after this unit of work; a second")
        # A thread that waits for the processor hears of the first signal late.
        time.sleep(3)
        process.terminate()
        assert process.wait(60) == 143
        said = process.stderr.read()
    assert said == "stepjax: the second signal; stopped without saving.\n"


def test_a_signal_that_comes_twice_at_once_is_one():
    with listening(WORKS) as process:
        process.terminate()
        process.stderr.readline()
        process.terminate()
        assert process.wait(60) == 143 and process.stdout.read() == "all\n"


def test_no_update_and_no_evaluated_problem_is_done_twice(tmp_path):
    folder = tmp_path / "run"

    def measure(run):
        stages.evaluate(run, 0, ("greedy", "judge"))

    # 24 problems in batches of 8, then 12 judgments.
    for saved in ("8 of 24 problems", "16 of 24 problems"):
        said = stopped(measure, folder, grading, "right_so_far", 1)
        assert said == f"{saved} are saved"
    said = stopped(measure, folder, grading, "right_so_far", 2)
    assert said == "8 of 12 judgments are saved"
    # Within a log period of 5 updates, twice; then at the end of one.
    for at, saved in ((13, 13), (1, 14), (26 + 20, 20)):
        said = stopped(iterate.sft, folder, train, "put_batch", at)
        assert said == f"update {saved} of {60 if at > 13 else 40} is saved"
    run = Run(get_config(), folder)
    measure(run)
    iterate.sft(run)
    whole = finished_run()
    for name in ("M0_test_greedy", "M0_heldout_judge"):
        one, other = (files.read_json(f / f"eval/{name}.json") for f in (folder, whole))
        assert one["items"] == other["items"] and one["metrics"] == other["metrics"]
        assert not list(folder.glob("eval/*.partial*"))
    one, other = (files.read_json(f / "M1/manifest.json") for f in (folder, whole))
    assert one["arrays"] == other["arrays"]
    mine, theirs = (
        [row for row in Monitor(f).rows() if row["stage"][:3] == "sft"]
        for f in (folder, whole)
    )
    assert len(mine) == 20 and mine == theirs


def test_no_turn_of_a_search_and_no_batch_of_the_reference_is_done_twice(
    tmp_path, monkeypatch
):
    folder, whole, done = tmp_path / "run", finished_run(), []
    after = ("M1/search.json*", "M1/pairs.jsonl", "M2", "M3", "eval/M1_test_search*")
    copy_run(folder, *after)
    lock.release(folder)
    transition = search.transition

    def counted(*args, **kwargs):
        done.append(args)
        return transition(*args, **kwargs)

    monkeypatch.setattr(search, "transition", counted)

    def measure(run):
        stages.evaluate(run, 1, ("search",))

    def find(run):
        iterate.search(run, 1)

    def learn(run):
        iterate.dpo(run, 1)

    for work, count in ((measure, 8), (find, 24), (find, 24)):
        said = stopped(work, folder, search, "slots_to_refill", 2)
        words = rf"\d+ of {count} searches are saved, and the steps of \d that are not"
        assert re.fullmatch(f"{words} finished", said)
    run = Run(get_config(), folder)
    measure(run)
    find(run)
    expansions = 0
    for file in ("eval/M1_test_search.jsonl", "M1/search.jsonl", "M1/pairs.jsonl"):
        one, other = (
            [row for _, row in records.read_objects(f / file)] for f in (folder, whole)
        )
        same_but_rounding(one, other)
        expansions += sum(len(row.get("expansions", ())) for row in one)
    assert len(done) == expansions > 0

    for saved in (3, 6):
        said = stopped(learn, folder, dpo.train, "put_batch", 3)
        assert said == f"{saved} of 12 batches of the reference are saved"
    said = stopped(learn, folder, train, "put_batch", 6 + 5)
    assert said == "update 5 of 12 is saved"
    learn(run)
    one, other = (files.read_json(f / "M2/manifest.json") for f in (folder, whole))
    assert one["arrays"] == other["arrays"]


def begun(folder, errors, until="sft/first"):
    """Starts ``stepjax sft``; returns it when its metrics hold a text."""
    environment = os.environ | {
        "XLA_FLAGS": xla_flags.QUICK,
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(session_folder() / "compiled_alone"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    words = "-m", "stepjax", "sft", f"--config={CONFIG}", f"--workdir={folder}"
    process = subprocess.Popen(
        [sys.executable, "-c", HEARS_CTRL_C, *words],
        env=environment,
        cwd=pathlib.Path(stepjax.__file__).parent.parent,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        text=True,
        start_new_session=True,
    )
    metrics = folder / "metrics.jsonl"
    while not (metrics.exists() and until in metrics.read_text("utf-8")):
        assert process.poll() is None
        time.sleep(0.02)
    return process


def test_the_process_says_what_it_saved_and_ends_with_143_or_130(tmp_path, capsys):
    folder = tmp_path / "run"
    arguments = ["sft", f"--config={CONFIG}", f"--workdir={folder}"]
    for number, text in ((signal.SIGTERM, "sft/first"), (signal.SIGINT, "sft/second")):
        process = begun(folder, subprocess.PIPE, text)
        if number == signal.SIGTERM:
            capsys.readouterr()
            process.send_signal(signal.SIGSTOP)  # so that it is there for sure
            assert command(*arguments) == 1
            said = capsys.readouterr().err
            assert f"{folder} is in use by process {process.pid} on host" in said
            process.send_signal(signal.SIGCONT)
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 128 + number
        *_, last = said.splitlines()
        found = re.fullmatch(
            r"stepjax: stopped: update (\d+) of (40|60) is saved; the same command "
            r"continues\.",
            last,
        )
        assert found, said
        assert "Traceback" not in said and not (folder / ".lock").exists()
        assert int(found[1]) >= get_config().train.log_every  # `begun` waits for these


def saved_state(folder):
    return sorted(folder.glob("M1/train/phase_*/step_*.json"))


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.slow, id="ctrl_c"),
        pytest.param(None, id="unread"),
    ],
)
def test_a_run_whose_output_nobody_reads_any_more_saves_and_stops(tmp_path, number):
    """As with `2>&1 | tee log`: Ctrl-C ends tee as well."""
    folder, (reader, writer) = tmp_path / "run", os.pipe()
    process = begun(folder, writer)
    os.close(writer)
    os.close(reader)
    if number:
        process.send_signal(number)
    assert process.wait(60) == 128 + (number or signal.SIGPIPE)
    assert saved_state(folder) and not (folder / ".lock").exists()


def test_a_run_whose_terminal_is_closed_saves_and_stops(tmp_path):
    folder, (master, terminal) = tmp_path / "run", os.openpty()
    process = begun(folder, terminal)
    os.close(terminal)
    os.close(master)  # what is written to the terminal fails from here on
    time.sleep(0.5)
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 128 + signal.SIGHUP
    assert saved_state(folder) and not (folder / ".lock").exists()
