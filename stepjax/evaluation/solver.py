"""What test-time methods need of a model: solutions, steps, judgments, counted.

`Solver` holds the problems in flight. It samples whole solutions or searches step by
step, has candidates judged, and says what each piece of work took. The methods
themselves are in `stepjax.evaluation.methods`.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from stepjax import propose, search, tournament
from stepjax.evaluation import answers
from stepjax.initial_data.rollouts import cut_steps
from stepjax.judge import Judge, Request
from stepjax.lm import draws
from stepjax.lm.sampler import SampledRow, make_decoding, sample_behind
from stepjax.records import Question
from stepjax.run import judges, rollout
from stepjax.run.judge_rules import is_foreign
from stepjax.run.run import Run
from stepjax.trajectory import Candidate, State, context_ids, hash_id

_JUDGED = 1 << 17  # first integer of the key paths of judgments of solutions

Ids = tuple[int, ...]


class Tokens(NamedTuple):
    """What the answer to one problem took, in tokens as the engine counts them.

    Attributes:
      solver: what the model wrote as a solver.
      judge: what it wrote as a judge.
      read: what it computed besides: prompts, and what is shown to the judge.
    """

    solver: int = 0
    judge: int = 0
    read: int = 0

    def plus(self, other: "Tokens") -> "Tokens":
        """Returns the sums."""
        return Tokens(*(a + b for a, b in zip(self, other, strict=True)))


class Part(NamedTuple):
    """Something that was found for each problem in flight.

    Attributes:
      found: slot → what was found.
      tokens: slot → what it took.
    """

    found: dict[int, Any]
    tokens: dict[int, Tokens]


class Solver:
    """A model that solves several problems at the same time, one per slot.

    What two methods need, such as n sampled solutions, is computed once.

    Attributes:
      run: the run.
      questions: slot → problem in flight.
    """

    def __init__(
        self,
        run: Run,
        params: Any,
        stack: contextlib.ExitStack,
        *,
        samples: int,
        searches: int = 1,
    ):
        """Opens the context caches of the solver and of the judge.

        Args:
          run: the run.
          params: of the model, from `Run.sampling_params`.
          stack: closes what the judge has opened.
          samples: the largest n of the methods that sample whole solutions.
          searches: the largest n of the other methods.
        """
        self.run, self._most = run, samples
        self.questions: dict[int, Question] = {}
        capacity = run.settings.search.context_tokens
        self._sampler = judges.open_sampler(run, params, capacity)
        self._judge, judging = judges.open_judge(
            run, params, "self", None, stack, max(samples, searches)
        )
        self._judging = [judging] if judging else []
        self._rankers: dict[int, Judge] = {}
        self._parts: dict[tuple, Part] = {}

    def take(self, questions: Sequence[Question]) -> None:
        """Begins with other problems, at most one per slot."""
        self.questions = dict(enumerate(questions))
        self._parts.clear()

    def measured(self, work: Callable[[], dict[int, Any]]) -> Part:
        """Returns what some work finds, and the tokens that it takes.

        It begins with empty caches, and so does not depend on the work before it.
        """
        for sampler in (self._sampler, *self._judging):
            sampler.hold({slot: () for slot in range(self.run.slots)})
        before = self._counts()
        found = work()
        spent = self._counts() - before
        tokens = {slot: Tokens(*map(int, spent[slot])) for slot in self.questions}
        return Part(found, tokens)

    def _counts(self) -> np.ndarray:
        """Returns what the engine has counted for each slot, [P, 3]."""
        written, read = self._sampler.sampled, self._sampler.read
        judged = sum((s.sampled for s in self._judging), np.zeros_like(read))
        return np.stack(
            [written, judged, sum((s.read for s in self._judging), read)], 1
        )

    def _once(self, key: tuple, work: Callable[[], dict[int, Any]]) -> Part:
        if key not in self._parts:
            self._parts[key] = self.measured(work)
        return self._parts[key]

    # Whole solutions.

    def write(
        self, numbers: Sequence[int], temperature: float
    ) -> dict[int, list[SampledRow]]:
        """Writes solutions; their numbers decide the random draws."""
        settings = self.run.settings
        decoding = make_decoding(
            self.run.codec.tokenizer,
            (),
            seed=settings.seed,
            temperature=temperature,
            top_p=settings.search.top_p,
            max_tokens=settings.eval.max_tokens,
        )
        contexts, paths = {}, {}
        for slot, question in self.questions.items():
            contexts[slot] = self.run.codec.solve_prompt(question.problem)
            name = hash_id(question.id)
            paths[slot] = [draws.solution_path(name, number) for number in numbers]
        return sample_behind(self._sampler, contexts, paths, decoding, append=False)

    def _samples(self) -> dict[int, list[SampledRow]]:
        """Samples as many solutions as any method needs, `search.width` at a time."""
        rows: dict[int, list[SampledRow]] = {slot: [] for slot in self.questions}
        options = self.run.settings.search
        for at in range(0, self._most, options.width):
            numbers = range(at, min(at + options.width, self._most))
            for slot, new in self.write(numbers, options.temperature).items():
                rows[slot] += new
        return rows

    def solutions(self, count: int) -> Part:
        """Samples solutions; found are those of each problem that can be chosen.

        The first solutions of a larger count are those of a smaller one.
        """
        samples, unread = self._once(("samples",), self._samples), self._most - count
        found, tokens = {}, {}
        for slot, rows in samples.found.items():
            found[slot] = distinct(map(self.whole, rows[:count]))
            written = sum(len(row.ids) for row in rows[:count])
            # A row is fed the last token of the prompt.
            read = samples.tokens[slot].read - unread
            tokens[slot] = Tokens(written, 0, read)
        return Part(found, tokens)

    def whole(self, row: SampledRow) -> Candidate:
        """Returns a whole solution as a candidate."""
        logp = float(np.asarray(row.logps[: len(row.ids)], np.float64).sum())
        text = self.run.codec.text(row.ids)
        return Candidate(row.ids, text, 1, logp, row.stopped)

    def joined(self, state: State) -> Candidate:
        """Returns the steps of a search, or of a beam, as a candidate."""
        ids = sum((step.ids for step in state.steps), ())
        logp = sum(step.logp for step in state.steps)
        text, is_whole = self.run.codec.text(ids), state.status == "complete"
        return Candidate(ids, text, 1, logp, is_whole)

    def scores(self, count: int) -> Part:
        """Judges the solutions of `solutions`; found are their scores."""
        solutions = self.solutions(count).found
        return self._once(("scores", count), lambda: self.judged(solutions))

    # The judge.

    def judged(
        self, candidates: Mapping[int, Sequence[Candidate]]
    ) -> dict[int, list[float | None]]:
        """Judges whole solutions; a single one of a problem has no score.

        Args:
          candidates: slot → distinct solutions.
        """
        requests = [
            self._request(slot, [self._steps(c.ids) for c in own])
            for slot, own in candidates.items()
            if len(own) > 1
        ]
        scores = {slot: [None] * len(own) for slot, own in candidates.items()}
        if requests:
            rank = self._ranker(max(len(r.candidates) for r in requests))
            for request, verdicts in zip(requests, rank(requests), strict=True):
                count = self.run.kind.judgments.scores
                scores[request.slot] = count(len(request.candidates), verdicts)
        return scores

    def _request(self, slot: int, paths: list[tuple[Ids, ...]]) -> Request:
        question, common = self.questions[slot], _common(paths)
        problem, steps = question.problem, paths[0]
        while common and not rollout.judge_fits(self.run, problem, steps[:common]):
            common -= 1  # the judge reads this step in each candidate
        rests = tuple(sum(path[common:], ()) for path in paths)
        path = (_JUDGED, hash_id(question.id), 0, 0)
        return Request(slot, question.id, problem, tuple(steps[:common]), rests, path)

    def _steps(self, ids: Ids) -> tuple[Ids, ...]:
        """Cuts a solution into its steps; what is no step stays behind them."""
        if self.run.kind.name == "ratings":  # which are of whole solutions
            return (ids,)
        steps = cut_steps(self.run.codec, ids, True)
        rest = ids[sum(map(len, steps)) :]
        return (*steps, rest) if rest else steps

    def _ranker(self, count: int) -> Judge:
        """Returns the judge that ranks up to `count` solutions.

        It is asked fewer calls together than a judge of steps, as solutions are longer.
        """
        options, kind = self.run.settings.judge, self.run.kind
        room = options.rows * kind.candidate_tokens // self.run.settings.eval.max_tokens
        rows = min(max(1, room), 1 << (count - 1).bit_length())  # few shapes
        if rows not in self._rankers:
            judge = self._judge
            if not is_foreign(options.by):
                judge = judges.self_judge(self.run, self._judging[0], rows)
            if kind.name == "comparisons" and not kind.single:
                judge = tournament.scheduled(
                    judge,
                    "swiss",
                    options.score,
                    self.run.settings.seed,
                    value=options.value,
                )
            self._rankers[rows] = judge
        return self._rankers[rows]

    def best(self, candidates: Mapping[int, Sequence[Candidate]]) -> dict:
        """Returns the best solution of each problem; those with an answer go first."""
        chosen = {slot: distinct(own) for slot, own in candidates.items()}
        scores = self.judged(chosen)
        return {
            slot: own[search.best_and_worst(own, scores[slot])[0]]
            for slot, own in chosen.items()
        }

    # Steps.

    @functools.cached_property
    def sample_steps(self) -> Callable[..., dict[int, propose.Proposal]]:
        """Samples candidates for next steps; see `propose.make_sampling`."""
        options = self.run.settings.search
        return propose.make_sampling(
            self._sampler,
            self.run.codec,
            temperature=options.temperature,
            top_p=options.top_p,
            max_tokens=options.max_step_tokens,
            seed=self.run.settings.seed,
        )

    def shares(
        self, states: Mapping[int, State], purpose: tuple[int, int]
    ) -> dict[int, list[tuple[Candidate, float]]]:
        """Samples and judges candidates for the next step, `search.width` per problem.

        Args:
          states: slot → steps so far.
          purpose: first and last integer of the key paths of an expansion, see
            `trajectory.State.key_path`.

        Returns:
          Slot → its candidates, each with its share of the sum of their scores. Where
          all scores are 0, the shares are equal. A judge that sees each candidate alone
          says how likely it is right, and that is its share. There are none where the
          context has no room for a step.
        """
        codec, width = self.run.codec, self.run.settings.search.width
        found: dict[int, list] = {slot: [] for slot in states}
        places, paths = {}, {}
        for slot, state in states.items():
            number = len(state.steps) + 1
            path = (purpose[0], hash_id(state.question.id), number, purpose[1])
            if rollout.fits(self.run, state):
                keys = [draws.candidate_path(*path, w) for w in range(width)]
                context = context_ids(codec, state)
                places[slot] = propose.Place(context, number, keys)
                paths[slot] = path
        proposals = self.sample_steps(places) if places else {}
        requests = [
            search.request(slot, states[slot], proposal.candidates, paths[slot])
            for slot, proposal in proposals.items()
        ]
        verdicts = self._judge(requests) if requests else []
        for request, own in zip(requests, verdicts, strict=True):
            candidates = proposals[request.slot].candidates
            scores = self.run.kind.judgments.scores(len(candidates), own)
            points = [score or 0.0 for score in scores]
            if not self.run.kind.single:
                total = sum(points)
                points = [x / total if total else 1 / len(points) for x in points]
            found[request.slot] = list(zip(candidates, points, strict=True))
        return found

    def searched(self, width: int, number: int, **rules: str) -> dict[int, Candidate]:
        """Searches all problems in flight step by step.

        Args:
          width: candidates per step.
          number: of the search, first integer of its key paths.
          **rules: on_tie and on_reject, see `search.transition`.
        """
        settings, slots = self.run.settings, {}
        for slot, question in self.questions.items():
            slots[question.id] = slot
        states = search.step_search(
            list(self.questions.values()),
            propose.make_proposer(
                self._sampler,
                self.run.codec,
                width=width,
                temperature=settings.search.temperature,
                top_p=settings.search.top_p,
                max_tokens=settings.search.max_step_tokens,
                iteration=number,
                seed=settings.seed,
                redraw=settings.search.redraw,
            ),
            self._judge,
            slots=self.run.slots,
            iteration=number,
            scores=self.run.kind.judgments.scores,
            max_expansions=settings.search.max_expansions,
            fits=lambda state: rollout.fits(self.run, state),
            **rules,
        )
        return {slots[state.question.id]: self.joined(state) for state in states}


def distinct(solutions: Iterable[Candidate]) -> list[Candidate]:
    """Returns the distinct solutions that have an answer; if none has one, all."""
    counts: dict[Ids, Candidate] = {}
    for one in solutions:
        old = counts.get(one.ids)
        more = dataclasses.replace(old, count=old.count + one.count) if old else one
        counts[one.ids] = more
    every = list(counts.values())
    return [one for one in every if answers.extract(one.text) is not None] or every


def _common(paths: Sequence[Sequence[Ids]]) -> int:
    """Returns how many steps all begin with, so that each has one behind them."""
    least, common = min(map(len, paths)), 0
    while common < least - 1 and len({path[common] for path in paths}) == 1:
        common += 1
    return common
