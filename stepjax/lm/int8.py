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
        made[path], made[_scale(path)] = _rounded(flat.pop(path), _INPUTS[path[-1]])
    rest = frozen(traverse_util.unflatten_dict(flat))
    return lora.join(rest, traverse_util.unflatten_dict(made))


def shardings(splits: Any) -> dict:
    """Returns the shardings of `quantised` parameters.

    Args:
      splits: of the parameters, from `sharding.param_shardings`.
    """
    flat = traverse_util.flatten_dict(splits)
    for path in filter(_is_matrix, list(flat)):
        layer, *axes = flat[path].spec
        spec = PartitionSpec(layer, *axes[_INPUTS[path[-1]] :])
        flat[_scale(path)] = NamedSharding(flat[path].mesh, spec)
    return traverse_util.unflatten_dict(flat)


def _is_matrix(path: tuple[str, ...]) -> bool:
    return path[-1] in _INPUTS


def _scale(path: tuple[str, ...]) -> tuple[str, ...]:
    return (*path[:-1], f"{path[-1]}{SUFFIX}")


@functools.partial(jax.jit, static_argnames="inputs")
def _rounded(matrix, inputs: int):
    """Returns (integers, scales) of a matrix [L, *inputs, *outputs]."""
    matrix = matrix.astype(jnp.float32)
    summed = tuple(range(1, 1 + inputs))
    scale = jnp.abs(matrix).max(summed, keepdims=True) / _MOST
    scale = jnp.where(scale == 0, 1, scale)  # an output without weights
    integers = jnp.round(matrix / scale).astype(jnp.int8)
    return integers, scale.squeeze(summed)
