"""Attention over forest rows and over cached contexts, and rotary positions.

One rule decides who sees whom in a forest row: query i sees key j if and only if
``j <= i < subtree_end[j]``. In cached decoding a query sees the keys that its row
shares with other rows (`Level`) and those of its own suffix up to itself. Scores and
softmax are float32.

Forest rows have three implementations of the one rule: query chunks in plain JAX,
a TPU kernel (`stepjax.lm.forest_kernel`), and cuDNN's on NVIDIA GPUs.

Axis names: B rows, T tokens, H query heads, K key/value heads, D head size, G groups
(each reads one context), W rows of a group, N caches of a level (each is read by W / N
consecutive rows), S keys of a cache, J query heads that read one key head, Q queries.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, PartitionSpec

from stepjax.lm import forest_kernel, sharding

KINDS = ("auto", "chunks", "kernel", "cudnn")

# In older versions cuDNN's backward pass also computes a gradient of the mask, an array
# [B, 1, T, T] that nobody reads (seen in the source of JAX 0.10.2).
_CUDNN_JAX = (0, 12, 0)

_MASKED = -1e30  # finite, so that a fully masked query gives no NaN
_QUERIES = 1024  # most queries of a group that attend to a cached context at once
# A forest row is cut into `_CHUNKS` chunks of queries, but a chunk has at least
# `_FEWEST` and at most `_MOST` queries.
_FEWEST, _MOST, _CHUNKS = 64, 512, 4


def rope_frequencies(
    head_dim: int, theta: float, scaling: dict | None = None
) -> jax.Array:
    """Returns the inverse frequencies of rotary positions, [D / 2] float32.

    Args:
      head_dim: D, even.
      theta: base of the geometric series (``rope_theta`` of config.json).
      scaling: None, or the ``rope_scaling`` of a config.json: a dict with
        ``rope_type`` "linear" and ``factor``, or with ``rope_type`` "llama3",
        ``factor``, ``low_freq_factor``, ``high_freq_factor`` and
        ``original_max_position_embeddings``.

    Raises:
      ValueError: for another kind of scaling.
    """
    exponent = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    frequency = 1.0 / (theta**exponent)
    if scaling is None:
        return frequency
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return frequency
    if kind == "linear":
        return frequency / scaling["factor"]
    if kind != "llama3":
        raise ValueError(
            f"rope_scaling type {kind!r} is not supported; expected 'default', "
            "'linear' or 'llama3'. Use a checkpoint with one of these."
        )
    original = scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    wavelength = 2 * math.pi / frequency
    slowed = frequency / scaling["factor"]
    blend = (original / wavelength - low) / (high - low)
    blended = (1 - blend) * slowed + blend * frequency
    result = jnp.where(wavelength > original / low, slowed, blended)
    return jnp.where(wavelength < original / high, frequency, result)


def rotate(x: jax.Array, sin: jax.Array, cos: jax.Array) -> jax.Array:
    """Applies rotary positions.

    Args:
      x: queries or keys, [..., heads, D].
      sin: [..., D / 2] float32, of each token's position.
      cos: [..., D / 2] float32, of each token's position.

    Returns:
      The rotated x, same shape and dtype.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    sin, cos = sin[..., None, :], cos[..., None, :]
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def forest_mask(subtree_end: jax.Array) -> jax.Array:
    """Returns who sees whom in a forest row, [B, T, T] bool (query, key).

    Args:
      subtree_end: [B, T] int32, first index after the subtree of each token.
    """
    index = jnp.arange(subtree_end.shape[-1])
    query, key = index[:, None], index[None, :]
    return (key <= query) & (query < subtree_end[:, None, :])


def choose(kind: str, mesh: Mesh | None, dtype: str, head_dim: int) -> str:
    """Returns the implementation to use for forest rows, one of `KINDS` except "auto".

    "auto" is the kernel on TPU and query chunks elsewhere. "kernel" runs interpreted on
    other platforms, for tests. "cudnn" is never chosen by "auto": it reads the rule as
    an array [B, 1, T, T] in the compute type, computes the blocks that no query sees,
    and has not been run by us.

    Args:
      kind: one of `KINDS`.
      mesh: whose devices run it; None for the default backend.
      dtype: compute type.
      head_dim: D.

    Raises:
      ValueError: for an unknown kind, or cuDNN where it does not fit.
    """
    if kind not in KINDS:
        raise ValueError(f"model.attention={kind!r}; expected one of {KINDS}.")
    platform = _platform(mesh)
    if kind == "auto":
        return "kernel" if platform == "tpu" else "chunks"
    if kind == "cudnn":
        fits = dtype == "bfloat16" and head_dim % 8 == 0 and head_dim <= 128
        if platform != "gpu" or not fits:
            raise ValueError(
                f"model.attention='cudnn' on {platform} with dtype={dtype!r} and "
                f"head_dim={head_dim}; expected a GPU, 'bfloat16' and a multiple of 8 "
                "up to 128. Set model.attention='chunks'."
            )
        if jax.__version_info__ < _CUDNN_JAX:
            needed = ".".join(map(str, _CUDNN_JAX))
            raise ValueError(
                f"model.attention='cudnn' with JAX {jax.__version__}; expected JAX "
                f"{needed} or newer, because older ones also compute a gradient of the "
                "mask, as large as all scores of one head. Set "
                "model.attention='chunks', or update JAX."
            )
    return kind


