"""Diagnostics of the loop: pairs, judgments, drift, warnings."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import random_parameters
from small_models import small_decoder

from stepjax import dpo, forest, srlm
from stepjax.evaluation import diagnose
from stepjax.lm import model as lm
from stepjax.pairs import Pair
from stepjax.records import Question
from stepjax.trajectory import Candidate, Expansion, State, Verdict


def is_right(problem, steps, step):
    """A step is right when it counts the steps before it: "0", then "1", ..."""
    return step == str(len(steps))


def candidate(text):
    return Candidate((1,), text, 1, -1.0, False)


def expansion(step, texts, verdicts, action, best=0):
    calls = tuple(
        Verdict(int(a), int(b), None if winner == "-" else winner)
        for a, b, winner in verdicts.split()
    )
    made = tuple(map(candidate, texts))
    scores, worst = (0,) * len(texts), len(texts) - 1
    path = (0, 0, step, 0)
    return Expansion(step, 0, made, 0, calls, scores, best, worst, action, path)


def state(*expansions, steps=()):
    kept = tuple(map(candidate, steps))
    question = Question("q", "count")
    return State(question, kept, (None,) * len(kept), expansions, "complete")


def test_judgments_of_right_and_wrong_candidates_are_counted_by_hand():
    # Right: 0A 1B of the four; the two of equal worth (1, 2) are not counted.
    first = expansion(1, "0xy", "01A 10A 02- 20B 12A 21B", "pair")
    # After the step "0" the right one is "1"; its calls: one of two is right.
    second = expansion(2, "1z", "01B 10B", "append", best=1)
    # Gone back from: then "1" is due again.
    third = expansion(3, "2a", "01A", "back")
    fourth = expansion(2, "1b", "01A 10B", "pair")
    found = diagnose.sampled_judgments(
        [state(first, second, third, fourth, steps=("0", "1"))], is_right
    )
    # first: 01A right, 10A wrong, 02- wrong, 20B right; second: B wrong, B right;
    # third: right; fourth: both right.
    assert found == {"judge_sampled": 6 / 9, "judge_sampled_count": 9}
    assert diagnose.sampled_judgments([], is_right) == {"judge_sampled_count": 0}


def letter(problem, steps, step):
    """The kind of a wrong step: "is x" for a step that begins with x."""
    return f"is {step[0]}"


def test_judgments_are_counted_by_the_mistake_of_the_wrong_candidate():
    first = expansion(1, "0xy", "01A 10A 02- 20B 12A 21B", "pair")
    second = expansion(2, "1x", "01B 10B", "append")
    found = diagnose.sampled_judgments(
        [state(first, second, steps=("0", "1"))], is_right, mistake=letter
    )
    # x: A right, A wrong, B wrong, B right; y: unparsed, B right.
    assert found == {
        "judge_sampled": 3 / 6,
        "judge_sampled_count": 6,
        "judge_sampled_is_x": 2 / 4,
        "judge_sampled_is_x_count": 4,
        "judge_sampled_is_y": 1 / 2,
        "judge_sampled_is_y_count": 2,
        "sampled_is_x": 2,
        "sampled_is_y": 1,
        "sampled_right": 2,
    }


def test_problems_that_the_gold_does_not_know_are_passed_over():
    def unknown(problem, steps, step):
        return None

    empty = expansion(1, "", "", "resample")  # all samples were malformed
    states = [state(empty, expansion(1, "0x", "01A", "pair"), steps=("0",))]
    found = diagnose.sampled_judgments(states, unknown, mistake=letter)
    assert found == {"judge_sampled_count": 0}
    assert diagnose.expansions(states, unknown) == {}


def test_what_the_searches_could_choose_from_by_hand():
    made = [
        expansion(1, "0xy", "", "pair"),
        expansion(2, "zx", "", "append"),
        expansion(3, "2", "", "append"),
    ]
    last = dataclasses.replace(candidate("2"), finished=True)
    ended = dataclasses.replace(made[2], candidates=(last,))
    question = Question("other", "count")
    none = State(question, (), (), (expansion(1, "xy", "", "append"),), "complete")
    found = diagnose.expansions([state(*made[:2], ended), none], is_right)
    assert found == {
        "expansions_right": 2 / 4,
        "expansions_informative": 1 / 4,
        "problems_right_first": 1 / 2,
        "problems_right_last": 1 / 2,
    }


def test_ratings_are_right_when_the_right_solution_has_the_higher():
    rated = expansion(1, "0x0y", "003 112 22- 334", "pair")
    found = diagnose.sampled_judgments(
        [state(rated, steps=("0",))], is_right, srlm.graded
    )
    # 3 > 2 right; 3 > 4 wrong; the unparsed one loses both.
    assert found == {"judge_sampled": 1 / 4, "judge_sampled_count": 4}


def pair(step, chosen, rejected):
    ids = {"context_ids": [1], "chosen_ids": [2], "rejected_ids": [3]}
    made = {f.name: None for f in dataclasses.fields(Pair)} | ids
    made |= {"problem_id": "q", "problem": "count", "step": step}
    return Pair(**made | {"chosen": chosen, "rejected": rejected})


def test_quality_of_pairs_by_hand():
    states = {"q": state(steps=("0", "1", "2"))}
    pairs = [
        *(pair(1, "0", "x"), pair(2, "1", "0"), pair(3, "2", "x"), pair(1, "0", "1")),
        *(pair(2, "x", "1"), pair(1, "x", "y"), pair(2, "0", "2"), pair(3, "2", "2")),
    ]
    assert diagnose.pair_quality(pairs, states, is_right) == {
        "pairs_right": 4 / 8,
        "pairs_reversed": 1 / 8,
        "pairs_both_wrong": 2 / 8,
        "pairs_both_right": 1 / 8,
    }
    assert diagnose.pair_quality([], {}, is_right) == {}


def test_drift_is_what_plain_forward_passes_say(one_device):
    model = small_decoder(64, one_device)
    before, after = (
        random_parameters(lm.abstract_params(model), seed=seed, std=0.3)
        for seed in (3, 4)
    )
    pairs = [
        forest.IdPair((1, 2, 3), (4, 5), (6, 7, 8)),
        forest.IdPair((1, 2, 3, 4, 5), (9,), (10, 11)),
        forest.IdPair((12, 13), (14, 15, 16, 17), (18,)),
    ]
    batches = dpo.make_batches(
        pairs,
        mesh=one_device,
        batch_size=2,
        micro_batches=1,
        row_length=24,
        epochs=1,
        seed=0,
    )
    found = diagnose.drift(model, before, after, batches, one_device)

    @jax.jit
    def log_softmax(params, tokens):
        position = jnp.arange(tokens.size)[None]
        end = jnp.full((1, tokens.size), tokens.size)
        hidden = model.apply({"params": params}, tokens[None], position, end)[0]
        return jax.nn.log_softmax(lm.logits(params, hidden))

    def table(params, ids):
        padded = np.zeros(8, np.int32)  # what comes after a token does not matter
        padded[: len(ids)] = ids
        return np.asarray(log_softmax(params, padded), np.float64)[: len(ids)]

    kl, tokens, sums = 0.0, 0, {}
    for made in pairs:
        for side in ("chosen", "rejected"):
            step = getattr(made, side)
            ids = (*made.context, *step)
            old, new = table(before, ids), table(after, ids)
            for at in range(len(made.context) - 1, len(ids) - 1):
                kl += (np.exp(new[at]) * (new[at] - old[at])).sum()
                tokens += 1
            places = np.arange(len(made.context), len(ids))
            for name, logps in (("before", old), ("after", new)):
                total = logps[places - 1, list(step)].sum()
                key = f"{side}_logp_{name}"
                sums[key] = sums.get(key, 0.0) + total / len(pairs)
    assert found.pop("kl") == pytest.approx(kl / tokens, rel=1e-4)
    assert found.pop("chosen_tokens") == pytest.approx((2 + 1 + 4) / 3)
    assert found.pop("rejected_tokens") == pytest.approx((3 + 2 + 1) / 3)
    assert found == pytest.approx(sums, rel=1e-4)
    same = diagnose.drift(model, before, before, batches, one_device)
    assert same["kl"] == pytest.approx(0, abs=1e-6)
    assert same["chosen_logp_before"] == same["chosen_logp_after"]


def test_warnings_of_collapse_and_of_running_away():
    calm = {"chosen_logp_before": -4.0, "chosen_logp_after": -3.0, "chosen_tokens": 8.0}
    assert diagnose.warnings(calm, (8.0, 11.9)) == []
    assert diagnose.warnings(calm | {"chosen_logp_after": -7.9}, (0.0, 99.0)) == []
    (fell,) = diagnose.warnings(calm | {"chosen_logp_after": -8.8}, (8.0, 8.0))
    assert "lost 0.60 nats per token" in fell and "learning_rate" in fell
    (grew,) = diagnose.warnings(calm, (8.0, 12.5))
    assert "grew from 8.0 to 12.5 tokens" in grew
