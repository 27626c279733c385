"""Saved arrays: whole, in their shardings, or refused."""

import errno
import json
import os
import pathlib
import shutil
import threading
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from stepjax.lm import checkpoint, sharding


class State(NamedTuple):
    params: dict
    count: jax.Array


def state(seed=0):
    """A state spread over eight devices; each array has a size of its own."""
    mesh = sharding.make_mesh(2, 2, 2)
    rng = np.random.default_rng(seed)

    def put(shape, *axes):
        array = rng.normal(size=shape).astype(np.float32)
        return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*axes)))

    params = {"kernel": put((6, 10), "fsdp", "tensor"), "norm": {"scale": put((5,))}}
    count = jax.device_put(jnp.int32(seed), sharding.replicated(mesh))
    return State(params, count)


def assert_bitwise_equal(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


def array_files(directory):
    """Files of an Orbax tree, without the empty ones and its notes at the top."""
    files = (p for p in pathlib.Path(directory, "state").rglob("*") if p.is_file())
    return [p for p in files if p.stat().st_size]


def damage(directory):
    """Flips one bit in the middle of every array file."""
    for path in array_files(directory):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def remove_arrays(directory):
    for path in array_files(directory):
        path.unlink()


# Digests and JSON.


def test_digests_see_every_bit_type_and_shape():
    tree = {"a": np.arange(6, dtype=np.float32), "b": {"c": np.zeros(2, np.int32)}}
    digests = checkpoint.array_digests(tree)
    assert sorted(digests) == ["['a']", "['b']['c']"]
    assert checkpoint.array_digests(jax.tree.map(jnp.asarray, tree)) == digests
    nudged = np.nextafter(tree["a"], np.float32(9))
    others = [
        nudged,
        -tree["a"],
        tree["a"].reshape(2, 3),
        tree["a"].view(np.int32),
        tree["a"][::-1],
    ]
    found = {checkpoint.array_digests({"a": x})["['a']"] for x in others}
    assert len(found) == 5 and digests["['a']"] not in found
    # Strided views count as the values they show.
    assert checkpoint.array_digests({"a": others[4]}) == checkpoint.array_digests(
        {"a": others[4].copy()}
    )
    # Minus zero is another array than zero.
    assert checkpoint.array_digests([-np.zeros(2, np.float32)]) != (
        checkpoint.array_digests([np.zeros(2, np.float32)])
    )


def test_digests_do_not_depend_on_the_devices():
    whole = jax.tree.map(np.asarray, state())
    assert checkpoint.array_digests(whole) == checkpoint.array_digests(state())


# Trees.


def test_a_tree_comes_back_bitwise_in_its_shardings(tmp_path):
    saved = state(1)
    digests = checkpoint.save_tree(tmp_path / "new" / "tree", saved)
    assert digests == checkpoint.array_digests(saved)
    loaded = checkpoint.load_tree(tmp_path / "new" / "tree", state(2), digests)
    assert_bitwise_equal(loaded, saved)
    kernel = loaded.params["kernel"]
    assert kernel.sharding == saved.params["kernel"].sharding
    assert kernel.addressable_shards[0].data.shape == (3, 5)
    # Onto one device, from shapes alone.
    device = jax.sharding.SingleDeviceSharding(jax.devices()[3])
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), saved
    )
    moved = checkpoint.load_tree(tmp_path / "new" / "tree", shapes, digests)
    assert_bitwise_equal(moved, saved)
    assert moved.params["kernel"].devices() == {jax.devices()[3]}


def test_saving_again_replaces_the_tree(tmp_path):
    checkpoint.save_tree(tmp_path / "tree", state(1))
    digests = checkpoint.save_tree(tmp_path / "tree", state(2))
    loaded = checkpoint.load_tree(tmp_path / "tree", state(1), digests)
    assert_bitwise_equal(loaded, state(2))


