"""The rows of a run on word problems: its splits, and its equations by problem."""

import collections
import dataclasses
import functools
import os
import pathlib
import random
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from stepjax import records
from stepjax.initial_data.eft import BOTH_WRONG
from stepjax.initial_data.formats import sources
from stepjax.initial_data.formats import word_problems as form
from stepjax.prompts import Templates
from stepjax.records import Comparison, Preference, Problem, Question, Solution
from stepjax.srlm import Rating
from stepjax.worlds import word_problems as world
from stepjax.worlds import word_problems_judgments as judgments
from stepjax.worlds import word_problems_numbers as numbers
from stepjax.worlds import word_problems_srlm
from stepjax.worlds.equations import Equation, read_equation

_MOST_DECIMALS = 4  # of any number of a solution; longer ones come from floating point
_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen "
    "fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty "
    "sixty seventy eighty ninety hundred thousand dozen"
)
_NUMBERS = re.compile(rf"[0-9][0-9,./]*[0-9]|[0-9]|\b(?:{'|'.join(_WORDS.split())})\b")


class Dataset(NamedTuple):
    """All data of a run; no two splits hold problems that differ only in numbers.

    Attributes:
      ift: solutions to learn from.
      eft: comparisons with corrupted steps to learn from, two rows for each problem;
        or ratings of whole solutions, one row for each problem.
      heldout: the same to measure the judge with; exactly one of two steps is right.
      questions: one list of questions without answers for each iteration.
      tree_questions: questions without answers for the tree search.
      equations: those of all problems above.
    """

    ift: list[Solution]
    eft: list[Comparison] | list[Rating]
    heldout: list[Comparison] | list[Rating]
    questions: list[list[Question]]
    tree_questions: list[Question]
    equations: list[Equation]


def read_equations(path: str | os.PathLike) -> list[Equation]:
    """Reads word problems with their equations.

    Args:
      path: a file of {"problem", "answer", "equation"} and, if there, "id"; further
        fields are ignored.

    Raises:
      ValueError: "PATH:LINE: reason" for an equation that cannot be read or does not
        give the answer; see also `sources.read_with`.
    """

    def parse(row: dict[str, Any], name: str, templates: Templates) -> list[Equation]:
        (solution,) = form.solution(row, name, templates)
        text = (solution.id, solution.problem, solution.answer)
        return [Equation(*text, " ".join(row["equation"].split()))]

    return sources.read_with(path, parse, "word_problems", Templates())


def without_numbers(text: str) -> str:
    """Returns a problem in lower case, with "#" for numbers and single blanks."""
    return " ".join(_NUMBERS.sub("#", text.lower()).split())


