"""Attention of a decoding step over cached keys, as a TPU kernel (Pallas).

In a decoding step every row has one new token. On v5p XLA writes the result of every
matrix product to HBM, and so also the scores of all rows on a context, which are then
read twice. Here scores never leave the chip: keys and values pass through it once,
block by block, and a running softmax keeps a maximum, a sum and the mixed values of
each query (FlashAttention, arXiv 2205.14135).

Keys and values are those of all layers, and the kernel fetches the blocks of one layer:
a layer that is cut out before would be a copy in HBM.

Axis names: L layers, G groups (each reads one context), W rows of a group, K key/value
heads, J query heads that read one key head, N caches of a level (each is read by W / N
consecutive rows), S keys of a cache, Q queries that read one cache (W / N times J), D
head size.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh, PartitionSpec

from stepjax.lm import attention, sharding
from stepjax.lm.forest_kernel import MASKED, product

_V5P = ("TPU v5", "TPU v5p")  # names that JAX has for it
_SUBLANES = 8  # rows of a tile of float32
_ROWS = 16  # rows of a tile of bfloat16; blocks of keys are multiples of it
_LARGEST = 1024  # keys of one cache in a block
_TOGETHER = 2048  # keys of several caches in a block
_SCORES = 1 << 18  # most scores of a block; float32, so 1 MiB


class Cached(NamedTuple):
    """Cached keys of all layers, and which of them are seen.

    Attributes:
      key: [L, G, K, N, S, D].
      value: of the same shape.
      layer: the layer that is read, scalar int32.
      begin: first key of each cache that is seen, [G, N] int32.
      end: first key of each cache that is not seen any more, [G, N] int32; a cache is
        empty where it is not larger than `begin`.
    """

    key: jax.Array
    value: jax.Array
    layer: jax.Array
    begin: jax.Array
    end: jax.Array


def choose(kind: str, mesh: Mesh | None) -> Callable[..., jax.Array] | None:
    """Returns `attend` for a mesh, or None where plain JAX is to be used.

    "auto" is the kernel on v5p, and plain JAX elsewhere: for v4 and v5e XLA keeps
    scores on the chip by itself, seen in their compiled programs. "kernel" runs
    interpreted on other platforms, for tests.

    Args:
      kind: ``model.attention``, one of `attention.KINDS`.
      mesh: whose devices run it; None for the default backend.
    """
    device = mesh.devices.flat[0] if mesh else jax.devices()[0]
    if kind != "kernel" and (kind != "auto" or device.device_kind not in _V5P):
        return None
    return functools.partial(attend, mesh=mesh, interpret=device.platform != "tpu")


def attend(
    query: jax.Array,
    cached: Sequence[tuple[Cached, int]],
    new: attention.Level,
    *,
    mesh: Mesh | None,
    interpret: bool,
) -> jax.Array:
    """`attention.cached_attention` for rows of one token.

    Args:
      query: [G, W, 1, H, D].
      cached: levels of cached keys, and how many keys of each level to read.
      new: the new tokens, N = W and S = 1.
      mesh: what groups and heads are split over; None on one device.
      interpret: run the kernel's steps as plain JAX.

    Returns:
      [G, W, 1, H, D] in the query's dtype.
    """
    levels, reaches = zip(*cached, strict=True)
    groups, width, _, heads, size = query.shape
    query = query.reshape(groups, width, new.key.shape[1], -1, size).swapaxes(1, 2)
    heads_of_a_key = query.shape[3]
    # With whole tiles XLA takes the queries of several rows together without a copy.
    padding = -heads_of_a_key % _SUBLANES
    query = jnp.pad(query, ((0, 0),) * 3 + ((0, padding), (0, 0)))

    def on_a_device(query, levels, new):
        rows = query.shape[:4]  # [G, K, W, J]
        scores = jnp.einsum(
            "gkwjd,gkwsd->gkwj", query, new.key, preferred_element_type=jnp.float32
        )
        seen = new.mask[:, None, :, :, 0]  # [G, 1, W, 1]
        parts = [(new.value, jnp.where(seen, scores / math.sqrt(size), MASKED))]
        for level, reach in zip(levels, reaches, strict=True):
            shape = (*rows[:2], level.key.shape[3], -1, size)
            mixed, logsum = cached_attention(
                query.reshape(shape), level, reach=reach, interpret=interpret
            )
            parts.append((mixed.reshape(*rows, size), logsum.reshape(rows)))
        # Each part is a softmax of its own; its sum says how much it weighs.
        highest = functools.reduce(jnp.maximum, [logsum for _, logsum in parts])
        weights = [jnp.exp(logsum - highest)[..., None] for _, logsum in parts]
        out = sum(w * mixed for w, (mixed, _) in zip(weights, parts, strict=True))
        return (out / sum(weights)).astype(query.dtype)

    if mesh is not None:
        by_group = PartitionSpec(sharding.ROWS)
        by_head = PartitionSpec(sharding.ROWS, "tensor")
        stacked = PartitionSpec(None, *by_head)
        level = Cached(stacked, stacked, PartitionSpec(), by_group, by_group)
        new_tokens = attention.Level(by_head, by_head, by_group)
        # Inside, devices exchange nothing, so there is nothing to check.
        on_a_device = jax.shard_map(
            on_a_device,
            mesh=mesh,
            in_specs=(by_head, [level] * len(levels), new_tokens),
            out_specs=by_head,
            check_vma=False,
        )
    out = on_a_device(query, list(levels), new)[:, :, :, :heads_of_a_key]
    return out.swapaxes(1, 2).reshape(groups, width, 1, heads, size)


def block_shape(caches: int, queries: int, keys: int) -> tuple[int, int]:
    """Returns how many caches, and how many keys of each, the kernel reads at once.

    Short caches are read together, because every turn of a kernel has a fixed cost.

    Args:
      caches: N; the result's number of caches divides it.
      queries: Q.
      keys: S, or as many of them as are read; the result's is a multiple of 16.
    """
    most = max(1, min(_LARGEST, _SCORES // queries) // _ROWS)
    tiles = -(-keys // _ROWS)
    count = -(-tiles // most)
    block = _ROWS * -(-tiles // count)  # as few blocks, of one size
    together = [n for n in range(1, caches + 1) if caches % n == 0]
    return max(n for n in together if n == 1 or n * block <= _TOGETHER), block


def bytes_moved(query: jax.Array, key: jax.Array, reach: int) -> int:
    """Returns the bytes that the kernel reads from HBM and writes to it, at most.

    Queries, and all blocks of keys and values of one layer up to `reach`, are read
    once; the output and its log-sums, both float32, are written once. Blocks behind the
    end of a cache are not read in fact.

    Args:
      query: [G, K, N, Q, D].
      key: [L, G, K, N, S, D].
      reach: how many keys of each cache are read.
    """
    *_, caches, queries, size = query.shape
    _, block = block_shape(caches, queries, reach)
    layers, keys = key.shape[0], key.shape[4]
    read = min(block * pl.cdiv(reach, block), keys)  # the last block is read whole
    read = query.nbytes + 2 * key.nbytes // layers // keys * read
    return read + 4 * (query.size + query.size // size)


def blocks(query: jax.Array, key: jax.Array, reach: int):
    """Returns the turns of the kernel, and what it reads and writes in each.

    A block is moved when its place is another one than in the turn before.

    Args:
      query: [G, K, N, Q, D]; only its shape is used, as for `key`.
      key: [L, G, K, N, S, D].
      reach: how many keys of each cache are read.

    Returns:
      (grid, blocks of queries, keys and values, blocks of mixed values and log-sums).
    """
    groups, kv_heads, caches, queries, size = query.shape
    together, block = block_shape(caches, queries, reach)

    def mine(g, k, n, s, *_):
        return g, k, n, 0, 0

    def other(g, k, n, s, begin, end, layer):
        start = g * caches + n * together
        ends = [end[start + cache] for cache in range(together)]
        last = jnp.maximum(pl.cdiv(functools.reduce(jnp.maximum, ends), block) - 1, 0)
        return layer[0], g, k, n, jnp.minimum(s, last), 0

    of_queries = pl.BlockSpec((None, None, together, queries, size), mine)
    of_keys = pl.BlockSpec((None, None, None, together, block, size), other)
    of_sums = pl.BlockSpec((None, None, together, 1, queries), mine)
    grid = groups, kv_heads, caches // together, pl.cdiv(reach, block)
    return grid, [of_queries, of_keys, of_keys], [of_queries, of_sums]


def cached_attention(
    query: jax.Array, cached: Cached, *, reach: int, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Attention over the cached keys of one layer, on one device.

    Args:
      query: [G, K, N, Q, D].
      cached: what is read.
      reach: how many keys of each cache to read, at least every `end`.
      interpret: run the kernel's steps as plain JAX, for tests without a TPU.

    Returns:
      (mixed values [G, K, N, Q, D], logarithm of the sum of the exponential scores of
      each query [G, K, N, Q]), float32. Where nothing is seen, the logarithm is about
      -1e30.
    """
    *_, caches, queries, size = query.shape
    together, _ = block_shape(caches, queries, reach)
    grid, reads, writes = blocks(query, cached.key, reach)
    sums = jax.ShapeDtypeStruct((*query.shape[:3], 1, queries), jnp.float32)
    column = pltpu.VMEM((together, queries, 1), jnp.float32)
    mixed = pltpu.VMEM((together, queries, size), jnp.float32)
    scores = query.size // size * reach
    call = pl.pallas_call(
        functools.partial(_kernel, caches=caches),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=grid,
            in_specs=reads,
            out_specs=writes,
            scratch_shapes=[column, column, mixed],
        ),
        out_shape=[jax.ShapeDtypeStruct(query.shape, jnp.float32), sums],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
        ),
        cost_estimate=pl.CostEstimate(
            flops=4 * scores * size,
            transcendentals=scores,
            bytes_accessed=bytes_moved(query, cached.key, reach),
        ),
        interpret=interpret,
        name="cached_attention",
    )
    scalars = (cached.begin, cached.end, cached.layer)
    scalars = [jnp.asarray(x, jnp.int32).reshape(-1) for x in scalars]
    out, logsum = call(*scalars, query, cached.key, cached.value)
    return out, logsum[..., 0, :]


