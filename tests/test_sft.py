"""Supervised fine-tuning: what is scored, and which rows an update sees."""

import collections
import dataclasses
import functools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import Table, random_parameters
from runs import one_device_mesh
from small_models import small_decoder

from stepjax import forest, sft
from stepjax.codec import Codec
from stepjax.judge import comparisons
from stepjax.lm import model as lm
from stepjax.lm import sharding, train
from stepjax.row_trees import SharedTrees
from stepjax.worlds import arithmetic, arithmetic_data

OPTIMIZER = train.OptimizerOptions(1e-3)

example = comparisons().example  # a row as ids of prompt and response


def phase(ift=1.0, eft=0.0, epochs=0, steps=0, batch_size=8):
    return sft.Phase("main", ift, eft, epochs, steps, 0.0, batch_size, OPTIMIZER)


def numbered(count, first, length=3):
    """Trees that are told apart by their first token."""
    return [
        forest.path_tree([first + n] + [1] * (length - 1), [0] + [1] * (length - 1))
        for n in range(count)
    ]


def batches(chosen, sources, number=0, micro_batches=1, seed=3, mesh=None, row=7):
    return sft.batch_function(
        chosen,
        number,
        sources,
        mesh=mesh or one_device_mesh(),
        row_length=row,
        micro_batches=micro_batches,
        seed=seed,
    )


def seen(rows):
    """First tokens of all sequences of an update."""
    rows = jax.tree.map(np.asarray, rows)
    visible = rows.subtree_end - np.arange(rows.tokens.shape[-1])
    return rows.tokens[(rows.parent == -1) & (visible > 1)].tolist()


# What is scored.


@pytest.mark.parametrize("problem", ["8*7+4*4+2*3+1", "2*4+4*9+2"])
def test_a_solution_is_scored_on_its_steps_and_ends_with_eos_once(codec, problem):
    row = arithmetic_data.solution("one", problem, (), random.Random(0))
    tree = sft.solution_tree(codec, row)
    text, eos = codec.tokenizer.decode, codec.tokenizer.eos_id
    prompt = len(tree.tokens) - len(tree.scored)
    assert tree.scored.tolist() == list(range(prompt, len(tree.tokens)))
    assert (tree.weight == 1).all()
    assert text(tree.tokens[:prompt].tolist()) == problem + "\n"
    assert text(tree.tokens[prompt:].tolist()) == "\n".join(row.steps)
    assert (tree.tokens == eos).nonzero()[0].tolist() == [len(tree.tokens) - 1]


@pytest.mark.parametrize("weight", [0.25, 4.0])
@pytest.mark.parametrize(("verdict", "count"), [("[[{side}]]", 1), ("<{side}>", 3)])
def test_a_comparison_is_scored_on_its_explanation_and_verdict(
    codec, weight, verdict, count
):
    templates = dataclasses.replace(arithmetic.templates(), verdict=verdict)
    codec = Codec(codec.tokenizer, templates)
    for row in arithmetic_data.comparisons("c", "8*7+4*4+2*3+1", random.Random(1)):
        tree = sft.judgment_tree(codec, example(codec, row), weight)
        text, eos = codec.tokenizer.decode, codec.tokenizer.eos_id
        response = tree.tokens[tree.scored].tolist()
        prompt = tree.tokens[: -len(response)].tolist()
        side = verdict.replace("{side}", row.verdict)
        assert tree.scored.tolist() == list(range(len(prompt), len(tree.tokens)))
        assert text(prompt).endswith(f"{row.a}\n(A)\n{row.b}\n(B)\n")
        assert text(response) == row.explanation + side
        assert eos not in tree.tokens[:-1] and response[-1] == eos
        # EOS belongs to the verdict, and a space that shares its first token.
        assert text(response[-1 - count :]).strip() == side
        ones = len(response) - 1 - count
        assert tree.weight.tolist() == [1.0] * ones + [weight] * (count + 1)


def test_words_of_an_explanation_weigh_as_much_as_the_verdict(codec):
    (row, _) = arithmetic_data.comparisons("c", "8*7+4*4+2*3+1", random.Random(1))
    tree = sft.judgment_tree(codec, example(codec, row), 4.0, ("Check",))
    plain = sft.judgment_tree(codec, example(codec, row), 4.0)
    changed = (tree.weight != plain.weight).nonzero()[0]
    text = codec.tokenizer.decode(tree.tokens[tree.scored[changed]].tolist())
    assert text == "Check: "
    assert tree.weight[changed].tolist() == [4.0] * len(changed)


