"""Random draws: one key a row, one token from the nucleus, no sort.

Axis names: V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp

_BLOCK = 128  # tokens of the vocabulary whose probabilities are summed first


def row_keys(seed: jax.Array, paths: jax.Array) -> jax.Array:
    """Returns one random key a row, folded from its own path of integers.

    Args:
      seed: scalar uint32.
      paths: [..., n] uint32, e.g. (iteration, problem, step, attempt, candidate).

    Returns:
      Keys [...]. They depend on nothing but the seed and the row's path.
    """
    base = jax.random.key(seed)

    def fold(path):
        return functools.reduce(jax.random.fold_in, list(path), base)

    flat = jax.vmap(fold)(paths.reshape(-1, paths.shape[-1]))
    return flat.reshape(paths.shape[:-1])


def mass_above(probabilities: jax.Array, tokens: jax.Array) -> jax.Array:
    """Returns what the tokens more probable than a given one hold together.

    A token is in the nucleus (arXiv 1904.09751, section 3.1) exactly when this is less
    than top_p: no sort is needed to tell. Equally probable tokens are in it together.

    Args:
      probabilities: [..., V] float32, sum 1.
      tokens: [...] int32.

    Returns:
      [...] float32.
    """
    own = jnp.take_along_axis(probabilities, tokens[..., None], -1)
    return jnp.where(probabilities > own, probabilities, 0).sum(-1)


def draw(
    logits: jax.Array, keys: jax.Array, temperature: jax.Array, top_p: jax.Array
) -> jax.Array:
    """Draws one token a row from the nucleus; temperature 0 is greedy.

    A token is drawn from all, and drawn again while it is not in the nucleus, then from
    the tokens more probable than it alone: those are a superset of the nucleus, so the
    accepted token has exactly the distribution of the nucleus, after two or three
    passes over the vocabulary in the mean.

    Args:
      logits: [..., V] float32, -inf where a token is not allowed.
      keys: random key of each row, [...].
      temperature: scalar >= 0.
      top_p: scalar in (0, 1].

    Returns:
      [...] int32.
    """

    def sampled():
        probabilities = jax.nn.softmax(logits / temperature, -1)
        shape = keys.shape

        def attempt(carry):
            number, floor, token, done = carry
            uniform = jax.vmap(_uniform, (0, None))(keys.reshape(-1), number)
            above = jnp.where(probabilities > floor[..., None], probabilities, 0)
            drawn = pick(above, uniform.reshape(shape))
            token = jnp.where(done, token, drawn)
            floor = jnp.take_along_axis(probabilities, token[..., None], -1)[..., 0]
            inside = mass_above(probabilities, token) < top_p
            return number + 1, floor, token, inside | (top_p >= 1)

        nothing = jnp.zeros(shape)
        start = 0, nothing, nothing.astype(jnp.int32), nothing > 0
        return jax.lax.while_loop(lambda c: ~c[3].all(), attempt, start)[2]

    return jax.lax.cond(temperature == 0, lambda: _highest(logits), sampled)


def _highest(logits: jax.Array) -> jax.Array:
    """Returns the argmax of each row; XLA for CPU takes 10 times longer for its own."""
    index = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    found = jnp.where(logits == logits.max(-1, keepdims=True), index, len(index) - 1)
    return found.min(-1)


def pick(weights: jax.Array, uniform: jax.Array) -> jax.Array:
    """Draws an index of each row, [..., V], in proportion to its weight.

    First a block of indices, then one of the block: no sums over the whole row are
    kept.
    """
    size = weights.shape[-1]
    pads = [(0, 0)] * (weights.ndim - 1) + [(0, -size % _BLOCK)]
    blocks = jnp.pad(weights, pads).reshape(*weights.shape[:-1], -1, _BLOCK)
    sums = blocks.sum(-1)
    block, rest = _invert(sums, uniform * sums.sum(-1))
    inside = jnp.take_along_axis(blocks, block[..., None, None], -2)[..., 0, :]
    index, _ = _invert(inside, rest)
    return jnp.minimum(block * _BLOCK + index, size - 1)


def _invert(weights: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the first index whose cumulative weight exceeds the target, [...].

    And what is left of the target there. Rounding can leave no such index: then it is
    the last one with a weight.
    """
    cumulative = jnp.cumsum(weights, -1)
    real = weights > 0
    beyond = real & (cumulative > target[..., None])
    last = weights.shape[-1] - 1 - jnp.argmax(real[..., ::-1], -1)
    index = jnp.where(beyond.any(-1), jnp.argmax(beyond, -1), last).astype(jnp.int32)
    before = jnp.take_along_axis(cumulative - weights, index[..., None], -1)[..., 0]
    return index, target - before


def _uniform(key, index):
    return jax.random.uniform(jax.random.fold_in(key, index))
