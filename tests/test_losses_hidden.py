"""Tests of the losses from hidden states. They need jax, numpy and pytest only."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses_formulas import finite_difference, same, token_logp

from stepjax.losses import step_logps, step_logps_from_hidden, token_logps_from_hidden

BATCH, LENGTH, VOCAB, WIDTH = 3, 7, 11, 5
STEPS = ((4, 7), (3, 5), (3, 4))  # where the step of each row starts and ends
WEIGHTS = np.array([1.0, -2.0, 0.5], np.float32)  # a different one for each row


def make_rows():
    """Random tokens, the mask of the step, and which positions score it."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCAB, size=(BATCH, LENGTH)).astype(np.int32)
    mask = np.array([[a <= t < b for t in range(LENGTH)] for a, b in STEPS])
    return tokens, mask, np.roll(mask, -1, axis=1)


def make_hidden(count, seed=0, dtype=np.float32):
    """Random hidden states, unembedding and targets."""
    rng = np.random.default_rng(seed)
    hidden = jnp.asarray(rng.normal(size=(count, WIDTH)), dtype)
    unembedding = jnp.asarray(rng.normal(size=(VOCAB, WIDTH)), dtype)
    return hidden, unembedding, rng.integers(0, VOCAB, size=count).astype(np.int32)


def formula_hidden(hidden, unembedding, targets):
    """The formula of token_logps_from_hidden: all logits at once, in float64."""
    logits = np.asarray(hidden, np.float64) @ np.asarray(unembedding, np.float64).T
    return np.array([token_logp(*pair) for pair in zip(logits, targets, strict=True)])


@pytest.mark.parametrize(
    ("count", "chunk"), [(0, 4), (1, 1), (3, 4), (8, 4), (13, 4), (13, 12), (13, 1024)]
)
def test_token_logps_from_hidden_is_the_plain_form(count, chunk):
    hidden, unembedding, targets = make_hidden(count)
    weights = np.linspace(-1, 2, count, dtype=np.float32)

    @jax.jit
    def run(hidden, unembedding):
        logps = token_logps_from_hidden(hidden, unembedding, targets, chunk=chunk)
        return logps @ weights, logps

    grads, logps = jax.grad(run, (0, 1), has_aux=True)(hidden, unembedding)
    assert logps.dtype == jnp.float32
    same(logps, formula_hidden(hidden, unembedding, targets))
    if count == 13:
        arguments = [hidden, unembedding, targets]
        for which in (0, 1):

            def total(x, which=which):
                return (
                    formula_hidden(*arguments[:which], x, *arguments[which + 1 :])
                    @ weights
                )

            same(grads[which], finite_difference(total, arguments[which]), atol=1e-4)


@pytest.mark.parametrize("chunk", [4, 1024])
def test_forward_mode_and_second_derivatives_are_those_of_the_plain_form(chunk):
    hidden, unembedding, targets = make_hidden(6)
    weights = jnp.arange(1.0, 7.0)

    def chunked(hidden):
        settings = {"chunk": chunk}
        return token_logps_from_hidden(hidden, unembedding, targets, **settings)

    def plain(hidden):
        return jax.nn.log_softmax(hidden @ unembedding.T)[jnp.arange(6), targets]

    direction = (jnp.sin(jnp.arange(hidden.size)).reshape(hidden.shape),)
    for got, expected in zip(
        *(jax.jvp(f, (hidden,), direction) for f in (chunked, plain)), strict=True
    ):
        same(got, expected)
    got, expected = (
        jax.hessian(lambda x, f=f: f(x) @ weights) for f in (chunked, plain)
    )
    same(got(hidden), expected(hidden), rtol=1e-4)
    assert np.abs(expected(hidden)).max() > 1


