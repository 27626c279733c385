"""Pairwise step judging by the model itself: verdicts, win counts, best and worst.

Paper (arXiv 2503.03746, section 3.3 and equation 2): every candidate step is
compared with every other one by the same model as a judge, which explains and then
ends with [[A]] or [[B]]; Score_i counts the comparisons that i wins.

Readings of equation 2 (`score`): ``sum`` judges all ordered pairs and the winner of
each call scores (position-symmetric, 0 ... 2 (n - 1)); ``consistent`` lets a win
count only when both orders agree (0 ... n - 1); ``single`` asks one order per pair,
drawn by key. A verdict that cannot be parsed counts for nobody.

The baseline of arXiv 2401.10020 is the fourth reading, ``rating``: every candidate is a
whole solution and is scored alone, nothing is compared.

Two modes: ``generate`` writes the explanation and then the verdict, as in the paper
(`writing_judge`); ``logprob`` compares the log-probabilities of the two verdicts right
after the question, without an explanation (`logprob_judge`).

`random_judge` and `oracle_judge` take the model's place for control experiments.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from stepjax import prompts
from stepjax.codec import Codec
from stepjax.lm import draws
from stepjax.lm.sampler import Sampler, make_decoding
from stepjax.trajectory import Verdict

SCORES = ("sum", "consistent", "single", "rating")
MODES = ("generate", "logprob")
JUDGES = ("self", "random", "oracle")


class Request(NamedTuple):
    """What to judge for one problem.

    Attributes:
      slot: place of the problem's context cache.
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
Judge = Callable[..., list[list[Verdict]]]  # (requests, calls=None), see `make_judge`
# Calls of one request that are computed side by side; None is padding.
Group = tuple[Request, Sequence[Call | None]]
# Begins a batch of groups. The function that it returns waits for the batch and gives
# (winner, response) of every call, group by group.
Ask = Callable[[Sequence[Group]], Callable[[], list[list[tuple[str | None, str]]]]]


def ordered_pairs(count: int, score: str, seed: tuple[int, ...]) -> list[Call]:
    """Returns the calls to make for `count` distinct candidates.

    Args:
      count: number of candidates.
      score: one of `SCORES`.
      seed: integers that draw the order of each pair in ``single``.

    Returns:
      Calls: (shown as A, shown as B).
    """
    if score == "rating":
        return [(i, i) for i in range(count)]
    both = [(i, j) for i in range(count) for j in range(count) if i != j]
    if score != "single":
        return both
    once = [(i, j) for i, j in both if i < j]
    swap = np.random.default_rng(list(seed)).random(len(once)) < 0.5
    return [(j, i) if s else (i, j) for (i, j), s in zip(once, swap, strict=True)]


