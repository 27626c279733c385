"""Parameters and training states on disk, with a digest of every array.

Orbax writes the arrays (to a temporary name, then renamed), and all of it is on the
disk (fsync) before a small JSON file with the digest of every array is written. Arrays
are loaded only when that file is there, and only when their digests agree with it.
"""

import errno
import functools
import hashlib
import logging as logging_of_python
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from orbax.checkpoint import v1 as ocp

from stepjax import os_errors
from stepjax.lm import files, hosts, pieces
from stepjax.lm.pieces import Arrays, Holder

# Errors of a file that is not there, or is something else than what was saved.
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EINVAL)
_AGAIN = "Delete the folder that holds it and run the same command again."


def array_digests(tree: Any) -> dict[str, str]:
    """Returns path → digest of dtype, shape and every bit of each array of a tree.

    For each element, its bits and its index are mixed in eight ways (MurmurHash3's
    finaliser). The devices add each mixture up over their elements, and the digest is
    the SHA-256 of dtype, shape and the eight sums. So it does not depend on how an
    array is split, no device needs the whole array, and several hosts compute it
    together. It detects damaged and exchanged arrays; it does not stop a forger.
    """
    flat = jax.tree_util.tree_leaves_with_path(tree)
    leaves = [leaf for _, leaf in flat]
    sums = jax.device_get(_bit_sums(leaves))
    return {
        jax.tree_util.keystr(path): _digest(leaf, numbers)
        for (path, leaf), numbers in zip(flat, sums, strict=True)
    }


def _digest(array: Any, sums: Any) -> str:
    digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
    digest.update(np.asarray(sums, "<u4").tobytes())
    return digest.hexdigest()


@jax.jit
def _bit_sums(leaves):
    return [_bit_sum(leaf) for leaf in leaves]


def _bit_sum(array, first=0):
    """Returns eight sums modulo 2^32, [8] uint32.

    The sums of an array are those of its parts added up, if `first` is the index of
    each part's first element in it.
    """
    kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[array.dtype.itemsize]
    if array.dtype == bool:
        array = array.astype(jnp.uint8)

    def of_salt(salt):
        bits = jax.lax.bitcast_convert_type(array, kind).astype(jnp.uint32)
        place, stride = jnp.full(bits.shape, first, jnp.uint32), 1
        for axis in reversed(range(bits.ndim)):
            index = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
            place += index * jnp.uint32(stride % 2**32)
            stride *= bits.shape[axis]
        return _mix(_mix(place ^ salt) ^ bits).sum(dtype=jnp.uint32)

    # One sum after the other: side by side, XLA for CPU keeps what each one adds up.
    salts = np.arange(1, 9, dtype=np.uint32) * np.uint32(0x9E3779B9)
    return jax.lax.map(of_salt, salts)


def _mix(x):
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _synchronous() -> ocp.Context:
    """Returns the settings of orbax with which a folder that fails ends the save.

    In the background, its threads would wait 5 minutes for a folder that is not made,
    and the process would not end before them.
    """
    context = ocp.Context()
    context.asynchronous.create_directories_asynchronously = False
    return context


def _say_errors_once() -> None:
    """Keeps tracebacks of errors off the screen that orbax also raises.

    Its threads log them, and tensorstore prints that nobody waits for them any more.
    The caller of `save_tree` or `load_tree` says the same in a sentence.
    """
    logging.get_absl_logger().addFilter(_is_news)
    logging_of_python.getLogger("asyncio").addFilter(_is_news)
    if sys.unraisablehook is not _print_news:
        _hooks.append(sys.unraisablehook)
        sys.unraisablehook = _print_news


_hooks: list[Callable] = []  # what `_say_errors_once` has replaced


def _is_news(record: logging_of_python.LogRecord) -> bool:
    where = f"{record.pathname} {record.getMessage()}"  # asyncio names it in its text
    return not (record.exc_info and "orbax" in where)


def _print_news(what: Any) -> None:
    coroutine = getattr(what.object, "cr_code", None)  # given up after an error
    of_orbax = "orbax" in getattr(coroutine, "co_filename", "")
    if str(what.exc_value) != "Event loop is closed" and not of_orbax:
        _hooks[-1](what)


