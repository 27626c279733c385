"""Updates, accumulation, and a loop that can be killed at any time."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fakes import random_parameters
from runs import one_device_mesh

from stepjax import dpo, forest, sft
from stepjax.forest import IdPair
from stepjax.lm import checkpoint, sharding, train
from stepjax.lm import model as lm

CONFIG = lm.ModelConfig(
    vocab_size=26,
    hidden_size=20,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    intermediate_size=28,
)
MODEL = lm.Decoder(CONFIG)
ROW = 24

pytestmark = pytest.mark.usefixtures("quick_compiles")


def parameters(mesh, seed=0):
    """Random parameters in their shardings, without a compilation."""
    boxed = lm.abstract_params(MODEL)
    shardings = sharding.param_shardings(mesh, boxed)
    return jax.device_put(random_parameters(boxed, seed), shardings)


def ids(rng, n):
    return tuple(int(x) for x in rng.integers(0, CONFIG.vocab_size, n))


def sequences(count):
    """Paths of different lengths, a row each, with weights 1 and 2 after the prompt."""
    rng = np.random.default_rng(1)
    found = []
    for n in range(count):
        weights = [0.0] * (2 + n % 3) + [1.0] * (12 + n % 5) + [2.0]
        found.append(forest.path_tree(ids(rng, len(weights)), weights))
    return found


def pairs(count):
    rng = np.random.default_rng(2)
    return [
        IdPair(ids(rng, 4 + n), ids(rng, 2 + n % 3), ids(rng, 5 - n % 4))
        for n in range(count)
    ]


def sft_batches(mesh, micro_batches):
    phase = sft.Phase("main", 1.0, 0.0, 3, 0, 0.0, 8, train.OptimizerOptions(1e-2))
    return sft.batch_function(
        phase,
        0,
        {"ift": sequences(16), "eft": []},
        mesh=mesh,
        row_length=ROW,
        micro_batches=micro_batches,
        seed=4,
    )


def largest_difference(got, want):
    """Over all arrays, relative to the largest entry of each."""
    both = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    both = [(np.asarray(a), np.asarray(b)) for a, b in both]
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in both)


def assert_bitwise_equal(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


# Accumulation.


def one_update(loss, reference, batch):
    """Change of the parameters (the gradient, with this optimizer), and metrics."""
    mesh, optimizer = one_device_mesh(), optax.sgd(1.0)
    before = parameters(mesh)
    update = train.make_update(loss, optimizer)
    state = train.init_state(parameters(mesh), optimizer)
    state, metrics = update(state, reference, train.put_batch(mesh, batch))
    assert jax.tree.leaves(batch)[0].shape[0] in (1, 8)
    change = jax.tree.map(lambda a, b: a - b, before, state.params)
    return change, metrics


def assert_same_update(one, eight):
    assert largest_difference(eight[0], one[0]) < 1e-5
    assert float(one[1]["grad_norm"]) > 0.1
    for name, value in one[1].items():
        np.testing.assert_allclose(eight[1][name], value, rtol=1e-5, atol=1e-6)


def test_eight_micro_batches_of_one_are_one_of_eight_sft():
    loss = functools.partial(sft.loss, model=MODEL)
    batches = [
        jax.tree.map(np.asarray, sft_batches(one_device_mesh(), parts)(0))
        for parts in (1, 8)
    ]
    assert [b.tokens.shape[0] for b in batches] == [1, 8]
    # The parts count differently, so a mean of means would be another number.
    weights = batches[1].weight.sum((1, 2))
    assert len(set(weights)) >= 4 and weights.sum() == batches[0].weight.sum()
    one, eight = (one_update(loss, None, batch) for batch in batches)
    assert_same_update(one, eight)


def test_eight_micro_batches_of_one_are_one_of_eight_dpo():
    options = dpo.Options(beta=0.3, nll_weight=0.1, reference="live")
    loss = functools.partial(dpo.loss, model=MODEL, options=options)
    settings = {"batch_size": 8, "row_length": ROW, "epochs": 1, "seed": 0}
    one, eight = (
        one_update(
            loss,
            parameters(one_device_mesh(), seed=7),
            dpo.make_batches(
                pairs(7), mesh=one_device_mesh(), micro_batches=parts, **settings
            )[0],
        )
        for parts in (1, 8)  # of seven pairs: the last part is empty
    )
    assert_same_update(one, eight)


# The optimizer.


def learning_rates(options, steps):
    """Rates of the updates, from the steps of a parameter with gradient 1."""
    optimizer = train.make_optimizer(options, steps)
    params = {"kernel": jnp.zeros(())}
    state, found = optimizer.init(params), []
    for _ in range(steps):
        change, state = optimizer.update({"kernel": jnp.ones(())}, state, params)
        found.append(-float(change["kernel"]))
    return found


def test_schedules():
    steady = train.OptimizerOptions(0.5, warmup_steps=4)
    expected = [0.125, 0.21875, 0.3125, 0.40625, 0.5, 0.5]
    assert learning_rates(steady, 6) == pytest.approx(expected, rel=1e-4)
    cosine = train.OptimizerOptions(0.5, "cosine", final_fraction=0.2)
    expected = [
        0.5 * (0.2 + 0.8 * (1 + math.cos(math.pi * n / 5)) / 2) for n in range(5)
    ]
    assert learning_rates(cosine, 5) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="schedule='linear'; expected 'constant' or"):
        train.make_optimizer(train.OptimizerOptions(0.5, "linear"), 5)


def test_decay_is_on_matrices_and_clipping_on_the_whole_gradient():
    params = lm.unboxed(lm.abstract_params(MODEL))
    params = jax.tree.map(lambda x: jnp.ones(()), params)  # only names matter
    zeros = jax.tree.map(jnp.zeros_like, params)
    optimizer = train.make_optimizer(train.OptimizerOptions(0.5, weight_decay=0.1), 9)
    change, _ = optimizer.update(zeros, optimizer.init(params), params)
    moved = {
        jax.tree_util.keystr(path)
        for path, x in jax.tree_util.tree_leaves_with_path(change)
        if np.allclose(x, -0.05)
    }
    names = [f"['layers']['{n}']" for n in "down gate key out query up value".split()]
    assert moved == {*names, "['embedding']", "['unembedding']"}
    for path, x in jax.tree_util.tree_leaves_with_path(change):
        assert jax.tree_util.keystr(path) in moved or not np.any(x)

    optimizer = train.make_optimizer(train.OptimizerOptions(0.5, clip_norm=2.0), 9)
    gradient = {"a": jnp.asarray([6.0, 0.0]), "b": jnp.asarray([8.0])}
    _, state = optimizer.update(gradient, optimizer.init(gradient), gradient)
    (moments,) = (s for s in jax.tree.leaves(state, is_leaf=has_mu) if has_mu(s))
    first = jax.tree.map(lambda x: np.asarray(x / 0.1), moments.mu)  # 1 - b1
    np.testing.assert_allclose(first["a"], [1.2, 0.0], rtol=1e-5)
    np.testing.assert_allclose(first["b"], [1.6], rtol=1e-5)


def has_mu(x):
    return hasattr(x, "mu")


# The loop.


class Killed(BaseException):
    pass


def killed_at(step, batch_at):
    def batch(number):
        if number == step:
            raise Killed
        return batch_at(number)

    return batch


def test_a_killed_run_ends_bitwise_like_an_unbroken_one(tmp_path, capfd):
    mesh = sharding.make_mesh(2, 2, 2)
    options = train.OptimizerOptions(1e-2, "cosine", warmup_steps=2, weight_decay=0.1)
    optimizer = train.make_optimizer(options, 6)
    batch_at = sft_batches(mesh, 2)
    loss = functools.partial(sft.loss, model=lm.Decoder(CONFIG, mesh))

    def fresh():
        return train.init_state(parameters(mesh), optimizer)

    update = train.make_update(
        loss, optimizer, train.state_shardings(fresh().params, optimizer)
    )

    def run(name, batch_at, log):
        saver = checkpoint.TrainSaver(tmp_path / name, 2)
        state, done, finished = saver.restore(fresh())
        return done, train.fit(
            update,
            state,
            None,
            batch_at,
            6,
            saver=saver,
            done=done,
            finished=finished,
            on_log=lambda now, metrics: log.append((now, metrics)),
            log_every=2,
        )

    log, broken_log = [], []
    began, (unbroken, done) = run("unbroken", batch_at, log)
    assert (began, done) == (0, 6)
    assert [now for now, _ in log] == [2, 4, 6]
    assert log[2][1]["loss"] < log[0][1]["loss"] - 0.5
    with pytest.raises(Killed):
        run("broken", killed_at(5, batch_at), broken_log)
    began, (resumed, done) = run("broken", batch_at, broken_log)
    assert (began, done) == (4, 6)  # the fifth update was done twice
    assert broken_log == log
    assert_bitwise_equal(resumed, unbroken)

    # The newest state is damaged: the older one leads to the same end.
    for path in (tmp_path / "broken" / "step_00000004").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    began, (resumed, _) = run("broken", batch_at, broken_log)
    assert began == 2
    assert_bitwise_equal(resumed, unbroken)
    # Nothing moved between devices on the way, and nothing was compiled twice.
    shardings = jax.tree.map(lambda x: x.sharding, fresh())
    assert jax.tree.map(lambda x: x.sharding, resumed) == shardings
    assert shardings.params["embedding"].shard_shape((26, 20)) == (13, 10)
    assert update._cache_size() == 1
    assert "Involuntary full rematerialization" not in capfd.readouterr().err


def counting(losses, norms=None):
    """An update that counts in its state and reports the given losses."""

    def update(state, reference, batch):
        assert reference == "reference" and batch == 10 * int(state.opt_state)
        number = int(state.opt_state)
        norm = 1.0 if norms is None else norms[number]
        metrics = {"grad_norm": jnp.float32(norm), "loss": jnp.float32(losses[number])}
        params = jax.tree.map(lambda x: x + 1, state.params)
        return train.TrainState(params, state.opt_state + 1), metrics

    return update


def fit(tmp_path, update, steps, every=1, log_every=3, last=False, **settings):
    log = []
    state, done = train.fit(
        update,
        train.TrainState({"w": jnp.zeros(2)}, jnp.int32(0)),
        "reference",
        lambda number: 10 * number,
        steps,
        saver=checkpoint.TrainSaver(tmp_path, every, last=last),
        on_log=lambda now, metrics: log.append((now, metrics)),
        log_every=log_every,
        **settings,
    )
    assert state.params["w"].tolist() == [done, done]
    return done, log


def saved(tmp_path):
    return sorted(int(p.stem.removeprefix("step_")) for p in tmp_path.glob("*.json"))


def test_means_of_each_period_are_logged(tmp_path):
    done, log = fit(tmp_path, counting([6, 5, 1, 2, 2, 2, 9, 1], range(8)), 8)
    assert done == 8
    assert log == [
        (3, {"grad_norm": 1.0, "loss": 4.0}),
        (6, {"grad_norm": 4.0, "loss": 2.0}),
        (8, {"grad_norm": 6.5, "loss": 5.0}),
    ]
    assert saved(tmp_path) == [3, 6]  # the end is the caller's to save


def test_updates_are_counted_between_the_logs(tmp_path):
    counted, losses = [], [6, 5, 1, 2, 2, 2, 9, 1]
    fit(tmp_path, counting(losses), 8, log_every=4, on_update=counted.append)
    assert counted == [1, 2, 3, 5, 6, 7]  # `on_log` tells of the fourth and the last


def test_the_next_batch_is_made_before_the_host_waits_for_an_update(tmp_path):
    events = []

    class Metric:
        """A metric on a device: the host waits for it when it asks for its value."""

        def __init__(self, number):
            self.number = number

        def __array__(self, *_, **__):
            events.append(f"wait {self.number}")
            return np.float32(1)

    def update(state, reference, batch):
        events.append(f"update {batch}")
        return state, {"loss": Metric(batch)}

    def batch_at(number):
        events.append(f"batch {number}")
        return number

    train.fit(
        update,
        "state",
        None,
        batch_at,
        5,
        saver=checkpoint.TrainSaver(tmp_path, 0),
        on_log=lambda now, _: events.append("log"),
        log_every=4,
    )
    assert " ".join(events) == (
        "batch 0 update 0 batch 1 update 1 wait 0 batch 2 update 2 wait 1 "
        "batch 3 update 3 wait 2 wait 3 log batch 4 update 4 wait 4 log"
    )


def test_a_phase_stops_when_the_mean_loss_of_a_period_is_low(tmp_path):
    losses = [0.1, 0.1, 2.0, 0.5, 0.6, 0.3, 0.0, 0.0, 0.0]
    done, log = fit(tmp_path, counting(losses), 9, stop_loss=0.5, last=True)
    assert done == 6 and len(log) == 2  # not at the first two, which are no period
    assert saved(tmp_path) == [3, 6]
    # What was finished stays finished.
    saver = checkpoint.TrainSaver(tmp_path, 1)
    state, done, over = saver.restore(
        train.TrainState({"w": jnp.zeros(2)}, jnp.int32(0))
    )
    assert (done, over) == (6, True)
    again = train.fit(
        counting([]),
        state,
        "reference",
        lambda number: 10 * number,
        9,
        saver=saver,
        done=done,
        finished=over,
        on_log=lambda *_: pytest.fail("nothing is left to log"),
    )
    assert again == (state, 6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_what_is_not_finite_stops_the_run_and_is_not_saved(tmp_path, name, bad):
    values = [1.0] * 7 + [bad] + [math.nan] * 4
    other = [1.0] * 12
    chosen = (values, other) if name == "loss" else (other, values)
    with pytest.raises(FloatingPointError, match=rf"the {name} of update 8 is .*{bad}"):
        fit(tmp_path, counting(*chosen), 12)
    assert saved(tmp_path) == [3, 6]
    # In a single long period too, and no more than one update is done after it.
    done = []
    with pytest.raises(FloatingPointError, match=f"the {name} of update 8 is") as error:
        fit(
            *(tmp_path / "long", counting(*chosen), 12),
            **{"log_every": 50, "last": True, "on_update": done.append},
            rows_at=lambda number: [f"row-{number}-{n}" for n in range(40)],
        )
    assert saved(tmp_path / "long") == [] and done == [1, 2, 3, 4, 5, 6, 7]
    said = str(error.value)
    assert "row-7-0, row-7-1," in said and "row-7-31 and 8 more." in said
    assert "\n" not in said


def skipping(losses):
    """An update as `make_update` with `skip` makes it."""
    plain = counting(losses)

    def update(state, reference, batch):
        new, metrics = plain(state, reference, batch)
        metrics["skipped"] = jnp.float32(not np.isfinite(metrics["loss"]))
        return new, metrics

    return update


def test_skipped_updates_are_counted_and_named_and_left_out_of_the_means(tmp_path):
    said, nan = [], math.nan
    losses = [6, nan, 2, nan, math.inf, nan, 3]
    done, log = fit(
        *(tmp_path, skipping(losses), 7),
        **{"on_skip": said.append, "rows_at": lambda number: [f"row-{number}"]},
        stop_loss=1.0,
    )
    assert done == 7
    assert log == [
        (3, {"loss": 4.0, "grad_norm": 1.0, "skipped": 1.0}),
        (6, {"skipped": 3.0}),
        (7, {"loss": 3.0, "grad_norm": 1.0, "skipped": 0.0}),
    ]
    assert len(said) == 4
    assert said[2].startswith("the loss of update 5 is inf; expected a finite number.")
    assert "Its batch holds row-4." in said[2]


def test_many_skipped_updates_in_a_row_stop_the_run(tmp_path):
    losses = [1.0] + [math.nan] * 19 + [1.0] + [math.nan] * 30
    with pytest.raises(
        FloatingPointError, match="^20 updates in a row .* update 41 is"
    ):
        fit(tmp_path, skipping(losses), 51, log_every=5)


def test_an_update_that_is_not_finite_leaves_the_state_bitwise_as_it_was():
    optimizer = train.make_optimizer(train.OptimizerOptions(0.1), 10)
    params = {"w": jnp.array([-0.0, 1.0, -2.0])}

    def loss(params, reference, x):
        return (params["w"] * x).sum(), (jnp.float32(1), {"mean": params["w"].sum()})

    update = train.make_update(loss, optimizer, skip=True)
    state = train.TrainState(params, optimizer.init(params))
    for bad in (math.nan, math.inf):
        before = jax.tree.map(np.array, state)
        state, metrics = update(state, None, jnp.full((1, 3), bad))
        assert_bitwise_equal(state, before)
        assert metrics["skipped"] == 1
    plain = train.make_update(loss, optimizer)
    expected, _ = plain(jax.tree.map(jnp.array, before), None, jnp.ones((2, 3)))
    state, metrics = update(state, None, jnp.ones((2, 3)))
    assert_bitwise_equal(state, expected)
    assert metrics["skipped"] == 0
