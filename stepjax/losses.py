"""Losses of the method: step-wise DPO and supervised fine-tuning.

This file imports `jax` and nothing else, so it can be copied into another project
on its own. Every function is pure: arrays in, arrays out.

"Step-wise" is only the mask. For a pair (x, s1..s(l-1), sb, sw) the problem x and
the earlier steps are context c: conditioned on, never trained. Only the tokens of the
best step sb (chosen) and the worst step sw (rejected) are scored, and log pi(s | c) is
the *sum* of their log-probabilities (arXiv 2503.03746, step-wise DPO, eq. 6-8):

    A = beta * (log pi_policy(sb | c) - log pi_reference(sb | c))
    B = beta * (log pi_policy(sw | c) - log pi_reference(sw | c))
    L = -E[log sigmoid(A - B)]

Shapes: B rows of a batch, T tokens of a row, V vocabulary, D width of the hidden
states, N tokens in a flat list; nothing is broadcast. A mask may have any dtype and is
no weight: a token is selected where the mask is not zero. The forms with hidden states
give the numbers of the plain forms and never hold the logits of all tokens at once.

On a mesh, explicit (as `jax.make_mesh` makes it) or automatic, any axis of any input
may be split: rows, tokens, vocabulary, width. Results are split as the rows are.
"""

import jax
import jax.numpy as jnp


def step_logps(logits, tokens, step_mask):
    """Log-probability of each row's step: the sum over the tokens in the mask.

    The shift happens inside, `logits[:, t - 1]` scores `tokens[:, t]`. With t over the
    positions that `step_mask` selects (log pi of arXiv 2503.03746, eq. 6 and 7):

        logp[b] = sum_t log softmax(logits[b, t - 1])[tokens[b, t]]

    Nothing scores position 0: the mask is ignored there. Logits are masked before the
    log-softmax, so NaN or infinity where nothing is scored (padding) reaches neither
    value nor gradient, and token ids there may be anything.

    Args:
      logits: [B, T, V] any float dtype; converted to float32 before the log-softmax.
      tokens: [B, T] integer token ids.
      step_mask: [B, T] not zero on the tokens of the step.

    Returns:
      [B] float32 in nats, at most 0; 0 for a row without scored tokens, NaN for a row
      that scores a token id outside 0..V-1.

    Raises:
      ValueError: on any other shape, or token ids that are not integers.

    Example:
      >>> logits = jnp.zeros((2, 4, 5))  # every token has probability 1/5
      >>> tokens = jnp.array([[1, 2, 3, 4], [1, 2, 0, 0]])
      >>> step_mask = jnp.array([[0, 0, 1, 1], [0, 1, 0, 0]])
      >>> [round(float(x), 4) for x in step_logps(logits, tokens, step_mask)]
      [-3.2189, -1.6094]
    """
    logits, tokens, step_mask = map(jnp.asarray, (logits, tokens, step_mask))
    _check_shape("logits", logits, "[B, T, V]", (None, None, None))
    _check_ids("tokens", tokens, "[B, T]", logits.shape[:2])
    _check_shape("mask", step_mask, "[B, T]", tokens.shape)
    return _on_any_mesh(_step_logps, (logits, tokens, step_mask))


def _step_logps(logits, tokens, step_mask):
    scored = step_mask[:, 1:] != 0  # [B, T - 1]
    shifted = jnp.where(scored[..., None], logits[:, :-1], 0)
    logps = _pick_logps(shifted.astype(jnp.float32), tokens[:, 1:], logits.shape[2])
    return jnp.sum(logps, axis=1, where=scored)


def sft_loss(logits, tokens, loss_mask):
    """Negative log-likelihood of each row's masked tokens, summed and not averaged.

        loss[b] = -sum_t log softmax(logits[b, t - 1])[tokens[b, t]]

    with t over the response tokens, which `loss_mask` selects (SFT from M0 to M1, arXiv
    2503.03746). To let every token weigh the same, divide the sum over all rows by the
    number of scored tokens of the whole batch, over all devices and accumulated parts.

    Args:
      logits: [B, T, V] any float dtype; converted to float32 before the log-softmax.
      tokens: [B, T] integer token ids.
      loss_mask: [B, T] not zero on the response tokens; position 0 is ignored.

    Returns:
      [B] float32 in nats, at least 0.

    Raises:
      ValueError: on any other shape, or token ids that are not integers.

    Example:
      >>> logits = jnp.zeros((2, 3, 2))  # every token has probability 1/2
      >>> tokens = jnp.array([[0, 1, 1], [1, 0, 0]])
      >>> loss_mask = jnp.array([[0, 1, 1], [0, 0, 1]])
      >>> [round(float(x), 4) for x in sft_loss(logits, tokens, loss_mask)]
      [1.3863, 0.6931]
    """
    return -step_logps(logits, tokens, loss_mask)


