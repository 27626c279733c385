"""Low-rank adapters (LoRA, arXiv 2106.09685): a few trained numbers beside frozen ones.

A product x W of a decoder layer becomes x W + alpha / rank * (x A) B. A and B are
trained, W is not. B starts at zero, so an adapter changes nothing until it is trained.

A model with adapters has one tree of parameters: those of its base, and beside each
adapted matrix, such as "query", its adapter "query_lora" with "a" and "b". The decoder
takes this tree wherever it takes parameters. `split` and `join` take it apart and put
it together without a copy, so that many adapters share one base.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util

from stepjax.lm import products, sharding

# The matrices of a decoder layer that can have an adapter.
LAYERS = ("query", "key", "value", "out", "gate", "up", "down")
SUFFIX = "_lora"


@dataclasses.dataclass(frozen=True)
class Options:
    """Which matrices have adapters, and how large the adapters are.

    Attributes:
      rank: columns of A, rows of B.
      alpha: an adapter's product is multiplied by alpha / rank.
      layers: names of the adapted matrices, from `LAYERS`.
    """

    rank: int
    alpha: float
    layers: tuple[str, ...] = LAYERS

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(
                f"rank={self.rank}; expected at least 1. For a model without adapters, "
                "use None in place of these options."
            )
        if not self.layers or set(self.layers) - set(LAYERS):
            raise ValueError(
                f"layers={self.layers}; expected some of {LAYERS}, at least one."
            )

    @property
    def scale(self) -> float:
        """What the product (x A) B is multiplied by."""
        return self.alpha / self.rank


def largest_rank(config: Any, layers: Sequence[str] = LAYERS) -> int:
    """Returns the largest rank that a product A B of adapters can have.

    It is the smallest side of the adapted matrices: A and B of a larger rank have more
    numbers than they need.

    Args:
      config: `ModelConfig` of the decoder.
      layers: names of the adapted matrices, from `LAYERS`.
    """
    queries = config.num_heads * config.head_dim
    keys = config.num_kv_heads * config.head_dim
    sides = {"query": queries, "key": keys, "value": keys, "out": queries}
    inner = config.intermediate_size
    return min(config.hidden_size, *(sides.get(name, inner) for name in layers))


def check_rank(config: Any) -> None:
    """Raises ValueError when the adapters of a decoder have too large a rank.

    Args:
      config: `ModelConfig` of the decoder; without adapters nothing is wrong.
    """
    options = config.adapters
    if options is None or options.rank <= largest_rank(config, options.layers):
        return
    raise ValueError(
        f"lora.rank={options.rank}; expected at most "
        f"{largest_rank(config, options.layers)}, the smallest side of the matrices of "
        f"this model that lora.layers={options.layers} names. Lower lora.rank."
    )


class Adapter(nn.Module):
    """The adapter of one matrix.

    Attributes:
      options: of all adapters.
      shape: of the adapted parameter; its first axes are the inputs of the product.
      axes: logical axes of the adapted parameter, which A and B share.
      mesh: see `model.Decoder`.
    """

    options: Options
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    mesh: jax.sharding.Mesh | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns what is added to the product of x, [N, K] → [N, M]."""
        inputs, rank = x.shape[-1], self.options.rank
        sizes = [math.prod(self.shape[:n]) for n in range(len(self.shape))]
        count = sizes.index(inputs)  # of the axes that the product sums over
        # Between -1 / sqrt(K) and 1 / sqrt(K).
        uniform = nn.initializers.variance_scaling(
            1 / 3, "fan_in", "uniform", in_axis=tuple(range(count))
        )
        inner, outer = self.shape[:count], self.shape[count:]
        a = self._matrix("a", uniform, (*inner, rank), (*self.axes[:count], "rank"))
        zeros, axes = nn.initializers.zeros, ("rank", *self.axes[count:])
        b = self._matrix("b", zeros, (rank, *outer), axes)
        a, b = (matrix.astype(x.dtype) for matrix in (a, b))
        small = products.matmul(x, a.reshape(inputs, rank)) * self.options.scale
        return products.matmul(small, b.reshape(rank, -1))

    def _matrix(self, name, init, shape, axes):
        """Returns A or B, gathered for a product with split rows."""
        array = self.param(name, nn.with_logical_partitioning(init, axes), shape)
        return sharding.gathered(array, self.mesh, *axes)


