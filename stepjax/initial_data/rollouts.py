r"""Rollouts: what a solution's first steps are worth, where answers are known.

    rows = solutions(sampler, codec, problems, options, seed=0)
    for row in values(sampler, codec, rows, is_correct, options, seed=0):
        step_values.labels(row), step_values.pairs(row, margin=0.5)

The *value* of a solution's first steps is the share of k completions of them that reach
the right answer. No teacher is asked. Gold answers are used, so none of this belongs to
a self-rewarding iteration.
"""

import bisect
import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from stepjax import prompts
from stepjax.codec import Codec
from stepjax.initial_data.step_values import StepValues
from stepjax.lm import draws, stops
from stepjax.lm.generate import Decoding
from stepjax.lm.sampler import SampledRow, Sampler, make_decoding, sample_behind
from stepjax.propose import STEP
from stepjax.records import Problem
from stepjax.settings import Rollouts
from stepjax.trajectory import hash_id

IsCorrect = Callable[[Problem, str], bool]  # of a problem and a solution's whole text

_COMPLETION, _SOLUTION = 3, 4  # purposes in `draws.node_path`

Ids = tuple[int, ...]


class Attempts(NamedTuple):
    """A problem and solutions of it, finished or not.

    Attributes:
      problem: with its gold answer.
      solutions: of each solution the token ids of each step, as they were sampled: with
        the newline at a step's end, and with EOS where the solution ended by it.
    """

    problem: Problem
    solutions: tuple[tuple[Ids, ...], ...]


def solutions(
    sampler: Sampler,
    codec: Codec,
    problems: Sequence[Problem],
    options: Rollouts,
    *,
    seed: int,
) -> Iterator[Attempts]:
    """Samples solutions of each problem and cuts them into steps.

    The result of a problem does not depend on the other problems or on the slots.

    Args:
      sampler: context caches of the policy.
      codec: tokenizer and templates.
      problems: what to solve.
      options: `solutions` samples per problem, of `max_tokens` at most.
      seed: base seed.

    Yields:
      Each problem in order, with the distinct solutions that have a step; see
      `cut_steps`. A problem has none when its prompt does not fit into the context.

    Raises:
      ValueError: when `options.solutions` is below 1.
    """
    _check_count("solutions", options.solutions)
    decoding = _decoding(codec, options, seed)
    slots, width = len(sampler.held), options.solutions
    for at in range(0, len(problems), slots):
        batch = problems[at : at + slots]
        fitting = {
            slot: ids
            for slot, problem in enumerate(batch)
            if len(ids := codec.solve_prompt(problem.problem)) - 1 <= sampler.capacity
        }
        paths = {
            slot: [
                draws.node_path(_SOLUTION, hash_id(batch[slot].id), 0, 0, number)
                for number in range(width)
            ]
            for slot in fitting
        }
        written = {}
        if fitting:
            written = sample_behind(sampler, fitting, paths, decoding, append=False)
        for slot, problem in enumerate(batch):
            rows = written.get(slot, ())
            cut = [cut_steps(codec, row.ids, row.stopped) for row in rows]
            distinct = dict.fromkeys(steps for steps in cut if steps)
            yield Attempts(problem, tuple(distinct))


def cut_steps(codec: Codec, ids: Ids, ended: bool) -> tuple[Ids, ...]:
    r"""Cuts the sampled ids of a solution into steps, where markers begin.

    Args:
      codec: tokenizer and templates.
      ids: what was sampled after the prompt.
      ended: whether it ended with a stop id, not by the budget.

    Returns:
      The steps up to the one with the first closed \boxed{}. A step that the budget cut
      off or that does not begin with its own marker is left out, with all after it.
    """
    markers = prompts.step_stops(codec.templates)
    steps: list[Ids] = []
    while ids:
        size = stops.cut_at_stop(codec.tokenizer.token_bytes, ids, markers)
        if size is None and not ended:
            break
        step, ids = ids[:size], ids[len(ids[:size]) :]
        text = codec.text(step)
        if STEP.fault(codec.templates, len(steps) + 1, text):
            break
        steps.append(step)
        if prompts.boxed(text) is not None:
            break
    return tuple(steps)


