"""``stepjax show``: problems that a model searched, judged step by judged step.

Where a model has searched its questions (M1/search.jsonl), a problem is shown with the
candidates of each step, their scores, and the verdicts in both orders. For the last
model, which searches no questions, the searches of its evaluation (eval/*_search.jsonl)
take their place. A model that has searched nothing has its answers to test problems
shown.
"""

import pathlib
import random
import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from stepjax import trajectory
from stepjax.controls import IsRight
from stepjax.evaluation import samples
from stepjax.lm import files
from stepjax.records import read_objects
from stepjax.run import manifest as manifests
from stepjax.trajectory import Candidate, Expansion, State, Verdict

CHOICES = ("", "wrong", "ties", "random")
_ACTIONS = {
    "pair": "BEST over WORST is a preference, and BEST goes on",
    "append": "no preference; KEPT, which was sampled most often, goes on",
    "back": "no preference; the search goes back a step",
    "resample": "no preference; step 1 is sampled again",
    "reject": "the judge calls the best one wrong; the step is sampled again",
}
_EVERY = 6  # most calls of a step whose explanations are all shown


def show(
    workdir: pathlib.Path,
    number: int,
    *,
    problem: str = "",
    choice: str = "",
    count: int = 3,
    is_right: IsRight | None = None,
) -> str:
    """Returns problems of a model as text.

    Args:
      workdir: the run directory.
      number: of the model.
      problem: id of the one problem to show; "" lets `choice` and `count` decide.
      choice: "wrong": problems with a wrong step or answer; "ties": searches with a
        step whose candidates had equal scores; "random"; "" takes the first ones.
      count: how many problems, at most.
      is_right: gold of a world, which marks candidates as right or wrong; None where
        nothing is known about single steps.

    Raises:
      ValueError: for an unknown choice, a count below 1, a model that has neither
        searched nor been measured, or a problem that is not there.
    """
    if choice not in CHOICES or count < 1:
        raise ValueError(
            f"choice={choice!r}, n={count}; expected one of {CHOICES} and at least 1."
        )
    searched = {path: states_of(path) for path in searches(workdir, number)}
    path, states = next(iter(searched.items()), (None, []))
    answers = _answers(workdir, number)
    if not states and not answers:
        raise ValueError(
            f"M{number} of {workdir} has no searches and no answers in "
            f"{workdir / 'eval'}; expected one of them. Run `stepjax search` or "
            f"`stepjax eval` with --model=M{number} first."
        )
    if problem:
        return _one(problem, searched, answers, is_right, f"M{number} of {workdir}")
    if states and choice == "wrong" and not _is_known(states, is_right):
        states = []  # right answers are known of test problems only
    if not states:
        return _of_answers(answers, number, choice, count)
    chosen = [state for state in states if _fits(state, choice, is_right)]
    found, chosen = len(chosen), _cut(chosen, choice, count)
    head = f"M{number}: {len(chosen)} of {found} problems"
    if choice in ("wrong", "ties"):
        kind = "with a wrong step" if choice == "wrong" else "with a tie"
        head += f" {kind}, among {len(states)}"
    parts = [of_state(state, is_right) for state in chosen]
    return "\n".join([f"{head}, from {path}", "", *parts])


def newest_search(workdir: pathlib.Path, newest: int) -> int:
    """Returns the number of the newest model whose searches are kept.

    Args:
      workdir: the run directory.
      newest: number of its newest model, which is returned when none has searched.
    """
    numbers = range(newest, 0, -1)
    return next((n for n in numbers if searches(workdir, n)), newest)


def searches(workdir: pathlib.Path, number: int) -> list[pathlib.Path]:
    """Returns the files with searches of a model: of its questions, of evaluations.

    Args:
      workdir: the run directory.
      number: of the model.
    """
    measured = _results(workdir, number, "search")
    paths = [path.with_suffix(".jsonl") for path in measured]
    own = workdir / f"M{number}" / "search.jsonl"
    return [path for path in (own, *paths) if path.exists()]


def _results(workdir: pathlib.Path, number: int, mode: str) -> list[pathlib.Path]:
    """Returns the results of a mode of evaluation, the run's own test first."""
    own = workdir / "eval" / f"M{number}_test_{mode}.json"
    paths = sorted(own.parent.glob(f"M{number}_*_{mode}.json"))
    return sorted(paths, key=own.__ne__)


