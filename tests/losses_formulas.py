"""What several files of the losses' tests compare with; jax is not needed."""

import math

import numpy as np


def same(got, expected, rtol=1e-5, atol=1e-5):
    """Asserts equal shapes and nearly equal numbers."""
    assert np.shape(got) == np.shape(expected)
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=atol)


def token_logp(logits, token):
    """Log-softmax at one position, with math."""
    logits = [float(x) for x in logits]
    top = max(logits)
    return logits[token] - top - math.log(sum(math.exp(x - top) for x in logits))


def finite_difference(function, x, eps=1e-4):
    """Central differences of a scalar function, in float64."""
    x = np.asarray(x, np.float64)
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        step = np.zeros_like(x)
        step[index] = eps
        gradient[index] = (function(x + step) - function(x - step)) / (2 * eps)
    return gradient
