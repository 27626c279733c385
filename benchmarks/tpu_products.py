"""FLOPs of the step-DPO update: TPU schedules compared with traced programs.

    python benchmarks/tpu_products.py

Prints FLOPs of the schedule divided by those of the traced program. A ratio of 1 means
two things: no two chips compute the same product, and `stepjax.planning.flops`, which
`stepjax plan` uses, counts right. The programs are those of `tpu_memory.py`, except
that products are not interleaved with the exchanges that feed them: HLO does not say
how often a loop of that kind runs.
"""

import importlib.metadata
import sys

import hlo

CASES = [  # model, slice, tensor, reference
    ("7b", "v5p:2x2x2", 1, "live"),
    ("7b", "v5p:2x2x2", 1, "precomputed"),
    ("7b", "v5e:4x4", 2, "live"),
    ("72b", "v5p:4x4x8", 4, "live"),
    ("72b", "v5e:16x16", 8, "live"),
]
PLAIN = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}


def compile_one(model: str, name: str, tensor: int, reference: str) -> None:
    """Compiles a case in a process of its own and prints the traced FLOPs."""
    import jax
    import tpu_memory

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_optimization_level", "O1")
    from stepjax.planning import flops, programs, slices

    tpu_slice = slices.topology(name)
    config = tpu_memory.settings(model, tensor, reference, 1)
    program = next(programs.programs(config, slices.devices(tpu_slice), ("dpo",)))
    program.traced.lower().compile(compiler_options=PLAIN)
    print(flops.count(program.traced, tpu_slice.chips).products)


def main():
    """Prints a row for each case."""
    print(f"libtpu {importlib.metadata.version('libtpu')}")
    print("| model | slice | tensor | reference | PFLOP/chip | schedule/traced |")
    print("|---|---|---|---|---|---|")
    for case in CASES:
        arguments = (__file__, *map(str, case))
        printed, module, entry = hlo.dumped("update", *arguments)
        traced = float(printed.split()[-1])
        cells = [*case, f"{traced / 1e15:.4f}"]
        cells.append(f"{hlo.products(module, entry) / traced:.4f}")
        print("|", " | ".join(map(str, cells)), "|", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        compile_one(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        main()
