"""The losses in `shard_map` over eight devices; needs jax, numpy and pytest only."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from losses_formulas import same

from stepjax.losses import (
    step_dpo,
    step_dpo_loss,
    step_logps,
    step_logps_from_hidden,
)
from stepjax.preference_losses import ipo_averaged_loss, step_lengths
from stepjax.reference_free_losses import orpo_loss

ROWS, LENGTH, VOCAB, WIDTH = 16, 6, 11, 5


@pytest.fixture
def mesh():
    devices = np.array(jax.devices())
    assert devices.size == 8  # conftest.py asks for them
    return jax.sharding.Mesh(devices, ("data",))


def make_inputs():
    """Hidden states, unembedding, tokens, and masks of different lengths."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(ROWS, LENGTH, WIDTH)).astype(np.float32)
    unembedding = rng.normal(size=(VOCAB, WIDTH)).astype(np.float32)
    tokens = rng.integers(0, VOCAB, (ROWS, LENGTH))
    mask = np.arange(LENGTH) >= rng.integers(1, LENGTH, (ROWS, 1))
    return hidden, unembedding, tokens, mask


def plain(hidden, unembedding, tokens, mask):
    return step_logps(hidden @ unembedding.T, tokens, mask)


chunked = functools.partial(step_logps_from_hidden, max_scored=LENGTH, chunk=4)


def dpo(logps, lengths):
    return step_dpo_loss(logps[::2], logps[1::2], 0 * logps[::2] - 5, 0 * logps[1::2])


def ipo(logps, lengths):
    four = logps[::2], logps[1::2], 0 * logps[::2], 0 * logps[1::2]
    return ipo_averaged_loss(*four, lengths[::2], lengths[1::2])


def orpo(logps, lengths):
    return orpo_loss(logps[::2], logps[1::2], lengths[::2], lengths[1::2])


@pytest.mark.parametrize("logps", [plain, chunked], ids=["plain", "chunked"])
@pytest.mark.parametrize("loss", [dpo, ipo, orpo])
def test_eight_devices_give_the_losses_and_the_gradients_of_one(mesh, loss, logps):
    hidden, unembedding, tokens, mask = make_inputs()

    def losses(hidden, unembedding, tokens, mask):
        return loss(logps(hidden, unembedding, tokens, mask), step_lengths(mask))

    rows = (P("data"), P(), P("data"), P("data"))
    split = jax.shard_map(losses, mesh=mesh, in_specs=rows, out_specs=P("data"))

    def mean(function):
        def run(hidden, unembedding):
            each = function(hidden, unembedding, tokens, mask)
            return each.mean(), each

        return jax.jit(jax.grad(run, (0, 1), has_aux=True))

    got, expected = mean(split)(hidden, unembedding), mean(losses)(hidden, unembedding)
    jax.tree.map(same, got, expected)
    assert np.ptp(expected[1]) > 0.1
    assert np.abs(expected[0][1]).max() > 1e-3


def test_a_training_step_that_averages_over_devices_is_that_of_one(mesh):
    _, _, tokens, mask = make_inputs()
    params = np.random.default_rng(1).normal(size=(2, VOCAB, VOCAB)).astype(np.float32)
    other = np.roll(tokens, 1, axis=1)
    names = ("chosen_tokens", "chosen_mask", "rejected_tokens", "rejected_mask")
    batch = dict(zip(names, (tokens, mask, other, mask[::-1]), strict=True))

    def apply(params, tokens):
        return params[tokens]

    def gradient(params, reference, batch):
        return jax.grad(step_dpo, 1, has_aux=True)(apply, params, reference, batch)

    @jax.jit
    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(P(), P(), P("data")),
        out_specs=P(),
    )
    def split(params, reference, batch):
        # Each device differentiates its own copy; then all average.
        params = jax.lax.pcast(params, "data", to="varying")
        return jax.lax.pmean(gradient(params, reference, batch), "data")

    got, expected = split(*params, batch), gradient(*params, batch)
    jax.tree.map(same, got, expected)
    assert np.abs(expected[0]).max() > 1e-3
    assert jnp.isfinite(expected[1]["rewards/margins"])
