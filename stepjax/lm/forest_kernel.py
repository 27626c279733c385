"""Attention over forest rows as a TPU kernel that skips what no token sees (Pallas).

The rule is that of `stepjax.lm.attention`: query i sees key j if and only if
``j <= i < subtree_end[j]``. Queries and keys are cut into blocks. A block of queries
reads a block of keys only when at least one of its queries sees at least one of these
keys, which is known from ``subtree_end`` before the kernel starts. So a causal row of T
tokens costs half of T x T, and packed documents and branches of a tree do not pay for
each other. Inside a block the rule is applied to every pair, scores never leave the
chip, and the backward pass computes them again (FlashAttention, arXiv 2205.14135 and
2307.08691).

Axis names: B rows, T tokens, H query heads, K key/value heads, D head size, N blocks.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

_LANES = 128  # blocks are multiples of it
_LARGEST = 512  # tokens of a block
MASKED = -1e30  # score of what is not seen; finite, so that there is no NaN

SAVED = "attention"  # name of what a remat policy may keep (see `stepjax.lm.model`)


class Visits(NamedTuple):
    """Which blocks see which; flat int32 arrays, so that they fit the scalar memory.

    Attributes:
      keys: for each block of queries, the blocks of keys that it sees, then repeats of
        the last one, [B * N * N].
      key_count: for each block of queries, how many blocks of keys it sees, [B * N].
      queries: for each block of keys, the blocks of queries that see it, then repeats
        of the last one, [B * N * N].
      query_count: for each block of keys, how many blocks of queries see it, [B * N].
    """

    keys: jax.Array
    key_count: jax.Array
    queries: jax.Array
    query_count: jax.Array


def block_size(length: int) -> int:
    """Returns the tokens of a block for rows of `length`, a multiple of 128."""
    lanes = -(-length // _LANES)
    most = _LARGEST // _LANES
    return _LANES * max(n for n in range(1, most + 1) if lanes % n == 0)


def visible_blocks(subtree_end: jax.Array, block: int) -> jax.Array:
    """Returns which blocks of queries see which blocks of keys, [B, N, N] bool.

    Args:
      subtree_end: [B, T] int32, T a multiple of `block`; numpy or JAX.
      block: tokens of a block.
    """
    batch, length = subtree_end.shape
    last = subtree_end.reshape(batch, length // block, block).max(-1)  # [B, N]
    index = jnp.arange(length // block)
    query, key = index[:, None], index[None, :]
    return (key <= query) & (query * block < last[:, None, :])


def _visits(subtree_end: jax.Array, block: int) -> Visits:
    visible = visible_blocks(subtree_end, block)

    def listed(seen):
        """Returns the seen blocks, then repeats of the last one, and their number."""
        order = jnp.argsort(~seen, axis=-1, stable=True)
        count = seen.sum(-1)
        place = jnp.minimum(jnp.arange(seen.shape[-1]), count[..., None] - 1)
        order = jnp.take_along_axis(order, place, -1)
        return order.astype(jnp.int32).reshape(-1), count.astype(jnp.int32).reshape(-1)

    return Visits(*listed(visible), *listed(visible.swapaxes(1, 2)))


def forest_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    subtree_end: jax.Array,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Attention of forest rows over themselves, on one device.

    Args:
      query: [B, T, H, D].
      key: [B, T, K, D], H a multiple of K.
      value: [B, T, K, D].
      subtree_end: [B, T] int32.
      interpret: run the kernel's steps as plain JAX, for tests without a TPU.

    Returns:
      [B, T, H, D] in the query's dtype.
    """
    length = query.shape[1]
    block = block_size(length)
    padding = -length % block

    def heads_first(x):
        """Returns x [B, T, heads, D] as [B, heads, T, D], T padded to whole blocks."""
        return jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))).swapaxes(1, 2)

    # A padding token sees only itself.
    alone = jnp.arange(length, length + padding, dtype=jnp.int32) + 1
    alone = jnp.broadcast_to(alone, (query.shape[0], padding))
    ends = jnp.concatenate([subtree_end.astype(jnp.int32), alone], 1)
    visits = _visits(ends, block)
    inputs = map(heads_first, (query, key, value))
    out = _attend(*inputs, ends[:, None], visits, interpret)
    return out.swapaxes(1, 2)[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(query, key, value, ends, visits, interpret):
    """Returns [B, H, T, D] of heads-first queries, keys and values; ends [B, 1, T]."""
    return _forward(query, key, value, ends, visits, interpret)[0]


def _attend_forward(query, key, value, ends, visits, interpret):
    out, logsum = _forward(query, key, value, ends, visits, interpret)
    out, logsum = checkpoint_name(out, SAVED), checkpoint_name(logsum, SAVED)
    return out, (query, key, value, ends, visits, out, logsum)


def _attend_backward(interpret, residuals, gradient):
    query, key, value, ends, visits, out, logsum = residuals
    inner = (gradient.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1)
    inner = inner[:, :, None]  # [B, H, 1, T]
    inputs = (query, key, value, ends, gradient, logsum, inner)
    d_query = _query_gradient(*inputs, visits, interpret)
    d_key, d_value = _key_gradients(*inputs, visits, interpret)
    return d_query, d_key, d_value, None, None


_attend.defvjp(_attend_forward, _attend_backward)


# The kernels. Each runs once for every visit of one block to another one and sums up in
# scratch memory; q, k, v are blocks of queries, keys, values, `do` is the gradient of
# the output, `logsum` and `inner` are one number per query.


def _seen(query_block, key_block, ends, shape, key_axis):
    """Returns the rule for one pair of blocks, bool of `shape`.

    Args:
      query_block: number of the block of queries.
      key_block: number of the block of keys.
      ends: subtree ends of the keys, along `key_axis`.
      shape: of the result.
      key_axis: axis of the keys; queries have the other one.
    """
    block = shape[0]
    query = query_block * block + jax.lax.broadcasted_iota(
        jnp.int32, shape, 1 - key_axis
    )
    key = key_block * block + jax.lax.broadcasted_iota(jnp.int32, shape, key_axis)
    return (key <= query) & (query < ends)


def product(a, b, over_a, over_b):
    """Returns the matrix product over axis `over_a` of a and `over_b` of b, float32."""
    axes = (((over_a,), (over_b,)), ((), ()))
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


def _forward_kernel(keys, count, q, k, v, ends, out, logsum, top, total, mixed):
    row, mine, visit = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    blocks = pl.num_programs(2)
    at = row * blocks + mine

    @pl.when(visit == 0)
    def _():
        top[...] = jnp.full_like(top, MASKED)
        total[...] = jnp.zeros_like(total)
        mixed[...] = jnp.zeros_like(mixed)

    @pl.when(visit < count[at])
    def _():
        scores = product(q[0, 0], k[0, 0], 1, 1) / math.sqrt(q.shape[-1])
        other = keys[at * blocks + visit]
        seen = _seen(mine, other, ends[0], scores.shape, 1)
        scores = jnp.where(seen, scores, MASKED)
        highest = jnp.maximum(top[...], scores.max(1, keepdims=True))
        # A query that has seen no key yet has weights of 1; at its first key, `kept`
        # is 0 and undoes them.
        weights = jnp.exp(scores - highest)
        kept = jnp.exp(top[...] - highest)
        top[...] = highest
        total[...] = total[...] * kept + weights.sum(1, keepdims=True)
        mixed[...] = mixed[...] * kept + product(weights.astype(v.dtype), v[0, 0], 1, 0)

    @pl.when(visit == count[at] - 1)
    def _():
        out[0, 0] = (mixed[...] / total[...]).astype(out.dtype)
        logsum[0, 0] = (top[...] + jnp.log(total[...])).T


def _query_kernel(keys, count, q, k, v, ends, do, logsum, inner, out, total):
    row, mine, visit = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    blocks = pl.num_programs(2)
    at = row * blocks + mine
    scale = 1 / math.sqrt(q.shape[-1])

    @pl.when(visit == 0)
    def _():
        total[...] = jnp.zeros_like(total)

    @pl.when(visit < count[at])
    def _():
        scores = product(q[0, 0], k[0, 0], 1, 1) * scale
        other = keys[at * blocks + visit]
        seen = _seen(mine, other, ends[0], scores.shape, 1)
        weights = jnp.exp(jnp.where(seen, scores, MASKED) - logsum[0, 0].T)
        slope = product(do[0, 0], v[0, 0], 1, 1) - inner[0, 0].T
        slope = (weights * slope).astype(k.dtype)
        total[...] += product(slope, k[0, 0], 1, 0)

    @pl.when(visit == count[at] - 1)
    def _():
        out[0, 0] = (total[...] * scale).astype(out.dtype)


def _key_kernel(
    queries, count, q, k, v, ends, do, logsum, inner, d_key, d_value, key_sum, value_sum
):
    row, mine = pl.program_id(0), pl.program_id(2)
    head, visit = pl.program_id(3), pl.program_id(4)
    blocks = pl.num_programs(2)
    at = row * blocks + mine
    scale = 1 / math.sqrt(q.shape[-1])

    @pl.when((head == 0) & (visit == 0))
    def _():
        key_sum[...] = jnp.zeros_like(key_sum)
        value_sum[...] = jnp.zeros_like(value_sum)

    @pl.when(visit < count[at])
    def _():
        scores = product(k[0, 0], q[0, 0], 1, 1) * scale  # keys down, queries across
        other = queries[at * blocks + visit]
        seen = _seen(other, mine, ends[0].T, scores.shape, 0)
        weights = jnp.exp(jnp.where(seen, scores, MASKED) - logsum[0, 0])
        value_sum[...] += product(weights.astype(do.dtype), do[0, 0], 1, 0)
        slope = product(v[0, 0], do[0, 0], 1, 1) - inner[0, 0]
        slope = (weights * slope).astype(q.dtype)
        key_sum[...] += product(slope, q[0, 0], 1, 0)

    @pl.when((head == pl.num_programs(3) - 1) & (visit == count[at] - 1))
    def _():
        d_key[0, 0] = (key_sum[...] * scale).astype(d_key.dtype)
        d_value[0, 0] = value_sum[...].astype(d_value.dtype)


# How the kernels are called: grids, and which block of each array a visit gets.


def _by_query(query, key):
    """Returns (grid, specs of a query's, a key's, ends', a statistic's block)."""
    batch, heads, length, size = query.shape
    block, group = block_size(length), heads // key.shape[1]
    blocks = length // block

    def key_block(b, q, visit, keys):
        return keys[(b * blocks + q) * blocks + visit]

    grid = (batch, heads, blocks, blocks)
    mine = pl.BlockSpec((1, 1, block, size), lambda b, h, q, s, *_: (b, h, q, 0))
    other = pl.BlockSpec(
        (1, 1, block, size),
        lambda b, h, q, s, keys, _: (
            b,
            jax.lax.div(h, group),
            key_block(b, q, s, keys),
            0,
        ),
    )
    end = pl.BlockSpec(
        (1, 1, block), lambda b, h, q, s, keys, _: (b, 0, key_block(b, q, s, keys))
    )
    statistic = pl.BlockSpec((1, 1, 1, block), lambda b, h, q, s, *_: (b, h, 0, q))
    return grid, mine, other, end, statistic


def _dimensions(*semantics):
    return pltpu.CompilerParams(dimension_semantics=semantics)


def _forward(query, key, value, ends, visits, interpret):
    grid, mine, other, end, statistic = _by_query(query, key)
    batch, heads, length, size = query.shape
    block = block_size(length)
    column = pltpu.VMEM((block, 1), jnp.float32)
    call = pl.pallas_call(
        _forward_kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=grid,
            in_specs=[mine, other, other, end],
            out_specs=[mine, statistic],
            scratch_shapes=[column, column, pltpu.VMEM((block, size), jnp.float32)],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(query.shape, query.dtype),
            jax.ShapeDtypeStruct((batch, heads, 1, length), jnp.float32),
        ],
        compiler_params=_dimensions("parallel", "parallel", "parallel", "arbitrary"),
        interpret=interpret,
        name="forest_attention",
    )
    return call(visits.keys, visits.key_count, query, key, value, ends)


