"""Sampling and scoring behind shared contexts; each context is computed once.

Sampling takes three things:

- what is decoded: `Rows`, the prompts of candidates or judgments and their key paths;
- how: `Decoding`, the seed, temperature, top-p, stops, vocabulary and budget;
- behind what: `Prefix`, the cached contexts and what rows share after them.

Each problem in flight owns a slot: one cache of keys and values of its context. The
rows of a group (candidate steps, or judgments of one problem) read the shared context
and write only their own suffix. Judgments that show the same candidate first also share
its tokens, a *lead*: a prefix after the context. The suffix of the chosen candidate is
appended to the context by a gather; going back a step only shortens a length.

The functions are pure and jitted; `stepjax.lm.sampler` keeps, on the host, which token
ids each slot holds. Everything in the three things is traced: new values compile
nothing, new shapes do.

Axis names: L layers, P slots, C context capacity, G groups, W rows of a group, A leads
of a group, M tokens of a lead, T prompt tokens of a row, N new tokens, V vocabulary,
K key/value heads, D head size.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from stepjax import losses
from stepjax.lm import decode, decode_kernel, draws
from stepjax.lm import model as lm

_SHORTEST = 128  # new tokens that the first loop of `sample` may read


class Leads(NamedTuple):
    """Prefixes shared by blocks of W / A consecutive rows, read after the context.

    There may be several levels; each block of a later level lies within one block of
    the level before it.

    Attributes:
      tokens: [G, A, M] int32, right-padded.
      counts: real tokens of each lead, [G, A] int32.
    """

    tokens: jax.Array
    counts: jax.Array


class Prefix(NamedTuple):
    """What rows are decoded behind: cached contexts, and leads after them.

    Attributes:
      contexts: caches [L, P, K, C, D] each.
      slots: slot of each group, [G] int32; None when G = P and group g reads slot g.
      lengths: valid keys of each group's context, [G] int32.
      leads: levels of `Leads`, from large blocks to small ones; () for none.
    """

    contexts: lm.KeyValues
    slots: jax.Array | None
    lengths: jax.Array
    leads: tuple[Leads, ...] = ()


class Begun(NamedTuple):
    """What is known of samples whose first tokens are given, at the end of prompts.

    Attributes:
      excluded: ids that the next token of a row must not be, [G, W, B] int32; see
        `draws.without`. At least one allowed id must be left.
      stop: state of each row in the stop table behind the given tokens, [G, W] int32.
    """

    excluded: jax.Array
    stop: jax.Array


class Rows(NamedTuple):
    """What is decoded.

    Attributes:
      prompts: tokens that each row feeds, [G, W, T] int32, left-padded; T >= 1.
      start: index of each row's first real prompt token, [G, W] int32.
      active: which rows matter, [G, W] bool. A row that does not matter samples
        nothing, and decoding does not go on for it.
      paths: integers that make each row's random key, [G, W, n] uint32, see
        `draws.candidate_path`; None where nothing is sampled.
      begun: of samples that begin with tokens of the prompt; None where all samples
        begin behind it.
    """

    prompts: jax.Array
    start: jax.Array
    active: jax.Array
    paths: jax.Array | None = None
    begun: Begun | None = None


class Decoding(NamedTuple):
    """How tokens are sampled.

    Attributes:
      seed: scalar uint32.
      temperature: scalar; 0 is greedy.
      top_p: scalar in (0, 1].
      stops: stop table [states, V'] int32 of `stops.compile_stops`.
      vocab: ids from here on (padding of the embedding) are never sampled; scalar.
      budget: most new tokens of a row; scalar.
    """

    seed: jax.Array
    temperature: jax.Array
    top_p: jax.Array
    stops: jax.Array
    vocab: jax.Array
    budget: jax.Array


class Samples(NamedTuple):
    """What was sampled.

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


class Addition(NamedTuple):
    """Tokens that `extend` appends to the contexts of some slots.

    Attributes:
      slots: slot of each group, [G] int32; P or more marks an unused group.
      lengths: keys that each slot holds before, [G] int32.
      tokens: [G, T] int32, right-padded.
      counts: real tokens of each group, [G] int32.
    """

    slots: jax.Array
    lengths: jax.Array
    tokens: jax.Array
    counts: jax.Array


def empty_contexts(
    config: lm.ModelConfig, slots: int, capacity: int, dtype: str | None = None
) -> lm.KeyValues:
    """Returns zeroed context caches, [L, P, K, C, D] each.

    Args:
      config: of the decoder.
      slots: P.
      capacity: C.
      dtype: type of keys and values; None takes the compute type.
    """
    shape = (
        config.num_layers,
        slots,
        config.num_kv_heads,
        capacity,
        config.head_dim,
    )
    zeros = jnp.zeros(shape, dtype or config.dtype)
    return lm.KeyValues(zeros, jnp.zeros_like(zeros))


def _contexts(contexts: lm.KeyValues, slots, lengths, bucket: int) -> decode.Shared:
    """Returns the first `bucket` keys of the given slots ([G], or None for all)."""
    cut = jax.tree.map(lambda x: x[:, :, :, :bucket], contexts)
    taken = cut if slots is None else jax.tree.map(lambda x: x[:, slots], cut)
    cache = jax.tree.map(lambda x: x[:, :, :, None], taken)
    return decode.Shared(cache, lengths[:, None])


def _shared(config, params, prefix: Prefix, bucket: int) -> tuple[decode.Shared, ...]:
    """Returns the caches that rows read before their prompts; computes the leads."""
    contexts, slots, lengths, leads = prefix
    shared = (_contexts(contexts, slots, lengths, bucket),)
    for level in leads:
        start = jnp.zeros_like(level.counts)
        _, new = decode.forward(config, params, level.tokens, start, shared)
        shared += (decode.Shared(new, level.counts),)
    return shared


@functools.partial(
    jax.jit, static_argnames=("model", "bucket"), donate_argnames=("contexts",)
)
def extend(model, params, contexts, addition: Addition, *, bucket: int):
    """Appends tokens to the contexts of some slots by computing them.

    Args:
      model: the decoder.
      params: its parameters.
      contexts: caches [L, P, K, C, D]; donated.
      addition: which tokens, and to which slots.
      bucket: context keys to read, at least every length.

    Returns:
      The extended caches.
    """
    slots, lengths, tokens, counts = addition
    groups, length = tokens.shape
    context = _contexts(contexts, slots, lengths, bucket)
    start = jnp.zeros((groups, 1), jnp.int32)
    _, new = decode.forward(model.config, params, tokens[:, None], start, (context,))
    capacity = contexts.key.shape[3]
    source = jnp.arange(capacity) - lengths[:, None]  # [G, C]
    fresh = (source >= 0) & (source < counts[:, None])
    source = jnp.clip(source, 0, length - 1)

    def write(cache, new):
        new = jnp.take_along_axis(new[:, :, :, 0], source[None, :, None, :, None], 3)
        merged = jnp.where(fresh[None, :, None, :, None], new, cache[:, slots])
        return cache.at[:, slots].set(merged, mode="drop")

    return jax.tree.map(write, contexts, decode.stack(new))


@functools.partial(jax.jit, donate_argnames=("contexts",))
def append(contexts, suffix, choice, lengths, counts):
    """Appends one row's suffix to each slot's context by a gather.

    Args:
      contexts: caches [L, P, K, C, D]; donated.
      suffix: caches [L, P, K, W, S, D] that `sample` returned, one group per slot.
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


class _State(NamedTuple):
    """What the loops of `sample` carry from one decoding step to the next.

    Attributes:
      index: new tokens of a row so far, scalar int32.
      token: last token of each row, sampled and not fed yet, [G, W] int32.
      suffix: keys and values of the tokens that were fed.
      stop: state of each row in the stop table, [G, W] int32.
      done: rows that sample no more, [G, W] bool.
      samples: all tokens so far.
    """

    index: jax.Array
    token: jax.Array
    suffix: decode.Suffix
    stop: jax.Array
    done: jax.Array
    samples: Samples


@functools.partial(jax.jit, static_argnames=("model", "bucket", "capacity", "keep"))
def sample(
    model,
    params,
    prefix: Prefix,
    rows: Rows,
    decoding: Decoding,
    *,
    bucket: int,
    capacity: int,
    keep: bool = True,
):
    """Samples every row until its stop, its budget or the capacity.

    Args:
      model: the decoder.
      params: its parameters.
      prefix: what the rows are decoded behind.
      rows: what is decoded; with `paths`.
      decoding: how it is decoded; the budget is at most the capacity.
      bucket: context keys to read, at least every length.
      capacity: N.
      keep: return the suffix caches; False lets XLA reuse their memory.

    Returns:
      (`Samples`, suffix caches [L, G, K, W, T + N, D] or None).
    """
    groups, width, length = rows.prompts.shape
    config, stops = model.config, decoding.stops
    kernel = decode_kernel.choose(config.attention, model.mesh)
    if kernel and prefix.slots is None and length == 1:
        # It reads each context up to its end only, and a cut would be a copy.
        bucket = prefix.contexts.key.shape[3]
    shared = _shared(config, params, prefix, bucket)
    if isinstance(params["layers"], tuple):
        shared = [level._replace(cache=decode.unstack(level.cache)) for level in shared]
    keys = draws.row_keys(decoding.seed, rows.paths)
    allowed = jnp.arange(config.vocab_size) < decoding.vocab
    last_stop = stops.shape[0] - 1

    feed = functools.partial(
        decode.forward, config, params, shared=shared, start=rows.start, kernel=kernel
    )

    def pick(state: _State, hidden, excluded=None) -> _State:
        """Draws each row's next token, which its last hidden state predicts."""
        index, _, suffix, stop, done, samples = state
        logits = lm.logits(params, hidden[:, :, -1])
        logits = jnp.where(allowed, logits, -jnp.inf)
        fold = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))
        token = draws.draw(
            logits if excluded is None else draws.without(logits, excluded),
            fold(keys, index),
            decoding.temperature,
            decoding.top_p,
        )
        logp = jnp.take_along_axis(logits, token[..., None], -1)[..., 0]
        logp = logp - jax.nn.logsumexp(logits, -1)
        stop = jnp.where(done, stop, stops[stop, token])
        stopped = stop == last_stop
        samples = Samples(
            samples.tokens.at[:, :, index].set(jnp.where(done, 0, token)),
            samples.count + ~done,
            stopped,
            samples.logps.at[:, :, index].set(jnp.where(done, 0.0, logp)),
        )
        index = jnp.asarray(index + 1, jnp.int32)
        return _State(index, token, suffix, stop, done | stopped, samples)

    def decode_step(reach, state: _State) -> _State:
        hidden, new = feed(
            state.token[..., None], suffix=state.suffix, reach=length + reach
        )
        return pick(state._replace(suffix=decode.write(state.suffix, new)), hidden)

    def goes_on(end, state: _State):
        return (state.index < end) & ~state.done.all()

    blank = jnp.zeros((groups, width), jnp.int32)
    nothing = Samples(
        jnp.zeros((groups, width, capacity), jnp.int32),
        blank,
        blank > 0,
        jnp.zeros((groups, width, capacity), jnp.float32),
    )
    hidden, new = feed(rows.prompts)
    suffix = decode.empty_suffix(new, length + capacity)
    suffix = decode.write(suffix, new)
    excluded, stop = rows.begun or (None, blank)
    state = _State(0, blank, suffix, stop, ~rows.active, nothing)
    state = pick(state, hidden, excluded)
    for reach in reaches(capacity):
        end = jnp.minimum(decoding.budget, reach)
        state = jax.lax.while_loop(
            functools.partial(goes_on, end),
            functools.partial(decode_step, reach),
            state,
        )
    return state.samples, decode.stack(state.suffix.cache) if keep else None


