"""Step-by-step search with the model as its own judge (paper, section 3.3).

At each step w candidates are sampled, judged in pairs by the same parameters, the
best is appended, and (best, worst) is the step's preference pair. When all scores
are equal there is no preference: the previous step and its pair are dropped.

Where the paper is silent: identical candidates are one candidate with a
multiplicity; candidates that were cut off or do not start with their ``Step n: ``
marker are left out and counted; ties for best or worst break by score, multiplicity,
log-probability, then index; every expansion counts towards the budget.
``on_tie="append"`` appends the most frequent candidate without a pair instead of
going back, for models so sure of a step that all candidates agree.

`transition` is a pure function; `step_search` drives it with two callables, so the
logic is tested without a model.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np

from stepjax import prompts
from stepjax.encode import Codec
from stepjax.judge import Judge, Request, Verdict, hash_id, win_counts
from stepjax.lm import stops
from stepjax.lm.slots import Slots
from stepjax.records import Question

ON_TIE = ("back", "append")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One distinct candidate step.

    Attributes:
      ids: the sampled token ids, cut where the next step would begin.
      text: for people.
      count: how many of the w samples it is.
      logp: sum of its tokens' log-probabilities under the model.
      finished: it ends the solution (EOS, or a closed box).
    """

    ids: tuple[int, ...]
    text: str
    count: int
    logp: float
    finished: bool


@dataclasses.dataclass(frozen=True)
class Proposal:
    """Distinct well-formed candidates, and how many samples were malformed."""

    candidates: tuple[Candidate, ...]
    malformed: int = 0


@dataclasses.dataclass(frozen=True)
class Expansion:
    """What happened at one expansion; kept whole, so that pairs can be audited.

    ``action`` is "pair", "append" (a tie, kept going), "back" or "resample" (a tie
    at step 1).
    """

    step: int
    attempt: int
    candidates: tuple[Candidate, ...]
    malformed: int
    verdicts: tuple[Verdict, ...]
    scores: tuple[int, ...]
    best: int | None
    worst: int | None
    action: str


@dataclasses.dataclass(frozen=True)
class State:
    """A problem in search.

    Attributes:
      question: the problem, without an answer.
      steps: the steps kept so far.
      pairs: for each kept step, the number of the expansion that made its pair, or
        None where it was appended without one.
      expansions: all expansions, going back included.
      status: "running", "complete", "budget" or "length".
    """

    question: Question
    steps: tuple[Candidate, ...] = ()
    pairs: tuple[int | None, ...] = ()
    expansions: tuple[Expansion, ...] = ()
    status: str = "running"

    def key_path(self, iteration: int) -> tuple[int, ...]:
        """Returns (iteration, problem, step, attempt): the seed path of its draws."""
        step = len(self.steps) + 1
        return iteration, hash_id(self.question.id), step, self.attempt()

    def attempt(self) -> int:
        """Returns how often the next step was expanded before."""
        return sum(e.step == len(self.steps) + 1 for e in self.expansions)


Propose = Callable[[Mapping[int, State]], dict[int, Proposal]]


def best_and_worst(
    candidates: Sequence[Candidate], scores: Sequence[int]
) -> tuple[int, int]:
    """Returns the indices of the best and the worst candidate.

    The highest and the lowest score; among equals the one sampled more often, then
    the more probable, then the first.
    """

    def tie_break(i):
        return -candidates[i].count, -candidates[i].logp, i

    order = range(len(candidates))
    best = min(order, key=lambda i: (-scores[i], tie_break(i)))
    worst = min(order, key=lambda i: (scores[i], tie_break(i)))
    return best, worst


