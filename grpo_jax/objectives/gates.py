"""Policy terms whose weight falls off smoothly, or that shape a probability, in the place of a hard clip.

A is the advantage, x the log-probability of a token, o that under the old policy, m the mask, n_i the number of scored
tokens of a row, d = x - o and r = exp(d).
"""

import math

import jax
import jax.numpy as jnp

from grpo_jax.objectives.ratios import CAP, interval, log_ratio, row_length, sequence_log_ratio
from grpo_jax.types import Array, Batch, TokenStats


def geometric_clip(
    stats: TokenStats,
    batch: Batch,
    *,
    low: float | None = 0.4,
    high: float | None = 0.4,
    bounds: str = "log",
    clamp_log_ratio: float | None = CAP,
) -> Array:
    """-A exp((1/n_i) sum_t m z_t) -> f32[N,T] (GMPO, arXiv 2507.20673): the geometric mean of the ratios.

    z_t = min(d, clip(d)) where A > 0 and max(d, clip(d)) where A < 0: every token is clipped on the side to which its
    advantage pushes, before the mean. At r = 1 the value is -A and the gradient of the mean over rows that of
    `reinforce`.

    Args:
        stats: forward pass of the policy.
        batch: with ``advantage`` and ``logp_old``.
        low: how far below 0 a token's log-ratio counts where A < 0; None: without bound.
        high: how far above 0 it counts where A > 0; None: without bound.
        bounds: "log" bounds d itself (the paper), "relative" and "absolute" bound r as in `interval`.
        clamp_log_ratio: d is clipped to +- this first; None (verl, TRL): not at all.

    Raises:
        ValueError: `bounds` is unknown.
    """
    delta = log_ratio(stats, batch, clamp=clamp_log_ratio)
    lower, upper = _log_interval(low, high, bounds)
    risen = delta if upper is None else jnp.minimum(delta, upper)
    fallen = delta if lower is None else jnp.maximum(delta, lower)
    z = jnp.where(batch.advantage > 0, risen, jnp.where(batch.advantage < 0, fallen, jnp.zeros_like(delta)))
    mean = jnp.sum(jnp.where(batch.mask, z, jnp.zeros_like(z)), axis=1, keepdims=True) / row_length(batch, z.dtype)
    return -batch.advantage * jnp.exp(mean)


def _log_interval(low: float | None, high: float | None, bounds: str) -> tuple[float | None, float | None]:
    """Bounds of a log-ratio; a bound of the ratio that is not positive is none."""
    if bounds == "log":
        return None if low is None else -low, high
    lower, upper = interval(low, high, bounds)
    return None if lower is None or lower <= 0 else math.log(lower), None if upper is None else math.log(upper)


def soft_gate(
    stats: TokenStats,
    batch: Batch,
    *,
    tau_positive: float = 1.0,
    tau_negative: float = 1.05,
    clamp_log_ratio: float | None = CAP,
) -> Array:
    """-A (4 / tau) sigmoid(tau (r - 1)) -> f32[N,T] (SAPO, arXiv 2511.20347).

    tau is `tau_positive` where A > 0 and `tau_negative` elsewhere. At r = 1 the value is -2 A / tau, which is not that
    of PPO, and the gradient -A, which is; it falls off on both sides.

    Args:
        stats: forward pass of the policy.
        batch: with ``advantage`` and ``logp_old``.
        tau_positive: temperature of the gate for tokens to encourage.
        tau_negative: the same for tokens to discourage; larger falls off sooner.
        clamp_log_ratio: as in `ppo_clip` (verl 20; TRL None).
    """
    r = jnp.exp(log_ratio(stats, batch, clamp=clamp_log_ratio))
    tau = jnp.where(batch.advantage > 0, tau_positive, tau_negative).astype(r.dtype)
    return -batch.advantage * (4.0 / tau) * jax.nn.sigmoid(tau * (r - 1.0))


def soft_weight(
    stats: TokenStats,
    batch: Batch,
    *,
    k_positive: float = 2.0,
    k_negative: float = 3.0,
    lambda_positive: float = 3.0,
    lambda_negative: float = 2.0,
    lambda_min: float = 1e-4,
    clamp_log_ratio: float | None = CAP,
    floor: float | None = math.log(1e-8),
    cap: float | None = CAP,
) -> Array:
    """-stop_gradient(phi) A x -> f32[N,T], phi = exp(lambda + k s - lambda e^s) (VESPO, arXiv 2602.10693).

    s is the sum of d over the row: e^s is the ratio of the completions' probabilities. phi is 1 at s = 0 and falls to 0
    on both sides; k and lambda are the positive ones where A >= 0.

    Args:
        stats: forward pass of the policy.
        batch: with ``advantage`` and ``logp_old``.
        k_positive: power of the weight where A >= 0.
        k_negative: power of the weight where A < 0.
        lambda_positive: rate of the weight's fall where A >= 0.
        lambda_negative: the same where A < 0.
        lambda_min: both rates are at least this (TRL).
        clamp_log_ratio: d of every token is clipped to +- this before it is summed.
        floor: lower bound of s; None: none.
        cap: upper bound of s; None: none.
    """
    s = sequence_log_ratio(stats, batch, clamp=clamp_log_ratio, reduction="sum", floor=floor, cap=cap)
    positive = batch.advantage >= 0
    k = jnp.where(positive, k_positive, k_negative).astype(s.dtype)
    rate = jnp.where(positive, max(lambda_positive, lambda_min), max(lambda_negative, lambda_min)).astype(s.dtype)
    phi = jnp.exp(rate + k * s - rate * jnp.exp(s))
    return -jax.lax.stop_gradient(phi) * batch.advantage * stats.logp


def shaped_probability(stats: TokenStats, batch: Batch, *, gamma: float = 0.1) -> Array:
    """-A p / (p + gamma) with p = e^x -> f32[N,T] (LUFFY, arXiv 2504.14945): tokens of another policy.

    No ratio and no clip: the other policy's probability counts as 1. The slope in x, -A gamma p / (p + gamma)^2, is
    largest at p = gamma, so unlikely tokens of a demonstration are learned before likely ones.

    Args:
        stats: forward pass of the policy.
        batch: with ``advantage``.
        gamma: positive; the probability of the largest slope.
    """
    return -batch.advantage * jax.nn.sigmoid(stats.logp - math.log(gamma))
