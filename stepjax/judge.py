"""Pairwise step judging: what a judge is asked, and how its verdicts are counted.

Paper (arXiv 2503.03746, section 3.3 and equation 2): every candidate step is
compared with every other one by the same model as a judge, which explains and then
ends with [[A]] or [[B]]; Score_i counts the comparisons that i wins.

Readings of equation 2 (`score`): ``sum`` judges all ordered pairs and the winner of
each call scores (position-symmetric, 0 ... 2 (n - 1)); ``consistent`` lets a win
count only when both orders agree (0 ... n - 1); ``single`` asks one order per pair,
drawn by key. A verdict that cannot be parsed counts for neither candidate.

Values of a verdict (`value`): ``hard`` is the paper's, the side that was written.
``probability`` takes the judge's own probability of that side, so that a call of 51 %
counts for less than one of 99 %; Score_i is then a win rate, see `win_rates`.

A value of `Judgments` says what is asked and how the answers count; `comparisons`
makes the paper's. `stepjax.self_judge` answers with the model itself,
`stepjax.controls` with coins or the gold.
"""

import collections
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from stepjax import prompts
from stepjax.codec import Codec
from stepjax.prompts import Templates
from stepjax.records import Comparison
from stepjax.trajectory import Verdict

SCORES = ("sum", "consistent", "single")
VALUES = ("hard", "probability")


class Request(NamedTuple):
    """What to judge for one problem.

    Attributes:
      slot: place of the problem in flight, which has its context cache.
      problem_id: id of the question.
      problem: its text.
      steps: ids of the steps so far.
      candidates: ids of each candidate for the next step.
      path: key path of the expansion, see `trajectory.State.key_path`.
      seeding: places of the candidates, likely winners first, for partial tournaments;
        () is as they are.
    """

    slot: int
    problem_id: str
    problem: str
    steps: tuple[tuple[int, ...], ...]
    candidates: tuple[tuple[int, ...], ...]
    path: tuple[int, ...]
    seeding: tuple[int, ...] = ()


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
      sides: what a verdict can say, "AB", or "ABC" with ties.
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
    sides: str = "AB"


def check_verdict(
    row: Comparison, sides: str, templates: Templates, source: str = "data.eft"
) -> None:
    """Raises ValueError for a verdict that the judge may not give, or gives too early.

    Args:
      row: from which the judge is to learn.
      sides: what it can say, see `Judgments`.
      templates: with the form of a verdict.
      source: file or setting that the row is from, for the message.
    """
    if row.verdict not in sides:
        raise ValueError(
            f"{source}: EFT row {row.id!r} has the verdict {row.verdict!r}; expected "
            "'A' or 'B'. Leave out such rows, or set judge.tie=True for a judge that "
            "compares two steps and may say that neither is better."
        )
    for verdict in (prompts.verdict(templates, side) for side in sides):
        if verdict in row.explanation:
            raise ValueError(
                f"{source}: the explanation of EFT row {row.id!r} holds {verdict!r}, "
                "at which a judgment ends; expected a verdict at its end only. Leave "
                "out such rows, or set prompts.verdict to a form that they do not hold."
            )


def comparisons(
    score: str = "sum", value: str = "hard", *, tie: bool = False
) -> Judgments:
    """Returns the paper's judgments: which of two next steps is better.

    Args:
      score: reading of equation 2, one of `SCORES`.
      value: what a verdict counts, one of `VALUES`.
      tie: whether a verdict may say that neither is better.

    Raises:
      ValueError: for an unknown reading or value.
    """
    _check_reading(score)
    if value not in VALUES:
        raise ValueError(f"judge.value={value!r}; expected one of {VALUES}.")
    sides = "ABC" if tie else "AB"

    def calls(count: int, seed: Sequence[int]) -> list[Call]:
        return ordered_pairs(count, score, seed)

    def scores(count: int, verdicts: Sequence[Verdict]) -> list[float]:
        counted = win_counts if value == "hard" else win_rates
        return counted(count, verdicts, score)

    def example(codec: Codec, row: Comparison):
        check_verdict(row, sides, codec.templates)
        return *codec.comparison(row), prompts.verdict(codec.templates, row.verdict)

    def ends(templates: Templates) -> tuple[str, ...]:
        return tuple(prompts.verdict(templates, side) for side in sides)

    def parse(templates: Templates, text: str) -> str | None:
        return prompts.parse_verdict(templates, text, sides)

    return Judgments(
        record=Comparison,
        example=example,
        held_out=_held_out,
        context=Codec.judge_context,
        question=_question,
        ends=ends,
        parse=parse,
        calls=calls,
        scores=scores,
        graded=graded,
        sides=sides,
    )


def _held_out(codec: Codec, row: Comparison):
    steps = tuple(codec.step(text) for text in row.steps)
    return steps, (codec.step(row.a), codec.step(row.b)), row.verdict


