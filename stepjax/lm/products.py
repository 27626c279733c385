"""Matrix products in bfloat16 that take the fast kernels of XLA for CPU.

XLA for CPU multiplies bfloat16 matrices with instructions of their own (AVX512-BF16,
AMX) only if the result is asked for in float32 and the first matrix is not transposed.
Other products convert both matrices to float32 first, which takes two to four times as
long. The gradient of a product has both of these faults, so it is written out here.
Other platforms get the plain product.
"""

import jax
import jax.numpy as jnp

_FAST = jnp.bfloat16


def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns x @ kernel, [M, N] in the type of x, summed in float32.

    Args:
      x: [M, K].
      kernel: [K, N], in the type of x.
    """
    if x.dtype != _FAST:
        return x @ kernel
    return jax.lax.platform_dependent(x, kernel, cpu=_matmul, default=jnp.matmul)


def logits(states: jax.Array, unembedding: jax.Array) -> jax.Array:
    """Returns states @ unembedding.T, [N, V] float32.

    In bfloat16 on a CPU, the gradient of the logits is rounded to bfloat16 before it is
    multiplied, as other platforms do at their default precision.

    Args:
      states: [N, D].
      unembedding: [V, D], in the type of the states.
    """
    if states.dtype != _FAST:
        return _plain_logits(states, unembedding)
    return jax.lax.platform_dependent(
        states, unembedding, cpu=_logits, default=_plain_logits
    )


def _plain_logits(states, unembedding):
    return jnp.matmul(states, unembedding.T, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _matmul(x, kernel):
    return _product(x, kernel).astype(x.dtype)


def _matmul_backward(kept, gradient):
    x, kernel = kept
    of_x = _times_transposed(gradient, kernel)
    of_kernel = _product(_transposed(x), gradient)
    return of_x.astype(x.dtype), of_kernel.astype(kernel.dtype)


_matmul.defvjp(lambda x, kernel: (_matmul(x, kernel), (x, kernel)), _matmul_backward)


@jax.custom_vjp
def _logits(states, unembedding):
    return _times_transposed(states, unembedding)


def _logits_backward(kept, gradient):
    states, unembedding = kept
    gradient = gradient.astype(states.dtype)
    of_states = _product(gradient, unembedding)
    of_unembedding = _product(_transposed(gradient), states)
    return of_states.astype(states.dtype), of_unembedding.astype(states.dtype)


_logits.defvjp(lambda x, matrix: (_logits(x, matrix), (x, matrix)), _logits_backward)


def _product(x, y):
    """Returns x @ y in float32."""
    return jnp.matmul(x, y, preferred_element_type=jnp.float32)


def _times_transposed(x, y):
    """Returns x @ y.T in float32; the transpose is not made."""
    last = (((1,), (1,)), ((), ()))
    return jax.lax.dot_general(x, y, last, preferred_element_type=jnp.float32)


def _transposed(x: jax.Array) -> jax.Array:
    """Returns the transpose of [M, K], an array that no product has to transpose.

    XLA folds a plain transpose into the product, which then converts to float32. It
    does not recognise this transpose, which moves blocks of columns.
    """
    rows, columns = x.shape
    block = next((size for size in (32, 16, 8, 4, 2) if columns % size == 0), 1)
    blocks = x.reshape(rows, columns // block, block).transpose(1, 2, 0)
    return jax.lax.optimization_barrier(blocks.reshape(columns, rows))
