"""Closed searches → preference data PPD(Mi), and back to token ids.

A row holds everything that made the preference: ids and texts, scores,
multiplicities, every verdict in both orders, log-probabilities and the seed path, so
that anyone can audit why a step was preferred. Pairs are trained from ids, never from
re-tokenised text.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

from stepjax.codec import Codec
from stepjax.forest import IdPair
from stepjax.judge import majority, position_flips, preference
from stepjax.trajectory import (
    CUT_OFF,
    NO_MARKER,
    OTHER,
    VERDICT,
    Expansion,
    State,
    context_ids,
)

_DECIDED = ("pair", "reject")  # actions of an expansion that is no tie


@dataclasses.dataclass(frozen=True)
class Pair:
    """One preference between two next steps.

    Attributes:
      id: problem id, "/" and step number.
      problem_id: id of the question.
      problem: its text.
      step: step number, from 1.
      steps: texts of the steps before.
      context_ids: prompt and steps before, as they were fed; see
        `trajectory.context_ids`.
      chosen_ids: the best candidate as it was sampled.
      rejected_ids: the worst candidate as it was sampled.
      chosen: its text.
      rejected: its text.
      scores: Score_i of every candidate; null where a candidate has none.
      counts: multiplicity of every candidate.
      candidates: text of every candidate.
      best: index of the chosen one.
      worst: index of the rejected one.
      verdicts: every call, [shown as A, shown as B, winner or null, response], and
        the probability of A where it was read.
      chosen_logp: log-probability of the chosen one under the model that sampled it.
      rejected_logp: log-probability of the rejected one under that model.
      model: name of the model that searched.
      iteration: number of the iteration.
      seed_path: seed, iteration, problem hash, step, attempt.
    """

    id: str
    problem_id: str
    problem: str
    step: int
    steps: list[str]
    context_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    chosen: str
    rejected: str
    scores: list[float | None]
    counts: list[int]
    candidates: list[str]
    best: int
    worst: int
    verdicts: list[list[Any]]
    chosen_logp: float
    rejected_logp: float
    model: str
    iteration: int
    seed_path: list[int]

    def __post_init__(self):
        for name in ("context_ids", "chosen_ids", "rejected_ids"):
            ids = getattr(self, name)
            good = isinstance(ids, list) and ids
            if not good or not all(type(i) is int and i >= 0 for i in ids):
                raise ValueError(
                    f"field {name!r} is {str(ids)[:60]}; expected a nonempty list of "
                    "token ids."
                )
        if self.chosen_ids == self.rejected_ids:
            raise ValueError("chosen_ids equal rejected_ids; expected different steps.")

    def ids(self) -> IdPair:
        """Returns the token ids alone."""
        return IdPair(
            tuple(self.context_ids), tuple(self.chosen_ids), tuple(self.rejected_ids)
        )


def pairs_of(
    state: State,
    codec: Codec,
    *,
    model: str,
    iteration: int,
    seed: int,
    best_beats_all: bool = False,
    min_margin: float = 1,
) -> list[Pair]:
    """Returns the preference pairs of a closed search, one for each kept preference.

    Args:
      state: the closed search.
      codec: tokenizer and templates.
      model: name of the model that searched.
      iteration: number of the iteration.
      seed: base seed of the search.
      best_beats_all: keep a pair only when the best candidate won every call that it
        was in.
      min_margin: keep a pair only when the score of the best is higher than that of the
        worst by at least this, in the unit of the scores. With scores that count wins,
        1 keeps all; with win rates (`judge.win_rates`), 0 does.
    """
    pairs = []
    for number, index in enumerate(state.pair_from):
        if index is None:
            continue
        e = state.expansions[index]
        margin = e.scores[e.best] - e.scores[e.worst]
        if margin < min_margin or best_beats_all and not _beats_all(e):
            continue
        best, worst = e.candidates[e.best], e.candidates[e.worst]
        pairs.append(
            Pair(
                id=f"{state.question.id}/{number + 1}",
                problem_id=state.question.id,
                problem=state.question.problem,
                step=number + 1,
                steps=[step.text for step in state.steps[:number]],
                context_ids=list(context_ids(codec, state, number)),
                chosen_ids=list(best.ids),
                rejected_ids=list(worst.ids),
                chosen=best.text,
                rejected=worst.text,
                scores=list(e.scores),
                counts=[c.count for c in e.candidates],
                candidates=[c.text for c in e.candidates],
                best=e.best,
                worst=e.worst,
                verdicts=[v._replace(ids=()).row() for v in e.verdicts],
                chosen_logp=best.logp,
                rejected_logp=worst.logp,
                model=model,
                iteration=iteration,
                seed_path=[seed, *e.path],
            )
        )
    return pairs


def _beats_all(expansion: Expansion) -> bool:
    """Whether every call with the best candidate has a verdict and was won by it."""
    best = expansion.best
    met = [v for v in majority(expansion.verdicts) if best in (v.a, v.b)]
    favour = [(v.a == best, preference(v)) for v in met]
    won = [p is not None and (p > 0.5 if first else p < 0.5) for first, p in favour]
    return len(won) > 0 and all(won)


def summary(states: Sequence[State]) -> dict[str, float]:
    """Returns counts and rates of closed searches.

    complete_rate is over questions; tie_rate and reject_rate (the judge calls the best
    candidate wrong) over expansions with a candidate;
    flip_rate over pairs of candidates with a parsed verdict in both orders;
    unparsed_rate over judge calls; malformed_rate over samples, and so are its parts:
    cut_off_rate (not ended within their tokens), unmarked_rate (without the marker of
    their step) and misshapen_rate (malformed otherwise).
    """
    expansions = [e for state in states for e in state.expansions]
    proposed = [e for e in expansions if e.candidates]
    actions = [e.action for e in proposed]
    verdicts = [v for e in expansions for v in e.verdicts]
    flips = [position_flips(e.verdicts) for e in expansions]
    samples = sum(e.malformed + sum(c.count for c in e.candidates) for e in expansions)
    steps = [step for state in states for step in state.steps]
    faults: collections.Counter[str] = collections.Counter()
    for refused in (part for e in expansions for part in e.refused):
        faults[refused.fault] += refused.count
    complete = sum(state.status == "complete" for state in states)

    def ratio(part, whole):
        return part / whole if whole else 0.0

    return {
        "questions": len(states),
        "complete": complete,
        "complete_rate": ratio(complete, len(states)),
        "expansions": len(expansions),
        "judgments": len(verdicts),
        "samples": samples,
        "tie_rate": ratio(sum(a not in _DECIDED for a in actions), len(proposed)),
        "reject_rate": ratio(actions.count("reject"), len(proposed)),
        "flip_rate": ratio(sum(f for f, _ in flips), sum(n for _, n in flips)),
        "unparsed_rate": ratio(sum(v.winner is None for v in verdicts), len(verdicts)),
        "malformed_rate": ratio(sum(e.malformed for e in expansions), samples),
        "cut_off_rate": ratio(faults[CUT_OFF], samples),
        "unmarked_rate": ratio(faults[NO_MARKER], samples),
        "misshapen_rate": ratio(faults[VERDICT] + faults[OTHER], samples),
        "steps_per_solution": ratio(len(steps), len(states)),
        "tokens_per_step": ratio(sum(len(s.ids) for s in steps), len(steps)),
    }
