"""Corrections for tokens that another distribution sampled: importance weights, and rows or tokens left out.

A correction is a term that `reweight` multiplies a policy term with; no gradient flows through it. By default it
compares the old policy with the behaviour (o - b, the mismatch between trainer and sampler), with ``of`` any other
log-ratio: `log_ratio_behavior` corrects the policy being trained, `sequence_log_ratio` makes one weight a row.

w is the weight, the exponential of that log-ratio. Sources of the forms: Yao et al. 2025 ("Your efficient RL framework
secretly brings you off-policy RL training") for the truncated weight, Ring-1T (arXiv 2510.18855) for the masked one.
"""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp

from grpo_jax import masked
from grpo_jax.objectives.kl import k3
from grpo_jax.objectives.ratios import (
    CAP,
    LogRatio,
    log_mismatch,
    log_ratio_behavior,
    row_length,
    sequence_log_ratio,
)
from grpo_jax.types import Array, Batch, TokenStats

mismatch_sum: LogRatio = partial(sequence_log_ratio, of=log_mismatch, reduction="sum")
"""sum_t (o - b) of the row: the ratio of the probabilities of the completion."""
mismatch_mean: LogRatio = partial(sequence_log_ratio, of=log_mismatch, reduction="mean")
"""The mean of o - b over the row: the geometric mean of the ratios of its tokens."""


def importance(stats: TokenStats, batch: Batch, *, of: LogRatio = log_mismatch, clamp: float | None = CAP) -> Array:
    """w -> f32[N,T], untouched but for `clamp`.

    Args:
        stats: forward pass of the policy.
        batch: the record.
        of: log-ratio whose exponential is w.
        clamp: the log-ratio, of the row where it is one of rows, is clipped to +- this first (verl 20; TRL, OpenRLHF,
            NeMo-RL, slime None).
    """
    log_weight = of(stats, batch, clamp=None)
    return jnp.exp(log_weight if clamp is None else jnp.clip(log_weight, -clamp, clamp))


def truncated(
    stats: TokenStats,
    batch: Batch,
    *,
    of: LogRatio = log_mismatch,
    lower: float | None = None,
    upper: float | None = 2.0,
    clamp: float | None = CAP,
) -> Array:
    """w clipped to [lower, upper] -> f32[N,T]: truncated importance sampling, biased and of bounded variance.

    Args:
        stats: forward pass of the policy.
        batch: the record.
        of: log-ratio whose exponential is w.
        lower: lower bound; None: none (slime's two-sided form has one).
        upper: the C of min(w, C), 2 in the note by Yao et al.; None: none.
        clamp: as in `importance`.
    """
    w = importance(stats, batch, of=of, clamp=clamp)
    return w if lower is None and upper is None else jnp.clip(w, lower, upper)


def masked_importance(
    stats: TokenStats,
    batch: Batch,
    *,
    of: LogRatio = log_mismatch,
    lower: float | None = 0.5,
    upper: float | None = 5.0,
    clamp: float | None = CAP,
) -> Array:
    """w where lower <= w <= upper, else 0 -> f32[N,T]: masked importance sampling (IcePop, arXiv 2510.18855).

    Arguments as in `truncated`. What is masked stays in the denominator of the mean.
    """
    w = importance(stats, batch, of=of, clamp=clamp)
    return jnp.where(within(w, lower, upper), w, jnp.zeros_like(w))


def within(value: Array, lower: float | None, upper: float | None) -> Array:
    """bool of the shape of `value`: lower <= value <= upper, None being no bound."""
    inside = jnp.ones(value.shape, bool)
    if lower is not None:
        inside &= value >= lower
    return inside if upper is None else inside & (value <= upper)