def test_the_loss_and_its_gradient_are_those_of_the_response_tokens(codec):
    problems, rng = arithmetic.problems(2, seed=4), random.Random(2)
    trees = [
        sft.solution_tree(codec, arithmetic_data.solution("s", problems[0], (), rng)),
        *(
            sft.judgment_tree(codec, example(codec, row), 3.0)
            for row in arithmetic_data.comparisons("c", problems[1], random.Random(2))
        ),
    ]
    vocab = codec.tokenizer.vocab_size
    rows = forest.pack(trees, 96, rows=3, scored=50)  # the last row is padding
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(*rows.tokens.shape, vocab)).astype(np.float32)
    params = {"logits": jnp.asarray(logits), "embedding": jnp.eye(vocab)}
    loss = functools.partial(sft.loss, model=Table())
    (value, (count, sums)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        params, None, rows
    )

    wide = logits.astype(float)
    softmax = np.exp(wide) / np.exp(wide).sum(-1, keepdims=True)
    expected, total, weights = np.zeros_like(wide), 0.0, 0.0
    before_response = np.zeros(rows.tokens.shape, bool)
    for number, members in enumerate(forest.fill(trees, 96)):
        start = 0
        for tree in (trees[i] for i in members):
            scored = zip(tree.scored, tree.weight.astype(float), strict=True)
            for index, weight in scored:
                place, token = (number, start + index - 1), tree.tokens[index]
                total -= weight * np.log(softmax[place][token])
                expected[place] += weight * softmax[place]
                expected[place][token] -= weight
                before_response[place] = True
            weights += tree.weight.sum()
            start += len(tree.tokens)
    assert sums == {} and count == weights
    np.testing.assert_allclose(value, total, rtol=1e-6)
    got = np.asarray(gradient["logits"])
    np.testing.assert_allclose(got, expected, atol=1e-6)
    # Prompts, the last token of a sequence and padding have no gradient at all.
    assert (got[~before_response] == 0).all()
    assert before_response.sum() == sum(len(tree.scored) for tree in trees)


def test_judgments_that_share_a_problem_have_the_loss_of_separate_ones(codec):
    problems = arithmetic.problems(3, seed=4)
    rows = [
        row
        for number, problem in enumerate(problems)
        for seed in (1, 2)
        for row in arithmetic_data.comparisons(
            f"{number}-{seed}", problem, random.Random(seed)
        )
    ]
    paths = [sft.judgment_tree(codec, example(codec, row), 3.0) for row in rows]
    shared = SharedTrees(paths, [row.problem for row in rows], 300)
    assert len(shared) == 3
    assert sum(len(tree.tokens) for tree in shared) < sum(
        len(path.tokens) for path in paths
    )
    model = small_decoder(codec.tokenizer.vocab_size)
    params = random_parameters(lm.abstract_params(model))
    loss = jax.jit(functools.partial(sft.loss, params, None, model=model))
    apart, (weights, _) = loss(forest.pack(paths, 120))
    together, (same_weights, _) = loss(forest.pack(shared, 300))
    assert weights == same_weights == sum(path.weight.sum() for path in paths)
    np.testing.assert_allclose(together, apart, rtol=1e-5)


def test_words_that_are_in_no_explanation_are_found(codec):
    rows = [codec.line("Check: 8 (+) 8"), codec.line("Check: 7 (-) [[A]]")]
    assert sft.absent_words(codec, rows, ("Check", "Chec", "7", "9")) == ["Chec", "9"]


def test_a_tree_of_judgments_is_at_most_one_row_long():
    paths = [forest.path_tree([9, 1, n], [0, 0, 1]) for n in (2, 3, 4)]
    other = forest.path_tree([9, 5], [0, 1])
    trees = SharedTrees([*paths, other], ["p", "p", "p", "q"], 4)
    assert [tree.tokens.tolist() for tree in trees] == [[9, 1, 2, 3], [9, 1, 4], [9, 5]]


# Which rows.


def ids(trees):
    return [trees.id(place) for place in range(len(trees))]


