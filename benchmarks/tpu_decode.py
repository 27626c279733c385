"""HBM traffic of decoding steps on TPU slices, from the scheduled program.

    python benchmarks/tpu_decode.py
    python benchmarks/tpu_decode.py --contexts=1024,4096,16384

In a decoding step every row gets one token. There are 8 problems with 1792 context
tokens. Candidates: 6 per problem, of 256 tokens. Judgments: 30 per problem, of 512
tokens, behind two candidate steps of 256 tokens and a few words; each block of 5
judgments shares the candidate that is shown first. The program is
`stepjax.lm.generate.sample`, which `stepjax search` runs, compiled by libtpu and never
run. Bytes are those that its schedule moves between HBM and the chip, see `hlo.py`, as
a mean over all decoding steps, since later ones read longer suffixes. The ideal reads
every weight except the embedding once, every context and every shared candidate once,
and half of the rows' new tokens. The last column checks the reader of schedules: the
matrix products that it sees in a decoding step, divided by those of the traced program.
The largest instructions of a last decoding step go to standard error.

With --contexts, the candidates of the 7B model are compiled for each of these numbers
of context tokens. The table then splits the bytes of a step: those of the contexts, as
they lie on a chip, and the rest, which should not grow with the contexts.
"""

import argparse
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
}
CASES = [  # rows, model, slice, tensor, bar
    ("candidates", "7b", "v5e:2x4", 4, 1.05),
    ("candidates", "7b", "v5p:2x2x1", 4, 1.15),
    ("candidates", "72b", "v5p:2x2x2", 8, None),
    ("judgments", "7b", "v5e:2x4", 4, None),
    ("judgments", "7b", "v5p:2x2x1", 4, None),
]


def compile_one(kind: str, model: str, name: str, tensor: int, length: int) -> None:
    """Compiles a case in a process of its own and prints its figures.

    They are the ideal bytes of a step, bytes of memory, products of the traced program,
    and bytes of the contexts; the last three of one chip.
    """
    import math

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
    sampling = programs.Sampling(lm.Decoder(shape, mesh), 8)
    contexts = sampling.contexts(length)
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
    own = sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in contexts
    )
    print(program.moved, total, plan.counted(program).products, own)


def main():
    """Prints a row for each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--contexts", metavar="TOKENS", help="such as 1024,4096,16384")
    lengths = parser.parse_args().contexts
    print(f"libtpu {importlib.metadata.version('libtpu')}")
    if lengths:
        growth(list(map(int, lengths.split(","))))
        return
    table_head("rows, model, slice, tensor, GiB/chip, GB per step, ideal, ratio, bar")
    for kind, model, tpu_slice, tensor, bar in CASES:
        moved, ideal, total, right, _ = measured(kind, model, tpu_slice, tensor, 1792)
        cells = [kind, model, tpu_slice, tensor, f"{total / 2**30:.2f}"]
        cells += [f"{moved / 1e9:.3f}", f"{ideal / 1e9:.3f}", f"{moved / ideal:.3f}"]
        print("|", " | ".join(map(str, [*cells, bar or "-", right])), "|", flush=True)


def growth(lengths: list[int]) -> None:
    """Prints how the bytes of a step of candidates grow with the contexts."""
    table_head(
        "rows, model, slice, tensor, context tokens, GiB/chip, GB per step, of the "
        "contexts, rest, rest / first"
    )
    for kind, model, tpu_slice, tensor, _ in CASES[:2]:
        first = None
        for length in lengths:
            found = measured(kind, model, tpu_slice, tensor, length)
            moved, _, total, right, own = found
            first = first or moved - own
            cells = [kind, model, tpu_slice, tensor, length, f"{total / 2**30:.2f}"]
            cells += [f"{x / 1e9:.3f}" for x in (moved, own, moved - own)]
            cells += [f"{(moved - own) / first:.3f}", right]
            print("|", " | ".join(map(str, cells)), "|", flush=True)


def table_head(names: str) -> None:
    """Prints the names of the columns, and of the check of the reader of schedules."""
    names = [*names.split(", "), "FLOPs/traced"]
    print("|", " | ".join(names), "|")
    print("|---" * len(names) + "|")


def measured(
    kind: str, model: str, tpu_slice: str, tensor: int, length: int
) -> tuple[float, float, float, str, float]:
    """Compiles a case.

    Returns:
      (bytes of a decoding step, ideal bytes, bytes of memory, products that the reader
      of schedules sees divided by the traced ones, bytes of the contexts), of a chip.
    """
    case = (__file__, kind, model, tpu_slice, str(tensor), str(length))
    printed, module, _ = hlo.dumped("sample", *case)
    ideal, total, traced, own = map(float, printed.split()[-4:])
    moved, products, parts = decoding_steps(module, KINDS[kind][-1])
    for name, size in sorted(parts.items(), key=lambda item: -item[1])[:8]:
        print(f"    {size / 1e6:9.1f} MB  {name}", file=sys.stderr)
    return moved, ideal, total, f"{products / traced:.4f}", own


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
    if len(sys.argv) == 6:
        compile_one(*sys.argv[1:4], *map(int, sys.argv[4:]))
    else:
        main()
