"""Log-ratios of probabilities of the same tokens under two policies, token by token and row by row.

x is the log-probability of a token under the policy being trained, o under the old policy (``Batch.logp_old``), b under
the distribution that it was drawn from (``Batch.logp_behavior``). A *log-ratio* is a function
``(stats, batch, *, clamp) -> f32[N,T]`` that is 0 outside the mask; surrogates and corrections take one as an argument.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from grpo_jax import masked
from grpo_jax.objectives.description import needs
from grpo_jax.types import Array, Batch, TokenStats

LogRatio = Callable[..., Array]
"""``(TokenStats, Batch, *, clamp: float | None) -> f32[N,T]``: a log-ratio, every token's clipped to +- `clamp`."""

CAP = 20.0
"""Nats at which ratios are capped unless said otherwise: exp(20) is 5e8, and finite numbers stay finite."""


def difference(new: Array, old: Array, mask: Array, *, clamp: float | None = None) -> Array:
    """The difference new - old on the scored tokens, 0 elsewhere -> f32[N,T], clipped to +- `clamp`.

    The gradient is 0 where the clamp acts. Selected before any exponential: 0 * exp(garbage) would be nan in the value
    and in the gradient.
    """
    delta = masked.select(mask, new) - masked.select(mask, old)
    # `lax.clamp` keeps one bit an entry for the gradient, where `jnp.clip` keeps two arrays of numbers.
    return delta if clamp is None else jax.lax.clamp(delta.dtype.type(-clamp), delta, delta.dtype.type(clamp))


def log_ratio(stats: TokenStats, batch: Batch, *, clamp: float | None = None) -> Array:
    """x - o, log(pi_new / pi_old) of every scored token -> f32[N,T]."""
    return difference(stats.logp, batch.logp_old, batch.mask, clamp=clamp)


def log_ratio_behavior(stats: TokenStats, batch: Batch, *, clamp: float | None = None) -> Array:
    """x - b, log(pi_new / behaviour) of every scored token -> f32[N,T]."""
    return difference(stats.logp, batch.logp_behavior, batch.mask, clamp=clamp)


@needs("logp_old")
def log_mismatch(stats: TokenStats, batch: Batch, *, clamp: float | None = None) -> Array:
    """o - b, log(pi_old / behaviour) of every scored token -> f32[N,T]: no gradient, data alone.

    o is what the trainer says of the policy at the beginning of the step, b what the sampler drew from. Of the same
    parameters it is their numerical disagreement, and the mass that truncated sampling cut off; with stale rollouts it
    is the distance that the policy has moved as well.
    """
    del stats
    return difference(batch.logp_old, batch.logp_behavior, batch.mask, clamp=clamp)


def sequence_log_ratio(
    stats: TokenStats,
    batch: Batch,
    *,
    clamp: float | None = None,
    of: LogRatio = log_ratio,
    reduction: str = "mean",
    gradient: str = "row",
    floor: float | None = None,
    cap: float | None = CAP,
) -> Array:
    """The log-ratio of whole rows -> f32[N,T], the row's number on all of its positions.

    With n_i scored tokens of log-ratio d: ``(1/n_i) sum_t d`` for the mean, the exponential of which GSPO calls s_i
    (arXiv 2507.18071, equation 7), or ``sum_t d``, the ratio of the completions' probabilities, or the largest d. A row
    without scored tokens has 0.

    Args:
        stats: forward pass of the policy.
        batch: the record.
        clamp: every token's log-ratio is clipped to +- this before it is summed (tunix 20; None, as most: not).
        of: log-ratio of tokens.
        reduction: "mean", "sum" or "max" over the row's scored tokens.
        gradient: "row", through every token of the row, or "token": the number is a constant but for its own token's
            ``x - stop_gradient(x)`` (GSPO-token, equation 14), which allows advantages that differ within a row.
        floor: lower bound of the row's number (VESPO: log 1e-8); None: none.
        cap: upper bound of the row's number (verl and tunix GSPO 10, VESPO 20; TRL, NeMo-RL, OpenRLHF None). The
            gradient is 0 where a bound acts.

    Raises:
        ValueError: `reduction` or `gradient` is unknown.
    """
    if reduction not in ("mean", "sum", "max"):
        raise ValueError(
            f"reduction: got {reduction!r}, allowed 'mean', 'sum' and 'max': choose how a row's tokens combine"
        )
    if gradient not in ("row", "token"):
        raise ValueError(f"gradient: got {gradient!r}, allowed 'row' and 'token': choose its path")
    delta = of(stats, batch, clamp=clamp)
    if reduction == "max":
        value = jnp.max(masked.select(batch.mask, delta, -jnp.inf), axis=1, keepdims=True)
        value = jnp.where(jnp.any(batch.mask, axis=1, keepdims=True), value, jnp.zeros_like(value))
    else:
        value = jnp.sum(delta, axis=1, keepdims=True)
        value = value / row_length(batch, delta.dtype) if reduction == "mean" else value
    if gradient == "token":
        value = jax.lax.stop_gradient(value) + (delta - jax.lax.stop_gradient(delta))
    value = value if floor is None and cap is None else jnp.clip(value, floor, cap)
    return jnp.broadcast_to(value, delta.shape)


def row_length(batch: Batch, dtype: jnp.dtype) -> Array:
    """Number of scored tokens of each row, at least 1 -> f32[N,1]."""
    return jnp.maximum(masked.count(batch.mask, axis=1, dtype=dtype), 1.0)[:, None]


def over_old(stats: TokenStats, batch: Batch, *, clamp: float | None = CAP) -> Array:
    """Term: pi_new / pi_old of every scored token -> f32[N,T], 1 elsewhere."""
    return jnp.exp(log_ratio(stats, batch, clamp=clamp))


def over_behavior(stats: TokenStats, batch: Batch, *, clamp: float | None = CAP) -> Array:
    """Term: pi_new over the probability under which the token was sampled -> f32[N,T], 1 elsewhere."""
    return jnp.exp(log_ratio_behavior(stats, batch, clamp=clamp))


def over_itself(stats: TokenStats, batch: Batch) -> Array:
    """Term of value 1 -> f32[N,T], whose derivative is that of logp: it carries the score function."""
    return jnp.exp(difference(stats.logp, jax.lax.stop_gradient(stats.logp), batch.mask))


def interval(low: float | None, high: float | None, bounds: str) -> tuple[float | None, float | None]:
    """Lower and upper bound of a ratio r as `bounds` reads `low` and `high`; None: no bound on that side.

    "relative": 1 - low <= r <= 1 + high (PPO and most); "absolute": low <= r <= high (TRL's CISPO); "log":
    -low <= log r <= high (GMPO).

    Raises:
        ValueError: `bounds` is none of these.
    """
    if bounds not in ("relative", "absolute", "log"):
        raise ValueError(f"bounds: got {bounds!r}, allowed 'relative', 'absolute' and 'log': name one of them")
    if bounds == "relative":
        return None if low is None else 1.0 - low, None if high is None else 1.0 + high
    if bounds == "absolute":
        return low, high
    return None if low is None else math.exp(-low), None if high is None else math.exp(high)
