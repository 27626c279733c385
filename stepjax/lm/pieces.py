"""How parameters lie on the devices, and how they get there piece by piece.

A piece is one layer of an array under "layers", or an array outside of the layers. It
comes to the devices as it was stored, is cast or rounded to int8 there, and is written
into an array that has its final type and shardings. Whoever reads a model so has the
stored type of one piece on the devices at a time, not that of all parameters.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec

from stepjax.lm import int8
from stepjax.lm.model_config import ModelConfig
from stepjax.lm.parameter_tensors import parameter_tensors

Arrays = tuple[jax.Array, ...]  # the parameter, or its integers and their scales


class Holder(NamedTuple):
    """How a parameter lies on the devices.

    Attributes:
      shape: of the parameter; the first axis of a stacked one is the layer.
      stacked: whether it holds one tensor per layer.
      split: its sharding.
      dtype: its type, if it is not rounded to int8.
      inputs: 0, or for a matrix that is rounded to int8, how many axes of a layer its
        product sums over.
    """

    shape: tuple[int, ...]
    stacked: bool
    split: NamedSharding
    dtype: str
    inputs: int = 0

    @property
    def piece_split(self) -> NamedSharding:
        """The sharding of a piece."""
        if not self.stacked:
            return self.split
        return NamedSharding(self.split.mesh, PartitionSpec(*self.split.spec[1:]))

    @property
    def parts(self) -> tuple[tuple[tuple[int, ...], NamedSharding, str], ...]:
        """Shape, sharding and type of each of its arrays."""
        if not self.inputs:
            return ((self.shape, self.split, self.dtype),)
        scales = (self.shape[0], *self.shape[1 + self.inputs :])
        split = int8.scale_sharding(self.split, self.inputs)
        return (self.shape, self.split, "int8"), (scales, split, "float32")

    @property
    def targets(self) -> tuple[tuple[tuple[int, ...], NamedSharding, str], ...]:
        """Those of `parts` that layers are written into; () if there are no layers."""
        return self.parts if self.stacked else ()

    def write(self, into: Arrays, piece: jax.Array, layer: Any) -> tuple[Arrays, Any]:
        """Returns the arrays with a piece in them, inside a jitted function.

        Args:
          into: an `empty` array for each of `targets`; the caller donates them.
          piece: one layer of a stacked parameter, or the parameter.
          layer: which one; None without layers.

        Returns:
          (arrays, how many numbers of the piece are not finite).
        """
        if self.inputs:
            made = [x[0] for x in int8.rounded(piece[None], self.inputs)]
        else:
            piece = piece.astype(self.dtype)
            made = [piece]
        whole = NamedSharding(self.split.mesh, PartitionSpec())  # on every host
        bad = jax.lax.with_sharding_constraint(jnp.sum(~jnp.isfinite(piece)), whole)
        if self.stacked:
            made = [a.at[layer].set(x) for a, x in zip(into, made, strict=True)]
        splits = tuple(split for _, split, _ in self.parts)
        return jax.lax.with_sharding_constraint(tuple(made), splits), bad


def empty(shape: tuple[int, ...], split: NamedSharding, dtype: str) -> jax.Array:
    """Returns zeros on the devices, for layers to be written into."""
    return jax.jit(jnp.zeros, static_argnums=(0, 1), out_shardings=split)(shape, dtype)


def holders(
    config: ModelConfig, shardings: Any, dtype: str, form: str = "full"
) -> dict[str, Holder]:
    """Returns path → how the parameter lies on the devices, in a fixed order.

    Args:
      config: of the decoder; without adapters.
      shardings: of its parameters, from `sharding.param_shardings`.
      dtype: of the parameters.
      form: "full", or "int8" for matrices that are rounded, see `int8`.
    """
    splits = traverse_util.flatten_dict(shardings, sep="/")
    made = {}
    for tensor in parameter_tensors(config):
        shape, split = tensor.leading(config) + tensor.shape, splits[tensor.path]
        inputs = int8.inputs(tensor.path) if form == "int8" else 0
        made[tensor.path] = Holder(shape, tensor.stacked, split, dtype, inputs)
    return made


def tree(arrays: dict[str, Arrays]) -> dict:
    """Returns the tree of parameters that were written, as `int8.quantised` does."""
    flat = {}
    for path, parts in arrays.items():
        names = (path, f"{path}{int8.SUFFIX}")
        flat |= zip(names, parts, strict=False)  # most have no scales
    return traverse_util.unflatten_dict(flat, sep="/")
