"""One training loop for SFT and step-DPO: pure updates, sums over micro-batches.

An update takes a state and a batch and returns a state and metrics; the loop around
it only feeds batches by number, logs, and saves. Batch number n is a function of the
seed and n, so an interrupted run continues exactly.

A batch is a pytree of arrays with a leading axis of micro-batches, [M, R, ...]. Their
gradients are summed, and the sum is divided once by the count of the whole batch.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from stepjax import forest, interrupts
from stepjax.lm import checkpoint, embedding, sharding
from stepjax.lm import model as lm

MOST_SKIPPED = 20  # updates in a row
_SHOWN = 32  # most ids of rows in a message
_REMEDY = (
    "Look at these rows, lower the learning rate, or set train.on_nonfinite='skip'. "
    "The same command goes on from the last state that was saved before this update."
)
LossFunction = Callable[..., tuple[jax.Array, tuple[jax.Array, dict]]]


class TrainState(NamedTuple):
    """What training changes; the reference is never part of it."""

    params: Any
    opt_state: Any


class OptimizerOptions(NamedTuple):
    """AdamW with a warm-up and a schedule.

    Attributes:
      learning_rate: peak.
      schedule: "constant" or "cosine" (to `final_fraction` of the peak).
      warmup_steps: updates over which the rate rises linearly to the peak; 0: none.
      final_fraction: last learning rate divided by the peak, for "cosine" only.
      b1: AdamW's first decay.
      b2: AdamW's second decay.
      weight_decay: decoupled; of matrices only, not of norms or biases.
      clip_norm: largest global gradient norm.
    """

    learning_rate: float
    schedule: str = "constant"
    warmup_steps: int = 0
    final_fraction: float = 0.1
    b1: float = 0.9
    b2: float = 0.999
    weight_decay: float = 0.0
    clip_norm: float = 1.0


def learning_rates(options: OptimizerOptions, steps: int) -> optax.Schedule:
    """Returns a function: updates done → learning rate of the next update.

    Args:
      options: of the optimizer.
      steps: updates of the whole training.

    Raises:
      ValueError: for an unknown schedule.
    """
    peak, warmup = options.learning_rate, options.warmup_steps
    if options.schedule == "constant":
        rate = optax.constant_schedule(peak)
    elif options.schedule == "cosine":
        left = max(steps - warmup, 1)
        rate = optax.cosine_decay_schedule(peak, left, options.final_fraction)
    else:
        raise ValueError(
            f"schedule={options.schedule!r}; expected 'constant' or 'cosine'."
        )
    if warmup:
        rate = optax.join_schedules(
            [optax.linear_schedule(peak / warmup, peak, warmup), rate], [warmup]
        )
    return rate


def make_optimizer(options: OptimizerOptions, steps: int, dtype: str = "float32"):
    """Returns the optax transformation for a run of `steps` updates.

    Args:
      options: of AdamW and the schedule.
      steps: updates of the whole training.
      dtype: type of AdamW's first moment. The second one is float32 always: an update
        changes it by less than bfloat16 can tell apart.

    Raises:
      ValueError: for an unknown schedule.
    """
    return optax.chain(
        optax.clip_by_global_norm(options.clip_norm),
        optax.adamw(
            learning_rates(options, steps),
            b1=options.b1,
            b2=options.b2,
            weight_decay=options.weight_decay,
            mask=_decayed,
            mu_dtype=None if dtype == "float32" else dtype,
        ),
    )


def _decayed(params):
    def is_matrix(path, _):
        name = jax.tree_util.keystr(path)
        return not ("norm" in name or "bias" in name)

    return jax.tree_util.tree_map_with_path(is_matrix, params)


def parent_states(model: lm.Decoder, params: Any, rows: forest.Rows) -> jax.Array:
    """Returns the hidden state that predicts each scored token, [R, S, E]."""
    hidden = model.apply(
        {"params": params}, rows.tokens, rows.position, rows.subtree_end
    )
    parent = jnp.take_along_axis(rows.parent, rows.scored, 1)
    parent = jnp.maximum(parent, 0)  # padding points at a root
    return jnp.take_along_axis(hidden, parent[..., None], 1)


def scored_logps(model: lm.Decoder, params: Any, rows: forest.Rows) -> jax.Array:
    """Returns the log-probability of every scored token, [R, S] float32, 0 for padding.

    Logits exist only for scored tokens, in float32, in chunks; each comes from the
    hidden state of the token's parent.
    """
    return state_logps(model, params, rows, parent_states(model, params, rows))


def state_logps(
    model: lm.Decoder, params: Any, rows: forest.Rows, states: jax.Array
) -> jax.Array:
    """Returns `scored_logps` from the `parent_states` of the same model and rows."""
    targets = jnp.take_along_axis(rows.tokens, rows.scored, 1)
    logps = embedding.token_logps(states, lm.unembedding(params), targets, model.mesh)
    return jnp.where(rows.weight > 0, logps, 0.0)


def segment_sums(logps: jax.Array, rows: forest.Rows, segments: int) -> jax.Array:
    """Returns the sum of log-probabilities of each segment, [segments] float32."""
    values = jnp.where(rows.weight > 0, logps, 0.0)
    return jax.ops.segment_sum(
        values.reshape(-1), rows.segment.reshape(-1), num_segments=segments
    )


def init_params(model: lm.Decoder, mesh: Mesh, seed: int, part=lambda params: params):
    """Returns random parameters, or a part of them; each device creates its own."""
    shardings = part(sharding.param_shardings(mesh, lm.abstract_params(model)))
    make = jax.jit(lambda key: part(lm.init(model, key)), out_shardings=shardings)
    return make(jax.random.key(seed))


def state_shardings(params: Any, optimizer) -> TrainState:
    """Returns the shardings of a state: moments like their parameter, counters whole.

    Args:
      params: parameters on a mesh (arrays or ShapeDtypeStructs with shardings).
      optimizer: from `make_optimizer`.
    """
    shardings = jax.tree.map(lambda x: x.sharding, params)
    whole = sharding.replicated(jax.tree.leaves(shardings)[0].mesh)
    opt_state = optax.tree.map_params(
        optimizer,
        lambda _, of_parameter: of_parameter,
        jax.eval_shape(optimizer.init, params),
        shardings,
        transform_non_params=lambda _: whole,
    )
    return TrainState(shardings, opt_state)


def init_state(params: Any, optimizer) -> TrainState:
    """Returns the state before the first update, created in `state_shardings`."""
    shardings = state_shardings(params, optimizer)
    init = jax.jit(optimizer.init, out_shardings=shardings.opt_state)
    return TrainState(params, init(params))


def make_update(
    loss: LossFunction,
    optimizer,
    shardings: TrainState | None = None,
    *,
    skip: bool = False,
) -> Callable:
    """Returns the jitted ``update(state, reference, batch) -> (state, metrics)``.

    Args:
      loss: ``loss(params, reference, micro_batch)`` returns (sum, (count, sums)):
        the loss summed over the weights, the sum of the weights, and a dict of
        further sums; metrics are these sums divided by the count.
      optimizer: from `make_optimizer`.
      shardings: `state_shardings`, which the new state keeps; None lets XLA choose,
        which can move parameters and compile the second update once more.
      skip: whether an update with a metric that is not finite leaves the state as it
        was; the metric "skipped" is then 1, and otherwise 0.

    The state is donated; the reference is a separate argument and is not donated.
    """

    def update(state: TrainState, reference, batch):
        def totals(micro):
            differentiate = jax.value_and_grad(loss, has_aux=True)
            (value, (count, sums)), gradient = differentiate(
                state.params, reference, micro
            )
            return value, count, sums, gradient

        def add(total, micro):
            return jax.tree.map(jnp.add, total, totals(micro)), None

        first = jax.tree.map(lambda x: x[0], batch)
        if jax.tree.leaves(batch)[0].shape[0] == 1:
            total = totals(first)
        else:
            shapes = jax.eval_shape(totals, first)
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            total, _ = jax.lax.scan(add, zeros, batch)
        value, count, sums, gradient = total
        gradient = jax.tree.map(lambda g: g / count, gradient)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": value / count, "grad_norm": optax.global_norm(gradient)}
        metrics |= {name: value / count for name, value in sums.items()}
        new = TrainState(params, opt_state)
        if skip:
            good = jnp.stack([jnp.isfinite(x) for x in metrics.values()]).all()
            new = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, state)
            metrics["skipped"] = 1.0 - good.astype(jnp.float32)
        return new, metrics

    return jax.jit(update, donate_argnames=("state",), out_shardings=(shardings, None))


def batch_shardings(mesh: Mesh, batch: Any) -> Any:
    """Returns the tree of shardings of a batch.

    Args:
      mesh: from `sharding.make_mesh`.
      batch: pytree of arrays or shapes, [M, R, ...]. The leaves of a `forest.Rows` are
        split over axis 1; every other leaf is whole on every device.
    """
    split, whole = sharding.split_rows(mesh, axis=1), sharding.replicated(mesh)

    def is_rows(part):
        return isinstance(part, forest.Rows)

    def shardings(part):
        one = split if is_rows(part) else whole
        return jax.tree.map(lambda _: one, part)

    return jax.tree.map(shardings, batch, is_leaf=is_rows)


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """Places a host batch on the devices, as `batch_shardings` says.

    On several hosts, each host gives the same whole batch and places the part of its
    own devices.

    Args:
      mesh: from `sharding.make_mesh`.
      batch: pytree of numpy arrays [M, R, ...].
    """

    def put(x, sharding):
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda at: x[at])

    return jax.tree.map(put, batch, batch_shardings(mesh, batch))


def fit(
    update: Callable,
    state: TrainState,
    reference: Any,
    batch_at: Callable[[int], Any],
    steps: int,
    *,
    saver: checkpoint.TrainSaver,
    done: int = 0,
    finished: bool = False,
    on_log: Callable[[int, dict[str, float]], None],
    on_update: Callable[[int], None] = lambda done: None,
    on_skip: Callable[[str], None] = lambda text: None,
    rows_at: Callable[[int], Sequence[str]] = lambda number: (),
    log_every: int = 20,
    stop_loss: float = 0.0,
) -> tuple[TrainState, int]:
    """Runs updates until `steps`, or until the mean loss of a log period is low.

    Args:
      update: from `make_update`.
      state: new or restored; it is donated.
      reference: passed to the loss.
      batch_at: number → batch on device. It is asked for while the devices compute the
        update before, because `update` does not wait for them; only after a log period
        do they wait for the host.
      steps: largest number of updates.
      saver: keeps the state between updates.
      done: updates that the given state has had (from `saver.restore`).
      finished: training ended with the given state (from `saver.restore`).
      on_log: called with the updates done and the mean metrics of the period.
      on_update: called with the updates done. The devices are then one update ahead:
        they never wait for the host, and the host never counts what is not computed.
      on_skip: called with a sentence about each update that was skipped.
      rows_at: number of an update, from 0 → ids of the rows in its batch, for messages.
      log_every: updates per log period.
      stop_loss: stop after a period whose mean loss is below it; 0 never stops early.

    Returns:
      (state, updates done).

    Raises:
      FloatingPointError: when a metric (the loss, the gradient's norm) is not finite,
        one update later at most, or when `MOST_SKIPPED` updates in a row were skipped;
        nothing is saved after it.
      interrupts.Stopped: a signal asked to stop; the last update is saved.
    """
    period: list[dict] = list(saver.period)
    skipped = 0

    def on_host(metrics: dict, number: int) -> dict[str, float]:
        """Waits for the metrics of an update; returns them, or raises."""
        nonlocal skipped
        host = {name: float(x) for name, x in jax.device_get(metrics).items()}
        wrong = _not_finite(host, number, rows_at)
        skipped = skipped + 1 if wrong else 0
        if not wrong:
            return host
        if not host.get("skipped"):
            raise FloatingPointError(f"{wrong} {_REMEDY}")
        if skipped >= MOST_SKIPPED:
            raise FloatingPointError(
                f"{skipped} updates in a row were skipped; {wrong} {_REMEDY}"
            )
        on_skip(f"{wrong} It is skipped (train.on_nonfinite='skip').")
        return {"skipped": 1.0}

    while done < steps and not finished:
        state, metrics = update(state, reference, batch_at(done))
        if period:
            period[-1] = on_host(period[-1], done)
            on_update(done)
        done += 1
        period.append(metrics)
        if done % log_every == 0 or done == steps:
            period[-1] = on_host(period[-1], done)
            mean = _means(period)
            period = []
            on_log(done, mean)
            low = mean.get("loss", math.inf) < stop_loss
            finished = low or done == steps
        saver.maybe_save(state, done, over=finished, pending=bool(period))
        if not finished and interrupts.reached():
            if period:
                period[-1] = on_host(period[-1], done)
            saver.save(state, done, period=period)
            raise interrupts.Stopped(f"update {done} of {steps} is saved")
    return state, done


def _not_finite(
    metrics: dict[str, float], number: int, rows_at: Callable[[int], Sequence[str]]
) -> str:
    """Returns a sentence about the first metric that is not finite; "" without one.

    Args:
      metrics: of an update.
      number: of the update, from 1.
      rows_at: see `fit`.
    """
    for name in sorted(metrics, key=lambda name: name != "loss"):  # the loss first
        if math.isfinite(metrics[name]):
            continue
        ids = list(rows_at(number - 1))
        more = f" and {len(ids) - _SHOWN} more" * (len(ids) > _SHOWN)
        said = f" Its batch holds {', '.join(ids[:_SHOWN])}{more}." if ids else ""
        return (
            f"the {name} of update {number} is {metrics[name]}; expected a finite "
            f"number.{said}"
        )
    return ""


def _means(period: list[dict[str, float]]) -> dict[str, float]:
    """Returns the mean of each metric over a log period, and how many were skipped."""
    result = {}
    for name in dict.fromkeys(name for metrics in period for name in metrics):
        values = [metrics[name] for metrics in period if name in metrics]
        result[name] = math.fsum(values) / len(values)
        if name == "skipped":
            result[name] = math.fsum(values)
    return result