def step_dpo_loss(
    policy_chosen_logps,
    policy_rejected_logps,
    reference_chosen_logps,
    reference_rejected_logps,
    *,
    beta=0.1,
    label_smoothing=0.0,
):
    """Step-wise DPO loss of each pair (arXiv 2503.03746, eq. 6-8).

        A - B = beta * (policy_chosen - reference_chosen)
              - beta * (policy_rejected - reference_rejected)
        loss = -(1 - label_smoothing) * log sigmoid(A - B)
             - label_smoothing * log sigmoid(B - A)

    No gradient flows to the reference. The four arrays are those of `step_logps`; any
    one shape that all four share will do.

    Args:
      policy_chosen_logps: [B] of the chosen step, under the model that is trained.
      policy_rejected_logps: [B] of the rejected step, under the model that is trained.
      reference_chosen_logps: [B] of the chosen step, under the model as it was when the
        iteration began.
      reference_rejected_logps: [B] of the rejected step, under that model.
      beta: pull towards the reference, above 0. The paper does not state its value.
      label_smoothing: probability that a preference is the wrong way round, from 0 (the
        paper's loss) to below 0.5.

    Returns:
      [B] float32, at least 0, no reduction; ln 2 where policy and reference agree.

    Raises:
      ValueError: if the four shapes differ, or a number (not a traced value) is given
        for `beta` or `label_smoothing` that is out of range.

    Example:
      >>> four = jnp.array([[-4, -3], [-9, -9], [-4, -5], [-9, -7]])
      >>> [round(float(x), 4) for x in step_dpo_loss(*four)]
      [0.6931, 0.513]
    """
    if isinstance(label_smoothing, int | float) and not 0 <= label_smoothing < 0.5:
        raise ValueError(
            f"label_smoothing is {label_smoothing}; expected 0 to below 0.5. Lower it."
        )
    chosen = _reward(policy_chosen_logps, reference_chosen_logps, beta)
    rejected = _reward(policy_rejected_logps, reference_rejected_logps, beta)
    _check_shape("rejected logps", rejected, "chosen logps", chosen.shape)
    kept = (1 - label_smoothing) * jax.nn.log_sigmoid(chosen - rejected)
    return -kept - label_smoothing * jax.nn.log_sigmoid(rejected - chosen)


def step_dpo_metrics(
    policy_chosen_logps,
    policy_rejected_logps,
    reference_chosen_logps,
    reference_rejected_logps,
    *,
    beta=0.1,
):
    """Means over the pairs of the numbers to watch in training, under TRL's names.

    Args:
      policy_chosen_logps: [B], and the next three, as in `step_dpo_loss`.
      policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: [B].
      beta: as in `step_dpo_loss`.

    Returns:
      dict of float32 scalars. With A and B of arXiv 2503.03746, eq. 6 and 7:
      `rewards/chosen` is the mean of A, `rewards/rejected` of B, `rewards/margins` of
      A - B; `rewards/accuracies` is the share of pairs with A > B, from 0 to 1 (a tie
      is not right); `logps/chosen` and `logps/rejected` are the means of the policy's
      log-probabilities.

    Raises:
      ValueError: if the four shapes differ, or a number given as `beta` is not above 0.

    Example:
      >>> four = jnp.array([[-4, -3], [-9, -9], [-4, -5], [-9, -7]])
      >>> metrics = step_dpo_metrics(*four)
      >>> round(float(metrics["rewards/margins"]), 4)
      0.2
    """
    chosen = _reward(policy_chosen_logps, reference_chosen_logps, beta)
    rejected = _reward(policy_rejected_logps, reference_rejected_logps, beta)
    _check_shape("rejected logps", rejected, "chosen logps", chosen.shape)
    return {
        "rewards/chosen": jnp.mean(chosen),
        "rewards/rejected": jnp.mean(rejected),
        "rewards/margins": jnp.mean(chosen - rejected),
        "rewards/accuracies": jnp.mean((chosen > rejected).astype(jnp.float32)),
        "logps/chosen": jnp.mean(jnp.asarray(policy_chosen_logps, jnp.float32)),
        "logps/rejected": jnp.mean(jnp.asarray(policy_rejected_logps, jnp.float32)),
    }


