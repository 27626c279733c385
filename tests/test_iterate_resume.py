"""A run that is killed again and again ends as the unbroken one did, bit for bit."""

import contextlib
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import xla_flags
from runs import CONFIG, assert_same_results, command, copy_run, finished_run, kill
from tiny_config import get_config

import stepjax
from stepjax import iterate, search, trajectory
from stepjax.evaluation import stages
from stepjax.lm import files, train
from stepjax.records import Question
from stepjax.run import judges, rollout, rundir
from stepjax.run.journal import Journal
from stepjax.run.monitor import Monitor
from stepjax.run.run import Run

EVERY = {f"arith-q1-{index}" for index in range(24)}


pytestmark = pytest.mark.usefixtures("quick_runs")


def killed(folder, owner, name, when):
    """Runs until killed; the number of calls of `owner.name`."""
    with kill(owner, name, when) as calls, pytest.raises(KeyboardInterrupt):
        iterate.run(get_config(), folder)
    return len(calls)


def tear(path, text):
    """Appends part of a line, as a kill in the middle of a write leaves it."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)


def test_kills_at_every_stage(tmp_path):
    folder = tmp_path / "run"
    states = folder / "M1/train"

    # Preparation: nothing is left of a run that has not begun.
    killed(folder, Run, "_check", lambda count, args: True)
    assert not folder.exists()

    # Update 25 of SFT's first phase; saved at 20, so that 20 updates are not redone.
    killed(folder, train, "put_batch", lambda count, args: count == 25)
    assert sorted(p.name for p in states.glob("*/*.json")) == [
        "step_00000010.json",
        "step_00000020.json",
    ]
    assert [row["step"] for row in sft_rows(folder, "first")] == [5, 10, 15, 20]
    tear(folder / "metrics.jsonl", '{"stage": "sft/first", "model": "M1", "st')

    # Update 33 of the second phase: 20 + 33 batches since. The first is not redone.
    assert killed(folder, train, "put_batch", lambda count, args: count == 53) == 53
    assert [row["step"] for row in sft_rows(folder, "first")] == list(range(5, 41, 5))
    assert [row["step"] for row in sft_rows(folder, "second")][-1] == 30

    # After the last update and M1's arrays, before its manifest.
    def before_sft(count, args):
        return args[0].name == "sft"

    with kill(train, "put_batch", None) as batches:
        killed(folder, rundir.Stage, "commit", before_sft)
    assert len(batches) == 30 and (folder / "M1/params").exists()
    assert not (folder / "M1/manifest.json").exists()

    # M1 is done; its evaluation has logged and not committed.
    def before_evaluation(count, args):
        return args[0].name == "eval/search"

    killed(folder, rundir.Stage, "commit", before_evaluation)
    assert (folder / "M1/manifest.json").exists() and not states.exists()
    logged = [row["stage"] for row in Monitor(folder).rows()]
    assert logged[-1] == "eval/test_search"

    # A search of 24 problems at its second pause, and again over a torn line.
    journal = folder / "M1/search.partial.jsonl"
    pauses = []

    def second_pause(count, args):
        pauses.extend(args[:1] * (args[0].path == journal))  # evaluations have journals
        return len(pauses) == 2

    killed(folder, Journal, "add", second_pause)
    _, line = journal.read_text("utf-8").splitlines()
    done = {row["id"] for row in json.loads(line)["closed"]}
    flying = {row["id"] for _, row in json.loads(line)["active"]}
    assert 8 <= len(done) < 16 and 1 <= len(flying) <= 8 and not done & flying
    tear(journal, line[: len(line) // 2])

    def before_search(count, args):
        return args[0].name == "search"

    with kill(search, "step_search", None) as searches:
        killed(folder, rundir.Stage, "commit", before_search)
    assert {question.id for question in searches[0][0]} == EVERY - done - flying
    assert journal.exists() and (folder / "M1/pairs.jsonl").exists()

    # Twelve batches to the reference, eight to DPO; then between two models.
    killed(folder, train, "put_batch", lambda count, args: count == 20)
    assert not journal.exists() and not (folder / "M2/manifest.json").exists()

    # M2 is done; its training states have not been deleted.
    killed(folder, rundir.Stage, "tidy", lambda _, args: args[0].name == "dpo")
    assert (folder / "M2/manifest.json").exists() and (folder / "M2/train").exists()

    def search_of_m2(count, args):
        return args[1] == 2

    killed(folder, iterate, "search", search_of_m2)
    assert not (folder / "M2/train").exists()
    iterate.run(get_config(), folder)
    assert_same_results(finished_run(), folder)
    assert not list(folder.rglob("train")) and not list(folder.rglob("*partial*"))


def sft_rows(folder, phase):
    return [row for row in Monitor(folder).rows() if row["stage"] == f"sft/{phase}"]


def test_ctrl_c_says_how_to_go_on(tmp_path, capsys):
    with kill(stages, "evaluate", lambda count, args: True):
        status = command("run", f"--config={CONFIG}", f"--workdir={tmp_path / 'run'}")
    assert status == 130
    assert capsys.readouterr().err.endswith("the same command continues.\n")


def test_training_goes_on_before_a_damaged_state(tmp_path):
    folder = tmp_path / "run"
    copy_run(folder, "M2", "M3", "eval/M[23]*", "metrics.jsonl")
    # Of 12 updates, 10 are saved; the saved state is damaged after the kill.
    killed(folder, rundir.Stage, "commit", lambda _, args: args[0].name == "dpo")
    (state,) = (folder / "M2/train").glob("step_*.json")
    kept = files.read_json(state)
    kept["digests"] = {name: "0" * 64 for name in kept["digests"]}
    files.write_json(state, kept, sealed=True)
    iterate.dpo(Run(get_config(), folder), 1)
    found, expected = (
        files.read_json(f / "M2/manifest.json") for f in (folder, finished_run())
    )
    assert found["arrays"] == expected["arrays"]
    steps = [row["step"] for row in Monitor(folder).rows() if row["stage"] == "dpo"]
    assert steps == [5, 10, 12]


def test_at_a_pause_the_caches_are_those_of_a_run_that_goes_on(tmp_path, monkeypatch):
    run = copy_run(tmp_path / "run", "M1/search*", "M1/pairs*", "M2", "M3")
    make, add, caches, held = rollout.open_sampler, Journal.add, [], []

    def make_slots(*args):
        caches.append(make(*args))
        return caches[-1]

    def look(*args):
        held.append([len(ids) for slots in caches for ids in slots.held])
        add(*args)

    monkeypatch.setattr(rollout, "open_sampler", make_slots)
    monkeypatch.setattr(judges, "open_sampler", make_slots)
    monkeypatch.setattr(Journal, "add", look)
    iterate.search(run, 1)
    *pauses, _ = held  # the last one is the end
    assert pauses == [[0] * 16] * 2  # eight slots to solve with and eight to judge
    assert any(ids for slots in caches for ids in slots.held)


def test_a_model_without_pairs_goes_on_unchanged(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    run = copy_run(folder, "M1/search*", "M1/pairs*", "M2", "M3")
    monkeypatch.setattr(iterate, "pairs_of", lambda *args, **options: [])
    iterate.search(run, 1)
    iterate.dpo(run, 1)
    made = files.read_json(folder / "M2/manifest.json")
    before = files.read_json(folder / "M1/manifest.json")
    assert made["arrays"] == before["arrays"] and len(made["arrays"]) > 10
    assert made["counts"] == {"pairs": 0, "dropped": 0, "updates": 0}
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith(
        " dpo: M1 made no preference pairs, so M2 is M1. The judge gave all candidates "
        "of each step the same score, or the settings pairs.min_margin and "
        "pairs.best_beats_all kept none of the pairs. Ask more questions, raise "
        "search.temperature, or relax these settings."
    )
    # M2 is not measured, because what was measured of M1 holds.
    modes = ("greedy", "judge", "search")
    monkeypatch.setattr(stages, "_STAGES", {})
    found = stages.evaluate(run, 2, modes)
    for mode, name in zip(modes, ("test", "heldout", "test"), strict=True):
        one, two = (
            files.read_json(folder / f"eval/M{n}_{name}_{mode}.json") for n in (1, 2)
        )
        assert found["test"][mode] == one["metrics"] and two["items"] == one["items"]
    kept = [(folder / f"eval/M{n}_test_search.jsonl").read_bytes() for n in (1, 2)]
    assert kept[0] == kept[1]
    said = " ".join(capsys.readouterr().err.split())
    assert "M2 eval test_greedy: M2 is equal to M1, whose result holds." in said


# A search with fakes.


def propose(active):
    """Steps of random ids; the third one may end the solution."""
    result = {}
    for slot, state in active.items():
        rng = np.random.default_rng(state.key_path(1))
        last = len(state.steps) == 2
        result[slot] = trajectory.Proposal(
            tuple(
                trajectory.Candidate((int(i),), f"{i}", 1, float(logp), bool(last))
                for i, logp in zip(
                    rng.permutation(9)[:3], rng.normal(size=3), strict=True
                )
            )
        )
    return result


def judge(requests):
    """One random verdict for each request; a third of them cannot be parsed."""
    winners = (np.random.default_rng(r.path).choice(["A", "B", "-"]) for r in requests)
    return [[trajectory.Verdict(0, 1, w if w in "AB" else None)] for w in winners]


QUESTIONS = [Question(f"q{index}", f"problem {index}") for index in range(30)]
OPTIONS = {"slots": 4, "iteration": 1, "max_expansions": 12}


def go_on(path, stop=None):
    """Searches what the journal does not have; Ctrl-C right after pause `stop`.

    Returns (how many problems it had, or had in flight, all closed problems).
    """
    journal, closed, pauses = Journal(path, {"M1": "x"}), [], itertools.count(1)
    begun = {state.question.id for state in journal.active.values()}
    begun |= journal.closed.keys()

    def keep(active):
        journal.add(closed, active)
        closed.clear()
        if next(pauses) == stop:
            raise KeyboardInterrupt

    todo = [question for question in QUESTIONS if question.id not in begun]
    resume = {"active": journal.active, "on_pause": keep}
    with contextlib.suppress(KeyboardInterrupt):
        for state in search.step_search(todo, propose, judge, **OPTIONS, **resume):
            closed.append(state)
    return len(begun), journal.closed | {state.question.id: state for state in closed}


def test_a_search_goes_on_from_every_pause(tmp_path):
    whole = list(search.step_search(QUESTIONS, propose, judge, **OPTIONS))
    assert len({len(state.expansions) for state in whole}) > 4
    wanted = {state.question.id: state for state in whole}
    for stop in range(1, 7):
        path = tmp_path / f"{stop}.jsonl"
        begun, found = go_on(path, stop)
        assert begun == 0 and 4 * stop <= len(found) < 8 * stop
        tear(path, '{"closed": [{"id": "q1", "pro')
        begun, found = go_on(path)
        assert 4 * stop <= begun <= 30 and found == wanted
        assert Journal(path, {"M1": "x"}).closed.items() <= wanted.items()
        assert not Journal(path, {"M1": "another model"}).closed


# A process that is really killed.


@pytest.mark.slow
def test_sigkill(tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags.QUICK,
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def start(workdir):
        argv = ["-m", "stepjax", "run", f"--config={CONFIG}", f"--workdir={workdir}"]
        return subprocess.Popen(
            [sys.executable, *argv],
            env=environment,
            cwd=pathlib.Path(stepjax.__file__).parent.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def finish(workdir):
        process = start(workdir)
        output = process.communicate(timeout=600)[0].decode()
        assert process.returncode == 0 and "│ M3 " in output

    finish(whole)
    metrics, journal = folder / "metrics.jsonl", folder / "M1/search.partial.jsonl"
    for path, text in (
        (metrics, '"sft/second"'),
        (journal, '"closed"'),
        (metrics, '"dpo"'),
    ):
        process, limit = start(folder), time.monotonic() + 300
        while not (path.exists() and text in path.read_text("utf-8")):
            assert process.poll() is None and time.monotonic() < limit
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
    assert not (folder / "M3").exists()
    finish(folder)
    assert_same_results(whole, folder)
