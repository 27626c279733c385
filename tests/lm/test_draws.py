"""Draws: the nucleus against a sort, distributions, keys, stops, and compilations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import random_parameters
from scipy import stats

from stepjax.lm import draws, generate
from stepjax.lm import model as lm
from stepjax.lm.sampler import Sampler
from stepjax.lm.stops import compile_stops

PADDED, VOCAB = 48, 45  # rows of the embedding, and ids that exist
NEW = 8
MODEL = lm.Decoder(
    lm.ModelConfig(
        vocab_size=PADDED,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        intermediate_size=48,
    )
)
TOKEN_BYTES = [bytes([40 + token]) for token in range(VOCAB)]
# As many states as a table of one stop string of two bytes, so of the same shape.
NO_STOPS = np.array([[0], [0], [2]]) + np.zeros((3, VOCAB), np.int32)
draw, row_keys = jax.jit(draws.draw), jax.jit(draws.row_keys)

pytestmark = pytest.mark.usefixtures("quick_compiles")


# The nucleus.


@jax.jit
def nucleus(probabilities, top_p):
    """Which tokens are in the nucleus, [..., V], asked token by token."""
    size = probabilities.shape[-1]
    every = jnp.broadcast_to(
        jnp.arange(size), (*probabilities.shape[:-1], size)
    )  # [..., V]
    above = jax.vmap(draws.mass_above, (None, -1), -1)(probabilities, every)
    return ((above < top_p) | (top_p >= 1)) & (probabilities > 0)


def exact_nucleus(row, top_p):
    """The smallest set of top probabilities that reaches top_p, ties together."""
    ordered = np.sort(row.astype(np.float64))[::-1]
    reached = np.flatnonzero(np.cumsum(ordered) >= top_p)
    return row >= ordered[reached[0]] if len(reached) else row > 0


@pytest.mark.parametrize("size", [5, 48, 1000])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.95, 0.999])
def test_nucleus_is_that_of_a_sort(size, top_p):
    rng = np.random.default_rng([size, round(1000 * top_p)])
    rows = [rng.dirichlet(np.full(size, a), 20) for a in (0.1, 1, 50)]
    probabilities = np.stack(rows).astype(np.float32)  # [3, 20, size]
    kept = np.asarray(nucleus(jnp.asarray(probabilities), top_p))
    assert kept.shape == probabilities.shape
    clear = 0
    for index in np.ndindex(3, 20):
        row = probabilities[index]
        # The sums are float32: only what is within rounding of top_p may differ.
        low = exact_nucleus(row, top_p - 5e-7)
        high = exact_nucleus(row, top_p + 5e-7)
        assert (kept[index] | ~low).all() and (high | ~kept[index]).all()
        clear += (low == high).all()
    assert clear >= 55


def test_nucleus_of_everything():
    rng = np.random.default_rng(0)
    flat = rng.dirichlet(np.full(64, 5.0), (2, 3)).astype(np.float32)
    flat[..., 7] = 0.0
    flat /= flat.sum(-1, keepdims=True)
    kept = np.asarray(nucleus(jnp.asarray(flat), 1.0))
    np.testing.assert_array_equal(kept, flat > 0)


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9, 1.0])
def test_nucleus_of_one_hot(top_p):
    one_hot = np.zeros((3, 40), np.float32)
    one_hot[[0, 1, 2], [0, 17, 39]] = 1
    kept = np.asarray(nucleus(jnp.asarray(one_hot), top_p))
    np.testing.assert_array_equal(kept, one_hot == 1)


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.1, "1100 0"), (0.25, "1100 0"), (0.5, "1100 0"), (0.55, "1111 0")]
    + [(0.87, "1111 0"), (0.9, "1111 1"), (1.0, "1111 1")],
)
def test_equal_probabilities_are_kept_together(top_p, kept):
    row = jnp.asarray([0.25, 0.25, 0.1875, 0.1875, 0.125], jnp.float32)
    expected = [digit == "1" for digit in kept.replace(" ", "")]
    assert nucleus(row, top_p).tolist() == expected
    order = jnp.asarray([4, 2, 0, 3, 1])
    assert nucleus(row[order], top_p).tolist() == [expected[index] for index in order]
    assert nucleus(jnp.full((2, 8), 0.125), top_p).all()


# One draw.


def test_temperature_zero_is_argmax():
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 3, (500, 30)).astype(np.float32)
    logits[:, 4] = -np.inf
    logits[7, [3, 9]] = 50.0  # equal: the first
    keys = jax.random.split(jax.random.key(1), 500)
    for top_p in (0.3, 1.0):
        drawn = draw(jnp.asarray(logits), keys, 0.0, top_p)
        assert drawn.dtype == jnp.int32
        np.testing.assert_array_equal(drawn, logits.argmax(-1))
    assert drawn[7] == 3


@pytest.mark.parametrize("size", [50, 128, 300])
@pytest.mark.parametrize("uniform", [0.0, 0.5, float(np.float32(1 - 2**-24))])
def test_extreme_numbers_pick_what_has_a_weight(uniform, size):
    rng = np.random.default_rng(2)
    weights = rng.gamma(0.1, size=(400, size)).astype(np.float32)
    weights[rng.random(weights.shape) < 0.5] = 0
    weights[:, [0, -1]] = 0
    weights[np.arange(400), rng.integers(1, size - 1, 400)] = 1  # never all 0
    numbers = jnp.full(400, uniform, jnp.float32)
    drawn = np.asarray(jax.jit(draws.pick)(jnp.asarray(weights), numbers))
    positive = weights > 0
    assert positive[np.arange(400), drawn].all()
    if uniform == 0.0:
        np.testing.assert_array_equal(drawn, positive.argmax(-1))
    wide = weights.astype(np.float64)
    share = np.cumsum(wide, -1)[np.arange(400), drawn] / wide.sum(-1)
    own = wide[np.arange(400), drawn] / wide.sum(-1)
    assert (share > uniform - 1e-6).all() and (share - own < uniform + 1e-6).all()


@pytest.mark.parametrize("top_p", [0.02, 0.5, 0.9, 1.0])
def test_draws_are_of_the_nucleus_and_all_of_it_is_drawn(top_p):
    logits = np.random.default_rng(7).normal(0, 1.5, 300).astype(np.float32)
    logits[[0, 299]] = -np.inf
    keys = jax.random.split(jax.random.key(3), 20000)
    rows = jnp.broadcast_to(logits, (20000, 300))
    counts = np.bincount(draw(rows, keys, 0.8, top_p), minlength=300)
    wide = np.exp(logits.astype(np.float64) / 0.8)
    wide /= wide.sum()
    expected = np.where(exact_nucleus(wide, top_p), wide, 0)
    expected *= 20000 / expected.sum()
    assert counts[expected == 0].sum() == 0
    often = expected > 20
    assert (counts[often] > 0).all()
    rest = expected[~often].sum()
    seen = np.append(counts[often], counts[~often].sum())
    wanted = np.append(expected[often], rest)
    seen, wanted = seen[wanted > 0], wanted[wanted > 0]
    assert len(wanted) == 1 or stats.chisquare(seen, wanted).pvalue > 1e-4


def test_a_row_without_numbers_ends():
    keys = jax.random.split(jax.random.key(3), 2)
    rows = jnp.asarray([[1.0, 2.0, 3.0], [jnp.nan] * 3])
    assert ((draw(rows, keys, 0.8, 0.5) >= 0) & (draw(rows, keys, 0.8, 0.5) < 3)).all()


def exact_distribution(logits, temperature, top_p):
    wide = np.asarray(logits, np.float64) / temperature
    probabilities = np.exp(wide - wide.max())
    probabilities /= probabilities.sum()
    kept = exact_nucleus(probabilities, top_p)
    assert 3 < kept.sum() < len(kept) - 3
    return np.where(kept, probabilities, 0) / probabilities[kept].sum()


def check_distribution(tokens, expected):
    counts = np.bincount(tokens, minlength=len(expected))
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    wanted = expected[kept] * len(tokens)
    assert wanted.min() > 5
    assert stats.chisquare(counts[kept], wanted).pvalue > 1e-4


def test_draws_follow_the_exact_nucleus_distribution():
    logits = np.random.default_rng(4).normal(0, 1.2, 32).astype(np.float32)
    paths = jnp.stack(jnp.indices((2, 10, 1000)), -1).astype(jnp.uint32)
    keys = row_keys(jnp.uint32(5), paths).reshape(-1)
    rows = jnp.broadcast_to(logits, (20000, 32))
    drawn = np.asarray(draw(rows, keys, 0.7, 0.9))
    expected = exact_distribution(logits, 0.7, 0.9)
    check_distribution(drawn, expected)
    # The test would see another temperature.
    with pytest.raises(AssertionError):
        check_distribution(drawn, exact_distribution(logits, 0.75, 0.9))


def test_row_keys_are_folded_from_their_own_path():
    paths = np.random.default_rng(6).integers(0, 2**32, (4, 500, 5), np.uint32)
    paths[1] = paths[0]
    paths[1, :, 4] ^= 1  # another candidate
    keys = row_keys(jnp.uint32(9), jnp.asarray(paths))
    assert keys.shape == (4, 500)
    data = np.asarray(jax.random.key_data(keys)).reshape(2000, -1)
    assert len(np.unique(data, axis=0)) == 2000
    alone = jax.random.key(9)
    for number in paths[2, 3]:
        alone = jax.random.fold_in(alone, number)
    assert jax.random.key_data(alone).tolist() == data[1003].tolist()
    other = row_keys(jnp.uint32(10), jnp.asarray(paths[2, 3]))
    assert jax.random.key_data(other).tolist() != data[1003].tolist()


# Key paths.


def test_each_candidate_judgment_and_node_has_its_own_path():
    numbers = (3, 2**32 - 1, 5, 1)  # iteration, problem, step, attempt
    assert draws.candidate_path(*numbers, 4) == (3, 2**32 - 1, 5, 1, 4, 0, 0)
    assert draws.judgment_path(numbers, 4, 0) == (3, 2**32 - 1, 5, 1, 4, 0, 1)
    both = [(a, b) for a in range(6) for b in range(6)]
    paths = [draws.judgment_path(numbers, a, b) for a, b in both]
    paths += [draws.candidate_path(*numbers, a) for a in range(6)]
    # The same integers for a node of the initial data are another path.
    assert draws.node_path(3, 2**32 - 1, 5, 1, 4) == (3, 2**32 - 1, 5, 1, 4, 0, 2)
    paths += [draws.node_path(*numbers, a) for a in range(6)]
    # And of a whole solution: problem and number.
    assert draws.solution_path(2**32 - 1, 5) == (2**32 - 1, 5, 0, 0, 0, 0, 3)
    paths += [draws.solution_path(3, a) for a in range(6)]
    assert len(set(paths)) == 54
    assert {len(path) for path in paths} == {draws.PATH_LENGTH}
    keys = row_keys(jnp.uint32(0), jnp.asarray(paths, jnp.uint32))
    assert len(np.unique(jax.random.key_data(keys), axis=0)) == 54


@pytest.mark.parametrize("length", [3, 5])
def test_a_path_of_another_length_is_refused_and_never_cut(length):
    numbers = tuple(range(7, 7 + length))
    expected = f"has {length + 3} integers; expected 7. Begin it with .iteration, prob"
    with pytest.raises(ValueError, match=expected):
        draws.judgment_path(numbers, 0, 1)
    with pytest.raises(TypeError):
        draws.candidate_path(*numbers, 0)


@pytest.mark.parametrize("number", [-1, 2**32, 2**40, 1.5])
def test_a_path_holds_integers_of_32_bits(number):
    expected = r"holds -?[\d.]+; expected integers from 0 to 2\*\*32 - 1"
    with pytest.raises(ValueError, match=expected):
        draws.candidate_path(1, number, 1, 0, 0)
    with pytest.raises(ValueError, match=expected):
        draws.judgment_path((1, 2, 1, number), 0, 1)
    with pytest.raises(ValueError, match=expected):
        draws.judgment_path((1, 2, 1, 0), 0, number)
    with pytest.raises(ValueError, match=expected):
        draws.node_path(1, 2, number, 0, 0)
    with pytest.raises(ValueError, match=expected):
        draws.solution_path(1, number)


# Whole rows from a model.


@pytest.fixture(scope="session")
def params():
    """Random; the padding rows of the unembedding would often be drawn."""
    params = random_parameters(lm.abstract_params(MODEL))
    scale = np.ones((PADDED, 1), np.float32)
    scale[VOCAB:] = 3.0
    return params | {"unembedding": params["unembedding"] * scale}


def some_ids(seed, count):
    return np.random.default_rng(seed).integers(0, VOCAB, count).tolist()


CONTEXTS = [some_ids(seed, 4 + seed) for seed in range(3)]


@pytest.fixture(scope="session")
def sampler(params, one_device):
    """Three slots that hold a context each, without its last id."""
    sampler = Sampler(MODEL, params, one_device, 3, 40)
    sampler.hold({slot: ids[:-1] for slot, ids in enumerate(CONTEXTS)})
    return sampler


def key_paths(problems, candidates, attempt=0):
    """Paths (iteration, problem, step, attempt, candidate), [G, W, 5]."""
    rows = [[(1, p, 2, attempt, c) for c in candidates] for p in problems]
    return np.array(rows, np.uint32)


def sample(sampler, prompts=None, paths=None, slots=None, capacity=NEW, **changes):
    if prompts is None:
        prompts = [[ids[-1:]] * 3 for ids in CONTEXTS]
    if paths is None:
        paths = key_paths((70, 71, 72), (0, 1, 2))
    decoding = generate.Decoding(1, 1.0, 0.95, NO_STOPS, VOCAB, NEW)
    decoding = decoding._replace(**changes)
    decoding = decoding._replace(stops=jnp.asarray(decoding.stops, jnp.int32))
    return sampler.sample(prompts, paths, decoding, slots=slots, capacity=capacity)


def test_same_keys_give_the_same_tokens_whatever_the_batch(sampler, params, one_device):
    every = sample(sampler)
    # All nine rows differ, those of the same context, too.
    assert len({row.tobytes() for group in every.tokens for row in group}) == 9
    np.testing.assert_array_equal(sample(sampler).tokens, every.tokens)

    prompts = [[()] * 3, [CONTEXTS[1][-1:]] * 3, [()] * 3]
    alone = sample(sampler, prompts=prompts)
    np.testing.assert_array_equal(alone.tokens[1], every.tokens[1])
    np.testing.assert_array_equal(alone.logps[1], every.logps[1])
    assert not alone.count[[0, 2]].any()

    swapped = sample(sampler, paths=key_paths((70, 71, 72), (2, 0, 1)))
    np.testing.assert_array_equal(swapped.tokens, every.tokens[:, [2, 0, 1]])

    # Another slot, other neighbours, another number of rows and groups.
    elsewhere = Sampler(MODEL, params, one_device, 4, 40)
    elsewhere.hold({0: CONTEXTS[2][:-1], 2: CONTEXTS[1][:-1], 1: some_ids(9, 20)})
    prompts = [[ids[-1:]] * 4 for ids in (CONTEXTS[1], CONTEXTS[1], CONTEXTS[2])]
    paths = key_paths((99, 71, 72), (5, 2, 1, 0))
    moved = sample(elsewhere, prompts, paths, [2, 2, 0])
    np.testing.assert_array_equal(moved.tokens[1, 1:], every.tokens[1, ::-1])
    np.testing.assert_array_equal(moved.tokens[2, 1:], every.tokens[2, ::-1])
    assert (moved.tokens[0] != moved.tokens[1]).any(-1).all()

    for change in (
        {"paths": key_paths((70, 71, 72), (0, 1, 2), attempt=1)},
        {"paths": key_paths((73, 74, 75), (0, 1, 2))},
        {"seed": 2},
    ):
        other = sample(sampler, **change)
        assert (other.tokens != every.tokens).any(-1).all()


def test_rows_follow_the_exact_distribution(params, one_device):
    # Without its layers and with one embedding for all, a model knows no context.
    layers = jax.tree.map(jnp.zeros_like, params["layers"])
    embedding = jnp.broadcast_to(params["embedding"][:1], (PADDED, 32))
    constant = params | {"layers": layers, "embedding": embedding}
    sampler = Sampler(MODEL, constant, one_device, 3, 40)
    sampler.hold({slot: ids[:-1] for slot, ids in enumerate(CONTEXTS)})
    rows, new = 104, 64
    compiled = generate.sample._cache_size()
    out = sample(
        sampler,
        prompts=[[ids[-1:]] * rows for ids in CONTEXTS],
        paths=key_paths((1, 2, 3), range(rows)),
        temperature=0.7,
        top_p=0.9,
        budget=new,
        capacity=new,
    )
    assert generate.sample._cache_size() == compiled + 1  # a new shape
    hidden = np.asarray(embedding[0], np.float64)
    hidden /= np.sqrt((hidden**2).mean() + MODEL.config.rms_norm_eps)
    hidden *= np.asarray(params["final_norm"]["scale"])
    logits = np.asarray(params["unembedding"], np.float64) @ hidden
    expected = exact_distribution(logits[:VOCAB], 0.7, 0.9)
    assert out.tokens.size == 3 * rows * new > 19900
    check_distribution(out.tokens.ravel(), expected)
    # Tokens of a row are independent of the one before.
    same = (out.tokens[..., 1:] == out.tokens[..., :-1]).sum()
    trials, chance = 3 * rows * (new - 1), (expected**2).sum()
    assert stats.binomtest(int(same), trials, chance).pvalue > 1e-4


def test_padding_ids_are_never_sampled(sampler):
    for temperature in (0.0, 1.5):
        loose = sample(sampler, temperature=temperature, top_p=1.0, vocab=PADDED)
        assert (loose.tokens >= VOCAB).sum() > 10
        strict = sample(sampler, temperature=temperature, top_p=1.0)
        assert strict.tokens.max() < VOCAB
        assert np.isfinite(strict.logps).all()
    few = sample(sampler, top_p=1.0, vocab=2)
    assert set(few.tokens.ravel()) == {0, 1}


def test_stop_table_halts_rows_one_by_one(sampler):
    free = sample(sampler)
    assert (free.count == NEW).all() and not free.stopped.any()
    pair = free.tokens[0, 0, 2:4].tolist()
    stop_id = int(free.tokens[2, 1, 5])
    string = b"".join(TOKEN_BYTES[token] for token in pair).decode()
    table = compile_stops(TOKEN_BYTES, [string], [stop_id])
    assert table.shape == NO_STOPS.shape
    out = sample(sampler, stops=table)
    counts = []
    for g, w in np.ndindex(3, 3):
        row = free.tokens[g, w].tolist()
        ends = [at + 2 for at in range(NEW - 1) if row[at : at + 2] == pair]
        ends += [at + 1 for at in range(NEW) if row[at] == stop_id]
        count = min(ends, default=NEW)
        counts.append(count)
        assert out.count[g, w] == count
        assert out.stopped[g, w] == bool(ends)
        assert out.tokens[g, w].tolist() == row[:count] + [0] * (NEW - count)
        np.testing.assert_array_equal(out.logps[g, w, :count], free.logps[g, w, :count])
        assert not out.logps[g, w, count:].any()
    assert len(set(counts)) >= 3 and NEW in counts


def test_budget_cuts_the_same_rows_short(sampler):
    free = sample(sampler)
    for budget in (1, 3):
        out = sample(sampler, budget=budget)
        assert (out.count == budget).all() and not out.stopped.any()
        np.testing.assert_array_equal(
            out.tokens[..., :budget], free.tokens[..., :budget]
        )
        assert not out.tokens[..., budget:].any()


def test_changed_values_compile_nothing(sampler):
    sample(sampler)
    before = generate.sample._cache_size()
    table = compile_stops(TOKEN_BYTES, ["ab"], [4])
    changes = [{"temperature": t} for t in (0.0, 0.3, 1)]
    changes += [{"top_p": 0.5}, {"top_p": 1}, {"seed": 2**32 - 1}, {"budget": 2}]
    changes += [{"stops": table}, {"vocab": 20}]
    changes += [{"paths": key_paths((7, 8, 9), (3, 4, 5))}]
    fewer = [[ids[-1:]] * 2 + [()] for ids in CONTEXTS]  # candidates than there is room
    changes += [{"prompts": fewer}]
    results = [sample(sampler, **change).tokens.tobytes() for change in changes]
    assert generate.sample._cache_size() == before
    assert len(set(results)) >= len(changes) - 1  # they did have an effect