def step_dpo(
    apply_fn, policy_params, reference_params, batch, *, beta=0.1, label_smoothing=0.0
):
    """Mean step-wise DPO loss (arXiv 2503.03746, eq. 8) from two sets of parameters.

    `jax.value_and_grad(step_dpo, argnums=1, has_aux=True)` gives a training step its
    gradient. No gradient flows to `reference_params`.

    Args:
      apply_fn: (params, tokens [B, T]) -> logits [B, T, V] of a causal model.
      policy_params: pytree, the model that is trained.
      reference_params: pytree, the model as it was when the iteration began; or None
        when `batch` holds log-probabilities that this model gave beforehand.
      batch: dict of `chosen_tokens`, `chosen_mask` [B, T], `rejected_tokens`,
        `rejected_mask` [B, U]: each row holds context, step and padding, the mask is
        not zero on the step only. With `reference_params` None also
        `reference_chosen_logps` and `reference_rejected_logps` [B].
      beta: as in `step_dpo_loss`.
      label_smoothing: as in `step_dpo_loss`.

    Returns:
      (loss, metrics): a float32 scalar, at least 0, and the dict of `step_dpo_metrics`.

    Raises:
      ValueError: if `batch` lacks a key, and where `step_logps` and `step_dpo_loss` do.

    Example:
      >>> bigram_model = lambda params, tokens: params[tokens]
      >>> params = jnp.zeros((3, 3))
      >>> batch = {
      ...     "chosen_tokens": jnp.array([[1, 2, 0], [2, 0, 1]]),
      ...     "chosen_mask": jnp.array([[0, 1, 0], [0, 1, 1]]),
      ...     "rejected_tokens": jnp.array([[1, 1], [2, 2]]),
      ...     "rejected_mask": jnp.array([[0, 1], [0, 1]]),
      ... }
      >>> loss, metrics = step_dpo(bigram_model, params, params, batch)
      >>> round(float(loss), 4)
      0.6931
    """
    needed = ["chosen_tokens", "chosen_mask", "rejected_tokens", "rejected_mask"]
    if reference_params is None:
        needed += ["reference_chosen_logps", "reference_rejected_logps"]
    if not set(needed) <= set(batch):
        raise ValueError(f"batch has {sorted(batch)}; expected {needed}. Add the rest.")

    def logps(params, side):
        tokens = batch[f"{side}_tokens"]
        return step_logps(apply_fn(params, tokens), tokens, batch[f"{side}_mask"])

    if reference_params is None:
        reference = batch["reference_chosen_logps"], batch["reference_rejected_logps"]
    else:
        frozen = jax.lax.stop_gradient(reference_params)
        reference = logps(frozen, "chosen"), logps(frozen, "rejected")
    four = logps(policy_params, "chosen"), logps(policy_params, "rejected"), *reference
    losses = step_dpo_loss(*four, beta=beta, label_smoothing=label_smoothing)
    return jnp.mean(losses), step_dpo_metrics(*four, beta=beta)


