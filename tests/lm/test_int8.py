"""Matrices of 8 bits: how far they are from their own, and what decoding makes of them.

The expected products are those of the integers times their scales, in full precision.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import random_parameters
from small_models import FOUR_HEADS, some_ids
from test_generate_meshes import search_like

from stepjax.lm import decode, generate, int8, lora, sharding
from stepjax.lm import model as lm

pytestmark = pytest.mark.usefixtures("quick_compiles")
# Matrix of a layer → its axes that a product sums over, after that of layers.
SUMMED = {name: (1,) for name in lora.LAYERS} | {"out": (1, 2)}


def parameters(config=FOUR_HEADS.config, seed=3):
    return random_parameters(lm.abstract_params(lm.Decoder(config)), seed)


def quantised(params, dtype="float32"):
    return int8.quantised(params, functools.partial(lm.frozen, dtype=dtype))


def dequantised(params):
    """Returns plain parameters: the integers times their scales."""
    layers = dict(params["layers"])
    for name, axes in SUMMED.items():
        scale = np.expand_dims(layers.pop(f"{name}_scale"), axes)
        layers[name] = jnp.asarray(np.asarray(layers[name], np.float32) * scale)
    return {**params, "layers": layers}


def test_no_number_is_off_by_more_than_half_a_step():
    params = parameters()
    matrix = params["layers"]["gate"]
    params["layers"]["gate"] = matrix.at[1, :, 5].set(0.0).at[0, :, 2].multiply(1e-6)
    layers = quantised(params)["layers"]
    for name, axes in SUMMED.items():
        plain = np.asarray(params["layers"][name])
        integers = np.asarray(layers[name])
        scale = np.asarray(layers[f"{name}_scale"])
        assert integers.dtype == np.int8 and integers.shape == plain.shape
        assert scale.dtype == np.float32
        assert scale.shape == tuple(np.delete(plain.shape, axes))
        wide = np.expand_dims(scale, axes)
        off = np.abs(integers.astype(np.float64) * wide - plain)
        assert (off <= wide * (0.5 + 1e-4)).all(), name
        most = np.abs(integers.astype(int)).max(axes)
        expected = np.full(scale.shape, 127)
        if name == "gate":
            expected[1, 5] = 0
            assert scale[1, 5] == 1
        np.testing.assert_array_equal(most, expected)


def test_everything_but_the_matrices_is_in_the_compute_type():
    params = parameters()
    made, frozen = quantised(params, "bfloat16"), lm.frozen(params, "bfloat16")
    for name in SUMMED:
        for tree in (made["layers"], frozen["layers"]):
            del tree[name]
        del made["layers"][f"{name}_scale"]
    assert jax.tree.structure(made) == jax.tree.structure(frozen)
    for a, b in zip(*map(jax.tree.leaves, (made, frozen)), strict=True):
        assert a.dtype == b.dtype == jnp.bfloat16
        np.testing.assert_array_equal(a, b)


def logits(config, params, ids):
    """Logits of ids, the last half of them behind a cache of the first half."""
    half = len(ids) // 2
    tokens, start = jnp.asarray(ids).reshape(1, 1, -1), jnp.zeros((1, 1), jnp.int32)

    @jax.jit
    def both_parts(params):
        contexts = generate.empty_contexts(config, 1, 8, "float32")
        shared = (generate._contexts(contexts, None, jnp.zeros(1, jnp.int32), 8),)
        run = functools.partial(decode.forward, config, params)
        first, new = run(tokens[..., :half], start, shared)
        suffix = decode.write(decode.empty_suffix(new, len(ids)), new)
        second, _ = run(tokens[..., half:], start, shared, suffix=suffix)
        return lm.logits(params, jnp.concatenate([first, second], 2))

    return np.asarray(both_parts(params))[0, 0]


@pytest.mark.parametrize(  # unrolled, and one by one
    ("layers", "dtype"), [(2, "float32"), (6, "bfloat16")]
)
def test_decoding_multiplies_with_the_integers_times_their_scales(layers, dtype):
    config = dataclasses.replace(FOUR_HEADS.config, num_layers=layers, dtype=dtype)
    params, ids = parameters(config), some_ids(1, 14)
    small = quantised(params, dtype)
    found = logits(config, lm.by_layer(small) if layers > 4 else small, ids)
    wide = dataclasses.replace(config, dtype="float32")
    products = off(found, logits(wide, dequantised(small), ids))
    integers = off(found, logits(wide, params, ids))
    # What bfloat16 alone does to this model: its weights and states are rounded too.
    rounding = off(logits(config, params, ids), logits(wide, params, ids))
    assert products < (1e-5 if dtype == "float32" else 1.5 * rounding)
    assert 1e-3 < integers < 0.1 + rounding


def off(found, expected):
    """Returns the relative error of logits."""
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def test_adapters_are_added_in_the_compute_type():
    options = lora.Options(2, 4.0)
    config = dataclasses.replace(FOUR_HEADS.config, adapters=options)
    params, ids = parameters(config), some_ids(2, 10)
    small = quantised(params)
    assert small["layers"]["query_lora"]["a"].dtype == jnp.float32
    expected = logits(config, dequantised(small), ids)
    np.testing.assert_allclose(logits(config, small, ids), expected, atol=1e-3)
    without = {n: x for n, x in small["layers"].items() if not n.endswith("_lora")}
    plain = logits(FOUR_HEADS.config, {**small, "layers": without}, ids)
    assert np.abs(plain - expected).max() > 0.1


def test_eight_devices_sample_as_one_does(one_device, capfd):
    params = parameters()
    one, one_scores = search_like(one_device, quantised(params))
    mesh = sharding.make_mesh(2, 2, 2)
    splits = sharding.param_shardings(mesh, lm.abstract_params(FOUR_HEADS))
    made = quantised(jax.device_put(params, splits))
    for a, b in zip(*map(jax.tree.leaves, (quantised(params), made)), strict=True):
        np.testing.assert_array_equal(a, b)
    splits = int8.shardings(splits)
    assert jax.tree.structure(splits) == jax.tree.structure(made)
    placed = jax.device_put(made, splits)
    scale = placed["layers"]["gate_scale"]
    assert scale.addressable_data(0).size * 2 == scale.size
    eight, eight_scores = search_like(mesh, placed)
    assert "Involuntary full rematerialization" not in capfd.readouterr().err
    for a, b in zip(one, eight, strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_allclose(a.logps, b.logps, atol=2e-4)
    np.testing.assert_allclose(one_scores, eight_scores, atol=2e-4)