def _platform(mesh: Mesh | None) -> str:
    return mesh.devices.flat[0].platform if mesh else jax.default_backend()


def forest_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    subtree_end: jax.Array,
    *,
    kind: str = "chunks",
    mesh: Mesh | None = None,
) -> jax.Array:
    """Attention of forest rows over themselves.

    Args:
      query: [B, T, H, D].
      key: [B, T, K, D], H a multiple of K.
      value: [B, T, K, D].
      subtree_end: [B, T] int32, first index after the subtree of each token.
      kind: from `choose`.
      mesh: what rows and heads are split over; None on one device.

    Returns:
      [B, T, H, D] in the query's dtype.
    """
    if kind == "kernel":
        attend = functools.partial(
            forest_kernel.forest_attention, interpret=_platform(mesh) != "tpu"
        )
        if mesh is None:
            return attend(query, key, value, subtree_end)
        heads = PartitionSpec(sharding.ROWS, None, "tensor")
        rows = PartitionSpec(sharding.ROWS)
        specs = (heads, heads, heads, rows)
        # Inside, devices exchange nothing, so there is nothing to check.
        split = jax.shard_map(
            attend, mesh=mesh, in_specs=specs, out_specs=heads, check_vma=False
        )
        return split(query, key, value, subtree_end)
    if kind == "cudnn":
        if query.shape[1] % 2:
            raise ValueError(
                f"rows of {query.shape[1]} tokens with model.attention='cudnn'; "
                "expected an even number. Make train.row_length even."
            )
        mask = forest_mask(subtree_end)[:, None]
        out = jax.nn.dot_product_attention(
            query, key, value, mask=mask, implementation="cudnn"
        )
    else:
        out = _in_chunks(query, key, value, subtree_end)
    return checkpoint_name(out, forest_kernel.SAVED)


