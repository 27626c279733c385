"""Looking tokens up and scoring them on a mesh: the numbers of one device."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from stepjax import losses
from stepjax.lm import embedding, sharding

ROWS, TOKENS, WIDTH = 8, 5, 24
# Ways of (data, fsdp, tensor), and the vocabulary, a multiple of `tensor`. Only in the
# first two does `fsdp` divide the part of the vocabulary that a device holds.
MESHES = [
    ((8, 1, 1), 21),
    ((2, 2, 2), 36),
    ((2, 2, 2), 22),
    ((1, 4, 2), 22),
    ((1, 2, 4), 44),
    ((2, 4, 1), 21),
    ((1, 8, 1), 30),
]


@pytest.fixture(params=MESHES, ids=str)
def split(request):
    """A mesh, the vocabulary, and a function that splits an array over the mesh."""
    shape, vocab = request.param
    mesh = sharding.make_mesh(*shape)
    assert mesh.size == 8

    def put(array, *axes):
        return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*axes)))

    return mesh, vocab, put


def draw(vocab):
    """A matrix, states, a gradient of the states, tokens, a gradient of each token."""
    rng = np.random.default_rng(vocab)
    matrix = rng.normal(size=(vocab, WIDTH)).astype(np.float32)
    states, gradient = rng.normal(size=(2, ROWS, TOKENS, WIDTH)).astype(np.float32)
    tokens = rng.integers(0, vocab, (ROWS, TOKENS)).astype(np.int32)
    tokens[0, :2], tokens[-1, -2:] = 0, vocab - 1  # the borders, and more than once
    each = rng.normal(size=(ROWS, TOKENS)).astype(np.float32)
    return matrix, states, gradient, tokens, each


def assert_close(found, expected):
    """Equal up to rounding of float32, where it is not 0 everywhere."""
    expected = np.asarray(expected)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_look_up_on_a_mesh_takes_rows_of_the_table(split):
    mesh, vocab, put = split
    table, _, gradient, tokens, _ = draw(vocab)

    @jax.jit
    def look_up(table, tokens, gradient):
        out, back = jax.vjp(
            lambda table: embedding.embed(table, tokens, "float32", mesh), table
        )
        return out, *back(gradient)

    out, back = look_up(
        put(table, "tensor", "fsdp"),
        put(tokens, sharding.ROWS),
        put(gradient, sharding.ROWS),
    )
    np.testing.assert_array_equal(out, table[tokens])
    expected = np.zeros_like(table)
    np.add.at(expected, tokens, gradient)
    assert_close(back, expected)
    # Neither the states nor the gradient of the table are whole on a device.
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    assert out.addressable_shards[0].data.shape == (ROWS // ways, TOKENS, WIDTH)
    part = vocab // mesh.shape["tensor"], WIDTH // mesh.shape["fsdp"]
    assert back.addressable_shards[0].data.shape == part


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_look_up_gives_the_asked_type(dtype):
    table, _, _, tokens, _ = draw(22)
    expected = jnp.asarray(table[tokens]).astype(dtype)
    look_up = jax.jit(embedding.embed, static_argnums=(2, 3))
    for mesh in (None, sharding.make_mesh(2, 2, 2)):
        out = look_up(table, tokens, dtype, mesh)
        assert out.dtype == dtype
        np.testing.assert_array_equal(out, expected)


# A device has 5 tokens or more. They are scored all at once; in chunks of about 3, the
# last one shorter; one at a time.
@pytest.mark.parametrize("chunk", [1000, 3, 1])
def test_log_probabilities_on_a_mesh_are_those_of_one_device(split, chunk, monkeypatch):
    mesh, vocab, put = split
    columns = vocab // mesh.shape["tensor"]
    monkeypatch.setattr(embedding, "_LOGITS", chunk * columns)
    count = ROWS // (mesh.shape["data"] * mesh.shape["fsdp"]) * TOKENS
    assert chunk != 3 or count % math.ceil(count / math.ceil(count / chunk))
    matrix, states, _, targets, each = draw(vocab)

    @jax.jit
    def on_the_mesh(states, matrix, targets, each):
        out, back = jax.vjp(
            lambda states, matrix: embedding.token_logps(states, matrix, targets, mesh),
            states,
            matrix,
        )
        return out, *back(each)

    @jax.jit
    def plain(states, matrix):
        out, back = jax.vjp(
            lambda states, matrix: losses.token_logps_from_hidden(
                states.reshape(-1, WIDTH), matrix, targets.reshape(-1)
            ),
            states,
            matrix,
        )
        return out, *back(each.reshape(-1))

    out, *backs = on_the_mesh(
        put(states, sharding.ROWS),
        put(matrix, "tensor", "fsdp"),
        put(targets, sharding.ROWS),
        put(each, sharding.ROWS),
    )
    assert out.shape == (ROWS, TOKENS) and out.dtype == jnp.float32
    wanted, *gradients = plain(states, matrix)
    assert_close(out, wanted.reshape(ROWS, TOKENS))
    for found, expected in zip(backs, gradients, strict=True):
        assert_close(found, expected)
    # The gradient of the matrix is not whole on a device.
    part = columns, WIDTH // mesh.shape["fsdp"]
    assert backs[1].addressable_shards[0].data.shape == part


def test_log_probabilities_are_those_of_a_softmax():
    matrix, states, _, targets, _ = draw(22)
    logits = np.asarray(states, np.float64) @ np.asarray(matrix, np.float64).T
    top = logits.max(-1, keepdims=True)
    logps = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    expected = np.take_along_axis(logps, targets[..., None], -1)[..., 0]
    for mesh in (None, sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])):
        out = embedding.token_logps(states, matrix, targets, mesh)
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    out = jax.jit(embedding.token_logps, static_argnums=3)(
        states, matrix, targets, sharding.make_mesh(2, 2, 2)
    )
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
