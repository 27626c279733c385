"""A judge, a process reward model or a proposer of your own, as a Python function.

    judge.by = "my_module:score"            score(list of `Choice`) → list of lists
    search.propose_by = "my_module:steps"   steps(list of `Place`) → list of lists

The module is found in the working directory, or wherever Python finds modules. The
function gets all problems that are in flight, in one call, and returns one list per
problem. With several hosts, each host calls it with its own problems. What it returns
should depend on its arguments alone; then a run that was killed goes on as if it had
not been. Errors that it raises end the run, with their traceback.

A judge returns a number for each candidate: the higher number is better, and two equal
numbers are no preference. Every call of the search's usual tournament is then decided
by comparing two numbers, so scores, pairs and tables are made as always. The model is
not asked, and the gold is not read.

A proposer returns texts, each one next step, with or without its marker.

`stepjax.own_import` finds the function that a setting names.
"""

import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from stepjax import prompts
from stepjax.codec import Codec
from stepjax.judge import Judge, Request, all_calls, comparisons
from stepjax.trajectory import (
    CUT_OFF,
    OTHER,
    VERDICT,
    Candidate,
    Proposal,
    State,
    Verdict,
    context_ids,
    refused,
)


class Choice(NamedTuple):
    """What a judge of your own gets for one problem.

    Attributes:
      problem_id: id of the question.
      problem: its text.
      steps: texts of the steps so far, each from its marker on; () before step 1.
      candidates: texts of the candidates for the next step; at least two, all
        different.
    """

    problem_id: str
    problem: str
    steps: tuple[str, ...]
    candidates: tuple[str, ...]


class Place(NamedTuple):
    """What a proposer of your own gets for one problem.

    Attributes:
      problem_id: id of the question.
      problem: its text.
      steps: texts of the steps so far, each from its marker on; () before step 1.
      width: most candidates to return.
      seed: a number below 2**32 that is another one for each problem, step and attempt,
        and the same one when the run is repeated.
    """

    problem_id: str
    problem: str
    steps: tuple[str, ...]
    width: int
    seed: int


# (slot → ids of a context, slot → ids of each candidate) → slot → log-probabilities.
Measure = Callable[[Mapping[int, Sequence[int]], Mapping[int, Sequence]], dict]


def judge(
    function: Callable, codec: Codec, *, name: str, score: str, seed: int
) -> Judge:
    """Returns the judge that asks a function for a number per candidate.

    Args:
      function: see the head of this file.
      codec: tokenizer and templates.
      name: setting and value, for messages.
      score: one of `judge.SCORES`; says which calls are made of the numbers.
      seed: base seed.

    Raises:
      ValueError: from the judge, when the function returns anything else than one
        list per problem with one finite number per candidate.
    """

    def answer(requests: Sequence[Request], calls=None) -> list[list[Verdict]]:
        if calls is None:
            calls = all_calls(requests, comparisons(score), seed)
        asked = [n for n, pairs in enumerate(calls) if pairs]
        choices = [_choice(codec, requests[n]) for n in asked]
        made = _lists(name, function(choices), choices) if choices else []
        verdicts: list[list[Verdict]] = [[] for _ in requests]
        for n, choice, numbers in zip(asked, choices, made, strict=True):
            numbers = _numbers(name, numbers, choice)
            verdicts[n] = [_verdict(numbers, a, b) for a, b in calls[n]]
        return verdicts

    return answer


def _choice(codec: Codec, request: Request) -> Choice:
    return Choice(
        request.problem_id,
        request.problem,
        tuple(codec.text(ids) for ids in request.steps),
        tuple(codec.text(ids) for ids in request.candidates),
    )


def _verdict(numbers: Sequence[float], a: int, b: int) -> Verdict:
    first, second = numbers[a], numbers[b]
    winner = None if first == second else "A" if first > second else "B"
    return Verdict(a, b, winner, f"A {first:.6g}, B {second:.6g}")


def _lists(name: str, made: Any, asked: Sequence[Choice | Place]) -> list:
    """Returns what a function returned, one item per problem."""
    made = made.tolist() if hasattr(made, "tolist") else made  # an array
    if isinstance(made, list | tuple) and len(made) == len(asked):
        return list(made)
    raise ValueError(
        f"{name} returned {reprlib.repr(made)} for {len(asked)} problems; expected a "
        f"list of {len(asked)} lists, one per problem."
    )