def dataset(
    equations: Sequence[Equation],
    test: Sequence[Problem],
    *,
    seed: int,
    ift: int,
    eft: int,
    heldout: int,
    questions: Sequence[int],
    tree_questions: int = 0,
    ift_variants: int = 0,
    drills: int = 0,
    templates: Templates = Templates(),  # noqa: B008
    style: str = "short",
    judged: Callable[..., list] = judgments.comparisons,
    say: Callable[[str], None] = print,
) -> Dataset:
    """Splits problems among the parts of a run, the same for the same arguments.

    Problems that differ only in numbers stay in one split. Problems that differ only in
    numbers from a test problem are left out, and so are those with long decimals.

    Args:
      equations: the problems.
      test: the benchmark problems of the run.
      seed: of all draws.
      ift: number of solutions; 0 takes all problems that are left.
      eft: number of problems to judge.
      heldout: number of further problems to judge, for measuring the judge.
      questions: number of questions of each iteration.
      tree_questions: number of questions for the tree search.
      ift_variants: further solutions of each IFT problem, with other numbers, where
        `word_problems_numbers` finds some.
      drills: solutions of plain calculations that are added to the IFT rows.
      templates: their step marker begins each step.
      style: of the explanations, see `word_problems_judgments`.
      judged: makes the rows of a problem to judge; or `word_problems_srlm.ratings`.
      say: prints a line for people.

    Raises:
      ValueError: when there are not enough problems.
    """
    groups = _groups(equations, test, seed, say)
    counts = {"heldout": heldout} | {f"q{n}": k for n, k in enumerate(questions, 1)}
    counts |= {"tree_questions": tree_questions, "eft": eft, "ift": ift}
    drawn = {name: _draw(groups, count) for name, count in counts.items() if count}
    if not ift:
        drawn["ift"] = [row for group in groups for row in group]
    left = sum(map(len, groups)) if ift else 0
    found = {name: len(drawn.get(name, ())) for name in counts}
    wanted = counts if ift else counts | {"ift": found["ift"]}  # as many as are left
    if found != wanted or not found["ift"]:
        raise ValueError(
            f"data.equations has problems for {found}; expected {counts} (ift: at "
            "least 1). Lower these counts, or add problems."
        )
    say(f"word problems: {found}, {left} left over.")
    rng = random.Random(f"word problems, other numbers, seed {seed}")
    varied = _varied(drawn["ift"], ift_variants, rng)
    if ift_variants:
        say(f"word problems: {len(varied)} more solutions, with other numbers.")
    solutions = _solutions([*drawn["ift"], *varied], templates)
    solutions += [numbers.drill(f"drill-{n}", rng, templates) for n in range(drills)]

    def judge(name: str, undecided: float) -> list[Any]:
        rng = random.Random(f"word problems, {name}, seed {seed}")
        options = {"style": style, "step": templates.step}
        return [
            made
            for row in drawn.get(name, ())
            for made in judged(row.id, row, rng, undecided, **options)
        ]

    def ask(name: str) -> list[Question]:
        return [Question(row.id, row.problem) for row in drawn.get(name, ())]

    return Dataset(
        ift=solutions,
        eft=judge("eft", BOTH_WRONG),
        heldout=judge("heldout", 0.0),
        questions=[ask(f"q{n}") for n in range(1, len(questions) + 1)],
        tree_questions=ask("tree_questions"),
        equations=[*(row for rows in drawn.values() for row in rows), *varied],
    )


def further(
    equations: Sequence[Equation],
    known: Sequence[Any],
    count: int,
    *,
    seed: int,
    say: Callable[[str], None] = print,
) -> list[Equation]:
    """Returns problems that differ from those of a run in more than numbers.

    Args:
      equations: the problems to draw from.
      known: rows of the run, each with a `problem`.
      count: how many.
      seed: of the draw.
      say: prints a line for people.

    Raises:
      ValueError: when there are not enough problems.
    """
    drawn = _draw(_groups(equations, known, seed, say), count)
    if len(drawn) < count:
        raise ValueError(
            f"data.equations has {len(drawn)} problems that the run does not have yet; "
            f"expected {count} for its new iterations. Lower data.questions for them, "
            "or add problems."
        )
    return drawn


def _groups(
    equations: Sequence[Equation],
    test: Sequence[Problem],
    seed: int,
    say: Callable[[str], None],
) -> list[list[Equation]]:
    """Returns the usable problems in random order; near duplicates are in one group."""
    tested = {without_numbers(row.problem) for row in test}
    groups: dict[str, list[Equation]] = collections.defaultdict(list)
    seen: set[str] = set()
    left_out = collections.Counter(test=0, unusual=0, repeated=0)
    for row in equations:
        name = without_numbers(row.problem)
        if row.problem in seen:
            left_out["repeated"] += 1
        elif name in tested:
            left_out["test"] += 1
        elif not _short(row) or not _consistent(row):
            left_out["unusual"] += 1
        else:
            groups[name].append(row)
        seen.add(row.problem)
    together = sum(len(group) for group in groups.values() if len(group) > 1)
    say(
        f"word problems: {len(equations)} read. Left out: {left_out['test']} that "
        f"differ from a test problem only in numbers, {left_out['unusual']} with more "
        f"than {_MOST_DECIMALS} decimals or an unusual equation, "
        f"{left_out['repeated']} repeated. {together} that differ from another one "
        "only in numbers stay in the same split as it."
    )
    result = list(groups.values())
    random.Random(f"word problems, splits, seed {seed}").shuffle(result)
    return result


def _draw(groups: list[list[Equation]], count: int) -> list[Equation]:
    """Takes groups with `count` problems in all; a group that does not fit stays.

    Only if no group fits, a part of one is taken and the rest of it left out.
    """
    taken: list[Equation] = []
    kept: list[list[Equation]] = []
    for group in groups:
        if len(taken) + len(group) <= count:
            taken += group
        else:
            kept.append(group)
    if len(taken) < count and kept:
        taken += kept.pop(0)[: count - len(taken)]
    groups[:] = kept
    return taken


