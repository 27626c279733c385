"""Traces of a few units of a stage: which units, where, and what a person is told."""

import pathlib

import jax
import jax.numpy as jnp
import pytest
import runs
import tiny_config

from stepjax import iterate
from stepjax.run.profile import Profiler
from stepjax.run.run import Run


@pytest.fixture
def calls(monkeypatch):
    """What JAX's profiler was asked for."""
    asked = []
    monkeypatch.setattr(jax.profiler, "start_trace", asked.append)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: asked.append("stop"))
    return asked


def work(profiler, count, calls, name="M1 sft/mixed", unit="update"):
    with profiler.of(name, unit) as before_unit:
        for number in range(1, count + 1):
            before_unit()
            calls.append(number)


def test_the_third_to_fifth_unit_are_traced(calls, tmp_path):
    said = []
    work(Profiler(tmp_path, said.append), 7, calls)
    place = str(tmp_path / "M1-sft-mixed")
    assert calls == [1, 2, place, 3, 4, 5, "stop", 6, 7]
    assert said == [
        f"--profile: updates 3 to 5 of M1 sft/mixed are in {place} "
        f"(pip install xprof; xprof {tmp_path})"
    ]


def test_a_stage_that_ends_early_ends_its_trace(calls, tmp_path):
    said = []
    profiler = Profiler(tmp_path, said.append)
    work(profiler, 4, calls)
    assert calls[-3:] == [3, 4, "stop"] and "updates 3 to 4 of" in said[0]
    calls.clear()
    work(profiler, 2, calls, "M1 search", "turn")
    work(profiler, 0, calls, "M2 search", "turn")
    assert calls == [1, 2]
    assert said[1:] == [
        "--profile: M1 search had 2 turns, and a trace begins with number 3: there is "
        "none of it"
    ]


def test_without_the_option_nothing_is_traced(calls):
    said = []
    work(Profiler(None, said.append), 7, calls)
    assert calls == list(range(1, 8)) and said == []


def test_a_trace_that_fails_stops_nothing(monkeypatch, tmp_path):
    def refuse(folder):
        raise RuntimeError("another profiler is at work")

    monkeypatch.setattr(jax.profiler, "start_trace", refuse)
    done, said = [], []
    work(Profiler(tmp_path, said.append), 7, done)
    assert done == list(range(1, 8))
    assert said == [
        "--profile: no trace of M1 sft/mixed (another profiler is at work); the run "
        "goes on"
    ]


def test_a_trace_is_written(tmp_path):
    said = []
    with Profiler(tmp_path, said.append).of("M1 sft", "update") as before_unit:
        for _ in range(6):
            before_unit()
            jnp.ones(3).block_until_ready()
    (trace,) = tmp_path.rglob("*.xplane.pb")
    assert trace.relative_to(tmp_path).parts[0] == "M1-sft" and len(said) == 1


@pytest.mark.usefixtures("quick_runs")
def test_trainings_and_searches_of_a_run_are_traced(calls, tmp_path):
    c = tiny_config.changed(iterations=1)
    c.sft.phases = tiny_config.one_phase(6)
    run = Run(c, tmp_path / "run", profile=True)
    iterate.sft(run)
    iterate.search(run, 1)
    places = [pathlib.Path(place).name for place in calls[::2]]
    assert places == ["M1-sft-only", "M1-search"]
    assert calls[1::2] == ["stop", "stop"]
    assert pathlib.Path(calls[0]).parent == run.dir.path / "profile"


def test_the_option_reaches_a_run(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(iterate, "run", lambda *arguments: seen.append(arguments))
    command = ("run", f"--config={runs.CONFIG}", f"--workdir={tmp_path / 'run'}")
    assert runs.command(*command, "--profile") == 0
    assert runs.command(*command) == 0
    assert [arguments[3] for arguments in seen] == [True, False]
