"""Every public loss on explicit and automatic meshes against one device.

Only jax, numpy and pytest are needed.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from losses_formulas import same

import stepjax

ROWS, LENGTH, VOCAB, WIDTH, FLAT = 4, 6, 16, 8, 18

# The axes of each input; those of one name are split alike.
AXES = {
    "logits": ("rows", "tokens", "vocab"),
    "hidden": ("rows", "tokens", "width"),
    "unembedding": ("vocab", "width"),
    "flat": ("rows", "width"),
    "ids": ("rows", "tokens"),
    "chosen": ("rows", "tokens"),
    "rejected": ("rows", "tokens"),
    "reference": ("rows",),
    "targets": ("rows",),
}
TRAINED = ("logits", "hidden", "unembedding", "flat")
# Which mesh axis, of 2 x 4 devices, splits which of these axes.
LAYOUTS = {
    "rows_and_vocabulary": {"rows": "data", "vocab": "model"},
    "tokens_and_width": {"tokens": "data", "width": "model"},
    "vocabulary_over_all_devices": {"vocab": ("data", "model")},
}
KINDS = {"explicit": AxisType.Explicit, "automatic": AxisType.Auto}


@pytest.fixture(scope="module", autouse=True)
def quick_compiles():
    """Programs are compiled with few optimizations, which takes less time."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def make_inputs():
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    def mask():
        return np.arange(LENGTH) >= rng.integers(1, LENGTH, (ROWS, 1))

    return {
        "logits": normal(ROWS, LENGTH, VOCAB),
        "hidden": normal(ROWS, LENGTH, WIDTH),
        "unembedding": normal(VOCAB, WIDTH),
        "flat": normal(FLAT, WIDTH),
        "ids": rng.integers(0, VOCAB, (ROWS, LENGTH)),
        "chosen": mask(),
        "rejected": mask(),
        "reference": normal(ROWS) - 4,
        "targets": rng.integers(0, VOCAB - 1, FLAT),
    }


def every_loss(x):
    """Returns the result of each public function under its name.

    Chunks of 5 and 7 tokens divide neither the numbers of tokens nor their shares.
    """
    logits, ids, masks = x["logits"], x["ids"], (x["chosen"], x["rejected"])
    chosen = stepjax.step_logps(logits, ids, masks[0])
    hidden = x["hidden"], x["unembedding"], ids, masks[1]
    options = {"max_scored": LENGTH, "chunk": 5}
    rejected = stepjax.step_logps_from_hidden(*hidden, **options)
    four = chosen, rejected, x["reference"], x["reference"] + 1
    lengths = tuple(stepjax.step_lengths(mask) for mask in masks)
    batch = {
        "chosen_tokens": ids,
        "chosen_mask": masks[0],
        "rejected_tokens": ids,
        "rejected_mask": masks[1],
        "reference_chosen_logps": x["reference"],
        "reference_rejected_logps": x["reference"],
    }
    return {
        "step_logps": chosen,
        "step_logps_from_hidden": rejected,
        "step_lengths": lengths,
        "token_logps_from_hidden": stepjax.token_logps_from_hidden(
            x["flat"], x["unembedding"], x["targets"], chunk=7, vocab_size=VOCAB - 1
        ),
        "length_desensitised_logps": stepjax.length_desensitised_logps(
            logits, ids, *masks, alpha=0.5
        ),
        "sft_loss": stepjax.sft_loss(logits, ids, masks[1]),
        "step_dpo": stepjax.step_dpo(lambda p, tokens: p, logits, None, batch),
        "step_dpo_metrics": stepjax.step_dpo_metrics(*four),
        "step_dpo_loss": stepjax.step_dpo_loss(*four, label_smoothing=0.2),
        "conservative_dpo_loss": stepjax.conservative_dpo_loss(
            *four, label_smoothing=0.2
        ),
        "robust_dpo_loss": stepjax.robust_dpo_loss(*four, label_smoothing=0.2),
        "hinge_dpo_loss": stepjax.hinge_dpo_loss(*four),
        "ipo_summed_loss": stepjax.ipo_summed_loss(*four, beta=0.5),
        "ipo_averaged_loss": stepjax.ipo_averaged_loss(*four, *lengths, beta=0.5),
        "dpo_nll_loss": stepjax.dpo_nll_loss(*four, lengths[0]),
        "simpo_loss": stepjax.simpo_loss(*four[:2], *lengths),
        "orpo_loss": stepjax.orpo_loss(*four[:2], *lengths),
    }


