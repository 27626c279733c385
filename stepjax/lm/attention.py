"""Attention over forest rows and over cached contexts, and rotary positions.

One rule decides who sees whom in a forest row: query i sees key j if and only if
``j <= i < subtree_end[j]``. In cached decoding a query sees the first
``context_length`` keys of its problem's shared context and the keys of its own
suffix up to itself. Scores and softmax are float32.

Axis names: B rows, T tokens, H query heads, K key/value heads, D head size,
G groups (each reads one context), W rows of a group, C context capacity,
S suffix capacity.
"""

import math

import jax
import jax.numpy as jnp

_MASKED = -1e30  # finite, so that a fully masked query gives no NaN
_BLOCK, _BLOCKS = 64, 4  # queries of a block at least, blocks of a row at most


def rope_frequencies(
    head_dim: int, theta: float, scaling: dict | None = None
) -> jax.Array:
    """Returns the inverse frequencies of rotary positions, [D / 2] float32.

    Args:
      head_dim: D, even.
      theta: base of the geometric series (``rope_theta`` of config.json).
      scaling: None, or the ``rope_scaling`` of a Llama 3 config.json: a dict with
        ``rope_type`` "llama3", ``factor``, ``low_freq_factor``,
        ``high_freq_factor`` and ``original_max_position_embeddings``.

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
    if kind != "llama3":
        raise ValueError(
            f"rope_scaling type {kind!r} is not supported; expected 'default' or "
            "'llama3'. Use a checkpoint without it."
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
      sin: [..., D / 2] float32, one row a token.
      cos: [..., D / 2] float32.

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


def forest_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array
) -> jax.Array:
    """Attention of a forest row over itself.

    A row goes in blocks of queries, and a block reads the keys up to its own end: no
    query sees a later one.

    Args:
      query: [B, T, H, D].
      key: [B, T, K, D], H a multiple of K.
      value: [B, T, K, D].
      mask: [B, T, T] bool from `forest_mask`.

    Returns:
      [B, T, H, D] in the query's dtype.
    """
    batch, length, heads, size = query.shape
    kv_heads = key.shape[2]
    query = query.reshape(batch, length, kv_heads, heads // kv_heads, size)
    query = query.transpose(0, 2, 1, 3, 4)  # [B, K, T, H/K, D]
    key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)  # [B, K, T, D]
    block = max(_BLOCK, -(-length // _BLOCKS))
    parts = []
    for start in range(0, length, block):
        end = min(start + block, length)
        seen = mask[:, start:end, :end]
        parts.append(
            _attend(query[:, :, start:end], key[:, :, :end], value[:, :, :end], seen)
        )
    out = jnp.concatenate(parts, axis=2).transpose(0, 2, 1, 3, 4)
    return out.reshape(batch, length, heads, size)


def _attend(query, key, value, mask):
    """Attention with heads first: [B, K, Q, H/K, D], [B, K, S, D], mask [B, Q, S].

    Queries and heads that share keys are merged into one axis: then the scores, the
    largest array here, are never transposed, which XLA for CPU is slow at.
    """
    batch, kv_heads, length, group, size = query.shape
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


def cached_attention(
    query: jax.Array,
    context: tuple[jax.Array, jax.Array],
    suffix: tuple[jax.Array, jax.Array],
    context_mask: jax.Array,
    suffix_mask: jax.Array,
) -> jax.Array:
    """Attention over a shared context and an own suffix, with one softmax.

    The context is read once for all W rows of a group; nothing is copied per row.

    Args:
      query: [G, W, T, H, D].
      context: keys and values, each [G, C, K, D].
      suffix: keys and values, each [G, W, S, K, D].
      context_mask: [G, C] bool.
      suffix_mask: [G, W, T, S] bool.

    Returns:
      [G, W, T, H, D] in the query's dtype.
    """
    groups, width, length, heads, size = query.shape
    kv_heads = suffix[0].shape[3]
    shape = (groups, width, length, kv_heads, heads // kv_heads, size)
    query = query.reshape(shape)
    scale = 1.0 / math.sqrt(size)
    on_context = jnp.einsum(
        "gwtkhd,gckd->gwkhtc", query, context[0], preferred_element_type=jnp.float32
    )
    on_suffix = jnp.einsum(
        "gwtkhd,gwskd->gwkhts", query, suffix[0], preferred_element_type=jnp.float32
    )
    on_context = jnp.where(
        context_mask[:, None, None, None, None, :], on_context * scale, _MASKED
    )
    on_suffix = jnp.where(
        suffix_mask[:, :, None, None, :, :], on_suffix * scale, _MASKED
    )
    highest = jnp.maximum(
        on_context.max(-1, keepdims=True), on_suffix.max(-1, keepdims=True)
    )
    on_context = jnp.exp(on_context - highest)
    on_suffix = jnp.exp(on_suffix - highest)
    total = on_context.sum(-1) + on_suffix.sum(-1)  # [G, W, K, H/K, T]
    dtype = suffix[1].dtype
    out = jnp.einsum("gwkhtc,gckd->gwtkhd", on_context.astype(dtype), context[1])
    out += jnp.einsum("gwkhts,gwskd->gwtkhd", on_suffix.astype(dtype), suffix[1])
    total = jnp.moveaxis(total, 4, 2)[..., None]  # [G, W, T, K, H/K, 1]
    out = (out / total.astype(jnp.float32)).astype(query.dtype)
    return out.reshape(groups, width, length, heads, size)
