"""What a sampler keeps on the host: ids of contexts, shapes of rows, settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import SIX_TOKENS, small_decoder

from stepjax.lm import generate, layout, sharding
from stepjax.lm import model as lm
from stepjax.lm.sampler import Sampler, make_decoding
from stepjax.lm.stops import compile_stops

MODEL = small_decoder(48, layers=1)


@pytest.fixture(scope="module")
def params():
    return lm.init(MODEL, jax.random.key(0))


@pytest.fixture
def three_slots(params, one_device):
    return Sampler(MODEL, params, one_device, 3, 60)


def some_ids(seed, count):
    return np.random.default_rng(seed).integers(0, 48, count).tolist()


def test_leads_are_what_rows_begin_with():
    a, b, c = [1, 2, 3, 4], [1, 2, 5], [1, 2, 3]
    prompts = [[a, b, (), (), c, c], [(), (), (), a, (), ()]]
    common, rest = layout.split_blocks(prompts, 3, least=1)
    assert common == [[1, 2], [1, 2], (), [1, 2, 3]]
    assert rest == [[[3, 4], [5], (), (), [3], [3]], [(), (), (), [4], (), ()]]
    # Scored tokens and the one before them are left in the rows.
    assert layout.split_blocks([[c, c]], 2, least=3) == ([[]], [[c, c]])
    leads = layout.padded_leads(common, (3, 2, 4))  # the last group is padding
    assert leads.counts.tolist() == [[2, 2], [0, 3], [0, 0]]
    assert leads.tokens[:2].tolist() == [
        [[1, 2, 0, 0], [1, 2, 0, 0]],
        [[0, 0, 0, 0], [1, 2, 3, 0]],
    ]


def test_rows_are_laid_out_in_few_shapes(three_slots):
    three_slots.hold({0: some_ids(1, 5), 2: some_ids(2, 9)})
    prompts = [[[7, 8, 9], [], [4]], [[5], [6], [3]]] * 2
    prefix, rows = layout.lay_out(three_slots.held, [2, 0, 1, 2], prompts, ())
    # Four groups become two times the slots; three tokens become 16.
    assert rows.prompts.shape == (6, 3, 16) and prefix.leads == ()
    assert prefix.slots.tolist() == [2, 0, 1, 2, 0, 0]
    assert prefix.lengths.tolist() == [9, 5, 0, 9, 0, 0]
    assert rows.prompts[0, 0].tolist() == [0] * 13 + [7, 8, 9]
    assert rows.start[:2].tolist() == [[13, 0, 15], [15, 15, 15]]
    assert rows.active[:2].tolist() == [[True, False, True], [True] * 3]
    assert not rows.active[4:].any()
    # Without slots there is one group per slot; one token stays one token.
    prefix, rows = layout.lay_out(three_slots.held, None, [[[5]], [[6]], [[]]], ())
    assert prefix.slots is None and prefix.lengths.tolist() == [5, 0, 9]
    assert rows.prompts.tolist() == [[[5]], [[6]], [[0]]]


def test_room_for_new_tokens_is_the_budget(three_slots):
    stops = jnp.asarray(np.array([[0], [1]]) + np.zeros((2, 48), np.int32))
    decoding = generate.Decoding(0, 0.0, 1.0, stops, 48, 5)
    prompts = [[[4]], [[]], [[6]]]
    three_slots.hold({slot: some_ids(slot, 3) for slot in range(3)})
    paths = np.zeros((3, 1, 7), np.uint32)
    samples = three_slots.sample(prompts, paths, decoding)
    assert samples.tokens.shape == (3, 1, 5)
    assert samples.count.tolist() == [[5], [0], [5]]
    # Ten of the fifteen places of three rows and five steps hold a sampled token.
    assert (three_slots.new_tokens, three_slots.row_steps) == (10, 15)
    # Each slot has its own counts: five new tokens, three of context and one of prompt.
    assert three_slots.sampled.tolist() == [5, 0, 5]
    assert three_slots.read.tolist() == [4, 3, 4]
    wider = three_slots.sample(prompts, paths, decoding, capacity=8)
    assert wider.tokens.shape == (3, 1, 8)
    np.testing.assert_array_equal(wider.tokens[..., :5], samples.tokens)


@pytest.mark.parametrize(
    ("rows", "size"), [(1, 64), (2, 32), (3, 22), (30, 3), (64, 1), (65, 1)]
)
def test_a_batch_has_64_rows_on_a_cpu(params, one_device, monkeypatch, rows, size):
    sampler = Sampler(MODEL, params, one_device, 80, 16)
    assert sampler.batch_size(rows) == size
    monkeypatch.setattr(sampler, "_on_cpu", False)
    assert sampler.batch_size(rows) == 80


def test_a_batch_divides_over_the_devices_and_has_at_most_a_group_per_slot(params):
    sampler = Sampler(MODEL, params, sharding.make_mesh(), 24, 16)
    assert [sampler.batch_size(rows) for rows in (1, 4, 5, 8, 9, 99)] == [
        24,  # 64 groups of one row would be more than the slots
        16,
        16,  # 13 groups are not a multiple of 8
        8,
        8,
        8,
    ]


@pytest.mark.parametrize("share", [(), (2,), (4, 2)])
def test_a_batch_is_filled_up_to_its_size_whatever_its_rows_share(share):
    prompts = [[[7, 8, 9, 1]] * 4] * 5
    for last in (0, 1):
        _, rows = layout.lay_out([[]] * 24, range(5), prompts, share, last, 8)
        assert rows.prompts.shape[0] == 8
        _, rows = layout.lay_out([[]] * 24, range(5), prompts, share, last)
        assert rows.prompts.shape[0] == 24


@pytest.mark.parametrize("devices", [1, 8])
def test_a_small_batch_says_what_one_group_per_slot_says(params, one_device, devices):
    mesh = one_device if devices == 1 else sharding.make_mesh()
    slots, found = 3 * 8, []
    prompts = [[[7, 8, 9], [7, 4]], [[5, 1], []], [[6], [3, 3]]]
    paths = np.arange(3 * 2 * 7).reshape(3, 2, 7).astype(np.uint32)
    scored = np.array([[1, 1], [1, 0], [0, 2]])
    decoding = SIX_TOKENS._replace(temperature=1.0)
    for size in (0, 8):
        sampler = Sampler(MODEL, params, mesh, slots, 60)
        sampler.hold({slot: some_ids(slot, 3 + slot) for slot in (1, 4, 23)})
        named = {"slots": [23, 1, 4], "size": size}
        samples = sampler.sample(prompts, paths, decoding, **named)
        logps = sampler.score(prompts, scored, vocab=48, **named)
        found.append((samples, logps))
        # Two rows per group, and as many steps as the longest row has tokens.
        assert sampler.row_steps == (size or slots) * 2 * samples.count.max()
    (samples, logps), (small, small_logps) = found
    assert samples.count.sum(1).min() > 0
    np.testing.assert_array_equal(small.tokens, samples.tokens)
    np.testing.assert_array_equal(small.count, samples.count)
    np.testing.assert_allclose(small.logps, samples.logps, atol=1e-6)
    np.testing.assert_allclose(small_logps, logps, atol=1e-6)


class Letters:
    """A tokenizer of seven letters."""

    token_bytes = [bytes([97 + token]) for token in range(7)]
    vocab_size, stop_ids = 7, [6]


def test_settings_and_a_tokenizer_make_a_decoding():
    options = {"seed": 3, "temperature": 0.5, "top_p": 0.9, "max_tokens": 11}
    decoding = make_decoding(Letters(), ["bc"], **options)
    assert decoding._asdict() | {"stops": None} == {
        "seed": 3,
        "temperature": 0.5,
        "top_p": 0.9,
        "stops": None,
        "vocab": 7,
        "budget": 11,
    }
    expected = compile_stops(Letters.token_bytes, ["bc"], [6])
    assert isinstance(decoding.stops, jax.Array)
    np.testing.assert_array_equal(decoding.stops, expected)


def test_a_sequence_longer_than_a_sliding_window_is_refused(three_slots, monkeypatch):
    monkeypatch.setattr(three_slots, "_window", 15)
    three_slots.hold({slot: some_ids(slot, 4 + slot) for slot in range(3)})
    prompts = [[[1, 2, 3, 4], [1, 2, 3, 5]]]
    paths = np.zeros((1, 2, 7), np.uint32)
    # The slot holds 6 ids and each row has 4 more: 10 before anything is sampled.
    decoding = SIX_TOKENS._replace(budget=5)
    options = {"slots": [2], "share": (2,)}
    assert three_slots.sample(prompts, paths, decoding, **options).tokens.shape[2] == 5
    words = "a sequence of 16 tokens, 6 new ones included; expected at most 15"
    with pytest.raises(ValueError, match=words):
        three_slots.sample(prompts, paths, SIX_TOKENS, **options)
    monkeypatch.setattr(three_slots, "_window", 9)
    with pytest.raises(ValueError, match="a sequence of 10 tokens, 0 new ones"):
        three_slots.score(prompts, np.ones((1, 2), int), vocab=48, slots=[2])


def test_context_longer_than_the_capacity_is_refused(three_slots):
    with pytest.raises(ValueError, match="61 tokens; expected at most 60"):
        three_slots.hold({0: some_ids(1, 5), 1: some_ids(2, 61)})


@pytest.mark.parametrize("share", [(2,), (4,), (3, 2)])
def test_blocks_must_divide_the_rows_and_each_other(three_slots, share):
    expected = "for groups of 3 rows; expected each number to divide the one before it"
    with pytest.raises(ValueError, match=expected):
        layout.lay_out(three_slots.held, [0], [[[5], [6], [3]]], share)


def test_slots_must_divide_over_the_devices(params):
    with pytest.raises(ValueError, match="6 slots; expected a multiple of the 8"):
        Sampler(MODEL, params, sharding.make_mesh(), 6, 60)