def _kernel(begin, end, _, q, k, v, out, logsum, top, total, mixed, *, caches: int):
    """One visit of blocks of keys `k` and values `v` by queries `q` of their caches.

    The scratch arrays `top`, `total` and `mixed` are the running softmax.
    """
    visit, (together, block, size) = pl.program_id(3), k.shape
    start = pl.program_id(0) * caches + pl.program_id(2) * together

    @pl.when(visit == 0)
    def _():
        top[...] = jnp.full_like(top, MASKED)
        total[...] = jnp.zeros_like(total)
        mixed[...] = jnp.zeros_like(mixed)

    def read(n, first, last):
        scores = product(q[n], k[n], 1, 1) / math.sqrt(size)
        at = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
        scores = jnp.where((first <= at) & (at < last), scores, MASKED)
        # A query that has seen no key yet has weights of 1; at its first key, `kept`
        # is 0 and undoes them.
        highest = jnp.maximum(top[n], scores.max(1, keepdims=True))
        weights, kept = jnp.exp(scores - highest), jnp.exp(top[n] - highest)
        top[n] = highest
        total[n] = total[n] * kept + weights.sum(1, keepdims=True)
        # Behind the end of the array may lie anything, also NaN.
        at = jax.lax.broadcasted_iota(jnp.int32, (block, size), 0)
        values = jnp.where(at < last, v[n], jnp.zeros_like(v[n]))
        mixed[n] = mixed[n] * kept + product(weights.astype(v.dtype), values, 1, 0)

    for n in range(together):
        first, last = (x[start + n] - visit * block for x in (begin, end))
        pl.when(last > 0)(functools.partial(read, n, first, last))

    @pl.when(visit == pl.num_programs(3) - 1)
    def _():
        sums = jnp.maximum(total[...], 1.0)  # below 1 only where no block was seen
        out[...] = mixed[...] / sums
        logsum[...] = (top[...] + jnp.log(sums)).swapaxes(1, 2)
