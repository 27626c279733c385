"""The training step of stepjax: run_stepjax.py WEIGHTS single|forest|separate|check.

WEIGHTS is a Hugging Face directory for the other programs to read; it is written when
it does not exist. The layouts:

  single    the four pairs of dpo_step.py, each a tree: one context and two branches.
  forest    trajectories.py: a problem with all its pairs is one tree.
  separate  the same pairs, each step behind its own copy of the context, rows filled.
  check     prints by how much the gradients of forest and separate differ.
"""

import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import work

from stepjax import dpo, forest
from stepjax.lm import export, sharding, train
from stepjax.lm import model as lm

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


def separate(problems) -> dpo.Batch:
    """Returns the pairs of trajectories, each step behind its own copy of the context.

    A row takes a sequence of an early step and one of a late step, so that no token of
    a row is padding. A micro-batch holds two pairs of each of two problems.
    """
    length = 2 * work.PROMPT + (work.STEPS + 1) * work.STEP_TOKENS
    parts = []
    for first in range(0, work.PROBLEMS, 2):
        for early in range(work.STEPS // 2):
            both = (early, work.STEPS - 1 - early)
            paths = []
            for number, problem in enumerate(problems[first : first + 2]):
                for side in range(2):
                    for order, at in enumerate(both):
                        pair = problem[at]
                        step = pair[1 + side]
                        path = [0.0] * len(pair.context) + [1.0] * len(step)
                        segment = 2 * (2 * number + order) + side
                        paths.append(
                            forest.path_tree(pair.context + step, path, segment)
                        )
            rows = forest.pack(paths, length)
            lengths = np.full(8, work.STEP_TOKENS, np.float32)
            parts.append(dpo.Batch(rows, lengths, np.zeros_like(lengths)))
    batch = jax.tree.map(lambda *x: np.stack(x), *parts)
    assert batch.rows.position.max(-1).all() and (batch.rows.weight > 0).all()
    return batch


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
        batch = separate(work.trajectories(number))
    return train.put_batch(mesh, batch)


def check(params, reference, mesh) -> None:
    """Prints the largest relative difference of a gradient between the two layouts."""

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
    (one, first), (other, second) = (
        gradient(policy, reference, make_batch(layout, mesh, 0))
        for layout in ("forest", "separate")
    )
    differences = jax.tree.map(
        lambda a, b: float(abs(a - b).max() / abs(b).max()), first, second
    )
    worst = max(jax.tree.leaves(differences))
    work.Turns().say(losses=[float(one), float(other)], worst_difference=worst)


def main(directory: str, layout: str) -> None:
    """Prepares the step and serves it."""
    mesh = sharding.make_mesh()
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
