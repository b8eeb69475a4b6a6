"""Terms that keep a policy near the one that sampled: penalties on the log-ratio, and bounds on the probability itself.

A is the advantage; x, o and b are the log-probabilities of a token under the policy being trained, the old policy and
the distribution it was drawn from.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from grpo_jax.objectives.kl import absolute
from grpo_jax.objectives.ratios import CAP, LogRatio, log_ratio, log_ratio_behavior
from grpo_jax.types import Array, Batch, TokenStats


def old_penalty(
    stats: TokenStats,
    batch: Batch,
    *,
    estimator: Callable[[Array], Array] = absolute,
    direction: str = "forward",
    clamp_log_ratio: float | None = CAP,
) -> Array:
    """A distance of the policy from the old one, token by token -> f32[N,T], nats.

    With ``estimator=k3`` and the forward direction the estimate of KL(old || new) that PPO with an adaptive penalty
    adds (arXiv 1707.06347, equation 8; the tokens are drawn from the old policy). With ``absolute`` the |d| of KL-Cov
    as verl computes it (arXiv 2505.22617).

    Args:
        stats: forward pass of the policy.
        batch: with ``logp_old``.
        estimator: a kernel of `grpo_jax.objectives.kl`, of delta.
        direction: "forward", delta = x - o, so that a kernel estimates KL(old || new); "reverse", delta = o - x.
        clamp_log_ratio: delta is clipped to +- this first; None: not at all. The gradient is 0 where it acts.

    Raises:
        ValueError: `direction` is unknown.
    """
    if direction not in ("forward", "reverse"):
        raise ValueError(f"direction: got {direction!r}, allowed 'forward' and 'reverse': choose the sign of delta")
    delta = log_ratio(stats, batch, clamp=clamp_log_ratio)
    return estimator(delta if direction == "forward" else -delta)


def probability_clip(
    stats: TokenStats,
    batch: Batch,
    *,
    tv_low: float = 0.2,
    tv_high: float = 0.2,
    symmetric: bool = False,
    clamp_log_ratio: float | None = CAP,
) -> Array:
    """-A p / q, 0 where the token's probability has gone too far -> f32[N,T] (DPPO, arXiv 2602.04879, binary TV).

    p = e^x and q = e^b. A token is dropped where A > 0 and p - q > `tv_high`, or A <= 0 and p - q < -`tv_low`: the
    bound is on the difference of probabilities, so that unlikely tokens may change their ratio freely. No gradient
    flows through the decision.

    Args:
        stats: forward pass of the policy.
        batch: with ``advantage`` and ``logp_behavior``.
        tv_low: how far the probability of a token may fall, in [0, 1].
        tv_high: how far it may rise.
        symmetric: a token outside either bound is dropped whatever its advantage (prime-rl's IPO form).
        clamp_log_ratio: log p/q is clipped to +- this; None (prime-rl): not at all.
    """
    keep = probability_kept(stats, batch, tv_low=tv_low, tv_high=tv_high, symmetric=symmetric)
    ratio = jnp.exp(log_ratio_behavior(stats, batch, clamp=clamp_log_ratio))
    return jnp.where(keep, -batch.advantage * ratio, jnp.zeros_like(ratio))


def probability_kept(stats: TokenStats, batch: Batch, *, tv_low: float, tv_high: float, symmetric: bool) -> Array:
    """bool[N,T]: the tokens that `probability_clip` keeps."""
    x, b = (jnp.where(batch.mask, y, jnp.zeros_like(y)) for y in (stats.logp, batch.logp_behavior))
    moved = jax.lax.stop_gradient(jnp.exp(x) - jnp.exp(b))
    risen, fallen = moved > tv_high, moved < -tv_low
    if symmetric:
        return ~(risen | fallen)
    return ~jnp.where(batch.advantage > 0, risen, fallen)


def squared_log_ratio(stats: TokenStats, batch: Batch, *, ratio: LogRatio = log_ratio_behavior) -> Array:
    """(x - b)^2 -> f32[N,T]: the quadratic pull to the sampler that DPPO adds with the coefficient 1e-3 (prime-rl)."""
    return jnp.square(ratio(stats, batch, clamp=None))
