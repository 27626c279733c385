"""Variants of the step-wise DPO loss: one small function for each.

This file imports `jax` and `step_logps` of losses.py, and nothing else; the two can be
copied together. Variants without a reference are in reference_free_losses.py.

All compare two steps, chosen and rejected, after the same context. Log-probabilities
are the sums that `step_logps` returns, under the names of `step_dpo_loss`, and no
gradient flows to the reference. With

    r_w = policy_chosen - reference_chosen      n_w = tokens of the chosen step
    r_l = policy_rejected - reference_rejected  n_l = tokens of the rejected step
    D = r_w - r_l                               e = label_smoothing

    step_dpo_loss          -log sigmoid(beta D), the loss of the method
    conservative_dpo_loss  -(1 - e) log sigmoid(beta D) - e log sigmoid(-beta D)
    robust_dpo_loss        (-(1 - e) log sigmoid(beta D) + e log sigmoid(-beta D))
                           / (1 - 2 e)
    hinge_dpo_loss         max(0, 1 - beta D)
    ipo_summed_loss        (D - 1 / (2 beta))^2
    ipo_averaged_loss      (r_w / n_w - r_l / n_l - 1 / (2 beta))^2
    dpo_nll_loss           -log sigmoid(beta D) - nll_weight policy_chosen / n_w

`length_desensitised_logps` takes the place of `step_logps` in front of any of them, and
`step_lengths` counts n_w and n_l. Shapes: B rows of a batch, T and U tokens of a row, V
vocabulary. [B] may be any shape, the same one for all inputs: nothing is broadcast.
"""

import jax
import jax.numpy as jnp

from stepjax.losses import step_logps


def conservative_dpo_loss(
    policy_chosen_logps,
    policy_rejected_logps,
    reference_chosen_logps,
    reference_rejected_logps,
    *,
    beta=0.1,
    label_smoothing,
):
    """DPO when some preferences are the wrong way round (cDPO).

        loss = -(1 - e) log sigmoid(beta D) - e log sigmoid(-beta D)

    with e = `label_smoothing`: margins grow to log((1 - e) / e) and no further. It is
    `step_dpo_loss` with that argument. Source: E. Mitchell, A note on DPO with noisy
    preferences and relationship to IPO, 2023.

    Args:
      policy_chosen_logps: [B], and the next three, as in `step_dpo_loss`.
      policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: [B].
      beta: pull towards the reference, above 0.
      label_smoothing: e, from 0 to below 0.5.

    Returns:
      [B] float32, at least 0 and at least the entropy of e.

    Raises:
      ValueError: if shapes differ, or a number is out of range.

    Example:
      >>> four = jnp.array([[-4, -3], [-9, -9], [-4, -5], [-9, -7]])
      >>> losses = conservative_dpo_loss(*four, label_smoothing=0.1)
      >>> [round(float(x), 4) for x in losses]
      [0.6931, 0.553]
    """
    _check_beta(beta)
    _check_smoothing(label_smoothing)
    margin = beta * _difference(
        policy_chosen_logps,
        policy_rejected_logps,
        reference_chosen_logps,
        reference_rejected_logps,
    )
    kept = (1 - label_smoothing) * jax.nn.log_sigmoid(margin)
    return -kept - label_smoothing * jax.nn.log_sigmoid(-margin)


