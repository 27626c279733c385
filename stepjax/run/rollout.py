"""A model searches questions: proposer, judge and search on the devices of a run."""

import contextlib
import functools
import pathlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from stepjax import interrupts, own_functions, own_import, propose, search
from stepjax.evaluation import causes
from stepjax.initial_data import prm
from stepjax.judge import Judge
from stepjax.lm import hosts
from stepjax.lm.sampler import Sampler
from stepjax.records import Question
from stepjax.run.journal import Journal
from stepjax.run.judge_rules import is_foreign
from stepjax.run.judges import open_judge, open_sampler
from stepjax.run.progress import usage_line
from stepjax.run.run import Run
from stepjax.trajectory import State, context_ids

TRIED = 32  # problems after which a search that finds nothing of use is stopped


def search_from_journal(
    run: Run,
    questions: Sequence[Question],
    journal: Journal,
    params: Callable[[], Any],
    *,
    name: str,
    iteration: int,
    by: str = "self",
    note: Callable[[State], str],
) -> list[State]:
    """Lets a model search questions, going on where the journal ends.

    Each host searches its share; on return every host has all results.

    Args:
      run: the run.
      questions: what to search.
      journal: where progress is kept.
      params: returns those of the model, from `Run.sampling_params`.
      name: of the search, for people.
      iteration: first integer of every key path.
      by: who judges, see `search_questions`.
      note: called with each search that closes, those of the journal first; returns
        what to say beside the progress.

    Returns:
      The closed search of each question, in their order.

    Raises:
      interrupts.Stopped: a signal asked to stop; the journal has what was done.
    """
    mine = hosts.share(questions)
    todo, active = journal.rest(mine, run.slots)
    closed: list[State] = []

    def pause(in_flight: Mapping[int, State]) -> None:
        journal.add(closed, in_flight)
        closed.clear()
        many = sum(question.id in journal.closed for question in mine)
        interrupts.check(
            f"{many} of {len(mine)} searches are saved, and the steps of "
            f"{len(in_flight)} that are not finished"
        )

    earlier = [journal.closed[q.id] for q in mine if q.id in journal.closed]
    done = len(list(map(note, earlier)))
    progress = run.monitor.progress(name, len(mine), "problem", done)
    with progress as advance, interrupts.apart():
        for state in search_questions(
            run,
            params(),
            todo,
            iteration,
            by=by,
            active=active,
            on_pause=pause,
            answers=_answers(journal.path),
            name=name,
        ):
            closed.append(state)
            advance(1, note(state))
        journal.add(closed, {})
    journal.join()
    return [journal.closed[question.id] for question in questions]


def _answers(journal: pathlib.Path) -> pathlib.Path:
    """Returns the file of a server's answers; it is deleted with the journal."""
    return journal.with_name(journal.name.replace(".partial", ".partial-answers"))


class Preferences:
    """Counts the preferences of a search, and stops one that will find none."""

    def __init__(self, run: Run, name: str):
        """Begins with no search.

        Args:
          run: whose search it is.
          name: of the search, for people.
        """
        self._run, self._name, self._found = run, name, 0
        self._tried: list[State] = []

    def __call__(self, state: State) -> str:
        """Takes note of a closed search; returns the count of preferences, in words.

        Raises:
          ValueError: when no sample of the first `TRIED` problems can be used, or no
            judgment of them holds a verdict: such a search only takes time.
        """
        self._found += sum(index is not None for index in state.pair_from)
        if state.expansions and len(self._tried) < TRIED:
            self._tried.append(state)
            if len(self._tried) == TRIED:
                self._refuse_useless()
        return f"{self._found} preferences"

    def _refuse_useless(self) -> None:
        reason = causes.of_useless_search(self._tried, self._run.settings)
        if reason:
            raise ValueError(
                f"{self._name} is stopped, because it would only take time: {reason} "
                "Then run the same command again; it says which stages have to be "
                "repeated."
            )