def reaches(capacity: int) -> list[int]:
    """Returns how many new tokens each loop of `sample` reads; loops run in turn.

    Each loop attends to a fixed slice of the new tokens' cache. Slices of 128, 256,
    512, … tokens read at most twice as many as are written, from the 64th token on.
    """
    shorter = []
    while _SHORTEST << len(shorter) < capacity:
        shorter.append(_SHORTEST << len(shorter))
    return [*shorter, capacity]


@functools.partial(jax.jit, static_argnames=("model", "vocab", "bucket", "last"))
def score(
    model,
    params,
    prefix: Prefix,
    rows: Rows,
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
      prefix: what the rows are read behind.
      rows: what is scored; `prompts` hold at least one token before the scored ones.
      scored: how many of the last tokens count, [G, W] int32 <= last.
      vocab: ids from here on (padding of the embedding) have no probability.
      bucket: context keys to read, at least every length.
      last: most scored tokens of a row.

    Returns:
      [G, W] float32 sums.
    """
    tokens, start = rows.prompts, rows.start
    length = tokens.shape[-1]
    fed = length - 1  # nothing is predicted after the last token
    config = model.config
    shared = _shared(config, params, prefix, bucket)
    hidden, _ = decode.forward(config, params, tokens[:, :, :fed], start, shared)
    hidden = hidden[:, :, fed - last :]
    logps = losses.token_logps_from_hidden(
        hidden.reshape(-1, hidden.shape[-1]),
        lm.unembedding(params).astype(hidden.dtype),
        tokens[:, :, length - last :].reshape(-1),
        vocab_size=min(vocab, config.vocab_size),
    )
    counts = jnp.arange(last) >= last - scored[..., None]
    return jnp.where(counts, logps.reshape(counts.shape), 0.0).sum(-1)