def statistic(
    stats: TokenStats,
    batch: Batch,
    *,
    estimator: Callable[[Array], Array] = k3,
    level: str = "token",
    of: LogRatio = log_mismatch,
) -> Array:
    """How far tokens or rows are off-policy -> f32[N,T]: a kernel of the log-ratio, reduced over the row or not.

    Args:
        stats: forward pass of the policy.
        batch: the record.
        estimator: `k1` (whose value is b - o), `k2` or `k3`, of delta = o - b.
        level: "token", or the row's "sum", "mean" or "max" over its scored tokens, on all of its positions.
        of: log-ratio of tokens.

    Raises:
        ValueError: `level` is unknown.
    """
    value = jnp.where(
        batch.mask, estimator(of(stats, batch, clamp=None)), jnp.zeros(batch.mask.shape, stats.logp.dtype)
    )
    if level == "token":
        return value
    if level in ("sum", "mean"):
        row = jnp.sum(value, axis=1, keepdims=True)
        row = row / row_length(batch, row.dtype) if level == "mean" else row
    elif level == "max":
        row = jnp.max(masked.select(batch.mask, value, -jnp.inf), axis=1, keepdims=True)
        row = jnp.where(jnp.any(batch.mask, axis=1, keepdims=True), row, jnp.zeros_like(row))
    else:
        raise ValueError(f"level: got {level!r}, allowed 'token', 'sum', 'mean' and 'max': name one of them")
    return jnp.broadcast_to(row, value.shape)


def kept(
    stats: TokenStats,
    batch: Batch,
    *,
    estimator: Callable[[Array], Array] = k3,
    level: str = "mean",
    lower: float | None = None,
    upper: float | None = 0.02,
    exponential: bool = False,
    of: LogRatio = log_mismatch,
) -> Array:
    """1 where lower <= statistic <= upper, 0 elsewhere -> f32[N,T]: rejection of what is too far off-policy.

    As a factor (`reweight`) what is rejected stays in the denominator; as the selection of `restricted`
    (``to=recorded(kept, ...)``) it leaves that too, which is what verl does.

    Args:
        stats: forward pass of the policy.
        batch: the record.
        estimator: kernel of the statistic.
        level: what one statistic is formed from, as in `statistic`.
        lower: lower bound, inclusive; None: none.
        upper: upper bound, inclusive; None: none.
        exponential: the bounds are on the exponential of the statistic. With `k1` that is behaviour / old, the inverse
            of w: verl documents its bounds as those of w and applies them so.
        of: log-ratio of tokens.
    """
    value = statistic(stats, batch, estimator=estimator, level=level, of=of)
    inside = within(jnp.exp(value) if exponential else value, lower, upper)
    return inside.astype(stats.logp.dtype)


def kept_rows(
    stats: TokenStats,
    batch: Batch,
    *,
    of: LogRatio = mismatch_mean,
    lower: float | None = 0.999,
    upper: float | None = 1.002,
    clamp: float | None = CAP,
) -> Array:
    """1 where lower <= w <= upper, 0 elsewhere -> f32[N,T]: the geometric rejection of rows (OpenRLHF, NeMo-RL).

    Arguments as in `truncated`; `of` is a log-ratio of rows. Together with `importance` on the tokens of the rows that
    are kept it is the geometric sequence mask.
    """
    return within(importance(stats, batch, of=of, clamp=clamp), lower, upper).astype(stats.logp.dtype)


def off_policy_mask(
    stats: TokenStats, batch: Batch, *, threshold: float = 0.02, of: LogRatio = log_ratio_behavior
) -> Array:
    """0 on bad rows that the policy has left behind, 1 elsewhere -> f32[N,T] (DeepSeek-V3.2, arXiv 2512.02556).

    0 where A < 0 and (1/n_i) sum_t (b - x) > `threshold`: what is both discouraged and off-policy teaches nothing.
    Where advantages differ within a row their sign counts token by token (slime); TRL has one sign a row.

    Args:
        stats: forward pass of the policy.
        batch: with ``advantage``.
        threshold: nats a token, the paper's delta, which it does not state.
        of: log-ratio x - b of tokens (TRL); `log_ratio` measures against the old policy (slime).
    """
    row = sequence_log_ratio(stats, batch, of=of, reduction="mean", cap=None)
    return 1.0 - ((batch.advantage < 0) & (-row > threshold)).astype(row.dtype)