def search_questions(
    run: Run,
    params: Any,
    questions: Sequence[Question],
    iteration: int,
    *,
    by: str = "self",
    active: Mapping[int, State] | None = None,
    on_pause: Callable[[Mapping[int, State]], None] | None = None,
    answers: pathlib.Path | None = None,
    name: str = "search",
) -> Iterator[State]:
    """Searches this host's questions with a model, and says how busy the devices were.

    Args:
      run: the run.
      params: of the model, from `Run.sampling_params`.
      questions: this host's.
      iteration: first integer of every key path.
      by: who judges, see `judges.open_judge`.
      active: see `search.step_search`.
      on_pause: see `search.step_search`.
      answers: see `judges.open_judge`.
      name: of the search, for people.

    Yields:
      Closed searches, in the order in which they close.
    """
    options = run.settings.search
    turns: list[int] = []

    def on_turn(in_flight: int) -> None:
        turns.append(in_flight)
        after_turn()
        if not on_pause:
            interrupts.check("nothing of this search is kept")

    with contextlib.ExitStack() as stack:
        after_turn = stack.enter_context(run.profiler.of(name, "turn"))
        solver = open_sampler(run, params, options.context_tokens)
        judge, judge_sampler = open_judge(run, params, by, answers, stack)
        judge, judging = _timed(judge)
        samplers = [solver] + ([judge_sampler] if judge_sampler else [])

        def pause(in_flight: Mapping[int, State]) -> None:
            # A run that goes on from here begins with empty caches. This run empties
            # its caches, so that both compute the same bits.
            for sampler in samplers:
                sampler.hold({slot: () for slot in range(run.slots)})
            on_pause(in_flight)

        yield from search.step_search(
            questions,
            _proposer(run, solver, iteration),
            judge,
            slots=run.slots,
            iteration=iteration,
            scores=run.kind.judgments.scores,
            on_tie=options.on_tie,
            on_reject=options.on_reject,
            max_expansions=options.max_expansions,
            fits=lambda state: fits(run, state),
            active=active,
            on_pause=pause if on_pause else None,
            pause_now=interrupts.asked,
            on_turn=on_turn,
        )
    if turns:
        named = zip(("candidates", "judgments"), samplers, strict=False)
        useful = {name: s.new_tokens / s.row_steps for name, s in named if s.row_steps}
        seconds = sum(judging) / sum(turns)
        run.monitor.say(
            f"{usage_line(turns, run.slots, useful)}; judging took {seconds:.3g} s per "
            "step"
        )


def _timed(judge: Judge) -> tuple[Judge, list[float]]:
    """Returns a judge, and the seconds of each time that it was asked."""
    seconds: list[float] = []

    def timed(requests, calls=None):
        began = time.monotonic()
        verdicts = judge(requests, calls)
        seconds.append(time.monotonic() - began)
        return verdicts

    return timed, seconds


def _proposer(run: Run, solver: Sampler, iteration: int) -> Callable:
    """Returns who writes the candidates: the model, or a function of one's own."""
    options, seed = run.settings.search, run.settings.seed
    if own_import.named(options.propose_by):
        return own_functions.proposer(
            own_import.load("search.propose_by", options.propose_by),
            run.codec,
            functools.partial(_measure, solver, run.codec.tokenizer.vocab_size),
            name=f"search.propose_by={options.propose_by!r}",
            width=options.width,
            max_tokens=run.kind.candidate_tokens,
            iteration=iteration,
            seed=seed,
        )
    return propose.make_proposer(
        solver,
        run.codec,
        unit=run.kind.unit,
        width=options.width,
        temperature=options.temperature,
        top_p=options.top_p,
        max_tokens=run.kind.candidate_tokens,
        iteration=iteration,
        seed=seed,
        redraw=options.redraw,
    )


def _measure(
    sampler: Sampler,
    vocab: int,
    contexts: Mapping[int, Sequence[int]],
    candidates: Mapping[int, Collection[tuple[int, ...]]],
) -> dict[int, list[float]]:
    """Returns the log-probability of each candidate; slot → one per candidate."""
    sampler.hold({slot: ids[:-1] for slot, ids in contexts.items()})
    width = max(map(len, candidates.values()))
    if not width:
        return {slot: [] for slot in contexts}
    slots = range(len(sampler.held))
    rows, scored = [], np.zeros((len(slots), width), np.int32)
    for slot in slots:
        steps, last = list(candidates.get(slot, ())), contexts.get(slot, ())[-1:]
        scored[slot, : len(steps)] = [len(step) for step in steps]
        empty = [()] * (width - len(steps))
        rows.append([(*last, *step) for step in steps] + empty)
    logps = sampler.score(rows, scored, vocab=vocab, slots=slots)
    return {
        slot: [float(x) for x in logps[slot, : len(candidates[slot])]]
        for slot in contexts
    }


def fits(run: Run, state: State) -> bool:
    """Whether the contexts leave room for another candidate and its judgments."""
    solved, most = len(context_ids(run.codec, state)), run.kind.candidate_tokens
    steps = [step.ids for step in state.steps]
    return solved + most <= run.settings.search.context_tokens and judge_fits(
        run, state.question.problem, steps
    )


def judge_fits(run: Run, problem: str, steps: Sequence[Sequence[int]]) -> bool:
    """Whether the judge's context has room for the steps so far.

    Args:
      run: the run.
      problem: text of the problem.
      steps: ids of each step.
    """
    settings = run.settings
    if settings.judge.by == "prm":
        solving = prm.Solving(problem, tuple(steps))
        read = prm.context(run.codec, solving, settings.prm.prompt)
        return len(read) <= settings.search.context_tokens
    if is_foreign(settings.judge.by):  # which has no context of ours
        return True
    judged = run.kind.judgments.context(run.codec, problem, steps)
    return len(judged) <= settings.judge.context_tokens
