r"""Test-time methods: how a model spends more tokens on a better answer.

    greedy       one solution at temperature 0
    majority     n sampled solutions; the answer that most of them reach
                 (self-consistency, arXiv 2203.11171)
    weighted     the same, each vote weighted by the judge's score of the solution
    best_of_n    of n solutions the one with the best score (arXiv 2110.14168)
    beam         step by step: of all candidates of all beams the best n go on
    dvts         n independent searches, each of which keeps the best candidate of
                 every step; then the best of their n solutions (arXiv 2408.03314)
    step_search  the paper's search (`stepjax.search`) with n candidates per step

The judge is that of the run, by default the model itself. It has learned to compare
next steps, and that is what `beam`, `dvts` and `step_search` ask it. Whole solutions
are shown to it in the same form: the steps that all of them begin with are the steps
so far, and what each one has behind these is its candidate. They meet in a Swiss
tournament (`stepjax.tournament`) of ceil(log2 n) rounds. A judge that sees each
candidate alone (`judge.score` = "pointwise", `judge.kind` = "ratings") scores each of
them once.

Every method is a function (solver, n) → `Part`: a solution for each problem in flight,
and the tokens that it took. docs/solve.md has the equations.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

from stepjax import search
from stepjax.evaluation import answers
from stepjax.evaluation.solver import Part, Solver
from stepjax.trajectory import Candidate, State

# First integer of the key paths of `beam`; the searches of `dvts` have their numbers.
_BEAM = 1 << 16


def vote(candidates: Sequence[Candidate], weights: Sequence[float]) -> Candidate:
    """Returns the first solution with the answer that has the largest sum of weights.

    Answers that mean the same are one answer. Of answers with equal sums, the one with
    more solutions wins, then the one that came first.

    Args:
      candidates: distinct solutions, at least one.
      weights: of each of them, without their counts.
    """
    sums: list[list] = []  # answer, weight, count, solution
    for one, weight in zip(candidates, weights, strict=True):
        answer = answers.extract(one.text)
        if answer is None:
            continue
        own = next((x for x in sums if answers.equivalent(answer, x[0])), None)
        if own is None:
            own = [answer, 0.0, 0, one]
            sums.append(own)
        own[1] += one.count * weight
        own[2] += one.count
    if not sums:
        return candidates[0]
    return max(sums, key=lambda own: own[1:3])[3]


def greedy(solver: Solver, n: int) -> Part:
    """One solution of the most probable tokens; `n` does not matter."""

    def work() -> dict[int, Candidate]:
        written = solver.write((0,), 0.0)
        return {slot: solver.whole(rows[0]) for slot, rows in written.items()}

    return solver.measured(work)


def majority(solver: Solver, n: int) -> Part:
    """The answer of most of n solutions."""
    found, tokens = solver.solutions(n)
    return Part({s: vote(own, [1.0] * len(own)) for s, own in found.items()}, tokens)


def weighted(solver: Solver, n: int) -> Part:
    """The answer of most of n solutions, each weighted by its score."""
    found, tokens = solver.solutions(n)
    scores, judged = solver.scores(n)
    chosen = {
        slot: vote(own, [score or 0.0 for score in scores[slot]])
        for slot, own in found.items()
    }
    return Part(chosen, {slot: tokens[slot].plus(judged[slot]) for slot in found})


def best_of_n(solver: Solver, n: int) -> Part:
    """Of n solutions the one with the best score."""
    found, tokens = solver.solutions(n)
    scores, judged = solver.scores(n)
    chosen = {
        slot: own[search.best_and_worst(own, scores[slot])[0]]
        for slot, own in found.items()
    }
    return Part(chosen, {slot: tokens[slot].plus(judged[slot]) for slot in found})


class Beam(NamedTuple):
    """A beam: the first steps of a solution.

    Attributes:
      state: its steps; "complete" when they are a whole solution.
      weight: the product of the shares that its steps got from the judge.
    """

    state: State
    weight: float = 1.0


def beam(solver: Solver, n: int) -> Part:
    """Beam search over steps: keeps the n beams of the largest weight.

    The candidates that continue a beam are judged among themselves, as in a search, and
    share its weight as the judge says.
    """
    most = solver.run.settings.search.max_expansions

    def logp(beam: Beam) -> float:
        return sum(step.logp for step in beam.state.steps)

    def grow(beams: dict[int, list[Beam]]) -> dict[int, list[Beam]]:
        """Continues what is not finished: one beam of every problem at a time."""
        grown = {
            slot: [b for b in own if not _is_open(b)] for slot, own in beams.items()
        }
        for index in range(n):
            going_on = {
                slot: own[index]
                for slot, own in beams.items()
                if index < len(own) and _is_open(own[index])
            }
            states = {slot: b.state for slot, b in going_on.items()}
            shares = solver.shares(states, (_BEAM + n, index)) if states else {}
            for slot, steps in shares.items():
                state, weight = going_on[slot]
                # One that cannot go on stays, and is never better than one that can.
                closed = Beam(dataclasses.replace(state, status="length"), 0.0)
                grown[slot] += [
                    Beam(_continued(state, step), weight * share)
                    for step, share in steps
                ] or [closed]
        return {
            slot: sorted(own, key=lambda b: (b.weight, logp(b)), reverse=True)[:n]
            for slot, own in grown.items()
        }

    def work() -> dict[int, Candidate]:
        beams = {slot: [Beam(State(q))] for slot, q in solver.questions.items()}
        for _ in range(most):
            if any(_is_open(b) for own in beams.values() for b in own):
                beams = grow(beams)
        best = {
            slot: max(
                own, key=lambda b: (b.state.status == "complete", b.weight, logp(b))
            )
            for slot, own in beams.items()
        }
        return {slot: solver.joined(b.state) for slot, b in best.items()}

    return solver.measured(work)


def _is_open(beam: Beam) -> bool:
    return beam.state.status == "running"


def _continued(state: State, step: Candidate) -> State:
    status = "complete" if step.finished else "running"
    return dataclasses.replace(state, steps=(*state.steps, step), status=status)


def dvts(solver: Solver, n: int) -> Part:
    """The best of n searches that do not go back (diverse verifier tree search)."""
    width = solver.run.settings.search.width

    def work() -> dict[int, Candidate]:
        found: dict[int, list[Candidate]] = collections.defaultdict(list)
        for number in range(n):
            for slot, one in solver.searched(width, number, on_tie="append").items():
                found[slot].append(one)
        return solver.best(found)

    return solver.measured(work)


def step_search(solver: Solver, n: int) -> Part:
    """The paper's search, with n candidates per step."""
    options = solver.run.settings.search
    rules = {"on_tie": options.on_tie, "on_reject": options.on_reject}
    return solver.measured(lambda: solver.searched(n, 0, **rules))


Method = Callable[[Solver, int], Part]
METHODS: dict[str, Method] = {
    method.__name__: method
    for method in (greedy, majority, weighted, best_of_n, beam, dvts, step_search)
}
STEPWISE = ("beam", "dvts", "step_search")  # they sample and judge step by step
