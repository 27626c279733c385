"""Pairwise step judging by the model itself: verdicts, win counts, best and worst.

Paper (arXiv 2503.03746, section 3.3 and equation 2): every candidate step is
compared with every other one by the same model as a judge, which explains and then
ends with [[A]] or [[B]]; Score_i counts the comparisons that i wins.

Readings of equation 2 (`score`): ``sum`` judges all ordered pairs and the winner of
each call scores (position-symmetric, 0 ... 2 (n - 1)); ``consistent`` lets a win
count only when both orders agree (0 ... n - 1); ``single`` asks one order a pair,
drawn by key. A verdict that cannot be parsed counts for nobody.

The baseline of arXiv 2401.10020 is the fourth reading, ``rating``: every candidate is a
whole solution and is scored alone, nothing is compared.

Two modes: ``generate`` writes the explanation and then the verdict, as in the paper;
``logprob`` compares the log-probabilities of the two verdicts right after the
question, without an explanation.

`random_judge` and `oracle_judge` take the model's place for control experiments.
"""

import collections
import itertools
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from stepjax import prompts
from stepjax.codec import Codec
from stepjax.lm import draws
from stepjax.lm.sampler import Sampler, make_decoding

SCORES = ("sum", "consistent", "single", "rating")
MODES = ("generate", "logprob")
JUDGES = ("self", "random", "oracle")


class Verdict(NamedTuple):
    """One call of the judge: candidate `a` shown first, `b` second.

    Attributes:
      a: index of the candidate shown as A.
      b: index of the candidate shown as B; the same as `a` for a rating.
      winner: "A", "B", or None when unparsed; of a rating its digit.
      response: what the judge wrote; in logprob mode the log-odds of A.
    """

    a: int
    b: int
    winner: str | None
    response: str = ""


class Request(NamedTuple):
    """What to judge for one problem: ids of its steps so far and its candidates."""

    slot: int
    problem_id: str
    problem: str
    steps: tuple[tuple[int, ...], ...]
    candidates: tuple[tuple[int, ...], ...]
    path: tuple[int, ...]


Judge = Callable[..., list[list[Verdict]]]


def hash_id(text: str) -> int:
    """Returns a stable 32-bit integer of a problem id, for key paths."""
    return zlib.crc32(text.encode())


def ordered_pairs(count: int, score: str, seed: tuple[int, ...]) -> list[tuple]:
    """Returns the calls to make for `count` distinct candidates.

    Args:
      count: number of candidates.
      score: one of `SCORES`.
      seed: integers that draw the order of each pair in ``single``.

    Returns:
      Pairs (shown as A, shown as B).
    """
    if score == "rating":
        return [(i, i) for i in range(count)]
    both = [(i, j) for i in range(count) for j in range(count) if i != j]
    if score != "single":
        return both
    once = [(i, j) for i, j in both if i < j]
    swap = np.random.default_rng(list(seed)).random(len(once)) < 0.5
    return [(j, i) if s else (i, j) for (i, j), s in zip(once, swap, strict=True)]


def _all_calls(requests: Sequence[Request], score: str, seed: int) -> list[list[tuple]]:
    """Returns the calls of each request, by `ordered_pairs`."""
    return [
        ordered_pairs(len(request.candidates), score, (seed, *request.path))
        for request in requests
    ]


def shared_context(
    codec: Codec, score: str, problem: str, steps: Sequence[Sequence[int]]
) -> tuple[int, ...]:
    """Returns the ids that all judgments of a next step, or all ratings, begin with.

    Args:
      codec: tokenizer and templates.
      score: one of `SCORES`; a rating is of the whole solution, whatever the steps.
      problem: text of the problem.
      steps: ids of the steps so far.
    """
    if score == "rating":
        return codec.rate_context(problem)
    return codec.judge_context(problem, steps)


