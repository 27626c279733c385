"""Whether stepjax computes here what it computes on a CPU: ``stepjax check``.

A decoder of two layers runs what a run does, once each: a forward pass of forest rows,
the same sequences as plain rows, a draw behind a cached context, two updates of
step-DPO, and a save that is read again. What depends on the device is compared with
numbers that were stored on a CPU. It takes a minute, and needs neither data nor
weights.
"""

import dataclasses
import functools
import importlib.metadata
import pathlib
import tempfile
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stepjax import dpo, forest, pair_trees
from stepjax.lm import checkpoint, draws, generate, sampler, sharding, stops, train
from stepjax.lm import model as lm
from stepjax.run.text_table import text_table

# Largest difference that is taken for rounding, of log-probabilities near -40. NVIDIA
# GPUs round the factors of a float32 product to 10 bits (TF32) and TPUs to 7
# (bfloat16), unless JAX is told otherwise; in bfloat16, a CPU differs by 0.11. A key
# too many or too few changes these numbers by more than 1.
ROUNDING = {"cpu": 1e-3, "gpu": 0.1, "tpu": 0.5}
_HALF = 0.5  # the same for bfloat16, everywhere

_VOCAB, _LENGTH, _PAIRS, _DRAWN = 96, 48, 8, 8
_SHAPE = lm.ModelConfig(
    vocab_size=_VOCAB,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=64,
    embedding_std=0.5,
    init_std=0.15,
)

_OPTIONS = dpo.Options(beta=0.5, reference="live")
_RATE = train.OptimizerOptions(1e-4)


class Measured(NamedTuple):
    """What a device computes.

    Attributes:
      forest: log-probability of both steps of each pair, in forest rows, [2 P].
      plain: the same, each step in a row of its own behind a copy of its context.
      half: the same as `forest`, computed in bfloat16.
      drawn: ids sampled behind two contexts, four rows each, [2, 4, `_DRAWN`].
      logps: sum of each row's log-probabilities, as the sampler gives them, [2, 4].
      scored: the same, scored once more behind the same contexts, [2, 4].
      losses: of two updates of step-DPO on the same pairs.
      gradient: norm of the first update's gradient.
      saved: whether the state that was saved is, bit for bit, the state that was read.
    """

    forest: np.ndarray
    plain: np.ndarray
    half: np.ndarray
    drawn: np.ndarray
    logps: np.ndarray
    scored: np.ndarray
    losses: np.ndarray
    gradient: float
    saved: bool


class Stored(NamedTuple):
    """What a CPU computes; the attributes of `Measured` are explained there.

    Attributes:
      forest: see `Measured`.
      drawn: see `Measured`.
      second_loss: of step-DPO, after one update.
      gradient: see `Measured`.
    """

    forest: np.ndarray
    drawn: np.ndarray
    second_loss: float
    gradient: float


# By JAX 0.10.2.
STORED = Stored(
    forest=np.array(
        [
            -24.6306,
            -35.7553,
            -33.6832,
            -36.4652,
            -44.9037,
            -41.3158,
            -40.0404,
            -33.2769,
            -30.796,
            -29.8404,
            -32.8504,
            -32.0533,
            -42.6708,
            -32.3733,
            -47.6285,
            -35.1852,
        ]
    ),
    drawn=np.array(
        [
            [
                [95, 0, 14, 70, 12, 17, 14, 26],
                [14, 70, 19, 86, 14, 38, 70, 45],
                [38, 44, 25, 25, 25, 25, 35, 74],
                [74, 55, 37, 27, 47, 66, 94, 85],
            ],
            [
                [59, 35, 9, 1, 94, 32, 78, 31],
                [10, 10, 62, 67, 30, 35, 71, 7],
                [19, 21, 69, 89, 66, 23, 11, 35],
                [33, 66, 43, 11, 10, 21, 69, 30],
            ],
        ]
    ),
    second_loss=0.555425,
    gradient=12.84381,
)


class Row(NamedTuple):
    """One comparison: its name, the largest difference, the largest one allowed."""

    name: str
    difference: float
    limit: float

    @property
    def good(self) -> bool:
        """Whether the difference is a number, and small enough."""
        return bool(self.difference <= self.limit)


