"""The memory of a traced program at its fullest moment, by arithmetic."""

import jax
import jax.numpy as jnp
import pytest

from stepjax.planning import live

WIDE = jnp.zeros((64, 64))  # 16 KiB
SIZE = 64 * 64 * 4


def fullest(function, *arguments, donate=()):
    traced = jax.jit(function, donate_argnums=donate).trace(*arguments)
    return live.fullest(traced, lambda path, aval: "given", lambda aval: "made")


def made(function, *arguments, **options):
    return fullest(function, *arguments, **options).get("made", 0) / SIZE


def test_a_product_takes_its_result_and_fused_operands_that_it_reads():
    assert made(lambda x: x @ x, WIDE) == 1
    # x + 1 is written, since a product reads it; the exponential is the result.
    assert made(lambda x: jnp.exp((x + 1) @ x), WIDE) == 3 - 1
    assert made(lambda x: (jnp.exp(x) * 2 + 1).sum(), WIDE) < 0.01  # fused into a sum
    assert fullest(lambda x: x @ x, WIDE)["given"] == SIZE


def test_memory_that_is_not_read_again_is_free():
    def chain(x):
        for _ in range(10):
            x = x @ x
        return x

    assert made(chain, WIDE) == 2


def test_a_donated_argument_is_overwritten():
    def update(state, slope):
        return state - 0.1 * slope

    assert made(update, WIDE, WIDE) == 1
    assert made(update, WIDE, WIDE, donate=(0,)) == 0


def test_zeros_are_there_before_anything_is_written_into_them():
    def into_zeros(x):
        found = [x @ x, (x @ x) @ x]
        rooms = [jnp.zeros((256, 64)) for _ in found]
        both = zip(rooms, found, strict=True)
        return [jax.lax.dynamic_update_slice(room, y, (0, 0)) for room, y in both]

    # Two products, and two arrays of four times their size.
    assert made(into_zeros, WIDE) == pytest.approx(2 + 2 * 4, abs=0.01)


def test_a_scan_keeps_what_it_stacks_and_one_body():
    def layers(x):
        def body(x, _):
            x = x @ x
            return x, x

        return jax.lax.scan(body, x, None, length=7)

    # Seven results, the carried state, the next state of one body.
    assert made(layers, WIDE) == pytest.approx(7 + 2, abs=0.01)

    def only_last(x):
        return layers(x)[0]

    assert made(only_last, WIDE) == pytest.approx(2, abs=0.01)


def test_only_the_largest_branch_of_a_condition_counts():
    def both(x, which):
        return jax.lax.cond(which, lambda x: x @ x, lambda x: (x @ x) @ (x + 1), x)

    assert made(both, WIDE, True) == pytest.approx(1 + 3, abs=0.01)


def test_a_platform_is_not_a_cpu():
    def either(x):
        return jax.lax.platform_dependent(
            x, cpu=lambda x: (x @ x) @ (x @ x), default=lambda x: x @ x
        )

    assert made(either, WIDE) == 1


def test_rematerialisation_takes_less():
    def loss(x, *, remat):
        def body(x, _):
            return jnp.tanh(jnp.tanh(x @ x) @ x), None

        body = jax.checkpoint(body, prevent_cse=False) if remat else body
        return jax.lax.scan(body, x, None, length=50)[0].sum()

    def gradient(x, remat):
        return jax.grad(lambda x: loss(x, remat=remat))(x)

    whole = made(lambda x: gradient(x, False), WIDE)
    again = made(lambda x: gradient(x, True), WIDE)
    assert 50 < again < 60 < 2 * 50 < whole


def test_a_training_step_is_near_what_a_compiler_says():
    def update(params, batch):
        def loss(params):
            def layer(x, w):
                return jnp.tanh(x @ w), None

            return (jax.lax.scan(layer, batch, params)[0] ** 2).sum()

        slope = jax.grad(loss)(params)
        return jax.tree.map(lambda w, g: w - 0.1 * g, params, slope)

    params, batch = jnp.zeros((8, 256, 256)), jnp.zeros((512, 256))
    function = jax.jit(update, donate_argnums=0)
    needs = sum(fullest(update, params, batch, donate=(0,)).values())
    memory = function.lower(params, batch).compile().memory_analysis()
    compiled = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    compiled += memory.output_size_in_bytes - memory.alias_size_in_bytes
    assert 0.8 < needs / compiled < 1.25
