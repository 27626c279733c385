"""The decoder's attention in blocks, and what its backward pass computes again."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepjax.lm import attention
from stepjax.lm import model as model_lib

CONFIG = model_lib.ModelConfig(
    vocab_size=23,
    hidden_size=12,
    num_layers=5,  # more than are unrolled
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    intermediate_size=20,
    tie_embeddings=True,
    embedding_std=1.0,
    init_std=0.4,
)


def formula(query, key, value, subtree_end):
    """Attention of forest rows, one query and head at a time, in float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    group = query.shape[2] // key.shape[2]
    out = np.zeros_like(query)
    for row, at, head in np.ndindex(*query.shape[:3]):
        seen = [j for j in range(at + 1) if at < subtree_end[row, j]]
        keys, values = key[row, seen, head // group], value[row, seen, head // group]
        weight = np.exp(keys @ query[row, at, head] / math.sqrt(query.shape[-1]))
        out[row, at, head] = weight / weight.sum() @ values
    return out


# One block; two, the last one short; four; four, the last one short.
@pytest.mark.parametrize("length", [7, 100, 256, 265])
def test_forest_attention_is_the_rule_in_any_number_of_blocks(length):
    rng = np.random.default_rng(length)
    shapes = ((2, length, 4, 6), (2, length, 2, 6), (2, length, 2, 6))
    inputs = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    ends = np.arange(1, length + 1) + rng.integers(0, length, (2, length))
    ends = np.minimum(ends, length)
    got = jax.jit(attention.forest_attention)(*inputs, ends)
    expected = formula(*inputs, ends)
    np.testing.assert_allclose(got, expected, atol=2e-6)
    causal = attention.forest_attention(*inputs, 0 * ends + 999)
    assert np.abs(causal - expected).max() > 0.1  # the ends matter


def test_what_is_computed_again_changes_no_gradient():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, CONFIG.vocab_size, (2, 40))
    position = np.tile(np.arange(40), (2, 1))
    ends = np.full((2, 40), 40)
    model = model_lib.Decoder(CONFIG)
    params = model_lib.init(model, jax.random.key(0))

    def gradient(remat):
        decoder = model_lib.Decoder(dataclasses.replace(CONFIG, remat=remat))

        def total(params):
            hidden = decoder.apply({"params": params}, tokens, position, ends)
            return (
                hidden * jnp.sin(jnp.arange(hidden.size)).reshape(hidden.shape)
            ).sum()

        compiled = jax.jit(jax.grad(total)).lower(params).compile()
        return compiled(params), compiled.memory_analysis().temp_size_in_bytes

    results = {name: gradient(name) for name in model_lib.REMAT}
    wanted, most = results["none"]
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(wanted))
    for got, size in results.values():
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            got,
            wanted,
        )
        assert size <= most
    assert results["full"][1] < results["dots"][1] < most
    with pytest.raises(ValueError, match="remat='half'; expected one of"):
        dataclasses.replace(CONFIG, remat="half")
