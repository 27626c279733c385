"""Meshes and shardings: one table from logical to mesh axes.

Every parameter names its axes once, in `stepjax.lm.model`; this table says over
which mesh axes they are split. The same code runs on one device and on a pod.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.experimental import mesh_utils
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


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence | None = None
) -> Mesh:
    """Returns a mesh over all devices, or over the given ones.

    On TPU the axes are laid along the wires of the slice.

    Args:
      data: replicas; -1 takes what the other axes leave.
      fsdp: ways that parameters, optimizer state and batches are split; or -1.
      tensor: ways that heads, the feed-forward layer and the vocabulary are split.
      devices: what to use; None for every device of every host.

    Raises:
      ValueError: when the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    count, asked = len(devices), f"data={data} x fsdp={fsdp} x tensor={tensor}"
    if data == -1 and fsdp * tensor > 0 and count % (fsdp * tensor) == 0:
        data = count // (fsdp * tensor)
    elif fsdp == -1 and data * tensor > 0 and count % (data * tensor) == 0:
        fsdp = count // (data * tensor)
    if data * fsdp * tensor != count or min(data, fsdp, tensor) < 1:
        raise ValueError(
            f"mesh {asked} does not use the {count} devices exactly; expected a "
            f"product of {count}. Set mesh.data=-1 or mesh.fsdp=-1."
        )
    laid = mesh_utils.create_device_mesh(
        (data, fsdp, tensor), devices, allow_split_physical_axes=True
    )
    return Mesh(laid, MESH_AXES)


def host_mesh(tensor: int = 1) -> Mesh:
    """Returns a mesh over the devices of this host, for sampling: whole replicas.

    Args:
      tensor: ways that heads, the feed-forward layer and the vocabulary are split.

    Raises:
      ValueError: when this host's devices do not divide by it.
    """
    return make_mesh(-1, 1, tensor, devices=jax.local_devices())


def on_this_host(tree: Any, shardings: Any) -> Any:
    """Returns arrays of all hosts as arrays of this host's devices alone.

    All hosts call this together.

    Args:
      tree: arrays on a mesh of all devices.
      shardings: on a `host_mesh`.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    local = jax.tree.leaves(shardings)[0].mesh
    shape = (-1, *local.devices.shape[1:])
    devices = [
        make_mesh(*shape, devices=[d for d in jax.devices() if d.process_index == host])
        for host in range(jax.process_count())
    ]
    every = Mesh(np.concatenate([mesh.devices for mesh in devices]), MESH_AXES)

    def one(x, where):
        x = jax.device_put(x, NamedSharding(every, where.spec))
        parts = [part.data for part in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(x.shape, where, parts)

    return jax.tree.map(one, tree, shardings)


def param_shardings(mesh: Mesh, boxed: Any) -> Any:
    """Returns the tree of shardings of a parameter tree with logical axes.

    Args:
      mesh: from `make_mesh`.
      boxed: tree of LogicallyPartitioned shapes (`model.abstract_params`).

    Raises:
      ValueError: when a split axis is not a multiple of its mesh axis.
    """
    table = dict(RULES)

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


def split_caches(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of key and value caches, [L, slots, K, C, D]."""
    return NamedSharding(mesh, PartitionSpec(None, ROWS, "tensor"))


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


def exchange(x: jax.Array, mesh: Mesh | None, forward, backward) -> jax.Array:
    """Returns x split as `forward` says, and its gradient as `backward` says.

    `constrain` would ask for the same of both, and the partitioner then moves what is
    cheap one way and expensive the other.

    Args:
      x: any array.
      mesh: from `make_mesh`, or None.
      forward: mesh axis, tuple of them, or None for each of the first axes of x.
      backward: likewise, of the gradient.
    """
    if mesh is None:
        return x

    @jax.custom_vjp
    def move(x):
        return constrain(x, mesh, *forward)

    move.defvjp(
        lambda x: (constrain(x, mesh, *forward), None),
        lambda _, gradient: (constrain(gradient, mesh, *backward),),
    )
    return move(x)


def gathered(x: jax.Array, mesh: Mesh | None, *names: str) -> jax.Array:
    """Returns a parameter whole over `fsdp`, for a product with rows split over it.

    Its gradient is summed and split in one exchange.

    Args:
      x: a parameter, already in the compute type (that is what travels).
      mesh: from `make_mesh`, or None.
      *names: its logical axes.
    """
    table = dict(RULES)
    split = tuple(table.get(name) for name in names)
    whole = tuple(None if axis == "fsdp" else axis for axis in split)
    return exchange(x, mesh, whole, split)


def row_multiple(mesh: Mesh) -> int:
    """Returns what the number of rows of a batch must be a multiple of."""
    return mesh.shape["data"] * mesh.shape["fsdp"]