def save_tree(path: str | os.PathLike, tree: Any) -> dict[str, str]:
    """Saves a tree of arrays as a directory, replacing what is there.

    Several hosts save together: each writes the parts that its devices hold.

    Returns:
      The digests of its arrays, which `load_tree` needs.

    Raises:
      OSError: when it cannot be written.
    """
    path = pathlib.Path(path).absolute()
    if hosts.first():
        if path.exists():
            shutil.rmtree(path)
        files.make_folder(path.parent)
    hosts.barrier("room for arrays")
    _say_errors_once()
    try:
        with _synchronous():
            ocp.save(path, tree)
    except Exception as error:
        if found := os_errors.find(error):
            raise _named(found, path) from error
        raise
    if hosts.first():
        files.sync_all(path)
    return array_digests(tree)


def _named(error: OSError, path: pathlib.Path) -> OSError:
    """Returns an error of a disk that names a file; not all errors of orbax do."""
    name = error.filename or str(path)
    return OSError(error.errno, os.strerror(error.errno), name)


def load_tree(path: str | os.PathLike, like: Any, digests: dict[str, str]) -> Any:
    """Loads a tree of arrays in the shapes, types and shardings of another.

    Args:
      path: directory of `save_tree`.
      like: tree of arrays or ShapeDtypeStructs with shardings.
      digests: what `save_tree` returned.

    Raises:
      ValueError: when it is damaged or an array's digest differs.
      OSError: when the disk cannot be read; what is on it may be good.
    """
    path = pathlib.Path(path).absolute()
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
    )
    tree = _read(path, abstract)
    _compare(path, digests, array_digests(tree))
    return tree


def load_pieces(
    path: str | os.PathLike, holders: dict[str, Holder], digests: dict[str, str]
) -> tuple[dict, dict[str, np.ndarray]]:
    """Loads float32 parameters piece by piece, to lie on the devices in another form.

    Each array is read into the memory of this process, which must be the only one.

    Args:
      path: directory of `save_tree`.
      holders: of every parameter, from `pieces.holders`.
      digests: what `save_tree` returned.

    Returns:
      (parameters; how many of their numbers are not finite, see `weights.refuse`).

    Raises:
      ValueError: when it is damaged or an array's digest differs.
      OSError: when the disk cannot be read; what is on it may be good.
    """
    path = pathlib.Path(path).absolute()
    arrays, counts, found = {}, {}, {}
    for name, holder in holders.items():
        keys = name.split("/")
        array = _read_alone(path, keys, holder.shape)
        arrays[name], counts[name], sums = _take(array, holder)
        found["".join(f"[{key!r}]" for key in keys)] = _digest(array, sums)
        del array  # before the next one is read
    _compare(path, digests, found)
    return pieces.tree(arrays), counts


def _take(array: np.ndarray, holder: Holder) -> tuple[Arrays, np.ndarray, np.ndarray]:
    """Returns (arrays on the devices, counts of `weights.refuse`, eight sums)."""
    into = tuple(pieces.empty(*target) for target in holder.targets)
    counts, total = [], np.zeros(8, np.uint32)
    parts = enumerate(array) if holder.stacked else [(None, array)]
    for layer, part in parts:
        piece = jax.device_put(part, holder.piece_split)
        into, bad, sums = _insert(into, piece, layer, holder=holder)
        bad, sums = jax.device_get((bad, sums))  # waits: one piece is there at most
        counts.append(bad)
        total += sums
        del piece
    return into, np.array(counts if holder.stacked else counts[0]), total


@functools.partial(jax.jit, static_argnames="holder", donate_argnames="into")
def _insert(into, piece, layer, *, holder: Holder):
    """Returns (arrays with a piece in them, its numbers not finite, its sums)."""
    first = jnp.uint32(0 if layer is None else layer)
    sums = _bit_sum(piece, first * jnp.uint32(piece.size % 2**32))
    return *holder.write(into, piece, layer), sums