def robust_dpo_loss(
    policy_chosen_logps,
    policy_rejected_logps,
    reference_chosen_logps,
    reference_rejected_logps,
    *,
    beta=0.1,
    label_smoothing,
):
    """DPO whose expectation over flipped preferences is that of clean ones (rDPO).

        loss = (-(1 - e) log sigmoid(beta D) + e log sigmoid(-beta D)) / (1 - 2 e)

    with e = `label_smoothing`, the probability that a preference was flipped. Source:
    arXiv 2403.00409, section 3.

    Args:
      policy_chosen_logps: [B], and the next three, as in `step_dpo_loss`.
      policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: [B].
      beta: pull towards the reference, above 0.
      label_smoothing: e, from 0 to below 0.5.

    Returns:
      [B] float32 of either sign, unbounded below where e is not 0.

    Raises:
      ValueError: if shapes differ, or a number is out of range.

    Example:
      >>> four = jnp.array([[-4, -3], [-9, -9], [-4, -5], [-9, -7]])
      >>> [round(float(x), 4) for x in robust_dpo_loss(*four, label_smoothing=0.1)]
      [0.6931, 0.463]
    """
    _check_beta(beta)
    _check_smoothing(label_smoothing)
    margin = beta * _difference(
        policy_chosen_logps,
        policy_rejected_logps,
        reference_chosen_logps,
        reference_rejected_logps,
    )
    kept = (1 - label_smoothing) * jax.nn.log_sigmoid(margin)
    flipped = label_smoothing * jax.nn.log_sigmoid(-margin)
    return (flipped - kept) / (1 - 2 * label_smoothing)


def hinge_dpo_loss(
    policy_chosen_logps,
    policy_rejected_logps,
    reference_chosen_logps,
    reference_rejected_logps,
    *,
    beta=0.1,
):
    """Hinge loss on the margin of DPO: pairs that are right by 1 / beta are left alone.

        loss = max(0, 1 - beta D)

    Source: SLiC-HF, arXiv 2305.10425, section 2, with the reference taken off as in
    RSO, arXiv 2309.06657 (hinge-norm).

    Args:
      policy_chosen_logps: [B], and the next three, as in `step_dpo_loss`.
      policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: [B].
      beta: above 0; a pair is left alone once D is at least 1 / beta.

    Returns:
      [B] float32, at least 0.

    Raises:
      ValueError: if shapes differ, or a number is out of range.

    Example:
      >>> four = jnp.array([[-4, -3], [-9, -9], [-4, -5], [-9, -7]])
      >>> [round(float(x), 4) for x in hinge_dpo_loss(*four)]
      [1.0, 0.6]
    """
    _check_beta(beta)
    margin = beta * _difference(
        policy_chosen_logps,
        policy_rejected_logps,
        reference_chosen_logps,
        reference_rejected_logps,
    )
    return jnp.maximum(0, 1 - margin)


def ipo_summed_loss(
    policy_chosen_logps,
    policy_rejected_logps,
    reference_chosen_logps,
    reference_rejected_logps,
    *,
    beta=0.1,
):
    """IPO as the paper writes it: log-probabilities of whole steps, summed.

        loss = (D - 1 / (2 beta))^2

    Source: arXiv 2310.12036, section 5.2, eq. 17, where beta is called tau. The paper's
    experiments and TRL average over tokens instead: `ipo_averaged_loss`.

    Args:
      policy_chosen_logps: [B], and the next three, as in `step_dpo_loss`.
      policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: [B].
      beta: pull towards the reference, above 0: the margin aimed at is 1 / (2 beta).

    Returns:
      [B] float32, at least 0.

    Raises:
      ValueError: if shapes differ, or a number is out of range.

    Example:
      >>> four = jnp.array([[-4, -3], [-9, -9], [-4, -5], [-9, -7]])
      >>> [round(float(x), 4) for x in ipo_summed_loss(*four)]
      [25.0, 1.0]
    """
    _check_beta(beta)
    difference = _difference(
        policy_chosen_logps,
        policy_rejected_logps,
        reference_chosen_logps,
        reference_rejected_logps,
    )
    return (difference - 1 / (2 * beta)) ** 2


