"""Overlap of training questions with evaluation files: found, reported and removed.

Two questions overlap where they are the same text, or share runs of n words. Case,
punctuation, and the LaTeX that only sets spaces and sizes do not count. Time and memory
grow in proportion to the texts.
"""

import re
import textwrap
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

from stepjax.run.text_table import text_table

N = 13  # words in a run that two questions must share
SHARE = 0.5  # of the words of an evaluation problem that shared runs must cover
_SET_PHRASE = 100  # a run that is in so many evaluation problems is a set phrase

_DRAWING = re.compile(r"\[asy\](?:(?!\[asy\]).)*?\[/asy\]", re.DOTALL)
_NO_WORDS = re.compile(
    r"\\(?:[,;:!> ()\[\]{}$%&#_\\]|q?quad(?![a-z])|(?:left|right|[bB]igg?[lr]?"
    r"|displaystyle|limits|mathrm|mathbf|mathit|textbf|textit|textrm|text|mbox|emph"
    r"|begin|end)(?![a-zA-Z]))"
)
_FRACTION = re.compile(r"\\[dtc]frac(?![a-z])")
_THOUSANDS = re.compile(r"(?<=\d)(?:,|\{,\}|\\!|,\\!)(?=\d{3}(?!\d))")
_WORD = re.compile(
    r"\d+(?:\.\d+)?|[\u3040-\u30ff\u3400-\u9fff]|[^\W\d_\u3040-\u30ff\u3400-\u9fff]+"
    r"|[+*/=<>^|%]|(?<![^\W\d_])-|-(?![^\W\d_])"
)


@dataclass(frozen=True)
class Overlap:
    """A training question that shares text with an evaluation problem.

    Attributes:
      train_id: id of the training question.
      evaluation: name of the evaluation.
      eval_id: id of the evaluation problem.
      kind: "exact" where the two are the same text, "n-gram" where they share runs.
      text: what they share, as words: the longest run.
    """

    train_id: str
    evaluation: str
    eval_id: str
    kind: Literal["exact", "n-gram"]
    text: str


def words(text: str) -> list[str]:
    """Takes a text apart into words that do not depend on how it is typeset.

    Args:
      text: a question.

    Returns:
      Words in lower case, numbers, and signs such as "+"; no punctuation.
    """
    text = unicodedata.normalize("NFKC", text)
    text = _FRACTION.sub(r"\\frac", _THOUSANDS.sub("", text))
    return _WORD.findall(_NO_WORDS.sub(" ", text).lower())


def _runs(plain: Sequence[str], n: int) -> list[str]:
    """Returns the runs of n words."""
    return [" ".join(plain[i : i + n]) for i in range(len(plain) - n + 1)]


def overlaps(
    training: Sequence[Any],
    evaluations: Mapping[str, Sequence[Any]],
    n: int = N,
    *,
    share: float = SHARE,
) -> list[Overlap]:
    """Finds the training questions that share text with evaluation problems.

    A question of fewer than n words overlaps only with the same text. Runs inside
    drawings ([asy]) do not count. Two problems often share a run and nothing else, such
    as "m and n are relatively prime positive integers find m + n"; so the shared runs
    must cover a share of the evaluation problem. What then is left are the same
    questions, with other numbers or other words in places. A run that is in 100
    different evaluation problems or more is a set phrase and does not count.

    Args:
      training: records with `id` and `problem`.
      evaluations: name → records with `id` and `problem`.
      n: words in a run.
      share: part of the evaluation problem's words, 0 to 1, that must lie in shared
        runs; 0 keeps every pair with a shared run.

    Returns:
      One overlap per pair of a training question and an evaluation problem, in the
      order of the training questions.

    Raises:
      ValueError: n is below 1, or share is not from 0 to 1.
    """
    if n < 1 or not 0 <= share <= 1:
        raise ValueError(
            f"n is {n} and share is {share}; expected 1 word or more in a run, and a "
            "share from 0 to 1."
        )
    # Equal problems are one entry, so that copies make no run a set phrase.
    places: dict[str, list[tuple[str, str]]] = {}
    texts: list[list[str]] = []
    holders: dict[str, list[int]] = defaultdict(list)
    for name, problems in evaluations.items():
        for problem in problems:
            whole = " ".join(words(problem.problem))
            if whole and whole not in places:
                plain = words(_DRAWING.sub(" ", problem.problem))
                for run in dict.fromkeys(_runs(plain, n)):
                    holders[run].append(len(texts))
                texts.append(plain)
            if whole:
                places.setdefault(whole, []).append((name, problem.id))
    wholes = list(places)
    found = []
    for question in training:
        whole = " ".join(words(question.problem))
        runs = set(_runs(words(_DRAWING.sub(" ", question.problem)), n))
        rare = {run for run in runs if len(holders.get(run, ())) < _SET_PHRASE}
        for holder in sorted({h for run in rare for h in holders.get(run, ())}):
            covered, text = _shared(texts[holder], rare, n)
            if wholes[holder] != whole and covered >= share * len(texts[holder]):
                found += [
                    Overlap(question.id, *place, "n-gram", text)
                    for place in places[wholes[holder]]
                ]
        found += [
            Overlap(question.id, *place, "exact", whole)
            for place in places.get(whole, ())
        ]
    return found


