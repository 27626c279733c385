"""Adapters: their formula, their gradient, one base for all, one device and eight."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import random_parameters
from flax import traverse_util
from jax.sharding import PartitionSpec
from runs import one_device_mesh

from stepjax import dpo, forest, sft
from stepjax.forest import IdPair
from stepjax.lm import checkpoint, decode, generate, lora, sharding, train
from stepjax.lm import model as lm
from stepjax.run import rules

PLAIN = lm.ModelConfig(
    vocab_size=26,
    hidden_size=20,
    num_layers=6,  # not unrolled, as in models of any size
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    intermediate_size=28,
)
OPTIONS = lora.Options(rank=3, alpha=6.0)
CONFIG = dataclasses.replace(PLAIN, adapters=OPTIONS)
MODEL = lm.Decoder(CONFIG)
ROW = 24
LN_2 = math.log(2)

pytestmark = pytest.mark.usefixtures("quick_compiles")


@functools.cache
def parameters(seed=3, config=CONFIG):
    return random_parameters(lm.abstract_params(lm.Decoder(config)), seed, std=0.2)


def ids(rng, n):
    return tuple(int(x) for x in rng.integers(0, CONFIG.vocab_size, n))


def pairs():
    """20 pairs of 10 problems."""
    rng, found = np.random.default_rng(2), []
    for n in range(10):
        context = ids(rng, 4 + n % 4)
        for _ in range(2):
            found.append(IdPair(context, ids(rng, 2 + n % 3), ids(rng, 4 - n % 3)))
            context += found[-1].chosen
    return found


def pair_batches(mesh):
    options = {"batch_size": 8, "micro_batches": 1, "row_length": ROW, "epochs": 1}
    return dpo.make_batches(pairs(), mesh=mesh, **options, seed=0)


def first_rows():
    """The first forest rows of step-DPO, [R, T]."""
    return jax.tree.map(lambda x: x[0], pair_batches(one_device_mesh())[0])


def hidden(config, params, rows):
    model = lm.Decoder(config)
    return model.apply({"params": params}, rows.tokens, rows.position, rows.subtree_end)


def assert_bitwise_equal(one, other):
    assert checkpoint.array_digests(one) == checkpoint.array_digests(other)


# What an adapter computes.


def test_a_new_adapter_changes_nothing_and_leaves_the_draws_of_the_base():
    key, rows = jax.random.key(5), first_rows().rows
    base, adapters = lora.split(lm.init(MODEL, key))
    assert_bitwise_equal(base, lm.init(lm.Decoder(PLAIN), key))
    for name, adapter in adapters["layers"].items():
        inputs = math.prod(adapter["a"].shape[1:-1])
        largest = float(jnp.abs(adapter["a"]).max()) * math.sqrt(inputs)
        assert 0.9 < largest <= 1, name
        assert not adapter["b"].any(), name
    with_adapters = hidden(CONFIG, lora.join(base, adapters), rows)
    np.testing.assert_array_equal(with_adapters, hidden(PLAIN, base, rows))


def test_names_and_shapes_of_all_adapters():
    _, adapters = lora.split(parameters())
    flat = traverse_util.flatten_dict(adapters, sep="/")
    assert {name: x.shape for name, x in flat.items()} == {
        "layers/query_lora/a": (6, 20, 3),
        "layers/query_lora/b": (6, 3, 4, 6),
        "layers/key_lora/a": (6, 20, 3),
        "layers/key_lora/b": (6, 3, 2, 6),
        "layers/value_lora/a": (6, 20, 3),
        "layers/value_lora/b": (6, 3, 2, 6),
        "layers/out_lora/a": (6, 4, 6, 3),
        "layers/out_lora/b": (6, 3, 20),
        "layers/gate_lora/a": (6, 20, 3),
        "layers/gate_lora/b": (6, 3, 28),
        "layers/up_lora/a": (6, 20, 3),
        "layers/up_lora/b": (6, 3, 28),
        "layers/down_lora/a": (6, 28, 3),
        "layers/down_lora/b": (6, 3, 20),
    }


def test_merged_parameters_are_w_plus_alpha_over_rank_a_b():
    params = parameters()
    merged = lora.merged(params, OPTIONS)
    base, adapters = lora.split(params)
    assert jax.tree.structure(merged) == jax.tree.structure(base)
    for name in lora.LAYERS:
        old, new = (np.asarray(x["layers"][name], np.float64) for x in (base, merged))
        a, b = (
            np.asarray(adapters["layers"][f"{name}_lora"][k], float) for k in ("a", "b")
        )
        for layer in range(6):
            product = a[layer].reshape(-1, 3) @ b[layer].reshape(3, -1)
            change = (new - old)[layer].reshape(product.shape)
            np.testing.assert_allclose(change, 6 / 3 * product, rtol=1e-5, atol=1e-6)
    for name in ("embedding", "unembedding"):
        assert merged[name] is base[name]


@pytest.mark.parametrize("layers", [lora.LAYERS, ("query", "down"), ("out",)])
def test_a_merged_model_is_base_and_adapters(layers):
    options = lora.Options(rank=3, alpha=1.5, layers=layers)
    config = dataclasses.replace(PLAIN, adapters=options)
    params, rows = parameters(4, config), first_rows().rows
    _, adapters = lora.split(params)
    assert set(adapters["layers"]) == {f"{name}_lora" for name in layers}
    found = hidden(config, params, rows)
    merged = hidden(PLAIN, lora.merged(params, options), rows)
    np.testing.assert_allclose(found, merged, rtol=1e-5, atol=1e-5)
    without = hidden(PLAIN, lora.split(params)[0], rows)
    assert float(jnp.abs(found - without).max()) > 0.1


def test_cached_decoding_reads_base_and_adapters():
    params, tokens = parameters(), jnp.arange(12).reshape(1, 2, 6)
    contexts = generate.empty_contexts(CONFIG, 1, 4)
    shared = decode.Shared(
        jax.tree.map(lambda x: x[:, :, :, None], contexts), jnp.zeros((1, 1), jnp.int32)
    )
    start = jnp.zeros((1, 2), jnp.int32)
    merged = lora.merged(params, OPTIONS)
    expected, _ = decode.forward(PLAIN, merged, tokens, start, [shared])
    for own in (params, lm.by_layer(params)):
        found, _ = decode.forward(CONFIG, own, tokens, start, [shared])
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_base_in_the_compute_type_gives_the_bits_of_a_float32_base():
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    base, adapters = lora.split(parameters())
    rows, small = first_rows().rows, lm.frozen(base, "bfloat16")
    assert {x.dtype.name for x in jax.tree.leaves(small)} == {"bfloat16"}
    one = hidden(config, lora.join(base, adapters), rows)
    assert one.dtype == jnp.bfloat16
    assert_bitwise_equal(one, hidden(config, lora.join(small, adapters), rows))


# Taking parameters apart.


def test_models_share_the_arrays_of_their_base():
    base, adapters = lora.split(parameters())
    fixed, trained = lora.counts(parameters())
    assert fixed == sum(x.size for x in jax.tree.leaves(base))
    assert trained == sum(x.size for x in jax.tree.leaves(adapters))
    again = lora.join(base, jax.tree.map(jnp.copy, adapters))
    assert again["layers"]["query"] is base["layers"]["query"]
    assert again["embedding"] is parameters()["embedding"]
    # Without adapters all of it is trained.
    plain = parameters(3, PLAIN)
    assert lora.split(plain) == ({}, plain)
    assert lora.join(*lora.split(plain)) == plain


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 0}, "rank=0; expected at least 1"),
        ({"layers": ()}, r"layers=\(\); expected some of"),
        ({"layers": ("query", "embedding")}, "'embedding'.; expected some of"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        lora.Options(**{"rank": 2, "alpha": 1.0} | options)


def test_a_rank_above_the_smallest_side_of_a_matrix_is_refused():
    # The sides are 20 (width), 24 (queries), 12 (keys and values) and 28 (MLP).
    assert lora.largest_rank(PLAIN) == 12
    assert lora.largest_rank(PLAIN, ("query", "up")) == 20
    for layers, most in ((lora.LAYERS, 12), (("query", "up"), 20)):
        options = [lora.Options(rank, 1.0, layers) for rank in (most, most + 1)]
        good, bad = (dataclasses.replace(PLAIN, adapters=x) for x in options)
        lora.check_rank(good)
        words = f"lora.rank={most + 1}; expected at most {most}, the smallest side"
        with pytest.raises(ValueError, match=words):
            lora.check_rank(bad)
    lora.check_rank(PLAIN)


def test_the_settings_know_the_names_of_the_matrices():
    assert rules.ADAPTED == lora.LAYERS


def test_an_adapter_with_nan_is_named():
    _, adapters = lora.split(parameters())
    lora.check_finite(parameters(), "M1", "Lower it.")
    adapters["layers"]["up_lora"]["b"] = (
        adapters["layers"]["up_lora"]["b"].at[0].set(jnp.nan)
    )
    words = "M1: some of the 504 numbers of layers/up_lora/b are NaN .* Lower it."
    with pytest.raises(ValueError, match=words):
        lora.check_finite(adapters, "M1", "Lower it.")


# Training.


def dpo_loss(config, mesh=None):
    options = dpo.Options(beta=0.5, reference="live")
    return functools.partial(dpo.loss, model=lm.Decoder(config, mesh), options=options)


def test_the_gradient_of_adapters_is_that_of_their_matrix():
    """With W' = W + s A B and its gradient G: dA = s G B^T and dB = s A^T G."""
    batch, params, other = first_rows(), parameters(), parameters(8)
    fixed, trained = lora.split(params)
    _, reference = lora.split(other)
    loss = lora.behind(dpo_loss(CONFIG))
    differentiate = jax.jit(jax.grad(loss, has_aux=True))
    found, _ = differentiate(trained, (fixed, reference), batch)
    assert jax.tree.structure(found) == jax.tree.structure(trained)
    merged = [lora.merged(lora.join(fixed, x), OPTIONS) for x in (trained, reference)]
    whole, _ = jax.jit(jax.grad(dpo_loss(PLAIN), has_aux=True))(*merged, batch)
    for name in lora.LAYERS:
        a, b = (trained["layers"][f"{name}_lora"][k] for k in ("a", "b"))
        flat_a, flat_b = a.reshape(6, -1, 3), b.reshape(6, 3, -1)
        of_w = whole["layers"][name].reshape(6, flat_a.shape[1], -1)
        of_a = OPTIONS.scale * jnp.einsum("lkm,lrm->lkr", of_w, flat_b)
        of_b = OPTIONS.scale * jnp.einsum("lkr,lkm->lrm", flat_a, of_w)
        of = found["layers"][f"{name}_lora"]
        for got, want in ((of["a"], of_a), (of["b"], of_b)):
            difference = jnp.abs(got.reshape(want.shape) - want).max()
            assert float(difference / jnp.abs(want).max()) < 1e-4, name


