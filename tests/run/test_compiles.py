"""Programs that XLA compiles: how they are counted, and where they are kept."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import tiny_config
import xla_flags

from stepjax.lm import files
from stepjax.run import compiles
from stepjax.run.run import Run


@pytest.fixture
def no_cache(monkeypatch):
    """JAX has no cache, and nobody has chosen one."""
    names = ("jax_compilation_cache_dir",)
    names += ("jax_persistent_cache_min_compile_time_secs",)
    names += ("jax_persistent_cache_min_entry_size_bytes",)
    kept = {name: jax.config.values[name] for name in names}
    with runs.configured(**kept):
        jax.config.update("jax_compilation_cache_dir", None)
        monkeypatch.setattr(compiles, "_ours", None)
        yield


def cache_dir():
    return jax.config.values["jax_compilation_cache_dir"]


def new_program():
    """Compiles a program that was not there before, or reads it from the cache."""
    return jax.jit(lambda x: jnp.sin(x) * 1.25 + 7)(jnp.zeros(3))


def silent(text):
    raise AssertionError(text)


def test_what_is_compiled_and_what_is_read_again_are_counted_apart(no_cache, tmp_path):
    compiles.use_cache(str(tmp_path / "cache"), silent)
    first = compiles.count()
    new_program()
    made = compiles.count().since(first)
    assert made.programs >= 1 and made.loaded == 0 and made.seconds > 0
    assert len(list(pathlib.Path(cache_dir()).glob("*-cache"))) == made.programs
    jax.clear_caches()
    second = compiles.count()
    new_program()
    again = compiles.count().since(second)
    assert (again.programs, again.loaded) == (0, made.programs)


def test_the_user_has_one_cache_for_each_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    own = compiles.folder("auto")
    assert own == tmp_path / "stepjax" / "compiled" / compiles.machine()
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/ada")
    assert compiles.folder("auto").parent == pathlib.Path(
        "/home/ada/.cache/stepjax/compiled"
    )
    assert compiles.folder("~/mine").parts[:4] == ("/", "home", "ada", "mine")
    info = tmp_path / "cpuinfo"
    names = set()
    for text in ("flags: avx2\ncpu MHz: 1\n\n", "flags: avx2 amx_bf16\n\n"):
        info.write_text(text)
        monkeypatch.setattr(compiles, "_CPU_INFO", info)
        names.add(compiles.machine())
    info.write_text("flags: avx2\ncpu MHz: 2\n\n")  # its speed changes all the time
    assert len(names) == 2 and compiles.machine() in names


def test_a_cache_that_jax_was_given_stays(no_cache, tmp_path):
    for chosen in (str(tmp_path / "theirs"), ""):
        jax.config.update("jax_compilation_cache_dir", chosen)
        compiles.use_cache(str(tmp_path / "mine"), silent)
        assert cache_dir() == chosen
    assert not (tmp_path / "mine").exists()


def test_the_setting_can_change_and_be_switched_off(no_cache, tmp_path):
    for name in ("one", "two"):
        compiles.use_cache(str(tmp_path / name), silent)
        assert cache_dir() == str(compiles.folder(str(tmp_path / name)))
        assert pathlib.Path(cache_dir()).stat().st_mode & 0o777 == 0o700
    compiles.use_cache("", silent)
    assert cache_dir() is None


def test_a_folder_that_cannot_be_written_costs_a_sentence_only(no_cache, tmp_path):
    (tmp_path / "file").write_text("")
    said = []
    compiles.use_cache(str(tmp_path / "file"), said.append)
    compiles.use_cache("gs://bucket/cache", said.append)
    assert cache_dir() is None
    new_program()
    assert f"compile_cache: {tmp_path}/file/compiled/" in said[0]
    assert "cannot be written (Not a directory), so that every command" in said[0]
    assert "compile_cache=gs://bucket/cache: this is an address" in said[1]
    assert "JAX_COMPILATION_CACHE_DIR" in said[1] and len(said) == 2


def _one_bit_wrong(content):
    middle = len(content) // 2
    wrong = bytes([content[middle] ^ 1])
    return content[:middle] + wrong + content[middle + 1 :]


@pytest.mark.parametrize(
    "damaged",
    [
        lambda content: b"",  # as a process leaves a file that is killed in writing it
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: bytes(len(content)),  # as a power failure can leave it
        _one_bit_wrong,
    ],
)
def test_a_damaged_entry_is_compiled_again(no_cache, tmp_path, damaged):
    compiles.use_cache(str(tmp_path), silent)
    jax.clear_caches()  # so that all of it is written
    expected = new_program()
    for path in pathlib.Path(cache_dir()).glob("*-cache"):
        path.write_bytes(damaged(path.read_bytes()))
    words = "Error reading persistent compilation cache"
    for _ in range(2):  # JAX does not write the entry again
        jax.clear_caches()
        before = compiles.count()
        with pytest.warns(UserWarning, match=words):
            found = new_program()
        made = compiles.count().since(before)
        assert made.programs >= 1 and made.loaded == 0
        np.testing.assert_array_equal(found, expected)


@pytest.mark.usefixtures("quick_runs")
def test_another_cache_outdates_nothing(tmp_path):
    runs.copy_run(tmp_path / "run")
    changed = tiny_config.changed(compile_cache=str(tmp_path / "cache"))
    run = Run(changed, tmp_path / "run")
    run.accept()
    assert files.read_json(tmp_path / "run" / "config.json")["compile_cache"]
    assert (tmp_path / "run" / "M3" / "manifest.json").exists()


@pytest.mark.slow
def test_a_second_run_in_a_new_process_compiles_nothing(tmp_path):
    environment = os.environ | {
        "XLA_FLAGS": xla_flags.QUICK,
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "JAX_EXPLAIN_CACHE_MISSES": "1",
    }
    del environment["JAX_COMPILATION_CACHE_DIR"]
    counts = []
    for name in ("one", "two"):
        command = ["-m", "stepjax", "run", f"--config={runs.CONFIG}"]
        done = subprocess.run(
            [sys.executable, *command, f"--workdir={tmp_path / name}"],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "programs compiled" in done.stdout
        missed = "PERSISTENT COMPILATION CACHE MISS" in done.stderr
        assert missed == (name == "one")  # also of what no stage compiles
        manifests = [*(tmp_path / name).glob("M*/*.json")]
        manifests += (tmp_path / name).glob("eval/*.json")
        parts = [files.read_json(path)["compiled"] for path in manifests]
        counts.append({k: sum(part[k] for part in parts) for k in parts[0]})
    assert counts[0]["programs"] > 20 and counts[1]["programs"] == 0
    assert counts[1]["loaded"] > 20
    kept = list((tmp_path / "cache" / "stepjax").rglob("*-cache"))
    assert len(kept) >= counts[0]["programs"]
    runs.assert_same_results(tmp_path / "one", tmp_path / "two")
