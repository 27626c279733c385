"""Tests of the variants of the loss. They need jax, numpy and pytest, nothing else."""

import ast
import doctest
import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stepjax
from stepjax import preference_losses, reference_free_losses
from stepjax.losses import step_dpo_loss, step_logps
from stepjax.preference_losses import (
    conservative_dpo_loss,
    dpo_nll_loss,
    hinge_dpo_loss,
    ipo_averaged_loss,
    ipo_summed_loss,
    length_desensitised_logps,
    robust_dpo_loss,
    step_lengths,
)
from stepjax.reference_free_losses import orpo_loss, simpo_loss

MODULES = (preference_losses, reference_free_losses)


def make_four(seed=0):
    """Log-probabilities of five pairs: policy and reference, chosen and rejected."""
    return list(-np.random.default_rng(seed).uniform(1, 9, (4, 5)).astype(np.float32))


LENGTHS = (np.array([4, 2, 7, 1, 3]), np.array([2, 5, 7, 4, 1]))


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


def odds(mean):
    return mean - math.log1p(-math.exp(mean))


# Loss → (which of the inputs it takes, its settings, the formula for one pair, with
# a, b the policy's log-probabilities, c, d the reference's and m, n the lengths).
CASES = {
    conservative_dpo_loss: (
        "abcd",
        {"beta": 0.3, "label_smoothing": 0.2},
        lambda a, b, c, d, m, n: (
            -0.8 * log_sigmoid(0.3 * (a - c - b + d))
            - 0.2 * log_sigmoid(-0.3 * (a - c - b + d))
        ),
    ),
    robust_dpo_loss: (
        "abcd",
        {"beta": 0.3, "label_smoothing": 0.2},
        lambda a, b, c, d, m, n: (
            (
                -0.8 * log_sigmoid(0.3 * (a - c - b + d))
                + 0.2 * log_sigmoid(-0.3 * (a - c - b + d))
            )
            / 0.6
        ),
    ),
    hinge_dpo_loss: (
        "abcd",
        {"beta": 0.3},
        lambda a, b, c, d, m, n: max(0, 1 - 0.3 * (a - c - b + d)),
    ),
    ipo_summed_loss: (
        "abcd",
        {"beta": 0.3},
        lambda a, b, c, d, m, n: (a - c - b + d - 1 / 0.6) ** 2,
    ),
    ipo_averaged_loss: (
        "abcdmn",
        {"beta": 0.3},
        lambda a, b, c, d, m, n: ((a - c) / m - (b - d) / n - 1 / 0.6) ** 2,
    ),
    dpo_nll_loss: (
        "abcdm",
        {"beta": 0.3, "nll_weight": 0.7},
        lambda a, b, c, d, m, n: -log_sigmoid(0.3 * (a - c - b + d)) - 0.7 * a / m,
    ),
    simpo_loss: (
        "abmn",
        {"beta": 1.5, "gamma": 0.4},
        lambda a, b, c, d, m, n: -log_sigmoid(1.5 * (a / m - b / n) - 0.4),
    ),
    orpo_loss: (
        "abmn",
        {"odds_ratio_weight": 0.3},
        lambda a, b, c, d, m, n: -a / m - 0.3 * log_sigmoid(odds(a / m) - odds(b / n)),
    ),
}
EVERY = pytest.mark.parametrize("loss", CASES, ids=lambda loss: loss.__name__)


def inputs(loss, seed=0):
    named = dict(zip("abcdmn", (*make_four(seed), *LENGTHS), strict=True))
    return [named[name] for name in CASES[loss][0]]


def formula(loss, *six):
    return np.array([CASES[loss][2](*map(float, x)) for x in zip(*six, strict=True)])


def same(got, expected, rtol=1e-5, atol=1e-5):
    assert np.shape(got) == np.shape(expected)
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=atol)


@EVERY
def test_a_loss_is_its_formula_in_every_way_to_call_it(loss):
    settings = CASES[loss][1]
    expected = formula(loss, *make_four(), *LENGTHS)
    got = loss(*inputs(loss), **settings)
    assert got.dtype == jnp.float32
    assert np.ptp(expected) > 0.1
    same(got, expected)
    same(jax.vmap(functools.partial(loss, **settings))(*inputs(loss)), expected)
    traced = jax.jit(lambda settings: loss(*inputs(loss), **settings))(settings)
    same(traced, expected)