def check(say: Callable[[str], None] = lambda text: None) -> str:
    """Runs everything on the devices that are there; returns the report.

    Args:
      say: called with a line before each part.

    Raises:
      ValueError: when a difference is more than rounding; the message is the report.
    """
    say(f"{versions()}\n{devices()}")
    rows = compare(measure(say), jax.devices()[0].platform)
    shown = [
        {
            "comparison": row.name,
            "difference": f"{row.difference:.2g}",
            "at most": f"{row.limit:.2g}",
            "result": "good" if row.good else "WRONG",
        }
        for row in rows
    ]
    report = f"{text_table(shown)}{devices()}\n"
    wrong = [row.name for row in rows if not row.good]
    if wrong:
        raise ValueError(
            f"{report}{len(wrong)} of {len(rows)} comparisons are wrong: "
            f"{'; '.join(wrong)}; expected differences of rounding. What a run "
            "computes on these devices cannot be trusted: try another version of JAX "
            "or of its plugin for them."
        )
    return f"{report}all {len(rows)} comparisons are good"


def versions() -> str:
    """Returns the versions of what computes, in a line."""
    names = ("stepjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    found = []
    for name in (*names, "jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            if name in names:
                found.append(f"{name} (not installed as a package)")
    return ", ".join(found)


def devices() -> str:
    """Returns the devices and their memory, in a line."""
    every = jax.devices()
    kind = f"{len(every)} x {every[0].device_kind} ({every[0].platform})"
    stats = every[0].memory_stats() or {}
    if "bytes_limit" not in stats:
        return f"{kind}; JAX does not say how much memory a device has"
    gib = 2**30
    return (
        f"{kind}; of the first one JAX may use {stats['bytes_limit'] / gib:.2f} GiB, "
        f"uses {stats.get('bytes_in_use', 0) / gib:.3f} and has used at most "
        f"{stats.get('peak_bytes_in_use', 0) / gib:.3f}"
    )


def measure(say: Callable[[str], None] = lambda text: None) -> Measured:
    """Computes everything on a mesh of all devices.

    Args:
      say: called with a line before each part.
    """
    mesh = sharding.make_mesh()
    model = lm.Decoder(_SHAPE, mesh)
    params = _params(model)
    problems = _problems()
    say("forest rows and plain rows")
    trees = [
        pair_trees.trajectory_tree(pairs, 2 * number * len(pairs))
        for number, pairs in enumerate(problems)
    ]
    paths = []
    for place, pair in enumerate(pair for pairs in problems for pair in pairs):
        for side, step in enumerate((pair.chosen, pair.rejected)):
            weights = [0.0] * len(pair.context) + [1.0] * len(step)
            paths.append(
                forest.path_tree(pair.context + step, weights, 2 * place + side)
            )
    batches = [_batch(mesh, layout) for layout in (trees, paths)]
    logps = dpo.reference_logps(model, mesh)
    in_forest, in_rows = (np.asarray(logps(params, batch))[0] for batch in batches)
    half = lm.Decoder(dataclasses.replace(_SHAPE, dtype="bfloat16"), mesh)
    in_half = np.asarray(dpo.reference_logps(half, mesh)(params, batches[0]))[0]
    say("a draw")
    drawn, sampled, scored = _draw(mesh, model, params, problems)
    say("two updates")
    optimizer = train.make_optimizer(_RATE, 10)
    loss = functools.partial(dpo.loss, model=model, options=_OPTIONS)
    shardings = train.state_shardings(params, optimizer)
    update = train.make_update(loss, optimizer, shardings)
    state = train.init_state(jax.tree.map(jnp.copy, params), optimizer)
    losses, norms = [], []
    for _ in range(2):
        state, metrics = update(state, params, batches[0])
        losses.append(float(metrics["loss"]))
        norms.append(float(metrics["grad_norm"]))
    say("a save")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "state"
        digests = checkpoint.save_tree(path, state)
        read = checkpoint.load_tree(path, state, digests)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), state, read)
    return Measured(
        in_forest,
        in_rows,
        in_half,
        drawn,
        sampled,
        scored,
        np.asarray(losses),
        norms[0],
        all(jax.tree.leaves(same)),
    )


