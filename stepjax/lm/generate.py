"""Sampling and scoring behind shared contexts: the context is computed once.

Each problem owns a slot: one cache of keys and values of its context. The rows of a
group (candidate steps, or judgments of one problem) read the shared context and
write only their own suffix; judgments that begin alike also share this lead. A chosen
candidate's suffix is appended to the context by a gather; going back a step only
shortens a length.

The functions are pure and jitted; `stepjax.lm.sampler` keeps, on the host, which token
ids each slot holds. Temperature, top-p, keys, stop tables and budgets are traced:
changing them compiles nothing.

Axis names: L layers, P slots, C context capacity, G groups, W rows of a group,
T prompt tokens of a row, N new tokens, V vocabulary; A leads of M tokens.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from stepjax import losses
from stepjax.lm import decode as caches
from stepjax.lm import draws
from stepjax.lm import model as lm

_SHORTEST = 128  # new tokens that the first loop of `sample` may read


class Leads(NamedTuple):
    """Tokens between the context and the prompts, each for W / A rows in a row.

    A call may have several levels, each within the one before.

    Attributes:
      tokens: [G, A, M] int32, right-padded.
      counts: real tokens of each, [G, A] int32.
    """

    tokens: jax.Array
    counts: jax.Array


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


def empty_contexts(config: lm.ModelConfig, slots: int, capacity: int) -> lm.KeyValues:
    """Returns zeroed context caches, [L, P, K, C, D] each, in the compute dtype."""
    shape = (
        config.num_layers,
        slots,
        config.num_kv_heads,
        capacity,
        config.head_dim,
    )
    zeros = jnp.zeros(shape, config.dtype)
    return lm.KeyValues(zeros, jnp.zeros_like(zeros))


def _new_suffix(config: lm.ModelConfig, groups: int, width: int, capacity: int):
    shape = (config.num_layers, groups, config.num_kv_heads, width, capacity)
    zeros = jnp.zeros((*shape, config.head_dim), config.dtype)
    cache = lm.KeyValues(zeros, jnp.zeros_like(zeros))
    return caches.Suffix(cache, jnp.zeros((), jnp.int32))


def _contexts(contexts: lm.KeyValues, slots, lengths, bucket: int) -> caches.Shared:
    """Returns the first `bucket` keys of the given slots ([G], or None for all)."""
    cut = jax.tree.map(lambda x: x[:, :, :, :bucket], contexts)
    taken = cut if slots is None else jax.tree.map(lambda x: x[:, slots], cut)
    cache = jax.tree.map(lambda x: x[:, :, :, None], taken)
    return caches.Shared(cache, lengths[:, None])


def _shared(config, params, contexts, slots, lengths, leads, bucket: int):
    """Returns what rows read before their prompts; computes the leads."""
    shared = (_contexts(contexts, slots, lengths, bucket),)
    for level in leads:
        start = jnp.zeros_like(level.counts)
        _, made = caches.run(config, params, level.tokens, start, shared)
        shared += (caches.Shared(made, level.counts),)
    return shared


@functools.partial(
    jax.jit, static_argnames=("model", "bucket"), donate_argnames=("contexts",)
)
def extend(model, params, contexts, slots, lengths, tokens, counts, *, bucket: int):
    """Appends tokens to the contexts of some slots by computing them.

    Args:
      model: the decoder.
      params: its parameters.
      contexts: caches [L, P, K, C, D]; donated.
      slots: [G] int32; P or more marks an unused group.
      lengths: keys that each slot holds before, [G] int32.
      tokens: [G, T] int32, right-padded.
      counts: real tokens of each group, [G] int32.
      bucket: context keys to read, at least every length.

    Returns:
      The extended caches.
    """
    groups, length = tokens.shape
    context = _contexts(contexts, slots, lengths, bucket)
    start = jnp.zeros((groups, 1), jnp.int32)
    _, suffix = caches.run(model.config, params, tokens[:, None], start, (context,))
    capacity = contexts.key.shape[3]
    source = jnp.arange(capacity) - lengths[:, None]  # [G, C]
    fresh = (source >= 0) & (source < counts[:, None])
    source = jnp.clip(source, 0, length - 1)

    def write(cache, new):
        new = jnp.take_along_axis(new[:, :, :, 0], source[None, :, None, :, None], 3)
        merged = jnp.where(fresh[None, :, None, :, None], new, cache[:, slots])
        return cache.at[:, slots].set(merged, mode="drop")

    return jax.tree.map(write, contexts, suffix)


@functools.partial(jax.jit, donate_argnames=("contexts",))
def append(contexts, suffix, choice, lengths, counts):
    """Appends one row's suffix to each slot's context by a gather.

    Args:
      contexts: caches [L, P, K, C, D]; donated.
      suffix: caches [L, P, K, W, S, D] of the last `sample` call (a group a slot).
      choice: row of each slot, [P] int32.
      lengths: keys that each slot holds before, [P] int32.
      counts: suffix keys to append, [P] int32; 0 leaves a slot as it is.

    Returns:
      The extended caches.
    """
    capacity, length = contexts.key.shape[3], suffix.key.shape[4]
    source = jnp.arange(capacity) - lengths[:, None]  # [P, C]
    fresh = (source >= 0) & (source < counts[:, None])
    source = jnp.clip(source, 0, length - 1)

    def write(cache, new):
        picked = jnp.take_along_axis(new, choice[None, :, None, None, None, None], 3)
        picked = picked[:, :, :, 0]  # [L, P, K, S, D]
        picked = jnp.take_along_axis(picked, source[None, :, None, :, None], 3)
        return jnp.where(fresh[None, :, None, :, None], picked, cache)

    return jax.tree.map(write, contexts, suffix)


@functools.partial(jax.jit, static_argnames=("model", "bucket", "capacity", "keep"))
def sample(
    model,
    params,
    contexts,
    slots,
    lengths,
    leads,
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
      contexts: caches [L, P, K, C, D].
      slots: context of each group, [G] int32, or None when G = P in order.
      lengths: valid keys of each group's context, [G] int32.
      leads: levels of `Leads` that rows share beside their context, () for none.
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
      (`Samples`, suffix caches [L, G, K, W, T + N, D] or None).
    """
    groups, width, length = prompts.shape
    config = model.config
    shared = _shared(config, params, contexts, slots, lengths, leads, bucket)
    keys = draws.row_keys(seed, paths)
    allowed = jnp.arange(config.vocab_size) < vocab
    last_state = stops.shape[0] - 1

    feed = functools.partial(caches.run, config, params, shared=shared, start=start)

    def logits_of(hidden):
        logits = lm.logits(params, hidden[:, :, -1])
        return jnp.where(allowed, logits, -jnp.inf)

    def pick(index, logits, state, done, out):
        fold = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))
        token = draws.draw(logits, fold(keys, index), temperature, top_p)
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

    def turn(reach, carry):
        index, token, suffix, state, done, out = carry
        hidden, made = feed(token[..., None], suffix=suffix, reach=length + reach)
        suffix = caches.written(suffix, made)
        token, state, done, out = pick(index, logits_of(hidden), state, done, out)
        return index + 1, token, suffix, state, done, out

    def goes_on(end, carry):
        index, done = carry[0], carry[4]
        return (index < end) & ~done.all()

    blank = jnp.zeros((groups, width), jnp.int32)
    out = Samples(
        jnp.zeros((groups, width, capacity), jnp.int32),
        blank,
        blank > 0,
        jnp.zeros((groups, width, capacity), jnp.float32),
    )
    hidden, made = feed(prompts)
    suffix = _new_suffix(config, groups, width, length + capacity)
    suffix = caches.written(suffix, made)
    token, state, done, out = pick(0, logits_of(hidden), blank, ~active, out)
    carry = (jnp.ones((), jnp.int32), token, suffix, state, done, out)
    for reach in reaches(capacity):
        keep_going = functools.partial(goes_on, jnp.minimum(budget, reach))
        carry = jax.lax.while_loop(keep_going, functools.partial(turn, reach), carry)
    _, _, suffix, _, _, out = carry
    return out, suffix.cache if keep else None


