"""Step-by-step search with the model as its own judge (paper, section 3.3).

At each step w candidates are sampled, judged in pairs by the same parameters, the
best is appended, and (best, worst) is the step's preference pair. When all scores
are equal there is no preference: the previous step and its pair are dropped.

Where the paper is silent: identical candidates are one candidate with a
multiplicity; candidates that were cut off or do not start with their ``Step n: ``
marker are left out and counted; ties for best or worst break by score, multiplicity,
log-probability, then index; every expansion counts towards the budget.
``on_tie="append"`` appends the most frequent candidate without a pair instead of
going back. That is for models so sure of a step that all candidates agree.
``on_reject="resample"`` appends no step that a judge of single steps calls wrong, and
samples this step again.

`transition` is a pure function. `step_search` drives it with two callables, so that the
logic is tested without a model: `stepjax.propose` makes the one that proposes,
`stepjax.self_judge` or `stepjax.controls` the one that judges.
"""

import collections
import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from stepjax.judge import Judge, Request, comparisons
from stepjax.pointwise import RIGHT
from stepjax.records import Question
from stepjax.trajectory import Candidate, Expansion, Proposal, State, Verdict

ON_TIE = ("back", "append")
ON_REJECT = ("append", "resample")
Scores = Callable[[int, Sequence[Verdict]], list]  # see `judge.Judgments`
_SUM = comparisons("sum").scores


def best_and_worst(
    candidates: Sequence[Candidate], scores: Sequence[float | None]
) -> tuple[int, int]:
    """Returns the indices of the best and the worst candidate.

    The highest and the lowest score; among equals the one sampled more often, then
    the more probable, then the first. A candidate without a score (None) is neither,
    unless no candidate has one.
    """

    order = seeding(candidates)
    scored = [i for i in order if scores[i] is not None]
    if not scored:
        return order[0], order[0]
    return max(scored, key=scores.__getitem__), min(scored, key=scores.__getitem__)


def seeding(candidates: Sequence[Candidate]) -> tuple[int, ...]:
    """Returns the places of candidates: most often sampled first, then by logp."""
    names = [(-c.count, -c.logp, place) for place, c in enumerate(candidates)]
    return tuple(place for *_, place in sorted(names))


def request(
    slot: int, state: State, candidates: Sequence[Candidate], path: tuple[int, ...]
) -> Request:
    """Returns what the judge is asked about the candidates for a next step.

    Args:
      slot: place of the problem in flight.
      state: its steps so far.
      candidates: for the next one.
      path: key path of the expansion.
    """
    return Request(
        slot,
        state.question.id,
        state.question.problem,
        tuple(step.ids for step in state.steps),
        tuple(candidate.ids for candidate in candidates),
        path,
        seeding(candidates),
    )


def transition(
    state: State,
    proposal: Proposal,
    verdicts: Sequence[Verdict],
    *,
    scores: Scores = _SUM,
    on_tie: str = "back",
    on_reject: str = "append",
    max_expansions: int = 20,
    iteration: int = 0,
) -> State:
    """Returns the state after one expansion.

    Args:
      state: a running problem.
      proposal: its candidates for the next step.
      verdicts: the judge's calls about them.
      scores: (number of candidates, verdicts) → score of each candidate.
      on_tie: what to do without a preference, one of `ON_TIE`.
      on_reject: what to do if the best score says that the step is wrong, one of
        `ON_REJECT`; for the scores of `stepjax.pointwise`.
      max_expansions: budget; the problem is closed when it is used up.
      iteration: first integer of the key path.

    Raises:
      ValueError: when the state is closed, or for an unknown `on_tie` or `on_reject`.
    """
    if state.status != "running":
        raise ValueError(
            f"problem {state.question.id!r} is {state.status}; expected a search that "
            "is running."
        )
    if on_tie not in ON_TIE:
        raise ValueError(f"on_tie={on_tie!r}; expected one of {ON_TIE}.")
    if on_reject not in ON_REJECT:
        raise ValueError(f"on_reject={on_reject!r}; expected one of {ON_REJECT}.")
    candidates = proposal.candidates
    points = scores(len(candidates), verdicts)
    best = worst = None
    if candidates:
        best, worst = best_and_worst(candidates, points)
    steps, pair_from = state.steps, state.pair_from
    is_wrong = bool(candidates) and points[best] is not None and points[best] < RIGHT
    if is_wrong and on_reject == "resample":
        action, best, worst = "reject", None, None
    elif candidates and points[best] != points[worst]:
        action = "pair"
        steps = *steps, candidates[best]
        pair_from = *pair_from, len(state.expansions)
    elif candidates and on_tie == "append":
        action, worst = "append", None
        steps, pair_from = (*steps, candidates[best]), (*pair_from, None)
    else:
        action, best, worst = "back" if steps else "resample", None, None
        steps, pair_from = steps[:-1], pair_from[:-1]
    expansion = Expansion(
        len(state.steps) + 1,
        state.attempt(),
        candidates,
        proposal.malformed,
        tuple(verdicts),
        tuple(points),
        best,
        worst,
        action,
        state.key_path(iteration),
        proposal.refused,
    )
    expansions = (*state.expansions, expansion)
    status = "running"
    if action in ("pair", "append") and candidates[best].finished:
        status = "complete"
    elif len(expansions) >= max_expansions:
        status = "budget"
    return State(state.question, steps, pair_from, expansions, status)


