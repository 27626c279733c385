"""Sampling and scoring behind shared contexts: the context is computed once.

Each problem owns a slot: one cache of keys and values of its context. The rows of a
group (candidate steps, or judgments of one problem) read the shared context and
write only their own suffix. A chosen candidate's suffix is appended to the context
by a gather; going back a step only shortens a length.

The functions are pure and jitted; `Slots` at the end of the file is the one host
object, which knows which token ids each slot holds. Temperature, top-p, keys, stop
tables and budgets are traced: changing them compiles nothing.

Axis names: L layers, P slots, C context capacity, G groups, W rows of a group,
T prompt tokens of a row, N new tokens, V vocabulary.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from stepjax import forest
from stepjax.lm import model as lm
from stepjax.lm import sharding

_CONTEXT_BUCKET, _PROMPT_BUCKET = 64, 16  # lengths are compiled in multiples
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
      top_p: scalar in (0, 1].

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


@functools.partial(jax.jit, static_argnames=("model", "bucket", "capacity"))
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

    Returns:
      (`Samples`, suffix caches [L, G, W, T + N, K, D]).
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
    return out, suffix


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
    targets = rows[:, :, length - last :]
    logps = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    logps = logps - jax.nn.logsumexp(logits, -1)
    counts = jnp.arange(last) >= last - scored[..., None]
    return jnp.where(counts, logps, 0.0).sum(-1)


class Slots:
    """Context caches of P problems, and which token ids each of them holds.

    Host state around the pure functions above: ``hold`` brings slots to given ids
    with the least work (shorten, append the suffix just sampled, compute the rest).

    Attributes:
      held: token ids whose keys and values each slot holds.
    """

    def __init__(self, model, params, mesh: Mesh, slots: int, capacity: int):
        """Allocates empty caches, split over the data-parallel axes.

        Args:
          model: the decoder.
          params: its parameters.
          mesh: from `sharding.make_mesh`.
          slots: P, a multiple of the data-parallel devices.
          capacity: C, most tokens of a context.
        """
        self.model, self.params, self.capacity = model, params, capacity
        self._split = sharding.split_rows(mesh)
        self._multiple = sharding.row_multiple(mesh)
        if slots % self._multiple:
            raise ValueError(
                f"{slots} slots; expected a multiple of the {self._multiple} "
                "data-parallel devices."
            )
        spread = sharding.split_rows(mesh, axis=1)
        make = jax.jit(
            lambda: empty_contexts(model.config, slots, capacity),
            out_shardings=spread,
        )
        self.contexts = make()
        self.held: list[list[int]] = [[] for _ in range(slots)]
        self._sampled = None  # (base ids, prompts, samples, suffix) of the last call

    def put(self, array):
        """Places a host array with its first axis split over the devices."""
        return jax.device_put(array, self._split)

    def hold(self, wanted: dict[int, Sequence[int]]) -> None:
        """Makes each given slot hold exactly the given ids.

        Args:
          wanted: slot → token ids.

        Raises:
          ValueError: when ids are longer than the capacity.
        """
        missing = {}
        for slot, ids in wanted.items():
            if len(ids) > self.capacity:
                raise ValueError(
                    f"a context of {len(ids)} tokens; expected at most "
                    f"{self.capacity}. Raise the context budget."
                )
            held = self.held[slot]
            keep = _common_prefix(held, ids)
            del held[keep:]
            if keep < len(ids):
                missing[slot] = list(ids[keep:])
        self._append_sampled(missing)
        if missing:
            self._compute(missing)

    def _append_sampled(self, missing: dict[int, list[int]]) -> None:
        if self._sampled is None:
            return
        base, prompts, out, suffix = self._sampled
        size = len(self.held)
        choice, lengths, counts = np.zeros((3, size), np.int32)
        for slot, ids in list(missing.items()):
            if self.held[slot] != base[slot]:
                continue
            fed = np.concatenate([prompts[slot], out.tokens[slot][:, :-1]], axis=1)
            if len(ids) > fed.shape[1]:
                continue
            # A row's last sampled token may never have been fed.
            match = (fed[:, : len(ids)] == np.asarray(ids)).all(1)
            match &= out.count[slot] >= len(ids)
            if match.any():
                choice[slot] = int(match.argmax())
                lengths[slot] = len(self.held[slot])
                counts[slot] = len(ids)
                self.held[slot] += ids
                del missing[slot]
        self._sampled = None
        if counts.any():
            self.contexts = append(
                self.contexts, suffix, *map(self.put, (choice, lengths, counts))
            )

    def _compute(self, missing: dict[int, list[int]]) -> None:
        half = -(-len(self.held) // 2)  # two shapes: a whole refill, or a partial one
        groups = half if len(missing) <= half else len(self.held)
        groups = -(-groups // self._multiple) * self._multiple
        length = forest.bucket(max(map(len, missing.values())), _PROMPT_BUCKET)
        slots = np.full(groups, len(self.held), np.int32)
        tokens = np.zeros((groups, length), np.int32)
        lengths, counts = np.zeros((2, groups), np.int32)
        for row, (slot, ids) in enumerate(missing.items()):
            slots[row], lengths[row] = slot, len(self.held[slot])
            counts[row] = len(ids)
            tokens[row, : len(ids)] = ids
            self.held[slot] += ids
        self.contexts = extend(
            self.model,
            self.params,
            self.contexts,
            *map(self.put, (slots, lengths, tokens, counts)),
            bucket=self._bucket(lengths),
        )

    def _bucket(self, lengths: np.ndarray) -> int:
        return min(
            self.capacity, forest.bucket(int(lengths.max(initial=1)), _CONTEXT_BUCKET)
        )

    def sample(
        self,
        groups: Sequence[int] | None,
        prompts: Sequence[Sequence[Sequence[int]]],
        paths: np.ndarray,
        *,
        seed: int,
        temperature: float,
        top_p: float,
        stops: jax.Array,
        vocab: int,
        budget: int,
        capacity: int,
        group_multiple: int = 1,
    ) -> Samples:
        """Samples behind the held contexts; see the function `sample`.

        Args:
          groups: slot of each group; None for one group a slot, in order, whose
            suffixes `hold` may then append.
          prompts: ids fed first, group by group, row by row; an empty row is unused.
          paths: [G, W, n] uint32 key path of each row.
          seed: see `sample`.
          temperature: see `sample`.
          top_p: see `sample`.
          stops: stop table, on device.
          vocab: see `sample`.
          budget: see `sample`.
          capacity: see `sample`.
          group_multiple: the number of groups is padded to a bucket of this.

        Returns:
          `Samples` as numpy arrays of the given groups.
        """
        count, lengths, slots, rows, start, active = self._lay_out(
            groups, prompts, group_multiple
        )
        padded = np.zeros((len(rows), *paths.shape[1:]), np.uint32)
        padded[:count] = paths
        out, suffix = sample(
            self.model,
            self.params,
            self.contexts,
            None if groups is None else self.put(slots),
            *map(self.put, (lengths, rows, start, active, padded)),
            np.uint32(seed),
            np.float32(temperature),
            np.float32(top_p),
            stops,
            np.int32(vocab),
            np.int32(budget),
            bucket=self._bucket(lengths),
            capacity=capacity,
        )
        out = Samples(*(np.asarray(x)[:count] for x in out))
        if groups is None and rows.shape[-1] == 1:
            base = [list(ids) for ids in self.held]
            self._sampled = (base, rows, out, suffix)
        return out

    def score(
        self,
        groups: Sequence[int],
        rows: Sequence[Sequence[Sequence[int]]],
        scored: np.ndarray,
        *,
        group_multiple: int = 1,
    ) -> np.ndarray:
        """Returns log-probabilities of the rows' last tokens, [G, W]; see `score`."""
        count, lengths, slots, rows, start, _ = self._lay_out(
            groups, rows, group_multiple
        )
        padded = np.zeros((len(rows), scored.shape[1]), np.int32)
        padded[:count] = scored
        out = score(
            self.model,
            self.params,
            self.contexts,
            *map(self.put, (slots, lengths, rows, start, padded)),
            bucket=self._bucket(lengths),
            last=int(padded.max()),
        )
        return np.asarray(out)[:count]

    def _lay_out(self, groups, prompts, group_multiple):
        """Lays ragged prompts out as [G, W, T], left-padded, G and T in buckets."""
        count = len(prompts)
        order = range(count) if groups is None else groups
        multiple = math.lcm(group_multiple, self._multiple)
        total = count if groups is None else forest.bucket(count, multiple)
        width = len(prompts[0])
        longest = max((len(row) for group in prompts for row in group), default=1)
        length = 1 if longest <= 1 else forest.bucket(longest, _PROMPT_BUCKET)
        rows = np.zeros((total, width, length), np.int32)
        start = np.zeros((total, width), np.int32)
        active = np.zeros((total, width), bool)
        lengths, slots = np.zeros((2, total), np.int32)
        for g, (slot, group) in enumerate(zip(order, prompts, strict=True)):
            slots[g], lengths[g] = slot, len(self.held[slot])
            for w, ids in enumerate(group):
                if len(ids):
                    rows[g, w, length - len(ids) :] = ids
                    start[g, w] = length - len(ids)
                    active[g, w] = True
        return count, lengths, slots, rows, start, active


def _common_prefix(held: Sequence[int], ids: Sequence[int]) -> int:
    if held == ids[: len(held)]:
        return len(held)
    for index, (a, b) in enumerate(zip(held, ids, strict=False)):
        if a != b:
            return index
    return min(len(held), len(ids))