def test_padded_vocabulary_gets_probability_zero():
    hidden, unembedding, targets = make_hidden(6)
    padded = jnp.concatenate([unembedding, 9 * jnp.ones((5, WIDTH))])

    @jax.jit
    def run(hidden, padded, targets):
        settings = {"chunk": 4, "vocab_size": VOCAB}
        logps = token_logps_from_hidden(hidden, padded, targets, **settings)
        return logps.sum(), logps

    gradient_fn = jax.grad(run, (0, 1), has_aux=True)
    (to_hidden, to_padded), logps = gradient_fn(hidden, padded, targets)
    expected = formula_hidden(hidden, unembedding, targets)
    same(logps, expected)
    unmasked = token_logps_from_hidden(hidden, padded, targets)
    assert np.abs(unmasked - expected).max() > 1  # the padding would matter
    np.testing.assert_array_equal(to_padded[VOCAB:], np.zeros((5, WIDTH)))
    assert np.isfinite(to_hidden).all()
    assert np.isfinite(to_padded).all()
    targets[2] = VOCAB  # a row of the matrix, but not a token
    beyond = np.isnan(run(hidden, padded, targets)[1])
    np.testing.assert_array_equal(beyond, np.arange(6) == 2)


def test_bfloat16_hidden_is_scored_and_its_gradient_summed_in_float32():
    count = 512
    hidden, unembedding, targets = make_hidden(count, dtype=jnp.bfloat16)

    def total(hidden, unembedding, chunk):
        logps = token_logps_from_hidden(hidden, unembedding, targets, chunk=chunk)
        return logps.sum(), logps

    gradient_fn = jax.grad(total, argnums=1, has_aux=True)
    gradient, logps = gradient_fn(hidden, unembedding, 4)
    assert (logps.dtype, gradient.dtype) == (jnp.float32, jnp.bfloat16)
    # Logits rounded to bfloat16 would be off by about 1e-2.
    same(logps, formula_hidden(hidden, unembedding, targets), rtol=1e-4)
    singles = hidden.astype(jnp.float32), unembedding.astype(jnp.float32)
    exact, _ = gradient_fn(*singles, count)
    error = np.linalg.norm(gradient.astype(jnp.float32) - exact)
    assert error < 4e-3 * np.linalg.norm(exact)  # more than 1e-2 if summed in bfloat16


def computed(jaxpr):
    """Types of all values that a jaxpr and the jaxprs inside it compute."""
    for equation in jaxpr.eqns:
        yield from (variable.aval for variable in equation.outvars)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from computed(inner)


def test_logits_of_all_tokens_never_exist_and_those_of_a_chunk_are_float32():
    count, chunk, vocab = 256, 16, 512
    hidden = jnp.ones((count, WIDTH), jnp.bfloat16)
    unembedding = jnp.ones((vocab, WIDTH), jnp.bfloat16)
    targets = jnp.zeros(count, int)

    def values(chunk):
        def total(*weights):
            return token_logps_from_hidden(*weights, targets, chunk=chunk).sum()

        jaxpr = jax.make_jaxpr(jax.grad(total, (0, 1)))(hidden, unembedding)
        return list(computed(jaxpr.jaxpr))

    # No value is larger than a chunk of logits, in the backward pass either,
    assert max(value.size for value in values(chunk)) == chunk * vocab
    # and the measure does see the logits.
    assert max(value.size for value in values(count)) == count * vocab
    logits = [value for value in values(chunk) if value.shape == (chunk, vocab)]
    assert len(logits) > 2
    assert jnp.dtype(jnp.bfloat16) not in {value.dtype for value in logits}


@pytest.mark.parametrize(("max_scored", "chunk"), [(3, 2), (5, 1024), (50, 2)])
def test_step_logps_from_hidden_agrees_with_step_logps(max_scored, chunk):
    tokens, mask, scores = make_rows()
    hidden, unembedding, _ = make_hidden(BATCH * LENGTH)
    hidden = hidden.reshape(BATCH, LENGTH, WIDTH)
    mask[:, 0] = True  # is ignored

    @jax.jit
    def chunked(hidden, unembedding, tokens):
        settings = {"max_scored": max_scored, "chunk": chunk}
        logps = step_logps_from_hidden(hidden, unembedding, tokens, mask, **settings)
        return logps @ WEIGHTS, logps

    @jax.jit
    def plain(hidden, unembedding, tokens):
        logps = step_logps(hidden @ unembedding.T, tokens, mask)
        return logps @ WEIGHTS, logps

    expected = jax.grad(plain, (0, 1), has_aux=True)(hidden, unembedding, tokens)
    gradient_fn = jax.grad(chunked, (0, 1), has_aux=True)
    got = gradient_fn(hidden, unembedding, tokens)
    jax.tree.map(same, got, expected)
    assert np.all(np.asarray(got[0][0])[~scores] == 0.0)
    dirty = jnp.where(scores[..., None], hidden, jnp.nan)
    got_dirty = gradient_fn(dirty, unembedding, np.where(mask, tokens, -100))
    jax.tree.map(np.testing.assert_array_equal, got_dirty, got)


