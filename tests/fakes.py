"""Fakes of models: a sampler, verdicts by rank, a table of logits; small things."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from stepjax import config, settings
from stepjax.codec import Codec
from stepjax.initial_data import step_tree
from stepjax.judge import ordered_pairs
from stepjax.lm.generate import Decoding, Samples
from stepjax.prompts import SIDES, parse_verdict
from stepjax.records import Question
from stepjax.trajectory import Candidate, Proposal, Verdict


class Asked(NamedTuple):
    """One row that was sampled or scored.

    Attributes:
      context: text of the ids that the row's slot held.
      prompt: text of what was fed behind it, without the tokens that were scored.
      path: key path; empty for a scored row.
    """

    context: str
    prompt: str
    path: tuple[int, ...] = ()


class Batch(NamedTuple):
    """What one use of the sampler was given.

    Attributes:
      groups: slot of each group; None for one group per slot.
      rows: the rows in use, in order.
      options: the keyword arguments and fields of the decoding, less its stops.
    """

    groups: list[int] | None
    rows: list[Asked]
    options: dict


class FakeSampler:
    """Stands in for `stepjax.lm.sampler.Sampler`; a function writes what is sampled.

    As in the real one, a row ends where its stop table says or where its budget ends,
    each written token has log-probability -0.25, and other rows do not matter.

    Attributes:
      held: token ids of each slot; empty as long as `hold` has not named it.
      batches: what it was given so far.
    """

    def __init__(self, codec: Codec, slots: int, respond: Callable):
        """Takes what each row is answered with.

        Args:
          codec: reads and writes the texts.
          slots: how many contexts are held.
          respond: (context text, prompt text, key path) → what is written, as text or
            as token ids. For `score`: (context text, prompt text, ()) → log-odds of
            verdict A.
        """
        self.codec, self.respond = codec, respond
        self.held = [()] * slots
        self.capacity = 4096  # as far as callers ask; `hold` takes any length
        self.batches: list[Batch] = []

    @property
    def asked(self) -> list[Asked]:
        """The rows of all batches, in order."""
        return [row for batch in self.batches for row in batch.rows]

    def batch_size(self, rows: int) -> int:
        return len(self.held)

    def hold(self, wanted: dict[int, Sequence[int]]) -> None:
        for slot, ids in wanted.items():
            self.held[slot] = tuple(ids)

    def sample(
        self, prompts, paths, decoding: Decoding, *, slots=None, **options
    ) -> Samples:
        shape, stops = paths.shape[:2], np.asarray(decoding.stops)
        capacity, settings = decoding.budget, decoding._asdict()
        del settings["stops"]
        assert all(len(group) == shape[1] for group in prompts)
        tokens = np.zeros((*shape, capacity), np.int32)
        count, stopped = np.zeros(shape, np.int32), np.zeros(shape, bool)
        batch = self._begin(slots, options | settings)
        for g, w, context, ids in self._used(slots, prompts):
            path = tuple(paths[g, w].tolist())
            row = Asked(context, self.codec.tokenizer.decode(ids), path)
            batch.rows.append(row)
            answer = self.respond(*row)
            if isinstance(answer, str):
                answer = self.codec.tokenizer.encode_line(answer)
            count[g, w], stopped[g, w] = written(stops, answer, capacity)
            tokens[g, w, : count[g, w]] = answer[: count[g, w]]
        in_use = np.arange(capacity) < count[..., None]
        return Samples(tokens, count, stopped, np.where(in_use, -0.25, 0.0))

    def start(self, *args, **options) -> Callable[[], Samples]:
        """Samples at once."""
        samples = self.sample(*args, **options)
        return lambda: samples

    def score(self, prompts, scored, *, slots, **options) -> np.ndarray:
        logps = np.zeros(scored.shape)
        batch = self._begin(slots, options)
        for g, w, context, ids in self._used(slots, prompts):
            size = scored[g, w]
            said = self.codec.tokenizer.decode(ids[-size:])
            side = parse_verdict(self.codec.templates, said, SIDES)
            row = Asked(context, self.codec.tokenizer.decode(ids[:-size]))
            batch.rows.append(row)
            sign = {"A": 1, "B": -1, "C": 0}[side]
            logps[g, w] = -7 + self.respond(*row) / 2 * sign
        return logps

    def _begin(self, groups, options) -> Batch:
        groups = None if groups is None else list(groups)
        self.batches.append(Batch(groups, [], options))
        return self.batches[-1]

    def _used(self, groups, prompts):
        """(group, row, context text, prompt ids) of the rows in use."""
        groups = range(len(self.held)) if groups is None else groups
        for g, (slot, group) in enumerate(zip(groups, prompts, strict=True)):
            context = self.codec.tokenizer.decode(self.held[slot])
            for w, ids in enumerate(group):
                if len(ids):
                    yield g, w, context, ids


def written(stops, ids, capacity: int) -> tuple[int, bool]:
    """Returns how many of the ids sampling would write, and whether it then stopped."""
    state = 0
    for count, token in enumerate(ids[:capacity], 1):
        state = stops[state, token]
        if state == len(stops) - 1:
            return count, True
    return min(len(ids), capacity), False


def verdicts_of(text: str) -> list[Verdict]:
    """Verdicts from a table like "01A 10B 12-": shown as A, shown as B, winner."""
    return [
        Verdict(int(a), int(b), None if winner == "-" else winner)
        for a, b, winner in text.split()
    ]


def by_rank(*ranks: int) -> list[Verdict]:
    """Verdicts of all ordered pairs; the higher rank wins, equal ones are unparsed."""
    verdicts = []
    for a, b in ordered_pairs(len(ranks), "sum", ()):
        gap = ranks[a] - ranks[b]
        winner = "A" if gap > 0 else "B" if gap < 0 else None
        verdicts.append(Verdict(a, b, winner, f"{a} or {b}?"))
    return verdicts


def teacher_options(**changed) -> settings.Teacher:
    """Settings of a small teacher."""
    options = settings.from_config(config.default()).teacher
    small = dict(model="M", max_tokens=100, concurrency=4, timeout=5.0, retries=3)
    small |= dict(key_variable="TEACHER_KEY")
    return dataclasses.replace(options, **small | changed)


def candidate(text: str, count: int = 1, finished: bool = False) -> Candidate:
    """A candidate whose ids are the bytes of its text."""
    return Candidate(tuple(text.encode()), text, count, -1.0, finished)


def proposal(*texts: str) -> Proposal:
    """Candidates with these texts."""
    return Proposal(tuple(map(candidate, texts)))


def grown_tree(*probabilities: float, counts: Sequence[int] = ()) -> step_tree.Tree:
    """A tree whose root has children a, b, c ... with these probabilities."""
    tree = step_tree.new_tree(Question("q", "a problem"))
    counts = counts or [1] * len(probabilities)
    candidates = [candidate(chr(97 + n), count) for n, count in enumerate(counts)]
    step_tree.expand(tree, 0, Proposal(tuple(candidates)), probabilities)
    return tree


class Table:
    """A model whose logits are parameters: one vector for each token of the rows."""

    mesh = None

    def apply(self, variables, tokens, position, subtree_end):
        return variables["params"]["logits"]


def assert_same(found, expected):
    """The arrays of two trees have the same bits, types and shardings."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert a.dtype == b.dtype and a.sharding.is_equivalent_to(b.sharding, a.ndim)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def random_parameters(shapes, seed: int = 3, std: float = 0.4):
    """Draws float32 arrays so large that every part of a model matters.

    Args:
      shapes: tree of what has a shape, such as `model.abstract_params(model)`; boxes
        of Flax are taken off.
      seed: of the numbers.
      std: standard deviation. The scales of norms are 1 and a ninth of it.
    """
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = std * rng.normal(size=leaf.shape)
        return jnp.asarray(1 + noise / 9 if "scale" in str(path) else noise, "float32")

    return jax.tree_util.tree_map_with_path(draw, nn.meta.unbox(shapes))