def transition(
    state: State,
    proposal: Proposal,
    verdicts: Sequence[Verdict],
    *,
    score: str = "sum",
    on_tie: str = "back",
    max_expansions: int = 20,
) -> State:
    """Returns the state after one expansion.

    Args:
      state: a running problem.
      proposal: its candidates for the next step.
      verdicts: the judge's calls about them.
      score: reading of equation 2, see `stepjax.judge`.
      on_tie: what to do without a preference, one of `ON_TIE`.
      max_expansions: budget; the problem is closed when it is used up.

    Raises:
      ValueError: when the state is closed, or for an unknown `on_tie`.
    """
    if state.status != "running":
        raise ValueError(
            f"problem {state.question.id!r} is {state.status}, not running."
        )
    if on_tie not in ON_TIE:
        raise ValueError(f"on_tie={on_tie!r}; expected one of {ON_TIE}.")
    candidates = proposal.candidates
    scores = win_counts(len(candidates), verdicts, score)
    best = worst = None
    if candidates:
        best, worst = best_and_worst(candidates, scores)
    steps, pairs = state.steps, state.pairs
    if candidates and max(scores) > min(scores):
        action = "pair"
        steps, pairs = (*steps, candidates[best]), (*pairs, len(state.expansions))
    elif candidates and on_tie == "append":
        action, worst = "append", None
        steps, pairs = (*steps, candidates[best]), (*pairs, None)
    else:
        action, best, worst = "back" if steps else "resample", None, None
        steps, pairs = steps[:-1], pairs[:-1]
    expansion = Expansion(
        len(state.steps) + 1,
        state.attempt(),
        candidates,
        proposal.malformed,
        tuple(verdicts),
        tuple(scores),
        best,
        worst,
        action,
    )
    expansions = (*state.expansions, expansion)
    status = "running"
    if action in ("pair", "append") and candidates[best].finished:
        status = "complete"
    elif len(expansions) >= max_expansions:
        status = "budget"
    return State(state.question, steps, pairs, expansions, status)