def _shared(plain: Sequence[str], runs: set[str], n: int) -> tuple[int, str]:
    """Returns how many words of a problem lie in runs, and its longest such stretch."""
    covered, done = 0, 0
    first, longest = 0, (0, 0)
    for start, run in enumerate(_runs(plain, n)):
        if run in runs:
            if start > done - n + 1:  # the run before this one is not shared
                first = start
            covered += start + n - max(start, done)
            done = start + n
            longest = max(longest, (first, done), key=_length)
    return covered, " ".join(plain[slice(*longest)])


def _length(stretch: tuple[int, int]) -> int:
    return stretch[1] - stretch[0]


def remove(rows: Sequence[Any], found: Iterable[Overlap]) -> list[Any]:
    """Leaves out the rows that overlap with an evaluation.

    Args:
      rows: records with `id`, as they were given to `overlaps`.
      found: the overlaps.

    Returns:
      The other rows, in their order.
    """
    gone = {overlap.train_id for overlap in found}
    return [row for row in rows if row.id not in gone]


def report(
    found: Sequence[Overlap],
    evaluations: Mapping[str, Sequence[Any]],
) -> str:
    """Describes the overlaps: counts per evaluation, and its first three examples.

    Args:
      found: the overlaps.
      evaluations: the evaluations that were compared.

    Returns:
      Lines of text, each with a newline.
    """
    if not evaluations:
        return "No evaluation was given, so no overlap was looked for.\n"
    exact = Counter(o.evaluation for o in found if o.kind == "exact")
    rows, examples = [], []
    for name, problems in evaluations.items():
        here = [overlap for overlap in found if overlap.evaluation == name]
        rows.append(
            {
                "evaluation": name,
                "problems": str(len(problems)),
                "problems with overlap": str(len({o.eval_id for o in here})),
                "training questions": str(len({o.train_id for o in here})),
                "exact": str(exact[name]),
                "n-gram": str(len(here) - exact[name]),
            }
        )
        for overlap in here[:3]:
            shown = textwrap.shorten(overlap.text, 200, placeholder=" ...")
            examples.append(
                f"{overlap.train_id} and {name} {overlap.eval_id} ({overlap.kind}): "
                f"{shown}\n"
            )
    table = text_table(rows, "Training questions in evaluations")
    return table + "".join(examples)


def warnings(
    source_format: str, evaluations: Iterable[str], found: Iterable[Overlap] = ()
) -> list[str]:
    """Warns where PRM800K meets an evaluation on MATH.

    An evaluation counts as MATH where its name, or the folder that it is in, says so,
    or where an overlap was found.

    Args:
      source_format: format of the training data.
      evaluations: names or paths of the evaluations.
      found: the overlaps that `overlaps` found.

    Returns:
      One sentence per evaluation; [] where nothing is to be said.
    """
    if source_format != "prm800k":
        return []
    shared = Counter(overlap.evaluation for overlap in found)
    said = []
    for name in evaluations:
        path = PurePath(name)
        named = "math" in path.stem.lower() or path.parent.name.lower() == "math"
        if named or shared[name]:
            why = "its name says MATH"
            if shared[name]:
                why = f"it overlaps with the training data {shared[name]} times"
            said.append(
                "PRM800K holds solutions of about 4,500 of the 5,000 problems of the "
                f"MATH test set, and {name!r} may be measured on them, since {why}. "
                "Remove the overlaps, or measure on another benchmark."
            )
    return said