def _question(codec: Codec, request: Request, call: Call) -> tuple[int, ...]:
    return codec.judge_question(*(request.candidates[i] for i in call))


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
    A tie is half a win for both candidates. Of several explanations of one call
    (`judge.votes`) the majority counts.

    Args:
      count: number of candidates.
      verdicts: the judge's calls.
      score: one of `SCORES`.

    Raises:
      ValueError: for an unknown reading.
    """
    _check_reading(score)
    wins = np.zeros((count, count), int)  # [winner, loser] calls won
    ties = np.zeros((count, count), int)
    for verdict in majority(verdicts):
        if verdict.winner == "A":
            wins[verdict.a, verdict.b] += 1
        elif verdict.winner == "B":
            wins[verdict.b, verdict.a] += 1
        elif verdict.winner == "C":
            ties[verdict.a, verdict.b] += 1
            ties[verdict.b, verdict.a] += 1
    if score == "consistent":
        wins, ties = wins == 2, ties == 2
    points = wins.sum(1)
    if ties.any():
        points = points + ties.sum(1) / 2
    played = _met(count, verdicts).sum(1)
    if (played == count - 1).all():
        return [n.item() for n in points]
    return [float(n) for n in points * (count - 1) / np.maximum(played, 1)]


def win_rates(count: int, verdicts: Sequence[Verdict], score: str) -> list[float]:
    """Returns Score_i of each candidate as a win rate that is weighted by margins.

    With p_ij, the probability that candidate i is better than j, averaged over both
    orders and over all explanations of a call,

        Score_i = 1/(n - 1) Σ_{j≠i} p_ij = 1/2 + 1/(2 (n - 1)) Σ_{j≠i} ± |2 p_ij - 1|,

    so each comparison adds its margin |2 p_ij - 1| to the candidate that it prefers,
    and takes it from the other one. Score_i is from 0 (loses every comparison for
    certain) to 1, and 1/2 is no preference. The difference of two scores, the unit of
    ``pairs.min_margin``, is a difference of win rates.

    A pair whose calls have no verdict has p_ij = 1/2. So has, in ``consistent``, a pair
    whose two orders prefer different candidates. A partial tournament averages over
    the opponents that a candidate met. A verdict without a probability counts 1 for
    its side, and a tie 1/2.

    Args:
      count: number of candidates.
      verdicts: the judge's calls.
      score: one of `SCORES`.

    Raises:
      ValueError: for an unknown reading.
    """
    _check_reading(score)
    orders: dict[tuple[int, int], list[float]] = {}  # that the lower index is better
    for verdict in majority(verdicts):
        p = preference(verdict)
        if p is not None:
            pair = min(verdict.a, verdict.b), max(verdict.a, verdict.b)
            orders.setdefault(pair, []).append(p if verdict.a == pair[0] else 1 - p)
    rates = np.full((count, count), 0.5)
    for (i, j), found in orders.items():
        if score == "consistent" and (len(found) < 2 or min(found) < 0.5 < max(found)):
            continue
        rates[i, j] = sum(found) / len(found)
        rates[j, i] = 1 - rates[i, j]
    met = _met(count, verdicts)
    sums = np.where(met, rates, 0.0).sum(1)
    means = np.where(met.any(1), sums / np.maximum(met.sum(1), 1), 0.5)
    # Rounded, so that equal candidates are equal whatever the order of the sums.
    return [round(float(mean), 6) for mean in means]


def _met(count: int, verdicts: Sequence[Verdict]) -> np.ndarray:
    """Returns which candidates were compared, [count, count] bool."""
    met = np.zeros((count, count), bool)
    for verdict in verdicts:
        met[verdict.a, verdict.b] = met[verdict.b, verdict.a] = True
    return met


def preference(verdict: Verdict) -> float | None:
    """Returns the probability that A is better; None where no verdict was read.

    A verdict without a probability is certain: 1 for A, 0 for B, 1/2 for a tie.
    """
    if verdict.probability is not None:
        return verdict.probability
    return {"A": 1.0, "B": 0.0, "C": 0.5}.get(verdict.winner)


def majority(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Returns one verdict per call, where some have several explanations.

    Its winner is the side that most of the explanations chose, None where two sides are
    equal; its probability is the mean of theirs; its response is the first.

    Args:
      verdicts: the judge's calls, those of one call in any places.
    """
    calls: dict[Call, list[Verdict]] = {}
    for verdict in verdicts:
        calls.setdefault((verdict.a, verdict.b), []).append(verdict)
    return [_one(votes) if len(votes) > 1 else votes[0] for votes in calls.values()]


def _one(votes: Sequence[Verdict]) -> Verdict:
    chosen = collections.Counter(v.winner for v in votes if v.winner is not None)
    most = max(chosen.values(), default=0)
    leading = [side for side, count in chosen.items() if count == most]
    known = [v.probability for v in votes if v.probability is not None]
    return votes[0]._replace(
        winner=leading[0] if len(leading) == 1 else None,
        probability=sum(known) / len(known) if known else None,
    )


def _check_reading(score: str) -> None:
    if score not in SCORES:
        raise ValueError(f"score={score!r}; expected one of {SCORES}.")


def position_flips(verdicts: Sequence[Verdict]) -> tuple[int, int]:
    """Returns (pairs whose winner depends on the order, pairs parsed both ways)."""
    winner = {}
    for v in majority(verdicts):
        if v.winner is not None:
            winner[v.a, v.b] = {"A": v.a, "B": v.b}.get(v.winner)
    both = [(i, j) for i, j in winner if i < j and (j, i) in winner]
    return sum(winner[i, j] != winner[j, i] for i, j in both), len(both)


def graded(verdicts: Sequence[Verdict], right: Sequence[bool]) -> list[bool]:
    """Returns whether the judge was right, for each call that has a right answer.

    A call has one when exactly one of its two candidates is right.

    Args:
      verdicts: the calls; an unparsed one is wrong.
      right: whether each candidate is right.
    """
    asked = [v for v in majority(verdicts) if right[v.a] != right[v.b]]
    return [v.winner == ("A" if right[v.a] else "B") for v in asked]


def all_calls(
    requests: Sequence[Request], judgments: Judgments, seed: int
) -> list[list[Call]]:
    """Returns the calls to make of each request."""
    return [judgments.calls(len(r.candidates), (seed, *r.path)) for r in requests]