def split(params: Any) -> tuple[dict, dict]:
    """Returns (what training leaves as it is, what training changes).

    With adapters these are the base and the adapters, else nothing and everything.

    Args:
      params: of a decoder, a nested dict of anything.
    """
    flat = traverse_util.flatten_dict(params)
    adapters = {path: x for path, x in flat.items() if _is_adapter(path)}
    if not adapters:
        return {}, params
    base = {path: x for path, x in flat.items() if not _is_adapter(path)}
    return traverse_util.unflatten_dict(base), traverse_util.unflatten_dict(adapters)


def _is_adapter(path: tuple[str, ...]) -> bool:
    return any(name.endswith(SUFFIX) for name in path)


def join(fixed: Any, trained: Any) -> dict:
    """Returns the parameters that `split` has taken apart; no array is copied."""
    flat = traverse_util.flatten_dict(fixed) | traverse_util.flatten_dict(trained)
    return traverse_util.unflatten_dict(flat)


def counts(params: Any) -> tuple[int, int]:
    """Returns how many numbers training leaves as they are, and how many it changes.

    Args:
      params: of a decoder, arrays or shapes.
    """
    fixed, trained = (
        sum(math.prod(x.shape) for x in jax.tree.leaves(part)) for part in split(params)
    )
    return fixed, trained


def behind(loss: Callable) -> Callable:
    """Returns a loss of what training changes, from a loss of all parameters.

    The gradient and the optimizer then exist for what training changes only, and the
    reference shares what it does not change.

    Args:
      loss: ``loss(params, reference, batch)``, see `train.make_update`.

    Returns:
      ``loss(trained, (fixed, reference), batch)``. `fixed` and `trained` are the two
      parts from `split`. `reference` is what training changes of the reference model,
      or None without a reference model.
    """

    def of_trained(trained, given, batch):
        fixed, reference = given
        whole = None if reference is None else join(fixed, reference)
        return loss(join(fixed, trained), whole, batch)

    return of_trained


def merged(params: Any, options: Options) -> dict:
    """Returns plain parameters, in which each adapter is added to its matrix.

    Args:
      params: of a decoder with adapters, float32.
      options: of the adapters.
    """
    flat = traverse_util.flatten_dict(params)
    del params  # an old matrix can then be freed as soon as the new one is there
    for path in [path for path in flat if path[-1] == "b" and _is_adapter(path)]:
        a, b = flat.pop((*path[:-1], "a")), flat.pop(path)
        matrix = (*path[:-2], path[-2].removesuffix(SUFFIX))
        flat[matrix] = _added(flat[matrix], a, b, options.scale)
    return traverse_util.unflatten_dict(flat)


@functools.partial(jax.jit, static_argnames="scale")
def _added(matrix, a, b, scale: float):
    """Returns W + scale A B of all layers; the first axis is the layer."""
    layers, rank = len(matrix), a.shape[-1]
    flat = a.reshape(layers, -1, rank), b.reshape(layers, rank, -1)
    product = jnp.einsum("lkr,lrm->lkm", *flat, precision="highest")
    return matrix + scale * product.reshape(matrix.shape)


def check_finite(params: Any, origin: Any, remedy: str) -> None:
    """Raises ValueError when an adapter holds numbers that are not finite.

    Args:
      params: of a decoder; what is no adapter is not looked at.
      origin: where they come from, for people.
      remedy: a sentence that says what to do.
    """
    for path, array in traverse_util.flatten_dict(params).items():
        if _is_adapter(path) and not bool(jnp.isfinite(array).all()):
            raise ValueError(
                f"{origin}: some of the {array.size} numbers of {'/'.join(path)} are "
                f"NaN or infinite; expected finite numbers only. {remedy}"
            )