def win_counts(
    count: int, verdicts: Sequence[Verdict], score: str
) -> list[float] | list[int | None]:
    """Returns Score_i of each candidate (equation 2, read as `score` says).

    In the reading ``rating`` it is the candidate's rating, None when unparsed. When not
    all pairs were asked (`stepjax.tournament`), it is what the count would be if all
    other comparisons had gone like the asked ones.

    Args:
      count: number of candidates.
      verdicts: the judge's calls.
      score: one of `SCORES`.

    Raises:
      ValueError: for an unknown reading.
    """
    if score not in SCORES:
        raise ValueError(f"score={score!r}; expected one of {SCORES}.")
    if score == "rating":
        given = {v.a: int(v.winner) for v in verdicts if v.winner is not None}
        return [given.get(i) for i in range(count)]
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


def position_flips(verdicts: Sequence[Verdict]) -> tuple[int, int]:
    """Returns (pairs whose winner depends on the order, pairs parsed both ways)."""
    winner = {}
    for v in verdicts:
        if v.winner is not None and v.a != v.b:
            winner[v.a, v.b] = v.a if v.winner == "A" else v.b
    both = [(i, j) for i, j in winner if i < j and (j, i) in winner]
    return sum(winner[i, j] != winner[j, i] for i, j in both), len(both)


def _groups(pairs: Sequence[tuple], rows: int, share: int) -> list[list[tuple | None]]:
    """Lays calls out in groups of `rows`, each in blocks with one candidate first.

    None fills up a block of `share` calls, and the last group.
    """
    places: list[tuple | None] = []
    for _, same in itertools.groupby(pairs, key=lambda pair: pair[0]):
        places += same
        places += [None] * (-len(places) % share)
    places += [None] * (-len(places) % rows)
    return [places[at : at + rows] for at in range(0, len(places), rows)]


def _side(odds: float) -> str | None:
    """The winner by the log-odds of A; none when they are even or not a number."""
    return "A" if odds > 0 else "B" if odds < 0 else None


def make_judge(
    sampler: Sampler,
    codec: Codec,
    *,
    mode: str,
    score: str,
    max_tokens: int,
    temperature: float,
    top_p: float,
    rows: int,
    share: int = 1,
    seed: int,
) -> Judge:
    """Returns the model as its own judge.

    Args:
      sampler: context caches of the judge, one slot per problem in flight.
      codec: tokenizer and templates.
      mode: one of `MODES`.
      score: one of `SCORES`; which orders are asked.
      max_tokens: most tokens of an explanation with its verdict.
      temperature: of the explanation; 0 is greedy.
      top_p: of the explanation.
      rows: judgments of one problem that share a read of its context.
      share: judgments of them that share a read of the candidate shown first; divides
        `rows`.
      seed: base seed.

    Returns:
      ``judge(requests, calls=None)``: the verdicts of each request (at most one a
      slot); `calls` names the ordered pairs to ask of each, by default those of
      `ordered_pairs`.
    """
    if mode not in MODES:
        raise ValueError(f"judge.mode={mode!r}; expected one of {MODES}.")
    rated = score == "rating"
    ends = tuple(codec.verdict_text(side) for side in "AB")
    if rated:
        ends = tuple(prompts.rating(codec.templates, n) for n in range(10))
    decoding = make_decoding(
        codec.tokenizer,
        ends,
        seed=seed,
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_tokens,
    )
    groups_a_call = len(sampler.held)

    def question(request: Request, a: int, b: int) -> tuple[int, ...]:
        if rated:
            return codec.rate_question(request.candidates[a])
        return codec.judge_question(request.candidates[a], request.candidates[b])

    def winner(text: str) -> str | None:
        if rated:
            found = prompts.parse_rating(codec.templates, text)
            return None if found is None else str(found)
        return prompts.parse_verdict(codec.templates, text)

    def judge(requests: Sequence[Request], calls=None) -> list[list[Verdict]]:
        if calls is None:
            calls = _all_calls(requests, score, seed)
        asked = {r.slot: r for r, pairs in zip(requests, calls, strict=True) if pairs}
        sampler.hold(
            {
                slot: shared_context(codec, score, request.problem, request.steps)
                for slot, request in asked.items()
            }
        )
        groups = [
            (number, group)
            for number, pairs in enumerate(calls)
            for group in _groups(pairs, rows, share)
        ]
        verdicts: list[list[Verdict]] = [[] for _ in requests]

        def take(batch, finish):
            for (number, group), answers in zip(batch, finish(), strict=True):
                pairs = [pair for pair in group if pair]
                verdicts[number] += [
                    Verdict(a, b, *answer)
                    for (a, b), answer in zip(pairs, answers, strict=True)
                ]

        begun = collections.deque()
        for at in range(0, len(groups), groups_a_call):
            batch = groups[at : at + groups_a_call]
            begun.append((batch, ask(requests, batch)))
            if len(begun) > 1:  # the host reads one while the devices write the next
                take(*begun.popleft())
        for one in begun:
            take(*one)
        return verdicts

    def ask(requests, batch):
        """Begins a batch; returns a function that waits for it and reads it."""
        chosen = [requests[number].slot for number, _ in batch]
        questions = [
            [question(requests[number], *pair) if pair else () for pair in group]
            for number, group in batch
        ]
        if mode == "logprob":
            return compare(chosen, questions)
        return write(requests, batch, chosen, questions)

    def write(requests, batch, chosen, questions):
        paths = np.zeros((len(batch), rows, draws.PATH_LENGTH), np.uint32)
        for g, (number, group) in enumerate(batch):
            for w, pair in enumerate(group):
                if pair:
                    paths[g, w] = draws.judgment_path(requests[number].path, *pair)
        finish = sampler.start(
            questions,
            paths,
            decoding,
            slots=chosen,
            share=(share,) if share > 1 else (),
        )

        def read():
            out, answers = finish(), []
            for g, group in enumerate(questions):
                texts = [
                    codec.text(out.tokens[g, w, : out.count[g, w]].tolist())
                    for w, asked in enumerate(group)
                    if asked
                ]
                answers.append([(winner(text), text) for text in texts])
            return answers

        return read

    def compare(chosen, questions):
        verdicts = [codec.verdict(side) for side in "AB"]
        padded = [
            [asked + v if asked else () for asked in group for v in verdicts]
            for group in questions
        ]
        scored = [
            [len(v) if asked else 0 for asked in group for v in verdicts]
            for group in questions
        ]
        logps = sampler.score(
            padded,
            np.array(scored, np.int32),
            vocab=codec.tokenizer.vocab_size,
            slots=chosen,
            share=(2 * share, 2) if share > 1 else (2,),
        )
        odds = logps[:, ::2] - logps[:, 1::2]
        answers = [
            [
                (_side(odds[g, w]), f"{odds[g, w]:.6f}")
                for w, asked in enumerate(group)
                if asked
            ]
            for g, group in enumerate(questions)
        ]
        return lambda: answers

    return judge


