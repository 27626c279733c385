"""Products in bfloat16: the numbers, and that a CPU is asked for its fast kernels."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepjax.lm import products

SHAPES = [(5, 64, 7), (3, 6, 4), (4, 7, 33)]  # blocks of 32, of 2, and none


def arrays(*shapes):
    keys = jax.random.split(jax.random.key(3), len(shapes))
    return [
        jax.random.normal(key, shape, jnp.bfloat16)
        for key, shape in zip(keys, shapes, strict=True)
    ]


def in_float64(x):
    return np.asarray(x, np.float64)


def assert_rounded(actual, exact):
    """The exact numbers, rounded to bfloat16: eight bits of mantissa."""
    assert actual.dtype == jnp.bfloat16
    scale = np.abs(exact).max()
    np.testing.assert_allclose(in_float64(actual), exact, rtol=2**-8, atol=1e-6 * scale)


@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
def test_a_product_and_its_gradients_are_the_exact_ones_rounded_once(m, k, n):
    x, kernel, gradient = arrays((m, k), (k, n), (m, n))
    out, pull = jax.vjp(products.matmul, x, kernel)
    of_x, of_kernel = pull(gradient)
    wide = [in_float64(a) for a in (x, kernel, gradient)]
    assert_rounded(out, wide[0] @ wide[1])
    assert_rounded(of_x, wide[2] @ wide[1].T)
    assert_rounded(of_kernel, wide[0].T @ wide[2])


@pytest.mark.parametrize(("n", "d", "v"), SHAPES)
def test_logits_are_float32_and_their_gradients_the_exact_ones_rounded(n, d, v):
    states, unembedding, gradient = arrays((n, d), (v, d), (n, v))
    out, pull = jax.vjp(products.logits, states, unembedding)
    of_states, of_unembedding = pull(gradient.astype(jnp.float32))
    wide = [in_float64(a) for a in (states, unembedding, gradient)]
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, wide[0] @ wide[1].T, rtol=1e-5, atol=1e-5)
    assert_rounded(of_states, wide[2] @ wide[1])
    assert_rounded(of_unembedding, wide[2].T @ wide[0])


def test_float32_products_are_plain_ones():
    x, kernel = (a.astype(jnp.float32) for a in arrays((5, 64), (64, 7)))
    np.testing.assert_array_equal(products.matmul(x, kernel), x @ kernel)
    np.testing.assert_array_equal(products.logits(x, kernel.T), x @ kernel)


@pytest.mark.parametrize("product", [products.matmul, products.logits])
def test_on_a_cpu_every_product_of_bfloat16_asks_for_float32(product):
    """XLA then multiplies without a conversion, if the first matrix is as it lies."""
    second = (64, 96) if product is products.matmul else (96, 64)
    x, y = arrays((32, 64), second)

    def total(x, y):
        return product(x, y).astype(jnp.float32).sum()

    text = jax.jit(jax.grad(total, (0, 1))).lower(x, y).as_text()
    dots = re.findall(r"dot_general .*contracting_dims = \[(\d)\] x \[\d\].*", text)
    typed = re.findall(r"dot_general .*: \((.*)\) -> (.*)", text)
    assert len(dots) == len(typed) == 2  # the forward product is not needed for a sum
    assert set(dots) == {"1"}
    for operands, result in typed:
        assert operands.count("bf16") == 2
        assert "f32" in result
