"""Pairwise step judging: what a judge is asked, and how its verdicts are counted.

Paper (arXiv 2503.03746, section 3.3 and equation 2): every candidate step is
compared with every other one by the same model as a judge, which explains and then
ends with [[A]] or [[B]]; Score_i counts the comparisons that i wins.

Readings of equation 2 (`score`): ``sum`` judges all ordered pairs and the winner of
each call scores (position-symmetric, 0 ... 2 (n - 1)); ``consistent`` lets a win
count only when both orders agree (0 ... n - 1); ``single`` asks one order per pair,
drawn by key. A verdict that cannot be parsed counts for neither candidate.

A value of `Judgments` says what is asked and how the answers count; `comparisons`
makes the paper's. `stepjax.self_judge` answers with the model itself,
`stepjax.controls` with coins or the gold.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from stepjax import prompts
from stepjax.codec import Codec
from stepjax.prompts import Templates
from stepjax.records import Comparison
from stepjax.trajectory import Verdict

SCORES = ("sum", "consistent", "single")


class Request(NamedTuple):
    """What to judge for one problem.

    Attributes:
      slot: place of the problem in flight, which has its context cache.
      problem_id: id of the question.
      problem: its text.
      steps: ids of the steps so far.
      candidates: ids of each candidate for the next step.
      path: key path of the expansion, see `trajectory.State.key_path`.
    """

    slot: int
    problem_id: str
    problem: str
    steps: tuple[tuple[int, ...], ...]
    candidates: tuple[tuple[int, ...], ...]
    path: tuple[int, ...]


Call = tuple[int, int]  # (candidate shown as A, candidate shown as B)
# (requests, calls=None) → verdicts, see `self_judge.make_judge`.
Judge = Callable[..., list[list[Verdict]]]


class Judgments(NamedTuple):
    """What the judge is asked, and how its answers count.

    Attributes:
      record: dataclass of the EFT rows that teach it.
      example: (codec, row) → ids of prompt and response, and text of the verdict.
      held_out: (codec, row) → ids of the steps, ids of each candidate, and the right
        winner; the call of the first candidate with the last one is asked.
      context: (codec, problem, ids of the steps) → ids that all calls begin with.
      question: (codec, request, call) → ids that follow them.
      ends: templates → texts that end a judgment.
      parse: (templates, text of a judgment) → winner, or None.
      calls: (number of candidates, seed) → calls to make; the seed is a sequence of
        integers.
      scores: (number of candidates, verdicts) → score of each candidate.
      graded: (verdicts, whether each candidate is right) → whether the judge was right,
        once for each thing it said that is right or wrong.
    """

    record: type
    example: Callable[..., tuple[tuple[int, ...], tuple[int, ...], str]]
    held_out: Callable[..., tuple[tuple, tuple, str]]
    context: Callable[[Codec, str, Sequence[Sequence[int]]], tuple[int, ...]]
    question: Callable[[Codec, Request, Call], tuple[int, ...]]
    ends: Callable[[Templates], tuple[str, ...]]
    parse: Callable[[Templates, str], str | None]
    calls: Callable[[int, Sequence[int]], list[Call]]
    scores: Callable[[int, Sequence[Verdict]], list]
    graded: Callable[[Sequence[Verdict], Sequence[bool]], list[bool]]


def comparisons(score: str = "sum") -> Judgments:
    """Returns the paper's judgments: which of two next steps is better.

    Args:
      score: reading of equation 2, one of `SCORES`.

    Raises:
      ValueError: for an unknown reading.
    """
    _check_reading(score)

    def calls(count: int, seed: Sequence[int]) -> list[Call]:
        return ordered_pairs(count, score, seed)

    def scores(count: int, verdicts: Sequence[Verdict]) -> list[float]:
        return win_counts(count, verdicts, score)

    return Judgments(
        record=Comparison,
        example=_example,
        held_out=_held_out,
        context=Codec.judge_context,
        question=_question,
        ends=_ends,
        parse=prompts.parse_verdict,
        calls=calls,
        scores=scores,
        graded=graded,
    )


def _example(codec: Codec, row: Comparison):
    return *codec.comparison(row), prompts.verdict(codec.templates, row.verdict)


def _held_out(codec: Codec, row: Comparison):
    steps = tuple(codec.step(text) for text in row.steps)
    return steps, (codec.step(row.a), codec.step(row.b)), row.verdict


def _question(codec: Codec, request: Request, call: Call) -> tuple[int, ...]:
    return codec.judge_question(*(request.candidates[i] for i in call))


def _ends(templates: Templates) -> tuple[str, ...]:
    return tuple(prompts.verdict(templates, side) for side in "AB")


def ordered_pairs(count: int, score: str, seed: Sequence[int]) -> list[Call]:
    """Returns the calls to make for `count` distinct candidates.

    Args:
      count: number of candidates.
      score: one of `SCORES`.
      seed: integers that draw the order of each pair in ``single``.

    Returns:
      Calls: (shown as A, shown as B).
    """
    both = [(i, j) for i in range(count) for j in range(count) if i != j]
    if score != "single":
        return both
    once = [(i, j) for i, j in both if i < j]
    swap = np.random.default_rng(list(seed)).random(len(once)) < 0.5
    return [(j, i) if s else (i, j) for (i, j), s in zip(once, swap, strict=True)]


def win_counts(count: int, verdicts: Sequence[Verdict], score: str) -> list[float]:
    """Returns Score_i of each candidate (equation 2, read as `score` says).

    A partial tournament (`stepjax.tournament`) asks only some pairs. The wins are then
    scaled up to n - 1 opponents, as if the pairs not asked had gone like those asked.

    Args:
      count: number of candidates.
      verdicts: the judge's calls.
      score: one of `SCORES`.

    Raises:
      ValueError: for an unknown reading.
    """
    _check_reading(score)
    wins = np.zeros((count, count), int)  # [winner, loser] calls won
    for verdict in verdicts:
        if verdict.winner == "A":
            wins[verdict.a, verdict.b] += 1
        elif verdict.winner == "B":
            wins[verdict.b, verdict.a] += 1
    if score == "consistent":
        wins = wins == 2
    met = np.zeros((count, count), bool)
    for verdict in verdicts:
        met[verdict.a, verdict.b] = met[verdict.b, verdict.a] = True
    played = met.sum(1)
    if (played == count - 1).all():
        return [int(n) for n in wins.sum(1)]
    return [float(n) for n in wins.sum(1) * (count - 1) / np.maximum(played, 1)]


def _check_reading(score: str) -> None:
    if score not in SCORES:
        raise ValueError(f"score={score!r}; expected one of {SCORES}.")


def position_flips(verdicts: Sequence[Verdict]) -> tuple[int, int]:
    """Returns (pairs whose winner depends on the order, pairs parsed both ways)."""
    winner = {}
    for v in verdicts:
        if v.winner is not None:
            winner[v.a, v.b] = v.a if v.winner == "A" else v.b
    both = [(i, j) for i, j in winner if i < j and (j, i) in winner]
    return sum(winner[i, j] != winner[j, i] for i, j in both), len(both)


def graded(verdicts: Sequence[Verdict], right: Sequence[bool]) -> list[bool]:
    """Returns whether the judge was right, for each call that has a right answer.

    A call has one when exactly one of its two candidates is right.

    Args:
      verdicts: the calls; an unparsed one is wrong.
      right: whether each candidate is right.
    """
    asked = [v for v in verdicts if right[v.a] != right[v.b]]
    return [v.winner == ("A" if right[v.a] else "B") for v in asked]


def all_calls(
    requests: Sequence[Request], judgments: Judgments, seed: int
) -> list[list[Call]]:
    """Returns the calls to make of each request."""
    return [judgments.calls(len(r.candidates), (seed, *r.path)) for r in requests]
