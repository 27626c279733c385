"""Step-DPO on forest rows: the same numbers as pairs laid out one by one."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import Table
from runs import one_device_mesh

from stepjax import dpo, forest, losses, pair_trees
from stepjax.forest import IdPair
from stepjax.lm import model as lm
from stepjax.lm import sharding

CONFIG = lm.ModelConfig(
    vocab_size=23,
    hidden_size=20,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    intermediate_size=28,
)
MODEL = lm.Decoder(CONFIG)
ROW = 52
# Nothing at its default, so that every term of the loss is seen.
OPTIONS = dpo.Options(beta=0.3, label_smoothing=0.1, nll_weight=0.2)

pytestmark = pytest.mark.usefixtures("quick_compiles")


@functools.cache
def parameters(seed):
    """Random parameters without a compilation; seeds give models that are near."""
    shapes = lm.unboxed(lm.abstract_params(MODEL))
    base, own = np.random.default_rng(0), np.random.default_rng([9, seed])

    def draw(path, leaf):
        if "scale" in str(path):
            return jnp.ones(leaf.shape, jnp.float32)
        noise = 0.4 * base.normal(size=leaf.shape) + 0.04 * own.normal(size=leaf.shape)
        return jnp.asarray(noise, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def solution(rng, prompt, steps, pairs):
    """Pairs of one solution; `pairs` maps a step's number to its branch's length."""

    def draw(n):
        return tuple(int(x) for x in rng.integers(0, CONFIG.vocab_size, n))

    context, found = draw(prompt), []
    for number, length in enumerate(steps):
        step = draw(length)
        if number in pairs:
            found.append(IdPair(context, step, draw(pairs[number])))
        context += step
    return found


def trajectories():
    """Two problems; the second step of the first has no pair (it was dropped)."""
    rng = np.random.default_rng(5)
    first = solution(rng, 6, (3, 2, 4, 3), {0: 2, 2: 5, 3: 1})
    return first, solution(rng, 9, (2, 4), {0: 4, 1: 3})


def loose_pairs():
    """Five pairs of five problems."""
    rng = np.random.default_rng(6)
    sizes = [(4, 3, 2), (3, 2, 5), (3, 4, 4), (2, 1, 3), (5, 5, 2)]
    return [solution(rng, n, (c,), {0: r})[0] for n, c, r in sizes]


def batches(pairs, batch_size=5, micro_batches=1, mesh=None, **changes):
    settings = {"row_length": ROW, "epochs": 1, "seed": 3} | changes
    found = dpo.make_batches(
        pairs,
        mesh=mesh or one_device_mesh(),
        batch_size=batch_size,
        micro_batches=micro_batches,
        **settings,
    )
    return list(found)


def only(found):
    """The one micro-batch of the one batch."""
    (batch,) = found
    return jax.tree.map(lambda x: x[0], batch)


@jax.jit
def forest_loss(params, reference, batch):
    """(((sum, (pairs, sums)), gradient), log-probabilities of the segments)."""
    loss = functools.partial(dpo.loss, model=MODEL, options=OPTIONS)
    differentiate = jax.value_and_grad(loss, has_aux=True)
    segments = dpo.pair_logps(MODEL, params, batch)
    return differentiate(params, reference, batch), segments


@jax.jit
def plain_loss(params, reference, tokens, mask):
    """The loss of pairs as plain sequences [2 P, T], on full logits."""

    def logps(params):
        position = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        causal = jnp.full_like(tokens, tokens.shape[1])
        hidden = MODEL.apply({"params": params}, tokens, position, causal)
        return losses.step_logps(lm.logits(params, hidden), tokens, mask)

    anchor = logps(reference)

    def loss(params):
        policy = logps(params)
        four = policy[0::2], policy[1::2], anchor[0::2], anchor[1::2]
        value = losses.step_dpo_loss(
            *four, beta=OPTIONS.beta, label_smoothing=OPTIONS.label_smoothing
        )
        nll = -policy[0::2] / mask[0::2].sum(1)
        return (value + OPTIONS.nll_weight * nll).mean(), policy

    return jax.value_and_grad(loss, has_aux=True)(params)


def laid_out(pairs):
    """Tokens and step masks of pairs one by one, chosen and rejected in turn."""
    sides = [(p.context, s) for p in pairs for s in (p.chosen, p.rejected)]
    tokens = np.zeros((len(sides), max(len(c) + len(s) for c, s in sides)), np.int32)
    mask = np.zeros(tokens.shape, np.float32)
    for row, (context, step) in enumerate(sides):
        tokens[row, : len(context) + len(step)] = context + step
        mask[row, len(context) : len(context) + len(step)] = 1
    return tokens, mask


def sequences(batch):
    """(context, chosen, rejected) of each pair of a micro-batch, from its rows."""
    rows, found = batch.rows, {}
    for row, slot in zip(*np.nonzero(rows.weight), strict=True):
        segment, index = rows.segment[row, slot], rows.scored[row, slot]
        path = []
        while index >= 0:
            path.append(int(rows.tokens[row, index]))
            index = rows.parent[row, index]
        found[segment] = max(found.get(segment, ()), tuple(path[::-1]), key=len)
    pairs = []
    for p in range(len(batch.lengths) // 2):
        if 2 * p in found:
            chosen, rejected = found[2 * p], found[2 * p + 1]
            start = len(chosen) - int(batch.lengths[2 * p])
            assert chosen[:start] == rejected[: -int(batch.lengths[2 * p + 1])]
            pairs.append(IdPair(chosen[:start], chosen[start:], rejected[start:]))
    return pairs


def worst(got, want):
    """Largest difference of two trees, over the largest entry of each array."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in pairs)


