"""Meshes and shardings: one table from logical to mesh axes.

Every parameter names its axes once, in `stepjax.lm.model`; this table says over
which mesh axes they are split. The same code runs on one device and on a pod.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis of a parameter → mesh axis. Names that are not here stay whole.
RULES = (
    ("vocab", "tensor"),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
)

# Batches are split over their rows by all data-parallel axes.
ROWS = ("data", "fsdp")


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """Returns a mesh over all devices.

    Args:
      data: replicas; -1 takes what the other axes leave.
      fsdp: ways that parameters and optimizer state are split, batches too.
      tensor: ways that heads, the feed-forward layer and the vocabulary are split.

    Raises:
      ValueError: when the sizes do not multiply to the number of devices.
    """
    count = jax.device_count()
    if data == -1 and fsdp * tensor > 0 and count % (fsdp * tensor) == 0:
        data = count // (fsdp * tensor)
    if data * fsdp * tensor != count or min(data, fsdp, tensor) < 1:
        raise ValueError(
            f"mesh data={data} x fsdp={fsdp} x tensor={tensor} does not use the "
            f"{count} devices exactly; expected a product of {count}. Set mesh.data=-1."
        )
    devices = np.asarray(jax.devices()).reshape(data, fsdp, tensor)
    return Mesh(devices, MESH_AXES)


def param_shardings(mesh: Mesh, boxed: Any, rules: Sequence = RULES) -> Any:
    """Returns the tree of shardings of a parameter tree with logical axes.

    Args:
      mesh: from `make_mesh`.
      boxed: tree of LogicallyPartitioned shapes (`model.abstract_params`).
      rules: pairs of logical and mesh axis.

    Raises:
      ValueError: when a split axis is not a multiple of its mesh axis.
    """
    table = dict(rules)

    def one(leaf):
        names = leaf.names
        spec = [table.get(name) for name in names]
        for name, axis, size in zip(names, spec, leaf.value.shape, strict=True):
            if axis and size % mesh.shape[axis]:
                raise ValueError(
                    f"parameter axis {name!r} of size {size} does not divide by "
                    f"mesh.{axis}={mesh.shape[axis]}; choose a mesh that divides it."
                )
        return NamedSharding(mesh, PartitionSpec(*spec))

    is_box = lambda x: isinstance(x, nn.LogicallyPartitioned)  # noqa: E731
    return jax.tree.map(one, boxed, is_leaf=is_box)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a value that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def split_rows(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Returns the sharding that splits `axis` over the data-parallel mesh axes."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, ROWS))


def constrain(x: jax.Array, mesh: Mesh | None, *axes) -> jax.Array:
    """Returns x split over mesh axes inside a jitted function; as it is without a mesh.

    Args:
      x: any array.
      mesh: from `make_mesh`, or None.
      *axes: mesh axis, tuple of them, or None for each of the first axes of x.
    """
    if mesh is None:
        return x
    where = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.lax.with_sharding_constraint(x, where)


def row_multiple(mesh: Mesh) -> int:
    """Returns what the number of rows of a batch must be a multiple of."""
    return mesh.shape["data"] * mesh.shape["fsdp"]