def _all_calls(requests: Sequence[Request], score: str, seed: int) -> list[list[Call]]:
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
      rows: calls of a problem that are batched behind its context.
      share: so many consecutive calls have the same candidate A, whose tokens are
        computed once; divides `rows`.
      seed: base seed.

    Returns:
      ``judge(requests, calls=None)``: the verdicts of each request (at most one
      request per slot); `calls` names the ordered pairs to ask of each, by default
      those of `ordered_pairs`.

    Raises:
      ValueError: for an unknown mode.
    """
    if mode == "generate":
        ask = writing_judge(
            sampler,
            codec,
            score=score,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            share=share,
            seed=seed,
        )
    elif mode == "logprob":
        ask = logprob_judge(sampler, codec, share=share)
    else:
        raise ValueError(f"judge.mode={mode!r}; expected one of {MODES}.")

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
        layout = {"rows": rows, "share": share, "size": len(sampler.held)}
        return in_batches(ask, requests, calls, **layout)

    return judge


def writing_judge(
    sampler: Sampler,
    codec: Codec,
    *,
    score: str,
    max_tokens: int,
    temperature: float,
    top_p: float,
    share: int,
    seed: int,
) -> Ask:
    """Returns a judge that explains and then writes its verdict (mode ``generate``).

    Arguments as in `make_judge`; the contexts of the requests must be held.
    """
    ends, parse = _ends(codec, score), _parser(codec, score)
    decoding = make_decoding(
        codec.tokenizer,
        ends,
        seed=seed,
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_tokens,
    )

    def ask(batch: Sequence[Group]):
        finish = sampler.start(
            _questions(codec, score, batch),
            _key_paths(batch),
            decoding,
            slots=[request.slot for request, _ in batch],
            share=(share,) if share > 1 else (),
        )

        def read():
            out = finish()
            texts = [
                [
                    codec.text(out.tokens[g, w, : out.count[g, w]].tolist())
                    for w, call in enumerate(calls)
                    if call
                ]
                for g, (_, calls) in enumerate(batch)
            ]
            return [[(parse(text), text) for text in group] for group in texts]

        return read

    return ask


def logprob_judge(sampler: Sampler, codec: Codec, *, share: int) -> Ask:
    """Returns a judge that writes nothing (mode ``logprob``).

    The more probable of the two verdicts right after the question counts; its
    response is the log-odds of A. The contexts of the requests must be held.

    Args:
      sampler: see `make_judge`.
      codec: see `make_judge`.
      share: see `make_judge`.
    """
    verdicts = [codec.verdict(side) for side in "AB"]

    def ask(batch: Sequence[Group]):
        questions = _questions(codec, "sum", batch)
        rows = [[q + v if q else () for q in g for v in verdicts] for g in questions]
        scored = [[len(v) if q else 0 for q in g for v in verdicts] for g in questions]
        logps = sampler.score(
            rows,
            np.array(scored, np.int32),
            vocab=codec.tokenizer.vocab_size,
            slots=[request.slot for request, _ in batch],
            share=(2 * share, 2) if share > 1 else (2,),
        )
        odds = logps[:, ::2] - logps[:, 1::2]  # [groups, calls]
        answers = [
            [
                (_side(x), f"{x:.6f}")
                for x, call in zip(line, calls, strict=True)
                if call
            ]
            for line, (_, calls) in zip(odds, batch, strict=True)
        ]
        return lambda: answers

    return ask


def in_batches(
    ask: Ask,
    requests: Sequence[Request],
    calls: Sequence[Sequence[Call]],
    *,
    rows: int,
    share: int,
    size: int,
) -> list[list[Verdict]]:
    """Asks all calls, batch by batch, and returns the verdicts of each request.

    Args:
      ask: `writing_judge` or `logprob_judge`.
      requests: what to judge.
      calls: of each request.
      rows: calls per group.
      share: see `blocks_by_first`.
      size: groups per batch.

    Returns:
      The verdicts of each request, in the order of its calls.
    """
    groups = [
        (number, group)
        for number, asked in enumerate(calls)
        for group in blocks_by_first(asked, rows, share)
    ]
    batches = [groups[at : at + size] for at in range(0, len(groups), size)]
    answers = _one_ahead(
        ask, [[(requests[n], group) for n, group in batch] for batch in batches]
    )
    verdicts: list[list[Verdict]] = [[] for _ in requests]
    for batch, answered in zip(batches, answers, strict=True):
        for (number, group), pairs in zip(batch, answered, strict=True):
            asked = [call for call in group if call]
            verdicts[number] += [
                Verdict(*call, *answer)
                for call, answer in zip(asked, pairs, strict=True)
            ]
    return verdicts


def _one_ahead(ask: Ask, batches: Sequence[Sequence[Group]]) -> Iterator[list]:
    """Yields the answers of each batch after the next batch has begun.

    So the host reads one batch while the devices write the next.
    """
    finish = None
    for batch in batches:
        begun = ask(batch)
        if finish:
            yield finish()
        finish = begun
    if finish:
        yield finish()


def blocks_by_first(
    calls: Sequence[Call], rows: int, share: int
) -> list[list[Call | None]]:
    """Lays calls out in groups that are made of blocks with one candidate A each.

    Args:
      calls: in an order in which calls with the same candidate A are consecutive.
      rows: calls per group; the last group is filled up with None.
      share: calls per block; a block that has fewer is filled up with None.
    """
    places: list[Call | None] = []
    for _, block in itertools.groupby(calls, key=lambda call: call[0]):
        places += block
        places += [None] * (-len(places) % share)
    places += [None] * (-len(places) % rows)
    return [places[at : at + rows] for at in range(0, len(places), rows)]


def _questions(codec: Codec, score: str, batch: Sequence[Group]) -> list[list[tuple]]:
    """Returns the ids after the shared context of every call; () for padding."""

    def question(request: Request, call: Call) -> tuple[int, ...]:
        a, b = (request.candidates[i] for i in call)
        if score == "rating":
            return codec.rate_question(a)
        return codec.judge_question(a, b)

    return [
        [question(request, call) if call else () for call in calls]
        for request, calls in batch
    ]


def _key_paths(batch: Sequence[Group]) -> np.ndarray:
    """Returns the key path of every call, [groups, calls, PATH_LENGTH] uint32."""
    paths = np.zeros((len(batch), len(batch[0][1]), draws.PATH_LENGTH), np.uint32)
    for g, (request, calls) in enumerate(batch):
        for w, call in enumerate(calls):
            if call:
                paths[g, w] = draws.judgment_path(request.path, *call)
    return paths


def _ends(codec: Codec, score: str) -> tuple[str, ...]:
    """Returns the texts that end a judgment."""
    if score == "rating":
        return tuple(prompts.rating(codec.templates, n) for n in range(10))
    return tuple(prompts.verdict(codec.templates, side) for side in "AB")


def _parser(codec: Codec, score: str) -> Callable[[str], str | None]:
    """Returns a function from what a judge wrote to the winner."""

    def rating(text: str) -> str | None:
        digit = prompts.parse_rating(codec.templates, text)
        return None if digit is None else str(digit)

    def verdict(text: str) -> str | None:
        return prompts.parse_verdict(codec.templates, text)

    return rating if score == "rating" else verdict


def _side(odds: float) -> str | None:
    """Returns the winner by the log-odds of A; None when even or not a number."""
    return "A" if odds > 0 else "B" if odds < 0 else None


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
