"""Random draws: one key per row, one token from the nucleus, no sort.

Every draw has a key of its own, folded from the seed and a *key path*: `PATH_LENGTH`
integers that say which candidate or which judgment it belongs to. So results do not
depend on the batch, on the number of hosts or on where a run was interrupted.

Axis names: V vocabulary.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

PATH_LENGTH = 7  # integers of a key path

_BLOCK = 128  # tokens of the vocabulary whose probabilities are summed first


def candidate_path(
    iteration: int, problem: int, step: int, attempt: int, candidate: int
) -> tuple[int, ...]:
    """Returns the key path of a candidate, `PATH_LENGTH` integers below 2**32.

    Args:
      iteration: number of the model that samples.
      problem: hash of the problem's id.
      step: number of the step, from 1.
      attempt: how often the step was expanded before.
      candidate: index among the samples of this expansion.

    Raises:
      ValueError: when a number is not an integer from 0 to 2**32 - 1.
    """
    return _checked((iteration, problem, step, attempt, candidate, 0, 0))


def judgment_path(expansion: Sequence[int], a: int, b: int) -> tuple[int, ...]:
    """Returns the key path of a judgment, `PATH_LENGTH` integers below 2**32.

    Its last integer is 1, which no candidate's path ends with.

    Args:
      expansion: (iteration, problem, step, attempt), as for `candidate_path`.
      a: index of the candidate shown first.
      b: index of the candidate shown second.

    Raises:
      ValueError: when `expansion` has not four integers, or one is not from 0 to
        2**32 - 1.
    """
    path = (*expansion, a, b, 1)
    if len(path) != PATH_LENGTH:
        raise ValueError(
            f"the key path {path} of a judgment has {len(path)} integers; expected "
            f"{PATH_LENGTH}. Begin it with (iteration, problem, step, attempt)."
        )
    return _checked(path)


def node_path(
    purpose: int, problem: int, node: int, visit: int, sample: int
) -> tuple[int, ...]:
    """Returns the key path of a draw for the initial data, `PATH_LENGTH` integers.

    Its last integer is 2, which no path of a candidate or a judgment ends with.

    Args:
      purpose: what is drawn: 1 a new step of a tree search, 2 a step of its simulation,
        3 a completion of a solution's first steps, 4 a whole solution.
      problem: hash of the problem's id.
      node: number of the node of the tree, or of the solution.
      visit: how often the node was visited before, or number of steps before the draw.
      sample: index among the samples that are drawn there.

    Raises:
      ValueError: when a number is not an integer from 0 to 2**32 - 1.
    """
    return _checked((purpose, problem, node, visit, sample, 0, 2))


def solution_path(problem: int, number: int) -> tuple[int, ...]:
    """Returns the key path of a solution that `stepjax solve` samples whole.

    Its last integer is 3, which no path of another draw ends with.

    Args:
      problem: hash of the problem's id.
      number: of the solution, from 0.

    Raises:
      ValueError: when a number is not an integer from 0 to 2**32 - 1.
    """
    return _checked((problem, number, 0, 0, 0, 0, 3))


def redrawn_path(path: Sequence[int], turn: int) -> tuple[int, ...]:
    """Returns the key path of a sample that is drawn again.

    Args:
      path: of the sample, from `candidate_path` or `node_path`.
      turn: how often it was drawn before, from 1.

    Raises:
      ValueError: when `turn` is not an integer from 0 to 2**32 - 1.
    """
    return _checked((*path[:5], turn, path[6]))


def _checked(path: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the path; an integer of more than 32 bits would be cut in silence."""
    for number in path:
        if number != int(number) or not 0 <= number < 2**32:
            raise ValueError(
                f"the key path {path} holds {number}; expected integers from 0 to "
                "2**32 - 1. Hash what is larger."
            )
    return path


