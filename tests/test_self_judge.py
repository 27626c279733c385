"""The model as its own judge: calls over token ids, batches, a real model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import FakeSampler, random_parameters, verdicts_of

from stepjax.judge import Request, comparisons, ordered_pairs
from stepjax.lm import model as lm
from stepjax.lm.sampler import Sampler, make_decoding
from stepjax.self_judge import (
    blocks_by_first,
    in_batches,
    logprob_judge,
    make_judge,
    writing_judge,
)
from stepjax.trajectory import Verdict
from stepjax.worlds import arithmetic

OPTIONS = {"max_tokens": 40, "temperature": 0.5, "top_p": 0.9, "seed": 11}


# Calls over token ids, with a fake in the place of the caches.

SUM = "8*7+4*4+2*3+1"


def request(codec, slot, steps, candidates, number):
    return Request(
        slot=slot,
        problem_id=f"q-{slot}",
        problem=SUM,
        steps=tuple(map(codec.step, steps)),
        candidates=tuple(map(codec.step, candidates)),
        path=(1, 1000 + slot, len(steps) + 1, number),
    )


def requests_of_three_slots(codec):
    """Three, one and two candidates; the slots are neither in order nor all."""
    first = ["Step 1: 8*7+4=0", "Step 1: 8*7+4=5", "Step 1: 5*7+4=9"]
    last = "Step 3: 2*3+1=7; \\boxed{7}", "Step 3: 2*3+1=1; \\boxed{1}"
    done = ["Step 1: 8*7+4=0", "Step 2: 0*4+2=2"]
    return [
        request(codec, 2, [], first, 0),
        request(codec, 0, done[:1], ["Step 2: 0*4+2=2"], 0),
        request(codec, 3, done, last, 4),
    ]


def prefer_right(context, question, path):
    """Explains and prefers the right step; never parsed when 5 is shown first."""
    problem, *steps = context.strip("\n").split("\n")
    a, _, b, _ = question.strip("\n").split("\n")
    assert question == f"{a}\n(A)\n{b}\n(B)\n"
    if a.endswith("=5"):
        return "I can not tell"
    right = [arithmetic.is_right(problem, steps, step) for step in (a, b)]
    side = "A" if right[0] >= right[1] else "B"
    return f"Check: {a[-1]} {b[-1]} [[{side}]] and then [[A]]"


@pytest.mark.parametrize(
    ("rows", "share", "groups"),
    [
        (1, 1, [[2, 2, 2, 2], [2, 2, 3, 3]]),  # a batch of as many groups as slots
        (2, 1, [[2, 2, 2, 3]]),
        (4, 1, [[2, 2, 3]]),
        (30, 1, [[2, 3]]),
        (2, 2, [[2, 2, 2, 3], [3]]),  # a group for each first candidate
        (3, 3, [[2, 2, 2, 3], [3]]),
        (30, 5, [[2, 3]]),
    ],
)
def test_generated_verdicts_come_back_in_order(codec, rows, share, groups):
    slots = FakeSampler(codec, 4, prefer_right)
    layout = {"rows": rows, "share": share}
    judge = make_judge(
        slots, codec, comparisons(), mode="generate", **layout, **OPTIONS
    )
    requests = requests_of_three_slots(codec)
    verdicts = judge(requests)
    assert [[v[:3] for v in answers] for answers in verdicts] == [
        [v[:3] for v in verdicts_of("01A 02A 10- 12- 20B 21A")],
        [],
        [v[:3] for v in verdicts_of("01A 10B")],
    ]
    # The response ends with the first verdict that is written, where sampling stops.
    assert verdicts[0][0].response == "Check: 0 5 [[A]]"
    assert verdicts[0][2].response == "I can not tell"
    assert verdicts[0][4].response == "Check: 9 0 [[B]]"
    # Contexts are shared, and only those that are asked about are computed.
    assert slots.held[0] == slots.held[1] == ()
    assert slots.held[2] == codec.judge_context(SUM, [])
    assert slots.held[3] == codec.judge_context(SUM, requests[2].steps)
    assert [batch.groups for batch in slots.batches] == groups
    for batch in slots.batches:
        assert batch.options == {
            "budget": 40,
            "vocab": codec.tokenizer.vocab_size,
            "share": (share,) if share > 1 else (),
            "size": 4,
            **{name: OPTIONS[name] for name in ("seed", "temperature", "top_p")},
        }


@pytest.mark.parametrize("mode", ["generate", "logprob"])
def test_a_batch_is_as_large_as_the_sampler_likes(codec, monkeypatch, mode):
    respond = prefer_right if mode == "generate" else lambda *asked: 1.0
    slots = FakeSampler(codec, 4, respond)
    monkeypatch.setattr(slots, "batch_size", {2: 3}.get)
    judge = make_judge(slots, codec, comparisons(), mode=mode, rows=2, **OPTIONS)
    judge(requests_of_three_slots(codec))
    assert [batch.groups for batch in slots.batches] == [[2, 2, 2], [3]]
    assert [batch.options["size"] for batch in slots.batches] == [3, 3]


def test_each_call_has_its_own_key_path(codec):
    paths = {}
    for rows, share in ((1, 1), (3, 1), (6, 3)):
        slots = FakeSampler(codec, 4, prefer_right)
        layout = {"rows": rows, "share": share}
        judge = make_judge(
            slots, codec, comparisons(), mode="generate", **layout, **OPTIONS
        )
        judge(requests_of_three_slots(codec))
        paths[rows] = [row.path for row in slots.asked]
    # The row's place does not count; the last 1 parts them from those of proposals.
    assert paths[1] == paths[3] == paths[6]
    assert len(set(paths[1])) == 8
    assert paths[1][:2] == [(1, 1002, 1, 0, 0, 1, 1), (1, 1002, 1, 0, 0, 2, 1)]
    assert paths[1][7] == (1, 1003, 3, 4, 1, 0, 1)


def test_response_that_is_cut_off_is_unparsed(codec):
    slots = FakeSampler(codec, 4, prefer_right)
    options = OPTIONS | {"max_tokens": 4}
    judge = make_judge(slots, codec, comparisons(), mode="generate", rows=2, **options)
    verdicts = judge(requests_of_three_slots(codec))
    assert [v.winner for answers in verdicts for v in answers] == [None] * 8
    assert verdicts[0][0].response == "Check: 0 5"


def test_calls_can_be_named_and_single_asks_one_order(codec):
    slots = FakeSampler(codec, 4, prefer_right)
    judge = make_judge(
        slots, codec, comparisons("single"), mode="generate", rows=2, **OPTIONS
    )
    requests = requests_of_three_slots(codec)
    named = judge(requests, [[(2, 0)], [], [(1, 0), (0, 1)]])
    assert [[v[:3] for v in answers] for answers in named] == [
        [v[:3] for v in verdicts_of("20B")],
        [],
        [v[:3] for v in verdicts_of("10B 01A")],
    ]
    single = judge(requests)
    assert [[v[:2] for v in answers] for answers in single] == [
        ordered_pairs(len(r.candidates), "single", (11, *r.path)) for r in requests
    ]
    assert [len(answers) for answers in single] == [3, 0, 1]
    assert judge([]) == []


@pytest.mark.parametrize(("rows", "share"), [(1, 1), (2, 1), (30, 1), (2, 2), (30, 5)])
def test_log_odds_decide_in_logprob_mode(codec, rows, share):
    def odds(context, question, path):
        a, _, b, _ = question.strip("\n").split("\n")
        return (int(b[8] == "5") - int(a[8] == "5")) * 2.5 + len(context) / 64 - 0.5

    slots = FakeSampler(codec, 4, odds)
    layout = {"rows": rows, "share": share}
    judge = make_judge(slots, codec, comparisons(), mode="logprob", **layout, **OPTIONS)
    requests = requests_of_three_slots(codec)
    verdicts = judge(requests)
    low, middle, high = "-2.781250", "-0.281250", "2.218750"  # 14 characters
    assert verdicts == [
        [
            Verdict(0, 1, "B", middle),
            Verdict(0, 2, "A", high),
            Verdict(1, 0, "B", middle),
            Verdict(1, 2, "A", high),
            Verdict(2, 0, "B", low),
            Verdict(2, 1, "B", low),
        ],
        [],
        [Verdict(0, 1, "A", "0.218750"), Verdict(1, 0, "A", "0.218750")],  # 46
    ]
    # Two rows per judgment, one for each verdict: they share its question.
    assert len(slots.asked) == 16
    levels = (2,) if share == 1 else (2 * share, 2)
    assert all(batch.options["share"] == levels for batch in slots.batches)


def test_unknown_mode_is_refused(codec):
    with pytest.raises(ValueError, match=r"judge.mode='vote'.*'logprob'"):
        make_judge(
            FakeSampler(codec, 1, None),
            codec,
            comparisons(),
            mode="vote",
            rows=1,
            **OPTIONS,
        )


# Pieces.


def test_calls_are_laid_out_in_blocks_of_one_first_candidate():
    asked = [(0, 1), (0, 2), (1, 0), (2, 0), (2, 1)]
    assert blocks_by_first(asked, 3, 1) == [asked[:3], [*asked[3:], None]]
    assert blocks_by_first(asked, 4, 2) == [
        [(0, 1), (0, 2), (1, 0), None],
        [(2, 0), (2, 1), None, None],
    ]
    assert blocks_by_first([], 4, 2) == []


def test_the_next_batch_is_begun_before_the_last_one_is_read(codec):
    log = []

    def ask(batch):
        asked = [call for _, group in batch for call in group if call]
        log.append(("begin", asked))

        def finish():
            log.append(("read", asked))
            return [[(None, f"{c}") for c in group if c] for _, group in batch]

        return finish

    requests = [request(codec, slot, [], [], 0) for slot in (3, 0, 2)]
    named = [[(0, 1), (1, 0), (2, 0)], [], [(4, 3), (3, 4)]]
    verdicts = in_batches(ask, requests, named, rows=2, share=1, size=1)
    batches = [[(0, 1), (1, 0)], [(2, 0)], [(4, 3), (3, 4)]]
    assert log == [
        ("begin", batches[0]),
        ("begin", batches[1]),
        ("read", batches[0]),
        ("begin", batches[2]),
        ("read", batches[1]),
        ("read", batches[2]),
    ]
    assert verdicts == [[Verdict(*c, None, f"{c}") for c in line] for line in named]
    assert in_batches(ask, [], [], rows=2, share=1, size=1) == []


def test_a_writing_judge_waits_only_when_it_is_read(codec, monkeypatch):
    sampler, waits = FakeSampler(codec, 4, prefer_right), []
    sampler.hold({2: codec.judge_context(SUM, [])})
    begin = sampler.start

    def start(*args, **options):
        finish = begin(*args, **options)
        return lambda: (waits.append(1), finish())[1]

    monkeypatch.setattr(sampler, "start", start)
    judgments = comparisons()
    ends = judgments.ends(codec.templates)
    assert ends == ("[[A]]", "[[B]]")
    decoding = make_decoding(codec.tokenizer, ends, **OPTIONS)
    ask = writing_judge(sampler, codec, judgments, decoding, share=1)
    three = requests_of_three_slots(codec)[0]
    finish = ask([(three, [(0, 1), (1, 0)]), (three, [(2, 1), None])])
    assert waits == []
    assert finish() == [
        [("A", "Check: 0 5 [[A]]"), (None, "I can not tell")],
        [("A", "Check: 9 5 [[A]]")],
    ]
    assert waits == [1]


def test_a_logprob_judge_scores_both_verdicts_of_each_call(codec):
    sampler = FakeSampler(codec, 4, lambda context, prompt, _: int(prompt[14]) - 1)
    sampler.hold({2: codec.judge_context(SUM, [])})
    ask = logprob_judge(sampler, codec, comparisons(), share=1)
    three = requests_of_three_slots(codec)[0]
    assert ask([(three, [(0, 1), None, (1, 0)])])() == [
        [("B", "-1.000000"), ("A", "4.000000")]
    ]
    (batch,) = sampler.batches
    # Two rows per call, none for the padding between them.
    assert [row.prompt[14] for row in batch.rows] == ["0", "0", "5", "5"]
    assert batch.groups == [2] and batch.options["share"] == (2,)


# The judge with a real, random model: verdicts are what a plain forward says.


@pytest.mark.parametrize(("rows", "share"), [(3, 1), (4, 2)])
def test_logprob_verdicts_equal_a_plain_forward_pass(codec, one_device, rows, share):
    config = lm.ModelConfig(
        vocab_size=128,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        intermediate_size=48,
    )
    model = lm.Decoder(config)
    params = random_parameters(lm.abstract_params(model), seed=5)
    slots = Sampler(model, params, one_device, 4, 96)
    layout = {"rows": rows, "share": share}
    judge = make_judge(slots, codec, comparisons(), mode="logprob", **layout, **OPTIONS)
    requests = requests_of_three_slots(codec)

    @jax.jit
    def log_softmax(tokens):
        position = jnp.arange(tokens.size)[None]
        end = jnp.full((1, tokens.size), tokens.size)
        hidden = model.apply({"params": params}, tokens[None], position, end)
        return jax.nn.log_softmax(lm.logits(params, hidden[0]))

    def logp(ids, size):
        padded = np.zeros(160, np.int32)
        padded[: len(ids)] = ids
        table = np.asarray(log_softmax(padded))
        places = range(len(ids) - size, len(ids))
        return sum(float(table[at - 1, ids[at]]) for at in places)

    verdicts = judge(requests)
    assert [len(answers) for answers in verdicts] == [6, 0, 2]
    for made, answers in zip(requests, verdicts, strict=True):
        for verdict in answers:
            prompt = codec.judge_context(made.problem, made.steps)
            prompt += codec.judge_question(
                made.candidates[verdict.a], made.candidates[verdict.b]
            )
            side_a, side_b = codec.verdict("A"), codec.verdict("B")
            odds = logp(prompt + side_a, len(side_a)) - logp(
                prompt + side_b, len(side_b)
            )
            assert float(verdict.response) == pytest.approx(odds, abs=2e-5)
            assert verdict.winner == ("A" if odds > 0 else "B")
            assert abs(odds) > 1e-3
    assert len({v.response for answers in verdicts for v in answers}) == 8