def values(
    sampler: Sampler,
    codec: Codec,
    rows: Iterable[Attempts],
    is_correct: IsCorrect,
    options: Rollouts,
    *,
    seed: int,
) -> Iterator[StepValues]:
    r"""Estimates the value of each beginning of each solution by completions.

    All completions of a beginning read one context. The beginnings of a problem are
    visited depth first, so that each token of its solutions is computed once. What two
    solutions have in common gets one value.

    A completion ends at EOS or after `max_tokens`; its solution ends after the first
    closed \boxed{}. One that has neither EOS nor a box is wrong. A beginning that has
    one of them is finished, and is checked instead of being completed.

    The result of a problem depends on its id, its solutions and the seed, not on the
    other problems or on the slots. So a caller that keeps what was yielded can go on
    after an interruption with the problems that are left.

    Args:
      sampler: context caches of the policy.
      codec: tokenizer and templates.
      rows: problems and their solutions.
      is_correct: the gold: (problem, text of a whole solution) → right or not.
      options: `samples` completions per beginning, of `max_tokens` at most.
      seed: base seed.

    Yields:
      The values of each problem, in the order in which they are done.

    Raises:
      ValueError: when `options.samples` is below 1.
    """
    _check_count("samples", options.samples)
    decoding = _decoding(codec, options, seed)
    queue = collections.deque(rows)
    active: dict[int, _Work] = {}
    while queue or active:
        for slot in range(len(sampler.held)):
            while queue and slot not in active:
                work = _Work(codec, queue.popleft(), is_correct, sampler.capacity)
                if work.open:
                    active[slot] = work
                else:
                    yield work.result()
        if not active:
            continue
        prefixes = {slot: work.prompt + work.open[-1] for slot, work in active.items()}
        paths = {slot: work.paths(options.samples) for slot, work in active.items()}
        # The next beginning needs none of what is sampled here, so nothing is appended.
        written = sample_behind(sampler, prefixes, paths, decoding, append=False)
        for slot, work in list(active.items()):
            work.close(written[slot])
            if not work.open:
                del active[slot]
                yield work.result()


class _Work:
    """A problem in flight.

    Attributes:
      prompt: ids of its prompt.
      open: beginnings that are still to be completed, as ids of all their steps; the
        last one is next.
    """

    def __init__(
        self, codec: Codec, row: Attempts, is_correct: IsCorrect, capacity: int
    ):
        self._codec, self._row, self._is_correct = codec, row, is_correct
        self.prompt = codec.solve_prompt(row.problem.problem)
        self._values: dict[Ids, float | None] = {}
        self._places: dict[Ids, tuple[int, int]] = {}  # solution, number of steps
        for number, steps in enumerate(row.solutions):
            for count, prefix in enumerate(_beginnings(steps)):
                self._places.setdefault(prefix, (number, count))
        self.open = []
        for prefix in self._places:
            text = codec.text(prefix)
            if codec.strip(prefix) != prefix or prompts.boxed(text) is not None:
                self._values[prefix] = float(self._is_right(text))
            elif len(self.prompt) + len(prefix) - 1 > capacity:
                self._values[prefix] = None
            else:
                self.open.append(prefix)
        # In the order of their ids, each beginning comes before what continues it.
        self.open.sort(reverse=True)

    def paths(self, samples: int) -> list[tuple[int, ...]]:
        """Returns the key paths of the completions of the next beginning."""
        number, count = self._places[self.open[-1]]
        problem = hash_id(self._row.problem.id)
        return [
            draws.node_path(_COMPLETION, problem, number, count, sample)
            for sample in range(samples)
        ]

    def close(self, written: Sequence[SampledRow]) -> None:
        """Takes the completions of the next beginning."""
        prefix = self.open.pop()
        right = 0
        for row in written:
            text = self._codec.text(prefix + row.ids)
            if row.stopped or prompts.boxed(text) is not None:
                right += self._is_right(text)
        self._values[prefix] = right / len(written)

    def _is_right(self, text: str) -> bool:
        return bool(self._is_correct(self._row.problem, through_first_box(text)))

    def result(self) -> StepValues:
        """Returns the values of all solutions."""
        problem, solutions = self._row
        return StepValues(
            problem.id,
            problem.problem,
            tuple(tuple(map(self._codec.text, steps)) for steps in solutions),
            tuple(
                tuple(self._values[prefix] for prefix in _beginnings(steps))
                for steps in solutions
            ),
        )


def _beginnings(steps: Sequence[Ids]) -> list[Ids]:
    """Returns the ids of no step, of the first step, … of all steps."""
    return [sum(steps[:count], ()) for count in range(len(steps) + 1)]


def through_first_box(text: str) -> str:
    r"""Returns the text up to the end of its first closed \boxed{}; without one, all.

    What a model writes after its answer does not count.
    """

    def closed(size: int) -> bool:
        return prompts.boxed(text[:size]) is not None

    return text[: bisect.bisect_left(range(len(text)), True, key=closed)]


def _check_count(name: str, count: int) -> None:
    if count < 1:
        raise ValueError(f"rollouts.{name}={count}; expected 1 or more.")


def _decoding(codec: Codec, options: Rollouts, seed: int) -> Decoding:
    """Returns how solutions are sampled: they end at stop ids only."""
    return make_decoding(
        codec.tokenizer,
        (),
        seed=seed,
        temperature=options.temperature,
        top_p=options.top_p,
        max_tokens=options.max_tokens,
    )
