"""FLOPs of traced programs: the counter, and what the method's layout saves."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from stepjax import config, forest, losses
from stepjax.lm import model as lm
from stepjax.lm import sharding
from stepjax.planning import flops, programs
from stepjax.settings import from_config

SHAPE = {  # Qwen2.5-Math-7B
    "vocab_size": 152064,
    "hidden_size": 3584,
    "num_layers": 28,
    "num_heads": 28,
    "num_kv_heads": 4,
    "head_dim": 128,
    "intermediate_size": 18944,
    "dtype": "bfloat16",
    "remat": "full",
    "attention": "kernel",
}


def shapes(*sizes):
    return [jax.ShapeDtypeStruct(size, jnp.float32) for size in sizes]


def test_products_count_as_often_as_they_run():
    def program(x, many, w):
        x = x @ w  # 2 * 4 * 6 * 6
        x, _ = jax.lax.scan(lambda x, w: (x @ w, None), x, many)  # 3 times
        x = jax.lax.cond(x[0, 0] > 0, lambda x: x @ w @ w, lambda x: x @ w, x)
        x = jax.checkpoint(lambda x: x @ w)(x)
        return jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x @ w, x)

    traced = jax.jit(program).trace(*shapes((4, 6), (3, 6, 6), (6, 6)))
    one = 2 * 4 * 6 * 6
    assert flops.count(traced, 1) == (one * (1 + 3 + 2 + 1 + 1), 0)
    assert flops.count(traced, 1, trips=5) == (one * (1 + 3 + 2 + 1 + 5), 0)
    assert flops.count(traced, 4) == (one * 8 / 4, 0)  # split over four devices
    batched = jax.jit(lambda a, b: jnp.einsum("bij,bjk->bik", a, b))
    traced = batched.trace(*shapes((5, 2, 3), (5, 3, 7)))
    assert flops.count(traced, 1).products == 5 * 2 * 2 * 3 * 7
    # Of a gradient: one product forward and two backward.
    for gradient, expected in ((jax.value_and_grad, 3), (jax.grad, 2)):
        loss = jax.jit(gradient(lambda x, w: (x @ w).sum(), (0, 1)))
        traced = loss.trace(*shapes((4, 6), (6, 6)))
        assert flops.count(traced, 1).products == expected * one  # nothing unused


def test_inside_a_shard_map_shapes_are_those_of_a_device():
    mesh = sharding.make_mesh(4, 1, 2)

    def local(x, w):
        return x @ w

    split = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(PartitionSpec("data"), PartitionSpec(None, "tensor")),
        out_specs=PartitionSpec("data", "tensor"),
    )
    traced = jax.jit(split).trace(*shapes((8, 6), (6, 10)))
    assert flops.count(traced, 8).products == 2 * 8 * 6 * 10 / 8


def settings(**changes):
    c = config.default()
    c.model.update(SHAPE)
    c.train.row_length = 2304  # context 1792 and two steps of 256
    c.mesh.data, c.mesh.fsdp = 1, -1
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return from_config(c)


@functools.cache
def counted(stage, **changes):
    """Returns a program of the 7B shape on eight devices, and its FLOPs."""
    found = programs.programs(settings(**changes), jax.devices(), (stage,))
    program = next(found)
    return program, flops.count(program.traced, program.devices)


@pytest.mark.parametrize(
    ("reference", "most", "expected"),
    [("live", 1.20, 5.77e14), ("precomputed", 1.25, 4.55e14)],
)
def test_little_is_executed_twice(reference, most, expected):
    program, found = counted("dpo", dpo__reference=reference)
    assert found.products == pytest.approx(expected, rel=0.01)
    # Layers 6.53e9 parameters on 32 rows of 2304, head 0.545e9 on 512 of each.
    passes = 8 if reference == "live" else 6
    ideal = passes * 32 * (6.5255e9 * 2304 + 0.54500e9 * 512) / 8
    assert program.ideal == pytest.approx(ideal, rel=1e-3)
    assert 1 < found.products / program.ideal <= most
    # A causal row of six blocks: 21 of 36 are seen.
    assert program.seen == pytest.approx(21 / 36)


def test_a_judge_that_is_kept_costs_as_many_rows_as_pairs():
    program, kept = counted("dpo", judge__keep=1.0)
    plain, one = counted("dpo")
    assert program.rows == (2 * plain.rows[0], plain.rows[1])
    # The EFT rows learn from all of their tokens, so that they need more of the head.
    assert 2 < kept.products / one.products < 2.2
    assert 1 < kept.products / program.ideal <= 1.25


def test_a_frozen_judge_takes_the_memory_of_a_second_model():
    (plain, _), (frozen, _) = (counted("search", judge__model=m) for m in ("", "M1"))
    # Of 7.6e9 parameters in two bytes, each chip of a host holds a part.
    parts = settings().sampling_tensor
    assert frozen.beside - plain.beside == pytest.approx(2 * 7.6e9 / parts, rel=0.02)


def test_int8_weights_take_a_byte_each_in_memory_and_in_traffic():
    made = {}
    for weights in ("full", "int8"):
        chips = jax.devices()
        own = settings(search__weights=weights)
        found = programs.programs(own, chips, ("search",), chips[:4])
        made[weights] = {program.name: program for program in found}
    parts = settings().sampling_tensor
    assert len(made["int8"]) == 5
    for name, full in made["full"].items():
        small = made["int8"][name]
        # One byte less for each of 6.5e9 parameters of layers; few scales are added.
        saved = pytest.approx(6.5255e9 / parts, rel=2e-3)
        assert full.arguments - small.arguments == saved
        if full.sequences:
            assert full.moved - small.moved == saved


def test_micro_batches_cost_nothing():
    _, one = counted("dpo", dpo__reference="live")
    _, two = counted("dpo", dpo__reference="live", train__micro_batches=2)
    assert two.products == pytest.approx(one.products, rel=1e-3)


def test_attention_is_not_computed_again_when_its_output_is_kept():
    _, full = counted("dpo")
    _, kept = counted("dpo", model__remat="attention")
    # Products of blocks: 2 forward, 2 again, and 3 + 4 for the gradients.
    assert kept.kernels / full.kernels == pytest.approx(9 / 11)
    assert kept.products == full.products


def test_all_scored_tokens_of_sft_are_counted():
    program, found = counted("sft")
    assert 1 < found.products / program.ideal <= 1.26


def naive(context: int, step: int, pairs: int) -> float:
    """FLOPs of step-DPO with each side of a pair on its own, and whole logits."""
    shape = dataclasses.replace(lm.ModelConfig(**SHAPE), attention="chunks")
    model = lm.Decoder(shape)
    params = lm.unboxed(lm.abstract_params(model))
    length = context + step

    def apply(params, tokens):
        index = jnp.broadcast_to(jnp.arange(length), tokens.shape)
        ends = jnp.full_like(index, length)
        hidden = model.apply({"params": params}, tokens, index, ends)
        return lm.logits(params, hidden)

    side = jax.ShapeDtypeStruct((pairs, length), jnp.int32)
    names = ("chosen_tokens", "chosen_mask", "rejected_tokens", "rejected_mask")
    batch = dict.fromkeys(names, side)

    def loss(params, reference, batch):
        return losses.step_dpo(apply, params, reference, batch)[0]

    update = jax.jit(jax.grad(loss))
    return flops.count(update.trace(params, params, batch), 1).products


def test_the_naive_form_costs_twice_as_much():
    program, found = counted("dpo", dpo__reference="live")
    ours = (found.products + found.kernels * program.seen) * program.devices
    assert naive(1792, 256, 32) / ours > 1.8


def test_a_trajectory_costs_a_sixth_of_its_pairs_one_by_one():
    """Eight pairs of a problem: prompt 170, steps of 60 tokens."""
    prompt, step, count, problems = 170, 60, 8, 4

    def trajectory(problem):
        context, pairs = (problem + 1,) + (9,) * (prompt - 1), []
        for n in range(count):
            pairs.append(forest.IdPair(context, (n + 10,) * step, (n + 30,) * step))
            context += pairs[-1].chosen
        return pairs

    pairs = [pair for n in range(problems) for pair in trajectory(n)]
    c = settings(dpo__reference="live", train__row_length=1152, mesh__tensor=2)
    mesh = sharding.make_mesh(**c.mesh._asdict())
    model = lm.Decoder(lm.ModelConfig(**SHAPE), mesh)
    program = programs.dpo_program(c, model, pairs)
    found = flops.count(program.traced, program.devices)
    ours = (found.products + found.kernels * program.seen) * program.devices
    one_by_one = problems * sum(naive(prompt + n * step, step, 1) for n in range(count))
    ratio = ours / one_by_one
    assert 0.1 < ratio <= 0.2
    assert ratio == pytest.approx(0.165, abs=0.01)
    tokens = sum(2 * (prompt + n * step + step) for n in range(count)) * problems
    assert np.prod(program.rows) / tokens == pytest.approx(0.1636, abs=1e-3)


def test_heads_that_do_not_divide_are_refused():
    message = "of size (28|4) does not divide by mesh.tensor=8"
    for stage, changes in (
        ("dpo", {"mesh__fsdp": 1, "mesh__tensor": 8}),
        ("search", {"search__tensor": 8}),
    ):
        with pytest.raises(ValueError, match=message):
            list(programs.programs(settings(**changes), jax.devices(), (stage,)))