def reaches(capacity: int) -> list[int]:
    """Returns how many new tokens the loops of `sample` read, one loop after another.

    A program reads arrays of fixed length: a loop for each power of 2 leaves most of
    what is not written yet unread.
    """
    shorter = []
    while _SHORTEST << len(shorter) < capacity:
        shorter.append(_SHORTEST << len(shorter))
    return [*shorter, capacity]


@functools.partial(jax.jit, static_argnames=("model", "vocab", "bucket", "last"))
def score(
    model,
    params,
    contexts,
    slots,
    lengths,
    leads,
    rows,
    start,
    scored,
    *,
    vocab: int,
    bucket: int,
    last: int,
):
    """Returns the log-probability of the last tokens of each row.

    Args:
      model: the decoder.
      params: its parameters.
      contexts: caches [L, P, K, C, D].
      slots: context of each group, [G] int32.
      lengths: valid keys of each group's context, [G] int32.
      leads: levels of `Leads` that rows share beside their context, () for none.
      rows: [G, W, T] int32, left-padded, at least one token before the scored ones.
      start: first real index of each row, [G, W] int32.
      scored: how many of the last tokens count, [G, W] int32 <= last.
      vocab: ids >= vocab (padding of the embedding) have no probability.
      bucket: context keys to read, at least every length.
      last: most scored tokens of a row.

    Returns:
      [G, W] float32 sums.
    """
    groups, width, length = rows.shape
    fed = length - 1  # nothing comes after the last token
    config = model.config
    shared = _shared(config, params, contexts, slots, lengths, leads, bucket)
    hidden, _ = caches.run(config, params, rows[:, :, :fed], start, shared)
    hidden = hidden[:, :, fed - last :]
    logps = losses.token_logps_from_hidden(
        hidden.reshape(-1, hidden.shape[-1]),
        lm.unembedding(params).astype(hidden.dtype),
        rows[:, :, length - last :].reshape(-1),
        vocab_size=min(vocab, config.vocab_size),
    )
    counts = jnp.arange(last) >= last - scored[..., None]
    return jnp.where(counts, logps.reshape(counts.shape), 0.0).sum(-1)
