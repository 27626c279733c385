"""Runs of `tiny_config`: a finished one, copies of it, and what two runs share."""

import contextlib
import fcntl
import functools
import hashlib
import os
import pathlib
import shutil
import sys
from collections.abc import Callable
from unittest import mock

import jax
import numpy as np
import pytest
import tiny_config
import tiny_eft_config
from absl.testing import flagsaver
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from stepjax import config, iterate, main
from stepjax.cli import options
from stepjax.evaluation import answers, diagnose, grading
from stepjax.initial_data import command as init_data
from stepjax.lm import files, sharding
from stepjax.run.monitor import Monitor
from stepjax.run.run import Run
from stepjax.worlds import arithmetic, arithmetic_data, arithmetic_srlm

CONFIG = pathlib.Path(tiny_config.__file__)  # for --config
# Imported here: `command` forgets the flags that are defined in it.
FLAGS = options.CONFIG, init_data.ACTIONS
make_mesh = sharding.make_mesh  # all eight devices, also where it is replaced


def one_device_mesh(data=-1, fsdp=1, tensor=1, devices=None):
    """Stands in for `sharding.make_mesh`: the first of the suite's eight devices."""
    devices = np.asarray(jax.devices()[:1]).reshape(1, 1, 1)
    return Mesh(devices, sharding.MESH_AXES)


def session_folder() -> pathlib.Path:
    """Returns the folder that conftest.py makes for all workers and deletes."""
    return pathlib.Path(os.environ["STEPJAX_TESTS"])


def made_once(name: str, make: Callable[[pathlib.Path], object]) -> pathlib.Path:
    """Returns a folder that the first worker which asks for it makes by `make(folder)`.

    While it does so, the workers that also ask for it wait.
    """
    folder, done = session_folder() / name, session_folder() / f"{name}.done"
    with open(session_folder() / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
        if not done.exists():
            make(folder)
            done.touch()
    return folder


@contextlib.contextmanager
def configured(**options):
    """Sets options of JAX for a while."""
    before = {name: jax.config.values[name] for name in options}
    compilation_cache.reset_cache()  # or it would keep its folder
    for name, value in options.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@contextlib.contextmanager
def quick_compiles():
    """Programs are compiled with few optimizations, which takes less time."""
    with configured(jax_disable_most_optimizations=True):
        yield


@contextlib.contextmanager
def quick_runs():
    """Runs use one device; their programs are compiled once for all workers."""
    with (
        quick_compiles(),
        configured(
            jax_compilation_cache_dir=str(session_folder() / "compiled"),
            jax_persistent_cache_min_compile_time_secs=0.0,
            jax_persistent_cache_min_entry_size_bytes=-1,
        ),
        mock.patch.object(sharding, "make_mesh", one_device_mesh),
    ):
        yield


@functools.cache
def compilations() -> list[float]:
    """Returns a list to which XLA's compilations are added from now on, in seconds.

    JAX reports each as the event "backend_compile_duration".
    """
    seconds_of_each = []

    def listen(name, seconds, **_):
        if name == "/jax/core/compile/backend_compile_duration":
            seconds_of_each.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    jax.clear_caches()  # of what was compiled before
    return seconds_of_each


def finished_run() -> pathlib.Path:
    """Returns the folder of a finished run of `tiny_config`; copy it to change it."""

    def make(folder):
        with quick_runs():
            iterate.run(tiny_config.get_config(), folder)

    return made_once("run", make)


def finished_eft_run() -> pathlib.Path:
    """Returns the folder of a finished run of `tiny_eft_config`; copy it."""

    def make(folder):
        with quick_runs():
            iterate.run(tiny_eft_config.get_config(), folder)

    return made_once("eft_run", make)


def copy_run(folder: pathlib.Path, *without: str, **changes) -> Run:
    """Opens a copy of the finished run, less some files, with settings changed.

    Args:
      folder: where the copy goes.
      without: glob patterns of what to leave out.
      changes: see `tiny_config.changed`.
    """
    settings = tiny_config.changed(**changes)
    return Run(settings, _copied(finished_run(), folder, without, settings))


def copy_eft_run(folder: pathlib.Path, *without: str, **changes) -> Run:
    """Opens a copy of the finished run of `tiny_eft_config`; see `copy_run`."""
    settings = tiny_eft_config.changed(**changes)
    return Run(settings, _copied(finished_eft_run(), folder, without, settings))


def copy_files(source: pathlib.Path, folder: pathlib.Path, *without: str) -> None:
    """Copies a run, less what glob patterns name."""
    shutil.copytree(source, folder)
    for path in [path for pattern in without for path in folder.glob(pattern)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _copied(source: pathlib.Path, folder: pathlib.Path, without, settings):
    copy_files(source, folder, *without)
    files.write_json(folder / "config.json", config.to_dict(settings))
    return folder


def contents(folder: pathlib.Path) -> dict[str, str]:
    """Returns relative path → SHA-256 of every file but the lock of a command."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def assert_same_results(one: pathlib.Path, other: pathlib.Path) -> None:
    """Byte-identical searches and pairs, bitwise equal models, equal metrics."""
    for number in (1, 2):
        for name in (f"M{number}/search.jsonl", f"M{number}/pairs.jsonl"):
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
    for name in ("M1", "M2", "M3"):
        a, b = (files.read_json(f / name / "manifest.json") for f in (one, other))
        assert a["arrays"] == b["arrays"], name
    for path in (one / "eval").glob("*.jsonl"):
        assert path.read_bytes() == (other / "eval" / path.name).read_bytes(), path.name
    for path in (one / "eval").glob("*.json"):
        a, b = (files.read_json(f / "eval" / path.name) for f in (one, other))
        for part in ("metrics", "items"):
            assert a.get(part) == b.get(part), path.name
    # A stage that was done again has its rows at the end.
    a, b = (sorted(map(str, Monitor(folder).rows())) for folder in (one, other))
    assert a == b


@contextlib.contextmanager
def kill(owner, name, when):
    """Ctrl-C in the call of `owner.name` for which `when(call number, args)` holds.

    Yields the list of the calls' arguments.
    """
    original, calls = getattr(owner, name), []

    def call(*args, **kwargs):
        calls.append(args)
        if when and when(len(calls), args):
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, call)
        yield calls


def poison_gold(monkeypatch) -> None:
    """Makes everything fail that knows right answers or reads gold ones."""

    def refuse(*args, **options):
        raise AssertionError("gold must not be used here")

    for module, names in {
        arithmetic: ("solve", "right_step", "is_right", "corrupt", "working"),
        arithmetic_data: ("solution", "comparisons"),
        arithmetic_srlm: ("ratings", "is_right"),
        answers: ("extract", "equivalent", "grade"),
        grading: ("greedy", "judge_accuracy", "searched", "accuracy"),
        diagnose: ("pair_quality", "sampled_judgments"),
    }.items():
        for name in names:
            monkeypatch.setattr(module, name, refuse)


def command(*arguments: str) -> int:
    """Runs ``stepjax ARGUMENTS`` in this process and returns its exit status."""
    argv = ["stepjax", *map(str, arguments)]
    # The overrides of a config file are looked up in sys.argv.
    with mock.patch.object(sys, "argv", argv), flagsaver.flagsaver():
        return main.main(argv)