def ipo_averaged_loss(
    policy_chosen_logps,
    policy_rejected_logps,
    reference_chosen_logps,
    reference_rejected_logps,
    chosen_lengths,
    rejected_lengths,
    *,
    beta=0.1,
):
    """IPO with log-probabilities averaged over the tokens of each step.

        loss = (r_w / n_w - r_l / n_l - 1 / (2 beta))^2

    Source: arXiv 2310.12036, section 5.2, eq. 17, read as TRL does, which confirmed the
    average with the authors. `ipo_summed_loss` sums, as the paper's text says.

    Args:
      policy_chosen_logps: [B], and the next three, as in `step_dpo_loss`: sums.
      policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: [B].
      chosen_lengths: [B] tokens of the chosen step, see `step_lengths`; 0 counts as 1.
      rejected_lengths: [B] tokens of the rejected step.
      beta: pull towards the reference, above 0; the margin aimed at is 1 / (2 beta) per
        token.

    Returns:
      [B] float32, at least 0.

    Raises:
      ValueError: if shapes differ, or a number is out of range.

    Example:
      >>> four = jnp.array([[-4, -3], [-9, -9], [-4, -5], [-9, -7]])
      >>> lengths = jnp.array([[1, 2], [3, 4]])
      >>> [round(float(x), 4) for x in ipo_averaged_loss(*four, *lengths)]
      [25.0, 12.25]
    """
    _check_beta(beta)
    chosen = _minus_reference(policy_chosen_logps, reference_chosen_logps)
    rejected = _minus_reference(policy_rejected_logps, reference_rejected_logps)
    _same_shape(chosen, rejected)
    difference = _mean(chosen, chosen_lengths) - _mean(rejected, rejected_lengths)
    return (difference - 1 / (2 * beta)) ** 2


def dpo_nll_loss(
    policy_chosen_logps,
    policy_rejected_logps,
    reference_chosen_logps,
    reference_rejected_logps,
    chosen_lengths,
    *,
    beta=0.1,
    nll_weight=1.0,
):
    """DPO and the mean token loss of the chosen step, which keeps its probability up.

        loss = -log sigmoid(beta D) - nll_weight * policy_chosen / n_w

    Source: Iterative Reasoning Preference Optimization, arXiv 2404.19733, section 2,
    eq. 1 (there the chosen text is a whole solution, here it is a step).

    Args:
      policy_chosen_logps: [B], and the next three, as in `step_dpo_loss`.
      policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: [B].
      chosen_lengths: [B] tokens of the chosen step, see `step_lengths`; 0 counts as 1.
      beta: pull towards the reference, above 0.
      nll_weight: weight of the second term, at least 0; the paper's alpha.

    Returns:
      [B] float32, at least 0.

    Raises:
      ValueError: if shapes differ, or a number is out of range.

    Example:
      >>> four = jnp.array([[-4, -3], [-9, -9], [-4, -5], [-9, -7]])
      >>> [round(float(x), 4) for x in dpo_nll_loss(*four, jnp.array([1, 2]))]
      [4.6931, 2.013]
    """
    _check_beta(beta)
    if isinstance(nll_weight, int | float) and not nll_weight >= 0:
        raise ValueError(f"nll_weight is {nll_weight}; expected at least 0. Raise it.")
    margin = beta * _difference(
        policy_chosen_logps,
        policy_rejected_logps,
        reference_chosen_logps,
        reference_rejected_logps,
    )
    mean = _mean(jnp.asarray(policy_chosen_logps, jnp.float32), chosen_lengths)
    return -jax.nn.log_sigmoid(margin) - nll_weight * mean


