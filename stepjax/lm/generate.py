"""Sampling and scoring behind shared contexts: the context is computed once.

Each problem owns a slot: one cache of keys and values of its context. The rows of a
group (candidate steps, or judgments of one problem) read the shared context and
write only their own suffix. A chosen candidate's suffix is appended to the context
by a gather; going back a step only shortens a length.

The functions are pure and jitted; `stepjax.lm.slots` keeps, on the host, which token
ids each slot holds. Temperature, top-p, keys, stop tables and budgets are traced:
changing them compiles nothing.

Axis names: L layers, P slots, C context capacity, G groups, W rows of a group,
T prompt tokens of a row, N new tokens, V vocabulary.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from stepjax.lm import model as lm

_HALVINGS = 30  # threshold of the nucleus to 2^-30 of the largest probability


class Samples(NamedTuple):
    """What one sampling call made.

    Attributes:
      tokens: sampled ids, the stopping one included, [G, W, N] int32.
      count: how many of them are real, [G, W] int32.
      stopped: a stop string or stop id was reached, [G, W] bool.
      logps: log-probability of each token under the untempered model, [G, W, N].
    """

    tokens: jax.Array
    count: jax.Array
    stopped: jax.Array
    logps: jax.Array


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


def nucleus(probabilities: jax.Array, top_p: jax.Array) -> jax.Array:
    """Returns the mask of the nucleus without sorting.

    The kept set is every token at least as probable as a threshold found by
    bisection: the largest one whose kept mass still reaches top_p (arXiv
    1904.09751, section 3.1; equally probable tokens are kept together).

    Args:
      probabilities: [..., V] float32, sum 1.
      top_p: scalar in (0, 1]; above 1 - 1e-6 it is taken as that, since sums of
        float32 probabilities may never reach 1.

    Returns:
      [..., V] bool.
    """
    top = probabilities.max(-1, keepdims=True)
    top_p = jnp.minimum(top_p, 1 - 1e-6)

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        kept = jnp.where(probabilities >= middle, probabilities, 0)
        enough = kept.sum(-1, keepdims=True) >= top_p
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low, _ = jax.lax.fori_loop(0, _HALVINGS, halve, (jnp.zeros_like(top), top))
    return (probabilities >= low) & (probabilities > 0)


def draw(
    logits: jax.Array, uniform: jax.Array, temperature: jax.Array, top_p: jax.Array
) -> jax.Array:
    """Draws one token a row from the nucleus; temperature 0 is greedy.

    Args:
      logits: [..., V] float32, -inf where a token is not allowed.
      uniform: [...] in [0, 1), the row's one random number.
      temperature: scalar >= 0.
      top_p: scalar in (0, 1].

    Returns:
      [...] int32.
    """
    greedy = jnp.argmax(logits, -1).astype(jnp.int32)

    def sampled():
        probabilities = jax.nn.softmax(logits / temperature, -1)
        kept = nucleus(probabilities, top_p)
        cumulative = jnp.cumsum(jnp.where(kept, probabilities, 0), -1)
        target = uniform[..., None] * cumulative[..., -1:]
        beyond = kept & (cumulative > target)
        # Rounding can leave nothing beyond the target; the most probable one is kept.
        drawn = jnp.where(beyond.any(-1), jnp.argmax(beyond, -1), greedy)
        return drawn.astype(jnp.int32)

    return jax.lax.cond(temperature == 0, lambda: greedy, sampled)


def empty_contexts(config: lm.ModelConfig, slots: int, capacity: int) -> lm.KeyValues:
    """Returns zeroed context caches, [L, P, C, K, D] each, in the compute dtype."""
    shape = (
        config.num_layers,
        slots,
        capacity,
        config.num_kv_heads,
        config.head_dim,
    )
    zeros = jnp.zeros(shape, config.dtype)
    return lm.KeyValues(zeros, jnp.zeros_like(zeros))


def _new_suffix(config: lm.ModelConfig, groups: int, width: int, capacity: int):
    shape = (config.num_layers, groups, width, capacity)
    zeros = jnp.zeros((*shape, config.num_kv_heads, config.head_dim), config.dtype)
    return lm.KeyValues(zeros, jnp.zeros_like(zeros))


def _take_contexts(contexts: lm.KeyValues, slots, bucket: int) -> lm.KeyValues:
    """Returns the first `bucket` keys of the given slots ([G], or None for all)."""
    cut = jax.tree.map(lambda x: x[:, :, :bucket], contexts)
    return cut if slots is None else jax.tree.map(lambda x: x[:, slots], cut)


def _positions(lengths, start, first: int, count: int):
    """Positions of suffix indices first..first+count, [G, W, count]."""
    index = first + jnp.arange(count)
    relative = jnp.maximum(index - start[..., None], 0)
    return lengths[:, None, None] + relative


@functools.partial(
    jax.jit, static_argnames=("model", "bucket"), donate_argnames=("contexts",)
)
def extend(model, params, contexts, slots, lengths, tokens, counts, *, bucket: int):
    """Appends tokens to the contexts of some slots by computing them.

    Args:
      model: the decoder.
      params: its parameters.
      contexts: caches [L, P, C, K, D]; donated.
      slots: [G] int32; P or more marks an unused group.
      lengths: keys that each slot holds before, [G] int32.
      tokens: [G, T] int32, right-padded.
      counts: real tokens of each group, [G] int32.
      bucket: context keys to read, at least every length.

    Returns:
      The extended caches.
    """
    groups, length = tokens.shape
    start = jnp.zeros((groups, 1), jnp.int32)
    cached = lm.Cached(
        context=_take_contexts(contexts, slots, bucket),
        context_length=lengths,
        suffix=_new_suffix(model.config, groups, 1, length),
        start=start,
        offset=jnp.zeros((), jnp.int32),
    )
    position = _positions(lengths, start, 0, length)
    _, suffix = model.apply(
        {"params": params}, tokens[:, None], position, cached=cached
    )
    capacity = contexts.key.shape[2]
    source = jnp.arange(capacity) - lengths[:, None]  # [G, C]
    fresh = (source >= 0) & (source < counts[:, None])
    source = jnp.clip(source, 0, length - 1)

    def write(cache, new):
        new = jnp.take_along_axis(new[:, :, 0], source[None, :, :, None, None], 2)
        merged = jnp.where(fresh[None, :, :, None, None], new, cache[:, slots])
        return cache.at[:, slots].set(merged, mode="drop")

    return jax.tree.map(write, contexts, suffix)


@functools.partial(jax.jit, donate_argnames=("contexts",))
def append(contexts, suffix, choice, lengths, counts):
    """Appends one row's suffix to each slot's context by a gather.

    Args:
      contexts: caches [L, P, C, K, D]; donated.
      suffix: caches [L, P, W, S, K, D] of the last `sample` call (a group a slot).
      choice: row of each slot, [P] int32.
      lengths: keys that each slot holds before, [P] int32.
      counts: suffix keys to append, [P] int32; 0 leaves a slot as it is.

    Returns:
      The extended caches.
    """
    capacity, length = contexts.key.shape[2], suffix.key.shape[3]
    source = jnp.arange(capacity) - lengths[:, None]  # [P, C]
    fresh = (source >= 0) & (source < counts[:, None])
    source = jnp.clip(source, 0, length - 1)

    def write(cache, new):
        picked = jnp.take_along_axis(new, choice[None, :, None, None, None, None], 2)
        picked = picked[:, :, 0]  # [L, P, S, K, D]
        picked = jnp.take_along_axis(picked, source[None, :, :, None, None], 2)
        return jnp.where(fresh[None, :, :, None, None], picked, cache)

    return jax.tree.map(write, contexts, suffix)


@functools.partial(jax.jit, static_argnames=("model", "bucket", "capacity", "keep"))
def sample(
    model,
    params,
    contexts,
    slots,
    lengths,
    prompts,
    start,
    active,
    paths,
    seed,
    temperature,
    top_p,
    stops,
    vocab,
    budget,
    *,
    bucket: int,
    capacity: int,
    keep: bool = True,
):
    """Samples every row until its stop, its budget or the capacity.

    Args:
      model: the decoder.
      params: its parameters.
      contexts: caches [L, P, C, K, D].
      slots: context of each group, [G] int32, or None when G = P in order.
      lengths: valid keys of each group's context, [G] int32.
      prompts: tokens fed before sampling, [G, W, T] int32, left-padded; T >= 1.
      start: first real prompt index, [G, W] int32.
      active: rows that matter, [G, W] bool; the others cost no extra turn.
      paths: integers that make each row's key, [G, W, n] uint32.
      seed: scalar uint32.
      temperature: scalar; 0 is greedy.
      top_p: scalar in (0, 1].
      stops: stop table [states, V'] of `stops.compile_stops`, int32.
      vocab: ids >= vocab (padding of the embedding) are never sampled; scalar.
      budget: most new tokens, scalar <= capacity.
      bucket: context keys to read, at least every length.
      capacity: N.
      keep: return the suffix caches; what is not kept takes no memory of its own.

    Returns:
      (`Samples`, suffix caches [L, G, W, T + N, K, D] or None).
    """
    groups, width, length = prompts.shape
    context = _take_contexts(contexts, slots, bucket)
    suffix = _new_suffix(model.config, groups, width, length + capacity)
    keys = row_keys(seed, paths)
    allowed = jnp.arange(model.config.vocab_size) < vocab
    last_state = stops.shape[0] - 1

    def feed(tokens, suffix, offset):
        position = _positions(lengths, start, offset, tokens.shape[-1])
        cached = lm.Cached(context, lengths, suffix, start, offset)
        hidden, suffix = model.apply(
            {"params": params}, tokens, position, cached=cached
        )
        logits = lm.logits(params, hidden[:, :, -1])
        return jnp.where(allowed, logits, -jnp.inf), suffix

    def pick(index, logits, state, done, out):
        uniform = jax.vmap(jax.vmap(_uniform, (0, None)), (0, None))(keys, index)
        token = draw(logits, uniform, temperature, top_p)
        logp = jnp.take_along_axis(logits, token[..., None], -1)[..., 0]
        logp = logp - jax.nn.logsumexp(logits, -1)
        state = jnp.where(done, state, stops[state, token])
        stopped = state == last_state
        out = Samples(
            out.tokens.at[:, :, index].set(jnp.where(done, 0, token)),
            out.count + ~done,
            stopped,
            out.logps.at[:, :, index].set(jnp.where(done, 0.0, logp)),
        )
        return token, state, done | stopped, out

    def turn(carry):
        index, token, suffix, state, done, out = carry
        logits, suffix = feed(token[..., None], suffix, length + index - 1)
        token, state, done, out = pick(index, logits, state, done, out)
        return index + 1, token, suffix, state, done, out

    blank = jnp.zeros((groups, width), jnp.int32)
    out = Samples(
        jnp.zeros((groups, width, capacity), jnp.int32),
        blank,
        blank > 0,
        jnp.zeros((groups, width, capacity), jnp.float32),
    )
    logits, suffix = feed(prompts, suffix, jnp.zeros((), jnp.int32))
    token, state, done, out = pick(0, logits, blank, ~active, out)
    carry = (jnp.ones((), jnp.int32), token, suffix, state, done, out)
    keep_going = lambda c: (c[0] < budget) & ~c[4].all()  # noqa: E731
    _, _, suffix, _, _, out = jax.lax.while_loop(keep_going, turn, carry)
    return out, suffix if keep else None


def _uniform(key, index):
    return jax.random.uniform(jax.random.fold_in(key, index))


@functools.partial(jax.jit, static_argnames=("model", "bucket", "last"))
def score(
    model,
    params,
    contexts,
    slots,
    lengths,
    rows,
    start,
    scored,
    vocab,
    *,
    bucket: int,
    last: int,
):
    """Returns the log-probability of the last tokens of each row.

    Args:
      model: the decoder.
      params: its parameters.
      contexts: caches [L, P, C, K, D].
      slots: context of each group, [G] int32.
      lengths: valid keys of each group's context, [G] int32.
      rows: [G, W, T] int32, left-padded, at least one token before the scored ones.
      start: first real index of each row, [G, W] int32.
      scored: how many of the last tokens count, [G, W] int32 <= last.
      vocab: ids >= vocab (padding of the embedding) have no probability; scalar.
      bucket: context keys to read, at least every length.
      last: most scored tokens of a row.

    Returns:
      [G, W] float32 sums.
    """
    groups, width, length = rows.shape
    cached = lm.Cached(
        _take_contexts(contexts, slots, bucket),
        lengths,
        _new_suffix(model.config, groups, width, length),
        start,
        jnp.zeros((), jnp.int32),
    )
    position = _positions(lengths, start, 0, length)
    hidden, _ = model.apply({"params": params}, rows, position, cached=cached)
    logits = lm.logits(params, hidden[:, :, length - 1 - last : length - 1])
    logits = jnp.where(jnp.arange(logits.shape[-1]) < vocab, logits, -jnp.inf)
    targets = rows[:, :, length - last :]
    logps = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    logps = logps - jax.nn.logsumexp(logits, -1)
    counts = jnp.arange(last) >= last - scored[..., None]
    return jnp.where(counts, logps, 0.0).sum(-1)