def random_judge(score: str, seed: int) -> Judge:
    """Returns a judge whose verdicts are coins, each drawn from its own key path.

    A control experiment: what a loop gains with it is not due to judging.

    Args:
      score: one of `SCORES` but "rating"; which orders are asked.
      seed: base seed.
    """

    def verdict(request: Request, a: int, b: int) -> Verdict:
        coin = np.random.default_rng([seed, *request.path, a, b]).random()
        return Verdict(a, b, "A" if coin < 0.5 else "B")

    return _judge_by(verdict, score, seed)


def oracle_judge(
    is_right: Callable[[str, Sequence[str], str], bool],
    codec: Codec,
    score: str,
    seed: int,
) -> Judge:
    """Returns a judge that knows the gold: an upper bound, not self-rewarding.

    It has no preference (None) between two right or two wrong steps.

    Args:
      is_right: (problem, texts of the steps so far, next step) → right or not.
      codec: tokenizer and templates.
      score: one of `SCORES` but "rating"; which orders are asked.
      seed: base seed.
    """

    def verdict(request: Request, a: int, b: int) -> Verdict:
        steps = [codec.text(ids) for ids in request.steps]
        first, second = (
            is_right(request.problem, steps, codec.text(request.candidates[i]))
            for i in (a, b)
        )
        return Verdict(a, b, None if first == second else "A" if first else "B")

    return _judge_by(verdict, score, seed)


def _judge_by(verdict: Callable[..., Verdict], score: str, seed: int) -> Judge:
    def judge(requests: Sequence[Request], calls=None) -> list[list[Verdict]]:
        if calls is None:
            calls = _all_calls(requests, score, seed)
        return [
            [verdict(request, a, b) for a, b in pairs]
            for request, pairs in zip(requests, calls, strict=True)
        ]

    return judge
