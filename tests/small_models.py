"""Decoders that compile in no time, and how several test files sample from one."""

import jax.numpy as jnp
import numpy as np

from stepjax.lm import model as lm
from stepjax.lm.generate import Decoding


def small_decoder(vocab_size, mesh=None, *, layers=2, feed_forward=24):
    """Returns a decoder of width 16 with two heads of 8."""
    config = lm.ModelConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        num_layers=layers,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        intermediate_size=feed_forward,
    )
    return lm.Decoder(config, mesh)


# Four heads, and caches that two devices can split.
FOUR_HEADS = lm.Decoder(
    lm.ModelConfig(
        vocab_size=48,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        intermediate_size=48,
    )
)
_NO_STOPS = jnp.array([[0], [1]]) + jnp.zeros((2, 48), jnp.int32)
SIX_TOKENS = Decoding(0, 0.7, 0.95, _NO_STOPS, vocab=48, budget=6)


def some_ids(seed, count):
    """Draws ids of the vocabulary of `FOUR_HEADS`."""
    return np.random.default_rng(seed).integers(0, 48, count).tolist()