def _query_gradient(
    query, key, value, ends, gradient, logsum, inner, visits, interpret
):
    grid, mine, other, end, statistic = _by_query(query, key)
    sums = pltpu.VMEM((block_size(query.shape[2]), query.shape[3]), jnp.float32)
    call = pl.pallas_call(
        _query_kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=grid,
            in_specs=[mine, other, other, end, mine, statistic, statistic],
            out_specs=mine,
            scratch_shapes=[sums],
        ),
        out_shape=jax.ShapeDtypeStruct(query.shape, query.dtype),
        compiler_params=_dimensions("parallel", "parallel", "parallel", "arbitrary"),
        interpret=interpret,
        name="forest_attention_query_gradient",
    )
    inputs = (query, key, value, ends, gradient, logsum, inner)
    return call(visits.keys, visits.key_count, *inputs)


def _key_gradients(query, key, value, ends, gradient, logsum, inner, visits, interpret):
    batch, heads, length, size = query.shape
    kv_heads = key.shape[1]
    group, block = heads // kv_heads, block_size(length)
    blocks = length // block

    def query_block(b, k, visit, queries):
        return queries[(b * blocks + k) * blocks + visit]

    mine = pl.BlockSpec((1, 1, block, size), lambda b, h, k, g, s, *_: (b, h, k, 0))
    other = pl.BlockSpec(
        (1, 1, block, size),
        lambda b, h, k, g, s, queries, _: (
            b,
            h * group + g,
            query_block(b, k, s, queries),
            0,
        ),
    )
    end = pl.BlockSpec((1, 1, block), lambda b, h, k, g, s, *_: (b, 0, k))
    statistic = pl.BlockSpec(
        (1, 1, 1, block),
        lambda b, h, k, g, s, queries, _: (
            b,
            h * group + g,
            0,
            query_block(b, k, s, queries),
        ),
    )
    sums = pltpu.VMEM((block, size), jnp.float32)
    shape = jax.ShapeDtypeStruct(key.shape, key.dtype)
    call = pl.pallas_call(
        _key_kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(batch, kv_heads, blocks, group, blocks),
            in_specs=[other, mine, mine, end, other, statistic, statistic],
            out_specs=[mine, mine],
            scratch_shapes=[sums, sums],
        ),
        out_shape=[shape, shape],
        compiler_params=_dimensions(
            "parallel", "parallel", "parallel", "arbitrary", "arbitrary"
        ),
        interpret=interpret,
        name="forest_attention_key_gradients",
    )
    inputs = (query, key, value, ends, gradient, logsum, inner)
    return call(visits.queries, visits.query_count, *inputs)
