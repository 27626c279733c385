"""The decoder behind cached contexts: what is sampled and scored runs through here.

The layers are those of `stepjax.lm.model`, scanned as in training. Heads lead in the
caches, so that no product has to transpose them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from stepjax.lm import model as lm
from stepjax.lm import vocabulary


class Cached(NamedTuple):
    """What a call reads besides its tokens.

    Attributes:
      context: shared contexts, [L, G, K, C, D] each.
      context_length: valid keys of each context, [G] int32.
      suffix: own suffixes, [L, G, K, W, S, D] each; written at `offset`.
      start: first valid suffix index of each row, [G, W] int32 (left padding).
      offset: suffix index of the first token fed, scalar int32.
    """

    context: lm.KeyValues
    context_length: jax.Array
    suffix: lm.KeyValues
    start: jax.Array
    offset: jax.Array


def run(
    config: lm.ModelConfig,
    params: Any,
    tokens: jax.Array,
    position: jax.Array,
    cached: Cached,
) -> tuple[jax.Array, lm.KeyValues]:
    """Runs the decoder on suffixes behind cached contexts.

    Args:
      config: of the decoder.
      params: its parameters.
      tokens: [G, W, T] int32.
      position: depth of each token on its own path, same shape.
      cached: contexts and suffix caches.

    Returns:
      Hidden states after the last norm, [G, W, T, E], and the suffix caches with these
      tokens written.
    """
    hidden = vocabulary.embed(params["embedding"], tokens, config.dtype, None)
    sin, cos = lm.rotations(config, position)
    shared = sin, cos, _masks(cached, tokens.shape[-1]), cached.offset
    block = lm.Block(config)

    def layer(carry, inputs):
        params, context = inputs
        return block.apply({"params": params}, carry, context, shared)

    carry = hidden, cached.suffix, jnp.zeros((), jnp.int32)
    inputs = params["layers"], cached.context
    (hidden, suffix, _), _ = jax.lax.scan(
        layer, carry, inputs, unroll=lm.unroll(config)
    )
    norm = lm.RMSNorm(config.rms_norm_eps)
    return norm.apply({"params": params["final_norm"]}, hidden), suffix


def _masks(cached: Cached, length: int) -> tuple[jax.Array, jax.Array]:
    """Returns who sees which keys, [G, C] and [G, W, T, S]."""
    context, suffix = (x.key.shape[-2] for x in (cached.context, cached.suffix))
    context_mask = jnp.arange(context) < cached.context_length[:, None]
    key = jnp.arange(suffix)
    query = cached.offset + jnp.arange(length)
    seen = key[None, :] <= query[:, None]  # [T, S]
    suffix_mask = seen & (key >= cached.start[..., None])[:, :, None, :]
    return context_mask, suffix_mask