# One forest row, or one sequence per side of a pair.


def test_a_forest_row_is_its_pairs_one_by_one():
    first, second = trajectories()
    assert [len(p.context) for p in first] == [6, 11, 15]
    trees = [pair_trees.trajectory_tree(first), pair_trees.trajectory_tree(second, 6)]
    assert [len(tree.tokens) for tree in trees] == [26, 22]
    rows = forest.pack(trees, ROW, scored=32)
    assert rows.tokens.shape == (1, ROW)
    lengths = np.bincount(rows.segment[rows.weight > 0]).astype(np.float32)
    assert lengths.tolist() == [3, 2, 4, 5, 3, 1, 2, 4, 4, 3]
    batch = dpo.Batch(rows, lengths, np.zeros_like(lengths))
    assert sequences(batch) == first + second
    ((total, (count, sums)), gradient), segments = forest_loss(
        parameters(1), parameters(2), batch
    )
    plain = laid_out(first + second)
    (expected, logps), expected_gradient = plain_loss(
        parameters(1), parameters(2), *plain
    )
    np.testing.assert_allclose(segments, logps, rtol=1e-5)
    assert count == 5
    np.testing.assert_allclose(total / count, expected, rtol=1e-5)
    mean_gradient = jax.tree.map(lambda g: g / count, gradient)
    assert worst(mean_gradient, expected_gradient) < 1e-5
    # The numbers are not trivial: pairs on both sides, a loss away from ln 2.
    assert abs(sums["dpo_loss"] / 5 - math.log(2)) > 0.01
    assert 0 < sums["rewards/accuracies"] < 5

    # The batches of a run hold the same pairs in another order.
    batch = only(batches(first + second))
    assert batch.rows.tokens.shape == (1, ROW)
    ((again, _), gradient), _ = forest_loss(parameters(1), parameters(2), batch)
    np.testing.assert_allclose(again / 5, expected, rtol=1e-5)
    mean_gradient = jax.tree.map(lambda g: g / count, gradient)
    assert worst(mean_gradient, expected_gradient) < 1e-5


# The loss.


def test_the_first_loss_is_ln_2():
    batch = only(batches(sum(trajectories(), [])))
    ((_, (count, sums)), _), _ = forest_loss(parameters(1), parameters(1), batch)
    assert float(sums["dpo_loss"] / count) == pytest.approx(math.log(2), abs=1e-6)
    for name in ("rewards/margins", "rewards/chosen", "rewards/accuracies"):
        assert float(sums[name]) == pytest.approx(0, abs=1e-5)


def test_a_precomputed_reference_is_a_live_one():
    mesh, seen = one_device_mesh(), []
    found = batches(sum(trajectories(), []))
    assert not found[0].reference.any()
    filled = dpo.with_reference(MODEL, parameters(2), found, mesh, seen.append)
    np.testing.assert_array_equal(seen, [batch.reference for batch in filled])
    ((live, (_, sums)), gradient), _ = forest_loss(
        parameters(1), parameters(2), only(found)
    )
    ((stored, (_, stored_sums)), stored_gradient), _ = forest_loss(
        parameters(1), None, only(filled)
    )
    np.testing.assert_allclose(stored, live, rtol=1e-6)
    for name in sums:
        np.testing.assert_allclose(stored_sums[name], sums[name], rtol=1e-5, atol=1e-5)
    assert worst(stored_gradient, gradient) < 1e-5
    # It is the reference's log-probabilities that were stored.
    _, segments = forest_loss(parameters(2), parameters(1), only(found))
    np.testing.assert_allclose(only(filled).reference, segments, rtol=1e-6)


