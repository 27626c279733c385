"""What the backward pass of the decoder computes again changes no gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import random_parameters

from stepjax.lm import model as lm

CONFIG = lm.ModelConfig(
    vocab_size=23,
    hidden_size=12,
    num_layers=5,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    intermediate_size=20,
    tie_embeddings=True,
)

pytestmark = pytest.mark.usefixtures("quick_compiles")


@pytest.mark.parametrize("layers", [2, 5])  # unrolled; one turn of a loop per layer
def test_what_is_computed_again_changes_no_gradient(layers):
    config = dataclasses.replace(CONFIG, num_layers=layers)
    assert lm.unroll(config) == {2: 4, 5: 1}[layers]
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, CONFIG.vocab_size, (2, 40))
    position = np.tile(np.arange(40), (2, 1))
    ends = np.full((2, 40), 40)
    params = random_parameters(lm.abstract_params(lm.Decoder(config)))

    def lowered(remat):
        decoder = lm.Decoder(dataclasses.replace(config, remat=remat))

        def total(params):
            hidden = decoder.apply({"params": params}, tokens, position, ends)
            return (
                hidden * jnp.sin(jnp.arange(hidden.size)).reshape(hidden.shape)
            ).sum()

        return jax.jit(jax.grad(total)).lower(params)

    programs = {name: lowered(name) for name in lm.REMAT}
    # Keeping the results of products, or of nothing, shows in how many there are.
    products = {n: p.as_text().count("dot_general") for n, p in programs.items()}
    assert products["none"] < products["dots"] < products["full"]

    def gradient(program):
        compiled = program.compile()
        return compiled(params), compiled.memory_analysis().temp_size_in_bytes

    results = {name: gradient(program) for name, program in programs.items()}
    wanted, most = results["none"]
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(wanted))
    for got, _ in results.values():
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            got,
            wanted,
        )
    if layers == 5:  # two layers that are unrolled leave little to save
        assert all(size <= most for _, size in results.values())
        assert results["full"][1] < results["dots"][1] < most


def test_an_unknown_remat_is_refused():
    with pytest.raises(ValueError, match="remat='half'; expected one of"):
        dataclasses.replace(CONFIG, remat="half")


def test_a_block_attends_as_it_is_told():
    """It gives its queries, keys and values away, and takes what comes back."""
    config = dataclasses.replace(CONFIG, qkv_bias=False)
    block = lm.Block(config)
    rng = np.random.default_rng(1)
    hidden = jnp.asarray(rng.normal(size=(2, 7, 12)), jnp.float32)
    sin, cos = lm.rotations(config, jnp.arange(7)[None])
    seen = []

    def own_value(query, key, value):
        seen.append((query.shape, key.shape, value.shape))
        return jnp.repeat(value, 2, axis=2), {"kept": key}

    variables = block.init(jax.random.key(0), hidden, sin, cos, own_value)
    params = random_parameters(variables["params"])
    out, kept = block.apply({"params": params}, hidden, sin, cos, own_value)
    assert set(seen) == {((2, 7, 4, 6), (2, 7, 2, 6), (2, 7, 2, 6))}
    assert kept["kept"].shape == (2, 7, 2, 6) and out.shape == hidden.shape

    def nothing(query, key, value):
        return jnp.zeros_like(query), None

    without, kept = block.apply({"params": params}, hidden, sin, cos, nothing)
    assert kept is None
    scale = np.sqrt(np.mean(np.square(hidden), -1, keepdims=True) + 1e-6)
    normed = hidden / scale * params["attention_norm"]["scale"]
    value = np.einsum("rte,ehd->rthd", normed, params["value"])
    mixed = np.einsum("rthd,hde->rte", np.repeat(value, 2, 2), params["out"])

    def mlp(x):
        x = x / np.sqrt(np.mean(np.square(x), -1, keepdims=True) + 1e-6)
        x = x * params["mlp_norm"]["scale"]
        gate, up = x @ params["gate"], x @ params["up"]
        return np.asarray(gate / (1 + np.exp(-gate)) * up) @ params["down"]

    np.testing.assert_allclose(without, hidden + mlp(hidden), atol=1e-5)
    after = hidden + mixed
    np.testing.assert_allclose(out, after + mlp(after), atol=1e-5)
