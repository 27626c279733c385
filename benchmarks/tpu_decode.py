"""HBM traffic of one decoding turn on TPU slices, from the scheduled program.

    python benchmarks/tpu_decode.py

8 problems with 1792 context tokens, 6 candidates each, steps of 256 tokens. The program
is the one that `stepjax search` runs (`stepjax.lm.generate.sample`), compiled by libtpu
and never run. Bytes are those that its schedule moves between HBM and the chip, see
`hlo.py`. The ideal reads every weight but the embedding once, every problem's context
once, and half of the candidates' own caches; the schedule reads all of the latter.
The last column checks the reader of schedules: matrix products that it finds in a turn,
over those of the traced program. The largest instructions are printed below each row.
"""

import importlib.metadata
import pathlib
import runpy
import sys

import hlo

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
TRIES = 3  # passes of a draw that are counted; on average it takes two
CASES = [  # model, slice, tensor, bar
    ("7b", "v5e:2x4", 4, 1.05),
    ("7b", "v5p:2x2x1", 4, 1.15),
    ("72b", "v5p:2x2x2", 8, None),
]


def compile_one(model: str, where: str, tensor: int) -> None:
    """Compiles a case in a process of its own and prints memory and the ideal."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    from stepjax import programs
    from stepjax.lm import aot, flops, sharding
    from stepjax.lm import model as lm

    config = runpy.run_path(str(CONFIGS / f"qwen2_5_math_{model}.py"))["get_config"]()
    shape = programs.model_config(config)
    devices = aot.devices(aot.topology(where))
    mesh = sharding.make_mesh(-1, 1, tensor, devices=devices)
    sampling = programs.Sampling(lm.Decoder(shape, mesh), 8)
    contexts = sampling.contexts(1792)
    program = sampling.sample("decode", contexts, (6, 1), 1, 256, 0)
    compiled = program.traced.lower().compile()  # at the level that runs use
    memory = compiled.memory_analysis()
    total = (
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    )
    one, none = (flops.count(program.traced, mesh.size, turns=n) for n in (1, 0))
    print(program.moved, total, one.products - none.products)


def main():
    """Prints a row for each case."""
    print(f"libtpu {importlib.metadata.version('libtpu')}")
    names = "model, slice, tensor, GiB/chip, GB a turn, ideal, ratio, bar, FLOPs/traced"
    print("|", " | ".join(names.split(", ")), "|")
    print("|---" * len(names.split(", ")) + "|")
    for model, where, tensor, bar in CASES:
        case = (__file__, model, where, str(tensor))
        printed, module, _ = hlo.dumped("sample", *case)
        ideal, total, traced = map(float, printed.split()[-3:])
        open_ = [loop for loop in hlo.loops(module) if hlo.trips(module, loop) is None]
        # Over tokens, until all candidates have stopped; the others repeat draws.
        (loop,) = [x for x in open_ if hlo.products(module, hlo.body(x))]
        parts: dict[str, int] = {}
        moved = hlo.traffic(module, hlo.body(loop), parts, TRIES)
        cells = [model, where, tensor, f"{total / 2**30:.2f}", f"{moved / 1e9:.3f}"]
        found = hlo.products(module, hlo.body(loop))
        cells += [f"{ideal / 1e9:.3f}", f"{moved / ideal:.3f}", bar or "-"]
        cells.append(f"{found / traced:.4f}")
        print("|", " | ".join(map(str, cells)), "|")
        for name, size in sorted(parts.items(), key=lambda item: -item[1])[:8]:
            print(f"    {size / 1e6:9.1f} MB  {name}", file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        compile_one(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    else:
        main()
