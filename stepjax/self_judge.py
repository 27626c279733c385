"""The model as its own judge, on cached contexts.

Two modes: ``generate`` writes the explanation and then the verdict, as in the paper
(`writing_judge`); ``logprob`` compares the log-probabilities of the two verdicts right
after the question, without an explanation (`logprob_judge`). `in_batches` hands the
calls to one of the two, always one batch ahead, so that the devices never wait for the
host.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from stepjax.codec import Codec
from stepjax.judge import Call, Judge, Judgments, Request, all_calls
from stepjax.lm import draws
from stepjax.lm.generate import Decoding
from stepjax.lm.sampler import Sampler, make_decoding
from stepjax.trajectory import Verdict

MODES = ("generate", "logprob")

# Calls of one request that are computed side by side; None is padding.
Group = tuple[Request, Sequence[Call | None]]
# Begins a batch of groups. The function that it returns waits for the batch and gives
# (winner, response) of every call, group by group.
Ask = Callable[[Sequence[Group]], Callable[[], list[list[tuple[str | None, str]]]]]


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
      share: how many consecutive calls have the same candidate A, whose tokens are
        computed once for all of them; divides `rows`.
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

        def collect():
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

        return collect

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