def states_of(path: pathlib.Path) -> list[State]:
    """Reads a file of searches.

    Args:
      path: one of `searches`.

    Raises:
      ValueError: it has changed since it was written, or is something else.
    """
    manifests.check(path, path.with_suffix(".json"))
    try:
        return [trajectory.from_row(row) for _, row in read_objects(path)]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: a row is no search ({type(error).__name__}: {error}); expected "
            "the file that `stepjax search` or `stepjax eval` wrote."
        ) from error


def _answers(workdir: pathlib.Path, number: int) -> dict[str, list[Mapping[str, Any]]]:
    """Returns file name → graded answers of a model, greedy ones first."""
    paths = [p for m in ("greedy", "search") for p in _results(workdir, number, m)]
    found = {path: files.read_json(path) for path in paths}
    for path, result in found.items():
        if not isinstance(result, dict) or "items" not in result:
            raise ValueError(
                f"{path}: no result with items; expected the file that `stepjax eval` "
                "wrote. Delete it, and run `stepjax eval` again."
            )
    return {path.name: result["items"] for path, result in found.items()}


def _one(
    name: str,
    searched: Mapping[pathlib.Path, Sequence[State]],
    answers: Mapping[str, list[Mapping[str, Any]]],
    is_right: IsRight | None,
    source: str,
) -> str:
    """Returns all that is known of one problem."""
    states = [(path, state) for path, found in searched.items() for state in found]
    asked = [(path, state) for path, state in states if state.question.id == name]
    parts = [
        (f"from {path}\n\n" if len(asked) > 1 else "") + of_state(state, is_right)
        for path, state in asked
    ]
    for file, items in answers.items():
        found = (item for item in items if item["id"] == name)
        parts += [f"{file}: {samples.text_of(item)}\n" for item in found]
    if not parts:
        ids = [state.question.id for _, state in states[:3]]
        ids += [item["id"] for items in answers.values() for item in items[:3]]
        raise ValueError(
            f"--problem={name!r} is no problem of {source}; expected an id such as "
            f"{', '.join(dict.fromkeys(ids))}."
        )
    return "\n".join(parts)


def _of_answers(
    answers: Mapping[str, list[Mapping[str, Any]]], number: int, choice: str, count: int
) -> str:
    """Returns graded answers to test problems as text."""
    if choice == "ties" or not answers:
        missing = "search of its questions" if choice == "ties" else "graded answers"
        raise ValueError(
            f"M{number} has no {missing}; expected some. Run `stepjax "
            f"{'search' if choice == 'ties' else 'eval'} --model=M{number}` first."
        )
    file, items = next(iter(answers.items()))
    if choice == "wrong":
        items = [item for item in items if not item["right"]]
    found, items = len(items), _cut(items, choice, count)
    kind = "wrong answers" if choice == "wrong" else "answers"
    head = f"M{number}: {len(items)} of {found} {kind}, from eval/{file}"
    return "\n".join([head, "", *(f"{samples.text_of(item)}\n" for item in items)])


def _cut(found: Sequence, choice: str, count: int) -> list:
    if choice == "random":
        return random.sample(list(found), min(count, len(found)))
    return list(found[:count])


def _is_known(states: Sequence[State], is_right: IsRight | None) -> bool:
    """Whether the gold knows the problems."""
    return is_right is not None and any(
        is_right(state.question.problem, (), "") is not None for state in states
    )


def _fits(state: State, choice: str, is_right: IsRight | None) -> bool:
    """Whether a search is one of those that were asked for."""
    if choice == "wrong":
        texts = [step.text for step in state.steps]
        return any(
            is_right(state.question.problem, texts[:at], text) is False
            for at, text in enumerate(texts)
        )
    if choice == "ties":
        return any(
            e.action != "pair" and len(e.candidates) > 1 for e in state.expansions
        )
    return True


def of_state(state: State, is_right: IsRight | None = None) -> str:
    """Returns one search as text: every expansion, then the steps that were kept.

    Args:
      state: the search.
      is_right: gold; None marks nothing.
    """
    question = state.question
    words = {
        "budget": "closed because its expansions were used up",
        "length": "closed because there was no room for another step",
    }
    lines = [
        f"{question.id}: {words.get(state.status, state.status)}, "
        f"{len(state.expansions)} expansions, {len(state.steps)} steps kept",
        *wrapped(question.problem, "    "),
    ]
    for steps, expansion in trajectory.with_steps(state):
        before = [step.text for step in steps]
        judge = _marks(question.problem, before, is_right)
        lines += ["", *_of_expansion(expansion, judge)]
    kept = [step.text for step in state.steps]
    lines += ["", "  kept:"]
    for at, text in enumerate(kept):
        mark = _marks(question.problem, kept[:at], is_right)(text)
        lines += wrapped(text, "    ", f"    {mark}" if mark else "    ")
    if not kept:
        lines.append("    nothing")
    return "\n".join(lines) + "\n"


