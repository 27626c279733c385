"""Verdicts with probabilities, several explanations per call, and ties."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from fakes import FakeSampler, candidate, random_parameters, verdicts_of

from stepjax import iterate, records, tournament, trajectory
from stepjax.judge import (
    Request,
    comparisons,
    graded,
    majority,
    position_flips,
    win_counts,
    win_rates,
)
from stepjax.lm import model as lm
from stepjax.lm.sampler import Sampler
from stepjax.pairs import Pair, pairs_of
from stepjax.records import Comparison, Question
from stepjax.run.journal import Journal
from stepjax.self_judge import make_judge
from stepjax.trajectory import Expansion, State, Verdict

SUM = "8*7+4*4+2*3+1"
OPTIONS = {"max_tokens": 40, "temperature": 0.5, "top_p": 0.9, "seed": 11, "rows": 2}


def soft(table):
    """Verdicts from a table like "01:0.9 10:0.3": shown as A, as B, probability."""
    made = []
    for item in table.split():
        (a, b), p = item.split(":")[0], float(item.split(":")[1])
        winner = "A" if p > 0.5 else "B" if p < 0.5 else None
        made.append(Verdict(int(a), int(b), winner, "", p))
    return made


# Scores.


def test_win_rates_average_both_orders_and_all_opponents():
    # p_01 = (0.9 + 0.7) / 2 = 0.8, p_02 = (0.6 + 0.4) / 2 = 0.5, p_12 = 0.25.
    verdicts = soft("01:0.9 10:0.3 02:0.6 20:0.6 12:0.2 21:0.7")
    assert win_rates(3, verdicts, "sum") == [0.65, 0.225, 0.625]
    # 0 and 2 disagree with themselves, which is no preference; the sum is the same.
    assert win_rates(3, verdicts, "consistent") == [0.65, 0.225, 0.625]
    # 0 against 1 flips: p = (0.9 + 0.2) / 2 by sum, no preference if consistent.
    flipped = soft("01:0.9 10:0.8")
    assert win_rates(2, flipped, "sum") == [0.55, 0.45]
    assert win_rates(2, flipped, "consistent") == [0.5, 0.5]
    # One order of two is not consistent.
    half = [*soft("01:0.9"), Verdict(1, 0, None)]
    assert win_rates(2, half, "consistent") == [0.5, 0.5]
    assert win_rates(2, half, "sum") == [0.9, 0.1]
    assert win_rates(2, soft("10:0.25"), "single") == [0.75, 0.25]


def test_win_rates_of_certain_verdicts_are_shares_of_wins():
    table = "01A 02A 10B 12A 20B 21B"
    assert win_counts(3, verdicts_of(table), "sum") == [4, 2, 0]
    assert win_rates(3, verdicts_of(table), "sum") == [1.0, 0.5, 0.0]
    assert win_rates(2, verdicts_of("01- 10-"), "sum") == [0.5, 0.5]
    assert win_rates(1, [], "sum") == [0.5] and win_rates(0, [], "sum") == []
    # 2 met only 0, and lost: its rate is over one opponent.
    assert win_rates(3, soft("01:1 02:1"), "single") == [1.0, 0.0, 0.0]


def test_a_tie_is_half_a_win_for_both():
    verdicts = verdicts_of("01C 10C 02A 20B 12C 21A")
    assert win_counts(3, verdicts, "sum") == [3.0, 1.5, 1.5]
    assert win_counts(3, verdicts, "consistent") == [1.5, 0.5, 0.0]
    assert win_rates(3, verdicts, "sum") == [0.75, 0.375, 0.375]
    # A verdict in one order and a tie in the other depend on the order.
    assert position_flips(verdicts) == (1, 3)
    assert graded(verdicts, [True, False, False]) == [False, False, True, True]


def test_the_majority_of_several_explanations_counts():
    votes = verdicts_of("01A 10A 01B 10- 01A 10B 02-")
    one, other, unread = majority(votes)
    assert one[:3] == (0, 1, "A") and other[:3] == (1, 0, None)
    assert unread is votes[-1]
    assert win_counts(2, votes[:-1], "sum") == [1, 0]
    mean = majority(soft("01:0.9 01:0.2 01:0.7"))
    assert [v.winner for v in mean] == ["A"]
    assert mean[0].probability == pytest.approx(0.6)
    single = verdicts_of("01A 10B")
    assert majority(single) == single


def test_unknown_values_are_refused():
    with pytest.raises(ValueError, match=r"judge.value='median'.*'probability'"):
        comparisons("sum", "median")


# Pairs.


def searched(verdicts, scores):
    made = tuple(candidate(text) for text in ("a", "b"))
    best = 0 if scores[0] > scores[1] else 1
    e = Expansion(1, 0, made, 0, tuple(verdicts), scores, best, 1 - best, "pair", (1,))
    return State(Question("q", SUM), (made[best],), (0,), (e,), "complete")


@pytest.mark.parametrize(("least", "kept"), [(0.0, 1), (0.3, 1), (0.31, 0)])
def test_the_least_margin_of_a_pair_is_a_difference_of_win_rates(codec, least, kept):
    verdicts = soft("01:0.7 10:0.4")  # p = 0.65
    state = searched(verdicts, (0.65, 0.35))
    how = {"model": "M1", "iteration": 1, "seed": 0, "min_margin": least}
    made = pairs_of(state, codec, **how)
    assert len(made) == kept
    assert [pair.verdicts for pair in made] == kept * [
        [[0, 1, "A", "", 0.7], [1, 0, "B", "", 0.4]]
    ]


def test_the_best_of_a_pair_wins_a_call_with_more_than_half(codec):
    how = {"model": "M1", "iteration": 1, "seed": 0, "best_beats_all": True}
    how["min_margin"] = 0
    for table, kept in (("01:0.7 10:0.4", 1), ("01:0.9 10:0.6", 0), ("01:0.5", 0)):
        state = searched(soft(table), (0.65, 0.35))
        assert len(pairs_of(state, codec, **how)) == kept, table


def test_a_search_with_probabilities_is_read_back_as_it_was():
    state = searched([*soft("01:0.123456"), Verdict(1, 0, "B", "x")], (0.1, 0.9))
    row = trajectory.to_row(state)
    assert row["expansions"][0]["verdicts"] == [
        [0, 1, "B", "", 0.123456],
        [1, 0, "B", "x"],
    ]
    assert trajectory.from_row(row) == state


# Where the probability is read.


def request(codec, slot=2):
    texts = ["Step 1: 8*7+4=0", "Step 1: 8*7+4=5", "Step 1: 5*7+4=9"]
    steps = tuple(map(codec.step, texts))
    return Request(slot, "q", SUM, (), steps, (1, 1000, 1, 0))


def test_the_probability_is_that_of_the_log_odds_in_logprob_mode(codec):
    def odds(context, question, path):
        return {"0": 1.5, "5": 0.0, "9": -3.0}[question[14]]

    judge = make_judge(
        FakeSampler(codec, 4, odds),
        codec,
        comparisons("sum", "probability"),
        mode="logprob",
        value="probability",
        **OPTIONS,
    )
    (verdicts,) = judge([request(codec)])
    expected = {0: 1 / (1 + math.exp(-1.5)), 1: 0.5, 2: 1 / (1 + math.exp(3))}
    for verdict in verdicts:
        assert verdict.probability == pytest.approx(expected[verdict.a], abs=1e-6)
    assert [v.winner for v in verdicts] == ["A", "A", None, None, "B", "B"]


def test_a_tie_shares_its_probability_in_logprob_mode(codec):
    judge = make_judge(
        FakeSampler(codec, 4, lambda context, question, path: 1.0),
        codec,
        comparisons("sum", "probability", tie=True),
        mode="logprob",
        value="probability",
        **OPTIONS,
    )
    (verdicts,) = judge([request(codec)], [[(0, 1)]])
    a, b, c = math.exp(0.5), math.exp(-0.5), 1.0
    assert verdicts[0].probability == pytest.approx((a + c / 2) / (a + b + c), abs=1e-6)
    assert verdicts[0].winner == "A" and verdicts[0].response == "1.000000"


@pytest.mark.parametrize("said", ["[[A]]", "[[ A ]]"])
def test_a_written_verdict_is_weighed_at_its_place(codec, said):
    written = f"Check: 8*7=6, 6+4=0, 0 (+) 5 (-) {said}"

    def respond(context, prompt, path):
        if not path:  # the verdicts are compared
            assert prompt.endswith("\n(B)\nCheck: 8*7=6, 6+4=0, 0 (+) 5 (-) ")
            return 0.8
        return "I can not tell" if prompt[14] == "9" else written

    sampler = FakeSampler(codec, 4, respond)
    judge = make_judge(
        sampler,
        codec,
        comparisons("sum", "probability"),
        mode="generate",
        value="probability",
        **OPTIONS,
    )
    (verdicts,) = judge([request(codec)])
    by_call = {(v.a, v.b): v for v in verdicts}
    p = round(1 / (1 + math.exp(-0.8)), 6)
    assert by_call[0, 1] == Verdict(0, 1, "A", written, p)
    assert by_call[2, 0] == Verdict(2, 0, None, "I can not tell", None)
    # Two rows for each of the four verdicts that were written.
    assert sum(not row.path for row in sampler.asked) == 8


@pytest.mark.parametrize(
    ("mode", "share"),
    [
        ("generate", 2),
        ("logprob", 1),
        pytest.param("generate", 1, marks=pytest.mark.slow),
        pytest.param("logprob", 2, marks=pytest.mark.slow),
    ],
)
def test_probabilities_equal_a_plain_forward_pass(codec, one_device, mode, share):
    config = lm.ModelConfig(
        vocab_size=codec.tokenizer.vocab_size,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        intermediate_size=48,
    )
    model = lm.Decoder(config)
    params = random_parameters(lm.abstract_params(model), seed=5)
    sampler = Sampler(model, params, one_device, 4, 96)
    judgments = comparisons("sum", "probability")
    how = {"mode": mode, "value": "probability", "share": share, **OPTIONS}
    if mode == "generate":  # a random model writes no verdict, so any digit is one
        judgments = judgments._replace(
            parse=lambda templates, text: "A" if "[[A]]" in text else None
        )
        begin = sampler.start

        def start(prompts, *args, **options):
            finish = begin(prompts, *args, **options)

            def finished():
                out = finish()
                said = codec.line("Check: 0 [[A]]")
                tokens, count = np.array(out.tokens), np.array(out.count)
                tokens[..., : len(said)], count[...] = said, len(said)
                return out._replace(tokens=tokens, count=count)

            return finished

        sampler.start = start
    judge = make_judge(sampler, codec, judgments, **how)
    made = request(codec)
    (verdicts,) = judge([made], [[(0, 1), (0, 2), (2, 1)]])

    def logp(ids, size):
        tokens = jnp.asarray([ids])
        position = jnp.arange(len(ids))[None]
        end = jnp.full((1, len(ids)), len(ids))
        hidden = model.apply({"params": params}, tokens, position, end)
        table = jax.nn.log_softmax(lm.logits(params, hidden[0]))
        at = range(len(ids) - size, len(ids))
        return sum(float(table[n - 1, ids[n]]) for n in at)

    lead, ends = "", [codec.verdict(side) for side in "AB"]
    if mode == "generate":
        lead = "Check: 0"
        ends = [
            codec.line(lead + f" [[{side}]]")[len(codec.line(lead)) :] for side in "AB"
        ]
    for verdict in verdicts:
        prompt = codec.judge_context(SUM, ()) + codec.judge_question(
            made.candidates[verdict.a], made.candidates[verdict.b]
        )
        before = prompt + codec.line(lead)
        a, b = (logp(before + end, len(end)) for end in ends)
        assert verdict.probability == pytest.approx(1 / (1 + math.exp(b - a)), abs=1e-5)
    assert verdicts[0].probability != verdicts[1].probability


# Several explanations.


def test_each_vote_has_its_own_draws(codec):
    sampler = FakeSampler(codec, 4, lambda *row: f"Check: {row[2][3] >> 20} [[A]]")
    judgments = comparisons("single")
    once = make_judge(sampler, codec, judgments, mode="generate", **OPTIONS)
    assert tournament.voted(once, judgments, 1, 11) is once
    judge = tournament.voted(once, judgments, 3, 11)
    (first,) = once([request(codec)])
    paths = [row.path for row in sampler.asked]
    (verdicts,) = judge([request(codec)])
    assert [v[:2] for v in verdicts] == 3 * [v[:2] for v in first]
    assert [v.response[7] for v in verdicts] == list("000111222")
    asked = [row.path for row in sampler.asked][len(paths) :]
    assert asked[:3] == paths and len(set(asked)) == 9


def test_a_match_of_a_tournament_is_decided_by_margins():
    def judge(requests, calls):
        log.append(calls[0])
        table = {(0, 2): 0.6, (2, 0): 0.9}  # one win each; 2 has the larger margin
        return [[Verdict(*c, "A", "", table.get(c, 0.5)) for c in calls[0]]]

    asked = Request(0, "q", "p", (), ((1,), (2,), (3,)), (1, 2))
    seconds = {}
    for value in ("hard", "probability"):
        log = []
        tournament.scheduled(judge, "knockout", "sum", 0, value=value)([asked])
        seconds[value] = {frozenset(call) for call in log[1]}
    # The winner of 0 and 2 plays against 1.
    assert seconds["hard"] == {frozenset((0, 1))}
    assert seconds["probability"] == {frozenset((1, 2))}


# Ties in EFT rows.


def test_a_tie_in_an_eft_row_needs_a_judge_that_may_say_so(codec):
    row = Comparison("r", SUM, (), "Step 1: 8*7+4=5", "Step 1: 8*7+4=9", "C", "")
    prompt, response, verdict = comparisons(tie=True).example(codec, row)
    assert verdict == "[[C]]" and codec.text(response) == "[[C]]"
    with pytest.raises(ValueError, match=r"EFT row 'r' has the verdict 'C'.*judge.tie"):
        comparisons().example(codec, row)
    assert comparisons(tie=True).ends(codec.templates) == ("[[A]]", "[[B]]", "[[C]]")


def test_a_tie_within_an_explanation_ends_the_judgment_of_a_judge_that_has_ties(codec):
    said = "I thought of [[C]]; "
    row = Comparison("r", SUM, (), "Step 1: 8*7+4=5", "Step 1: 8*7+4=9", "A", said)
    assert comparisons().example(codec, row)[2] == "[[A]]"
    with pytest.raises(
        ValueError, match=r"explanation of EFT row 'r' holds '\[\[C\]\]'"
    ):
        comparisons(tie=True).example(codec, row)


# A run.


def soft_run(folder):
    return runs.copy_run(
        folder,
        *("M1/search*", "M1/pairs*", "M2", "M3", "eval"),
        judge__value="probability",
        judge__votes=2,
        pairs__min_margin=0.05,
    )


def test_a_search_of_a_run_keeps_probabilities_and_votes(tmp_path, monkeypatch):
    add, pauses = Journal.add, []

    def stop(journal, closed, active):
        add(journal, closed, active)
        pauses.append(len(closed))
        if len(pauses) == 1:
            raise KeyboardInterrupt

    with runs.quick_runs():
        run, broken = soft_run(tmp_path / "run"), soft_run(tmp_path / "broken")
        iterate.search(run, 1)
        monkeypatch.setattr(Journal, "add", stop)
        with pytest.raises(KeyboardInterrupt):
            iterate.search(broken, 1)
        iterate.search(broken, 1)
    assert 0 < pauses[0] < 24 and len(pauses) > 1  # it went on from the middle
    for name in ("search.jsonl", "pairs.jsonl"):
        whole, resumed = (r.dir.model(1) / name for r in (run, broken))
        assert whole.read_bytes() == resumed.read_bytes()
    pairs = records.read_jsonl(run.dir.model(1) / "pairs.jsonl", Pair)
    assert pairs
    for pair in pairs:
        verdicts = [Verdict(*row) for row in pair.verdicts]
        count = len(pair.candidates)
        assert len(verdicts) == 2 * count * (count - 1)
        assert pair.scores == win_rates(count, verdicts, "sum")
        assert pair.scores[pair.best] - pair.scores[pair.worst] >= 0.05
        assert all((v.probability is None) == (v.winner is None) for v in verdicts)
    assert any(v[4:] for pair in pairs for v in pair.verdicts)
