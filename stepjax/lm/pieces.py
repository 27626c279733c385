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
    def splits(self) -> tuple[NamedSharding, ...]:
        """The shardings of its arrays."""
        if not self.inputs:
            return (self.split,)
        return self.split, int8.scale_sharding(self.split, self.inputs)

    def empty(self) -> Arrays:
        """Returns zeros for the layers to be written into; () if there are none."""
        if not self.stacked:
            return ()
        return jax.jit(zeros, static_argnums=0, out_shardings=self.splits)(self)

    def write(self, into: Arrays, piece: jax.Array, layer: Any) -> tuple[Arrays, Any]:
        """Returns the arrays with a piece in them, inside a jitted function.

        Args:
          into: from `empty`; the caller donates them.
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
        return jax.lax.with_sharding_constraint(tuple(made), self.splits), bad


def zeros(holder: Holder) -> Arrays:
    """Returns the arrays of a parameter, all zero; without shardings."""
    made = (jnp.zeros(holder.shape, jnp.int8 if holder.inputs else holder.dtype),)
    if holder.inputs:
        scales = (holder.shape[0], *holder.shape[1 + holder.inputs :])
        made += (jnp.zeros(scales, jnp.float32),)
    return made


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
        layers = (config.num_layers,) if tensor.stacked else ()
        inputs = int8.inputs(tensor.path) if form == "int8" else 0
        made[tensor.path] = Holder(
            (*layers, *tensor.shape), tensor.stacked, splits[tensor.path], dtype, inputs
        )
    return made


def tree(arrays: dict[str, Arrays]) -> dict:
    """Returns the tree of parameters that were written, as `int8.quantised` does."""
    flat = {}
    for path, parts in arrays.items():
        names = (path, f"{path}{int8.SUFFIX}")
        flat |= zip(names, parts, strict=False)  # most have no scales
    return traverse_util.unflatten_dict(flat, sep="/")
