"""Samples behind cached contexts: the host side of `stepjax.lm.generate`.

    decoding = make_decoding(tokenizer, stops, seed=0, temperature=0.5, …)
    sampler = Sampler(model, params, mesh, slots=32, capacity=1024)
    sampler.hold({slot: context for slot, context in …})
    samples = sampler.sample(prompts, paths, decoding)

A `Sampler` knows which token ids each context cache holds, lays ragged prompts out as
arrays of few shapes, and leaves the rest to the jitted functions.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from stepjax import forest
from stepjax.lm import generate, sharding, stops
from stepjax.lm.generate import Decoding, Leads, Prefix, Rows, Samples
from stepjax.lm.tokenizer import Tokenizer

_CONTEXT_BUCKET, _PROMPT_BUCKET = 64, 16  # lengths are compiled in multiples

Ids = Sequence[int]


def make_decoding(
    tokenizer: Tokenizer,
    stop_strings: Iterable[str],
    *,
    seed: int,
    temperature: float,
    top_p: float,
    max_tokens: int,
) -> Decoding:
    """Returns how to sample with a tokenizer, its stop table on the device.

    Args:
      tokenizer: a row ends at its stop ids (end-of-sequence).
      stop_strings: a row also ends once its text holds any of these.
      seed: base of all random keys.
      temperature: 0 is greedy.
      top_p: in (0, 1].
      max_tokens: budget of a row.
    """
    table = stops.compile_stops(tokenizer.token_bytes, stop_strings, tokenizer.stop_ids)
    table, vocab = jax.numpy.asarray(table), tokenizer.vocab_size
    return Decoding(seed, temperature, top_p, table, vocab, max_tokens)


class Sampler:
    """A model that samples and scores behind the cached contexts of P slots.

    Host state around the pure functions of `generate`: ``hold`` brings slots to given
    ids with the least work (shorten, append the suffix just sampled, compute the rest).

    Attributes:
      held: token ids whose keys and values each slot holds.
      new_tokens: tokens sampled so far.
      row_steps: rows x decoding steps so far; `new_tokens` / `row_steps` is the share
        of them that was useful.
    """

    def __init__(self, model, params, mesh: Mesh, slots: int, capacity: int):
        """Allocates empty caches, split over slots and over `tensor` by heads.

        Args:
          model: the decoder.
          params: its parameters.
          mesh: from `sharding.make_mesh`.
          slots: P, a multiple of the data-parallel devices.
          capacity: C, most tokens of a context.

        Raises:
          ValueError: when the slots do not divide over the devices.
        """
        self.model, self.params, self.capacity = model, params, capacity
        self._split = sharding.split_rows(mesh)
        self._multiple = sharding.row_multiple(mesh)
        if slots % self._multiple:
            raise ValueError(
                f"{slots} slots; expected a multiple of the {self._multiple} "
                "data-parallel devices."
            )
        shardings = sharding.split_caches(mesh)

        @jax.jit  # without out_shardings: XLA names the split as it does for `extend`
        def allocate():
            empty = generate.empty_contexts(model.config, slots, capacity)
            return jax.lax.with_sharding_constraint(empty, shardings)

        self.contexts = allocate()
        self.held: list[list[int]] = [[] for _ in range(slots)]
        self.new_tokens = self.row_steps = 0
        self._last: _LastSamples | None = None

    def hold(self, wanted: dict[int, Ids]) -> None:
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
        """Appends what was sampled last, where it is missing; drops it from `missing`.

        Its keys and values are still in the suffix caches, so nothing is computed.
        """
        if self._last is None:
            return
        last, self._last = self._last, None
        samples = last.samples
        choice, lengths, counts = np.zeros((3, len(self.held)), np.int32)
        for slot, ids in list(missing.items()):
            if self.held[slot] != last.held[slot]:
                continue
            sampled = samples.tokens[slot][:, :-1]
            fed = np.concatenate([last.prompts[slot], sampled], axis=1)
            if len(ids) > fed.shape[1]:
                continue
            # A row's last sampled token may never have been fed.
            match = (fed[:, : len(ids)] == np.asarray(ids)).all(1)
            match &= samples.count[slot] >= len(ids)
            if match.any():
                choice[slot] = int(match.argmax())
                lengths[slot] = len(self.held[slot])
                counts[slot] = len(ids)
                self.held[slot] += ids
                del missing[slot]
        if counts.any():
            self.contexts = generate.append(
                self.contexts, last.suffix, *self._put((choice, lengths, counts))
            )

    def _compute(self, missing: dict[int, list[int]]) -> None:
        """Computes the keys and values of the missing ids, at the slots' ends."""
        half = -(-len(self.held) // 2)  # two shapes: a whole refill, or a partial one
        groups = half if len(missing) <= half else len(self.held)
        groups = -(-groups // self._multiple) * self._multiple
        length = forest.bucket(max(map(len, missing.values())), _PROMPT_BUCKET)
        slots = np.full(groups, len(self.held), np.int32)
        tokens = np.zeros((groups, length), np.int32)
        lengths, counts = np.zeros((2, groups), np.int32)
        for group, (slot, ids) in enumerate(missing.items()):
            slots[group], lengths[group] = slot, len(self.held[slot])
            counts[group] = len(ids)
            tokens[group, : len(ids)] = ids
            self.held[slot] += ids
        addition = generate.Addition(slots, lengths, tokens, counts)
        self.contexts = generate.extend(
            self.model,
            self.params,
            self.contexts,
            self._put(addition),
            bucket=self._bucket(lengths),
        )

    def start(
        self,
        prompts: Sequence[Sequence[Ids]],
        paths: np.ndarray,
        decoding: Decoding,
        *,
        slots: Sequence[int] | None = None,
        share: Sequence[int] = (),
        capacity: int | None = None,
    ) -> Callable[[], Samples]:
        """Begins to sample behind the held contexts; see `generate.sample`.

        The devices work while the host does something else.

        Args:
          prompts: what each row of each group is fed first; an empty row is unused.
          paths: [G, W, n] uint32 key path of each row, from `draws.candidate_path` or
            `draws.judgment_path`; those of unused rows do not matter.
          decoding: from `make_decoding`.
          slots: slot of each group. None: group g reads slot g, and the next `hold` may
            append what is sampled here.
          share: block sizes, largest first, each a divisor of the one before and of W:
            the common prefix of each block of that many consecutive rows is computed
            once. (30, 5): one per 30 rows, then one per 5.
          capacity: room for new tokens, which shapes the program; None: the budget.

        Returns:
          A function that waits, and returns `Samples` as numpy arrays of the given
          groups. Without `slots`, call it before `hold`.
        """
        count = len(prompts)
        prefix, rows = self._lay_out(slots, prompts, share)
        padded = np.zeros((len(rows.prompts), *paths.shape[1:]), np.uint32)
        padded[:count] = paths
        keep = slots is None and rows.prompts.shape[-1] == 1  # `hold` may append it
        samples, suffix = generate.sample(
            self.model,
            self.params,
            *self._placed(prefix, rows._replace(paths=padded)),
            _typed(decoding),
            bucket=self._bucket(prefix.lengths),
            capacity=decoding.budget if capacity is None else capacity,
            keep=keep,
        )

        def finish() -> Samples:
            on_host = Samples(*(np.asarray(x)[:count] for x in samples))
            self.new_tokens += int(on_host.count.sum())
            self.row_steps += rows.active.size * int(on_host.count.max(initial=0))
            if keep:
                held = [list(ids) for ids in self.held]
                self._last = _LastSamples(held, rows.prompts, on_host, suffix)
            return on_host

        return finish

    def sample(self, *args, **options) -> Samples:
        """Samples behind the held contexts, and waits; see `start`."""
        return self.start(*args, **options)()

    def score(
        self,
        sequences: Sequence[Sequence[Ids]],
        scored: np.ndarray,
        *,
        vocab: int,
        slots: Sequence[int],
        share: Sequence[int] = (),
    ) -> np.ndarray:
        """Returns log-probabilities of the rows' last tokens, [G, W] float32.

        Args:
          sequences: ids of each row of each group, with at least one before the scored
            ones; an empty row is unused.
          scored: how many of a row's last tokens count, [G, W].
          vocab: ids from here on (padding of the embedding) have no probability.
          slots: slot of each group.
          share: see `start`.
        """
        count, last = len(sequences), int(scored.max(initial=1))
        prefix, rows = self._lay_out(slots, sequences, share, last=last)
        padded = np.zeros(rows.start.shape, np.int32)
        padded[:count] = scored
        out = generate.score(
            self.model,
            self.params,
            *self._placed(prefix, rows),
            self._put(padded),
            vocab=vocab,
            bucket=self._bucket(prefix.lengths),
            last=last,
        )
        return np.asarray(out)[:count]

    def _put(self, tree):
        """Places host arrays with their first axes split over the devices."""
        return jax.device_put(tree, self._split)

    def _placed(self, prefix: Prefix, rows: Rows) -> tuple[Prefix, Rows]:
        """Returns both on the devices, with the context caches."""
        prefix, rows = self._put((prefix, rows))
        return prefix._replace(contexts=self.contexts), rows

    def _bucket(self, lengths: np.ndarray) -> int:
        """Returns how many keys of each context to read."""
        return min(
            self.capacity, forest.bucket(int(lengths.max(initial=1)), _CONTEXT_BUCKET)
        )

    def _lay_out(self, slots, prompts, share, last=0) -> tuple[Prefix, Rows]:
        """Lays ragged prompts out as arrays of few shapes.

        Prompts become [G, W, T], left-padded, with G and T in buckets. Common prefixes
        of rows become `Leads`.

        Args:
          slots: slot of each group; None for all in order.
          prompts: ids of each row of each group.
          share: block sizes of the levels of leads.
          last: most tokens at the end of a row that are scored; 0 when sampling. They
            and the token that predicts the first of them stay out of a lead. The final
            token is never fed, so lengths are bucketed without it.

        Returns:
          The prefix without its contexts, and the rows without key paths; host arrays.
        """
        groups, width, unfed = len(prompts), len(prompts[0]), min(last, 1)
        for larger, size in zip((width, *share), share, strict=False):
            if larger % size:
                raise ValueError(
                    f"share={tuple(share)} for groups of {width} rows; expected each "
                    "number to divide the one before it, and the first the rows."
                )
        if slots is not None:
            groups = forest.bucket(groups, len(self.held))
        levels = []
        for size in share:
            common, prompts = _split_blocks(prompts, size, last + 1)
            levels.append(common)
        longest = max((len(ids) for group in prompts for ids in group), default=1)
        length = max(1, longest - unfed)
        if length > 1:
            # Rows behind a lead end in verdicts: short, of equal length, so they need
            # no coarse bucket.
            length = forest.bucket(length, 1 if share and last else _PROMPT_BUCKET)
        lead = max((len(ids) for common in levels for ids in common), default=0)
        lead = forest.bucket(lead, _PROMPT_BUCKET)
        if share and length > _PROMPT_BUCKET:  # few shapes: one length for both
            length = lead = max(length, lead)
        leads = tuple(
            _padded_leads(common, (groups, width // size, lead))
            for common, size in zip(levels, share, strict=True)
        )
        length += unfed
        tokens = np.zeros((groups, width, length), np.int32)
        start = np.zeros((groups, width), np.int32)
        active = np.zeros((groups, width), bool)
        slot_of, lengths = np.zeros((2, groups), np.int32)
        order = range(len(prompts)) if slots is None else slots
        for g, (slot, group) in enumerate(zip(order, prompts, strict=True)):
            slot_of[g], lengths[g] = slot, len(self.held[slot])
            for w, ids in enumerate(group):
                if len(ids):
                    tokens[g, w, length - len(ids) :] = ids
                    start[g, w] = length - len(ids)
                    active[g, w] = True
        slot_of = None if slots is None else slot_of
        return Prefix(None, slot_of, lengths, leads), Rows(tokens, start, active)


class _LastSamples(NamedTuple):
    """What `hold` may append: what was sampled last with one group per slot.

    Attributes:
      held: ids that each slot held then.
      prompts: [P, W, T], as they were fed.
      samples: numpy arrays.
      suffix: their caches, [L, P, K, W, T + N, D].
    """

    held: list[list[int]]
    prompts: np.ndarray
    samples: Samples
    suffix: jax.Array


def _typed(decoding: Decoding) -> Decoding:
    """Returns the settings in the types of compiled programs."""
    seed, temperature, top_p, table, vocab, budget = decoding
    return Decoding(
        np.uint32(seed),
        np.float32(temperature),
        np.float32(top_p),
        table,
        np.int32(vocab),
        np.int32(budget),
    )


def _split_blocks(prompts, size: int, least: int) -> tuple[list, list]:
    """Splits each block of `size` consecutive prompts into common prefix and rest.

    At least `least` tokens of a row stay in its rest; empty rows stay empty.

    Args:
      prompts: ids of each row of each group.
      size: rows of a block.
      least: see above.

    Returns:
      (common prefix of each block of each group, rest of each row of each group).
    """
    common, rest = [], []
    for group in prompts:
        rest.append([])
        for at in range(0, len(group), size):
            block = group[at : at + size]
            used = [ids for ids in block if len(ids)] or [()]
            length = min(_common_prefix(used[0], ids) for ids in used)
            length = max(0, min(length, min(map(len, used)) - least))
            common.append(used[0][:length])
            rest[-1] += [ids[length:] for ids in block]
    return common, rest


def _padded_leads(common: Sequence[Ids], shape: tuple[int, int, int]) -> Leads:
    """Lays leads out as [G, A, M], right-padded."""
    tokens = np.zeros((shape[0] * shape[1], shape[2]), np.int32)
    counts = np.zeros(len(tokens), np.int32)
    for number, ids in enumerate(common):
        tokens[number, : len(ids)], counts[number] = ids, len(ids)
    return Leads(tokens.reshape(shape), counts.reshape(shape[:2]))


def _common_prefix(held: Ids, ids: Ids) -> int:
    """Returns how many ids both sequences begin with."""
    if tuple(held) == tuple(ids[: len(held)]):
        return len(held)
    for index, (a, b) in enumerate(zip(held, ids, strict=False)):
        if a != b:
            return index
    return min(len(held), len(ids))
