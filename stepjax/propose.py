"""The model as the proposer of next steps.

A step ends where the marker of the next one would begin, or at EOS; it is malformed
when it was cut off by the budget, does not begin with its own marker or holds a
verdict.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from stepjax import prompts
from stepjax.codec import Codec
from stepjax.lm import draws, stops
from stepjax.lm.sampler import Sampler, make_decoding, sample_behind
from stepjax.prompts import Templates
from stepjax.redraw import redraw_repeated
from stepjax.trajectory import (
    CUT_OFF,
    NO_MARKER,
    OTHER,
    VERDICT,
    Candidate,
    Proposal,
    State,
    context_ids,
    refused,
)

_REDRAWS = 2  # turns in which repeated samples are drawn again


class Unit(NamedTuple):
    """What a candidate is; `STEP` is the paper's.

    Attributes:
      stops: templates → strings that end a candidate, besides the stop ids of the
        tokenizer.
      fault: (templates, step number, text) → None where the text is a candidate, or
        why it is none, one of `trajectory.FAULTS`.
    """

    stops: Callable[[Templates], tuple[str, ...]]
    fault: Callable[[Templates, int, str], str | None]


def _step_fault(templates: Templates, number: int, text: str) -> str | None:
    """A step begins with its own marker, goes on after it and holds no verdict."""
    marker = prompts.marker(templates, number)
    if not text.startswith(marker):
        return NO_MARKER
    if prompts.held_verdict(templates, text):
        return VERDICT
    return None if text[len(marker) :].strip() else OTHER


STEP = Unit(prompts.step_stops, _step_fault)


def make_proposer(
    sampler: Sampler,
    codec: Codec,
    *,
    unit: Unit = STEP,
    width: int,
    temperature: float,
    top_p: float,
    max_tokens: int,
    iteration: int,
    seed: int,
    redraw: float = 0.0,
) -> Callable[[Mapping[int, State]], dict[int, Proposal]]:
    """Returns the model as the proposer of next steps.

    Args:
      sampler: context caches of the solutions.
      codec: tokenizer and templates.
      unit: what a candidate is.
      width: samples per step (w of the paper).
      temperature: of the samples.
      top_p: of the samples.
      max_tokens: most tokens of a candidate. The beginning of the next step's marker,
        at which sampling stops, counts too.
      iteration: first integer of every key path.
      seed: base seed.
      redraw: samples that repeat an earlier one are drawn again where at least this
        probability is left, see `stepjax.redraw`; 0 keeps them.
    """
    sample = make_sampling(
        sampler,
        codec,
        unit=unit,
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_tokens,
        seed=seed,
        redraw=redraw,
    )

    def place(state: State) -> Place:
        key_path = state.key_path(iteration)
        paths = [draws.candidate_path(*key_path, w) for w in range(width)]
        return Place(context_ids(codec, state), len(state.steps) + 1, paths)

    def propose(active: Mapping[int, State]) -> dict[int, Proposal]:
        places = {slot: place(state) for slot, state in active.items()}
        return sample(places)

    return propose


class Place(NamedTuple):
    """Where candidates are sampled.

    Attributes:
      context: ids of the prompt and of the steps so far.
      number: number of the next step, from 1.
      paths: key path of each sample, see `stepjax.lm.draws`; as many at every place.
    """

    context: tuple[int, ...]
    number: int
    paths: Sequence[Sequence[int]]


def make_sampling(
    sampler: Sampler,
    codec: Codec,
    *,
    unit: Unit = STEP,
    temperature: float,
    top_p: float,
    max_tokens: int,
    seed: int,
    redraw: float = 0.0,
) -> Callable[[Mapping[int, Place]], dict[int, Proposal]]:
    """Returns a function that samples candidates for the next step of several problems.

    Its argument is slot → where to sample, for at least one slot; see `make_proposer`
    for the arguments here.
    """
    parser = CandidateParser(codec, unit)
    decoding = make_decoding(
        codec.tokenizer,
        parser.stops,
        seed=seed,
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_tokens,
    )

    def sample(places: Mapping[int, Place]) -> dict[int, Proposal]:
        contexts = {slot: place.context for slot, place in places.items()}
        paths = {slot: place.paths for slot, place in places.items()}
        rows = sample_behind(sampler, contexts, paths, decoding)
        for turn in range(1, _REDRAWS + 1) if redraw else ():
            again = redraw_repeated(
                sampler, contexts, paths, rows, decoding, least=redraw, turn=turn
            )
            for slot, more in again.items():
                rows[slot] = rows[slot] + more
        return {
            slot: parser.proposal(place.number, *zip(*rows[slot], strict=True))
            for slot, place in places.items()
        }

    return sample


class CandidateParser:
    """Turns sampled ids into candidates.

    Attributes:
      stops: strings that end a candidate, besides the stop ids of the tokenizer.
    """

    def __init__(self, codec: Codec, unit: Unit = STEP):
        """Takes the strings that end a candidate from the templates.

        Args:
          codec: tokenizer and templates.
          unit: what a candidate is.
        """
        self.codec, self.unit = codec, unit
        self.stops = unit.stops(codec.templates)

    def proposal(
        self,
        number: int,
        samples: Sequence[Sequence[int]],
        stopped: Sequence[bool],
        logps: Sequence[np.ndarray],
    ) -> Proposal:
        """Returns the distinct well-formed candidates of one problem.

        Args:
          number: step number, from 1.
          samples: ids of each sample, the stopping token included.
          stopped: whether each sample reached a stop.
          logps: log-probabilities of each sample's ids, and perhaps more behind them.
        """
        counts: dict[tuple[int, ...], int] = {}
        # ids of a sample → index of the first such sample, length of the candidate,
        # and why it is no candidate, or None.
        read: dict[tuple[int, ...], tuple[int, int, str | None]] = {}
        for index, (ids, ended) in enumerate(zip(samples, stopped, strict=True)):
            ids = tuple(ids)
            if ids not in counts:
                read[ids] = (index, *self._read(number, ids, bool(ended)))
            counts[ids] = counts.get(ids, 0) + 1
        merged: dict[tuple[int, ...], Candidate] = {}
        faulty: list[tuple[str, str]] = []
        for ids, count in counts.items():
            index, size, fault = read[ids]
            if fault is not None:
                faulty += [(fault, self.codec.text(ids))] * count
                continue
            step = ids[:size]
            if step in merged:
                old = merged[step]
                merged[step] = dataclasses.replace(old, count=old.count + count)
                continue
            text = self.codec.text(step)
            final = step[-1] in self.codec.stop_ids or prompts.boxed(text) is not None
            logp = float(np.asarray(logps[index][:size], np.float64).sum())
            merged[step] = Candidate(step, text, count, logp, final)
        return Proposal(tuple(merged.values()), len(faulty), refused(faulty))

    def _read(
        self, number: int, ids: tuple[int, ...], ended: bool
    ) -> tuple[int, str | None]:
        """Returns how many ids make the candidate, and why it is none, or None."""
        if not ended:
            return len(ids), CUT_OFF
        size = len(ids)
        if ids[-1] not in self.codec.stop_ids:
            size = stops.cut_at_stop(self.codec.tokenizer.token_bytes, ids, self.stops)
        text = self.codec.text(ids[:size])
        return size, self.unit.fault(self.codec.templates, number, text)