def test_the_rows_of_a_batch_have_names(codec):
    problems = arithmetic.problems(4, seed=4)
    ift = [
        arithmetic_data.solution(f"i{n}", p, (), random.Random(n))
        for n, p in enumerate(problems)
    ]
    eft = [
        row
        for n, problem in enumerate(problems)
        for row in arithmetic_data.comparisons(f"e{n}", problem, random.Random(n))
    ]
    how = {"example": example, "row_length": 300, "verdict_weight": 1.0}
    apart = sft.examples(ift, eft, codec, **how)
    together = sft.examples(ift, eft, codec, **how, share=True)
    assert ids(apart.trees["eft"]) == [row.id for row in eft] and len(eft) == 8
    pairs = zip(eft[0::2], eft[1::2], strict=True)
    assert ids(together.trees["eft"]) == [f"{a.id}+{b.id}" for a, b in pairs]
    assert apart.sizes == {"ift": 4, "eft": 8} and together.sizes["eft"] == 4
    lengths = len(apart.trees["ift"][0].tokens)
    short = sft.examples(ift, [], codec, **how | {"row_length": lengths})
    assert sorted(ids(short.trees["ift"]) + short.dropped) == ["i0", "i1", "i2", "i3"]
    # The same rows as those of the batches.
    for chosen in (phase(eft=1.0, steps=9), phase(eft=1.0, epochs=3)):
        sources = {"ift": numbered(7, 100), "eft": numbered(5, 200)}
        rows_at = sft.rows_function(chosen, 0, {"ift": 7, "eft": 5}, 3)
        batch_at = batches(chosen, sources)
        first = {"ift": 100, "eft": 200}
        for step in range(4):
            expected = [first[name] + place for name, place in rows_at(step)]
            assert sorted(seen(batch_at(step))) == sorted(expected)


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_epochs_cover_every_row_as_often_as_they_say(micro_batches):
    chosen = phase(1.0, 1.0, epochs=3, batch_size=4)
    sources = {"ift": numbered(7, 0), "eft": numbered(4, 50)}
    sizes = {"ift": 7, "eft": 4}
    assert sft.phase_steps(chosen, sizes) == 9  # 33 rows, 4 at a time
    batch_at = batches(chosen, sources, micro_batches=micro_batches)
    updates = [seen(batch_at(step)) for step in range(9)]
    assert [len(update) for update in updates] == [4] * 8 + [1]
    flat = sum(updates, [])
    everything = sorted([*range(7), *range(50, 54)])
    epochs = [flat[start : start + 11] for start in (0, 11, 22)]
    if micro_batches == 1:  # several parts change the order within an update
        assert all(sorted(epoch) == everything for epoch in epochs)
        assert epochs[0] != epochs[1] != epochs[2]  # each in an order of its own
    assert set(collections.Counter(flat).values()) == {3}
    # A batch depends on its number alone, and on the seeds.
    again = batches(chosen, sources, micro_batches=micro_batches)
    for step in (8, 0, 5):
        assert seen(again(step)) == updates[step]
    others = {"seed": 4}, {"number": 1}
    for other in others:
        batch_at = batches(chosen, sources, micro_batches=micro_batches, **other)
        assert [seen(batch_at(step)) for step in range(9)] != updates


def test_an_epoch_leaves_out_a_source_without_a_share():
    chosen = phase(0.0, 1.0, epochs=2, batch_size=5)
    sources = {"ift": numbered(7, 0), "eft": numbered(5, 50)}
    assert sft.phase_steps(chosen, {"ift": 7, "eft": 5}) == 2
    batch_at = batches(chosen, sources)
    assert [sorted(seen(batch_at(n))) for n in (0, 1)] == [list(range(50, 55))] * 2


@pytest.mark.parametrize("share", [0.3, 0.5, 1.0, 0.0])
def test_steps_keep_the_shares_over_many_updates(share):
    chosen = phase(2 * share, 2 * (1 - share), steps=60, batch_size=7)
    sources = {"ift": numbered(11, 0), "eft": numbered(5, 50)}
    assert sft.phase_steps(chosen, {"ift": 11, "eft": 5}) == 60
    batch_at = batches(chosen, sources)
    counts, ift = collections.Counter(), 0
    for done in range(1, 61):
        update = seen(batch_at(done - 1))
        assert len(update) == 7
        counts.update(update)
        ift += sum(token < 50 for token in update)
        assert abs(ift - done * 7 * share) <= 0.5 + 1e-9
    for first, size, total in ((0, 11, ift), (50, 5, 420 - ift)):
        often = [counts[first + n] for n in range(size)]
        assert sum(often) == total and max(often) - min(often) <= 1


def test_batches_fill_the_mesh_and_split_into_parts():
    chosen = phase(epochs=1, batch_size=10)
    sources = {"ift": numbered(10, 0), "eft": []}
    mesh = sharding.make_mesh(4, 2)
    rows = batches(chosen, sources, micro_batches=2, mesh=mesh)(0)
    assert rows.tokens.shape == (2, 8, 7) and rows.scored.shape == (2, 8, 4)
    assert rows.tokens.addressable_shards[0].data.shape == (2, 1, 7)
    parts = [seen(jax.tree.map(lambda x, i=i: x[i], rows)) for i in (0, 1)]
    assert [len(part) for part in parts] == [5, 5]
    assert sorted(sum(parts, [])) == list(range(10))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "epochs=0 and steps=0; expected exactly one"),
        ({"epochs": 1, "steps": 9}, "epochs=1 and steps=9; expected exactly one"),
        ({"ift": 0.0, "steps": 9}, "shares ift=0.0, eft=0.0; expected shares >= 0"),
        ({"eft": -0.5, "steps": 9}, "shares ift=1.0, eft=-0.5; expected shares >= 0"),
    ],
)
def test_phases_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"sft phase 'main' has {message}"):
        phase(**settings)


def test_a_share_without_rows_is_refused():
    with pytest.raises(ValueError, match="'main' wants eft rows and there are none"):
        sft.phase_steps(phase(0.5, 0.5, steps=3), {"ift": 4, "eft": 0})
    assert sft.phase_steps(phase(steps=3), {"ift": 4, "eft": 0}) == 3