def compare(found: Measured, platform: str) -> list[Row]:
    """Returns every comparison of what a device computes.

    Args:
      found: from `measure`.
      platform: of the devices, as JAX names it; see `ROUNDING`.
    """
    limit = ROUNDING.get(platform, max(ROUNDING.values()))

    def row(name: str, a, b, allowed: float = limit) -> Row:
        return Row(name, float(np.abs(np.asarray(a) - np.asarray(b)).max()), allowed)

    others = float(np.mean(found.drawn != STORED.drawn))
    of_ids = 0.0 if platform == "cpu" else 0.5  # one other id changes all that follow
    return [
        row("forest rows, against a CPU's numbers", found.forest, STORED.forest),
        row("forest rows, against plain rows here", found.forest, found.plain),
        row("forest rows, bfloat16 against float32", found.half, found.forest, _HALF),
        row("drawn log-probabilities, scored again", found.logps, found.scored),
        row("share of ids that a CPU does not draw", others, 0.0, of_ids),
        row("first loss of step-DPO, against ln 2", found.losses[0], np.log(2), 1e-5),
        row("second loss, against a CPU's number", found.losses[1], STORED.second_loss),
        row("gradient norm, against a CPU's number", found.gradient, STORED.gradient),
        row("share of saves that come back changed", 1 - found.saved, 0.0, 0.0),
    ]


def _params(model: lm.Decoder):
    """Returns parameters from numpy, so that every device gets the same bits."""
    boxed = lm.abstract_params(model)
    rng = np.random.default_rng(18)

    def make(path, leaf):
        name = jax.tree_util.keystr(path)
        if "norm" in name:
            return np.ones(leaf.shape, np.float32)
        std = _SHAPE.embedding_std if "embedding" in name else _SHAPE.init_std
        return (std * rng.standard_normal(leaf.shape)).astype(np.float32)

    made = jax.tree_util.tree_map_with_path(make, lm.unboxed(boxed))
    return jax.device_put(made, sharding.param_shardings(model.mesh, boxed))


def _problems() -> list[list[forest.IdPair]]:
    """Returns the pairs of two solutions; contexts grow by the chosen steps."""
    rng = np.random.default_rng(3)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(rng.integers(1, _VOCAB, count).tolist())

    problems = []
    for _ in range(2):
        context, pairs = ids(9), []
        for step in range(_PAIRS // 2):
            pair = forest.IdPair(context, ids(3 + step), ids(4))
            context += pair.chosen
            pairs.append(pair)
        problems.append(pairs)
    return problems


def _batch(mesh, trees: list[forest.Tree]) -> dpo.Batch:
    """Returns trees as a batch of one part, on the devices."""
    needed, _ = forest.size(trees, _LENGTH)
    rows = forest.bucket(needed, sharding.row_multiple(mesh))
    packed = forest.pack(trees, _LENGTH, rows=rows)
    real = packed.weight > 0
    lengths = np.bincount(packed.segment[real], minlength=2 * _PAIRS)
    batch = dpo.Batch(packed, lengths.astype(np.float32), np.zeros(2 * _PAIRS, "f4"))
    return train.put_batch(mesh, jax.tree.map(lambda x: np.asarray(x)[None], batch))


def _draw(mesh, model, params, problems) -> tuple[np.ndarray, ...]:
    """Returns sampled ids, their log-probabilities, and these scored once more."""
    slots = forest.bucket(len(problems), sharding.row_multiple(mesh))
    behind = sampler.Sampler(model, params, mesh, slots, _LENGTH)
    table = stops.compile_stops([b"x"] * _VOCAB, (), ())
    how = generate.Decoding(7, 1.0, 0.95, jnp.asarray(table), _VOCAB, _DRAWN)
    contexts = {slot: pairs[-1].context for slot, pairs in enumerate(problems)}
    paths = {
        slot: [draws.candidate_path(1, slot, 1, 0, row) for row in range(4)]
        for slot in contexts
    }
    found = sampler.sample_behind(behind, contexts, paths, how)
    ids = np.asarray([[row.ids for row in found[slot]] for slot in contexts])
    logps = np.asarray([[row.logps for row in found[slot]] for slot in contexts])
    behind.hold({slot: context[:-1] for slot, context in contexts.items()})
    again = [
        [(*contexts[slot][-1:], *row.ids) for row in found[slot]] for slot in found
    ]
    counts = np.full(ids.shape[:2], _DRAWN, np.int32)
    scored = behind.score(again, counts, vocab=_VOCAB, slots=range(len(again)))
    return ids, logps.sum(-1), scored
