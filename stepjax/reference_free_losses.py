"""Losses of the family of step-wise DPO that need no reference model.

This file imports `jax` and nothing else, so it can be copied into another project on
its own. Both functions compare two steps, chosen and rejected, after the same context,
by their average log-probability per token. They take the sums that `step_logps` of
losses.py returns, and the lengths that `step_lengths` of preference_losses.py counts:

    m_w = policy_chosen / tokens of the chosen step
    m_l = policy_rejected / tokens of the rejected step

    simpo_loss  -log sigmoid(beta (m_w - m_l) - gamma)
    orpo_loss   -m_w - odds_ratio_weight log sigmoid(log odds ratio of m_w and m_l)

[B] may be any shape, the same one for all inputs: nothing is broadcast.
"""

import jax
import jax.numpy as jnp


def simpo_loss(
    policy_chosen_logps,
    policy_rejected_logps,
    chosen_lengths,
    rejected_lengths,
    *,
    beta=2.0,
    gamma=0.5,
):
    """SimPO: average log-probabilities, a target margin, and no reference.

        loss = -log sigmoid(beta (policy_chosen / n_w - policy_rejected / n_l) - gamma)

    Source: arXiv 2405.14734, section 2, eq. 6.

    Args:
      policy_chosen_logps: [B] sums over the chosen step, as from `step_logps`.
      policy_rejected_logps: [B] sums over the rejected step.
      chosen_lengths: [B] tokens of the chosen step, see `step_lengths`; 0 counts as 1.
      rejected_lengths: [B] tokens of the rejected step.
      beta: scale of the margin, above 0.
      gamma: margin aimed at, at least 0.

    Returns:
      [B] float32, at least 0.

    Raises:
      ValueError: if shapes differ, or a number is out of range.

    Example:
      >>> chosen, rejected = jnp.array([-4, -3]), jnp.array([-9, -9])
      >>> losses = simpo_loss(chosen, rejected, jnp.array([4, 3]), jnp.array([9, 3]))
      >>> [round(float(x), 4) for x in losses]
      [0.9741, 0.0298]
    """
    _check_number("beta", beta, above=0)
    _check_number("gamma", gamma, at_least=0)
    chosen, rejected = _means(
        policy_chosen_logps, policy_rejected_logps, chosen_lengths, rejected_lengths
    )
    return -jax.nn.log_sigmoid(beta * (chosen - rejected) - gamma)


def orpo_loss(
    policy_chosen_logps,
    policy_rejected_logps,
    chosen_lengths,
    rejected_lengths,
    *,
    odds_ratio_weight=0.1,
):
    """ORPO: the mean token loss of the chosen step and an odds ratio, no reference.

        m_w = policy_chosen / n_w,  m_l = policy_rejected / n_l
        log odds ratio = (m_w - log(1 - exp m_w)) - (m_l - log(1 - exp m_l))
        loss = -m_w - odds_ratio_weight * log sigmoid(log odds ratio)

    Means are kept below -1e-7, since a step of probability 1 has infinite odds. Source:
    arXiv 2403.07691, section 4, eq. 6 and 7. The first term covers the chosen step
    alone; TRL's covers the prompt and the step.

    Args:
      policy_chosen_logps: [B] sums over the chosen step, as from `step_logps`.
      policy_rejected_logps: [B] sums over the rejected step.
      chosen_lengths: [B] tokens of the chosen step, see `step_lengths`; 0 counts as 1.
      rejected_lengths: [B] tokens of the rejected step.
      odds_ratio_weight: lambda of the paper (beta of TRL), at least 0.

    Returns:
      [B] float32, at least 0.

    Raises:
      ValueError: if shapes differ, or a number is out of range.

    Example:
      >>> chosen, rejected = jnp.array([-4, -3]), jnp.array([-9, -9])
      >>> losses = orpo_loss(chosen, rejected, jnp.array([4, 3]), jnp.array([9, 3]))
      >>> [round(float(x), 4) for x in losses]
      [1.0693, 1.0086]
    """
    _check_number("odds_ratio_weight", odds_ratio_weight, at_least=0)
    chosen, rejected = _means(
        policy_chosen_logps, policy_rejected_logps, chosen_lengths, rejected_lengths
    )

    def log_odds(mean):
        mean = jnp.minimum(mean, -1e-7)
        return mean - jax.nn.log1mexp(-mean)

    ratio = jax.nn.log_sigmoid(log_odds(chosen) - log_odds(rejected))
    return -chosen - odds_ratio_weight * ratio


def _means(chosen, rejected, chosen_lengths, rejected_lengths):
    """m_w and m_l of the module docstring, in float32."""
    four = [
        jnp.asarray(x, jnp.float32)
        for x in (chosen, rejected, chosen_lengths, rejected_lengths)
    ]
    if len({x.shape for x in four}) > 1:
        raise ValueError(
            f"log-probabilities and lengths have shapes {[x.shape for x in four]}; "
            "expected the same. Nothing is broadcast: reshape or transpose them."
        )
    return four[0] / jnp.maximum(four[2], 1), four[1] / jnp.maximum(four[3], 1)


def _check_number(name, number, *, above=None, at_least=None):
    """Raises on a number that is too small; a traced value is not looked at."""
    if not isinstance(number, int | float):
        return
    if above is not None and not number > above:
        raise ValueError(f"{name} is {number}; expected above {above}. Raise it.")
    if at_least is not None and not number >= at_least:
        raise ValueError(f"{name} is {number}; expected at least {at_least}. Raise it.")