def row_keys(seed: jax.Array, paths: jax.Array) -> jax.Array:
    """Returns one random key per row, folded from the row's own key path.

    Args:
      seed: scalar uint32.
      paths: [..., n] uint32.

    Returns:
      Keys [...]. They depend on nothing but the seed and the row's path.
    """
    base = jax.random.key(seed)

    def fold(path):
        return functools.reduce(jax.random.fold_in, list(path), base)

    flat = jax.vmap(fold)(paths.reshape(-1, paths.shape[-1]))
    return flat.reshape(paths.shape[:-1])


def mass_above(probabilities: jax.Array, tokens: jax.Array) -> jax.Array:
    """Returns the total probability of the tokens more probable than a given one.

    A token is in the nucleus (arXiv 1904.09751, section 3.1) exactly when this is less
    than top_p, so no sort is needed to tell. Equally probable tokens are either all in
    the nucleus or all outside.

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
    """Draws one token per row from the nucleus; temperature 0 is greedy.

    The first draw is from all tokens. While the drawn token is not in the nucleus, the
    next draw is from the tokens more probable than it. Those contain the nucleus, so
    the accepted token has exactly the distribution of the nucleus. On average this
    takes two or three passes over the vocabulary.

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

        def attempt(state: _Attempts) -> _Attempts:
            uniform = jax.vmap(_uniform, (0, None))(keys.reshape(-1), state.number)
            floor = state.floor[..., None]
            above = jnp.where(probabilities > floor, probabilities, 0)
            drawn = pick(above, uniform.reshape(shape))
            token = jnp.where(state.done, state.token, drawn)
            floor = jnp.take_along_axis(probabilities, token[..., None], -1)[..., 0]
            inside = mass_above(probabilities, token) < top_p
            done = inside | (top_p >= 1)
            return _Attempts(state.number + 1, floor, token, done)

        def goes_on(state: _Attempts):
            return ~state.done.all()

        nothing = jnp.zeros(shape)
        start = _Attempts(0, nothing, nothing.astype(jnp.int32), nothing > 0)
        return jax.lax.while_loop(goes_on, attempt, start).token

    return jax.lax.cond(temperature == 0, lambda: _highest(logits), sampled)


def without(logits: jax.Array, excluded: jax.Array) -> jax.Array:
    """Returns logits with -inf for some tokens of each row.

    Args:
      logits: [G, W, V].
      excluded: ids of these tokens, [G, W, B] int32. An id of V or more is not in the
        vocabulary, so that it fills up short rows.
    """
    group = jnp.arange(logits.shape[0])[:, None, None]
    row = jnp.arange(logits.shape[1])[:, None]
    return logits.at[group, row, excluded].set(-jnp.inf, mode="drop")


class _Attempts(NamedTuple):
    """What the loop of `draw` carries.

    Attributes:
      number: attempts so far, scalar int32.
      floor: probability of the last drawn token, [...]; the next one has more.
      token: last drawn token of each row, [...] int32.
      done: rows whose token is in the nucleus, [...] bool.
    """

    number: jax.Array
    floor: jax.Array
    token: jax.Array
    done: jax.Array


def _highest(logits: jax.Array) -> jax.Array:
    """Returns the argmax of each row; `jnp.argmax` takes 10 times longer on a CPU."""
    index = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    highest = logits == logits.max(-1, keepdims=True)
    return jnp.where(highest, index, len(index) - 1).min(-1)


def pick(weights: jax.Array, uniform: jax.Array) -> jax.Array:
    """Draws one index of each row in proportion to its weight.

    A block of indices is drawn first, then an index of the block, so that cumulative
    sums are computed of one block and not of the whole row.

    Args:
      weights: [..., V] float32 >= 0.
      uniform: numbers in [0, 1), [...] float32.

    Returns:
      [...] int32.
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
    """Returns (index, rest of the target there) of each row, [...] each.

    The index is the first one whose cumulative weight exceeds the target. Where
    rounding leaves no such index, it is the last one with a weight.
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