def test_the_first_loss_of_step_dpo_is_ln_2():
    fixed, trained = lora.split(parameters())  # adapters that SFT has trained
    loss = jax.jit(lora.behind(dpo_loss(CONFIG)))
    batch = first_rows()
    value, (count, sums) = loss(trained, (fixed, trained), batch)
    assert float(value / count) == pytest.approx(LN_2, abs=1e-6)
    assert float(sums["rewards/margins"]) == 0
    # New adapters beside a reference without any.
    new = lora.split(lm.init(MODEL, jax.random.key(1)))[1]
    value, (count, _) = loss(new, (fixed, jax.tree.map(jnp.zeros_like, new)), batch)
    assert float(value / count) == pytest.approx(LN_2, abs=1e-6)
    # The control: other adapters of the same base.
    other = lora.split(parameters(9))[1]
    value, (count, _) = loss(trained, (fixed, other), batch)
    assert abs(float(value / count) - LN_2) > 0.01


def test_moments_exist_for_adapters_only():
    mesh = one_device_mesh()
    _, trained = lora.split(train.init_params(lm.Decoder(CONFIG, mesh), mesh, 0))
    optimizer = train.make_optimizer(train.OptimizerOptions(1e-2), 3)
    state = train.init_state(trained, optimizer)
    _, count = lora.counts(parameters())
    numbers = sum(x.size for x in jax.tree.leaves(state))
    assert 3 * count <= numbers <= 3 * count + 4  # with the counters of updates