def _marks(
    problem: str, kept: Sequence[str], is_right: IsRight | None
) -> Callable[[str], str]:
    """Returns a function: text of a candidate → "right: ", "wrong: " or ""."""

    def mark(text: str) -> str:
        found = is_right(problem, kept, text) if is_right else None
        return "" if found is None else "right: " if found else "wrong: "

    return mark


def _of_expansion(expansion: Expansion, mark: Callable[[str], str]) -> Iterator[str]:
    yield (
        f"  step {expansion.step}, attempt {expansion.attempt + 1}: "
        f"{_ACTIONS[expansion.action]}"
    )
    for number, candidate in enumerate(expansion.candidates):
        name = _name(expansion, number)
        head = f"    {name:7} {_facts(expansion, number, candidate)}"
        yield from wrapped(candidate.text, " " * 12, f"{head}{mark(candidate.text)}")
    for refused in expansion.refused:
        ending = "" if refused.count == 1 else "s"
        head = f"    refused {refused.count} sample{ending}, {refused.fault}: "
        yield from wrapped(refused.text, " " * 12, head)
    if not expansion.candidates and not expansion.refused:
        yield f"    no candidates; {expansion.malformed} samples were malformed"
    if expansion.verdicts:
        yield "    verdicts:"
        yield from _of_verdicts(expansion)


def _name(expansion: Expansion, number: int) -> str:
    """Returns "1 BEST", "2 WORST", "3", counted from 1; "1 KEPT" without a pair."""
    kept = "BEST" if expansion.action == "pair" else "KEPT"
    ends = {expansion.worst: " WORST", expansion.best: f" {kept}"}
    return f"{number + 1}{ends.get(number, '')}"


def _facts(expansion: Expansion, number: int, candidate: Candidate) -> str:
    score = expansion.scores[number]
    points = "no score" if score is None else f"score {score:g}"
    ends = "ends, " if candidate.finished else ""
    return f" {points}, sampled {candidate.count}×, logp {candidate.logp:.2f}, {ends}"


def _of_verdicts(expansion: Expansion) -> Iterator[str]:
    """Yields the two orders of each pair together, BEST against WORST first."""
    pairs: dict[tuple[int, int], list[Verdict]] = {}
    for verdict in expansion.verdicts:
        key = min(verdict.a, verdict.b), max(verdict.a, verdict.b)
        pairs.setdefault(key, []).append(verdict)
    ends = {expansion.best, expansion.worst}
    explained = len(expansion.verdicts) <= _EVERY
    for pair in sorted(pairs, key=lambda pair: set(pair) != ends):
        for verdict in pairs[pair]:
            first, second = verdict.a + 1, verdict.b + 1
            if first == second:
                said = f"{first}: {_alone(verdict.winner)}"
            else:
                winner = {"A": f"{first} wins", "B": f"{second} wins", "C": "tie"}
                said = f"{first} as A, {second} as B: "
                said += winner.get(verdict.winner, "no verdict")
                if verdict.probability is not None:
                    said += f", {verdict.probability:.2f} for {first}"
            if explained or set(pair) == ends:
                yield from wrapped(verdict.response, " " * 10, f"      {said}: ")
            else:
                yield f"      {said}"


def _alone(verdict: str | None) -> str:
    """Returns what was said about a candidate that was judged alone."""
    words = {"A": "right", "B": "wrong", None: "no verdict"}
    return words.get(verdict, f"rating {verdict}")


def wrapped(text: str, indent: str, head: str | None = None) -> list[str]:
    """Returns a text as lines of the terminal's width.

    Args:
      text: perhaps of several lines.
      indent: begins each line.
      head: begins the first line instead; None for `indent`.
    """
    width = max(60, shutil.get_terminal_size((100, 24)).columns)
    lines: list[str] = []
    for part in text.split("\n") or [""]:
        first = indent if lines or head is None else head
        wrapped = textwrap.wrap(
            part,
            width,
            initial_indent=first,
            subsequent_indent=indent,
            break_on_hyphens=False,
        )
        lines += wrapped or [first.rstrip()]
    return lines