def _read_alone(
    path: pathlib.Path, keys: Sequence[str], shape: tuple[int, ...]
) -> np.ndarray:
    """Returns one float32 array of a tree, in the host's memory."""
    # Orbax returns this one, which takes no memory, when there is none in the tree.
    like = np.broadcast_to(np.float32(np.nan), shape)
    for key in reversed(keys):
        like = {key: like}
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        (array,) = jax.tree.leaves(_read(path, like))
    if (array.shape, array.dtype) == (shape, np.float32):
        return array
    raise ValueError(
        f"{path}: array {'/'.join(keys)} is {array.dtype}{array.shape}; expected "
        f"float32{shape}, as it was saved. {_AGAIN}"
    )


def _read(path: pathlib.Path, like: Any) -> Any:
    """Returns what a directory holds; see `load_tree` for errors."""
    _say_errors_once()
    try:
        return ocp.load(path, like)
    except Exception as error:
        found = os_errors.find(error)
        if found and found.errno not in _MISSING:
            raise _named(found, path) from error
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}: {str(error)[:200]}); "
            f"expected the arrays as they were saved. {_AGAIN}"
        ) from error


def _compare(
    path: pathlib.Path, digests: dict[str, str], found: dict[str, str]
) -> None:
    """Raises ValueError when the digests of what was found are not those expected."""
    wrong = sorted(
        k for k in digests.keys() | found.keys() if digests.get(k) != found.get(k)
    )
    if wrong:
        raise ValueError(
            f"{path}: array {wrong[0]} is not the one that was saved ({len(wrong)} "
            f"differ); expected the digests of its manifest. {_AGAIN}"
        )


class TrainSaver:
    """Keeps the training states of one stage; a damaged one is passed over.

    Attributes:
      period: metrics of each update since the last log line, of the restored state.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        every: int,
        *,
        last: bool = False,
        keep: int = 2,
        say: Callable[[str], None] = logging.warning,
    ):
        """Names the folder and the interval.

        Args:
          directory: holds the states while the stage runs.
          every: updates between two saves; 0 never saves.
          last: whether to save at the end of training, because another phase follows.
          keep: number of newest states to keep.
          say: called with a sentence about each damaged state.
        """
        self.directory = pathlib.Path(directory)
        self.every, self.last, self.keep = every, last, keep
        self.period: list[dict[str, float]] = []
        self._last, self._say = 0, say

    def _commits(self) -> list[pathlib.Path]:
        return sorted(self.directory.glob("step_*.json"))

    def restore(self, state: Any) -> tuple[Any, int, bool]:
        """Returns (state, updates done, finished) of the newest undamaged state.

        Without one it returns (the given state, 0, False).
        """
        for commit in reversed(self._commits()):
            try:
                record = files.read_json(commit, sealed=True)
                tree = load_tree(commit.with_suffix(""), state, record["digests"])
            except ValueError as error:
                reason = str(error).partition("; expected")[0]
                self._say(
                    f"a damaged training state is passed over, and an older one or the "
                    f"start is taken: {reason}"
                )
                continue
            self._last, self.period = record["step"], record.get("period", [])
            return tree, record["step"], record["finished"]
        return state, 0, False

    def maybe_save(self, state: Any, step: int, *, over: bool, pending: bool) -> None:
        """Saves when `every` updates have passed since the last save.

        Args:
          state: what to save.
          step: updates done.
          over: training ends with this update; then `last` decides.
          pending: a log period is open; saving waits for its end.
        """
        if over:
            due = self.last
        else:
            due = step - self._last >= self.every and not pending
        if self.every and due:
            self.save(state, step, over=over)

    def save(
        self, state: Any, step: int, *, over: bool = False, period: Sequence[dict] = ()
    ) -> None:
        """Saves now, unless this update is saved already.

        Args:
          state: what to save.
          step: updates done.
          over: training ends with this update.
          period: metrics of each update since the last log line.
        """
        if step == self._last:
            return
        path = self.directory / f"step_{step:08d}"
        digests = save_tree(path, state)
        record = {"step": step, "finished": over, "digests": digests}
        if period:  # a JSON number keeps every bit of a float32
            record["period"] = [
                {name: float(value) for name, value in metrics.items()}
                for metrics in period
            ]
        self._last = step
        if hosts.first():
            files.write_json(path.with_suffix(".json"), record, sealed=True)
            for old in self._commits()[: -self.keep]:
                old.unlink()
                shutil.rmtree(old.with_suffix(""), ignore_errors=True)
        hosts.barrier("training state saved")
