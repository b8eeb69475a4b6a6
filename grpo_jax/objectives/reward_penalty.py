"""The divergence from the reference as part of the reward, in the place of a penalty in the loss.

The log-probabilities are those at collection: what is paid is decided before the first gradient, and reaches the policy
through the advantages alone. For k1 that is the unbiased gradient of the divergence (arXiv 2506.09477), which k1 in the
loss is not.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from grpo_jax import masked
from grpo_jax.advantages import Advantage
from grpo_jax.groups import Memory
from grpo_jax.objectives.description import needs
from grpo_jax.objectives.kl import k1
from grpo_jax.objectives.ratios import difference
from grpo_jax.types import Array, Collected


def at_last_token(outcome: Array, mask: Array) -> Array:
    """Reward of the row f[N] on its last scored token, 0 elsewhere -> f[N,T]; a row without tokens keeps nothing."""
    later = jnp.cumsum(mask[:, ::-1].astype(jnp.int32), axis=1)[:, ::-1]
    last = mask & (later == 1)
    return jnp.where(last, outcome[:, None], jnp.zeros((), outcome.dtype))


def kl_in_reward(
    reward: Array,
    logp: Array,
    logp_ref: Array,
    mask: Array,
    *,
    coef: float,
    estimator: Callable[[Array], Array] = k1,
    clamp_log_ratio: float | None = None,
) -> Array:
    """Token rewards minus ``coef * estimator(logp_ref - logp)`` -> f[N,T], 0 outside the mask (verl, OpenRLHF).

    Args:
        reward: f[N,T], of tokens; `at_last_token` puts an outcome there.
        logp: f[N,T], policy at collection.
        logp_ref: f[N,T], reference policy.
        mask: bool[N,T].
        coef: what a nat costs.
        estimator: kernel of the divergence; all of them have the same mean but `absolute` and `k2`.
        clamp_log_ratio: the log-ratio is clipped to +- this first; None (verl, OpenRLHF, TRL): not at all.
    """
    cost = estimator(difference(logp_ref, logp, mask, clamp=clamp_log_ratio))
    return masked.select(mask, reward) - coef * masked.select(mask, cost)


@needs("logp_ref")
def penalized_outcome(
    collected: Collected,
    labels: Array,
    memory: Memory,
    *,
    advantage: Advantage,
    coef: float = 0.05,
    estimator: Callable[[Array], Array] = k1,
) -> tuple[Array, Memory]:
    """Strategy: `advantage` of the rewards R_i - coef sum_t k_t, the sum over the row's tokens (TRL's RLOO).

    Args:
        collected: with ``logp_ref``.
        labels: of the rows.
        memory: handed on.
        advantage: strategy that reads outcomes.
        coef: what a nat of a whole completion costs; 0.05 in TRL's RLOO.
        estimator: kernel of the divergence.

    Raises:
        ValueError: the reference log-probabilities are missing.
    """
    if collected.logp_ref is None:
        raise ValueError("Collected.logp_ref is None, which penalized_outcome reads: give the run a reference policy")
    mask, reward = collected.rollouts.mask, collected.reward
    nothing = jnp.zeros(mask.shape, collected.logp_old.dtype)
    cost = -kl_in_reward(nothing, collected.logp_old, collected.logp_ref, mask, coef=coef, estimator=estimator)
    outcome = reward.outcome - jnp.sum(cost, axis=1).astype(reward.outcome.dtype)
    paid = dataclasses.replace(collected, reward=dataclasses.replace(reward, outcome=outcome))
    return advantage(paid, labels, memory)