def slots_to_refill(slots: int, active: Collection[int]) -> list[int]:
    """Returns the free slots once a quarter of all slots is free, until then none.

    So several problems begin together, and their prompts are computed together.

    Args:
      slots: how many there are.
      active: those that hold a problem in flight.
    """
    free = [slot for slot in range(slots) if slot not in active]
    return free if len(free) >= max(1, slots // 4) or not active else []


def step_search(
    questions: Sequence[Question],
    propose: Callable[[Mapping[int, State]], dict[int, Proposal]],
    judge: Judge,
    *,
    slots: int,
    iteration: int = 0,
    scores: Scores = _SUM,
    on_tie: str = "back",
    on_reject: str = "append",
    max_expansions: int = 20,
    fits: Callable[[State], bool] = lambda state: True,
    active: Mapping[int, State] | None = None,
    on_pause: Callable[[Mapping[int, State]], None] | None = None,
    pause_now: Callable[[], bool] = lambda: False,
    on_turn: Callable[[int], None] = lambda in_flight: None,
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
      scores: see `transition`.
      on_tie: see `transition`.
      on_reject: see `transition`.
      max_expansions: see `transition`.
      fits: whether a state leaves room for another step; otherwise it is closed
        with status "length".
      active: slot → problem in flight of an interrupted search that goes on here; none
        of them is in `questions`.
      on_pause: called with the problems in flight, between two expansions, whenever
        `slots` more problems were yielded: from there a search can go on.
      pause_now: whether to call `on_pause` before the next expansion in any case.
      on_turn: called with the number of problems in flight before each expansion.

    Yields:
      Closed states, in the order in which they close.
    """
    queue = collections.deque(questions)
    active, closed = dict(active or {}), 0
    while queue or active:
        if on_pause and (closed >= slots or pause_now()):
            on_pause(active)
            closed = 0
        for slot in slots_to_refill(slots, active)[: len(queue)]:
            active[slot] = State(queue.popleft())
        for slot, state in list(active.items()):
            if not fits(state):
                del active[slot]
                closed += 1
                yield dataclasses.replace(state, status="length")
        if not active:
            continue
        on_turn(len(active))
        proposals = propose(active)
        requests = [
            request(slot, state, proposals[slot].candidates, state.key_path(iteration))
            for slot, state in active.items()
        ]
        verdicts = judge(requests)
        for asked, answers in zip(requests, verdicts, strict=True):
            state = transition(
                active[asked.slot],
                proposals[asked.slot],
                answers,
                scores=scores,
                on_tie=on_tie,
                on_reject=on_reject,
                max_expansions=max_expansions,
                iteration=iteration,
            )
            active[asked.slot] = state
            if state.status != "running":
                del active[asked.slot]
                closed += 1
                yield state
