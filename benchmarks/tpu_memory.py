"""Memory and FLOPs of the paper's step-DPO update on TPU slices, and of the naive one.

    python benchmarks/tpu_memory.py [7b | 72b | naive]
    python benchmarks/tpu_memory.py load

32 pairs of 1792 + 256 tokens, float32 parameters and moments, bfloat16 products. Needs
libtpu, but no TPU. The naive form puts each side of a pair in a row of its own (64 rows
of 2048 tokens) and makes the logits of all tokens, with `stepjax.losses.step_dpo`; its
attention is the same kernel. Nothing is run.

With "load": the programs that write pieces of the 72B model into its int8 parameters on
the 8 chips of one host (`stepjax.lm.pieces`), for the largest matrices and the
embedding. A piece is float32 from a run, and here bfloat16 from a Hugging Face folder.
"beside" is what a program needs besides the array that it writes into.
"""

import importlib.metadata
import math
import pathlib
import runpy
import sys

import jax
import jax.numpy as jnp

from stepjax import losses
from stepjax.lm import checkpoint, pieces, sharding, train, weights
from stepjax.lm import model as lm
from stepjax.lm.parameter_tensors import parameter_tensors
from stepjax.planning import flops, programs, slices
from stepjax.settings import from_config

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
CASES = [  # model, slice, tensor, reference, micro-batches, bar in GiB
    ("7b", "v5p:2x2x2", 1, "live", 1, 21.0),
    ("7b", "v5p:2x2x2", 1, "precomputed", 1, 18.0),
    ("7b", "v5e:4x4", 1, "live", 1, 12.0),
    ("7b", "v5e:4x4", 1, "live", 2, 12.0),
    ("72b", "v5p:4x4x8", 4, "live", 1, 13.2),
    ("72b", "v5p:4x4x8", 4, "precomputed", 1, 13.2),
    ("72b", "v5e:16x16", 8, "live", 1, 8.2),
    ("naive", "v5p:2x2x2", 1, "live", 1, None),
    ("naive", "v5e:4x4", 1, "live", 1, None),
]


def settings(model, tensor, reference, micro_batches):
    """Returns the settings of a case."""
    file = CONFIGS / f"qwen2_5_math_{'7b' if model == 'naive' else model}.py"
    c = runpy.run_path(str(file))["get_config"]()
    c.mesh.tensor, c.train.micro_batches = tensor, micro_batches
    c.dpo.reference = reference
    return from_config(c)


def naive(config, devices):
    """Returns the naive update, traced."""
    mesh = sharding.make_mesh(**config.mesh._asdict(), devices=devices)
    model = lm.Decoder(programs.model_config(config), mesh)
    step = config.search.max_step_tokens
    length, pairs = config.train.row_length - step, config.dpo.batch_size

    def apply(params, tokens):
        index = jnp.broadcast_to(jnp.arange(length), tokens.shape)
        ends = jnp.full_like(index, length)
        hidden = model.apply({"params": params}, tokens, index, ends)
        return lm.logits(params, hidden)

    def loss(params, reference, batch):
        batch = jax.tree.map(lambda x: x.reshape(pairs, length), batch)
        value, _ = losses.step_dpo(apply, params, reference, batch)
        return value * pairs, (jnp.float32(pairs), {})

    boxed = lm.abstract_params(model)
    shardings = sharding.param_shardings(mesh, boxed)
    params = slices.spread(lm.unboxed(boxed), shardings)
    optimizer = train.make_optimizer(train.OptimizerOptions(5e-7), 10)
    split = train.state_shardings(params, optimizer)
    moments = jax.eval_shape(optimizer.init, params)
    state = train.TrainState(params, slices.spread(moments, split.opt_state))
    rows = sharding.split_rows(mesh, 1)
    side = jax.ShapeDtypeStruct((1, pairs, length), jnp.int32, sharding=rows)
    names = ("chosen_tokens", "chosen_mask", "rejected_tokens", "rejected_mask")
    update = train.make_update(loss, optimizer, split)
    reference = slices.spread(params, shardings, model.config.dtype)
    return update.trace(state, reference, dict.fromkeys(names, side))