@EVERY
def test_a_gradient_is_the_finite_difference_and_zero_to_the_reference(loss):
    four = np.asarray(make_four(), np.float64)

    def total(four):
        named = dict(zip("abcdmn", (*four, *LENGTHS), strict=True))
        given = [named[name] for name in CASES[loss][0]]
        return loss(*given, **CASES[loss][1]).sum()

    got = jax.jit(jax.grad(total))(jnp.asarray(four, jnp.float32))
    expected = np.zeros_like(four)
    for index in np.ndindex(2, 5):
        step = np.zeros_like(four)
        step[index] = 1e-4
        up, down = (formula(loss, *(four + s), *LENGTHS) for s in (step, -step))
        expected[index] = (up - down).sum() / 2e-4
    assert np.abs(expected[:2]).max() > 0.05
    same(got, expected, rtol=1e-4, atol=1e-5)  # the reference's rows are exactly 0:
    np.testing.assert_array_equal(got[2:], 0)


@EVERY
def test_bfloat16_is_compared_in_float32(loss):
    half = [jnp.asarray(x, jnp.bfloat16) for x in inputs(loss)]
    got = loss(*half, **CASES[loss][1])
    assert got.dtype == jnp.float32
    singles = [x.astype(jnp.float32) for x in half]
    np.testing.assert_array_equal(got, loss(*singles, **CASES[loss][1]))


@EVERY
@pytest.mark.parametrize("shape", [(1,), (), (5, 1), (4,)])
def test_shapes_are_never_broadcast(loss, shape):
    for index in range(len(inputs(loss))):
        changed = inputs(loss)
        changed[index] = np.ones(shape, np.float32)
        with pytest.raises(ValueError, match="shapes .* Nothing is broadcast"):
            loss(*changed, **CASES[loss][1])


@EVERY
def test_numbers_out_of_range(loss):
    wrong = {
        "beta": (0, -1.0, math.nan),
        "label_smoothing": (-0.1, 0.5, math.nan),
        "nll_weight": (-1, math.nan),
        "gamma": (-0.5, math.nan),
        "odds_ratio_weight": (-1, math.nan),
    }
    for name in CASES[loss][1]:
        for value in wrong[name]:
            with pytest.raises(ValueError, match=f"{name} is {value}; expected"):
                loss(*inputs(loss), **{**CASES[loss][1], name: value})


@EVERY
def test_extreme_log_probabilities_and_empty_steps_stay_finite(loss):
    def total(*x):
        return loss(*x, **CASES[loss][1]).sum()

    zero, far = np.zeros(5, np.float32), np.full(5, -1e4, np.float32)
    for a, b in ((zero, zero), (zero, far), (far, zero), (far, far)):
        named = dict(zip("abcdmn", (a, b, zero, zero, zero, zero), strict=True))
        given = [named[name] for name in CASES[loss][0]]
        value, gradient = jax.value_and_grad(total, argnums=(0, 1))(*given)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


def test_variants_that_are_the_plain_loss_at_one_setting():
    four, plain = make_four(), step_dpo_loss(*make_four(), beta=0.3)
    for loss in (conservative_dpo_loss, robust_dpo_loss):
        same(loss(*four, beta=0.3, label_smoothing=0.0), plain)
    same(dpo_nll_loss(*four, LENGTHS[0], beta=0.3, nll_weight=0), plain)
    smooth = {"beta": 0.3, "label_smoothing": 0.2}
    same(conservative_dpo_loss(*four, **smooth), step_dpo_loss(*four, **smooth))
    ones = np.ones(5)
    same(ipo_averaged_loss(*four, ones, ones), ipo_summed_loss(*four))


def test_robust_loss_of_flipped_preferences_is_that_of_clean_ones():
    a, b, c, d = make_four()
    setting = {"beta": 0.3, "label_smoothing": 0.2}
    there, back = (
        robust_dpo_loss(*four, **setting) for four in ((a, b, c, d), (b, a, d, c))
    )
    same(0.8 * there + 0.2 * back, step_dpo_loss(a, b, c, d, beta=0.3))