def sft_run(mesh):
    """Losses of three SFT updates."""
    rng, trees = np.random.default_rng(1), []
    for n in range(24):
        weights = [0.0] * (2 + n % 3) + [1.0] * (12 + n % 5) + [2.0]
        trees.append(forest.path_tree(ids(rng, len(weights)), weights))
    phase = sft.Phase("main", 1, 0, 1, 0, 0.0, 8, train.OptimizerOptions(1e-2))
    layout = {"row_length": ROW, "micro_batches": 1, "seed": 0}
    sources = {"ift": trees, "eft": []}
    batch_at = sft.batch_function(phase, 0, sources, mesh=mesh, **layout)
    loss = functools.partial(sft.loss, model=lm.Decoder(CONFIG, mesh))
    return updates(mesh, loss, map(batch_at, range(3)), live=False)


def dpo_run(mesh):
    """Losses of three step-DPO updates."""
    batches = (train.put_batch(mesh, batch) for batch in pair_batches(mesh))
    return updates(mesh, dpo_loss(CONFIG, mesh), batches, live=True)


def updates(mesh, loss, batches, *, live):
    """Trains adapters on their base; returns the metrics of each update."""
    boxed = lm.abstract_params(lm.Decoder(CONFIG, mesh))
    params = jax.device_put(parameters(), sharding.param_shardings(mesh, boxed))
    fixed, trained = lora.split(params)
    reference = jax.tree.map(jnp.copy, trained) if live else None
    optimizer = train.make_optimizer(train.OptimizerOptions(1e-2), 3)
    state = train.init_state(jax.tree.map(jnp.copy, trained), optimizer)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    update = train.make_update(lora.behind(loss), optimizer, shardings)
    found = []
    for batch in batches:
        state, metrics = update(state, (fixed, reference), batch)
        found.append(jax.tree.map(float, metrics))
    assert jax.tree.map(lambda x: x.sharding, state) == shardings
    assert update._cache_size() == 1
    # The base is what it was, bit by bit; every adapter has moved.
    assert_bitwise_equal(fixed, lora.split(parameters())[0])
    before, after = map(checkpoint.array_digests, (trained, state.params))
    assert all(before[name] != after[name] for name in before)
    return found


