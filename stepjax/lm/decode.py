"""A forward pass of the decoder behind cached keys: sampling and scoring use it.

The layers are those of `stepjax.lm.model`, scanned as in training. In the caches the
axis of heads comes before the axis of tokens, so that no product has to transpose them.

Axis names: L layers, G groups (each reads one context), W rows of a group, T tokens of
a row, K key/value heads, N caches of a level (each is read by W / N consecutive rows),
S keys of a cache, D head size, E hidden states.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from stepjax.lm import attention, decode_kernel
from stepjax.lm import model as lm

# Keys and values of all layers: arrays with an axis of layers, or a tuple of layers.
Cache = lm.KeyValues | tuple[lm.KeyValues, ...]


class Shared(NamedTuple):
    """Caches that several rows of a group read: a context, or `generate.Leads`.

    Attributes:
      cache: [L, G, K, N, S, D] each; each of the N is read by W / N consecutive rows.
      length: valid keys of each, [G, N] int32.
    """

    cache: Cache
    length: jax.Array


class Suffix(NamedTuple):
    """Each row's own keys and values; `forward` attends to the first `length`.

    Attributes:
      cache: [L, G, K, W, S, D] each.
      length: tokens written so far, the same for all rows; scalar int32.
    """

    cache: Cache
    length: jax.Array


def forward(
    config: lm.ModelConfig,
    params: Any,
    tokens: jax.Array,
    start: jax.Array,
    shared: Sequence[Shared],
    *,
    suffix: Suffix | None = None,
    reach: int | None = None,
    kernel: Callable[..., jax.Array] | None = None,
) -> tuple[jax.Array, Cache]:
    """Runs the decoder on tokens behind cached ones.

    Args:
      config: of the decoder.
      params: its parameters; those of `lm.by_layer` are computed without a scan.
      tokens: [G, W, T] int32.
      start: index of the first real token of each row, counted from the beginning of
        its suffix, [G, W] int32; what comes before is padding.
      shared: caches that come before the suffixes, in their order.
      suffix: keys and values that the rows have written before; None when there are
        none.
      reach: how many keys of the suffix to read, at least `suffix.length`; None reads
        all.
      kernel: what rows of one token attend with, from `decode_kernel.choose`; None
        for plain JAX.

    Returns:
      Hidden states after the last norm, [G, W, T, E], and the keys and values of these
      tokens, [L, G, K, W, T, D] each; a tuple of layers for parameters `lm.by_layer`.
    """
    hidden = lm.embed(config, params["embedding"], tokens, None)
    offset = jnp.zeros((), jnp.int32) if suffix is None else suffix.length
    index = offset + jnp.arange(tokens.shape[-1])
    before = sum(
        jnp.repeat(level.length, start.shape[1] // level.length.shape[1], axis=1)
        for level in shared
    )
    position = before[..., None] + jnp.maximum(index - start[..., None], 0)
    real = index >= start[..., None]  # [G, W, T]
    causal = real[:, :, None, :] & (index[:, None] >= index)
    dtype = _layer(shared[0].cache, 0).key.dtype
    kernel = kernel if tokens.shape[-1] == 1 else None
    plain = [] if kernel else shared
    valid = [_keys(_layer(level.cache, 0)) < level.length[..., None] for level in plain]
    for_kernel = _for_kernel(shared, suffix, reach, start) if kernel else []

    def attend(number, caches, query, key, value):
        """Attends to caches of a layer and to the new tokens; keeps the latter."""
        levels = [
            attention.Level(*cache, mask[:, :, None])
            for cache, mask in zip(caches, valid, strict=True)
        ]
        new = lm.KeyValues(*(x.transpose(0, 3, 1, 2, 4) for x in (key, value)))
        new = jax.tree.map(lambda x: x.astype(dtype), new)
        own = [attention.Level(*new, causal)]
        if kernel:
            cached = [(x._replace(layer=number), read) for x, read in for_kernel]
            return kernel(query, cached, *own), new
        if suffix is not None:
            cache = _of_layer(suffix.cache, number, reach)
            at = _keys(cache)
            mask = (at >= start[..., None]) & (at < offset)
            own.insert(0, attention.Level(*cache, mask[:, :, None]))
        return attention.cached_attention(query, levels, own), new

    one_by_one = isinstance(params["layers"], tuple)
    block, turns = lm.Block(config), lm.rotations(config, position)

    def layer(hidden, inputs):
        params, number, local, caches = inputs
        attend_here = functools.partial(attend, number, caches)
        turned = lm.of_layer(turns, local)
        return block.apply({"params": params}, hidden, *turned, attend_here)

    local = lm.local_layers(config)
    if one_by_one:
        every = []
        for number, of_layer in enumerate(params["layers"]):
            own = [_layer(level.cache, number) for level in plain]
            here = None if local is None else int(config.local_layers[number])
            hidden, new = layer(hidden, (of_layer, number, here, own))
            every.append(new)
        new = tuple(every)
    else:
        caches = [level.cache for level in plain]
        inputs = params["layers"], jnp.arange(config.num_layers), local, caches
        hidden, new = jax.lax.scan(layer, hidden, inputs, unroll=lm.unroll(config))
    norm = lm.norm(config)
    return norm.apply({"params": params["final_norm"]}, hidden), new


def _for_kernel(shared, suffix, reach, start):
    """Returns the cached keys as `decode_kernel.attend` takes them, without a layer."""
    cached = [(x.cache, jnp.zeros_like(x.length), x.length, None) for x in shared]
    if suffix is not None:
        end = jnp.broadcast_to(suffix.length, start.shape)
        cached.append((suffix.cache, start, end, reach))

    def level(cache, begin, end, reach):
        key, value = stack(cache)
        read = reach or key.shape[-2]
        return decode_kernel.Cached(key, value, None, begin, end), read

    return [level(*x) for x in cached]


def unstack(cache: Cache) -> Cache:
    """Returns a cache as a tuple of layers, which loops read in place."""
    if not isinstance(cache, lm.KeyValues):
        return cache
    return tuple(_layer(cache, number) for number in range(len(cache.key)))


def stack(cache: Cache) -> lm.KeyValues:
    """Returns a cache as arrays of all layers."""
    if isinstance(cache, lm.KeyValues):
        return cache
    return jax.tree.map(lambda *layers: jnp.stack(layers), *cache)


def _layer(cache: Cache, number: int) -> lm.KeyValues:
    """Returns the keys and values of one layer."""
    if not isinstance(cache, lm.KeyValues):
        return cache[number]
    return jax.tree.map(operator.itemgetter(number), cache)


def _keys(cache: lm.KeyValues) -> jax.Array:
    return jnp.arange(cache.key.shape[-2])


def _of_layer(cache: Cache, number, reach: int | None) -> lm.KeyValues:
    """Returns the first `reach` keys of one layer, [G, K, W, reach, D].

    One slice cuts both the layer and its first keys: with two, XLA copies the layer.
    """
    if not isinstance(cache, lm.KeyValues):
        return jax.tree.map(lambda x: x[..., :reach, :], cache[number])

    def cut(x):
        size = (1, *x.shape[1:4], reach or x.shape[4], x.shape[5])
        return jax.lax.dynamic_slice(x, (number, 0, 0, 0, 0, 0), size)[0]

    return jax.tree.map(cut, cache)


def empty(cache: Cache, capacity: int) -> Cache:
    """Returns a cache like another one, but of `capacity` tokens that are all zero."""

    def zeros(x):
        return jnp.zeros((*x.shape[:-2], capacity, x.shape[-1]), x.dtype)

    return jax.tree.map(zeros, cache)


def empty_suffix(new: Cache, capacity: int) -> Suffix:
    """Returns room for `capacity` tokens of each row, in the form and type of `new`."""
    return Suffix(empty(new, capacity), jnp.zeros((), jnp.int32))


def write(suffix: Suffix, new: Cache) -> Suffix:
    """Returns the suffixes with the keys and values of new tokens after the old ones.

    Args:
      suffix: with room for them.
      new: from `forward`.
    """

    def into(cache, new):
        return jax.lax.dynamic_update_slice_in_dim(cache, new, suffix.length, -2)

    count = jax.tree.leaves(new)[0].shape[-2]
    return Suffix(jax.tree.map(into, suffix.cache, new), suffix.length + count)