def step_search(
    questions: Sequence[Question],
    propose: Propose,
    judge: Judge,
    *,
    slots: int,
    iteration: int = 0,
    score: str = "sum",
    on_tie: str = "back",
    max_expansions: int = 20,
    fits: Callable[[State], bool] = lambda state: True,
    active: Mapping[int, State] | None = None,
    on_pause: Callable[[Mapping[int, State]], None] | None = None,
) -> Iterator[State]:
    """Searches all questions, `slots` at a time; yields each one when it closes.

    Slots are refilled between steps. The result of a question depends on its own
    draws alone, not on the slots or on the other questions.

    Args:
      questions: problems without answers.
      propose: slot → state to slot → proposal.
      judge: requests to verdicts, see `stepjax.judge`.
      slots: problems in flight.
      iteration: first integer of every key path.
      score: see `transition`.
      on_tie: see `transition`.
      max_expansions: see `transition`.
      fits: whether a state leaves room for another step; otherwise it is closed
        with status "length".
      active: slot → problem in flight, of a search that goes on; not in `questions`.
      on_pause: called with the problems in flight, between two expansions, whenever
        `slots` more problems were yielded: from there a search can go on.

    Yields:
      Closed states, in the order in which they close.
    """
    queue = collections.deque(questions)
    active, closed = dict(active or {}), 0
    refill_at = max(1, slots // 4)
    while queue or active:
        if on_pause and closed >= slots:
            on_pause(active)
            closed = 0
        free = [s for s in range(slots) if s not in active]
        if queue and (len(free) >= refill_at or not active):
            for slot in free[: len(queue)]:
                active[slot] = State(queue.popleft())
        for slot, state in list(active.items()):
            if not fits(state):
                del active[slot]
                closed += 1
                yield dataclasses.replace(state, status="length")
        if not active:
            continue
        proposals = propose(active)
        requests = [
            Request(
                slot,
                state.question.id,
                state.question.problem,
                tuple(step.ids for step in state.steps),
                tuple(c.ids for c in proposals[slot].candidates),
                state.key_path(iteration),
            )
            for slot, state in active.items()
        ]
        verdicts = judge(requests)
        for request, answers in zip(requests, verdicts, strict=True):
            state = transition(
                active[request.slot],
                proposals[request.slot],
                answers,
                score=score,
                on_tie=on_tie,
                max_expansions=max_expansions,
            )
            active[request.slot] = state
            if state.status != "running":
                del active[request.slot]
                closed += 1
                yield state


def make_proposer(
    slots: Slots,
    codec: Codec,
    *,
    width: int,
    temperature: float,
    top_p: float,
    max_step_tokens: int,
    iteration: int,
    seed: int,
) -> Propose:
    """Returns the model as the proposer of next steps.

    Args:
      slots: context caches of the solutions.
      codec: tokenizer and templates.
      width: samples a step (w of the paper).
      temperature: of the samples.
      top_p: of the samples.
      max_step_tokens: most tokens of a step, the next marker's first ones included.
      iteration: first integer of every key path.
      seed: base seed.
    """
    read = StepReader(codec)
    table = jax.numpy.asarray(read.table)
    count = len(slots.held)

    def propose(active: Mapping[int, State]) -> dict[int, Proposal]:
        prompts_, wanted = [[()] * width for _ in range(count)], {}
        paths = np.zeros((count, width, 7), np.uint32)
        paths[:, :, 4] = np.arange(width)
        for slot, state in active.items():
            ids = context_ids(codec, state)
            wanted[slot] = ids[:-1]
            prompts_[slot] = [ids[-1:]] * width
            paths[slot, :, :4] = state.key_path(iteration)
        slots.hold(wanted)
        out = slots.sample(
            None,
            prompts_,
            paths,
            seed=seed,
            temperature=temperature,
            top_p=top_p,
            stops=table,
            vocab=codec.tokenizer.vocab_size,
            budget=max_step_tokens,
            capacity=max_step_tokens,
        )
        return {
            slot: read.proposal(
                len(state.steps) + 1,
                [
                    out.tokens[slot, w, : out.count[slot, w]].tolist()
                    for w in range(width)
                ],
                out.stopped[slot],
                out.logps[slot],
            )
            for slot, state in active.items()
        }

    return propose


def context_ids(codec: Codec, state: State) -> tuple[int, ...]:
    """Returns the ids that the next step follows."""
    ids = codec.solve_prompt(state.question.problem)
    return ids + tuple(i for step in state.steps for i in step.ids)


class StepReader:
    """Turns sampled ids into candidate steps.

    Attributes:
      table: the stop table that ends a step, [states, vocab] int32.
    """

    def __init__(self, codec: Codec):
        """Compiles the step stops of the codec's templates."""
        self.codec = codec
        self.stops = prompts.step_stops(codec.templates)
        tokenizer = codec.tokenizer
        self.table = stops.compile_stops(
            tokenizer.token_bytes, self.stops, tokenizer.stop_ids
        )

    def proposal(
        self,
        number: int,
        rows: Sequence[Sequence[int]],
        stopped: Sequence[bool],
        logps: np.ndarray,
    ) -> Proposal:
        """Returns the distinct well-formed candidates of one problem.

        Args:
          number: step number, from 1.
          rows: sampled ids of each row, the stopping token included.
          stopped: whether each row reached a stop.
          logps: log-probabilities, [rows, >= longest row].
        """
        counts: dict[tuple[int, ...], int] = {}
        kept: dict[tuple[int, ...], tuple[int, bool]] = {}
        malformed = 0
        for index, (ids, ended) in enumerate(zip(rows, stopped, strict=True)):
            ids = tuple(ids)
            if ids not in counts:
                size = self._length(number, ids, bool(ended))
                if size is not None:
                    kept[ids] = (index, size)
            counts[ids] = counts.get(ids, 0) + 1
        merged: dict[tuple[int, ...], Candidate] = {}
        for ids, count in counts.items():
            if ids not in kept:
                malformed += count
                continue
            index, size = kept[ids]
            step = ids[:size]
            if step in merged:
                old = merged[step]
                merged[step] = dataclasses.replace(old, count=old.count + count)
                continue
            text = self.codec.text(step)
            final = step[-1] in self.codec.stop_ids or prompts.boxed(text) is not None
            logp = float(np.asarray(logps[index][:size], np.float64).sum())
            merged[step] = Candidate(step, text, count, logp, final)
        return Proposal(tuple(merged.values()), malformed)

    def _length(self, number: int, ids: tuple[int, ...], ended: bool) -> int | None:
        """Returns how many ids make the step, or None when it is malformed."""
        if not ended:
            return None
        size = len(ids)
        if ids[-1] not in self.codec.stop_ids:
            size = stops.cut_at_stop(self.codec.tokenizer.token_bytes, ids, self.stops)
        marker = prompts.marker(self.codec.templates, number)
        text = self.codec.text(ids[:size])
        well_formed = text.startswith(marker) and text[len(marker) :].strip()
        return size if well_formed else None
