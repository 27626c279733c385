"""Weights of 8 bits, for sampling and judging: half of the bytes of bfloat16.

A matrix W of a decoder layer becomes integers Q from -127 to 127 and a float32 scale s
for each of its outputs: W is about Q s. The scale is the largest |W| of that output
divided by 127, so no number is off by more than s / 2. A product x W is computed as
(x Q) s: Q is converted to the type of x inside the product and is never stored in it.

In the tree of parameters, "query" then holds the integers, and "query_scale" beside it
holds the scales. Everything else stays in the compute type: the embedding and the
unembedding, norms, biases and adapters. Nothing is trained in this form.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec

from stepjax.lm import lora

SUFFIX = "_scale"
_MOST = 127
# Matrix of a layer → how many of its first axes the product sums over.
_INPUTS = dict.fromkeys(lora.LAYERS, 1) | {"out": 2}


def quantised(params: Any, frozen: Callable[[Any], Any]) -> dict:
    """Returns parameters whose matrices are integers with scales.

    Args:
      params: of a decoder; the first axis of the arrays under "layers" is the layer.
      frozen: returns the parameters that stay as they are, in the compute type.
    """
    flat = traverse_util.flatten_dict(params)
    made = {}
    for path in filter(_is_matrix, list(flat)):
        made[path], made[_scale(path)] = rounded(flat.pop(path), _INPUTS[path[-1]])
    rest = frozen(traverse_util.unflatten_dict(flat))
    return lora.join(rest, traverse_util.unflatten_dict(made))


def shardings(splits: Any) -> dict:
    """Returns the shardings of `quantised` parameters.

    Args:
      splits: of the parameters, from `sharding.param_shardings`.
    """
    flat = traverse_util.flatten_dict(splits)
    for path in filter(_is_matrix, list(flat)):
        flat[_scale(path)] = scale_sharding(flat[path], _INPUTS[path[-1]])
    return traverse_util.unflatten_dict(flat)


def scale_sharding(split: NamedSharding, inputs: int) -> NamedSharding:
    """Returns the sharding of the scales of a matrix [L, *inputs, *outputs].

    Args:
      split: of the matrix.
      inputs: how many axes its product sums over.
    """
    layer, *axes = split.spec
    return NamedSharding(split.mesh, PartitionSpec(layer, *axes[inputs:]))


def inputs(path: str) -> int:
    """Returns how many axes the product of a matrix sums over; 0 for no matrix.

    Args:
      path: of a parameter, such as "layers/query".
    """
    return _INPUTS.get(path.rpartition("/")[2], 0)


def _is_matrix(path: tuple[str, ...]) -> bool:
    return path[-1] in _INPUTS


def _scale(path: tuple[str, ...]) -> tuple[str, ...]:
    return (*path[:-1], f"{path[-1]}{SUFFIX}")


@functools.partial(jax.jit, static_argnames="inputs")
def rounded(matrix: jax.Array, inputs: int) -> tuple[jax.Array, jax.Array]:
    """Returns (integers, scales) of a matrix [L, *inputs, *outputs].

    Args:
      matrix: of any floating type.
      inputs: how many axes its product sums over.

    Returns:
      (int8 of its shape, float32 [L, *outputs]).
    """
    matrix = matrix.astype(jnp.float32)
    summed = tuple(range(1, 1 + inputs))
    scale = jnp.abs(matrix).max(summed, keepdims=True) / _MOST
    scale = jnp.where(scale == 0, 1, scale)  # an output without weights
    integers = jnp.round(matrix / scale).astype(jnp.int8)
    return integers, scale.squeeze(summed)
