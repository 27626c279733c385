"""Parameters and training states on disk, with a digest of every array.

Orbax writes the arrays (to a temporary name, then renamed). Beside them a small JSON
file is written last: it names the digest of every array, and only what has one is
ever loaded, after its digests were checked.
"""

import hashlib
import os
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from orbax.checkpoint import v1 as ocp

from stepjax.lm import files, hosts


def array_digests(tree: Any) -> dict[str, str]:
    """Returns path → digest of dtype, shape and every bit of each array of a tree.

    The devices that hold an array add up, over its elements, eight mixtures of the
    element's bits with its index (MurmurHash3's finaliser); the digest is the SHA-256
    of the eight sums. So it does not depend on how an array is split, no array is
    ever whole anywhere, and several hosts compute it together. It sees damage and
    confusion; it is no defence against somebody who forges arrays.
    """
    flat = jax.tree_util.tree_leaves_with_path(tree)
    leaves = [leaf for _, leaf in flat]
    sums = jax.device_get(_bit_sums(leaves))
    digests = {}
    for (path, leaf), numbers in zip(flat, sums, strict=True):
        digest = hashlib.sha256(f"{leaf.dtype}{leaf.shape}".encode())
        digest.update(np.asarray(numbers, "<u4").tobytes())
        digests[jax.tree_util.keystr(path)] = digest.hexdigest()
    return digests


@jax.jit
def _bit_sums(leaves):
    return [_bit_sum(leaf) for leaf in leaves]


def _bit_sum(array):
    """Returns eight sums modulo 2^32, [8] uint32."""
    kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[array.dtype.itemsize]
    if array.dtype == bool:
        array = array.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(array, kind).astype(jnp.uint32)
    place, stride = jnp.zeros(bits.shape, jnp.uint32), 1
    for axis in reversed(range(bits.ndim)):
        index = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        place += index * jnp.uint32(stride % 2**32)
        stride *= bits.shape[axis]
    salts = np.arange(1, 9, dtype=np.uint32) * np.uint32(0x9E3779B9)
    return jnp.stack(
        [_mix(_mix(place ^ salt) ^ bits).sum(dtype=jnp.uint32) for salt in salts]
    )


def _mix(x):
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def save_tree(path: str | os.PathLike, tree: Any) -> dict[str, str]:
    """Saves a tree of arrays as a directory, replacing what is there.

    Several hosts save together, each what its devices hold.

    Returns:
      Its digests, to be kept by the caller and given to `load_tree`.
    """
    path = pathlib.Path(path).absolute()
    if hosts.first():
        shutil.rmtree(path, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
    hosts.barrier("room for arrays")
    ocp.save(path, tree)
    return array_digests(tree)


def load_tree(path: str | os.PathLike, like: Any, digests: dict[str, str]) -> Any:
    """Loads a tree of arrays in the shapes, types and shardings of another.

    Args:
      path: directory of `save_tree`.
      like: tree of arrays or ShapeDtypeStructs with shardings.
      digests: what `save_tree` returned.

    Raises:
      ValueError: when it cannot be read or an array's digest differs.
    """
    path = pathlib.Path(path).absolute()
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
    )
    try:
        tree = ocp.load(path, abstract)
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}: {str(error)[:200]}). "
            "Delete the folder that holds it and run the same command again."
        ) from error
    found = array_digests(tree)
    wrong = sorted(
        k for k in digests.keys() | found.keys() if digests.get(k) != found.get(k)
    )
    if wrong:
        raise ValueError(
            f"{path}: array {wrong[0]} is not the one that was saved ({len(wrong)} "
            "differ). Delete the folder that holds it and run the same command again."
        )
    return tree


class TrainSaver:
    """Keeps training states of one stage; falls back past a damaged one."""

    def __init__(
        self,
        directory: str | os.PathLike,
        every: int,
        *,
        last: bool = False,
        keep: int = 2,
    ):
        """Names the folder and the interval.

        Args:
          directory: where states are kept while the stage runs.
          every: updates between two saves; 0 never saves.
          last: also save when training is over (another phase follows).
          keep: how many of the last states to keep.
        """
        self.directory = pathlib.Path(directory)
        self.every, self.last, self.keep = every, last, keep
        self._last = 0

    def _commits(self) -> list[pathlib.Path]:
        return sorted(self.directory.glob("step_*.json"))

    def restore(self, state: Any) -> tuple[Any, int, bool]:
        """Returns the newest whole (state, updates done, finished), or the given."""
        for commit in reversed(self._commits()):
            try:
                record = files.read_json(commit)
                tree = load_tree(commit.with_suffix(""), state, record["digests"])
            except ValueError as error:
                logging.warning("skipping a damaged training state: %s", error)
                continue
            self._last = record["step"]
            return tree, record["step"], record["finished"]
        return state, 0, False

    def maybe_save(self, state: Any, step: int, *, over: bool, pending: bool) -> None:
        """Saves at the first log boundary after `every` updates, and at the end.

        Args:
          state: what to save.
          step: updates done.
          over: training has ended here.
          pending: metrics of an unfinished log period wait; it is not saved inside.
        """
        due = step - self._last >= self.every and not pending
        if not self.every or not (due and not over or self.last and over):
            return
        path = self.directory / f"step_{step:08d}"
        digests = save_tree(path, state)
        record = {"step": step, "finished": over, "digests": digests}
        self._last = step
        if hosts.first():
            files.write_json(path.with_suffix(".json"), record)
            for old in self._commits()[: -self.keep]:
                old.unlink()
                shutil.rmtree(old.with_suffix(""), ignore_errors=True)
        hosts.barrier("training state saved")