def replace_one_array(path, saved):
    params = saved.params | {"norm": {"scale": saved.params["norm"]["scale"] + 1}}
    checkpoint.save_tree(path, saved._replace(params=params))


def save_another_shape(path, saved):
    params = saved.params | {"kernel": saved.params["kernel"][:4]}
    checkpoint.save_tree(path, saved._replace(params=params))


def save_without_an_array(path, saved):
    params = {"kernel": saved.params["kernel"]}
    checkpoint.save_tree(path, saved._replace(params=params))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replace_one_array, r"\['norm'\]\['scale'\] is not the one .* \(1 differ\)"),
        (save_another_shape, "not the one that was saved|cannot be read"),
        (save_without_an_array, "cannot be read"),
        (lambda path, _: damage(path), "cannot be read"),
        (lambda path, _: remove_arrays(path), "cannot be read"),
        (lambda path, _: shutil.rmtree(path), "cannot be read"),
    ],
)
def test_a_changed_tree_is_refused(tmp_path, change, message):
    saved, path = state(1), tmp_path / "tree"
    digests = checkpoint.save_tree(path, saved)
    change(path, saved)
    with pytest.raises(ValueError, match=f"(?s)tree.*({message}).*Delete the folder"):
        checkpoint.load_tree(path, saved, digests)


# Training states.


def steps_on_disk(directory):
    return sorted(p.name for p in pathlib.Path(directory).glob("*"))


def save(saver, *steps):
    for step in steps:
        saver.maybe_save(state(step), step, over=False, pending=False)


def test_states_are_saved_at_intervals_and_the_last_two_kept(tmp_path):
    saver = checkpoint.TrainSaver(tmp_path / "train", 3)
    save(saver, 1, 2)
    assert not (tmp_path / "train").exists()
    saver.maybe_save(state(3), 3, over=False, pending=True)  # inside a log period
    assert not (tmp_path / "train").exists()
    save(saver, *range(4, 12))  # saves 4, 7 and 10
    kept = ["step_00000007", "step_00000007.json", "step_00000010"]
    assert steps_on_disk(saver.directory) == [*kept, "step_00000010.json"]
    fresh = checkpoint.TrainSaver(tmp_path / "train", 3)
    found, done, over = fresh.restore(state(0))
    assert (done, over) == (10, False)
    assert_bitwise_equal(found, state(10))
    save(fresh, 11, 12)  # too early after the restored one
    assert steps_on_disk(saver.directory) == [*kept, "step_00000010.json"]
    shutil.rmtree(saver.directory)
    start = state(0)
    assert fresh.restore(start)[0] is start


@pytest.mark.parametrize(
    ("every", "last", "files"), [(2, True, 2), (2, False, 0), (0, True, 0)]
)
def test_the_end_is_saved_only_if_a_phase_follows(tmp_path, every, last, files):
    saver = checkpoint.TrainSaver(tmp_path, every, last=last)
    saver.maybe_save(state(7), 7, over=True, pending=False)
    assert len(steps_on_disk(tmp_path)) == files
    if files:
        found, done, over = checkpoint.TrainSaver(tmp_path, every).restore(state(0))
        assert (done, over) == (7, True)
        assert_bitwise_equal(found, state(7))


def test_a_damaged_state_falls_back_to_the_older_one(tmp_path):
    save(checkpoint.TrainSaver(tmp_path, 1), 4, 5)
    damage(tmp_path / "step_00000005")
    saver = checkpoint.TrainSaver(tmp_path, 1)
    found, done, over = saver.restore(state(0))
    assert (done, over) == (4, False)
    assert_bitwise_equal(found, state(4))
    save(saver, 5)  # the same update again, over the damaged one
    found, done, _ = checkpoint.TrainSaver(tmp_path, 1).restore(state(0))
    assert done == 5
    assert_bitwise_equal(found, state(5))


