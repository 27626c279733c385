"""The two ends of the decoder on a mesh: looking tokens up, and scoring tokens.

The embedding and the unembedding are the decoder's largest matrices, [V, E] each. They
are split over `tensor` by rows and over `fsdp` by columns, while forest rows are split
over `data` and `fsdp`. Neither matrix is ever whole on a device, nor is its gradient. A
look-up exchanges the states that it takes from the table. Scoring exchanges the states
of scored tokens: each device then computes the logits of its own part of the
vocabulary, which is split over `tensor` and, here, over `fsdp`.

Axis names: R rows, T tokens, S scored tokens of a row, E width of the hidden states,
V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from stepjax import losses
from stepjax.lm import products, sharding

_LOGITS = 2**26  # most logits on a device at once: 256 MiB of float32
_MATRIX = PartitionSpec("tensor", "fsdp")
_SPLIT = PartitionSpec(sharding.ROWS)


def embed(table: jax.Array, tokens: jax.Array, dtype: str, mesh: Mesh | None):
    """Returns the rows of a table that tokens name, [R, T, E].

    Args:
      table: [V, E] float32 parameter.
      tokens: [R, T] int32.
      dtype: type of the result.
      mesh: what table and tokens are split over; None on one device.
    """
    if mesh is None or mesh.size == 1:
        return table[tokens].astype(dtype)

    def local(table, tokens):
        tokens = jax.lax.all_gather(tokens, "fsdp", axis=0, tiled=True)
        index = tokens - jax.lax.axis_index("tensor") * table.shape[0]
        mine = (index >= 0) & (index < table.shape[0])
        states = jnp.where(mine[..., None], table[jnp.where(mine, index, 0)], 0)
        # Exactly one shard of `tensor` holds each row, so the sum copies it.
        states = jax.lax.psum(states.astype(dtype), "tensor")
        return jax.lax.all_to_all(states, "fsdp", 0, 2, tiled=True)

    split = jax.shard_map(
        local, mesh=mesh, in_specs=(_MATRIX, _SPLIT), out_specs=_SPLIT
    )
    return split(table, tokens)


def token_logps(
    hidden: jax.Array, unembedding: jax.Array, targets: jax.Array, mesh: Mesh | None
) -> jax.Array:
    """Returns log softmax(unembedding @ hidden)[target] of every token.

    The numbers are those of `stepjax.losses.token_logps_from_hidden`: products in the
    type of the states, sums in float32. Logits are computed one chunk of tokens at a
    time, and once more in the backward pass.

    Args:
      hidden: [R, S, E], the states that predict the targets.
      unembedding: [V, E] float32 parameter.
      targets: [R, S] int32.
      mesh: what rows and vocabulary are split over; None on one device.

    Returns:
      [R, S] float32.
    """
    if mesh is None or mesh.size == 1:
        flat = losses.token_logps_from_hidden(
            hidden.reshape(-1, hidden.shape[-1]),
            unembedding.astype(hidden.dtype),
            targets.reshape(-1),
            product=products.logits,
        )
        return flat.reshape(targets.shape)
    split = jax.shard_map(
        _local_logps, mesh=mesh, in_specs=(_SPLIT, _MATRIX, _SPLIT), out_specs=_SPLIT
    )
    return split(hidden, unembedding, targets)


def _local_logps(hidden, matrix, targets):
    """Scores this device's tokens; hidden [r, S, E], matrix [V / tensor, E / fsdp]."""
    dtype, width, columns = hidden.dtype, hidden.shape[-1], matrix.shape[0]
    ways, mine = jax.lax.axis_size("fsdp"), jax.lax.axis_index("fsdp")
    matrix = jnp.pad(matrix.astype(dtype), ((0, -columns % ways), (0, 0)))
    matrix = jax.lax.all_to_all(matrix, "fsdp", 0, 1, tiled=True)
    # The matrix is float32 outside the loop, so that its gradient is summed over chunks
    # in float32, and only once over `data`.
    matrix = jax.lax.pcast(matrix.astype(jnp.float32), "data", to="varying")
    column = mine * matrix.shape[0] + jnp.arange(matrix.shape[0])
    real = column < columns
    token_id = jax.lax.axis_index("tensor") * columns + column
    token_id = jnp.where(real, token_id, -1)

    @functools.partial(jax.checkpoint, prevent_cse=False)  # inside a loop
    def of_chunk(inputs):
        states, ids = (
            jax.lax.all_gather(x, "fsdp", axis=0, tiled=True) for x in inputs
        )
        logits = jnp.matmul(
            states, matrix.astype(dtype).T, preferred_element_type=jnp.float32
        )
        logits = jnp.where(real, logits, -jnp.inf)
        top = jax.lax.stop_gradient(logits).max(-1)
        top = jax.lax.pmax(top, ("tensor", "fsdp"))
        picked = jnp.where(token_id == ids[:, None], logits, 0).sum(-1)
        total = jnp.exp(logits - top[:, None]).sum(-1)
        sums = jax.lax.psum(jnp.stack([picked, total]), "tensor")
        picked, total = jax.lax.psum_scatter(
            sums, "fsdp", scatter_dimension=1, tiled=True
        )
        top = jax.lax.dynamic_slice_in_dim(top, mine * len(picked), len(picked))
        return picked - top - jnp.log(total)

    count = targets.size
    chunk = min(max(1, _LOGITS // columns), count)
    chunk = -(-count // -(-count // chunk))  # as few chunks, of one size
    padding = -count % chunk
    states = jnp.pad(hidden.reshape(-1, width), ((0, padding), (0, 0)))
    ids = jnp.pad(targets.reshape(-1), (0, padding))
    chunks = states.reshape(-1, chunk, width), ids.reshape(-1, chunk)
    logps = jax.lax.map(of_chunk, chunks)
    return logps.reshape(-1)[:count].reshape(targets.shape)
