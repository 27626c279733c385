"""Which token ids each context cache holds: the host side of `stepjax.lm.generate`."""

import math
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from stepjax import forest
from stepjax.lm import generate, sharding

_CONTEXT_BUCKET, _PROMPT_BUCKET = 64, 16  # lengths are compiled in multiples


class Slots:
    """Context caches of P problems, and which token ids each of them holds.

    Host state around the pure functions of `generate`: ``hold`` brings slots to given
    ids with the least work (shorten, append the suffix just sampled, compute the rest).

    Attributes:
      held: token ids whose keys and values each slot holds.
      made: tokens that were sampled so far.
      turns: tokens that the rows of all calls had time for: `made`, and the turns in
        which a row had stopped, or was never used, while others went on.
    """

    def __init__(self, model, params, mesh: Mesh, slots: int, capacity: int):
        """Allocates empty caches, split over slots and over `tensor` by heads.

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
        where = sharding.split_caches(mesh)

        @jax.jit  # without out_shardings: XLA names the split as it does for `extend`
        def make():
            empty = generate.empty_contexts(model.config, slots, capacity)
            return jax.lax.with_sharding_constraint(empty, where)

        self.contexts = make()
        self.held: list[list[int]] = [[] for _ in range(slots)]
        self.made = self.turns = 0
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
            self.contexts = generate.append(
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
        self.contexts = generate.extend(
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

    def start(
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
        share: Sequence[int] = (),
    ) -> Callable[[], generate.Samples]:
        """Begins to sample behind the held contexts; see `generate.sample`.

        The devices work while the host does something else.

        Args:
          groups: slot of each group; None for one group a slot, in order, whose
            suffixes `hold` may then append.
          prompts: ids fed first, group by group, row by row; an empty row is unused.
          paths: [G, W, n] uint32 key path of each row.
          seed: see `generate.sample`.
          temperature: see `generate.sample`.
          top_p: see `generate.sample`.
          stops: stop table, on device.
          vocab: see `generate.sample`.
          budget: see `generate.sample`.
          capacity: see `generate.sample`.
          group_multiple: the number of groups is padded to a bucket of this.
          share: so many rows in a row, of the W of a group, share the tokens that all
            of them begin with: they are computed once. Several levels, from many rows
            to few.

        Returns:
          A function that waits, and returns `generate.Samples` as numpy arrays of the
          given groups. With `groups` None, call it before `hold`.
        """
        count, lengths, slots, leads, rows, start, active = self._lay_out(
            groups, prompts, group_multiple, share
        )
        padded = np.zeros((len(rows), *paths.shape[1:]), np.uint32)
        padded[:count] = paths
        keep = groups is None and rows.shape[-1] == 1  # `hold` may append them
        out, suffix = generate.sample(
            self.model,
            self.params,
            self.contexts,
            None if groups is None else self.put(slots),
            *map(self.put, (lengths, leads, rows, start, active, padded)),
            np.uint32(seed),
            np.float32(temperature),
            np.float32(top_p),
            stops,
            np.int32(vocab),
            np.int32(budget),
            bucket=self._bucket(lengths),
            capacity=capacity,
            keep=keep,
        )

        def finish() -> generate.Samples:
            made = generate.Samples(*(np.asarray(x)[:count] for x in out))
            self.made += int(made.count.sum())
            self.turns += rows.shape[0] * rows.shape[1] * int(made.count.max(initial=0))
            if keep:
                base = [list(ids) for ids in self.held]
                self._sampled = (base, rows, made, suffix)
            return made

        return finish

    def sample(self, *args, **options) -> generate.Samples:
        """Samples behind the held contexts, and waits; see `start`."""
        return self.start(*args, **options)()

    def score(
        self,
        groups: Sequence[int],
        rows: Sequence[Sequence[Sequence[int]]],
        scored: np.ndarray,
        *,
        vocab: int,
        group_multiple: int = 1,
        share: Sequence[int] = (),
    ) -> np.ndarray:
        """Returns log-probabilities of the rows' last tokens, [G, W].

        Args:
          groups: slot of each group.
          rows: see `generate.score`; ragged.
          scored: see `generate.score`.
          vocab: see `generate.score`.
          group_multiple: see `start`.
          share: see `start`.
        """
        last = int(scored.max(initial=0))
        count, lengths, slots, leads, rows, start, _ = self._lay_out(
            groups, rows, group_multiple, share, last=last
        )
        padded = np.zeros((len(rows), scored.shape[1]), np.int32)
        padded[:count] = scored
        out = generate.score(
            self.model,
            self.params,
            self.contexts,
            *map(self.put, (slots, lengths, leads, rows, start, padded)),
            vocab=vocab,
            bucket=self._bucket(lengths),
            last=last,
        )
        return np.asarray(out)[:count]

    def _lay_out(self, groups, prompts, group_multiple, share, last=0):
        """Lays ragged prompts out as [G, W, T], left-padded, G and T in buckets.

        Where some rows share their first tokens these become `generate.Leads`. `last`
        tokens are scored: they and the one before are no part of a lead; of them the
        last is not fed, and the bucket is of the others.
        """
        count, beyond = len(prompts), min(last, 1)
        order = range(count) if groups is None else groups
        multiple = math.lcm(group_multiple, self._multiple)
        total = count if groups is None else forest.bucket(count, multiple)
        width = len(prompts[0])
        found = []
        for size in share:
            level, prompts = _parted(prompts, size, last + 1)
            found.append(level)
        longest = max((len(row) for group in prompts for row in group), default=1)
        length = max(1, longest - beyond)
        if length > 1:
            # After a lead, what is scored is short and always as long.
            length = forest.bucket(length, 1 if share and last else _PROMPT_BUCKET)
        lead = max((len(ids) for level in found for ids in level), default=0)
        lead = forest.bucket(lead, _PROMPT_BUCKET)
        if share and length > _PROMPT_BUCKET:  # few shapes: one length for both
            length = lead = max(length, lead)
        leads = tuple(
            _leads(level, (total, width // size, lead))
            for level, size in zip(found, share, strict=True)
        )
        length += beyond
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
        return count, lengths, slots, leads, rows, start, active


def _parted(prompts, share: int, least: int) -> tuple[list, list]:
    """Parts prompts into what `share` rows in a row begin with, and what is left.

    At least `least` tokens of a row are left; empty rows stay empty.
    """
    found, rest = [], []
    for group in prompts:
        rest.append([])
        for at in range(0, len(group), share):
            rows = group[at : at + share]
            used = [ids for ids in rows if len(ids)] or [()]
            size = min(_common_prefix(used[0], ids) for ids in used)
            size = max(0, min(size, min(map(len, used)) - least))
            found.append(used[0][:size])
            rest[-1] += [ids[size:] for ids in rows]
    return found, rest


def _leads(found, shape: tuple[int, int, int]) -> generate.Leads:
    """Lays leads out as [G, A, M], right-padded."""
    tokens = np.zeros((shape[0] * shape[1], shape[2]), np.int32)
    counts = np.zeros(len(tokens), np.int32)
    for row, ids in enumerate(found):
        tokens[row, : len(ids)], counts[row] = ids, len(ids)
    return generate.Leads(tokens.reshape(shape), counts.reshape(shape[:2]))


def _common_prefix(held: Sequence[int], ids: Sequence[int]) -> int:
    if tuple(held) == tuple(ids[: len(held)]):
        return len(held)
    for index, (a, b) in enumerate(zip(held, ids, strict=False)):
        if a != b:
            return index
    return min(len(held), len(ids))
