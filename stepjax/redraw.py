"""Samples that repeat an earlier one, drawn again where the model was not sure.

A model that is sure of a step writes it nearly every time, also where it is wrong: a
search that should compare w steps then has one or two. Here another sample is drawn for
each repeated one, which still counts. What was drawn is seen as a tree of tokens: at
each node, some probability is left for tokens that no sample has there. A new sample
leaves the tree where most is left, with such a token, and the model goes on from it.
Where less than a given probability is left at every node, nothing is drawn again.

The token is drawn without replacement as in arXiv 2002.09067 ("Incremental Sampling
Without Replacement for Sequence Models"). There the node is drawn too; taking the one
with the most probability gives fewer steps that are only spelt in an unusual way.
"""

import dataclasses
import heapq
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from stepjax.lm import draws
from stepjax.lm.generate import Begun
from stepjax.lm.layout import Ids
from stepjax.lm.sampler import Decoding, SampledRow, Sampler, sampled_row


@dataclasses.dataclass(frozen=True)
class Leaving:
    """Where a new sample leaves the tree.

    Attributes:
      ids: its first tokens, which it shares with others; often none.
      logps: their log-probabilities.
      excluded: ids that the token behind them is not.
    """

    ids: tuple[int, ...]
    logps: tuple[float, ...]
    excluded: tuple[int, ...]


def leavings(samples: Sequence[SampledRow], count: int, least: float) -> list[Leaving]:
    """Returns where new samples leave the tree of those that were drawn.

    Two of them may leave at the same node: each that does halves what counts as left
    there.

    Args:
      samples: what was drawn behind one context, at least one.
      count: of new samples.
      least: probability that must be left at a node.

    Returns:
      At most `count`, those with the most probability first.
    """
    after: dict[tuple[int, ...], dict[int, float]] = {}
    for row in samples:
        for place, (token, logp) in enumerate(zip(row.ids, row.logps, strict=False)):
            after.setdefault(row.ids[:place], {})[token] = float(logp)
    reached, heap = {(): 0.0}, []
    for ids, tokens in after.items():  # what is behind a node was put in after it
        reached |= {(*ids, token): reached[ids] + p for token, p in tokens.items()}
        others = 1 - sum(map(math.exp, tokens.values()))
        heapq.heappush(heap, (-math.exp(reached[ids]) * others, ids))
    found: list[Leaving] = []
    while len(found) < count and heap and -heap[0][0] >= least:
        left, ids = heap[0]
        heapq.heapreplace(heap, (left / 2, ids))
        logps = [after[ids[:place]][token] for place, token in enumerate(ids)]
        found.append(Leaving(ids, tuple(logps), tuple(after[ids])))
    return found


def redraw_repeated(
    sampler: Sampler,
    contexts: Mapping[int, Ids],
    paths: Mapping[int, Sequence[Sequence[int]]],
    rows: Mapping[int, Sequence[SampledRow]],
    decoding: Decoding,
    *,
    least: float,
    turn: int,
) -> dict[int, list[SampledRow]]:
    """Draws as many new samples at each slot as there repeat an earlier one.

    Two of the new ones may be the same, since they are drawn together.

    Args:
      sampler: it holds the contexts without their last ids.
      contexts: slot → all ids that its rows continue.
      paths: slot → key path of each row.
      rows: slot → what was sampled so far.
      decoding: how it was sampled.
      least: probability, at temperature 1, that must be left where a new one begins.
      turn: how often this was done before, from 1.

    Returns:
      Slot → new samples; without the slots that have none.
    """
    width = len(next(iter(paths.values())))
    together = sampler.rows_together(width)
    groups: list[_Group] = []
    for slot, sampled in rows.items():
        missing = width - len({row.ids for row in sampled})
        found = leavings(sampled, missing, least) if missing else []
        for at in range(0, len(found), together):
            end = at + together
            groups.append(_Group(slot, found[at:end], paths[slot][at:end]))
    if not groups:
        return {}
    table = np.asarray(decoding.stops)
    fed: list[list[Ids]] = [[()] * together for _ in groups]
    keys = np.zeros((len(groups), together, draws.PATH_LENGTH), np.uint32)
    excluded = np.full((len(groups), together, width), table.shape[1], np.int32)
    stop = np.zeros((len(groups), together), np.int32)
    for g, (slot, places, of_slot) in enumerate(groups):
        for n, place in enumerate(places):
            fed[g][n] = (contexts[slot][-1], *place.ids)
            keys[g, n] = draws.redrawn_path(of_slot[n], turn)
            excluded[g, n, : len(place.excluded)] = place.excluded
            for token in place.ids:
                stop[g, n] = table[stop[g, n], token]
    drawn: dict[int, list[SampledRow]] = {}
    size = sampler.batch_size(together)
    for at in range(0, len(groups), size):
        batch = slice(at, at + size)
        slots = [group.slot for group in groups[batch]]
        begun = Begun(excluded[batch], stop[batch])
        out = sampler.sample(
            fed[batch], keys[batch], decoding, slots=slots, size=size, begun=begun
        )
        for g, group in enumerate(groups[batch]):
            drawn.setdefault(group.slot, []).extend(
                _joined(place, sampled_row(out, g, n), decoding.budget)
                for n, place in enumerate(group.places)
            )
    return drawn


class _Group(NamedTuple):
    """New samples of one slot that are computed together.

    Attributes:
      slot: the slot.
      places: where each of them leaves the tree.
      paths: key paths of rows that were drawn before; sample n takes the n-th.
    """

    slot: int
    places: Sequence[Leaving]
    paths: Sequence[Sequence[int]]


def _joined(place: Leaving, row: SampledRow, budget: int) -> SampledRow:
    """Returns a whole sample; one that is longer than the budget is cut off."""
    ids, logps = place.ids + row.ids, np.array(place.logps + tuple(row.logps))
    fits = len(ids) <= budget
    return SampledRow(ids[:budget], row.stopped and fits, logps[:budget])