def _varied(rows: Sequence[Equation], times: int, rng: random.Random) -> list[Equation]:
    """Returns the problems again, up to `times` each, with other numbers."""
    seen = {row.problem for row in rows}
    made = []
    for number in range(1, times + 1):
        for row in rows:
            other = numbers.with_other_numbers(row, rng)
            if other and other.problem not in seen and _consistent(other):
                seen.add(other.problem)
                made.append(dataclasses.replace(other, id=f"{row.id}-numbers-{number}"))
    return made


def _short(row: Equation) -> bool:
    """Whether no number of a solution has a fraction or many decimals."""
    node, operations = read_equation(row.equation)
    values = [value for operation in operations for value in operation[1:]]
    texts = [row.answer, *map(form.written, values or [node])]
    decimals = (text.partition(".")[2] for text in texts)
    return not any("/" in text for text in texts) and all(
        len(part) <= _MOST_DECIMALS for part in decimals
    )


def _consistent(row: Equation) -> bool:
    """Whether the gold calls the solution by rule right.

    It does not where an equation subtracts a negative difference, for example.
    """
    (solution,) = _solutions([row], Templates())
    steps = solution.steps
    return all(world.is_right(row, steps[:n], text) for n, text in enumerate(steps))


def _solutions(rows: Sequence[Equation], templates: Templates) -> list[Solution]:
    return [one for row in rows for one in form.solution(vars(row), row.id, templates)]


class Known:
    """The equations of a run, found by the texts of their problems.

    They are read from the run's file when they are first needed. Gold knowledge: for
    making EFT rows, for evaluation and for the oracle judge only.
    """

    def __init__(self, path: str | os.PathLike, style: str, step: str):
        """Notes where the equations are.

        Args:
          path: the run's ``data/equations.jsonl``.
          style: of explanations, see `word_problems_judgments`.
          step: form of a step's marker.
        """
        self._path, self._style, self._step = path, style, step

    @functools.cached_property
    def rows(self) -> dict[str, Equation]:
        """Text of a problem → its equation."""
        path = pathlib.Path(self._path)  # and those of iterations that were added
        paths = [path, *sorted(path.parent.glob(f"{path.stem}_*{path.suffix}"))]
        read = [row for path in paths for row in records.read_jsonl(path, Equation)]
        return {row.problem: row for row in read}

    def is_right(
        self, problem: str, steps: Sequence[str], candidate: str
    ) -> bool | None:
        """Whether a next step is right; None where the equation is not known."""
        row = self.rows.get(problem)
        return None if row is None else world.is_right(row, steps, candidate)

    def solved(self, problem: str, steps: Sequence[str], solution: str) -> bool | None:
        """Whether a whole solution is right; None where the equation is not known."""
        del steps  # a whole solution follows the problem alone
        row = self.rows.get(problem)
        return None if row is None else word_problems_srlm.is_right(row, solution)

    def mistake(self, problem: str, steps: Sequence[str], candidate: str) -> str | None:
        """Returns what is wrong with a next step of a known problem, or None."""
        return world.mistake(self.rows[problem], steps, candidate)

    def comparisons(
        self, id: str, problem: str, rng: random.Random, undecided: float
    ) -> list[Comparison]:
        """Makes rows of a known problem, see `word_problems_judgments.comparisons`."""
        options = {"style": self._style, "step": self._step}
        return judgments.comparisons(id, self.rows[problem], rng, undecided, **options)

    def appraise(self, row: Comparison) -> tuple[str, str]:
        """Judges the first step of a comparison alone.

        Returns:
          ("A" if the step is right, else "B", the explanation without the second step).
        """
        problem, steps, step = self.rows[row.problem], row.steps, row.a
        side = "A" if world.is_right(problem, steps, step) else "B"
        if self._style == "none":
            return side, ""
        return side, judgments.appraisal(problem, steps, step, self._style)

    def answers(
        self, pairs: Sequence[Preference], templates: Templates
    ) -> list[dict[str, Any]]:
        """Judges pairs as a teacher, see `word_problems_judgments.answers`."""
        rows = [self.rows.get(pair.problem) for pair in pairs]
        return judgments.answers(pairs, rows, templates, style=self._style)