def length_desensitised_logps(logits, tokens, step_mask, other_mask, *, alpha):
    """`step_logps` with less weight on what makes a step the longer one (LD-DPO).

    With n the tokens of the shorter of the two steps, and t over the step's tokens:

        logp[b] = sum_(t <= n) log pi(t) + alpha * sum_(t > n) log pi(t)

    Use it four times in place of `step_logps`: chosen and rejected, policy and
    reference. Source: arXiv 2409.06411 (the likelihood of LD-DPO).

    Args:
      logits: [B, T, V] as in `step_logps`.
      tokens: [B, T] integer token ids.
      step_mask: [B, T] not zero on the tokens of this step.
      other_mask: [B, U] not zero on the tokens of the other step of the pair.
      alpha: weight of the tokens beyond n, from 0 to 1; 1 is `step_logps`.

    Returns:
      [B] float32 in nats, at most 0.

    Raises:
      ValueError: as in `step_logps`, or if `alpha` is out of range.

    Example:
      >>> logits = jnp.zeros((1, 4, 5))  # every token has probability 1/5
      >>> tokens, mask = jnp.array([[1, 2, 3, 4]]), jnp.array([[0, 1, 1, 1]])
      >>> other = jnp.array([[0, 1]])
      >>> logps = length_desensitised_logps(logits, tokens, mask, other, alpha=0.5)
      >>> [round(float(x), 4) for x in logps]
      [-3.2189]
    """
    if isinstance(alpha, int | float) and not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; expected 0 to 1. 1 is plain DPO.")
    own, other = step_lengths(step_mask), step_lengths(other_mask)
    if own.shape != other.shape:
        raise ValueError(
            f"the masks have {own.shape[0]} and {other.shape[0]} rows; expected "
            "equal numbers. Give the other step of the same pairs."
        )
    scored = _scored(step_mask)
    places = jnp.arange(scored.shape[1])
    # The sum of T x T bits, not `cumsum`, which explicit meshes refuse on a split axis.
    number = jnp.sum(scored[:, None] & (places <= places[:, None]), axis=2)  # [B, T]
    shared = scored & (number <= other[:, None])
    beyond = step_logps(logits, tokens, scored & ~shared)
    return step_logps(logits, tokens, shared) + alpha * beyond


def _scored(step_mask):
    """Whether each token is scored, [B, T]: nothing scores position 0."""
    step_mask = jnp.asarray(step_mask)
    return (step_mask != 0) & (jnp.arange(step_mask.shape[1]) > 0)


def step_lengths(step_mask):
    """Number of tokens of each row's step, as `step_logps` scores them.

    Args:
      step_mask: [B, T] not zero on the tokens of the step; position 0 is ignored.

    Returns:
      [B] float32.

    Raises:
      ValueError: if the mask has another number of axes.

    Example:
      >>> step_lengths(jnp.array([[1, 0, 1, 1], [0, 1, 0, 0]])).tolist()
      [2.0, 1.0]
    """
    step_mask = jnp.asarray(step_mask)
    if step_mask.ndim != 2:
        raise ValueError(f"mask has shape {step_mask.shape}; expected [B, T]. Reshape.")
    return jnp.sum(_scored(step_mask), axis=1).astype(jnp.float32)


def _difference(chosen, rejected, reference_chosen, reference_rejected):
    """D of the module docstring, in float32."""
    chosen = _minus_reference(chosen, reference_chosen)
    rejected = _minus_reference(rejected, reference_rejected)
    _same_shape(chosen, rejected)
    return chosen - rejected


def _minus_reference(policy, reference):
    """r_w or r_l of the module docstring, in float32."""
    policy, reference = (jnp.asarray(x, jnp.float32) for x in (policy, reference))
    _same_shape(policy, reference)
    return policy - jax.lax.stop_gradient(reference)


def _mean(sums, lengths):
    lengths = jnp.asarray(lengths, jnp.float32)
    _same_shape(sums, lengths)
    return sums / jnp.maximum(lengths, 1)


def _same_shape(one, other):
    if one.shape != other.shape:
        raise ValueError(
            f"shapes {one.shape} and {other.shape} of log-probabilities or lengths; "
            "expected the same. Nothing is broadcast: reshape or transpose one."
        )


def _check_beta(beta):
    if isinstance(beta, int | float) and not beta > 0:
        raise ValueError(f"beta is {beta}; expected above 0. Use for example 0.1.")


def _check_smoothing(label_smoothing):
    if isinstance(label_smoothing, int | float) and not 0 <= label_smoothing < 0.5:
        raise ValueError(
            f"label_smoothing is {label_smoothing}; expected 0 to below 0.5. Lower it."
        )
