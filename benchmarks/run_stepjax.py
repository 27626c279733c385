"""The training step of stepjax: run_stepjax.py WEIGHTS LAYOUT.

WEIGHTS is a Hugging Face directory for the other programs to read; it is written when
it does not exist. The layouts:

  single    the four pairs of dpo_step.py, each a tree: one context and two branches.
  forest    trajectories.py: a problem with all its pairs is one tree.
  pair      the same pairs, each a tree of its own: one context and two branches.
  separate  the same pairs, each step behind its own copy of the context.
  check     prints by how much the gradients of pair and separate differ from forest.
  flops     prints the arithmetic of a training step in these three layouts.
"""

import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import work

from stepjax import dpo, forest, pair_trees
from stepjax.lm import export, sharding, train
from stepjax.lm import model as lm
from stepjax.planning import flops

LAYOUTS = "forest", "pair", "separate"  # of trajectories.py
CONFIG = lm.ModelConfig(**work.MODEL, remat="dots")
MODEL = lm.Decoder(CONFIG)
OPTIONS = dpo.Options(beta=work.BETA, reference="live")
LOSS = functools.partial(dpo.loss, model=MODEL, options=OPTIONS)


def trees(mesh, pairs, row_length: int) -> dpo.Batch:
    """Returns one batch of pairs as stepjax lays them out."""
    (batch,) = dpo.make_batches(
        [forest.IdPair(*pair) for pair in pairs],
        mesh=mesh,
        batch_size=len(pairs),
        micro_batches=1,
        row_length=row_length,
        epochs=1,
        seed=0,
    )
    return batch


def alone(problems, shared: bool) -> dpo.Batch:
    """Returns the pairs of trajectories as a batch in which no two pairs share tokens.

    A row takes an early and a late pair of a problem, or one side of each, so that no
    token of a row is padding. A micro-batch has four rows.

    Args:
      problems: from `work.trajectories`.
      shared: whether the two steps of a pair share its context.
    """
    contexts = 2 * work.PROMPT + (work.STEPS - 1) * work.STEP_TOKENS
    length = contexts + 2 * work.STEP_TOKENS * (1 + shared)
    ways = 4 if shared else 2  # problems of a micro-batch
    parts = []
    for first in range(0, work.PROBLEMS, ways):
        for early in range(work.STEPS // 2):
            trees = []
            for number, problem in enumerate(problems[first : first + ways]):
                both = problem[early], problem[work.STEPS - 1 - early]
                for side in (0,) if shared else (0, 1):
                    for order, pair in enumerate(both):
                        segment = 2 * (2 * number + order) + side
                        trees.append(_tree(pair, segment, shared))
            rows = forest.pack(trees, length)
            lengths = np.full(4 * ways, work.STEP_TOKENS, np.float32)
            parts.append(dpo.Batch(rows, lengths, np.zeros_like(lengths)))
    batch = jax.tree.map(lambda *x: np.stack(x), *parts)
    assert batch.rows.position.max(-1).all() and (batch.rows.weight > 0).all()
    return batch


def _tree(pair, segment: int, shared: bool) -> forest.Tree:
    if shared:
        return pair_trees.trajectory_tree([forest.IdPair(*pair)], segment)
    step = pair[1 + segment % 2]
    weights = [0.0] * len(pair.context) + [1.0] * len(step)
    return forest.path_tree(pair.context + step, weights, segment)


def make_batch(layout: str, mesh, number: int) -> dpo.Batch:
    """Returns the batch of one training step on the device."""
    if layout == "single":
        pairs = work.single_pairs(number)
        batch = trees(mesh, pairs, work.CONTEXT + 2 * work.STEP)
    elif layout == "forest":
        pairs = sum(work.trajectories(number), [])
        length = work.PROMPT + 2 * work.STEPS * work.STEP_TOKENS
        batch = trees(mesh, pairs, length)
    else:
        batch = alone(work.trajectories(number), shared=layout == "pair")
    return train.put_batch(mesh, batch)


def check(params, reference, mesh) -> None:
    """Prints the largest relative difference of a gradient between the layouts."""

    @jax.jit
    def gradient(params, reference, batch):
        def add(total, micro):
            (value, (count, _)), slope = jax.value_and_grad(LOSS, has_aux=True)(
                params, reference, micro
            )
            return jax.tree.map(lambda a, b: a + b, total, (value, count, slope)), None

        zero = (0.0, 0.0, jax.tree.map(jnp.zeros_like, params))
        (value, count, slope), _ = jax.lax.scan(add, zero, batch)
        return value / count, jax.tree.map(lambda x: x / count, slope)

    # The policy is not the reference, so that pairs have different weights.
    policy = jax.tree.map(lambda x: 1.2 * x, params)
    (loss, first), *others = (
        gradient(policy, reference, make_batch(layout, mesh, 0)) for layout in LAYOUTS
    )
    losses, worst = [float(loss)], []
    for value, slope in others:
        differences = jax.tree.map(
            lambda a, b: float(abs(a - b).max() / abs(b).max()), first, slope
        )
        losses.append(float(value))
        worst.append(max(jax.tree.leaves(differences)))
    work.Turns().say(losses=losses, worst_differences=worst)


def count(mesh) -> None:
    """Prints tokens of the rows, and GFLOP of matrix products, of each layout."""
    params = lm.unboxed(lm.abstract_params(MODEL))
    optimizer = train.make_optimizer(train.OptimizerOptions(work.LEARNING_RATE), 1000)
    state = train.TrainState(params, jax.eval_shape(optimizer.init, params))
    update, facts = train.make_update(LOSS, optimizer), {}
    for layout in LAYOUTS:
        batch = make_batch(layout, mesh, 0)
        total = sum(flops.count(update.trace(state, params, batch), devices=1))
        facts[layout] = {"tokens": batch.rows.tokens.size, "gflop": total / 1e9}
    work.Turns().say(**facts)


def main(directory: str, layout: str) -> None:
    """Prepares the step and serves it."""
    mesh = sharding.make_mesh()
    if layout == "flops":
        return count(mesh)
    params = train.init_params(MODEL, mesh, seed=0)
    if not pathlib.Path(directory).exists():
        export.save_hf(params, CONFIG, directory)
    reference = jax.tree.map(lambda x: x.copy(), params)
    if layout == "check":
        return check(params, reference, mesh)
    options = train.OptimizerOptions(work.LEARNING_RATE, clip_norm=work.CLIP_NORM)
    optimizer = train.make_optimizer(options, steps=1000)
    update = train.make_update(
        LOSS, optimizer, train.state_shardings(params, optimizer)
    )
    state = train.init_state(params, optimizer)
    del params

    def step(number):
        nonlocal state
        batch = make_batch(layout, mesh, number)
        state, metrics = update(state, reference, batch)
        jax.block_until_ready(state)
        return {name: float(metrics[name]) for name in ("loss", "grad_norm")}

    work.serve(step)


if __name__ == "__main__":
    main(*sys.argv[1:])
