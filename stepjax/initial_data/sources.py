"""Readers: the files of public data sets, in their upstream schemas, to records.

Every reader takes the path of a file of JSON lines and raises ValueError with
"PATH:LINE: reason" (lines from 1) for a row that does not fit the schema. An id made
here holds the row's index in its file, from 0: "gsm8k-train-17".
"""

import os
import re
import reprlib
from pathlib import Path
from typing import Any

from stepjax.prompts import Templates, marker
from stepjax.records import Comparison, Problem, Question, Solution, read_objects


def _field(row: Any, name: str, kind: type, place: str) -> Any:
    """Takes row[name], which must be of the given kind (str, list or dict)."""
    kinds = {str: "a string", list: "a list", dict: "an object"}
    if not isinstance(row, dict) or not isinstance(row.get(name), kind):
        shown = repr(sorted(row)) if isinstance(row, dict) else reprlib.repr(row)
        if isinstance(row, dict) and name in row:
            shown = reprlib.repr(row[name])
        raise ValueError(
            f"{place}: field {name!r} not usable in {shown}; expected {kinds[kind]}."
        )
    return row[name]


def _gsm8k_row(row: dict, place: str) -> tuple[str, list[str], str]:
    """Takes an upstream GSM8K row apart: problem, lines of reasoning, answer."""
    problem = _field(row, "question", str, place)
    text = _field(row, "answer", str, place)
    reasoning, _, last = text.rstrip().rpartition("\n")
    final = re.fullmatch(r"#### *(\S+)", last)
    if not final:
        raise ValueError(
            f"{place}: the answer ends with the line {reprlib.repr(last)}; "
            "expected '#### N'."
        )
    lines = [re.sub(r"<<[^<>]*>>", "", line).strip() for line in reasoning.split("\n")]
    return problem, [line for line in lines if line], final[1].replace(",", "")


def gsm8k_solutions(path: str | os.PathLike, templates: Templates) -> list[Solution]:
    r"""Reads GSM8K's own file as step-by-step solutions (IFT).

    One line of reasoning is one step. The calculator marks "<<48/2=24>>" and empty
    lines go; the last step gets "The answer is \boxed{N}." at its end.

    Args:
      path: JSON lines of {"question", "answer"}; the last line of answer is "#### N".
      templates: their step marker begins each step.

    Returns:
      One solution per row; its answer is N without thousands commas.

    Raises:
      ValueError: "PATH:LINE: reason" for a malformed row.
    """
    solutions = []
    for index, (place, row) in enumerate(read_objects(path)):
        problem, lines, answer = _gsm8k_row(row, place)
        closing = f"The answer is \\boxed{{{answer}}}."
        lines[-1:] = [f"{lines[-1]} {closing}" if lines else closing]
        steps = tuple(
            marker(templates, number) + line for number, line in enumerate(lines, 1)
        )
        name = f"gsm8k-{Path(path).stem}-{index}"
        solutions.append(Solution(name, problem, steps, answer))
    return solutions


def gsm8k_questions(path: str | os.PathLike) -> list[Question]:
    """Reads GSM8K's own file as questions; the answers are left behind.

    Args:
      path: JSON lines of {"question", "answer"}.

    Returns:
      One question per row.

    Raises:
      ValueError: "PATH:LINE: reason" for a malformed row.
    """
    return [
        Question(
            f"gsm8k-{Path(path).stem}-{index}", _field(row, "question", str, place)
        )
        for index, (place, row) in enumerate(read_objects(path))
    ]


def gsm8k_problems(path: str | os.PathLike) -> list[Problem]:
    """Reads GSM8K as a benchmark.

    Args:
      path: JSON lines of {"question", "answer"} as upstream, or of
        {"id", "problem", "answer"}, which `benchmark` reads.

    Returns:
      One problem per row; its answer has no thousands commas.

    Raises:
      ValueError: "PATH:LINE: reason" for a malformed row.
    """
    problems = []
    for index, (place, row) in enumerate(read_objects(path)):
        if index == 0 and "problem" in row:
            return benchmark(path)
        problem, _, answer = _gsm8k_row(row, place)
        problems.append(Problem(f"gsm8k-{Path(path).stem}-{index}", problem, answer))
    return problems


