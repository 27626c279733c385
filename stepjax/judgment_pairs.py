"""Closed searches → preferences between judgments that train the judge (`judge.learn`).

A search with several explanations per call (`judge.votes`) has explanations of the same
question that end with different verdicts. Where the winner is known, an explanation
that names it is preferred to one that names the other candidate. There are two ways to
know the winner:

  ``consistency``: the majority of the explanations agrees in both orders of the pair.
    Nothing but the model's own verdicts is used.
  ``outcome``: the gold says that exactly one of the two steps is right. That is not
    self-rewarding; it shows what a judge could learn from its searches.

Each call gives one pair at most: its first explanation of each side. They are trained
by DPO in the same batches as the pairs of steps. The context is the judge's prompt; the
chosen and the rejected response are the ids that were sampled.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from stepjax.codec import Codec
from stepjax.controls import IsRight
from stepjax.forest import IdPair
from stepjax.judge import Judgments, Request, majority
from stepjax.trajectory import Expansion, State, with_steps

LEARN = ("none", "consistency", "outcome")


@dataclasses.dataclass(frozen=True)
class JudgmentPair:
    """One preference between two explanations of the same call.

    Attributes:
      id: problem id, step, attempt, and the two candidates, with "/" between.
      problem: text of the problem.
      a: text of the step that is shown first.
      b: text of the step that is shown second.
      winner: the side that the chosen explanation names, "A" or "B".
      context_ids: prompt of the judge.
      chosen_ids: explanation and verdict that name the winner, as they were sampled.
      rejected_ids: those that name the other candidate.
      chosen: text of the chosen ids.
      rejected: text of the rejected ids.
      votes: verdicts of all explanations of this call; null where none was read.
    """

    id: str
    problem: str
    a: str
    b: str
    winner: str
    context_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    chosen: str
    rejected: str
    votes: list[str | None]

    def ids(self) -> IdPair:
        """Returns the token ids alone."""
        return IdPair(
            tuple(self.context_ids), tuple(self.chosen_ids), tuple(self.rejected_ids)
        )


# (index of a candidate, index of another one) → index of the winner, or None.
Winner = Callable[[int, int], int | None]


def agreed(expansion: Expansion) -> Winner:
    """Returns the winner of two candidates on which both orders agree."""
    named = {
        (v.a, v.b): {"A": v.a, "B": v.b}.get(v.winner)
        for v in majority(expansion.verdicts)
    }

    def winner(i: int, j: int) -> int | None:
        first, second = named.get((i, j)), named.get((j, i))
        return first if first == second else None

    return winner


def by_gold(
    is_right: IsRight, problem: str, steps: Sequence[str], expansion: Expansion
) -> Winner:
    """Returns the winner of two candidates of which exactly one is right."""
    right = [is_right(problem, steps, c.text) for c in expansion.candidates]

    def winner(i: int, j: int) -> int | None:
        if right[i] is None or right[i] == right[j]:
            return None
        return i if right[i] else j

    return winner


def judgment_pairs(
    states: Sequence[State],
    codec: Codec,
    judgments: Judgments,
    *,
    learn: str,
    is_right: IsRight | None = None,
    most: int,
    seed: int,
) -> list[JudgmentPair]:
    """Returns preferences between judgments of closed searches.

    Args:
      states: the searches, whose verdicts have their ids.
      codec: tokenizer and templates.
      judgments: what the judge was asked.
      learn: "consistency" or "outcome".
      is_right: the gold, for "outcome".
      most: how many are returned at most, drawn at random.
      seed: of the draw.
    """
    found = []
    for state in states:
        for steps, expansion in with_steps(state):
            texts = [step.text for step in steps]
            winner = agreed(expansion)
            if learn == "outcome":
                winner = by_gold(is_right, state.question.problem, texts, expansion)
            ids = [step.ids for step in steps]
            found += _of_expansion(state, ids, expansion, codec, judgments, winner)
    if len(found) <= most:
        return found
    kept = np.random.default_rng([seed, len(found)]).permutation(len(found))[:most]
    return [found[n] for n in sorted(kept.tolist())]


def _of_expansion(
    state: State,
    steps: Sequence[tuple[int, ...]],
    expansion: Expansion,
    codec: Codec,
    judgments: Judgments,
    winner: Winner,
) -> Iterator[JudgmentPair]:
    calls: dict[tuple[int, int], list] = {}
    for verdict in expansion.verdicts:
        calls.setdefault((verdict.a, verdict.b), []).append(verdict)
    texts = [c.text for c in expansion.candidates]
    request = Request(
        0,
        state.question.id,
        state.question.problem,
        tuple(steps),
        tuple(c.ids for c in expansion.candidates),
        expansion.path,
    )
    for (a, b), votes in calls.items():
        best = winner(a, b)
        if best is None:
            continue
        sides = ("A", "B") if best == a else ("B", "A")
        firsts = [[v for v in votes if v.winner == side and v.ids] for side in sides]
        if not all(firsts):
            continue
        chosen, rejected = (own[0] for own in firsts)
        context = judgments.context(codec, request.problem, steps)
        yield JudgmentPair(
            id=f"{request.problem_id}/{expansion.step}/{expansion.attempt}/{a}/{b}",
            problem=request.problem,
            a=texts[a],
            b=texts[b],
            winner=sides[0],
            context_ids=[*context, *judgments.question(codec, request, (a, b))],
            chosen_ids=list(chosen.ids),
            rejected_ids=list(rejected.ids),
            chosen=chosen.response,
            rejected=rejected.response,
            votes=[v.winner for v in votes],
        )