def test_more_scored_tokens_than_max_scored_is_nan_never_a_part_of_the_sum():
    tokens, mask, _ = make_rows()
    hidden, unembedding = np.ones((BATCH, LENGTH, WIDTH)), np.ones((VOCAB, WIDTH))
    got = step_logps_from_hidden(hidden, unembedding, tokens, mask, max_scored=2)
    same(got, [math.nan, -2 * math.log(VOCAB), -math.log(VOCAB)])
    single = hidden[:, :1], unembedding, tokens[:, :1], mask[:, :1]
    same(step_logps_from_hidden(*single, max_scored=2), np.zeros(BATCH))


def test_all_devices_give_what_one_device_gives():
    devices = np.array(jax.devices())
    inputs = make_hidden(4 * len(devices))
    mesh = jax.sharding.Mesh(devices, ("data",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    @jax.jit
    def run(*inputs):
        def total(*weights):
            chunk = 2 * len(devices)
            logps = token_logps_from_hidden(*weights, inputs[2], chunk=chunk)
            return logps.sum(), logps

        return jax.grad(total, (0, 1), has_aux=True)(*inputs[:2])

    got = run(*map(jax.device_put, inputs, (split, whole, split)))
    assert got[0][0].sharding.is_equivalent_to(split, 2)
    jax.tree.map(same, got, run(*inputs))


def test_vmap_gives_the_rows_of_a_larger_batch():
    parts = [make_hidden(7, seed) for seed in (0, 1)]
    chunked = jax.vmap(lambda *x: token_logps_from_hidden(*x, chunk=3))
    got = chunked(*map(np.stack, zip(*parts, strict=True)))
    same(got, [formula_hidden(*part) for part in parts])


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (lambda h, w, t: (h[0], w, t), {}, "hidden has shape"),
        (lambda h, w, t: (h, w.T, t), {}, "unembedding has shape"),
        (lambda h, w, t: (h, w, t[:1]), {}, "targets has shape"),
        (lambda h, w, t: (h[:1], w, t), {}, "targets has shape"),
        (lambda h, w, t: (h, w, t.astype(float)), {}, "targets is float"),
        (lambda *x: x, {"chunk": 0}, "chunk is 0"),
        (lambda *x: x, {"vocab_size": 0}, "vocab_size is 0"),
        (lambda *x: x, {"vocab_size": VOCAB + 1}, "expected 1 to 11"),
    ],
)
def test_token_logps_from_hidden_errors(change, settings, message):
    with pytest.raises(ValueError, match=message):
        token_logps_from_hidden(*change(*make_hidden(6)), **settings)


@pytest.mark.parametrize(
    ("change", "max_scored", "message"),
    [
        (lambda h, w, t, m: (h[0], w, t, m), 3, "hidden has shape"),
        (lambda h, w, t, m: (h, w.T, t, m), 3, "unembedding has shape"),
        (lambda h, w, t, m: (h, w, t[:1], m), 3, "tokens has shape"),
        (lambda h, w, t, m: (h, w, t, m[:, 1:]), 3, "mask has shape"),
        (lambda *x: x, 0, "max_scored is 0"),
    ],
)
def test_step_logps_from_hidden_errors(change, max_scored, message):
    hidden, unembedding = np.ones((BATCH, LENGTH, WIDTH)), np.ones((VOCAB, WIDTH))
    inputs = change(hidden, unembedding, *make_rows()[:2])
    with pytest.raises(ValueError, match=message):
        step_logps_from_hidden(*inputs, max_scored=max_scored)
