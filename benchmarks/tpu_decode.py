"""HBM traffic of decoding steps on TPU slices, from the scheduled program.

    python benchmarks/tpu_decode.py

In a decoding step every row gets one token. There are 8 problems with 1792 context
tokens. Candidates: 6 per problem, of 256 tokens. Judgments: 30 per problem, of 512
tokens, behind two candidate steps of 256 tokens and a few words; each block of 5
judgments shares the candidate that is shown first. The program is
`stepjax.lm.generate.sample`, which `stepjax search` runs, compiled by libtpu and never
run. Bytes are those that its schedule moves between HBM and the chip, see `hlo.py`, as
a mean over all decoding steps, since later ones read longer suffixes. The ideal reads
every weight except the embedding once, every context and every shared candidate once,
and half of the rows' new tokens. With int8 weights (`search.weights`) a number of a
layer's matrices has one byte. The last column checks the reader of schedules: the
matrix products that it sees in a decoding step, divided by those of the traced program.
The largest instructions of a last decoding step go to standard error.
"""

import importlib.metadata
import pathlib
import runpy
import sys

import hlo

from stepjax.lm import generate

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
TRIES = 3  # passes of a draw that are counted; on average it takes two
KINDS = {  # (rows per problem, rows that share a lead), tokens fed, new tokens
    "candidates": ((6, 1), 1, 256),
    "judgments": ((30, 5), 576, 512),
    "10 judgments": ((10, 5), 576, 512),  # judge.rows=10
}
CASES = [  # rows, model, slice, tensor, weights, bar
    ("candidates", "7b", "v5e:2x4", 4, "full", 1.05),
    ("candidates", "7b", "v5p:2x2x1", 4, "full", 1.15),
    ("candidates", "72b", "v5p:2x2x2", 8, "full", None),
    ("judgments", "7b", "v5e:2x4", 4, "full", None),
    ("judgments", "7b", "v5p:2x2x1", 4, "full", None),
    ("candidates", "72b", "v5e:2x4", 8, "int8", None),
    ("10 judgments", "72b", "v5e:2x4", 8, "int8", None),
]


def compile_one(kind: str, model: str, name: str, tensor: int, weights: str) -> None:
    """Compiles a case in a process of its own and prints memory and the ideal."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    from stepjax.lm import model as lm
    from stepjax.lm import sharding
    from stepjax.planning import plan, programs, slices
    from stepjax.settings import from_config

    config = runpy.run_path(str(CONFIGS / f"qwen2_5_math_{model}.py"))["get_config"]()
    shape = programs.model_config(from_config(config))
    devices = slices.devices(slices.topology(name))
    mesh = sharding.make_mesh(-1, 1, tensor, devices=devices)
    sampling = programs.Sampling(lm.Decoder(shape, mesh), 8, weights)
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
    names = (
        "rows, model, slice, tensor, weights, GiB/chip, GB per step, ideal, ratio, bar"
    )
    names += ", FLOPs/traced"
    print("|", " | ".join(names.split(", ")), "|")
    print("|---" * len(names.split(", ")) + "|")
    for kind, model, tpu_slice, tensor, weights, bar in CASES:
        case = (__file__, kind, model, tpu_slice, str(tensor), weights)
        printed, module, _ = hlo.dumped("sample", *case)
        ideal, total, traced = map(float, printed.split()[-3:])
        moved, products, parts = decoding_steps(module, KINDS[kind][-1])
        cells = [kind, model, tpu_slice, tensor, weights, f"{total / 2**30:.2f}"]
        cells += [f"{moved / 1e9:.3f}", f"{ideal / 1e9:.3f}", f"{moved / ideal:.3f}"]
        cells += [bar or "-", f"{products / traced:.4f}"]
        print("|", " | ".join(map(str, cells)), "|", flush=True)
        for name, size in sorted(parts.items(), key=lambda item: -item[1])[:8]:
            print(f"    {size / 1e6:9.1f} MB  {name}", file=sys.stderr)


def decoding_steps(module, new: int) -> tuple[float, float, dict[str, int]]:
    """Returns mean bytes and products of a decoding step, and the parts of the last."""
    open_ = [loop for loop in hlo.loops(module) if hlo.trips(module, loop) is None]
    # Loops with matrix products decode, until all rows have stopped. Loops without any
    # repeat draws.
    bodies = [hlo.body(x) for x in open_ if hlo.products(module, hlo.body(x))]
    ends = generate.reaches(new)
    products, moved, parts = [], [], {}
    for body in bodies:
        own: dict[str, int] = {}
        moved.append(hlo.traffic(module, body, own, TRIES))
        products.append(hlo.products(module, body))
        if moved[-1] == max(moved):
            parts = own
    assert len(bodies) == len(ends), (len(bodies), ends)
    counts = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    mean = sum(n * m for n, m in zip(counts, sorted(moved), strict=True)) / new
    return mean, sum(products) / len(products), parts


if __name__ == "__main__":
    if len(sys.argv) > 1:
        kind, model, tpu_slice, tensor, weights = sys.argv[1:]
        compile_one(kind, model, tpu_slice, int(tensor), weights)
    else:
        main()
