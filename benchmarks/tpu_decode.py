"""HBM traffic of decoding turns on TPU slices, from the scheduled program.

    python benchmarks/tpu_decode.py

8 problems with 1792 context tokens. Candidates: 6 for each, of 256 tokens. Judgments:
30 for each, of 512 tokens, behind two steps of 256 tokens and a few words; 5 of them
share the first of the two. The program is the one that `stepjax search` runs
(`stepjax.lm.generate.sample`), compiled by libtpu and never run. Bytes are those that
its schedule moves between HBM and the chip, see `hlo.py`: of all turns, over their
number, since later ones read longer suffixes. The ideal reads every weight but the
embedding once, every context and every shared step once, and half of the rows' new
tokens. The last column checks the reader of schedules: matrix products that it finds in
a turn, over those of the traced program. Each row's largest instructions of a last turn
go to the standard error.
"""

import importlib.metadata
import pathlib
import runpy
import sys

import hlo

from stepjax.lm import generate

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
TRIES = 3  # passes of a draw that are counted; on average it takes two
KINDS = {  # (rows, of one first step), tokens fed, new tokens
    "candidates": ((6, 1), 1, 256),
    "judgments": ((30, 5), 576, 512),
}
CASES = [  # rows, model, slice, tensor, bar
    ("candidates", "7b", "v5e:2x4", 4, 1.05),
    ("candidates", "7b", "v5p:2x2x1", 4, 1.15),
    ("candidates", "72b", "v5p:2x2x2", 8, None),
    ("judgments", "7b", "v5e:2x4", 4, None),
    ("judgments", "7b", "v5p:2x2x1", 4, None),
]


def compile_one(kind: str, model: str, where: str, tensor: int) -> None:
    """Compiles a case in a process of its own and prints memory and the ideal."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    from stepjax.lm import model as lm
    from stepjax.lm import sharding
    from stepjax.planning import plan, programs, slices
    from stepjax.settings import from_config

    config = runpy.run_path(str(CONFIGS / f"qwen2_5_math_{model}.py"))["get_config"]()
    shape = programs.model_config(from_config(config))
    devices = slices.devices(slices.topology(where))
    mesh = sharding.make_mesh(-1, 1, tensor, devices=devices)
    sampling = programs.Sampling(lm.Decoder(shape, mesh), 8)
    contexts = sampling.contexts(1792)
    layout, fed, new = KINDS[kind]
    program = sampling.sample("decode", contexts, layout, fed=fed, new=new, beside=0)
    compiled = program.traced.lower().compile()  # at the level that runs use
    memory = compiled.memory_analysis()
    total = (
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    )
    print(program.moved, total, plan.counted(program).products)


def main():
    """Prints a row for each case."""
    print(f"libtpu {importlib.metadata.version('libtpu')}")
    names = "rows, model, slice, tensor, GiB/chip, GB a turn, ideal, ratio, bar"
    names += ", FLOPs/traced"
    print("|", " | ".join(names.split(", ")), "|")
    print("|---" * len(names.split(", ")) + "|")
    for kind, model, where, tensor, bar in CASES:
        case = (__file__, kind, model, where, str(tensor))
        printed, module, _ = hlo.dumped("sample", *case)
        ideal, total, traced = map(float, printed.split()[-3:])
        moved, found, parts = turns(module, KINDS[kind][-1])
        cells = [kind, model, where, tensor, f"{total / 2**30:.2f}"]
        cells += [f"{moved / 1e9:.3f}", f"{ideal / 1e9:.3f}", f"{moved / ideal:.3f}"]
        cells += [bar or "-", f"{found / traced:.4f}"]
        print("|", " | ".join(map(str, cells)), "|", flush=True)
        for name, size in sorted(parts.items(), key=lambda item: -item[1])[:8]:
            print(f"    {size / 1e6:9.1f} MB  {name}", file=sys.stderr)


def turns(module, new: int) -> tuple[float, float, dict[str, int]]:
    """Returns bytes and products of a turn in the mean, and the parts of the last."""
    open_ = [loop for loop in hlo.loops(module) if hlo.trips(module, loop) is None]
    # Over tokens, until all rows have stopped; the others repeat draws.
    bodies = [hlo.body(x) for x in open_ if hlo.products(module, hlo.body(x))]
    ends = generate.reaches(new)
    found, moved, parts = [], [], {}
    for body in bodies:
        own: dict[str, int] = {}
        moved.append(hlo.traffic(module, body, own, TRIES))
        found.append(hlo.products(module, body))
        if moved[-1] == max(moved):
            parts = own
    assert len(bodies) == len(ends), (len(bodies), ends)
    counts = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    mean = sum(n * m for n, m in zip(counts, sorted(moved), strict=True)) / new
    return mean, sum(found) / len(found), parts


if __name__ == "__main__":
    if len(sys.argv) > 1:
        compile_one(*sys.argv[1:4], int(sys.argv[4]))
    else:
        main()