def benchmark(path: str | os.PathLike) -> list[Problem]:
    """Reads any benchmark that has one problem and its answer per row.

    Args:
      path: JSON lines with string fields "problem", "answer" and, if there, "id";
        further fields are ignored. Without an id the row is named after its file,
        for example "train-17" in train.jsonl.

    Returns:
      One problem per row.

    Raises:
      ValueError: "PATH:LINE: reason" for a malformed row or an id that is there twice.
    """
    problems = []
    seen = set()
    for index, (place, row) in enumerate(read_objects(path)):
        name = f"{Path(path).stem}-{index}"
        if "id" in row:
            name = _field(row, "id", str, place)
        if name in seen:
            raise ValueError(f"{place}: id {name!r} is there twice; expected it once.")
        seen.add(name)
        problem = _field(row, "problem", str, place)
        problems.append(Problem(name, problem, _field(row, "answer", str, place)))
    return problems


def _one_line(text: str) -> str:
    """Puts a step on one line: newlines and the blanks around them to one space."""
    return re.sub(r"\s*[\r\n]\s*", " ", text.strip())


def _completions(group: Any, place: str) -> list[tuple[str, int | None]]:
    """Takes (text, rating) of each completion of one PRM800K step group."""
    if isinstance(group, dict) and group.get("completions", 0) is None:
        return []  # upstream has null where only a human wrote
    completions = []
    for completion in _field(group, "completions", list, place):
        text = _one_line(_field(completion, "text", str, place))
        rating = completion.get("rating")
        if rating not in (-1, 0, 1, None):
            raise ValueError(
                f"{place}: rating is {reprlib.repr(rating)}; expected -1, 0, 1 or null."
            )
        completions.append((text, rating))
    return completions


def _continuation(
    group: dict, completions: list[tuple[str, int | None]], place: str
) -> str | None:
    """Finds the step of one PRM800K group that the solution went on with, if any."""
    chosen = group.get("chosen_completion")
    if chosen is not None:
        if not isinstance(chosen, int) or not 0 <= chosen < len(completions):
            raise ValueError(
                f"{place}: chosen_completion is {reprlib.repr(chosen)}; expected null "
                f"or an index below {len(completions)}."
            )
        return completions[chosen][0] or None
    if group.get("human_completion") is not None:
        human = _field(group, "human_completion", dict, place)
        return _one_line(_field(human, "text", str, place)) or None
    return None


def prm800k_comparisons(
    path: str | os.PathLike, templates: Templates
) -> list[Comparison]:
    """Reads PRM800K's step labels as pairwise judgments (EFT).

    People rated several completions of the same step -1, 0 or +1. In each step group
    the first completion rated +1 and the first one rated -1 whose texts differ make
    a pair, shown in both orders. The steps so far are those that the solution went on
    with: the chosen completion, or the human one where none was chosen; where neither
    is there, the rest of the solution is left out. Each step is put on one line.

    Args:
      path: JSON lines in PRM800K's own nesting: question.problem and label.steps,
        each of these with completions, human_completion and chosen_completion.
      templates: their step marker begins each step.

    Returns:
      Two comparisons per pair, "prm800k-12-3-ab" (verdict A) and "prm800k-12-3-ba"
      (verdict B): row 12 from 0, step 3 from 1. The explanations are empty.

    Raises:
      ValueError: "PATH:LINE: reason" for a malformed row.
    """
    comparisons: list[Comparison] = []
    for index, (place, row) in enumerate(read_objects(path)):
        problem = _field(_field(row, "question", dict, place), "problem", str, place)
        groups = _field(_field(row, "label", dict, place), "steps", list, place)
        steps: tuple[str, ...] = ()
        for number, group in enumerate(groups, 1):
            start = marker(templates, number)
            completions = _completions(group, place)
            pair = next(
                (
                    (start + good, start + bad)
                    for good, good_rating in completions
                    for bad, bad_rating in completions
                    if (good_rating, bad_rating) == (1, -1)
                    and good != bad
                    and good
                    and bad
                ),
                None,
            )
            if pair:
                name = f"prm800k-{index}-{number}"
                good, bad = pair
                comparisons += [
                    Comparison(f"{name}-ab", problem, steps, good, bad, "A"),
                    Comparison(f"{name}-ba", problem, steps, bad, good, "B"),
                ]
            following = _continuation(group, completions, place)
            if following is None:
                break
            steps += (start + following,)
    return comparisons