# Lengths.


def make_rows():
    """Logits, tokens and masks of four pairs; masks have holes and differing widths."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(4, 9, 7)).astype(np.float32)
    tokens = rng.integers(0, 7, (4, 9))
    mask = np.array([[0, 0, 1, 1, 0, 1, 1, 0, 0], [1] * 9, [0] * 9, [0] * 4 + [1] * 5])
    other = np.array([[0, 1, 1, 0], [0, 1, 0, 1], [1, 1, 1, 1], [1, 0, 0, 0]])
    return logits, tokens, mask, other


def test_step_lengths_counts_what_step_logps_scores():
    *_, mask, other = make_rows()
    assert step_lengths(mask).tolist() == [4, 8, 0, 5]
    assert step_lengths(other).tolist() == [2, 2, 3, 0]
    assert step_lengths(other != 0).dtype == jnp.float32


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_length_desensitised_logps_is_the_formula(alpha):
    logits, tokens, mask, other = make_rows()
    expected = []
    for row, shared in zip(range(4), (2, 2, 3, 0), strict=True):
        scored = [t for t in range(1, 9) if mask[row, t]]
        each = []
        for t in scored:
            x = logits[row, t - 1].astype(np.float64)
            each.append(x[tokens[row, t]] - math.log(np.exp(x).sum()))
        expected.append(sum(each[:shared]) + alpha * sum(each[shared:]))
    function = jax.jit(functools.partial(length_desensitised_logps, alpha=alpha))
    got = function(logits, tokens, mask, other)
    assert got.dtype == jnp.float32
    same(got, expected)
    if alpha == 1:
        same(got, step_logps(logits, tokens, mask))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nonfinite_logits_under_the_mask_do_no_harm(bad):
    logits, tokens, mask, other = make_rows()
    scores = np.roll(mask, -1, axis=1).astype(bool)
    scores[:, -1] = False

    @jax.value_and_grad
    def total(logits, tokens):
        given = logits, tokens, mask, other
        return length_desensitised_logps(*given, alpha=0.4).sum()

    value, gradient = total(logits, tokens)
    dirty = np.where(scores[..., None], logits, bad), np.where(mask, tokens, -100)
    dirty_value, dirty_gradient = total(*dirty)
    assert float(dirty_value) == float(value) and math.isfinite(value)
    np.testing.assert_array_equal(dirty_gradient, gradient)


def test_wrong_masks_and_alphas():
    logits, tokens, mask, other = make_rows()
    with pytest.raises(ValueError, match="masks have 4 and 3 rows"):
        length_desensitised_logps(logits, tokens, mask, other[:3], alpha=0.4)
    with pytest.raises(ValueError, match=r"mask has shape \(9,\)"):
        length_desensitised_logps(logits, tokens, mask[0], other, alpha=0.4)
    with pytest.raises(ValueError, match=r"mask has shape \(4, 9, 1\)"):
        step_lengths(mask[..., None])
    for alpha in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=f"alpha is {alpha}; expected 0 to 1"):
            length_desensitised_logps(logits, tokens, mask, other, alpha=alpha)


# The files themselves.


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_public_function_has_an_example_that_is_right(module):
    loaded = {"jax", "jnp", "step_logps"}
    public = {name for name in vars(module) if name[0] != "_"} - loaded
    assert public <= set(stepjax.__all__)
    tests = doctest.DocTestFinder().find(module, "module")
    assert {test.name for test in tests if test.examples} == {
        f"module.{name}" for name in public
    }
    assert doctest.testmod(module).failed == 0


def test_the_files_import_jax_and_losses_and_nothing_else():
    lines = {
        ast.unparse(node)
        for module in MODULES
        for node in ast.walk(ast.parse(Path(module.__file__).read_text("utf-8")))
        if "Import" in type(node).__name__
    }
    assert lines == {
        "import jax",
        "import jax.numpy as jnp",
        "from stepjax.losses import step_logps",
    }
