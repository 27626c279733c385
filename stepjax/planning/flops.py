"""Matrix-product FLOPs of a traced program, exact and without a compiler.

XLA's own cost analysis counts the body of a loop once, which for a decoder with
scanned layers is off by the number of layers; here a scan counts as often as it runs.
"""

import math
from typing import NamedTuple

import jax
from jax.extend import core


class Flops(NamedTuple):
    """FLOPs of one device: a product of [m, k] and [k, n] has 2 m k n.

    Attributes:
      products: of matrix products that XLA compiles.
      kernels: of products inside Pallas kernels, as if no block were skipped.
    """

    products: float = 0.0
    kernels: float = 0.0

    def __add__(self, other):
        return Flops(self.products + other.products, self.kernels + other.kernels)

    def __mul__(self, count: float):
        return Flops(self.products * count, self.kernels * count)


def count(traced: jax.stages.Traced, devices: int, trips: float = 1) -> Flops:
    """Returns the FLOPs of one device.

    What is outside of a `shard_map` is taken to be split evenly. For a condition, the
    branch with the most FLOPs counts.

    Args:
      traced: from ``jax.jit(function).trace(...)``.
      devices: number of devices that the program runs on.
      trips: how often to count a loop whose length depends on data.
    """
    return _count(traced.jaxpr.jaxpr, 1 / devices, trips)


def _count(jaxpr: core.Jaxpr, share: float, trips: float) -> Flops:
    total = Flops()
    for equation in _needed(jaxpr):
        name, params = equation.primitive.name, equation.params
        inner = [_jaxpr(x) for x in jax.tree.leaves(params, is_leaf=_is_jaxpr)]
        inner = [x for x in inner if x is not None]
        if name == "dot_general":
            total += Flops(_product(equation) * share)
        elif name == "pallas_call":
            grid = math.prod(params["grid_mapping"].grid)
            (kernel,) = inner
            total += Flops(0.0, _count(kernel, share, trips).products * grid)
        elif name == "scan":
            total += _sum(inner, share, trips) * params["length"]
        elif name == "while":
            total += _sum(inner, share, trips) * trips
        elif name == "cond":
            branches = [_count(branch, share, trips) for branch in inner]
            total += max(branches, key=sum)
        elif name == "shard_map":
            total += _sum(inner, 1.0, trips)  # shapes are those of one device
        else:
            total += _sum(inner, share, trips)
    return total


def _needed(jaxpr: core.Jaxpr) -> list:
    """Returns the equations whose results are used; the compiler drops all else."""
    used = {id(x) for x in jaxpr.outvars}
    needed = []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or any(id(x) in used for x in equation.outvars):
            used.update(id(x) for x in equation.invars)
            needed.append(equation)
    return needed


def _sum(jaxprs, share, trips):
    return sum((_count(jaxpr, share, trips) for jaxpr in jaxprs), Flops())


def _is_jaxpr(x) -> bool:
    return isinstance(x, core.Jaxpr | core.ClosedJaxpr)


def _jaxpr(x):
    if isinstance(x, core.ClosedJaxpr):
        return x.jaxpr
    return x if isinstance(x, core.Jaxpr) else None


def _product(equation) -> float:
    (over, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    out = math.prod(equation.outvars[0].aval.shape)
    return 2.0 * out * math.prod(left[axis] for axis in over)
