"""Mi → M(i+1): step-wise DPO on the pairs that Mi made (paper, section 3.4).

All pairs of a solution share one forest row: the problem and the kept steps are the
trunk, each rejected step a branch, so the context is computed once. Only the tokens
of the two steps of a pair are scored. The reference is the model at the start of the
iteration, precomputed as log-probabilities or run live; it is never part of the
trained state.

The batch of an update is laid out when it is asked for, while the devices work on the
update before it (`lm.train.fit`). What is kept of all pairs is some 50 bytes for each,
however long its row is (`stepjax.preferences`).

With `judge.keep` every update also learns from EFT rows (`with_replay`), so that the
model keeps judging while it learns to solve:

    L = L_DPO + keep * (weighted mean of -log pi over the tokens of the judgments).
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from stepjax import forest, losses, pair_trees, preferences
from stepjax.lm import sharding, train
from stepjax.row_trees import tree_sizes

REFERENCES = ("precomputed", "live")


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of the loss.

    Attributes:
      beta: strength of the reference (the paper does not state it).
      label_smoothing: share of the preferences that are taken to be wrong.
      nll_weight: weight of the chosen step's mean token loss; the paper has none.
      reference: one of `REFERENCES`.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    nll_weight: float = 0.0
    reference: str = "precomputed"

    def __post_init__(self):
        if self.reference not in REFERENCES:
            raise ValueError(
                f"dpo.reference={self.reference!r}; expected one of {REFERENCES}."
            )


class Batch(NamedTuple):
    """Pairs of one micro-batch; `make_batches` stacks those of an update, [M, ...].

    Attributes:
      rows: forest rows; pair p has segments 2 p (chosen) and 2 p + 1 (rejected).
      lengths: tokens of each segment, [2 P] float32; 0 marks padding.
      reference: log-probability of each segment under the reference, [2 P] float32;
        zeros when the reference is live.
      replay: judgments to learn from beside the pairs, or None. Their weights sum to
        the number of pairs over the micro-batches of an update.
    """

    rows: forest.Rows
    lengths: np.ndarray
    reference: np.ndarray
    replay: forest.Rows | None = None


class Batches(Sequence[Batch]):
    """The batches of all updates, each laid out when it is asked for, and not kept."""

    def __init__(self, updates: int, lay_out: Callable[[int], Batch]):
        """Keeps how many there are, and the function: number of an update → batch."""
        self._updates, self._lay_out = updates, lay_out

    def __len__(self) -> int:
        return self._updates

    def __getitem__(self, step: int) -> Batch:
        if not 0 <= step < self._updates:
            raise IndexError(f"update {step} of {self._updates}")
        return self._lay_out(step)


def pair_logps(model, params, batch: Batch) -> jax.Array:
    """Returns log pi(s | c) of every segment, [2 P] float32."""
    logps = train.scored_logps(model, params, batch.rows)
    return train.segment_sums(logps, batch.rows, batch.lengths.shape[0])


def loss(
    params, reference, batch: Batch, *, model, options: Options, keep: float = 0.0
):
    """Returns (sum of the pairs' losses, (pairs, sums of the metrics)).

    Args:
      params: the policy.
      reference: parameters of the reference, or None when it is precomputed.
      batch: one micro-batch.
      model: the decoder.
      options: settings.
      keep: weight of the judgments in `batch.replay`.
    """
    policy = pair_logps(model, params, batch)
    if reference is None:
        anchor = batch.reference
    else:
        anchor = jax.lax.stop_gradient(pair_logps(model, reference, batch))
    four = policy[0::2], policy[1::2], anchor[0::2], anchor[1::2]
    real = batch.lengths[0::2] > 0  # [P]
    value = losses.step_dpo_loss(
        *four, beta=options.beta, label_smoothing=options.label_smoothing
    )
    nll = -policy[0::2] / jnp.maximum(batch.lengths[0::2], 1.0)
    metrics = jax.vmap(
        lambda *pair: losses.step_dpo_metrics(
            *(x[None] for x in pair), beta=options.beta
        )
    )(*four)
    metrics |= {"dpo_loss": value, "nll": nll}
    value = value + options.nll_weight * nll
    sums = {name: jnp.where(real, x, 0.0).sum() for name, x in metrics.items()}
    total = jnp.where(real, value, 0.0).sum()
    if batch.replay is not None:
        said = train.scored_logps(model, params, batch.replay)
        sums["replay_nll"] = -(batch.replay.weight * said).sum()
        total = total + keep * sums["replay_nll"]
    return total, (real.sum().astype(jnp.float32), sums)


def fitting_pairs(
    pairs: Sequence[forest.IdPair], row_length: int
) -> tuple[list[forest.IdPair], int]:
    """Returns the pairs that fit a row of training, and how many do not.

    Args:
      pairs: the preferences.
      row_length: most tokens of context, chosen and rejected step together.
    """
    kept = [p for p in pairs if sum(map(len, dataclasses.astuple(p))) <= row_length]
    return kept, len(pairs) - len(kept)


def order(
    pairs: Sequence[forest.IdPair],
    batch_size: int,
    row_length: int,
    *,
    seed: int,
    epochs: int,
    updates: int = 0,
) -> list[np.ndarray]:
    """Returns the places of the pairs of each update, int32; see `make_batches`."""
    own = preferences.of_sequence(pairs)
    sizes = own.sizes.sum(1)
    for number in np.flatnonzero(sizes > row_length):
        pair_trees.check_length(number, sizes[number], row_length)
    groups = own.group(range(len(own)), row_length)
    passes = epochs
    if updates:
        passes = math.ceil(updates / math.ceil(len(own) / batch_size))
    chosen: list[np.ndarray] = []
    for epoch in range(passes):
        shuffled = np.random.default_rng([seed, epoch]).permutation(len(groups))
        flat = itertools.chain.from_iterable(groups[g] for g in shuffled)
        flat = np.fromiter(flat, np.int32, len(own))
        at = range(0, len(flat), batch_size)
        chosen += [flat[start : start + batch_size] for start in at]
    return chosen[: updates or None]


def make_batches(
    pairs: Sequence[forest.IdPair],
    *,
    mesh: Mesh,
    batch_size: int,
    micro_batches: int,
    row_length: int,
    epochs: int,
    updates: int = 0,
    seed: int,
) -> Batches:
    """Returns all updates as host batches of one shape, [M, ...] each.

    Trajectories are shuffled, not single pairs, so that the pairs of a solution stay
    together and share their context.

    Args:
      pairs: the preferences; those of one solution are neighbours. Those that are
        `preferences.Preferences` are read for their batch, and then again.
      mesh: devices.
      batch_size: pairs per update.
      micro_batches: parts of a batch whose gradients are summed.
      row_length: tokens of a row.
      epochs: passes over the pairs.
      updates: if not 0, the number of updates, which then decides instead of `epochs`.
      seed: of the shuffling.

    Raises:
      ValueError: for a pair with an empty part, or one that is longer than a row.
    """
    if not pairs:
        return Batches(0, lambda step: None)
    own = preferences.of_sequence(pairs)
    chosen = order(
        own, batch_size, row_length, seed=seed, epochs=epochs, updates=updates
    )
    share = -(-batch_size // micro_batches)

    def parts_of(update: np.ndarray) -> list[np.ndarray]:
        return [update[i * share : (i + 1) * share] for i in range(micro_batches)]

    parts = (part for update in chosen for part in parts_of(update))
    sizes = [forest.size_of(own.trees(part, row_length), row_length) for part in parts]
    needed, most = np.max(sizes, axis=0).tolist()
    rows = forest.bucket(needed, sharding.row_multiple(mesh))
    scored = forest.bucket(most, 8)

    def lay_out(step: int) -> Batch:
        read = [[own[n] for n in part] for part in parts_of(chosen[step])]
        trees = [_trees(part, row_length) for part in read]
        return jax.tree.map(
            lambda *x: np.stack(x),
            *[_batch(part, row_length, rows, scored, share) for part in trees],
        )

    return Batches(len(chosen), lay_out)


def _trees(pairs: Sequence[forest.IdPair], row_length: int) -> list[forest.Tree]:
    trees, segment = [], 0
    for group in pair_trees.group_by_trunk(pairs, row_length) if pairs else []:
        trees.append(pair_trees.trajectory_tree([pairs[i] for i in group], segment))
        segment += 2 * len(group)
    return trees


def _batch(trees, row_length: int, rows: int, scored: int, pairs: int) -> Batch:
    packed = forest.pack(trees, row_length, rows=rows, scored=scored)
    real = packed.weight > 0
    lengths = np.bincount(packed.segment[real], minlength=2 * pairs)
    lengths = lengths.astype(np.float32)
    return Batch(packed, lengths, np.zeros_like(lengths))


def tokens(batch: Batch) -> tuple[int, int]:
    """Returns how many tokens the pairs of an update have.

    Args:
      batch: from `make_batches`, [M, ...].

    Returns:
      (laid out one by one, which is twice the context and both steps of each pair; in
      trees). What pads the rows and `replay` do not count.
    """
    rows = batch.rows
    after = np.arange(1, rows.tokens.shape[-1] + 1)
    used = (rows.parent >= 0) | (rows.subtree_end > after)  # padding is alone
    ends = np.take_along_axis(rows.position, rows.scored, -1) + 1
    longest = np.zeros_like(batch.lengths, np.int64)  # of each step, with its context
    part = np.broadcast_to(np.arange(len(ends))[:, None, None], ends.shape)
    real = rows.weight > 0
    np.maximum.at(longest, (part[real], rows.segment[real]), ends[real])
    return int(longest.sum()), int(used.sum())


def replay_order(rows: int, batch_size: int, *, seed: int, updates: int) -> np.ndarray:
    """Returns the places of the EFT rows of each update, in shuffled passes.

    Args:
      rows: how many there are.
      batch_size: rows per update.
      seed: of the shuffling.
      updates: how many updates there are.

    Returns:
      [updates, batch_size] int32.
    """
    passes = range(math.ceil(updates * batch_size / rows))
    shuffled = [np.random.default_rng([seed, 1, n]).permutation(rows) for n in passes]
    places = np.concatenate(shuffled)[: updates * batch_size].astype(np.int32)
    return places.reshape(updates, batch_size)


def with_replay(
    batches: Sequence[Batch],
    trees: Sequence[forest.Tree],
    *,
    mesh: Mesh,
    batch_size: int,
    row_length: int,
    seed: int,
) -> Batches:
    """Returns the batches with EFT rows beside their pairs.

    Args:
      batches: from `make_batches`, at least one.
      trees: the EFT rows, from `sft.examples`; at least one. `RowTrees` are made for
        their batch.
      mesh: devices.
      batch_size: EFT rows per update.
      row_length: tokens of a row.
      seed: of the shuffling.
    """
    drawn = replay_order(len(trees), batch_size, seed=seed, updates=len(batches))
    parts = len(batches[0].lengths)

    def parts_of(own: np.ndarray) -> list[list[forest.Tree]]:
        return [[trees[i] for i in own[n::parts]] for n in range(parts)]

    known = tree_sizes(trees)
    groups = (known[own[n::parts]].tolist() for own in drawn for n in range(parts))
    sizes = [forest.size_of(part, row_length) for part in groups]
    needed, most = np.max(sizes, axis=0).tolist()
    rows = forest.bucket(needed, sharding.row_multiple(mesh))
    scored = min(forest.bucket(most, 8), row_length)

    def lay_out(step: int) -> Batch:
        batch, own = batches[step], parts_of(drawn[step])
        packed = [forest.pack(p, row_length, rows=rows, scored=scored) for p in own]
        replay = jax.tree.map(lambda *x: np.stack(x), *packed)
        share = (batch.lengths[:, 0::2] > 0).sum() / replay.weight.sum()
        weight = (replay.weight * share).astype(np.float32)
        return batch._replace(replay=replay._replace(weight=weight))

    return Batches(len(batches), lay_out)


def reference_logps(model, mesh: Mesh):
    """Returns the jitted ``(params, batch) -> [M, 2 P]`` of `with_reference`."""

    def logps(params, batch):
        return jax.lax.map(functools.partial(pair_logps, model, params), batch)

    return jax.jit(logps, out_shardings=sharding.replicated(mesh))


def with_reference(
    model,
    params,
    batches: Sequence[Batch],
    mesh: Mesh,
    on_batch: Callable[[np.ndarray], None] = lambda values: None,
    done: Sequence[np.ndarray] = (),
) -> Batches:
    """Returns the batches with the reference's log-probabilities filled in.

    The next batch is laid out while the devices compute those of the present one.

    Args:
      model: the decoder.
      params: the reference.
      batches: from `make_batches`.
      mesh: devices.
      on_batch: called with the log-probabilities of each batch, [M, 2 P].
      done: the log-probabilities of the first batches, if they are known already.
    """
    logps, values = reference_logps(model, mesh), list(done)
    steps = range(len(values), len(batches))
    batch = batches[steps[0]] if steps else None
    for step in steps:
        computed = logps(params, train.put_batch(mesh, batch))
        batch = batches[step + 1] if step + 1 in steps else None
        values.append(np.asarray(computed))
        on_batch(values[-1])
    return Batches(
        len(batches), lambda step: batches[step]._replace(reference=values[step])
    )
