"""Which tokens a clipped objective says nothing about, as terms of 0 and 1, with the bounds that a recipe uses."""

from collections.abc import Iterable
from functools import partial

import jax.numpy as jnp

from grpo_jax.objectives.algebra import Part, Term
from grpo_jax.objectives.description import functions
from grpo_jax.objectives.ratios import LogRatio, interval, log_ratio
from grpo_jax.objectives.selection import stopped_by_clip
from grpo_jax.types import Array, Batch, TokenStats

CLAMP = 20.0
"""Diagnostics clip log-ratios to +- this: exp(20) is past every alarm, and a finite number can be plotted."""


def clipped_low(
    stats: TokenStats,
    batch: Batch,
    *,
    low: float = 0.2,
    bounds: str = "relative",
    ratio: LogRatio = log_ratio,
    clamp_log_ratio: float | None = CLAMP,
) -> Array:
    """1 where the lower bound stops the gradient: r < 1 - low and A < 0 -> f32[N,T]; arguments as in `ppo_clip`."""
    r, (lower, _) = jnp.exp(ratio(stats, batch, clamp=clamp_log_ratio)), interval(low, None, bounds)
    return stopped_by_clip(r, batch.advantage, lower, None).astype(r.dtype)


def clipped_high(
    stats: TokenStats,
    batch: Batch,
    *,
    high: float = 0.2,
    bounds: str = "relative",
    ratio: LogRatio = log_ratio,
    clamp_log_ratio: float | None = CLAMP,
) -> Array:
    """1 where the upper bound stops the gradient: r > 1 + high and A > 0 -> f32[N,T]; arguments as in `ppo_clip`."""
    r, (_, upper) = jnp.exp(ratio(stats, batch, clamp=clamp_log_ratio)), interval(None, high, bounds)
    return stopped_by_clip(r, batch.advantage, None, upper).astype(r.dtype)


def clip_shares(parts: Iterable[Part]) -> dict[str, Term]:
    """Side ("low", "high") -> the term for it, with the bounds of the first function with keywords low and high.

    An objective that clips nothing, or not on that side, has no such term. Whose ratio is clipped, and how the bounds
    are meant, is read off the same function.
    """
    found = [keywords for function, keywords in functions(tuple(parts)) if {"low", "high"} <= keywords.keys()]
    bounds = found[0] if found else {"low": None, "high": None}
    meaning = {key: bounds[key] for key in ("bounds", "ratio") if key in bounds}
    terms = (("low", clipped_low), ("high", clipped_high))
    return {side: partial(term, **{side: bounds[side]}, **meaning) for side, term in terms if bounds[side] is not None}
