"""Meshes: the same training on one device and on eight, and no needless copies."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from fakes import random_parameters
from jax.sharding import NamedSharding, PartitionSpec
from runs import one_device_mesh

from stepjax import dpo, forest, sft
from stepjax.forest import IdPair
from stepjax.lm import checkpoint, sharding, train
from stepjax.lm import model as lm

CONFIG = lm.ModelConfig(
    vocab_size=26,
    hidden_size=20,
    num_layers=6,  # not unrolled, as in models of any size
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    intermediate_size=28,
)
OPTIONS = train.OptimizerOptions(1e-2, weight_decay=0.1)
ROW = 24

pytestmark = pytest.mark.usefixtures("quick_compiles")


@functools.cache
def mesh_of(data, fsdp, tensor):
    if data * fsdp * tensor == 1:
        return one_device_mesh()
    return sharding.make_mesh(data, fsdp, tensor)


def ids(rng, n):
    return tuple(int(x) for x in rng.integers(0, CONFIG.vocab_size, n))


def parameters(model):
    boxed = lm.abstract_params(model)
    shardings = sharding.param_shardings(model.mesh, boxed)
    return jax.device_put(random_parameters(boxed), shardings)


# Where things are.


def test_a_mesh_uses_every_device_or_is_refused():
    assert dict(sharding.make_mesh().shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    shape = dict(sharding.make_mesh(-1, 2, 2).shape)
    assert shape == {"data": 2, "fsdp": 2, "tensor": 2}
    assert sharding.row_multiple(sharding.make_mesh(2, 2, 2)) == 4
    for sizes in [(3, 1, 1), (-1, 3, 1), (8, 2, 1), (-1, 0, 1), (-8, -1, 1)]:
        message = f"mesh data={sizes[0]} x fsdp={sizes[1]} x tensor={sizes[2]} does not"
        with pytest.raises(ValueError, match=f"{message} use the 8 devices exactly"):
            sharding.make_mesh(*sizes)


class Chip:
    """A chip of a v6e slice of 4 x 4, as JAX looks at it to make a mesh."""

    platform, device_kind, core_on_chip = "tpu", "TPU v6 lite", 0
    process_index = slice_index = 0

    def __init__(self, number):
        self.id, self.coords = number, (number % 4, number // 4, 0)


def test_two_mesh_axes_may_share_an_axis_of_the_slice():
    chips = [Chip(n) for n in range(16)]
    for data, fsdp in [(1, 2), (2, 1), (1, 8), (8, 1), (2, 4), (4, 2), (4, 1), (4, 4)]:
        devices = sharding.make_mesh(data, fsdp, 16 // (data * fsdp), chips).devices
        assert devices.shape[:2] == (data, fsdp)
        assert sorted(chip.id for chip in devices.flat) == list(range(16))
    # Axes of the slice's own size follow its rows and columns.
    devices = sharding.make_mesh(4, 1, 4, chips).devices[:, 0]
    for line in (*devices, *devices.T):
        x, y, _ = zip(*(chip.coords for chip in line), strict=True)
        assert len(set(x)) == 1 or len(set(y)) == 1


def test_parameters_are_created_in_their_shardings():
    mesh = mesh_of(2, 2, 2)
    params = train.init_params(lm.Decoder(CONFIG), mesh, seed=3)
    expected = {
        "embedding": (13, 10),
        "final_norm": {"scale": (20,)},
        "layers": {
            "attention_norm": {"scale": (6, 20)},
            "down": (6, 14, 10),
            "gate": (6, 10, 14),
            "key": (6, 10, 1, 6),
            "key_bias": (6, 1, 6),
            "mlp_norm": {"scale": (6, 20)},
            "out": (6, 2, 6, 10),
            "query": (6, 10, 2, 6),
            "query_bias": (6, 2, 6),
            "up": (6, 10, 14),
            "value": (6, 10, 1, 6),
            "value_bias": (6, 1, 6),
        },
        "unembedding": (13, 10),
    }
    parts = jax.tree.map(lambda x: x.addressable_shards[0].data.shape, params)
    assert parts == expected
    # And they are the same numbers as on one device.
    alone = train.init_params(lm.Decoder(CONFIG), mesh_of(1, 1, 1), seed=3)
    assert checkpoint.array_digests(params) == checkpoint.array_digests(alone)
    # Moments are split like their parameter; counters are whole on every device.
    state = train.init_state(params, train.make_optimizer(OPTIONS, 5))
    (adam,) = (s for s in jax.tree.leaves(state.opt_state, is_leaf=has_mu) if has_mu(s))
    for moments in (adam.mu, adam.nu):
        assert jax.tree.map(lambda x: x.sharding, moments) == jax.tree.map(
            lambda x: x.sharding, params
        )
    assert adam.count.sharding.is_fully_replicated
    assert len(adam.count.sharding.device_set) == 8


def has_mu(x):
    return hasattr(x, "mu")


def test_an_axis_that_does_not_divide_is_refused():
    boxed = lm.abstract_params(lm.Decoder(CONFIG))
    message = "axis 'embed' of size 20 does not divide by mesh.fsdp=8; expected a mul"
    with pytest.raises(ValueError, match=message):
        sharding.param_shardings(sharding.make_mesh(1, 8, 1), boxed)
    with pytest.raises(ValueError, match="'vocab' of size 26 .* mesh.tensor=4"):
        sharding.param_shardings(sharding.make_mesh(2, 1, 4), boxed)


def test_rows_are_split_and_the_rest_is_whole():
    mesh = mesh_of(2, 2, 2)
    tree = forest.path_tree([1, 2, 3], [0, 1, 1])
    rows = jax.tree.map(lambda x: x[None], forest.pack([tree] * 3, 3, rows=8))
    batch = dpo.Batch(rows, np.ones((1, 6), np.float32), np.zeros((1, 6), np.float32))
    placed = train.put_batch(mesh, batch)
    for array in placed.rows:
        assert array.sharding.spec == PartitionSpec(None, ("data", "fsdp"))
        assert array.addressable_shards[0].data.shape[:2] == (1, 2)
    assert placed.lengths.sharding.is_fully_replicated
    np.testing.assert_array_equal(placed.rows.tokens, rows.tokens)
    shardings = train.batch_shardings(mesh, batch)
    assert shardings == jax.tree.map(lambda x: x.sharding, placed)


# Training.


def sft_run(mesh):
    """Losses of three SFT updates."""
    rng = np.random.default_rng(1)
    trees = []
    for n in range(24):
        weights = [0.0] * (2 + n % 3) + [1.0] * (12 + n % 5) + [2.0]
        trees.append(forest.path_tree(ids(rng, len(weights)), weights))
    phase = sft.Phase("main", 1.0, 0.0, 1, 0, 0.0, 8, OPTIONS)
    batch_at = sft.batch_function(
        phase,
        0,
        {"ift": trees, "eft": []},
        mesh=mesh,
        row_length=ROW,
        micro_batches=1,
        seed=0,
    )
    model = lm.Decoder(CONFIG, mesh)
    loss = functools.partial(sft.loss, model=model)
    return updates(model, loss, None, [batch_at(n) for n in range(3)])


def dpo_run(mesh):
    """Losses of three step-DPO updates on 20 pairs of 10 problems, live reference."""
    rng = np.random.default_rng(2)
    pairs = []
    for n in range(10):
        context = ids(rng, 4 + n % 4)
        for _ in range(2):
            pairs.append(IdPair(context, ids(rng, 2 + n % 3), ids(rng, 4 - n % 3)))
            context += pairs[-1].chosen
    found = dpo.make_batches(
        pairs,
        mesh=mesh,
        batch_size=8,
        micro_batches=1,
        row_length=ROW,
        epochs=1,
        seed=0,
    )
    options = dpo.Options(beta=0.5, reference="live")
    model = lm.Decoder(CONFIG, mesh)
    loss = functools.partial(dpo.loss, model=model, options=options)
    batches = [train.put_batch(mesh, batch) for batch in found]
    return updates(model, loss, parameters(model), batches)


def updates(model, loss, reference, batches):
    optimizer = train.make_optimizer(OPTIONS, len(batches))
    state = train.init_state(parameters(model), optimizer)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    update = train.make_update(loss, optimizer, shardings)
    found = []
    for batch in batches:
        state, metrics = update(state, reference, batch)
        found.append(jax.tree.map(float, metrics))
    # What is split stays split, and nothing is compiled twice.
    assert jax.tree.map(lambda x: x.sharding, state) == shardings
    assert update._cache_size() == 1
    if reference is not None:  # it is still there, bit by bit
        digests = checkpoint.array_digests(reference)
        assert digests == checkpoint.array_digests(
            random_parameters(lm.abstract_params(model))
        )
        moved = checkpoint.array_digests(state.params)
        assert all(moved[name] != digests[name] for name in digests)
    return found


@functools.cache
def on_one_device(run):
    return run(mesh_of(1, 1, 1))


@pytest.mark.parametrize("shape", [(8, 1, 1), (4, 2, 1), (2, 2, 2)])
@pytest.mark.parametrize("run", [sft_run, dpo_run])
def test_eight_devices_give_the_losses_of_one(run, shape, capfd):
    one, eight = on_one_device(run), run(mesh_of(*shape))
    assert REMATERIALIZED not in capfd.readouterr().err
    assert len(one) == 3
    losses = [metrics["loss"] for metrics in one]
    assert len({round(loss, 3) for loss in losses}) == 3  # they do move
    for alone, together in zip(one, eight, strict=True):
        assert together["loss"] == pytest.approx(alone["loss"], rel=5e-5)
        assert alone.keys() == together.keys()
        for name, value in alone.items():
            assert together[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


# What the compiler makes of it.

REMATERIALIZED = "Involuntary full rematerialization"


def test_a_complaint_of_the_compiler_is_seen(capfd):
    """A control for the runs above: a move of data that XLA is known to complain about.

    From rows split eight ways to columns split four ways: every device first takes all.
    """

    @jax.jit
    def move(x):
        for spec in (PartitionSpec(sharding.MESH_AXES), PartitionSpec(None, columns)):
            x = jax.lax.with_sharding_constraint(x + 1, NamedSharding(mesh, spec))
        return x

    mesh, columns = mesh_of(2, 2, 2), ("fsdp", "tensor")
    move(np.zeros((8, 8), np.float32))
    assert REMATERIALIZED in capfd.readouterr().err


def temporary_bytes(shape):
    """What one device keeps besides the parameters for an SFT loss of 16 rows."""
    mesh = mesh_of(*shape)
    config = dataclasses.replace(CONFIG, hidden_size=16, intermediate_size=512)
    model = lm.Decoder(config, mesh)
    boxed = lm.abstract_params(model)
    params = jax.tree.map(
        lambda x, own: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=own),
        lm.unboxed(boxed),
        sharding.param_shardings(mesh, boxed),
    )
    tree = forest.path_tree([1] * 128, [0] * 64 + [1] * 64)
    rows = forest.pack([tree] * 16, 128)
    split = sharding.split_rows(mesh)
    rows = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split), rows
    )
    loss = functools.partial(sft.loss, model=model)
    compiled = jax.jit(loss).lower(params, None, rows).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_parameter_shards_come_together_and_activations_do_not():
    # With parameters split eight ways, a device still holds an eighth of the rows.
    whole, split = temporary_bytes((8, 1, 1)), temporary_bytes((1, 8, 1))
    assert split < 1.1 * whole