def _in_chunks(query, key, value, subtree_end):
    """The rule in plain JAX, in chunks of queries.

    A chunk reads the keys up to its own end, since no query sees a later key. In long
    rows only one chunk's scores exist at a time, in the backward pass too.
    """
    batch, length, heads, size = query.shape
    kv_heads = key.shape[2]
    query = query.reshape(batch, length, kv_heads, heads // kv_heads, size)
    query = query.transpose(0, 2, 1, 3, 4)  # [B, K, T, H/K, D]
    key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)  # [B, K, T, D]
    chunk = min(max(_FEWEST, -(-length // _CHUNKS)), _MOST)
    parts = []
    for start in range(0, length, chunk):
        end = min(start + chunk, length)
        attend = functools.partial(_plain, start=start)
        if length > _CHUNKS * _MOST:
            attend = jax.checkpoint(attend)
        ends = subtree_end[:, :end]
        parts.append(
            attend(query[:, :, start:end], key[:, :, :end], value[:, :, :end], ends)
        )
    out = jnp.concatenate(parts, axis=2).transpose(0, 2, 1, 3, 4)
    return out.reshape(batch, length, heads, size)


def _plain(query, key, value, subtree_end, start):
    """Attention of queries from index `start` on, [B, K, Q, H/K, D], over [B, K, S, D].

    Queries, and the heads that share keys, are merged into one axis, so that the
    scores, the largest array here, are never transposed: XLA for CPU is slow at that.
    """
    batch, kv_heads, length, group, size = query.shape
    mask = forest_mask(subtree_end)[:, start : start + length]  # [B, Q, S]
    query = query.reshape(batch, kv_heads, length * group, size)
    scores = jnp.einsum(
        "bkqd,bksd->bkqs", query, key, preferred_element_type=jnp.float32
    ) / math.sqrt(size)
    scores = scores.reshape(batch, kv_heads, length, group, -1)
    scores = jnp.where(mask[:, None, :, None], scores, _MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    weights = weights.reshape(batch, kv_heads, length * group, -1)
    out = jnp.einsum("bkqs,bksd->bkqd", weights, value)
    return out.reshape(batch, kv_heads, length, group, size)


class Level(NamedTuple):
    """Cached keys that rows of a group see: a context, leads, or their own suffixes.

    A lead is what some rows of a group share after the context, see `generate.Leads`.

    Attributes:
      key: [G, K, N, S, D]; each of the N is seen by W / N consecutive rows.
      value: of the same shape.
      mask: which keys are seen, [G, N, T or 1, S] bool; 1 where all tokens of a row see
        the same keys.
    """

    key: jax.Array
    value: jax.Array
    mask: jax.Array


def cached_attention(
    query: jax.Array, shared: Sequence[Level], own: Sequence[Level]
) -> jax.Array:
    """Attention over shared keys and own ones, with one softmax.

    Shared keys are read once for all rows that see them; nothing is copied per row.
    Many queries at once (long prompts) are computed in chunks.

    Args:
      query: [G, W, T, H, D].
      shared: levels whose masks are the same for every token.
      own: levels of single rows, N = W. The last level is the new tokens; its mask is
        causal, [G, W, T, T].

    Returns:
      [G, W, T, H, D] in the query's dtype.
    """
    width, length = query.shape[1:3]
    chunk = max(1, _QUERIES // width)
    if length <= chunk:
        return _attend_cached(query, shared, own)
    chunk = -(-length // -(-length // chunk))  # as few chunks, of one size
    padding = -length % chunk

    def cut(x, axis):
        """Returns x with `axis` padded and cut into chunks; chunks are axis 0."""
        pads = [(0, padding if i == axis else 0) for i in range(x.ndim)]
        x = jnp.pad(x, pads)
        shape = (*x.shape[:axis], -1, chunk, *x.shape[axis + 1 :])
        return jnp.moveaxis(x.reshape(shape), axis, 0)

    def attend(both):
        query, mask = both
        return _attend_cached(query, shared, [*own[:-1], own[-1]._replace(mask=mask)])

    out = jax.lax.map(attend, (cut(query, 2), cut(own[-1].mask, 2)))
    out = jnp.moveaxis(out, 0, 2)  # [G, W, chunks, chunk, H, D]
    return out.reshape(*out.shape[:2], -1, *out.shape[4:])[:, :, :length]


def _attend_cached(query, shared, own):
    groups, width, length, heads, size = query.shape
    kv_heads = own[-1].key.shape[1]
    grouped = heads // kv_heads  # J, query heads that read one key
    query = query.reshape(groups, width, length, kv_heads, grouped, size)
    query = query.transpose(0, 3, 1, 2, 4, 5)  # [G, K, W, T, J, D]
    levels = [*shared, *own]
    scores = [_scores(query, level, own=False) for level in shared]
    scores += [_scores(query, level, own=True) for level in own]
    highest = functools.reduce(jnp.maximum, [x.max(-1, keepdims=True) for x in scores])
    weights = [jnp.exp(x - highest) for x in scores]
    total = sum(x.sum(-1) for x in weights)  # [G, K, W, T, J]
    out = sum(map(_mixed, weights, levels))
    out = (out / total[..., None]).astype(query.dtype).transpose(0, 2, 3, 1, 4, 5)
    return out.reshape(groups, width, length, heads, size)


def _scores(query, level, *, own):
    """Masked scores of queries [G, K, W, T, J, D] on a level, [G, K, W, T, J, S]."""
    rows, keys, size = level.key.shape[2:]
    flat = query.reshape(*query.shape[:2], rows, -1, size)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    if own:  # keys times queries, not queries times keys: 4 times faster on a CPU
        scores = product("gknsd,gknqd->gknsq", level.key, flat).swapaxes(3, 4)
    else:
        scores = product("gknqd,gknsd->gknqs", flat, level.key)
    seen_by = query.shape[2] // rows
    shape = (*query.shape[:2], rows, seen_by, *query.shape[3:5], keys)
    scores = (scores / math.sqrt(size)).reshape(shape)
    mask = level.mask[:, None, :, None, :, None]  # [G, 1, N, 1, T or 1, 1, S]
    return jnp.where(mask, scores, _MASKED).reshape(*query.shape[:5], keys)


def _mixed(weights, level):
    """Returns the weighted sum of a level's values, [G, K, W, T, J, D].

    Args:
      weights: [G, K, W, T, J, S].
      level: keys are not used.
    """
    value = level.value
    flat = (*value.shape[:3], -1, value.shape[3])
    weighted = weights.astype(value.dtype).reshape(flat)
    out = jnp.einsum("gknqs,gknsd->gknqd", weighted, value)
    return out.reshape(*weights.shape[:5], value.shape[4])
