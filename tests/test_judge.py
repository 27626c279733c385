"""The judge: readings of equation 2 by hand, and its calls over token ids."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers import AtOnce, written
from hypothesis import given
from hypothesis import strategies as st

from stepjax.codec import Codec
from stepjax.judge import (
    Request,
    blocks_by_first,
    in_batches,
    logprob_judge,
    make_judge,
    ordered_pairs,
    position_flips,
    win_counts,
    writing_judge,
)
from stepjax.lm import model as lm
from stepjax.lm import sharding, tokenizer
from stepjax.lm.generate import Samples
from stepjax.lm.sampler import Sampler
from stepjax.trajectory import Verdict
from stepjax.worlds import arithmetic

OPTIONS = {"max_tokens": 40, "temperature": 0.5, "top_p": 0.9, "seed": 11}


@pytest.fixture(scope="session")
def codec(tmp_path_factory):
    directory = tmp_path_factory.mktemp("world")
    arithmetic.train_tokenizer(directory)
    return Codec(tokenizer.load(directory), arithmetic.templates())


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


class FakeSampler(AtOnce):
    """Stands in for `sampler.Sampler`; `respond(context text, question text)` answers.

    A response is a text (generate) or the log-odds of A (logprob).
    """

    def __init__(self, codec, slots, respond):
        self.codec, self.respond = codec, respond
        self.held = [None] * slots
        self.calls = []

    def hold(self, wanted):
        for slot, ids in wanted.items():
            self.held[slot] = tuple(ids)

    def _texts(self, groups, rows):
        """(row place, context text, question text) of the rows in use."""
        for g, (slot, group) in enumerate(zip(groups, rows, strict=True)):
            context = self.codec.tokenizer.decode(self.held[slot])
            for w, ids in enumerate(group):
                if ids:
                    yield g, w, context, self.codec.tokenizer.decode(ids)

    def sample(self, prompts, paths, decoding, *, slots, **options):
        shape, capacity = paths.shape[:2], decoding.budget
        assert all(len(group) == shape[1] for group in prompts)
        tokens, count = np.zeros((*shape, capacity), int), np.zeros(shape, int)
        stopped, used = np.zeros(shape, bool), []
        for g, w, context, question in self._texts(slots, prompts):
            response = self.respond(context, question)
            ids = self.codec.tokenizer.encode_line(response)
            count[g, w], stopped[g, w] = written(decoding.stops, ids, capacity)
            tokens[g, w, : count[g, w]] = ids[: count[g, w]]
            used.append(tuple(paths[g, w].tolist()))
        settings = decoding._asdict()
        del settings["stops"]
        self.calls.append((list(slots), used, options | settings))
        return Samples(tokens, count, stopped, np.zeros(tokens.shape))

    def score(self, rows, scored, *, vocab, slots, **options):
        logps, used = np.zeros(scored.shape), []
        verdicts = {self.codec.verdict(side): side for side in "AB"}
        for g, w, context, _ in self._texts(slots, rows):
            ids, size = rows[g][w], scored[g, w]
            side = verdicts[tuple(ids[-size:])]
            question = self.codec.tokenizer.decode(ids[:-size])
            odds = self.respond(context, question)
            logps[g, w] = -7 + odds / 2 * (1 if side == "A" else -1)
            used.append((g, w))
        self.calls.append((list(slots), used, options))
        return logps


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


def prefer_right(context, question):
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
    assert slots.held[0] is None and slots.held[1] is None
    assert slots.held[2] == codec.judge_context(SUM, [])
    assert slots.held[3] == codec.judge_context(SUM, requests[2].steps)
    assert [call[0] for call in slots.calls] == groups
    for _, _, options in slots.calls:
        assert options == {
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
        paths[rows] = [path for call in slots.calls for path in call[1]]
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
    def odds(context, question):
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
    assert sum(len(call[1]) for call in slots.calls) == 16
    levels = (2,) if share == 1 else (2 * share, 2)
    assert all(call[2]["share"] == levels for call in slots.calls)


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


# Pieces.


def test_calls_are_laid_out_in_blocks_of_one_first_candidate():
    calls = [(0, 1), (0, 2), (1, 0), (2, 0), (2, 1)]
    assert blocks_by_first(calls, 3, 1) == [calls[:3], [*calls[3:], None]]
    assert blocks_by_first(calls, 4, 2) == [
        [(0, 1), (0, 2), (1, 0), None],
        [(2, 0), (2, 1), None, None],
    ]
    assert blocks_by_first([], 4, 2) == []


def test_the_next_batch_is_begun_before_the_last_one_is_read(codec):
    log = []

    def ask(batch):
        calls = [call for _, group in batch for call in group if call]
        log.append(("begin", calls))

        def finish():
            log.append(("read", calls))
            return [[(None, f"{c}") for c in group if c] for _, group in batch]

        return finish

    requests = [request(codec, slot, [], [], 0) for slot in (3, 0, 2)]
    asked = [[(0, 1), (1, 0), (2, 0)], [], [(4, 3), (3, 4)]]
    verdicts = in_batches(ask, requests, asked, rows=2, share=1, size=1)
    batches = [[(0, 1), (1, 0)], [(2, 0)], [(4, 3), (3, 4)]]
    assert log == [
        ("begin", batches[0]),
        ("begin", batches[1]),
        ("read", batches[0]),
        ("begin", batches[2]),
        ("read", batches[1]),
        ("read", batches[2]),
    ]
    assert verdicts == [[Verdict(*c, None, f"{c}") for c in line] for line in asked]
    assert in_batches(ask, [], [], rows=2, share=1, size=1) == []


def test_a_writing_judge_waits_only_when_it_is_read(codec):
    caches = FakeSampler(codec, 4, prefer_right)
    caches.hold({2: codec.judge_context(SUM, [])})
    waits = []
    begin = caches.start

    def start(*args, **options):
        finish = begin(*args, **options)
        return lambda: (waits.append(1), finish())[1]

    caches.start = start
    ask = writing_judge(caches, codec, score="sum", share=1, **OPTIONS)
    three = requests_of_three_slots(codec)[0]
    finish = ask([(three, [(0, 1), (1, 0)]), (three, [(2, 1), None])])
    assert waits == []
    assert finish() == [
        [("A", "Check: 0 5 [[A]]"), (None, "I can not tell")],
        [("A", "Check: 9 5 [[A]]")],
    ]
    assert waits == [1]


def test_a_logprob_judge_scores_both_verdicts_of_each_call(codec):
    caches = FakeSampler(codec, 4, lambda context, question: int(question[14]) - 1)
    caches.hold({2: codec.judge_context(SUM, [])})
    ask = logprob_judge(caches, codec, share=1)
    three = requests_of_three_slots(codec)[0]
    assert ask([(three, [(0, 1), None, (1, 0)])])() == [
        [("B", "-1.000000"), ("A", "4.000000")]
    ]
    # Places 2 and 3 are those of the padding, where nothing is scored.
    assert caches.calls == [
        (
            [2],
            [(0, 0), (0, 1), (0, 4), (0, 5)],
            {"share": (2,)},
        )
    ]


# The judge with a real, random model: verdicts are what a plain forward says.


@pytest.mark.parametrize(("rows", "share"), [(3, 1), (4, 2)])
def test_logprob_verdicts_equal_a_plain_forward_pass(codec, rows, share):
    config = lm.ModelConfig(128, 32, 2, 4, 2, 8, 48)
    model = lm.Decoder(config)
    shapes = nn.meta.unbox(lm.abstract_params(model))
    rng = np.random.default_rng(5)
    params = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(0, 0.4, x.shape), jnp.float32), shapes
    )
    mesh = jax.sharding.Mesh(
        np.array(jax.devices()[:1]).reshape(1, 1, 1), sharding.MESH_AXES
    )
    slots = Sampler(model, params, mesh, 4, 96)
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
