"""Samples behind cached contexts: the host side of `stepjax.lm.generate`.

    decoding = make_decoding(tokenizer, stops, seed=0, temperature=0.5, …)
    sampler = Sampler(model, params, mesh, slots=32, capacity=1024)
    sampler.hold({slot: context for slot, context in …})
    samples = sampler.sample(prompts, paths, decoding)

A `Sampler` knows which token ids each context cache holds, lays ragged prompts out as
arrays of few shapes, and leaves the rest to the jitted functions.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from stepjax import forest
from stepjax.lm import draws, generate, layout, sharding, stops
from stepjax.lm import model as lm
from stepjax.lm.generate import Begun, Decoding, Prefix, Rows, Samples
from stepjax.lm.layout import Ids
from stepjax.lm.memory import Memory
from stepjax.lm.tokenizer import Tokenizer

_CONTEXT_BUCKET = 64  # lengths of contexts are compiled in multiples of it
_CPU_ROWS = 64  # more rows in a batch do not make a CPU faster


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
    ids with the least work (shorten, append the suffix just sampled, copy back what is
    remembered, compute the rest).

    The counts below are of real tokens, without padding. The model computes each of
    `computed` and `fed_tokens` once, and each of `new_tokens` at most once more,
    to sample the token after it.

    Attributes:
      held: token ids whose keys and values each slot holds.
      computed: tokens that the model computed to fill contexts.
      restored: tokens that came back into contexts by a copy from the memory.
      fed_tokens: prompt tokens of the rows that were sampled or scored; what rows share
        (`share`) counts once.
      new_tokens: tokens sampled so far.
      row_steps: rows x decoding steps so far; `new_tokens` / `row_steps` is the share
        of them that was useful.
      sampled: of `new_tokens`, those of each slot, [P].
      read: of `computed` and `fed_tokens`, those of each slot, [P].
    """

    def __init__(
        self,
        model,
        params,
        mesh: Mesh,
        slots: int,
        capacity: int,
        *,
        remember: int = 0,
    ):
        """Allocates empty caches, split over slots and over `tensor` by heads.

        Args:
          model: the decoder.
          params: its parameters.
          mesh: from `sharding.make_mesh`.
          slots: P, a multiple of the data-parallel devices.
          capacity: C, most tokens of a context.
          remember: tokens per slot of contexts held earlier whose keys and values are
            kept, for a search that goes back to them. `hold` copies them back; what
            there is no room for is computed again. Call `forget` when another problem
            takes a slot. 0 keeps nothing and takes no memory.

        Raises:
          ValueError: when the slots do not divide over the devices, or `remember` is
            negative.
        """
        self.model, self.capacity = model, capacity
        self._window = model.config.sliding_window
        self._on_cpu = on_cpu = mesh.devices.flat[0].platform == "cpu"
        scanned = lm.unroll(model.config) < model.config.num_layers
        self.params = lm.by_layer(params) if on_cpu and scanned else params
        # XLA for CPU converts keys and values to float32 before it multiplies them.
        cache_type = "float32" if on_cpu else model.config.dtype
        self._split = sharding.split_rows(mesh)
        self._multiple = sharding.row_multiple(mesh)
        if slots % self._multiple:
            raise ValueError(
                f"{slots} slots; expected a multiple of the {self._multiple} "
                "data-parallel devices."
            )
        if remember < 0:
            raise ValueError(
                f"remember={remember}; expected 0 or more tokens per slot."
            )
        shardings = sharding.split_caches(mesh)

        @jax.jit  # without out_shardings: XLA names the split as it does for `extend`
        def allocate():
            empty = generate.empty_contexts(model.config, slots, capacity, cache_type)
            return jax.lax.with_sharding_constraint(empty, shardings)

        self.contexts = allocate()
        self.held: list[list[int]] = [[] for _ in range(slots)]
        self.computed = self.restored = self.fed_tokens = 0
        self.new_tokens = self.row_steps = 0
        self.sampled, self.read = np.zeros((2, slots), int)
        self._memory = None
        if remember:
            self._memory = Memory(self.contexts, mesh, remember)
        self._last: _LastSamples | None = None

    def batch_size(self, rows: int) -> int:
        """Returns how many groups of `rows` rows to compute together, at most P.

        On a CPU as many groups as make 64 rows: more rows are not faster there, and a
        small batch is filled up with less padding. Elsewhere P groups, because each
        decoding step reads all weights once for all rows of its batch.
        """
        slots = len(self.held)
        if not self._on_cpu:
            return slots
        share = -(-_CPU_ROWS // (rows * self._multiple))  # of each device
        return min(share * self._multiple, slots)

    def rows_together(self, rows: int) -> int:
        """Returns how many rows a group has where slots have from none to `rows` rows.

        On a CPU 1, because empty rows take time there. Elsewhere `rows`, because each
        group reads the context of its slot.
        """
        return 1 if self._on_cpu else rows

    def hold(self, wanted: dict[int, Ids]) -> None:
        """Makes each given slot hold exactly the given ids.

        Args:
          wanted: slot → token ids.

        Raises:
          ValueError: when ids are longer than the capacity.
        """
        missing = {}
        for ids in wanted.values():
            if len(ids) > self.capacity:
                raise ValueError(
                    f"a context of {len(ids)} tokens; expected at most "
                    f"{self.capacity}. Raise the context budget."
                )
        for slot, ids in wanted.items():
            held = self.held[slot]
            keep = layout.common_prefix(held, ids)
            del held[keep:]
            if keep < len(ids):
                missing[slot] = list(ids[keep:])
        self._append_sampled(missing)
        if self._memory:
            self._restore(missing)
        if missing:
            self._compute(missing)
        if self._memory:
            self._memory.save(self.contexts, {slot: self.held[slot] for slot in wanted})

    def forget(self, slot: int) -> None:
        """Forgets the contexts that a slot held earlier, as for another problem.

        What the slot holds now stays, so that the next context can begin like it.
        """
        if self._memory:
            self._memory.forget(slot)

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

    def _restore(self, missing: dict[int, list[int]]) -> None:
        """Copies back what the memory has; drops it from `missing`."""
        wanted = {slot: (self.held[slot], ids) for slot, ids in missing.items()}
        self.contexts, counts = self._memory.load(self.contexts, wanted)
        for slot, count in counts.items():
            ids = missing.pop(slot)
            self.held[slot] += ids[:count]
            self.restored += count
            if count < len(ids):
                missing[slot] = ids[count:]

    def _compute(self, missing: dict[int, list[int]]) -> None:
        """Computes the keys and values of the missing ids, at the slots' ends."""
        half = -(-len(self.held) // 2)  # two shapes: a whole refill, or a partial one
        groups = half if len(missing) <= half else len(self.held)
        groups = -(-groups // self._multiple) * self._multiple
        length = forest.bucket(max(map(len, missing.values())), layout.PROMPT_BUCKET)
        slots = np.full(groups, len(self.held), np.int32)
        tokens = np.zeros((groups, length), np.int32)
        lengths, counts = np.zeros((2, groups), np.int32)
        for group, (slot, ids) in enumerate(missing.items()):
            slots[group], lengths[group] = slot, len(self.held[slot])
            counts[group] = len(ids)
            tokens[group, : len(ids)] = ids
            self.held[slot] += ids
            self.read[slot] += len(ids)
        self.computed += int(counts.sum())
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
        size: int = 0,
        capacity: int | None = None,
        begun: Begun | None = None,
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
          size: with `slots`, a batch with fewer groups is filled up to this many, so
            that one program is compiled; see `batch_size`. 0: the number of slots.
          capacity: room for new tokens, which shapes the program; None: the budget.
          begun: of samples whose first tokens end the prompts, as numpy arrays of the
            given groups.

        Returns:
          A function that waits, and returns `Samples` as numpy arrays of the given
          groups. Without `slots`, call it before `hold`.
        """
        count = len(prompts)
        prefix, rows = layout.lay_out(self.held, slots, prompts, share, size=size)
        layout.check_window(self._window, prefix, rows, int(decoding.budget))
        padded = np.zeros((len(rows.prompts), *paths.shape[1:]), np.uint32)
        padded[:count] = paths
        if begun is not None:
            short = len(padded) - count
            begun = Begun(
                *(np.pad(x, ((0, short),) + ((0, 0),) * (x.ndim - 1)) for x in begun)
            )
        order = list(range(count) if slots is None else slots)
        self._feed(order, layout.real_tokens(prefix, rows))
        keep = slots is None and rows.prompts.shape[-1] == 1  # `hold` may append it
        samples, suffix = generate.sample(
            self.model,
            self.params,
            *self._placed(prefix, rows._replace(paths=padded, begun=begun)),
            _typed(decoding),
            bucket=self._bucket(prefix.lengths),
            capacity=decoding.budget if capacity is None else capacity,
            keep=keep,
        )

        def finish() -> Samples:
            on_host = Samples(*(np.asarray(x)[:count] for x in samples))
            self.new_tokens += int(on_host.count.sum())
            np.add.at(self.sampled, order, on_host.count.sum(1))
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
        size: int = 0,
    ) -> np.ndarray:
        """Returns log-probabilities of the rows' last tokens, [G, W] float32.

        Args:
          sequences: ids of each row of each group, with at least one before the scored
            ones; an empty row is unused.
          scored: how many of a row's last tokens count, [G, W].
          vocab: ids from here on (padding of the embedding) have no probability.
          slots: slot of each group.
          share: see `start`.
          size: see `start`.
        """
        count, last = len(sequences), int(scored.max(initial=1))
        prefix, rows = layout.lay_out(self.held, slots, sequences, share, last, size)
        layout.check_window(self._window, prefix, rows)
        padded = np.zeros(rows.start.shape, np.int32)
        padded[:count] = scored
        # A row's last token is only predicted.
        self._feed(slots, layout.real_tokens(prefix, rows) - rows.active.sum(1))
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

    def _feed(self, slots: Sequence[int], tokens: np.ndarray) -> None:
        """Counts the prompt tokens of groups; those of padding groups are 0."""
        self.fed_tokens += int(tokens.sum())
        np.add.at(self.read, list(slots), tokens[: len(slots)])

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


class SampledRow(NamedTuple):
    """The new ids of a row, whether it reached a stop, and the ids' log-probabilities.

    `logps` is float32; what it has beyond the number of ids does not count.
    """

    ids: tuple[int, ...]
    stopped: bool
    logps: np.ndarray


def sample_behind(
    sampler: Sampler,
    contexts: Mapping[int, Ids],
    paths: Mapping[int, Sequence[Sequence[int]]],
    decoding: Decoding,
    *,
    append: bool = True,
) -> dict[int, list[SampledRow]]:
    """Samples rows behind contexts: all ids but the last are held, the last is fed.

    Args:
      sampler: the model and its context caches.
      contexts: slot → all ids that its rows continue; at least one slot and one id.
      paths: slot → key path of each row; as many at every slot.
      decoding: from `make_decoding`.
      append: whether the next `hold` may append what is sampled here.

    Returns:
      Slot → its rows, in the order of their paths.
    """
    count, width = len(sampler.held), len(next(iter(paths.values())))
    fed = [[tuple(contexts.get(slot, ()))[-1:]] * width for slot in range(count)]
    keys = np.zeros((count, width, draws.PATH_LENGTH), np.uint32)
    for slot, rows in paths.items():
        keys[slot] = rows
    sampler.hold({slot: ids[:-1] for slot, ids in contexts.items()})
    groups = None if append else range(count)
    out = sampler.sample(fed, keys, decoding, slots=groups)
    return {
        slot: [sampled_row(out, slot, row) for row in range(width)] for slot in contexts
    }


def sampled_row(samples: Samples, group: int, row: int) -> SampledRow:
    """Returns one row of samples that are numpy arrays."""
    ids = tuple(samples.tokens[group, row, : samples.count[group, row]].tolist())
    return SampledRow(ids, bool(samples.stopped[group, row]), samples.logps[group, row])


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
