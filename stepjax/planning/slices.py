"""Compiling for TPU slices without a TPU: topologies, chips, memory.

libtpu compiles the very programs that run on a slice and says how much memory they
take there. That proves that a program compiles and fits, not that it is right or
fast. Figures in this project were measured with libtpu 0.0.52; another version may
place memory differently.
"""

import contextlib
import importlib.util
import os
import re
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

GIB = 2**30


class Chip(NamedTuple):
    """One family of chips.

    Attributes:
      flops: peak of bfloat16 products, FLOP/s.
      bandwidth: of HBM, bytes/s.
      memory: HBM that programs may use, bytes.
      counted: how much a Cloud name counts for each chip: 2 on v4 and v5p, whose names
        count cores, else 1.
      grids: topologies that are offered, the smallest first.
    """

    flops: float
    bandwidth: float
    memory: int
    counted: int
    grids: tuple[str, ...]


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")

# Peaks and bandwidths: cloud.google.com/tpu/docs (v4; v6e, also for v5e; v5p). Memory:
# what the compiler of libtpu 0.0.52 says is available.
CHIPS = {
    "v4": Chip(275e12, 1.2e12, int(30.75 * GIB), 2, _CUBES),
    "v5e": Chip(197e12, 0.819e12, int(15.75 * GIB), 1, _FLAT),
    "v5p": Chip(459e12, 2.765e12, int(95.73 * GIB), 2, _CUBES),
    "v6e": Chip(918e12, 1.64e12, int(31.24 * GIB), 1, _FLAT),
}


class Topology(NamedTuple):
    """A slice: family of chips, grid, and number of chips."""

    family: str
    grid: str
    chips: int

    @property
    def cloud(self) -> str:
        """Its name as an accelerator type of Google Cloud."""
        family = "v5litepod" if self.family == "v5e" else self.family
        return f"{family}-{self.chips * CHIPS[self.family].counted}"

    def __str__(self):
        return f"{self.family}:{self.grid}"


def topology(name: str) -> Topology:
    """Reads a grid name ("v5p:2x2x2") or a Cloud name ("v5p-16", "v5litepod-16").

    Raises:
      ValueError: for a name that is neither, or a slice that is not offered.
    """
    family, _, rest = name.replace("v5litepod", "v5e").partition(":")
    cloud = re.fullmatch(r"(v[0-9][a-z]*)-([0-9]+)", name.replace("v5litepod", "v5e"))
    if cloud:
        family, rest = cloud[1], int(cloud[2])
    offered = listed(family)
    for tpu_slice in offered:
        count = tpu_slice.chips * CHIPS[tpu_slice.family].counted
        if rest == (count if cloud else tpu_slice.grid):
            return tpu_slice
    known = ", ".join(f"{t} ({t.cloud})" for t in offered)
    raise ValueError(
        f"--topology={name!r}; expected one of {known or ', '.join(CHIPS)}. Cloud "
        "names of v4 and v5p count two for each chip."
    )


def listed(family: str) -> list[Topology]:
    """Returns the offered slices of a family, the smallest first; [] if unknown."""
    if family not in CHIPS:
        return []
    sizes = [[int(n) for n in grid.split("x")] for grid in CHIPS[family].grids]
    return [
        Topology(family, grid, _product(size))
        for grid, size in zip(CHIPS[family].grids, sizes, strict=True)
    ]


def _product(numbers) -> int:
    total = 1
    for number in numbers:
        total *= number
    return total


def devices(tpu_slice: Topology) -> list:
    """Returns the devices of a slice that need not exist.

    Raises:
      ValueError: without libtpu, or when it does not know the slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "libtpu is not installed; expected it, since it compiles for TPU without a "
            "TPU. Run pip install -e '.[tpu]' in the checkout of stepjax."
        )
    # libtpu wants to be told that it runs on a host of a slice; then it gives the
    # devices of any slice.
    for name, value in {
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing is run, so nothing is locked
    }.items():
        os.environ.setdefault(name, value)
    options = {"chip_config_name": "megacore"} if tpu_slice.family == "v4" else {}
    if tpu_slice.grid == "2x4":  # Google Cloud gives these 8 chips as one host
        options["chips_per_host_bounds"] = (2, 4, 1)
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=str(tpu_slice), **options
        )
    except Exception as error:
        raise ValueError(
            f"libtpu does not give the topology {tpu_slice} ({str(error)[:200]}); "
            "expected one that it knows. Update it, or choose another slice."
        ) from error
    return list(description.devices)


def host_devices(tpu_slice: Topology, every: list) -> list:
    """Returns the devices of one host of a slice, as a slice of their own.

    Args:
      tpu_slice: the slice.
      every: its devices.
    """
    first = every[0].process_index
    size = sum(device.process_index == first for device in every)
    alone = next(t for t in listed(tpu_slice.family) if t.chips == size)
    return every if alone == tpu_slice else devices(alone)


class Fit(NamedTuple):
    """What a program takes of a chip's memory, in bytes.

    Attributes:
      arguments: parameters, optimizer state, caches, batch.
      temporaries: everything else, at the worst moment.
      total: of the program: arguments, temporaries and results, less what results
        take over from donated arguments.
      refused: what the compiler said when the program does not fit at all; "" if it
        fits. Then `arguments` and `temporaries` are 0, and `total` is what it said.
    """

    arguments: int = 0
    temporaries: int = 0
    total: int = 0
    refused: str = ""


@contextlib.contextmanager
def _quick():
    """Compiles with less effort; memory is the same to a percent, time a third."""
    before = jax.config.jax_optimization_level
    jax.config.update("jax_optimization_level", "O1")
    try:
        yield
    finally:
        jax.config.update("jax_optimization_level", before)


def compile_fit(traced: jax.stages.Traced) -> Fit:
    """Compiles a traced program and returns what it takes; OOM is a result.

    Raises:
      jax.errors.JaxRuntimeError: for every other failure of the compiler.
    """
    try:
        with _quick():
            compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        message = str(error)
        if "RESOURCE_EXHAUSTED" not in message or "HBM" not in message.upper():
            raise
        return _refused(message)
    memory = compiled.memory_analysis()
    arguments, temporaries = (
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
    )
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Fit(arguments, temporaries, arguments + temporaries + new)


def _refused(message: str) -> Fit:
    sizes = {"K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
    used = re.search(r"(?:Used|required[^(]*\()\s*([0-9.]+)([KMGT])", message)
    total = int(float(used[1]) * sizes[used[2]]) if used else 0
    return Fit(total=total, refused=message.split("\n")[0])


def spread(tree: Any, shardings: Any, dtype: Any = None) -> Any:
    """Returns shapes with shardings, to trace programs with instead of arrays.

    Args:
      tree: arrays or ShapeDtypeStructs.
      shardings: tree of shardings, or one for all.
      dtype: of the results; None keeps each one's own.
    """
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(
        lambda x, own: jax.ShapeDtypeStruct(x.shape, dtype or x.dtype, sharding=own),
        tree,
        shardings,
    )
