"""The losses against TRL 1.16 and optax. They need jax, numpy and pytest only.

tests/golden/make_trl_losses.py made TRL's numbers; optax is compared where installed.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepjax.losses import (
    sft_loss,
    step_dpo_loss,
    step_dpo_metrics,
    step_logps,
    step_logps_from_hidden,
)
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

TRL = dict(np.load(Path(__file__).parent / "golden" / "trl_losses.npz"))
NUMBERS = {name: float(x) for name, x in TRL.items() if x.dtype == np.float64}
BETA = {"beta": NUMBERS["beta"]}
SMOOTHED = {**BETA, "label_smoothing": NUMBERS["label_smoothing"]}
SIMPO = {"beta": NUMBERS["simpo_beta"], "gamma": NUMBERS["simpo_gamma"]}
TOKENS, MASK = TRL["tokens"], TRL["step_mask"]
PAIRS = len(TOKENS) // 2


def same(got, expected, rtol=1e-5, atol=1e-6):
    assert np.shape(got) == np.shape(expected)
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=atol)


def plain_logps(hidden, unembedding):
    return step_logps(hidden @ unembedding.T, TOKENS, MASK)


def chunked_logps(hidden, unembedding):
    settings = {"max_scored": 6, "chunk": 5}
    return step_logps_from_hidden(hidden, unembedding, TOKENS, MASK, **settings)


def desensitised_logps(hidden, unembedding):
    """Each step's log-probability, given the mask of the other step of its pair."""
    other = np.roll(MASK, PAIRS, axis=0)
    return length_desensitised_logps(
        hidden @ unembedding.T, TOKENS, MASK, other, alpha=NUMBERS["alpha"]
    )


# Name → our loss of (policy [6], reference [6], lengths [6]), the chosen steps first.
LOSSES = {
    "step_dpo_loss": lambda p, r, n: step_dpo_loss(*p, *r, **BETA),
    "conservative_dpo_loss": lambda p, r, n: conservative_dpo_loss(*p, *r, **SMOOTHED),
    "robust_dpo_loss": lambda p, r, n: robust_dpo_loss(*p, *r, **SMOOTHED),
    "hinge_dpo_loss": lambda p, r, n: hinge_dpo_loss(*p, *r, **BETA),
    "ipo_summed_loss": lambda p, r, n: ipo_summed_loss(*p, *r, **BETA),
    "ipo_averaged_loss": lambda p, r, n: ipo_averaged_loss(*p, *r, *n, **BETA),
    "dpo_nll_loss": lambda p, r, n: dpo_nll_loss(
        *p, *r, n[0], nll_weight=NUMBERS["nll_weight"], **BETA
    ),
    "length_desensitised": lambda p, r, n: step_dpo_loss(*p, *r, **BETA),
    "simpo_loss": lambda p, r, n: simpo_loss(*p, *n, **SIMPO),
    "orpo_loss": lambda p, r, n: orpo_loss(
        *p, *n, odds_ratio_weight=NUMBERS["orpo_weight"]
    ),
}


@pytest.mark.parametrize("logps", [plain_logps, chunked_logps])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_are_those_of_trl(name, logps):
    if name == "length_desensitised":
        logps = desensitised_logps

    @functools.partial(jax.value_and_grad, has_aux=True)
    def mean_loss(unembedding):
        policy = logps(TRL["policy_hidden"], unembedding)
        reference = logps(TRL["reference_hidden"], TRL["reference_unembedding"])
        three = policy, reference, step_lengths(MASK)
        losses = LOSSES[name](*(x.reshape(2, PAIRS) for x in three))
        return losses.mean(), losses

    unembedding = jnp.asarray(TRL["policy_unembedding"])
    (_, losses), gradient = jax.jit(mean_loss)(unembedding)
    assert np.ptp(TRL[name]) > 0.1  # the pairs do differ
    same(losses, TRL[name])
    assert np.abs(TRL[f"{name}_gradient"]).max() > 0.03
    same(gradient, TRL[f"{name}_gradient"], rtol=1e-4, atol=1e-6)


def test_log_probabilities_and_metrics_are_those_of_trl():
    assert str(TRL["trl"]).startswith("1.16.")
    policy = plain_logps(TRL["policy_hidden"], TRL["policy_unembedding"])
    reference = plain_logps(TRL["reference_hidden"], TRL["reference_unembedding"])
    same(policy, TRL["logps"])
    same(policy / step_lengths(MASK), TRL["mean_logps"])
    four = *policy.reshape(2, PAIRS), *reference.reshape(2, PAIRS)
    metrics = step_dpo_metrics(*four, **BETA)
    assert {"rewards/margins", "logps/chosen"} < metrics.keys()
    assert 0 < metrics["rewards/accuracies"] < 1
    for name, value in metrics.items():
        same(value, TRL[name])


# optax.


def test_log_probabilities_are_those_of_optax():
    optax = pytest.importorskip("optax", reason="optax is not installed")
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 6, 11)).astype(np.float32)
    tokens = rng.integers(0, 11, (3, 6))
    mask = rng.integers(0, 2, (3, 6))
    each = optax.losses.softmax_cross_entropy_with_integer_labels(
        logits[:, :-1], tokens[:, 1:]
    )
    same(sft_loss(logits, tokens, mask), (each * mask[:, 1:]).sum(1))


def test_losses_of_margins_are_those_of_optax():
    optax = pytest.importorskip("optax", reason="optax is not installed")
    four = -np.random.default_rng(1).uniform(1, 30, (4, 9)).astype(np.float32)
    margin = 0.2 * ((four[0] - four[2]) - (four[1] - four[3]))
    for got, expected in (
        (
            step_dpo_loss(*four, beta=0.2),
            optax.losses.sigmoid_binary_cross_entropy(margin, np.ones(9)),
        ),
        (
            conservative_dpo_loss(*four, beta=0.2, label_smoothing=0.1),
            optax.losses.sigmoid_binary_cross_entropy(margin, np.full(9, 0.9)),
        ),
        (
            hinge_dpo_loss(*four, beta=0.2),
            optax.losses.hinge_loss(margin, np.ones(9)),
        ),
        (
            ipo_summed_loss(*four, beta=0.2) * 0.2**2,
            optax.losses.squared_error(margin, np.full(9, 0.5)),
        ),
    ):
        assert np.ptp(got) > 0.1
        same(got, expected, rtol=1e-5, atol=1e-5)
