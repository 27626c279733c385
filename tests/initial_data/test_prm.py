import itertools

import jax
import numpy as np
import pytest
from fakes import random_parameters
from sklearn import metrics as sklearn
from small_models import small_decoder

from stepjax import forest
from stepjax.initial_data import prm
from stepjax.lm import model as lm
from stepjax.lm import sharding, train
from stepjax.lm.sampler import Sampler
from stepjax.records import StepLabels
from stepjax.worlds import arithmetic

ROW = StepLabels(
    "one",
    "8*7+4*4+2",
    ("Step 1: 8*7+4=0", "Step 2: 0*4+2=2; \\boxed{2}"),
    (1.0, 0.25),
)


def test_a_tree_is_the_solution_with_labels_as_branches(codec):
    tree = prm.tree(codec, ROW)
    good, bad = prm.label_ids(codec)
    assert len(good) == len(bad) == 1
    first, second = map(codec.step, ROW.steps)
    trunk = prm.context(codec, prm.Solving(ROW.problem, (first, second)))
    middle = len(prm.context(codec, prm.Solving(ROW.problem, (first,))))
    # One label of weight 1 after step 1 (the other has weight 0), two after step 2.
    expected = [*trunk[:middle], *good, *trunk[middle:], *good, *bad]
    assert tree.tokens.tolist() == expected
    assert tree.scored.tolist() == [middle, len(trunk) + 1, len(trunk) + 2]
    assert tree.weight.tolist() == [1.0, 0.25, 0.75]
    # Each label hangs from the newline that ends its step, and nothing sees it.
    assert tree.parent[tree.scored].tolist() == [middle - 1, len(trunk), len(trunk)]
    assert [tree.tokens[i] for i in tree.parent[tree.scored]] == [codec.newline[0]] * 3
    ends = tree.subtree_end
    assert ends[tree.scored].tolist() == [middle + 1, len(trunk) + 2, len(trunk) + 3]
    others = np.delete(np.arange(len(expected)), tree.scored)
    assert (ends[others] == len(expected)).all()
    assert tree.position[tree.scored].tolist() == [middle, len(trunk), len(trunk)]
    assert tree.position[others].tolist() == list(range(len(trunk)))


def test_steps_after_the_last_label_and_labels_of_none_leave_no_trace(codec):
    steps = (*ROW.steps[:1], "Step 2: 0*4+2=2", "Step 3: 2*3+1=7")
    row = StepLabels("x", ROW.problem, steps, (None, 0.0, None))
    short = StepLabels("x", ROW.problem, steps[:2], (None, 0.0))
    one, other = prm.tree(codec, row), prm.tree(codec, short)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)
    assert one.weight.tolist() == [1.0]
    assert one.tokens[one.scored[0]] == prm.label_ids(codec)[1][0]


def small_model(codec):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    model = small_decoder(136, mesh, feed_forward=32)
    return model, random_parameters(lm.abstract_params(model)), mesh


@pytest.mark.usefixtures("quick_compiles")
@pytest.mark.parametrize("prompt", ["", "Is each step right?\n{problem}\n"])
def test_reading_behind_a_cache_is_the_probability_that_training_changes(codec, prompt):
    """The scored position of `make_scorer` is that of `tree`: the same log-odds."""
    model, params, mesh = small_model(codec)
    # Both labels of every step, so that both are scored in the forest row.
    row = StepLabels(ROW.id, ROW.problem, ROW.steps, (0.5, 0.5))
    packed = forest.pack([prm.tree(codec, row, prompt)], 128)
    logps = np.asarray(train.scored_logps(model, params, packed))[0]
    trained = 1 / (1 + np.exp(logps[1:4:2] - logps[0:4:2]))
    sampler = Sampler(model, params, mesh, slots=3, capacity=128)
    score = prm.make_scorer(sampler, codec, width=2, prompt=prompt)
    (read,) = prm.read(score, codec, [row], slots=3)
    np.testing.assert_allclose(read, trained, rtol=2e-5)
    assert 0.01 < abs(read[0] - read[1])
    # Candidates side by side, and problems side by side, change nothing.
    first, second = map(codec.step, ROW.steps)
    other = codec.step("Step 2: 0*4+2=3")
    both = score(
        {0: prm.Solving("1*3+1", ()), 2: prm.Solving(ROW.problem, (first,))},
        {0: [first], 2: [other, second]},
    )
    np.testing.assert_allclose(both[2][1], read[1], rtol=2e-5)
    assert [len(both[0]), len(both[2])] == [1, 2] and both[2][0] != both[2][1]