def loading():
    """Prints a row for each of some programs that load 72B for sampling."""
    shape = programs.model_config(settings("72b", 1, "precomputed", 1))
    devices = slices.devices(slices.topology("v5e:2x4"))
    model = lm.Decoder(shape, sharding.make_mesh(-1, 1, 8, devices=devices))
    splits = sharding.param_shardings(model.mesh, lm.abstract_params(model))
    holders = pieces.holders(shape, splits, shape.dtype, "int8")
    arrays = {path: _arrays(holder) for path, holder in holders.items()}
    whole = sum(map(_bytes, arrays.values()))
    print(f"model: {whole / slices.GIB:.2f} GiB/chip")
    table_head("array, from, piece GiB/chip, array, beside, model + beside")
    for tensor in parameter_tensors(shape):
        if tensor.path not in ("embedding", "layers/gate", "layers/down"):
            continue
        held, holder = arrays[tensor.path], holders[tensor.path]
        into, layer = (), None
        if tensor.stacked:
            into, layer = held, jax.ShapeDtypeStruct((), jnp.int32)
        saved = jax.ShapeDtypeStruct(tensor.shape, "float32")
        saved = slices.spread(saved, holder.piece_split)
        rows = jax.ShapeDtypeStruct(tensor.stored, "bfloat16")
        rows = slices.spread(rows, weights.rows_split(tensor, holder.split))
        own = {"tensor": tensor, "holder": holder}
        traced = {
            "run": checkpoint._insert.trace(into, saved, layer, holder=holder),
            "files": weights._insert.trace(into, rows, layer, **own),
        }
        for source, piece in {"run": saved, "files": rows}.items():
            fit = slices.compile_fit(traced[source])
            beside = fit.total - _bytes(held)
            sizes = _bytes([piece]), _bytes(held), beside, whole + beside
            cells = [tensor.path, source, *(f"{x / slices.GIB:.2f}" for x in sizes)]
            print("|", " | ".join(cells), "|", flush=True)


def _arrays(holder):
    """Returns the shapes of the arrays of a parameter, with their shardings."""
    return tuple(
        jax.ShapeDtypeStruct(shape, dtype, sharding=split)
        for shape, split, dtype in holder.parts
    )


def _bytes(arrays):
    """Returns the bytes that arrays take on a chip."""
    shapes = [(x.sharding.shard_shape(x.shape), x.dtype.itemsize) for x in arrays]
    return sum(math.prod(shape) * size for shape, size in shapes)


def table_head(names):
    """Prints the head of a table."""
    print(f"libtpu {importlib.metadata.version('libtpu')}, jax {jax.__version__}")
    print("|", " | ".join(names.split(", ")), "|")
    print("|---" * len(names.split(", ")) + "|")


def main(wanted):
    """Prints a row for each case."""
    if wanted == ["load"]:
        loading()
        return
    names = "model, slice, tensor, reference, micro, arguments GiB/chip, temporaries"
    names += ", total, bar, PFLOP/chip, executed/ideal"
    table_head(names)
    for model, name, tensor, reference, micro, bar in CASES:
        if wanted and model not in wanted:
            continue
        config = settings(model, tensor, reference, micro)
        tpu_slice = slices.topology(name)
        devices = slices.devices(tpu_slice)
        program = next(programs.programs(config, devices, ("dpo",)))
        traced = naive(config, devices) if model == "naive" else program.traced
        fit = slices.compile_fit(traced)
        products = flops.count(traced, tpu_slice.chips).products
        sizes = (fit.arguments, fit.temporaries, fit.total)
        sizes = [f"{size / slices.GIB:.2f}" for size in sizes]
        if fit.refused:
            sizes[:2] = "refused", "-"
        cells = [model, name, tensor, reference, micro, *sizes, bar or "-"]
        cells += [f"{products / 1e15:.4f}", f"{products / program.ideal:.3f}"]
        print("|", " | ".join(map(str, cells)), "|", flush=True)
        if fit.refused:
            print(fit.refused, file=sys.stderr)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main(sys.argv[1:])
