"""Estimators of the Kullback-Leibler divergence from one log-ratio a token.

For tokens drawn from p and delta = log q - log p the kernels estimate KL(p || q). On-policy the values of k1 and k3 are
unbiased and k3 is never negative; of the plain gradients only that of k2 is the gradient of KL(p || q) (that of k1 has
mean zero, that of k3 is the gradient of KL(q || p)). Schulman, "Approximating KL divergence"; arXiv 2506.09477.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from grpo_jax.objectives.description import needs
from grpo_jax.objectives.ratios import difference
from grpo_jax.types import Array, Batch, TokenStats


def k1(delta: Array) -> Array:
    """-delta."""
    return -delta


def k2(delta: Array) -> Array:
    """delta^2 / 2."""
    return jnp.square(delta) / 2


def k3(delta: Array) -> Array:
    """exp(delta) - delta - 1, through expm1: the plain form has no correct digit left in float32 for |delta| < 1e-4."""
    return jnp.expm1(delta) - delta


def absolute(delta: Array) -> Array:
    """|delta|: no estimator of the divergence, but a distance that some penalties use."""
    return delta * jnp.sign(delta)  # jnp.abs has derivative 1 at 0, which would push tokens that agree apart


def straight_through(
    delta: Array, *, value: Callable[[Array], Array] = k3, gradient: Callable[[Array], Array] = k2
) -> Array:
    """The value of one estimator with the gradient of another: g - stop_gradient(g) + stop_gradient(v).

    With k3 and k2 an estimate that is unbiased in both: the value of k3, the gradient of KL(p || q). verl's "k3+", and
    with ``value=k1`` its "k1+"; arXiv 2506.09477.

    Args:
        delta: log q - log p.
        value: kernel whose value it takes.
        gradient: kernel whose gradient it has.
    """
    slope = gradient(delta)
    return slope - jax.lax.stop_gradient(slope) + jax.lax.stop_gradient(value(delta))


@needs("logp_ref")
def kl_penalty(
    stats: TokenStats,
    batch: Batch,
    *,
    estimator: Callable[[Array], Array] = k3,
    weight: Callable[[TokenStats, Batch], Array] | None = None,
    clamp_log_ratio: float | None = 20.0,
    clamp_output: float | None = None,
) -> Array:
    """Term: an estimate of KL(policy || reference) of every token -> f32[N,T], nats.

    Args:
        stats: forward pass of the policy.
        batch: with ``logp_ref``.
        estimator: a kernel of this module, of delta = logp_ref - logp.
        weight: a term that multiplies the estimate and is differentiated too, such as `over_old`: with it and k3 the
            gradient is that of the divergence although the tokens come from the old policy (arXiv 2512.02556).
        clamp_log_ratio: delta is clipped to +- this before the kernel, which keeps k3 finite; None: not at all.
        clamp_output: the estimate is clipped to +- this; None: not at all. Where a clamp acts the gradient is 0.

    Raises:
        ValueError: the batch holds no reference log-probabilities.
    """
    if batch.logp_ref is None:
        raise ValueError("kl_penalty reads Batch.logp_ref, which is None. Remedy: give the run a reference policy")
    value = estimator(difference(batch.logp_ref, stats.logp, batch.mask, clamp=clamp_log_ratio))
    if weight is not None:
        value = value * weight(stats, batch)
    return value if clamp_output is None else jnp.clip(value, -clamp_output, clamp_output)


@needs("kl_full")
def kl_exact(stats: TokenStats, batch: Batch) -> Array:
    """Term: the exact KL(policy || reference) at every token, over the whole vocabulary -> f32[N,T], nats.

    sum_v p(v) (log p(v) - log q(v)), which `models.logprobs` computes in chunks: no estimate, and its gradient is that
    of the divergence at the states that were visited.

    Raises:
        ValueError: it was not asked for.
    """
    del batch
    if stats.kl_full is None:
        raise ValueError('kl_exact reads TokenStats.kl_full, which is None. Remedy: ask for want=("kl_full",)')
    return stats.kl_full


ESTIMATORS: dict[str, Callable[[Array], Array]] = {"k1": k1, "k2": k2, "k3": k3, "abs": absolute}