def test_the_gold_is_a_scorer_of_ones_and_zeros(codec):
    score = prm.gold_scorer(arithmetic.is_right, codec)
    solve = prm.Solving
    steps = ("Step 1: 8*7+4=0", "Step 2: 0*4+2=2; \\boxed{2}", "Step 2: 0*4+2=3")
    first, right, wrong = map(codec.step, steps)
    solving = {0: solve("8*7+4*4+2", (first,)), 3: solve("8*7+4*4+2", ())}
    found = score(solving, {0: [wrong, right], 3: [first]})
    assert {slot: list(own) for slot, own in found.items()} == {0: [0, 1], 3: [1]}
    assert found[0].dtype == np.float64


def test_labels_that_begin_alike_are_refused(codec, monkeypatch):
    monkeypatch.setattr(prm, "BAD", "++")
    with pytest.raises(ValueError, match="expected ids that differ"):
        prm.label_ids(codec)


# Figures, against scikit-learn on the same scores.


def rows_and_scores(seed, levels):
    """40 solutions of 1 to 6 steps with hard labels, None and ties among the scores."""
    rng = np.random.default_rng(seed)
    rows, scores = [], []
    for n in range(40):
        count = int(rng.integers(1, 7))
        labels = [[0.0, 1.0, None][k] for k in rng.integers(0, 3, count)]
        labels[0] = float(rng.integers(0, 2))
        steps = tuple(f"Step {k + 1}: x" for k in range(count))
        rows.append(StepLabels(str(n), "p", steps, tuple(labels)))
        scores.append((rng.integers(0, levels, count) / levels).tolist())
    return rows, scores


@pytest.mark.parametrize(("seed", "levels"), itertools.product(range(3), (3, 1000)))
def test_accuracy_and_auc_are_those_of_scikit_learn(seed, levels):
    rows, scores = rows_and_scores(seed, levels)
    measured = prm.metrics(rows, scores)
    flat = [
        (label, p)
        for row, own in zip(rows, scores, strict=True)
        for label, p in zip(row.labels, own, strict=True)
        if label is not None
    ]
    truth, p = np.array(flat).T
    assert measured["steps"] == len(flat)
    assert measured["right"] == pytest.approx(truth.mean())
    assert measured["accuracy"] == sklearn.accuracy_score(truth, p > 0.5)
    assert measured["auc"] == pytest.approx(sklearn.roc_auc_score(truth, p), abs=1e-12)


def test_there_is_no_auc_of_one_kind_of_step():
    row = StepLabels("x", "p", ("Step 1: a", "Step 2: b"), (1.0, 1.0))
    measured = prm.metrics([row], [[0.9, 0.2]])
    assert measured == {"steps": 2, "right": 1.0, "accuracy": 0.5, "auc": None}


@pytest.mark.parametrize("seed", range(3))
def test_first_error_f1_is_the_harmonic_mean_of_two_recalls_of_scikit_learn(seed):
    """ProcessBench's figure: the named step is a class, -1 is "no error"."""
    rng = np.random.default_rng(seed)
    truth, named, rows, scores = [], [], [], []
    for n in range(60):
        count = int(rng.integers(1, 6))
        first = int(rng.integers(-1, count))
        known = count if first < 0 else first + 1
        labels = [1.0] * count if first < 0 else [1.0] * first + [0.0]
        labels += [None] * (count - known)
        own = rng.random(count).tolist()
        rows.append(StepLabels(str(n), "p", tuple("abcde"[:count]), tuple(labels)))
        scores.append(own)
        truth.append(first)
        named.append(next((i for i, p in enumerate(own) if p <= 0.5), -1))
    measured = prm.first_error_metrics(rows, scores)
    truth, named = np.array(truth), np.array(named)
    wrong = truth >= 0
    accuracies = [
        sklearn.accuracy_score(truth[part], named[part]) for part in (wrong, ~wrong)
    ]
    f1 = 2 * accuracies[0] * accuracies[1] / sum(accuracies)
    assert measured["wrong"] == wrong.sum() and measured["right"] == (~wrong).sum()
    assert measured["wrong_accuracy"] == pytest.approx(accuracies[0])
    assert measured["right_accuracy"] == pytest.approx(accuracies[1])
    assert measured["f1"] == pytest.approx(f1) and f1 > 0


def test_first_error_f1_is_unknown_without_one_of_the_two_kinds():
    row = StepLabels("x", "p", ("a",), (1.0,))
    assert prm.first_error_metrics([row], [[0.9]])["f1"] is None
