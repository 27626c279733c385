"""The model as its own judge, on cached contexts.

Two modes: ``generate`` writes the explanation and then the verdict, as in the paper
(`writing_judge`); ``logprob`` compares the log-probabilities of the two verdicts right
after the question, without an explanation (`logprob_judge`). `in_batches` hands the
calls to one of the two, always one batch ahead, so that the devices never wait for the
host.

With ``judge.value="probability"`` a verdict also has the probability of its side. In
``logprob`` mode it comes from the same log-probabilities. In ``generate`` mode the
judgment is read again up to the place where its verdict begins, and the verdicts that
could have been written there are compared.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from stepjax import prompts
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
# (winner, response) of every call, group by group; further fields of its `Verdict` may
# follow.
Ask = Callable[[Sequence[Group]], Callable[[], list[list[tuple]]]]


def make_judge(
    sampler: Sampler,
    codec: Codec,
    judgments: Judgments,
    *,
    mode: str,
    seed: int,
    rows: int,
    share: int = 1,
    value: str = "hard",
    keep_ids: bool = False,
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
      value: one of `judge.VALUES`: whether verdicts have probabilities.
      keep_ids: whether verdicts have the ids of what was written.
      **explanation: max_tokens, temperature and top_p, see `sampler.make_decoding`.

    Returns:
      ``judge(requests, calls=None)``: the verdicts of each request, at most one request
      per slot; `calls` names the calls of each, by default those of `judgments`.

    Raises:
      ValueError: for an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"judge.mode={mode!r}; expected one of {MODES}.")
    size = sampler.batch_size(rows)
    how = {"share": share, "size": size, "soft": value == "probability"}
    ask = logprob_judge(sampler, codec, judgments, **how)
    if mode == "generate":
        ends = judgments.ends(codec.templates)
        decoding = make_decoding(codec.tokenizer, ends, seed=seed, **explanation)
        ask = writing_judge(
            sampler, codec, judgments, decoding, keep_ids=keep_ids, **how
        )

    def judge(requests: Sequence[Request], calls=None) -> list[list[Verdict]]:
        if calls is None:
            calls = all_calls(requests, judgments, seed)
        asked = [r for r, pairs in zip(requests, calls, strict=True) if pairs]
        sampler.hold(
            {r.slot: judgments.context(codec, r.problem, r.steps) for r in asked}
        )
        return in_batches(ask, requests, calls, rows=rows, share=share, size=size)

    return judge


def writing_judge(
    sampler: Sampler,
    codec: Codec,
    judgments: Judgments,
    decoding: Decoding,
    *,
    share: int,
    size: int = 0,
    soft: bool = False,
    keep_ids: bool = False,
) -> Ask:
    """Returns a judge that explains and then writes its verdict (mode ``generate``).

    The contexts of the requests must be held.

    Args:
      sampler: see `make_judge`.
      codec: see `make_judge`.
      judgments: what is asked.
      decoding: how the judgments are written, and where they end.
      share: see `make_judge`.
      size: groups of a full batch, see `Sampler.start`.
      soft: whether verdicts have the probability of A at the place where they stand.
      keep_ids: whether verdicts have the ids of what was written.
    """

    def ask(batch: Sequence[Group]):
        questions = _questions(codec, judgments, batch)
        slots = [request.slot for request, _ in batch]
        finish = sampler.start(
            questions,
            _key_paths(batch),
            decoding,
            slots=slots,
            share=(share,) if share > 1 else (),
            size=size,
        )

        def collect():
            out = finish()
            answers: list[list[tuple]] = []
            places: list[list[Place | None]] = []
            for g, (_, calls) in enumerate(batch):
                answers.append([])
                places.append([None] * len(calls))
                for w, call in enumerate(calls):
                    if not call:
                        continue
                    ids = tuple(out.tokens[g, w, : out.count[g, w]].tolist())
                    text = codec.text(ids)
                    winner = judgments.parse(codec.templates, text)
                    answer = winner, text
                    answers[g].append((*answer, None, ids) if keep_ids else answer)
                    if soft and winner is not None:
                        said = prompts.find_verdict(
                            codec.templates, text, judgments.sides
                        )
                        before, lead = codec.before(ids, text[said.start : said.end])
                        places[g][w] = questions[g][w] + before, lead
            if not soft:
                return answers
            logps = _side_logps(
                sampler,
                codec,
                judgments.sides,
                places,
                slots=slots,
                share=share,
                size=size,
            )
            for g, (_, calls) in enumerate(batch):
                asked = [w for w, call in enumerate(calls) if call]
                answers[g] = [
                    (*answer[:2], _of_a(logps[g, w]) if places[g][w] else None)
                    + answer[3:]
                    for answer, w in zip(answers[g], asked, strict=True)
                ]
            return answers

        return collect

    return ask


def logprob_judge(
    sampler: Sampler,
    codec: Codec,
    judgments: Judgments,
    *,
    share: int,
    size: int = 0,
    soft: bool = False,
) -> Ask:
    """Returns a judge that writes nothing (mode ``logprob``).

    The most probable of the verdicts right after the question counts; its response is
    the log-odds of A against B. The contexts of the requests must be held.

    Args:
      sampler: see `make_judge`.
      codec: see `make_judge`.
      judgments: from `comparisons`.
      share: see `make_judge`.
      size: groups of a full batch, see `Sampler.start`.
      soft: whether verdicts have the probability of A.
    """

    def ask(batch: Sequence[Group]):
        questions = _questions(codec, judgments, batch)
        logps = _side_logps(
            sampler,
            codec,
            judgments.sides,
            [[(q, "") if q else None for q in group] for group in questions],
            slots=[request.slot for request, _ in batch],
            share=share,
            size=size,
        )
        answers = []
        for g, (_, calls) in enumerate(batch):
            answers.append([])
            for w, call in enumerate(calls):
                if call:
                    said = logps[g, w]
                    answer = _side(said, judgments.sides), f"{said[0] - said[1]:.6f}"
                    answers[g].append((*answer, _of_a(said)) if soft else answer)
        return lambda: answers

    return ask


# Where a verdict is read: the ids behind the context, and the text that the verdict's
# first token holds before it, see `Codec.before`.
Place = tuple[tuple[int, ...], str]


def _side_logps(
    sampler: Sampler,
    codec: Codec,
    sides: str,
    places: Sequence[Sequence[Place | None]],
    *,
    slots: Sequence[int],
    share: int,
    size: int,
) -> np.ndarray:
    """Returns the log-probability of each verdict at each place.

    Args:
      sampler: its contexts are held.
      codec: tokenizer and templates.
      sides: the verdicts, "AB" or "ABC".
      places: of each group, one per call; None is not read.
      slots: of each group.
      share: see `make_judge`.
      size: groups of a full batch.

    Returns:
      [groups, calls, sides] float32.
    """
    rows: list[list[tuple[int, ...]]] = []
    shape = len(places), len(places[0]), len(sides)
    scored = np.zeros(shape, np.int32)
    for g, group in enumerate(places):
        rows.append([])
        for w, place in enumerate(group):
            for s, side in enumerate(sides):
                if place is None:
                    rows[g].append(())
                    continue
                said = codec.line(place[1] + prompts.verdict(codec.templates, side))
                rows[g].append(place[0] + said)
                scored[g, w, s] = len(said)
    count = len(sides)
    logps = sampler.score(
        rows,
        scored.reshape(shape[0], -1),
        vocab=codec.tokenizer.vocab_size,
        slots=slots,
        share=(count * share, count) if share > 1 else (count,),
        size=size,
    )
    return logps.reshape(shape)


def _of_a(logps: np.ndarray) -> float | None:
    """Returns the probability that A is better: P(A) + P(C) / 2, of these verdicts.

    None where the log-probabilities are not finite. Six digits are kept.
    """
    if not np.isfinite(logps).all():
        return None
    odds = np.exp(logps.astype(np.float64) - logps.max())
    shares = odds / odds.sum()
    return round(float(shares[0] + shares[2:].sum() / 2), 6)


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


def _side(logps: np.ndarray, sides: str) -> str | None:
    """Returns the most probable verdict; None when even or not a number."""
    best = [s for s, logp in zip(sides, logps, strict=True) if logp == logps.max()]
    return best[0] if len(best) == 1 else None
