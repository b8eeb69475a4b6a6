"""Policy terms. A is the advantage, x the log-probability of a token, r = exp(x - logp_old) its importance ratio."""

import jax.numpy as jnp

from grpo_jax.objectives.description import needs
from grpo_jax.objectives.ratios import over_old
from grpo_jax.types import Array, Batch, TokenStats


def reinforce(stats: TokenStats, batch: Batch) -> Array:
    """-A x -> f32[N,T], whose gradient is the score-function estimate of the policy gradient (Williams 1992)."""
    return -batch.advantage * stats.logp


def ppo_clip(
    stats: TokenStats,
    batch: Batch,
    *,
    low: float | None = 0.2,
    high: float | None = 0.2,
    dual: float | None = None,
    clamp_log_ratio: float | None = 20.0,
) -> Array:
    """-min(r A, clip(r, 1 - low, 1 + high) A) -> f32[N,T] (PPO, arXiv 1707.06347).

    At r = 1 the value is -A and the gradient that of `reinforce`.

    Args:
        stats: forward pass of the policy.
        batch: with ``advantage`` and ``logp_old``.
        low: how far below 1 the ratio may fall before the gradient stops; None: no bound.
        high: how far above 1 it may rise (above `low` in DAPO's clip-higher); None: no bound.
        dual: where A < 0 the term is at most ``-dual * A`` (arXiv 1912.09729), `dual` > 1; None: unbounded.
        clamp_log_ratio: log r is clipped to +- this first, which keeps r finite in float32; None: not at all. The
            gradient is 0 where it acts.
    """
    ratio = over_old(stats, batch, clamp=clamp_log_ratio)
    lower = None if low is None else 1.0 - low
    upper = None if high is None else 1.0 + high
    term = jnp.maximum(-batch.advantage * ratio, -batch.advantage * jnp.clip(ratio, lower, upper))
    if dual is None:
        return term
    return jnp.where(batch.advantage < 0, jnp.minimum(term, -dual * batch.advantage), term)


def negative_log_likelihood(stats: TokenStats, batch: Batch) -> Array:
    """-x -> f32[N,T], nats: supervised learning on the tokens of the batch."""
    del batch
    return -stats.logp


@needs("entropy")
def negative_entropy(stats: TokenStats, batch: Batch) -> Array:
    """-H -> f32[N,T], nats: minimised with a small positive scale it is the entropy bonus."""
    del batch
    if stats.entropy is None:
        raise ValueError('negative_entropy reads TokenStats.entropy, which is None. Remedy: ask for want=("entropy",)')
    return -stats.entropy
