"""Pairwise step judging by the model itself: verdicts, win counts, best and worst.

Paper (arXiv 2503.03746, section 3.3 and equation 2): every candidate step is
compared with every other one by the same model as a judge, which explains and then
ends with [[A]] or [[B]]; Score_i counts the comparisons that i wins.

Readings of equation 2 (`score`): ``sum`` judges all ordered pairs and the winner of
each call scores (position-symmetric, 0 ... 2 (n - 1)); ``consistent`` lets a win
count only when both orders agree (0 ... n - 1); ``single`` asks one order per pair,
drawn by key. A verdict that cannot be parsed counts for nobody.

Two modes: ``generate`` writes the explanation and then the verdict, as in the paper
(`writing_judge`); ``logprob`` compares the log-probabilities of the two verdicts right
after the question, without an explanation (`logprob_judge`).

What is asked and how the answers count is a value of `Judgments`; `comparisons` makes
the paper's. `stepjax.controls` has judges that take the model's place.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from stepjax import prompts
from stepjax.codec import Codec
from stepjax.lm import draws
from stepjax.lm.generate import Decoding
from stepjax.lm.sampler import Sampler, make_decoding
from stepjax.prompts import Templates
from stepjax.records import Comparison
from stepjax.trajectory import Verdict

SCORES = ("sum", "consistent", "single")
MODES = ("generate", "logprob")


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
      calls: (number of candidates, seed) → calls to make; `seed` are the integers
        that draw what is drawn.
      scores: (number of candidates, verdicts) → score of each candidate.
      graded: (verdicts, whether each candidate is right) → whether the judge was right,
        for everything that has a right answer.
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
    scaled up to all n - 1 opponents, as if the others had gone like the asked ones.

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
    """Returns, for each call with one right and one wrong candidate, who was told.

    Args:
      verdicts: the calls; an unparsed one is wrong.
      right: whether each candidate is right.
    """
    asked = [v for v in verdicts if right[v.a] != right[v.b]]
    return [v.winner == ("A" if right[v.a] else "B") for v in asked]


def make_judge(
    sampler: Sampler,
    codec: Codec,
    judgments: Judgments,
    *,
    mode: str,
    seed: int,
    rows: int,
    share: int = 1,
    **explanation: float,
) -> Judge:
    """Returns the model as its own judge.

    Args:
      sampler: context caches of the judge, one slot per problem in flight.
      codec: tokenizer and templates.
      judgments: what is asked.
      mode: one of `MODES`.
      seed: base seed.
      rows: calls of a problem that are batched behind its context.
      share: so many consecutive calls have the same candidate A, whose tokens are
        computed once; divides `rows`.
      **explanation: max_tokens, temperature and top_p, see `sampler.make_decoding`.

    Returns:
      ``judge(requests, calls=None)``: the verdicts of each request, at most one request
      per slot; `calls` names the calls of each, by default those of `judgments`.

    Raises:
      ValueError: for an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"judge.mode={mode!r}; expected one of {MODES}.")
    ask = logprob_judge(sampler, codec, judgments, share=share)
    if mode == "generate":
        ends = judgments.ends(codec.templates)
        decoding = make_decoding(codec.tokenizer, ends, seed=seed, **explanation)
        ask = writing_judge(sampler, codec, judgments, decoding, share=share)

    def judge(requests: Sequence[Request], calls=None) -> list[list[Verdict]]:
        if calls is None:
            calls = all_calls(requests, judgments, seed)
        asked = [r for r, pairs in zip(requests, calls, strict=True) if pairs]
        sampler.hold(
            {r.slot: judgments.context(codec, r.problem, r.steps) for r in asked}
        )
        size = len(sampler.held)
        return in_batches(ask, requests, calls, rows=rows, share=share, size=size)

    return judge


def all_calls(
    requests: Sequence[Request], judgments: Judgments, seed: int
) -> list[list[Call]]:
    """Returns the calls to make of each request."""
    return [judgments.calls(len(r.candidates), (seed, *r.path)) for r in requests]


def writing_judge(
    sampler: Sampler,
    codec: Codec,
    judgments: Judgments,
    decoding: Decoding,
    *,
    share: int,
) -> Ask:
    """Returns a judge that explains and then writes its verdict (mode ``generate``).

    The contexts of the requests must be held.

    Args:
      sampler: see `make_judge`.
      codec: see `make_judge`.
      judgments: what is asked.
      decoding: how the judgments are written, and where they end.
      share: see `make_judge`.
    """

    def ask(batch: Sequence[Group]):
        finish = sampler.start(
            _questions(codec, judgments, batch),
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
            return [
                [(judgments.parse(codec.templates, text), text) for text in group]
                for group in texts
            ]

        return read

    return ask


def logprob_judge(
    sampler: Sampler, codec: Codec, judgments: Judgments, *, share: int
) -> Ask:
    """Returns a judge that writes nothing (mode ``logprob``).

    The more probable of the two verdicts right after the question counts; its
    response is the log-odds of A. The contexts of the requests must be held.

    Args:
      sampler: see `make_judge`.
      codec: see `make_judge`.
      judgments: from `comparisons`.
      share: see `make_judge`.
    """
    verdicts = [codec.verdict(side) for side in "AB"]

    def ask(batch: Sequence[Group]):
        questions = _questions(codec, judgments, batch)
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
            [(_side(odds[g, w]), f"{odds[g, w]:.6f}") for w, c in enumerate(calls) if c]
            for g, (_, calls) in enumerate(batch)
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


def _questions(
    codec: Codec, judgments: Judgments, batch: Sequence[Group]
) -> list[list[tuple[int, ...]]]:
    """Returns the ids after the shared context of every call; () for padding."""
    return [
        [judgments.question(codec, request, call) if call else () for call in calls]
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


def _side(odds: float) -> str | None:
    """Returns the winner by the log-odds of A; None when even or not a number."""
    return "A" if odds > 0 else "B" if odds < 0 else None