@functools.cache
def on_one_device(run):
    return run(one_device_mesh())


@pytest.mark.parametrize("shape", [(2, 2, 2)])
@pytest.mark.parametrize("run", [sft_run, dpo_run])
def test_eight_devices_train_adapters_as_one_does(run, shape, capfd):
    one, eight = on_one_device(run), run(sharding.make_mesh(*shape))
    assert "Involuntary full rematerialization" not in capfd.readouterr().err
    losses = [metrics["loss"] for metrics in one]
    assert len({round(loss, 3) for loss in losses}) == 3  # they do move
    if run is dpo_run:
        assert losses[0] == pytest.approx(LN_2, abs=1e-5)
    for alone, together in zip(one, eight, strict=True):
        assert together["loss"] == pytest.approx(alone["loss"], rel=5e-5)
        for name, value in alone.items():
            assert together[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_adapters_are_split_as_their_matrices():
    mesh = sharding.make_mesh(2, 2, 2)
    params = train.init_params(lm.Decoder(CONFIG, mesh), mesh, seed=3)
    _, adapters = lora.split(params)
    specs = {
        f"{name}/{part}": x.sharding.spec
        for name, adapter in adapters["layers"].items()
        for part, x in adapter.items()
    }
    assert specs["query_lora/a"] == PartitionSpec(None, "fsdp", None)
    assert specs["query_lora/b"] == PartitionSpec(None, None, "tensor", None)
    assert specs["out_lora/a"] == PartitionSpec(None, "tensor", None, None)
    assert specs["out_lora/b"] == PartitionSpec(None, None, "fsdp")
    assert specs["down_lora/a"] == PartitionSpec(None, "tensor", None)
    assert specs["down_lora/b"] == PartitionSpec(None, None, "fsdp")
    # And they are the same numbers as on one device.
    alone = train.init_params(MODEL, one_device_mesh(), seed=3)
    assert_bitwise_equal(params, alone)


def test_no_gradient_of_the_base_is_computed():
    """An update of adapters takes about two thirds of the FLOPs of a full update."""
    config = dataclasses.replace(
        PLAIN, num_layers=2, hidden_size=96, intermediate_size=384, head_dim=24
    )
    counts = {}
    for name, options in (("full", None), ("adapters", lora.Options(1, 1.0))):
        own = dataclasses.replace(config, adapters=options)
        shapes = lm.unboxed(lm.abstract_params(lm.Decoder(own)))
        fixed, trained = lora.split(shapes)
        loss = lora.behind(dpo_loss(own))
        given = fixed, None
        compiled = (
            jax.jit(jax.grad(loss, has_aux=True))
            .lower(trained, given, first_rows())
            .compile()
        )
        counts[name] = compiled.cost_analysis()["flops"]
    assert 0.6 < counts["adapters"] / counts["full"] < 0.8