def test_swapping_the_sides_flips_the_margin():
    pairs = loose_pairs()
    swapped = [IdPair(p.context, p.rejected, p.chosen) for p in pairs]
    batch, other = only(batches(pairs)), only(batches(swapped))
    ((_, (_, sums)), _), logps = forest_loss(parameters(1), parameters(2), batch)
    ((_, (_, flipped)), _), mirrored = forest_loss(parameters(1), parameters(2), other)
    np.testing.assert_allclose(mirrored[0::2], logps[1::2], rtol=1e-5)
    np.testing.assert_allclose(mirrored[1::2], logps[0::2], rtol=1e-5)
    margin = float(sums["rewards/margins"])
    assert abs(margin) > 0.05
    assert float(flipped["rewards/margins"]) == pytest.approx(-margin, rel=1e-4)
    assert flipped["rewards/accuracies"] == 5 - sums["rewards/accuracies"]
    # -log sigmoid(-m) = m - log sigmoid(m), and smoothing takes a tenth both ways.
    change = float(flipped["dpo_loss"] - sums["dpo_loss"])
    assert change == pytest.approx(0.8 * margin, rel=1e-3)


def table(rng, rows):
    shape = (*rows.tokens.shape, CONFIG.vocab_size)
    logits = jnp.asarray(rng.normal(size=shape), jnp.float32)
    return {"logits": logits, "embedding": jnp.eye(CONFIG.vocab_size)}


