"""Meshes and shardings: one table from logical to mesh axes.

Every parameter names its axes once, in `stepjax.lm.model`; the table `RULES` says over
which mesh axis each is split. The same code runs on one device and on a pod.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis of a parameter → mesh axis. An axis without a rule is not split.
RULES = (
    ("vocab", "tensor"),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
)

# The rows of a batch are split over both of these axes.
ROWS = ("data", "fsdp")


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence | None = None
) -> Mesh:
    """Returns a mesh over all devices, or over the given ones.

    On TPU the mesh axes follow the connections between the chips.

    Args:
      data: number of replicas; -1 for all devices divided by the other two sizes.
      fsdp: number of parts of parameters, optimizer state and batches; or -1.
      tensor: number of parts of heads, feed-forward layer and vocabulary.
      devices: the devices to use; None for every device of every host.

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
    # `jax.make_mesh` gives the same order, but except on v5e it refuses two mesh axes
    # on one physical axis: 18 of the 28 meshes of v5p:4x4x4, 9 of the 15 of v6e:4x4.
    ordered = mesh_utils.create_device_mesh(
        (data, fsdp, tensor), devices, allow_split_physical_axes=True
    )
    return Mesh(ordered, MESH_AXES)


def host_mesh(tensor: int = 1) -> Mesh:
    """Returns a mesh over the devices of this host, for sampling: fsdp is 1.

    Args:
      tensor: number of parts of heads, feed-forward layer and vocabulary.

    Raises:
      ValueError: when the number of this host's devices does not divide by it.
    """
    return make_mesh(-1, 1, tensor, devices=jax.local_devices())


def on_this_host(tree: Any, shardings: Any) -> Any:
    """Copies arrays that are split over all hosts to the devices of this host.

    All hosts call this together.

    Args:
      tree: arrays on a mesh of all devices.
      shardings: tree of the copies' shardings, on a `host_mesh`.
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

    def one(x, sharding):
        x = jax.device_put(x, NamedSharding(every, sharding.spec))
        parts = [part.data for part in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(x.shape, sharding, parts)

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
                    f"mesh.{axis}={mesh.shape[axis]}; expected a multiple of it. "
                    "Choose a mesh that divides the size."
                )
        return NamedSharding(mesh, PartitionSpec(*spec))

    def is_box(x):
        return isinstance(x, nn.LogicallyPartitioned)

    return jax.tree.map(one, boxed, is_leaf=is_box)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a value that is whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_rows(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Returns the sharding that splits `axis` over the data-parallel mesh axes."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, ROWS))


def split_caches(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of key and value caches, [L, slots, K, C, D]."""
    return NamedSharding(mesh, PartitionSpec(None, ROWS, "tensor"))


def constrain(x: jax.Array, mesh: Mesh | None, *axes) -> jax.Array:
    """Asks XLA to split x, inside a jitted function; without a mesh returns x itself.

    Args:
      x: any array.
      mesh: from `make_mesh`, or None.
      *axes: for each of the first axes of x a mesh axis, a tuple of them, or None.
    """
    if mesh is None:
        return x
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.lax.with_sharding_constraint(x, sharding)


def exchange(x: jax.Array, mesh: Mesh | None, forward, backward) -> jax.Array:
    """Asks XLA to split x as `forward` says, and its gradient as `backward` says.

    A plain `constrain` gives value and gradient one sharding. A gather forward needs a
    reduce-scatter backward, so here both are named.

    Args:
      x: any array.
      mesh: from `make_mesh`, or None.
      forward: for each of the first axes of x a mesh axis, a tuple of them, or None.
      backward: the same for the gradient.
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
    """Gathers the parts of a parameter over `fsdp`, for a product with split rows.

    Backward, its gradient is summed and split in one exchange (reduce-scatter).

    Args:
      x: a parameter, already in the compute type, so that fewer bytes are exchanged.
      mesh: from `make_mesh`, or None.
      *names: its logical axes.
    """
    table = dict(RULES)
    split = tuple(table.get(name) for name in names)
    whole = tuple(None if axis == "fsdp" else axis for axis in split)
    return exchange(x, mesh, whole, split)


def spread(x: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Splits states of forest rows by rows and, over `tensor`, by tokens.

    The residual stream is split like this because the backward pass keeps it for every
    layer. Products split over `tensor` gather their inputs (`whole`) and scatter
    their sums. That moves as many bytes as summing them on every device would (sequence
    parallelism, arXiv 2205.05198).
    """
    return exchange(x, mesh, _stream(x, mesh), (ROWS,))


def whole(x: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Splits states of forest rows by rows only; the reverse of `spread`."""
    return exchange(x, mesh, (ROWS,), _stream(x, mesh))


def _stream(x, mesh):
    """Returns the mesh axes of the residual stream [B, T, E]: of rows, then of tokens.

    Tokens stay whole where their number is not a multiple of the axis `tensor`.
    """
    divides = mesh is not None and x.shape[1] % mesh.shape["tensor"] == 0
    return (ROWS, "tensor") if divides else (ROWS,)


def row_multiple(mesh: Mesh) -> int:
    """Returns the number that the rows of a batch must be a multiple of."""
    return mesh.shape["data"] * mesh.shape["fsdp"]
