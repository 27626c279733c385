"""Tests of stepjax.losses. They need jax, numpy and pytest, nothing else.

The forms from hidden states are tested in test_losses_hidden.py.
"""

import ast
import doctest
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses_formulas import finite_difference, same, token_logp

from stepjax import losses
from stepjax.losses import (
    sft_loss,
    step_dpo,
    step_dpo_loss,
    step_dpo_metrics,
    step_logps,
)

BATCH, LENGTH, VOCAB, WIDTH = 3, 7, 11, 5
LENGTHS = (7, 5, 4)  # without padding
STEPS = ((4, 7), (3, 5), (3, 4))  # where the step of each row starts and ends
WEIGHTS = np.array([1.0, -2.0, 0.5], np.float32)  # a different one for each row


def make_rows(seed=0):
    """Random logits, tokens, the mask of the step, and which positions score it."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(BATCH, LENGTH, VOCAB)).astype(np.float32)
    tokens = rng.integers(0, VOCAB, size=(BATCH, LENGTH)).astype(np.int32)
    mask = np.array([[a <= t < b for t in range(LENGTH)] for a, b in STEPS])
    return logits, tokens, mask, np.roll(mask, -1, axis=1)


def make_four(seed=0):
    """Log-probabilities of four pairs: policy and reference, chosen and rejected."""
    rng = np.random.default_rng(seed)
    return [-rng.uniform(1, 30, size=4).astype(np.float32) for _ in range(4)]


def formula_step_logps(logits, tokens, mask):
    """The formula of step_logps, with math."""
    return np.array(
        [
            sum(token_logp(x[t - 1], ids[t]) for t in range(1, len(ids)) if keep[t])
            for x, ids, keep in zip(logits, tokens, mask, strict=True)
        ]
    )


def formula_loss(chosen, rejected, ref_chosen, ref_rejected, beta=0.1, smoothing=0.0):
    """The formula of step_dpo_loss for one pair, with math."""
    a, b = beta * (chosen - ref_chosen), beta * (rejected - ref_rejected)
    log_sigmoid_there = -math.log1p(math.exp(-(a - b)))
    log_sigmoid_back = -math.log1p(math.exp(-(b - a)))
    return -(1 - smoothing) * log_sigmoid_there - smoothing * log_sigmoid_back


# step_logps and sft_loss.


@pytest.mark.parametrize("dtype", [bool, np.int32, np.float32])
def test_step_logps_and_sft_loss_are_the_formula(dtype):
    logits, tokens, mask, _ = make_rows()
    expected = formula_step_logps(logits, tokens, mask)
    for got in (
        step_logps(logits, tokens, mask.astype(dtype)),
        -sft_loss(logits, tokens, mask.astype(dtype)),
        jax.jit(step_logps)(logits, tokens, mask.astype(dtype)),
    ):
        assert got.dtype == jnp.float32
        same(got, expected)
    assert np.ptp(expected) > 1  # the rows do differ


def test_position_zero_is_ignored_and_an_empty_row_is_zero():
    logits, tokens, mask, _ = make_rows()
    mask[1] = False
    expected = step_logps(logits, tokens, mask)
    mask[:, 0] = True
    got = step_logps(logits, tokens, mask)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(got == 0, [False, True, False])
    same(step_logps(logits[:, :1], tokens[:, :1], mask[:, :1]), np.zeros(BATCH))


def test_mask_equals_truncation():
    logits, tokens, mask, _ = make_rows()
    whole = step_logps(logits, tokens, mask)
    for row, length in enumerate(LENGTHS):
        cut = (slice(row, row + 1), slice(0, length))
        same(step_logps(logits[cut], tokens[cut], mask[cut])[0], whole[row], 1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_logits_under_the_mask_do_no_harm(bad):
    logits, tokens, mask, scores = make_rows()

    @jax.jit
    @jax.value_and_grad
    def total(logits, tokens):
        return (
            step_logps(logits, tokens, mask).sum() - sft_loss(logits, tokens, mask)[0]
        )

    value, gradient = total(logits, tokens)
    dirty = np.where(scores[..., None], logits, bad), np.where(mask, tokens, -100)
    dirty_value, dirty_gradient = total(*dirty)
    assert math.isfinite(value)
    assert float(dirty_value) == float(value)
    np.testing.assert_array_equal(dirty_gradient, gradient)


@pytest.mark.parametrize("bad", [-1, -100, VOCAB])
def test_scored_token_outside_the_vocabulary_is_nan_in_its_row_only(bad):
    logits, tokens, mask, _ = make_rows()
    tokens[1, STEPS[1][0]] = bad
    got = np.isnan(step_logps(logits, tokens, mask))
    np.testing.assert_array_equal(got, [False, True, False])


def test_gradient_is_the_finite_difference_and_zero_on_the_context():
    logits, tokens, mask, scores = make_rows()
    got = jax.jit(jax.grad(lambda x: step_logps(x, tokens, mask) @ WEIGHTS))(logits)
    same(
        got,
        finite_difference(
            lambda x: formula_step_logps(x, tokens, mask) @ WEIGHTS, logits
        ),
    )
    weight = np.abs(got).sum(-1)
    assert np.all(weight[~scores] == 0.0)  # exactly, not nearly
    assert np.all(weight[scores] > 0.1)


def test_bfloat16_and_large_logits_are_scored_in_float32():
    logits, tokens, mask, _ = make_rows()
    half = jnp.asarray(logits, jnp.bfloat16)
    got = step_logps(half, tokens, mask)
    assert got.dtype == jnp.float32
    # A log-softmax in bfloat16 would be off by about 1e-2.
    same(got, formula_step_logps(np.asarray(half, np.float64), tokens, mask))
    assert jax.grad(lambda x: sft_loss(x, tokens, mask).sum())(half).dtype == half.dtype
    large = np.round(64 * logits)
    same(step_logps(large + 1e5, tokens, mask), step_logps(large, tokens, mask))


# step_dpo_loss and step_dpo_metrics.


@pytest.mark.parametrize("settings", [(), (0.5,), (0.05, 0.2)])
def test_step_dpo_loss_is_the_formula(settings):
    four = make_four()
    names = dict(zip(("beta", "label_smoothing"), settings, strict=False))
    expected = [
        formula_loss(*map(float, x), *settings) for x in zip(*four, strict=True)
    ]
    got = step_dpo_loss(*four, **names)
    assert got.dtype == jnp.float32
    same(got, expected)
    traced = jax.jit(lambda names: step_dpo_loss(*four, **names))(names)
    same(traced, expected)
    same(jax.vmap(lambda *x: step_dpo_loss(*x, **names))(*four), expected)


def test_policy_equal_to_reference_gives_ln_2():
    chosen, rejected, *_ = make_four()
    same(step_dpo_loss(chosen, rejected, chosen, rejected), [math.log(2)] * 4, 1e-6, 0)
    metrics = step_dpo_metrics(chosen, rejected, chosen, rejected)
    assert float(metrics["rewards/margins"]) == 0.0
    assert float(metrics["rewards/accuracies"]) == 0.0  # a tie is not right


def test_swapping_chosen_and_rejected_flips_the_margin():
    chosen, rejected, ref_chosen, ref_rejected = there = make_four()
    back = (rejected, chosen, ref_rejected, ref_chosen)
    margin = float(step_dpo_metrics(*there)["rewards/margins"])
    assert abs(margin) > 0.1
    assert float(step_dpo_metrics(*back)["rewards/margins"]) == pytest.approx(-margin)
    # -log sigmoid(-m) = -log sigmoid(m) + m, pair by pair
    margins = 0.1 * ((chosen - ref_chosen) - (rejected - ref_rejected))
    same(step_dpo_loss(*back), step_dpo_loss(*there) + margins)


def test_extreme_margins_stay_finite():
    zero = np.zeros(2, np.float32)
    loss = jax.value_and_grad(
        lambda x: step_dpo_loss(x, zero, zero, zero, beta=1.0).sum()
    )
    value, gradient = loss(np.array([1e4, -1e4], np.float32))
    assert float(value) == 1e4  # 0 for the pair that is right, 1e4 for the other
    np.testing.assert_array_equal(gradient, [0.0, -1.0])


def test_gradient_is_the_finite_difference_and_zero_to_the_reference():
    four = np.stack(make_four(5))
    got = jax.grad(lambda x: step_dpo_loss(*x, beta=0.3, label_smoothing=0.2).sum())(
        four
    )
    expected = finite_difference(
        lambda x: sum(formula_loss(*pair, 0.3, 0.2) for pair in x.T), four
    )
    same(got[:2], expected[:2])
    np.testing.assert_array_equal(got[2:], np.zeros((2, 4)))
    assert np.abs(expected[2:]).max() > 0.01  # it would not be zero by itself


def test_step_dpo_metrics_are_the_means():
    four = [x.tolist() for x in make_four(2)]
    a = [0.3 * (x - y) for x, y in zip(four[0], four[2], strict=True)]
    b = [0.3 * (x - y) for x, y in zip(four[1], four[3], strict=True)]
    expected = {
        "rewards/chosen": sum(a) / 4,
        "rewards/rejected": sum(b) / 4,
        "rewards/margins": (sum(a) - sum(b)) / 4,
        "rewards/accuracies": sum(x > y for x, y in zip(a, b, strict=True)) / 4,
        "logps/chosen": sum(four[0]) / 4,
        "logps/rejected": sum(four[1]) / 4,
    }
    assert 0 < expected["rewards/accuracies"] < 1  # else it would prove little
    got = jax.jit(lambda *x: step_dpo_metrics(*x, beta=0.3))(*map(np.array, four))
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        same(got[name], value)


def test_bfloat16_logps_are_compared_in_float32():
    four = [jnp.asarray(x, jnp.bfloat16) for x in make_four()]
    got, metrics = step_dpo_loss(*four), step_dpo_metrics(*four)
    assert {got.dtype, *(x.dtype for x in metrics.values())} == {jnp.dtype("float32")}
    np.testing.assert_array_equal(
        got, step_dpo_loss(*[x.astype(jnp.float32) for x in four])
    )


# step_dpo.


def bigram(params, tokens):
    """A causal model: logits of the next token."""
    return params["embed"][tokens] @ params["out"]


def make_pairs():
    """Policy, reference and a batch whose rejected rows are shorter."""
    _, tokens, mask, _ = make_rows()
    names = ("chosen_tokens", "chosen_mask", "rejected_tokens", "rejected_mask")
    batch = (tokens, mask, (tokens + 3 * mask)[:, :6] % VOCAB, mask[:, :6])
    rng = np.random.default_rng(1)
    shapes = {"embed": (VOCAB, WIDTH), "out": (WIDTH, VOCAB)}
    policy, reference = (
        {name: jnp.float32(rng.normal(size=shape)) for name, shape in shapes.items()}
        for _ in range(2)
    )
    return policy, reference, dict(zip(names, batch, strict=True))


def formula_four(policy, reference, batch):
    """The four log-probabilities of each pair, with math."""
    return [
        formula_step_logps(
            np.asarray(params["embed"])[tokens] @ np.asarray(params["out"]),
            tokens,
            mask,
        )
        for params in (policy, reference)
        for tokens, mask in (
            (batch["chosen_tokens"], batch["chosen_mask"]),
            (batch["rejected_tokens"], batch["rejected_mask"]),
        )
    ]


def test_step_dpo_is_the_mean_of_the_formula():
    policy, reference, batch = make_pairs()
    four = formula_four(policy, reference, batch)
    expected = np.mean([formula_loss(*x, 0.2, 0.25) for x in zip(*four, strict=True)])
    settings = {"beta": 0.2, "label_smoothing": 0.25}
    loss, metrics = step_dpo(bigram, policy, reference, batch, **settings)
    same(loss, expected)
    same(metrics["rewards/chosen"], np.mean(0.2 * (four[0] - four[2])))
    same(metrics["logps/rejected"], np.mean(four[1]))
    stored = {"reference_chosen_logps": four[2], "reference_rejected_logps": four[3]}
    same(step_dpo(bigram, policy, None, {**batch, **stored}, **settings)[0], expected)
    with pytest.raises(ValueError, match="reference_rejected_logps.*Add the rest"):
        step_dpo(bigram, policy, None, batch)
    del batch["chosen_mask"]
    with pytest.raises(ValueError, match="chosen_mask.*Add the rest"):
        step_dpo(bigram, policy, reference, batch)


def test_step_dpo_trains_the_policy_only():
    policy, reference, batch = make_pairs()
    gradient_fn = jax.jit(jax.grad(step_dpo, (1, 2), has_aux=True), static_argnums=0)
    (to_policy, to_reference), _ = gradient_fn(bigram, policy, reference, batch)
    for leaf in jax.tree.leaves(to_reference):
        np.testing.assert_array_equal(leaf, np.zeros_like(leaf))

    def mean_loss(out):
        four = formula_four({**policy, "out": out}, reference, batch)
        return np.mean([formula_loss(*pair) for pair in zip(*four, strict=True)])

    expected = finite_difference(mean_loss, policy["out"])
    assert np.abs(expected).max() > 1e-2
    same(to_policy["out"], expected)


def test_vmap_gives_the_rows_of_a_larger_batch():
    parts = [make_rows(seed)[:3] for seed in (0, 1)]
    got = jax.vmap(step_logps)(*map(np.stack, zip(*parts, strict=True)))
    same(got, [formula_step_logps(*part) for part in parts])


# Errors and the file itself.


@pytest.mark.parametrize("function", [step_logps, sft_loss])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, t, m: (x[0], t, m), r"logits has shape \(7, 11\)"),
        (lambda x, t, m: (x[:1], t, m), r"tokens has shape \(3, 7\).*\(1, 7\)"),
        (lambda x, t, m: (x, t[:1], m), r"tokens has shape \(1, 7\).*\(3, 7\)"),
        (lambda x, t, m: (x, t[..., None], m), r"tokens has shape \(3, 7, 1\)"),
        (lambda x, t, m: (x, t, m[:, :1]), r"mask has shape \(3, 1\)"),
        (lambda x, t, m: (x, t, m[0]), r"mask has shape \(7,\)"),
        (lambda x, t, m: (x, m.astype(float), m), "tokens is float"),
    ],
)
def test_row_shapes_are_never_broadcast(function, change, message):
    with pytest.raises(ValueError, match=message):
        function(*change(*make_rows()[:3]))


@pytest.mark.parametrize("function", [step_dpo_loss, step_dpo_metrics])
@pytest.mark.parametrize("which", [(0,), (1,), (2,), (3,), (0, 2), (1, 3)])
@pytest.mark.parametrize("shape", [(1,), (), (4, 1), (5,)])
def test_pair_shapes_are_never_broadcast(function, which, shape):
    four = make_four()
    for index in which:
        four[index] = np.zeros(shape, np.float32)
    with pytest.raises(ValueError, match="logps has shape"):
        function(*four)


@pytest.mark.parametrize("bad", [-0.1, math.nan, 0, 0.5])
def test_numbers_out_of_range(bad):
    if bad != 0.5:
        for function in (step_dpo_loss, step_dpo_metrics):
            with pytest.raises(ValueError, match="beta is .* expected above 0"):
                function(*make_four(), beta=bad)
    if bad != 0:
        with pytest.raises(ValueError, match="label_smoothing is .* below 0.5"):
            step_dpo_loss(*make_four(), label_smoothing=bad)


def test_every_public_function_has_an_example_that_is_right():
    public = {name for name in vars(losses) if name[0] != "_"} - {"jax", "jnp"}
    tests = doctest.DocTestFinder().find(losses, "losses")
    assert {test.name for test in tests if test.examples} == {
        f"losses.{name}" for name in public
    }
    result = doctest.testmod(losses)
    assert (result.failed, len(public)) == (0, 7)


def test_losses_imports_jax_and_nothing_else():
    tree = ast.parse(Path(losses.__file__).read_text(encoding="utf-8"))
    lines = [ast.unparse(x) for x in ast.walk(tree) if "Import" in type(x).__name__]
    assert lines == ["import jax", "import jax.numpy as jnp"]