def test_only_the_tokens_of_the_two_steps_have_a_gradient():
    first, second = trajectories()
    batch = only(batches(first + second + loose_pairs(), 10))
    rows = batch.rows
    rng = np.random.default_rng(7)
    policy, reference = table(rng, rows), table(rng, rows)
    loss = functools.partial(dpo.loss, model=Table(), options=dpo.Options(beta=0.3))
    gradients, _ = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(
        policy, reference, batch
    )
    # The formula, token by token: -beta sigmoid(-margin) (1[token] - softmax), with
    # the other sign for a rejected step, at the token before the scored one.
    value = {
        n: np.asarray(t["logits"], float)
        for n, t in (("policy", policy), ("reference", reference))
    }
    softmax = {
        n: np.exp(x) / np.exp(x).sum(-1, keepdims=True) for n, x in value.items()
    }
    sums = {name: np.zeros(len(batch.lengths)) for name in value}
    places = []
    for row, slot in zip(*np.nonzero(rows.weight), strict=True):
        index, segment = rows.scored[row, slot], rows.segment[row, slot]
        place = row, rows.parent[row, index], rows.tokens[row, index]
        places.append((place, segment))
        for name in value:
            sums[name][segment] += np.log(softmax[name][place])
    reward = 0.3 * (sums["policy"] - sums["reference"])
    margin = reward[0::2] - reward[1::2]
    expected = np.zeros_like(value["policy"])
    for (row, parent, token), segment in places:
        weight = 0.3 / (1 + np.exp(margin[segment // 2])) * (-1 if segment % 2 else 1)
        expected[row, parent] += weight * softmax["policy"][row, parent]
        expected[row, parent, token] -= weight
    got = np.asarray(gradients[0]["logits"])
    np.testing.assert_allclose(got, expected, atol=1e-6)
    before_a_step = np.zeros(rows.tokens.shape, bool)
    for (row, parent, _), _ in places:
        before_a_step[row, parent] = True
    # 31 + 31 scored tokens, ten pairs share the token before their two steps.
    assert before_a_step.sum() == len(places) - 10 == 52
    assert (got[~before_a_step] == 0).all()
    assert (np.abs(got[before_a_step]).max(-1) > 1e-4).all()
    assert all((x == 0).all() for x in jax.tree.leaves(gradients[1]))


def test_padding_changes_nothing():
    pairs = sum(trajectories(), [])
    mesh = sharding.make_mesh(8)
    padded = only(batches(pairs, 8, mesh=mesh))
    assert padded.rows.tokens.shape == (8, ROW) and padded.lengths.shape == (16,)
    ((total, (count, sums)), gradient), _ = forest_loss(
        parameters(1), parameters(2), only(batches(pairs))
    )
    ((same, (pairs_seen, same_sums)), same_gradient), _ = forest_loss(
        parameters(1), parameters(2), padded
    )
    assert count == pairs_seen == 5
    np.testing.assert_allclose(same, total, rtol=1e-6)
    for name in sums:
        np.testing.assert_allclose(same_sums[name], sums[name], rtol=1e-4, atol=1e-6)
    assert worst(same_gradient, gradient) < 1e-5

    # Whatever the padding holds, the result is bitwise the same.
    rng = np.random.default_rng(8)
    rows, empty = padded.rows, padded.rows.weight == 0
    free = np.arange(ROW) >= np.asarray([48] + [0] * 7)[:, None]
    junk = rows._replace(
        tokens=np.where(free, rng.integers(0, 23, free.shape), rows.tokens),
        scored=np.where(empty, rng.integers(0, ROW, empty.shape), rows.scored),
        segment=np.where(empty, rng.integers(0, 16, empty.shape), rows.segment),
    )
    junk = dpo.Batch(
        jax.tree.map(lambda new, old: new.astype(old.dtype), junk, rows),
        padded.lengths,
        padded.reference,
    )
    result = forest_loss(parameters(1), parameters(2), junk)
    wanted = forest_loss(parameters(1), parameters(2), padded)
    for got, want in zip(*map(jax.tree.leaves, (result, wanted)), strict=True):
        np.testing.assert_array_equal(got, want)


# Batches.


def test_every_epoch_has_every_pair_once_and_solutions_stay_together():
    rng = np.random.default_rng(9)
    solutions = [
        solution(rng, 4 + n, (2, 3, 2), {i: 2 for i in range(3) if i != n % 4})
        for n in range(7)
    ]
    pairs = sum(solutions, [])
    assert len(pairs) == 15
    found = batches(pairs, 7, 2, epochs=2)
    assert len(found) == 6  # 7 + 7 + 1 pairs per epoch
    assert len({tuple(x.shape for x in jax.tree.leaves(b)) for b in found}) == 1
    orders = []
    for epoch in (found[:3], found[3:]):
        parts = [
            sequences(jax.tree.map(lambda x, m=m: x[m], batch))
            for batch in epoch
            for m in range(2)
        ]
        assert [len(part) for part in parts] == [4, 3, 4, 3, 1, 0]
        flat = sum(parts, [])
        assert sorted(flat, key=str) == sorted(pairs, key=str)
        owner = [next(n for n, s in enumerate(solutions) if p in s) for p in flat]
        assert sum(a != b for a, b in zip(owner, owner[1:], strict=False)) <= 6 + 4
        orders.append(flat)
    assert orders[0] != orders[1]
    places = dpo.order(pairs, 7, ROW, seed=3, epochs=2)
    assert [len(update) for update in places] == [7, 7, 1] * 2
    # The trees of a micro-batch are laid out in an order of their own.
    named = [sorted((pairs[i] for i in update), key=str) for update in places]
    for update, batch in zip(named, found, strict=True):
        parts = [sequences(jax.tree.map(lambda x, m=m: x[m], batch)) for m in range(2)]
        assert sorted(sum(parts, []), key=str) == update
    again = batches(pairs, 7, 2, epochs=2)
    for got, want in zip(*map(jax.tree.leaves, (found, again)), strict=True):
        np.testing.assert_array_equal(got, want)
    other = batches(pairs, 7, 2, seed=4)
    halves = zip(found[:3], other, strict=True)
    assert any((a.rows.tokens != b.rows.tokens).any() for a, b in halves)


@pytest.mark.parametrize("wanted", [1, 3, 7])
def test_a_number_of_updates_instead_of_epochs(wanted):
    pairs = loose_pairs()  # 5, so 3 updates of two pairs are one pass
    found = batches(pairs, 2, epochs=9, updates=wanted)
    assert len(found) == wanted
    places = dpo.order(pairs, 2, ROW, seed=3, epochs=9, updates=wanted)
    assert len(places) == wanted
    passes = batches(pairs, 2, epochs=3)[:wanted]
    for got, want in zip(*map(jax.tree.leaves, (found, passes)), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_an_update_counts_its_tokens_as_pairs_and_as_trees(micro_batches):
    pairs = [p for part in trajectories() for p in part] + loose_pairs()
    (batch,) = batches(pairs, batch_size=len(pairs), micro_batches=micro_batches)
    plain, trees = dpo.tokens(batch)
    assert plain == sum(
        2 * len(p.context) + len(p.chosen) + len(p.rejected) for p in pairs
    )
    (chosen,) = dpo.order(pairs, len(pairs), ROW, seed=3, epochs=1)
    share = -(-len(pairs) // micro_batches)
    parts = [chosen[:share], chosen[share:]] if micro_batches > 1 else [chosen]
    expected = 0
    for part in parts:
        own = [pairs[n] for n in part]
        for group in pair_trees.group_by_trunk(own, ROW):
            tree = pair_trees.trajectory_tree([own[n] for n in group])
            expected += len(tree.tokens)
    assert trees == expected < plain


def test_no_pairs_give_no_batches_and_bad_input_is_refused():
    assert batches([]) == []
    with pytest.raises(ValueError, match="pair 2 has 11 tokens; .*row_length=10"):
        batches(loose_pairs(), row_length=10)
    with pytest.raises(ValueError, match="dpo.reference='frozen'; expected one of"):
        dpo.Options(reference="frozen")
