"""The decoder behind cached contexts: what is sampled and scored runs through here.

The layers are those of `stepjax.lm.model`, scanned as in training. Heads lead in the
caches, so that no product has to transpose them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from stepjax.lm import model as lm
from stepjax.lm import vocabulary


class Shared(NamedTuple):
    """Caches that several rows of a group read: contexts of all, or leads of some.

    Attributes:
      cache: [L, G, K, N, S, D] each; each of the N is read by W / N rows in a row.
      length: valid keys of each, [G, N] int32.
    """

    cache: lm.KeyValues
    length: jax.Array


class Cached(NamedTuple):
    """What a call reads besides its tokens.

    Attributes:
      shared: what comes before the suffixes.
      suffix: own suffixes, [L, G, K, W, S, D] each; written at `offset`.
      start: first valid suffix index of each row, [G, W] int32 (left padding).
      offset: suffix index of the first token fed, scalar int32.
    """

    shared: tuple[Shared, ...]
    suffix: lm.KeyValues
    start: jax.Array
    offset: jax.Array


def run(
    config: lm.ModelConfig,
    params: Any,
    tokens: jax.Array,
    cached: Cached,
) -> tuple[jax.Array, lm.KeyValues]:
    """Runs the decoder on suffixes behind cached contexts.

    Args:
      config: of the decoder.
      params: its parameters.
      tokens: [G, W, T] int32.
      cached: shared and suffix caches.

    Returns:
      Hidden states after the last norm, [G, W, T, E], and the suffix caches with these
      tokens written.
    """
    hidden = vocabulary.embed(params["embedding"], tokens, config.dtype, None)
    length = tokens.shape[-1]
    sin, cos = lm.rotations(config, _positions(cached, length))
    shared = sin, cos, _masks(cached, length), cached.offset
    block = lm.Block(config)

    def layer(carry, inputs):
        params, read = inputs
        return block.apply({"params": params}, carry, read, shared)

    carry = hidden, cached.suffix, jnp.zeros((), jnp.int32)
    inputs = params["layers"], [level.cache for level in cached.shared]
    (hidden, suffix, _), _ = jax.lax.scan(
        layer, carry, inputs, unroll=lm.unroll(config)
    )
    norm = lm.RMSNorm(config.rms_norm_eps)
    return norm.apply({"params": params["final_norm"]}, hidden), suffix


def _positions(cached: Cached, length: int) -> jax.Array:
    """Returns the depth of each token on its own path, [G, W, T]."""
    width = cached.start.shape[1]
    before = sum(
        jnp.repeat(level.length, width // level.length.shape[1], axis=1)
        for level in cached.shared
    )
    index = cached.offset + jnp.arange(length)
    return before[..., None] + jnp.maximum(index - cached.start[..., None], 0)


def _masks(cached: Cached, length: int) -> list[jax.Array]:
    """Returns which keys of each level are seen, the suffix last."""
    masks = []
    for level in cached.shared:
        index = jnp.arange(level.cache.key.shape[-2])
        masks.append((index < level.length[..., None])[:, :, None])  # [G, N, 1, S]
    key = jnp.arange(cached.suffix.key.shape[-2])
    query = cached.offset + jnp.arange(length)
    seen = key[None, :] <= query[:, None]  # [T, S]
    return [*masks, seen & (key >= cached.start[..., None])[:, :, None, :]]