def gradient(losses):
    """Returns a jitted function of the inputs: (gradients, results of `losses`)."""

    def total(trained, rest):
        results = losses(trained | rest)
        return sum(jnp.mean(r) for r in jax.tree.leaves(results)), results

    @jax.jit
    def run(x):
        trained = {name: x[name] for name in TRAINED}
        rest = {name: x[name] for name in x if name not in TRAINED}
        return jax.grad(total, has_aux=True)(trained, rest)

    return run


def nearly(got, expected):
    """Compares sums of another order, whose last digits differ."""
    same(got, expected, rtol=1e-4)


def spec(name, layout):
    return P(*(layout.get(axis) for axis in AXES[name]))


def split(x, mesh, layout):
    """Puts the inputs on the devices of the mesh."""
    return {
        name: jax.device_put(array, NamedSharding(mesh, spec(name, layout)))
        for name, array in x.items()
    }


def make_mesh(kind):
    return jax.make_mesh((2, 4), ("data", "model"), axis_types=(KINDS[kind],) * 2)


@pytest.fixture(scope="module")
def expected():
    grads, results = gradient(every_loss)(make_inputs())
    assert set(results) == set(stepjax.__all__)
    assert np.ptp(results["token_logps_from_hidden"]) > 1
    assert all(np.abs(grads[name]).max() > 1e-2 for name in TRAINED)
    return jax.tree.map(np.asarray, (grads, results))


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        *(("explicit", layout) for layout in LAYOUTS),
        ("automatic", "rows_and_vocabulary"),
    ],
)
def test_a_split_axis_changes_no_loss_and_no_gradient(kind, layout, expected):
    mesh = make_mesh(kind)
    got = gradient(every_loss)(split(make_inputs(), mesh, LAYOUTS[layout]))
    jax.tree.map(nearly, got, expected)
    if kind == "explicit":  # then the type of an array says how it is split
        for name, grads in got[0].items():
            assert jax.typeof(grads).sharding.spec == spec(name, LAYOUTS[layout])
        rows = P(LAYOUTS[layout].get("rows"))
        for name in ("step_logps", "step_logps_from_hidden", "orpo_loss"):
            assert jax.typeof(got[1][name]).sharding.spec == rows


@pytest.mark.parametrize("kind", KINDS)
def test_shard_map_over_rows_leaves_the_vocabulary_split(kind, expected):
    mesh, layout = make_mesh(kind), LAYOUTS["rows_and_vocabulary"]
    inputs = make_inputs()
    by_rows = {name: P("data" if AXES[name][0] == "rows" else None) for name in inputs}
    shapes = jax.eval_shape(every_loss, inputs)

    def local(x):
        grads, results = gradient(every_loss)(x)  # of this device's rows
        # Means over all rows are means over the two shares.
        grads = jax.tree.map(lambda g: g / 2, grads)
        return grads, jax.tree.map(
            lambda r: r if r.ndim else jax.lax.pmean(r, "data"), results
        )

    share = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(by_rows,),
        out_specs=(
            {name: by_rows[name] for name in TRAINED},
            jax.tree.map(lambda r: P("data") if r.ndim else P(), shapes),
        ),
        axis_names={"data"},
    )
    got = jax.jit(share)(split(inputs, mesh, layout))
    jax.tree.map(nearly, got, expected)


def test_without_jit_an_explicit_mesh_gives_the_same(expected):
    mesh, inputs = make_mesh("explicit"), make_inputs()
    x = split(inputs, mesh, LAYOUTS["rows_and_vocabulary"])
    logps = stepjax.step_logps(x["logits"], x["ids"], x["chosen"])
    with jax.set_mesh(mesh):
        hidden = x["hidden"], x["unembedding"], x["ids"], x["rejected"]
        others = stepjax.step_logps_from_hidden(*hidden, max_scored=LENGTH, chunk=5)
        # An input that lies on no mesh is taken, too.
        mixed = stepjax.step_logps(x["logits"], inputs["ids"], inputs["chosen"])
    same(logps, expected[1]["step_logps"])
    same(others, expected[1]["step_logps_from_hidden"])
    same(mixed, expected[1]["step_logps"])
