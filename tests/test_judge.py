"""The judge: readings of equation 2 by hand, and its calls over token ids."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import FakeSampler, random_parameters
from hypothesis import given
from hypothesis import strategies as st

from stepjax.judge import (
    Request,
    Verdict,
    make_judge,
    ordered_pairs,
    position_flips,
    win_counts,
)
from stepjax.lm import model as lm
from stepjax.lm.sampler import Sampler
from stepjax.worlds import arithmetic

OPTIONS = {"max_tokens": 40, "temperature": 0.5, "top_p": 0.9, "seed": 11}


def calls(text):
    """Verdicts from a table like "01A 10B 12-": shown as A, shown as B, winner."""
    return [
        Verdict(int(a), int(b), None if winner == "-" else winner)
        for a, b, winner in text.split()
    ]


# Equation 2.

TABLES = [
    # Everyone agrees: 0 beats all, 1 beats 2.
    ("01A 02A 10B 12A 20B 21B", 3, [4, 2, 0], [2, 1, 0]),
    # The first one shown always wins.
    ("01A 02A 10A 12A 20A 21A", 3, [2, 2, 2], [0, 0, 0]),
    # A circle: 0 beats 1 beats 2 beats 0, in both orders.
    ("01A 02B 10B 12A 20A 21B", 3, [2, 2, 2], [1, 1, 1]),
    # 0 and 1 flip; 2 loses to 0 both ways, to 1 once and is unparsed once.
    ("01B 02A 10B 12A 20B 21-", 3, [3, 2, 0], [1, 0, 0]),
    # A win and an unparsed call is no consistent win.
    ("01A 10-", 2, [1, 0], [0, 0]),
    ("01- 10-", 2, [0, 0], [0, 0]),
    ("", 1, [0], [0]),
    ("", 0, [], []),
    # Four candidates: 0 and 3 are equal by sum, 0 is ahead by consistency. 1 and 2
    # never met: each won one of four calls against two others, so 1.5 of six.
    ("01A 10B 02A 20B 03B 30A 13B 31B 23B 32B", 4, [4, 1.5, 1.5, 4], [2, 0, 0, 1]),
]


@pytest.mark.parametrize(("table", "count", "total", "consistent"), TABLES)
def test_sum_and_consistent_scores_by_hand(table, count, total, consistent):
    verdicts = calls(table)
    assert win_counts(count, verdicts, "sum") == total
    assert win_counts(count, verdicts, "consistent") == consistent
    assert win_counts(count, verdicts[::-1], "sum") == total


def test_single_scores_by_hand():
    # One order a pair: 1 beats 0, 0 beats 2, 1 beats 2; 3 beats 0, others unparsed.
    verdicts = calls("10A 02A 21B 03B 31- 23-")
    assert win_counts(4, verdicts, "single") == [1, 2, 0, 1]


def test_unknown_reading_is_refused():
    with pytest.raises(ValueError, match=r"score='median'.*'consistent'"):
        win_counts(2, [], "median")


@given(st.integers(0, 5), st.data())
def test_each_parsed_call_scores_once(count, data):
    pairs = ordered_pairs(count, "sum", ())
    winners = data.draw(st.tuples(*(st.sampled_from(["A", "B", None]) for _ in pairs)))
    verdicts = [Verdict(*p, w) for p, w in zip(pairs, winners, strict=True)]
    total = win_counts(count, verdicts, "sum")
    assert all(type(n) is int for n in total)
    assert sum(total) == sum(w is not None for w in winners)
    assert all(0 <= n <= 2 * (count - 1) for n in total)
    consistent = win_counts(count, verdicts, "consistent")
    assert all(2 * c <= n for c, n in zip(consistent, total, strict=True))
    flipped, both = position_flips(verdicts)
    assert sum(consistent) == both - flipped


def test_position_flips_by_hand():
    assert position_flips(calls("01A 10B 02A 20A 12B 21B")) == (2, 3)
    assert position_flips(calls("01A 10A")) == (1, 1)
    assert position_flips(calls("01B 10A")) == (0, 1)
    assert position_flips(calls("01A 10- 02- 20- 12A")) == (0, 0)
    assert position_flips([]) == (0, 0)


# Which calls are made.


@pytest.mark.parametrize("score", ["sum", "consistent"])
def test_both_orders_of_every_pair_are_asked(score):
    assert ordered_pairs(2, score, (1,)) == [(0, 1), (1, 0)]
    pairs = ordered_pairs(6, score, (1,))
    assert len(pairs) == len(set(pairs)) == 30
    assert all(a != b and 0 <= a < 6 and 0 <= b < 6 for a, b in pairs)
    assert ordered_pairs(1, score, (1,)) == ordered_pairs(0, score, (1,)) == []


def test_single_order_is_drawn_by_seed():
    drawn = [ordered_pairs(5, "single", (3, n, 1, 0)) for n in range(200)]
    again = [ordered_pairs(5, "single", (3, n, 1, 0)) for n in range(200)]
    assert drawn == again
    for pairs in drawn:
        assert len(pairs) == 10
        assert {frozenset(pair) for pair in pairs} == {
            frozenset((i, j)) for i in range(5) for j in range(i)
        }
    # Mixed: of 2000 fair draws, within five standard deviations of a half.
    swapped = sum(a > b for pairs in drawn for a, b in pairs)
    assert abs(swapped - 1000) < 5 * math.sqrt(500)
    assert len({tuple(pairs) for pairs in drawn}) > 150
    assert ordered_pairs(1, "single", (1,)) == []


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
        (1, 1, [[2, 2, 2, 2], [2, 2, 3, 3]]),  # as many groups a call as slots
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
    judge = make_judge(slots, codec, mode="generate", score="sum", **layout, **OPTIONS)
    requests = requests_of_three_slots(codec)
    verdicts = judge(requests)
    assert [[v[:3] for v in answers] for answers in verdicts] == [
        [v[:3] for v in calls("01A 02A 10- 12- 20B 21A")],
        [],
        [v[:3] for v in calls("01A 10B")],
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
            **{name: OPTIONS[name] for name in ("seed", "temperature", "top_p")},
        }


def test_each_call_has_its_own_key_path(codec):
    paths = {}
    for rows, share in ((1, 1), (3, 1), (6, 3)):
        slots = FakeSampler(codec, 4, prefer_right)
        layout = {"rows": rows, "share": share}
        judge = make_judge(
            slots, codec, mode="generate", score="sum", **layout, **OPTIONS
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
    judge = make_judge(slots, codec, mode="generate", score="sum", rows=2, **options)
    verdicts = judge(requests_of_three_slots(codec))
    assert [v.winner for answers in verdicts for v in answers] == [None] * 8
    assert verdicts[0][0].response == "Check: 0 5"


def test_calls_can_be_named_and_single_asks_one_order(codec):
    slots = FakeSampler(codec, 4, prefer_right)
    judge = make_judge(slots, codec, mode="generate", score="single", rows=2, **OPTIONS)
    requests = requests_of_three_slots(codec)
    named = judge(requests, [[(2, 0)], [], [(1, 0), (0, 1)]])
    assert [[v[:3] for v in answers] for answers in named] == [
        [v[:3] for v in calls("20B")],
        [],
        [v[:3] for v in calls("10B 01A")],
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
    judge = make_judge(slots, codec, mode="logprob", score="sum", **layout, **OPTIONS)
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
    # Two rows a judgment, one for each verdict: they share its question.
    assert len(slots.asked) == 16
    levels = (2,) if share == 1 else (2 * share, 2)
    assert all(batch.options["share"] == levels for batch in slots.batches)


def test_unknown_mode_is_refused(codec):
    with pytest.raises(ValueError, match=r"judge.mode='vote'.*'logprob'"):
        make_judge(
            FakeSampler(codec, 1, None),
            codec,
            mode="vote",
            score="sum",
            rows=1,
            **OPTIONS,
        )


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
    judge = make_judge(slots, codec, mode="logprob", score="sum", **layout, **OPTIONS)
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
