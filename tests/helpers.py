"""A whole run of seconds, shared by several test files.

This file is a config as well: ``--config=tests/helpers.py``.
"""

import atexit
import contextlib
import functools
import hashlib
import pathlib
import shutil
import sys
import tempfile
from unittest import mock

import jax
import numpy as np
from absl.testing import flagsaver
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh
from tensorboardX.proto import event_pb2

from stepjax import config, iterate, main
from stepjax.lm import checkpoint, sharding
from stepjax.run.monitor import Monitor

make_mesh = sharding.make_mesh  # all eight devices, also where it is replaced


def get_config():
    """Returns the settings of a tiny run: 2 iterations, sampled verdicts, few updates.

    The judge is as good as a coin, which makes many preferences.
    """
    c = config.default()
    c.iterations = 2
    c.data.world = "arithmetic"
    c.data.operations = 2
    c.data.questions = (24, 24)
    c.data.ift_count = 96
    c.data.eft_count = 96
    c.data.heldout_count = 6
    c.data.test_count = 24

    c.model.hidden_size = 16
    c.model.num_kv_heads = 1
    c.model.head_dim = 8
    c.model.intermediate_size = 32
    c.model.embedding_std = 0.5
    c.model.init_std = 0.1

    c.train.row_length = 64
    c.train.checkpoint_every = 10
    c.train.log_every = 5
    rates = config.optimizer(1e-2, b2=0.98)
    c.sft.phases = (
        config.phase("first", 0.5, 0.5, 0, 40, batch_size=16, optimizer=rates),
        config.phase("second", 0.5, 0.5, 0, 60, batch_size=16, optimizer=rates),
    )
    c.search.width = 3
    c.search.temperature = 1.0
    c.search.max_expansions = 8
    c.search.max_step_tokens = 12
    c.search.context_tokens = 64
    c.search.slots = 8
    c.judge.temperature = 1.0
    c.judge.max_tokens = 16
    c.judge.context_tokens = 64
    c.judge.rows = 1
    c.dpo.batch_size = 8
    c.dpo.epochs = 2
    c.dpo.optimizer = config.optimizer(1e-3)
    c.eval.max_tokens = 32
    c.eval.search_count = 8
    return c


def one_device_mesh(data=-1, fsdp=1, tensor=1, devices=None):
    """Stands in for `sharding.make_mesh`: the first of the suite's eight devices."""
    devices = np.asarray(jax.devices()[:1]).reshape(1, 1, 1)
    return Mesh(devices, sharding.MESH_AXES)


@contextlib.contextmanager
def quick_compiles():
    """One device, and programs compiled simply, and once for all runs of a session."""
    options = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(session_folder() / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: jax.config.values[name] for name in options}
    compilation_cache.reset_cache()
    for name, value in options.items():
        jax.config.update(name, value)
    with mock.patch.object(sharding, "make_mesh", one_device_mesh):
        yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@functools.cache
def session_folder() -> pathlib.Path:
    """Returns a folder that is deleted when Python ends."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="stepjax-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def finished_run() -> pathlib.Path:
    """Returns the folder of a finished run of `get_config`; copy it to change it."""
    folder = session_folder() / "run"
    with quick_compiles():
        iterate.run(get_config(), folder)
    return folder


def copy_run(folder: pathlib.Path, *without: str, **changes) -> iterate.Run:
    """Opens a copy of the finished run, less some files, with settings changed.

    Args:
      folder: where the copy goes.
      without: glob patterns of what to leave out.
      changes: setting (dots as "__") → value.
    """
    shutil.copytree(finished_run(), folder)
    for path in [path for pattern in without for path in folder.glob(pattern)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    settings = get_config()
    settings.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in changes.items()}
    )
    checkpoint.write_json(folder / "config.json", config.to_dict(settings))
    return iterate.Run(settings, folder)


def written(stops, ids, capacity: int) -> tuple[int, bool]:
    """Returns how many of the ids sampling would write, and whether it then stopped."""
    state = 0
    for count, token in enumerate(ids[:capacity], 1):
        state = stops[state, token]
        if state == len(stops) - 1:
            return count, True
    return min(len(ids), capacity), False


def contents(folder: pathlib.Path) -> dict[str, str]:
    """Returns relative path → SHA-256 of every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def assert_same_results(one: pathlib.Path, other: pathlib.Path) -> None:
    """Byte-identical searches and pairs, bitwise equal models, equal metrics."""
    for number in (1, 2):
        for name in (f"M{number}/search.jsonl", f"M{number}/pairs.jsonl"):
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
    for name in ("M1", "M2", "M3"):
        a, b = (checkpoint.read_json(f / name / "manifest.json") for f in (one, other))
        assert a["arrays"] == b["arrays"], name
    for path in (one / "eval").iterdir():
        a, b = (checkpoint.read_json(f / "eval" / path.name) for f in (one, other))
        for part in ("metrics", "items"):
            assert a.get(part) == b.get(part), path.name
    assert Monitor(one).rows() == Monitor(other).rows()


def command(*arguments: str) -> int:
    """Runs ``stepjax ARGUMENTS`` in this process and returns its exit status."""
    argv = ["stepjax", *map(str, arguments)]
    # The overrides of a config file are looked up in sys.argv.
    with mock.patch.object(sys, "argv", argv), flagsaver.flagsaver():
        return main.main(argv)


def tensorboard_scalars(folder: pathlib.Path) -> dict[tuple[str, int], float]:
    """Returns (tag, step) → value of the one event file in the folder.

    A record of the file is the length of its data (8 bytes, little-endian), a checksum
    (4 bytes), the data, and a checksum (4 bytes).
    """
    (path,) = folder.iterdir()
    scalars = {}
    with open(path, "rb") as file:
        while length := file.read(8):
            file.read(4)
            data = file.read(int.from_bytes(length, "little"))
            file.read(4)
            event = event_pb2.Event.FromString(data)
            for value in event.summary.value:
                scalars[value.tag, event.step] = value.simple_value
    return scalars


class AtOnce:
    """The part of `slots.Slots` that begins to sample, of fakes that only sample."""

    def start(self, *args, **options):
        """Samples at once."""
        out = self.sample(*args, **options)
        return lambda: out
