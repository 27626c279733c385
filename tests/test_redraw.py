"""Repeated samples drawn again: where they begin, and what they are then."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from fakes import random_parameters
from small_models import FOUR_HEADS, SIX_TOKENS, small_decoder, some_ids

from stepjax.lm import draws
from stepjax.lm import model as lm
from stepjax.lm.sampler import SampledRow, Sampler, sample_behind
from stepjax.propose import make_proposer
from stepjax.records import Question
from stepjax.redraw import leavings, redraw_repeated
from stepjax.trajectory import State

WIDTH = 5

pytestmark = pytest.mark.usefixtures("quick_compiles")


def row(*tokens):
    """A sample of (token, probability behind the tokens before it)."""
    ids, probabilities = zip(*tokens, strict=True)
    return SampledRow(ids, True, np.log(np.array([*probabilities, 0.5])))


def test_a_new_sample_leaves_where_most_probability_is_left():
    rows = [row((7, 0.9), (3, 0.5), (4, 1.0))] * 3
    (found,) = leavings(rows, 1, 0.01)
    assert (found.ids, found.excluded) == ((7,), (3,))
    np.testing.assert_allclose(found.logps, [math.log(0.9)])
    # 0.9 * 0.5 = 0.45 is left there and counts as 0.225, 0.1125, ... the next times;
    # 0.1 at the beginning, nothing behind 7, 3.
    three = leavings(rows, 5, 0.01)
    assert [x.ids for x in three] == [(7,), (7,), (7,), (), (7,)]
    assert three[3].excluded == (7,)
    assert leavings(rows, 5, 0.5) == []
    assert [x.ids for x in leavings(rows, 5, 0.2)] == [(7,), (7,)]
    assert leavings(rows, 0, 0.01) == []


def test_what_was_drawn_by_any_sample_is_not_left():
    rows = [row((7, 0.6), (3, 0.5)), row((7, 0.6), (4, 0.4)), row((8, 0.3))]
    found = leavings(rows, 2, 0.01)
    assert [(x.ids, x.excluded) for x in found] == [((), (7, 8)), ((7,), (3, 4))]
    assert [x.ids for x in leavings(rows, 9, 0.08)] == [()]


@pytest.fixture(scope="module")
def params():
    return random_parameters(lm.abstract_params(FOUR_HEADS))


def new_sampler(params, mesh):
    return Sampler(FOUR_HEADS, params, mesh, slots=4, capacity=32)


def drawn(params, mesh, contexts):
    """Samples behind contexts at slots; returns (first samples, those drawn again)."""
    sampler = new_sampler(params, mesh)
    decoding = SIX_TOKENS._replace(temperature=0.05, top_p=1.0)
    paths = {
        slot: [draws.candidate_path(1, ids[0], 1, 0, n) for n in range(WIDTH)]
        for slot, ids in contexts.items()
    }
    rows = sample_behind(sampler, contexts, paths, decoding)
    options = {"least": 1e-4, "turn": 1}
    return rows, redraw_repeated(sampler, contexts, paths, rows, decoding, **options)


def test_samples_drawn_again_are_new_and_have_their_own_log_probabilities(
    params, one_device
):
    contexts = {slot: some_ids(slot, 6) for slot in (0, 1, 3)}
    rows, again = drawn(params, one_device, contexts)
    sampler = new_sampler(params, one_device)
    assert set(again) <= set(contexts) and again
    for slot, more in again.items():
        before = {x.ids for x in rows[slot]}
        assert len(more) <= WIDTH - len(before)
        for new in more:
            assert new.ids not in before
            assert len(new.ids) == 6 and not new.stopped
            sampler.hold({0: contexts[slot][:-1]})
            whole = [contexts[slot][-1], *new.ids]
            scores = sampler.score([[whole]], np.array([[6]]), vocab=48, slots=[0])
            np.testing.assert_allclose(new.logps[:6].sum(), scores[0, 0], rtol=1e-4)


def test_a_slot_draws_the_same_whatever_is_beside_it(params, one_device):
    many = {slot: some_ids(slot, 6) for slot in (0, 1, 3)}
    _, together = drawn(params, one_device, many)
    for slot in together:
        _, alone = drawn(params, one_device, {2: many[slot]})
        assert [x.ids for x in alone[2]] == [x.ids for x in together[slot]]


def test_a_stop_that_begins_before_the_new_token_is_seen(params, one_device):
    table = np.zeros((3, 48), np.int32)
    table[:2, 4], table[1, 3], table[2] = 1, 2, 2  # it is token 3 behind token 4
    decoding = SIX_TOKENS._replace(stops=jnp.asarray(table), vocab=5)
    contexts = {0: some_ids(0, 6)}
    paths = {0: [draws.candidate_path(1, 0, 1, 0, n) for n in range(WIDTH)]}
    sampler = new_sampler(params, one_device)
    sampler.hold({0: contexts[0][:-1]})
    tokens = (0, 1, 2, 4, 0)  # so that nothing but token 3 is left behind token 4
    rows = {0: [row((4, 0.9), (token, 0.01)) for token in tokens]}
    options = {"least": 0.1, "turn": 1}
    again = redraw_repeated(sampler, contexts, paths, rows, decoding, **options)
    (new,) = again[0]
    assert (new.ids, new.stopped) == ((4, 3), True)


def test_a_sample_drawn_again_is_not_longer_than_the_budget(params, one_device):
    contexts = {0: some_ids(0, 6)}
    paths = {0: [draws.candidate_path(1, 0, 1, 0, n) for n in range(WIDTH)]}
    sampler = new_sampler(params, one_device)
    sampler.hold({0: contexts[0][:-1]})
    sure = [(token, 1.0) for token in (9, 8, 7, 6)]
    rows = {0: [row(*sure, (5, 0.5), (4, 1.0))] * WIDTH}
    options = {"least": 0.01, "turn": 1}
    again = redraw_repeated(sampler, contexts, paths, rows, SIX_TOKENS, **options)
    assert len(again[0]) == WIDTH - 1
    for new in again[0]:
        assert new.ids[:4] == (9, 8, 7, 6) and new.ids[4] != 5
        assert (len(new.ids), len(new.logps), new.stopped) == (6, 6, False)


def test_a_proposal_holds_them_beside_the_first_samples(codec, one_device):
    decoder = small_decoder(codec.tokenizer.vocab_size)
    params = random_parameters(lm.abstract_params(decoder))
    state = State(Question("q", "8*7+4"))

    def proposal(redraw):
        sampler = Sampler(decoder, params, one_device, slots=2, capacity=32)
        options = {"width": 4, "temperature": 1e-3, "top_p": 1.0, "max_tokens": 5}
        options |= {"iteration": 1, "seed": 0, "redraw": redraw}
        return make_proposer(sampler, codec, **options)({1: state})[1]

    # A random model writes no steps, so that all its samples are refused.
    assert proposal(0.0).malformed == 4
    assert 4 < proposal(1e-3).malformed <= 4 + 2 * 3