def token_logps_from_hidden(
    hidden, unembedding, targets, *, chunk=None, vocab_size=None, product=None
):
    """Log-probability of each target token from the hidden state that predicts it.

        logp[n] = log softmax(unembedding @ hidden[n])[targets[n]]

    Logits are computed in float32, `chunk` tokens at a time: at most [chunk, V] of them
    exist. Several chunks compute them once more in the backward pass, a single one
    keeps them for it. The gradient of `unembedding` is summed over chunks in float32. A
    chunk takes every ceil(N / chunk)-th token, so that tokens which lie spread over
    devices keep all devices busy in every chunk.

    Args:
      hidden: [N, D] any float dtype; `hidden[n]` is the state of the token *before*
        `targets[n]`, there is no shift inside.
      unembedding: [V, D] the output embedding; there is no bias.
      targets: [N] integer token ids.
      chunk: tokens at a time, at least 1; N need not be a multiple. None: 1024, or
        more where their logits still take at most 128 MiB. Static.
      vocab_size: number of real tokens: columns from there on, the padding of the
        vocabulary, get probability 0. None: all V are real. Static.
      product: (states [chunk, D], unembedding [V, D]) to float32 logits [chunk, V], for
        platforms where another product than `jnp.matmul` is faster. Static.

    Returns:
      [N] float32 in nats, at most 0; NaN where a target is not a real token.

    Raises:
      ValueError: on any other shape, token ids that are not integers, or a `chunk` or
        `vocab_size` out of range.

    Example:
      >>> hidden, unembedding = jnp.ones((3, 2)), jnp.zeros((8, 2))
      >>> targets = jnp.array([0, 4, 2])  # of 5 tokens, padded to 8
      >>> logps = token_logps_from_hidden(hidden, unembedding, targets, vocab_size=5)
      >>> [round(float(x), 4) for x in logps]
      [-1.6094, -1.6094, -1.6094]
    """
    hidden, unembedding, targets = map(jnp.asarray, (hidden, unembedding, targets))
    _check_shape("hidden", hidden, "[N, D]", (None, None))
    _check_shape("unembedding", unembedding, "[V, D]", (None, hidden.shape[1]))
    _check_ids("targets", targets, "[N]", hidden.shape[:1])
    columns = unembedding.shape[0]
    chunk = max(1024, 2**25 // max(columns, 1)) if chunk is None else chunk
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; expected at least 1. Use 1024, or None.")
    vocab_size = columns if vocab_size is None else vocab_size
    if not 1 <= vocab_size <= columns:
        raise ValueError(
            f"vocab_size is {vocab_size}; expected 1 to {columns}, or None for all."
        )
    options = {"chunk": chunk, "vocab_size": vocab_size, "product": product}
    return _on_any_mesh(_token_logps, (hidden, targets), unembedding, **options)


def _token_logps(hidden, targets, unembedding, *, chunk, vocab_size, product):
    count, width = hidden.shape
    size = max(1, min(chunk, count))
    chunks = -(-count // size)
    padding = size * chunks - count
    states = jnp.pad(hidden, ((0, padding), (0, 0))).reshape(size, chunks, width)
    ids = jnp.pad(targets, (0, padding)).reshape(size, chunks)
    # In float32 outside the loop, so that its gradient is summed in float32.
    weights = unembedding.astype(jnp.float32)

    def chunk_logps(inputs):
        states, ids = inputs  # [size, D], [size]
        head = weights.astype(unembedding.dtype)
        if product is None:
            logits = jnp.matmul(states, head.T, preferred_element_type=jnp.float32)
        else:
            logits = product(states, head)
        logits = jnp.where(jnp.arange(logits.shape[1]) < vocab_size, logits, -jnp.inf)
        return _pick_logps(logits, ids, vocab_size)

    if chunks == 1:
        return chunk_logps((states[:, 0], ids[:, 0]))
    chunk_logps = jax.checkpoint(chunk_logps, prevent_cse=False)  # inside a loop
    logps = jax.lax.map(chunk_logps, (states.swapaxes(0, 1), ids.swapaxes(0, 1)))
    return logps.swapaxes(0, 1).reshape(-1)[:count]


def step_logps_from_hidden(
    hidden, unembedding, tokens, step_mask, *, max_scored, chunk=None
):
    """The same as `step_logps` from hidden states, with logits of scored tokens only.

    It equals `step_logps(hidden @ unembedding.T, tokens, step_mask)` (arXiv 2503.03746,
    eq. 6 and 7). NaN or infinity at positions that score nothing does no harm.

    Args:
      hidden: [B, T, D] any float dtype; `hidden[:, t - 1]` scores `tokens[:, t]`.
      unembedding: [V, D] the output embedding; there is no bias.
      tokens: [B, T] integer token ids.
      step_mask: [B, T] not zero on the tokens of the step; position 0 is ignored.
      max_scored: at least the number of tokens that any row scores, and 1. Static.
      chunk: as in `token_logps_from_hidden`. Static.

    Returns:
      [B] float32 in nats, at most 0; NaN for a row that scores more than `max_scored`.

    Raises:
      ValueError: on any other shape, token ids that are not integers, or a `max_scored`
        or `chunk` below 1.

    Example:
      >>> hidden, unembedding = jnp.ones((2, 4, 3)), jnp.zeros((5, 3))
      >>> tokens = jnp.array([[1, 2, 3, 4], [1, 2, 0, 0]])
      >>> inputs = hidden, unembedding, tokens, jnp.array([[0, 0, 1, 1], [0, 1, 0, 0]])
      >>> [round(float(x), 4) for x in step_logps_from_hidden(*inputs, max_scored=2)]
      [-3.2189, -1.6094]
    """
    hidden, tokens, step_mask = map(jnp.asarray, (hidden, tokens, step_mask))
    _check_shape("hidden", hidden, "[B, T, D]", (None, None, None))
    _check_ids("tokens", tokens, "[B, T]", hidden.shape[:2])
    _check_shape("mask", step_mask, "[B, T]", tokens.shape)
    if max_scored < 1:
        raise ValueError(f"max_scored is {max_scored}; expected at least 1. Raise it.")
    options = {"max_scored": max_scored, "chunk": chunk}
    rows = hidden, tokens, step_mask
    return _on_any_mesh(_step_logps_hidden, rows, unembedding, **options)


def _step_logps_hidden(hidden, tokens, step_mask, unembedding, *, max_scored, chunk):
    scored = step_mask[:, 1:] != 0  # [B, T - 1]
    # In each row, the places of scored tokens come first; [B, S], S = max_scored.
    places = jnp.argsort(~scored, axis=1, stable=True)[:, :max_scored]
    filled = jnp.take_along_axis(scored, places, axis=1)
    states = jnp.take_along_axis(hidden[:, :-1], places[..., None], axis=1)
    states = jnp.where(filled[..., None], states, 0).reshape(-1, hidden.shape[2])
    targets = jnp.take_along_axis(tokens[:, 1:], places, axis=1).reshape(-1)
    logps = token_logps_from_hidden(states, unembedding, targets, chunk=chunk)
    total = jnp.sum(logps.reshape(places.shape), axis=1, where=filled)
    return jnp.where(jnp.sum(scored, axis=1) <= max_scored, total, jnp.nan)


def _on_any_mesh(function, rows, *rest, **options):
    """Returns `function(*rows, *rest, **options)`, on explicit meshes too.

    On an explicit mesh, JAX refuses to cut, gather or reshape along a split axis. So
    XLA decides inside of `function` how arrays are split, as on an automatic mesh.

    Args:
      function: defined at the top level of a module; returns one array.
      rows: arrays whose first axis is that of the result, which is split as theirs is.
      *rest: further arrays.
      **options: further arguments, which can be hashed.
    """
    arrays = *rows, *rest
    splits = [jax.typeof(array).sharding for array in arrays]
    explicit = jax.sharding.AxisType.Explicit
    mesh = next((s.mesh for s in splits if explicit in s.mesh.axis_types), None)
    if mesh is None:
        return function(*arrays, **options)
    firsts = (split.spec[0] for split in splits[: len(rows)])
    first = next((name for name in firsts if name is not None), None)
    result = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(first))
    return _automatic(function, arrays, result, tuple(options.items()))


@jax.jit(static_argnums=(0, 2, 3))
def _automatic(function, arrays, result, options):
    """Runs the function with the explicit axes of the result's mesh made automatic."""

    def run(*arrays):
        return function(*arrays, **dict(options))

    mesh = result.mesh
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    axes = tuple(n for n, kind in kinds if kind == jax.sharding.AxisType.Explicit)
    return jax.sharding.auto_axes(run, axes=axes, out_sharding=result)(*arrays)


def _pick_logps(logits, ids, vocab_size):
    """Log-softmax of float32 logits [..., V] at ids [...]; NaN for ids out of range."""
    ids = ids.astype(jnp.int32)
    real = (ids >= 0) & (ids < vocab_size)
    return jnp.where(real, _log_softmax_at(logits, jnp.where(real, ids, 0)), jnp.nan)


@jax.custom_jvp
def _log_softmax_at(logits, ids):
    logps = jax.nn.log_softmax(logits, axis=-1)
    return jnp.take_along_axis(logps, ids[..., None], axis=-1)[..., 0]


@_log_softmax_at.defjvp
def _log_softmax_at_jvp(primals, tangents):
    """One-hot minus softmax, by hand: a gather's gradient would allocate more zeros.

    Differentiating `take_along_axis` makes another array [..., V] of zeros.
    """
    logits, ids = primals
    slope = (jnp.arange(logits.shape[-1]) == ids[..., None]) - jax.nn.softmax(logits)
    return _log_softmax_at(logits, ids), jnp.sum(slope * tangents[0], axis=-1)


def _reward(policy, reference, beta):
    """A (of the chosen step) or B (of the rejected one) of eq. 6 and 7, in float32."""
    if isinstance(beta, int | float) and not beta > 0:
        raise ValueError(f"beta is {beta}; expected above 0. Use for example 0.1.")
    policy, reference = (jnp.asarray(x, jnp.float32) for x in (policy, reference))
    _check_shape("reference logps", reference, "policy logps", policy.shape)
    return beta * (policy - jax.lax.stop_gradient(reference))


def _check_ids(name, ids, legend, expected):
    """Raises unless `ids` are integers of the shape `expected`."""
    _check_shape(name, ids, legend, expected)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(f"{name} is {ids.dtype}; expected integer ids. Convert it.")


def _check_shape(name, array, legend, expected):
    """Raises unless `array` has the shape `expected`, where None is any size."""
    pairs = zip(expected, array.shape, strict=False)
    if len(expected) != array.ndim or any(a not in (None, b) for a, b in pairs):
        raise ValueError(
            f"{name} has shape {array.shape}; expected {legend} = {expected} (None is "
            "any). Nothing is broadcast: reshape or transpose it (or use jax.vmap)."
        )