def _numbers(name: str, made: Any, choice: Choice) -> list[float]:
    """Returns the scores of the candidates of one problem, as floats."""
    made = made.tolist() if hasattr(made, "tolist") else made  # an array
    size = len(choice.candidates)
    if not isinstance(made, list | tuple) or len(made) != size:
        raise ValueError(
            f"{name} returned {reprlib.repr(made)} for problem {choice.problem_id!r}; "
            f"expected a list of {size} numbers, one per candidate."
        )
    made = [x.item() if hasattr(x, "item") else x for x in made]
    for number, value in enumerate(made):
        real = isinstance(value, int | float) and not isinstance(value, bool)
        if not real or not math.isfinite(value):
            raise ValueError(
                f"{name} returned {reprlib.repr(value)} for candidate {number} of "
                f"problem {choice.problem_id!r}; expected a finite number."
            )
    return [float(value) for value in made]


def proposer(
    function: Callable,
    codec: Codec,
    measure: Measure,
    *,
    name: str,
    width: int,
    max_tokens: int,
    iteration: int,
    seed: int,
) -> Callable[[Mapping[int, State]], dict[int, Proposal]]:
    """Returns the proposer that asks a function for texts of next steps.

    A text that is too long, holds a verdict, or is not a single step counts as
    malformed, each for its reason (`trajectory.FAULTS`). Equal texts are one candidate.
    The token ids are those that training on the text would use; a step with a boxed
    answer is final and gets EOS. The model that searches gives the log-probability of
    each candidate, which breaks ties and is kept in the pair.

    Args:
      function: see the head of this file.
      codec: tokenizer and templates.
      measure: gives the log-probabilities of candidates behind contexts.
      name: setting and value, for messages.
      width: most candidates per step.
      max_tokens: most tokens of a candidate.
      iteration: first integer of every key path.
      seed: base seed.

    Raises:
      ValueError: from the proposer, when the function returns anything else than one
        list per problem with at most `width` texts.
    """

    def propose(active: Mapping[int, State]) -> dict[int, Proposal]:
        places = [_place(state, width, iteration, seed) for state in active.values()]
        made = _lists(name, function(places), places)
        kept: dict[int, dict[tuple[int, ...], tuple[str, int]]] = {}
        faulty: dict[int, list[tuple[str, str]]] = {}
        for slot, place, texts in zip(active, places, made, strict=True):
            kept[slot], faulty[slot] = {}, []
            for text in _texts(name, texts, place):
                ids, shown = _as_step(codec, len(place.steps) + 1, text)
                if fault := _fault(codec, ids, shown, max_tokens):
                    faulty[slot].append((fault, shown))
                    continue
                kept[slot][ids] = shown, kept[slot].get(ids, ("", 0))[1] + 1
        contexts = {slot: context_ids(codec, active[slot]) for slot in active}
        logps = measure(contexts, kept)
        return {
            slot: Proposal(
                tuple(
                    Candidate(ids, text, count, logp, ids[-1] in codec.stop_ids)
                    for (ids, (text, count)), logp in zip(
                        kept[slot].items(), logps[slot], strict=True
                    )
                ),
                len(faulty[slot]),
                refused(faulty[slot]),
            )
            for slot in active
        }

    return propose


def _fault(
    codec: Codec, ids: tuple[int, ...], text: str, max_tokens: int
) -> str | None:
    """Returns why a text is no candidate, one of `trajectory.FAULTS`, or None."""
    if prompts.held_verdict(codec.templates, text):
        return VERDICT
    if not ids:
        return OTHER
    return CUT_OFF if len(ids) > max_tokens else None


def _place(state: State, width: int, iteration: int, seed: int) -> Place:
    path = [seed, *state.key_path(iteration)]
    drawn = int(np.random.SeedSequence(path).generate_state(1)[0])
    steps = tuple(step.text for step in state.steps)
    return Place(state.question.id, state.question.problem, steps, width, drawn)


def _texts(name: str, made: Any, place: Place) -> Sequence[str]:
    """Returns the texts of the candidates of one problem."""
    texts = isinstance(made, list | tuple) and all(isinstance(x, str) for x in made)
    if not texts or len(made) > place.width:
        raise ValueError(
            f"{name} returned {reprlib.repr(made)} for problem {place.problem_id!r}; "
            f"expected a list of at most {place.width} texts."
        )
    return made


def _as_step(codec: Codec, number: int, text: str) -> tuple[tuple[int, ...], str]:
    """Returns ids and text of a step; no ids for a text that is no single step."""
    templates, text = codec.templates, text.strip()
    marker = prompts.marker(templates, number)
    if not text.startswith(marker.rstrip()):
        text = marker + text
    body = text.removeprefix(marker.rstrip())
    if not body.strip() or any(s in text for s in prompts.step_stops(templates)):
        return (), text
    ids = codec.step(text)
    if prompts.boxed(text) is not None:
        ids = (*ids, codec.tokenizer.eos_id)
    return ids, text
