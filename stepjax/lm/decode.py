"""The decoder behind cached contexts: what is sampled and scored runs through here.

The layers are those of `stepjax.lm.model`, scanned as in training. Heads lead in the
caches, so that no product has to transpose them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from stepjax.lm import attention, embedding
from stepjax.lm import model as lm


class Shared(NamedTuple):
    """Caches that several rows of a group read: contexts of all, or leads of some.

    Attributes:
      cache: [L, G, K, N, S, D] each; each of the N is read by W / N rows in a row.
      length: valid keys of each, [G, N] int32.
    """

    cache: lm.KeyValues
    length: jax.Array


class Suffix(NamedTuple):
    """Own caches of the rows, of which a call reads what was written before.

    Attributes:
      cache: [L, G, K, W, S, D] each.
      length: tokens written, the same for all rows; scalar int32.
    """

    cache: lm.KeyValues
    length: jax.Array


def run(
    config: lm.ModelConfig,
    params: Any,
    tokens: jax.Array,
    start: jax.Array,
    shared: Sequence[Shared],
    suffix: Suffix | None = None,
    reach: int | None = None,
) -> tuple[jax.Array, lm.KeyValues]:
    """Runs the decoder on tokens behind cached ones.

    Args:
      config: of the decoder.
      params: its parameters.
      tokens: [G, W, T] int32.
      start: first index of each row, its suffix included, that is no padding, [G, W].
      shared: what comes before the suffixes.
      suffix: what the rows hold already; None for nothing.
      reach: keys of it to read, at least those written; None for all.

    Returns:
      Hidden states after the last norm, [G, W, T, E], and the tokens' keys and values,
      [L, G, K, W, T, D] each.
    """
    hidden = embedding.embed(params["embedding"], tokens, config.dtype, None)
    offset = jnp.zeros((), jnp.int32) if suffix is None else suffix.length
    index = offset + jnp.arange(tokens.shape[-1])
    before = sum(
        jnp.repeat(level.length, start.shape[1] // level.length.shape[1], axis=1)
        for level in shared
    )
    position = before[..., None] + jnp.maximum(index - start[..., None], 0)
    real = index >= start[..., None]  # [G, W, T]
    causal = real[:, :, None, :] & (index[:, None] >= index)
    valid = [_keys(level.cache) < level.length[..., None] for level in shared]

    def sight(read, made):
        layer, caches = read
        levels = [
            attention.Level(*cache, mask[:, :, None])
            for cache, mask in zip(caches, valid, strict=True)
        ]
        own = [attention.Level(*made, causal)]
        if suffix is not None:
            cache = _of_layer(suffix.cache, layer, reach)
            key = _keys(cache)
            mask = (key >= start[..., None]) & (key < offset)
            own.insert(0, attention.Level(*cache, mask[:, :, None]))
        return levels, own

    block, sines = lm.Block(config), lm.rotations(config, position)

    def layer(hidden, inputs):
        params, *read = inputs
        return block.apply({"params": params}, hidden, read, (*sines, sight))

    numbers = jnp.arange(config.num_layers)
    inputs = params["layers"], numbers, [level.cache for level in shared]
    hidden, made = jax.lax.scan(layer, hidden, inputs, unroll=lm.unroll(config))
    norm = lm.RMSNorm(config.rms_norm_eps)
    return norm.apply({"params": params["final_norm"]}, hidden), made


def _keys(cache: lm.KeyValues) -> jax.Array:
    return jnp.arange(cache.key.shape[-2])


def _of_layer(cache: lm.KeyValues, layer, reach: int | None) -> lm.KeyValues:
    """Returns the first keys of a layer, [G, K, W, reach, D], cut out in one slice.

    Of two slices XLA would make a copy.
    """

    def cut(x):
        size = (1, *x.shape[1:4], reach or x.shape[4], x.shape[5])
        return jax.lax.dynamic_slice(x, (layer, 0, 0, 0, 0, 0), size)[0]

    return jax.tree.map(cut, cache)


def written(suffix: Suffix, made: lm.KeyValues) -> Suffix:
    """Returns the suffixes with the keys and values of new tokens."""
    at = (0, 0, 0, 0, suffix.length, 0)
    cache = jax.tree.map(
        lambda cache, new: jax.lax.dynamic_update_slice(cache, new, at),
        suffix.cache,
        made,
    )
    return Suffix(cache, suffix.length + made.key.shape[-2])