@pytest.mark.parametrize(
    "text", ['{"step": 4, "finished": true}', "{}", "[]", "\x00\x00", "", None]
)
def test_a_damaged_record_costs_its_own_state_only(tmp_path, text):
    save(checkpoint.TrainSaver(tmp_path, 1), 4, 5)
    path, said = tmp_path / "step_00000005.json", []
    changed = path.read_text().replace('"step": 5', '"step": 6')  # and still JSON
    path.write_text(changed if text is None else text)
    saver = checkpoint.TrainSaver(tmp_path, 1, say=said.append)
    found, done, over = saver.restore(state(0))
    assert (done, over) == (4, False)
    assert_bitwise_equal(found, state(4))
    (line,) = said
    assert "a damaged training state is passed over" in line and str(path) in line


def test_without_a_whole_state_training_starts_anew(tmp_path):
    save(checkpoint.TrainSaver(tmp_path, 1), 4, 5)
    damage(tmp_path / "step_00000005")
    half = (tmp_path / "step_00000004.json").read_bytes()[:40]
    (tmp_path / "step_00000004.json").write_bytes(half)
    start = state(0)
    found, done, over = checkpoint.TrainSaver(tmp_path, 1).restore(start)
    assert found is start and (done, over) == (0, False)


def test_a_state_without_its_record_is_never_loaded(tmp_path):
    save(checkpoint.TrainSaver(tmp_path, 1), 4, 5)
    (tmp_path / "step_00000005.json").unlink()  # killed between arrays and record
    assert checkpoint.TrainSaver(tmp_path, 1).restore(state(0))[1] == 4
    record = json.loads((tmp_path / "step_00000004.json").read_text())
    assert record["digests"] == checkpoint.array_digests(state(4))


@pytest.mark.parametrize("name", ["p.orbax-checkpoint-tmp", "state"])
def test_a_folder_that_cannot_be_made_ends_the_save(tmp_path, monkeypatch, capfd, name):
    """Orbax would keep threads that wait 5 minutes, and the process with them."""
    before, mkdir = set(threading.enumerate()), os.mkdir

    def full(path, *args, **options):
        if pathlib.Path(os.fspath(path)).name.startswith(name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))
        mkdir(path, *args, **options)

    monkeypatch.setattr(os, "mkdir", full)
    with pytest.raises(OSError) as caught:
        checkpoint.save_tree(tmp_path / "p", state())
    assert caught.value.errno == errno.ENOSPC
    assert str(tmp_path) in caught.value.filename
    new = set(threading.enumerate()) - before
    # An idle thread of asyncio ends with the process.
    waiting = [t.name for t in new if not (t.daemon or t.name.startswith("asyncio"))]
    assert waiting == []
    assert "Traceback" not in capfd.readouterr().err


def test_a_disk_that_cannot_be_read_is_not_taken_for_damage(tmp_path, monkeypatch):
    saver = checkpoint.TrainSaver(tmp_path / "train", every=1)
    saver.save(state(1), 1)

    def fails(*args):
        raise ValueError("DATA_LOSS: reading '/d/x': no [os_error_code='5']")

    monkeypatch.setattr(checkpoint.ocp, "load", fails)
    with pytest.raises(OSError) as caught:
        saver.restore(state(0))
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, "/d/x")
    monkeypatch.undo()
    assert saver.restore(state(0))[1] == 1


def test_arrays_are_on_the_disk_before_their_record_has_its_name(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace

    def named_fsync(opened):
        done.append(os.readlink(f"/proc/self/fd/{opened}"))
        fsync(opened)

    def named_replace(old, new):
        done.append(f"record {pathlib.Path(new).name}")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", named_fsync)
    monkeypatch.setattr(os, "replace", named_replace)
    checkpoint.TrainSaver(tmp_path, every=1).save(state(1), 1)
    place = done.index("record step_00000001.json")
    arrays = {str(path) for path in (tmp_path / "step_00000001").rglob("*")}
    assert len(arrays) > 5 and arrays | {str(tmp_path)} <= set(done[:place])
    assert done[place + 1] == str(tmp_path)
