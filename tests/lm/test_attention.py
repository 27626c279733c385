"""Attention over forest rows: one rule, however it is computed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepjax import forest, pair_trees
from stepjax.lm import attention, forest_kernel, sharding

LENGTH = 640  # five blocks of 128
HEADS, KV_HEADS, SIZE = 4, 2, 8

pytestmark = pytest.mark.usefixtures("quick_compiles")


@functools.cache
def rows():
    """Two rows: trajectories with branches, documents, padding at the end."""
    rng = np.random.default_rng(0)

    def step(low, high):
        return tuple(rng.integers(1, 9, rng.integers(low, high)).tolist())

    def trajectory(context):
        pairs = []
        for _ in range(3):
            pairs.append(forest.IdPair(context, step(30, 50), step(10, 60)))
            context += pairs[-1].chosen
        return pair_trees.trajectory_tree(pairs)

    trees = [trajectory(step(60, 70)), trajectory(step(90, 100))]
    trees += [forest.path_tree([1] * n, [0] * n) for n in (100, 140, 90, 150)]
    packed = forest.pack(trees, LENGTH)
    assert packed.tokens.shape == (2, LENGTH) and packed.subtree_end[1, -1] == LENGTH
    return packed


@functools.cache
def inputs():
    """Queries, keys, values, and a gradient of the output."""
    rng = np.random.default_rng(1)
    heads = (HEADS, KV_HEADS, KV_HEADS, HEADS)
    return [
        jnp.asarray(rng.normal(size=(2, LENGTH, n, SIZE)), jnp.float32) for n in heads
    ]


def by_the_rule(query, key, value, ends):
    """Softmax over the seen keys, query by query, in float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    key, value = (np.repeat(x, HEADS // KV_HEADS, 2) for x in (key, value))
    out = np.zeros(query.shape)
    for b, i in np.ndindex(query.shape[:2]):
        seen = [j for j in range(i + 1) if i < ends[b, j]]
        scores = np.einsum("hd,jhd->hj", query[b, i], key[b, seen]) / np.sqrt(SIZE)
        weights = np.exp(scores - scores.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        out[b, i] = np.einsum("hj,jhd->hd", weights, value[b, seen])
    return out


def forward_and_backward(attend):
    query, key, value, gradient = inputs()
    ends = jnp.asarray(rows().subtree_end)

    @jax.jit
    def both(query, key, value, gradient):
        out, back = jax.vjp(lambda *x: attend(*x, ends), query, key, value)
        return out, *back(gradient)

    return both(query, key, value, gradient)


def whole(query, key, value, ends):
    """The plain rule with all scores at once."""
    batch, length = query.shape[:2]
    query = query.reshape(batch, length, KV_HEADS, -1, SIZE).transpose(0, 2, 1, 3, 4)
    key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)
    out = attention._plain(query, key, value, ends, 0).transpose(0, 2, 1, 3, 4)
    return out.reshape(batch, length, HEADS, SIZE)


@functools.cache
def plain():
    return forward_and_backward(whole)


def assert_close(found, expected=None):
    for one, other in zip(found, expected or plain(), strict=True):
        assert float(jnp.abs(other).max()) > 0.5
        np.testing.assert_allclose(one, other, atol=1e-5 * float(jnp.abs(other).max()))


def test_the_plain_rule_is_the_rule():
    query, key, value, _ = inputs()
    some = slice(0, 200)
    expected = by_the_rule(
        query[:, some], key[:, some], value[:, some], rows().subtree_end[:, some]
    )
    np.testing.assert_allclose(plain()[0][:, some], expected, atol=2e-6)


# One chunk; two, the last one short; four; more, the last one short.
@pytest.mark.parametrize("length", [7, 100, 256, 265])
def test_any_number_of_chunks_gives_the_rule(length):
    rng = np.random.default_rng(length)
    heads = HEADS, KV_HEADS, KV_HEADS
    arrays = [rng.normal(size=(2, length, n, SIZE)).astype(np.float32) for n in heads]
    ends = np.arange(1, length + 1) + rng.integers(0, length, (2, length))
    ends = np.minimum(ends, length)
    attend = jax.jit(attention.forest_attention)
    expected = by_the_rule(*arrays, ends)
    np.testing.assert_allclose(attend(*arrays, ends), expected, atol=2e-6)
    causal = attend(*arrays, 0 * ends + 999)
    assert np.abs(causal - expected).max() > 0.1  # the ends matter


@pytest.mark.parametrize("largest", [512, 96])  # 96: scores of a chunk are not kept
def test_query_chunks_give_the_numbers_of_the_plain_rule(largest, monkeypatch):
    monkeypatch.setattr(attention, "_MOST", largest)
    assert attention._FEWEST * attention._CHUNKS < LENGTH  # not the plain rule itself
    assert_close(forward_and_backward(attention.forest_attention))


def test_the_kernel_gives_the_numbers_of_the_plain_rule():
    assert forest_kernel.block_size(LENGTH) == 128
    visible = forest_kernel.visible_blocks(rows().subtree_end, 128)
    assert visible.mean() < 0.4  # there is something to skip, besides what is causal
    kernel = functools.partial(attention.forest_attention, kind="kernel")
    assert_close(forward_and_backward(kernel))


def test_a_row_that_is_no_multiple_of_a_block():
    length = 200
    query, key, value, _ = (x[:, :length] for x in inputs())
    ends = jnp.minimum(rows().subtree_end[:, :length], length)
    found = attention.forest_attention(query, key, value, ends, kind="kernel")
    assert found.shape == (2, length, HEADS, SIZE)
    np.testing.assert_allclose(found, whole(query, key, value, ends), atol=1e-5)


@pytest.mark.parametrize("kind", ["kernel", "chunks"])
def test_on_a_mesh_rows_and_heads_are_split(kind):
    mesh = sharding.make_mesh(2, 1, 2, devices=jax.devices()[:4])
    attend = functools.partial(attention.forest_attention, kind=kind, mesh=mesh)
    assert_close(forward_and_backward(attend))


def test_blocks_that_nobody_sees_are_exactly_those_that_are_not_read():
    ends = np.asarray(rows().subtree_end)
    mask = np.asarray(attention.forest_mask(jnp.asarray(ends)))
    for block in (32, 128):
        blocks = LENGTH // block
        expected = mask.reshape(2, blocks, block, blocks, block).any((2, 4))
        found = np.asarray(forest_kernel.visible_blocks(ends, block))
        np.testing.assert_array_equal(found, expected)
    visits = forest_kernel._visits(jnp.asarray(ends), 128)
    keys = np.asarray(visits.keys).reshape(2, 5, 5)
    queries = np.asarray(visits.queries).reshape(2, 5, 5)
    for row, block in np.ndindex(2, 5):
        for listed, count, seen in (
            (keys, visits.key_count, expected[row, block]),
            (queries, visits.query_count, expected[row, :, block]),
        ):
            count = int(count[row * 5 + block])
            seen = np.flatnonzero(seen).tolist()
            assert listed[row, block, :count].tolist() == seen
            # What is not read repeats the last block, so that it costs no transfer.
            assert set(listed[row, block, count:].tolist()) <= {seen[-1]}


@pytest.mark.parametrize(
    ("length", "block"),
    [(1, 128), (128, 128), (2304, 384), (4096, 512), (640, 128), (1000, 512)],
)
def test_block_sizes(length, block):
    assert forest_kernel.block_size(length) == block
    assert -(-length // block) * block - length < 128  # little padding


def test_what_is_chosen_and_what_is_refused():
    def choose(kind, dtype="bfloat16", size=128):
        return attention.choose(kind, None, dtype, size)

    assert choose("auto") == "chunks"  # on a CPU
    assert choose("kernel") == "kernel"
    with pytest.raises(ValueError, match="attention='flash'; expected one of"):
        choose("flash")
    with pytest.raises(ValueError, match="'cudnn' on cpu .* model.attention='chunks'"):
        choose("cudnn")


def test_cudnn_is_refused_where_it_wastes_memory_or_cannot_run(monkeypatch):
    monkeypatch.setattr(attention, "_platform", lambda mesh: "gpu")
    monkeypatch.setattr(jax, "__version_info__", (0, 11, 0))
    with pytest.raises(ValueError, match="expected JAX 0.12.0 or newer.*'chunks'"):
        attention.choose("cudnn", None, "bfloat16", 64)
    monkeypatch.setattr(jax, "__version_info__", (0, 12, 0))
    assert attention.choose("cudnn", None, "bfloat16", 64) == "cudnn"
    for dtype, size in (("float32", 64), ("bfloat16", 60), ("bfloat16", 256)):
        with pytest.raises(ValueError, match=f"'{dtype}' and head_dim={size}"):
            attention.choose("cudnn", None, dtype, size)
    assert attention.choose("auto", None, "bfloat16", 64) == "chunks"
    states = jnp.zeros((1, 7, 1, 8), jnp.bfloat16)
    ends = jnp.full((1, 7), 7, jnp.int32)
    with pytest.raises(ValueError, match="rows of 7 tokens.*Make train.row_length"):
        attention.forest_attention(states, states, states, ends, kind="cudnn")
