"""Log-ratios of probabilities of the same tokens under two policies."""

import jax
import jax.numpy as jnp

from grpo_jax import masked
from grpo_jax.types import Array, Batch, TokenStats


def difference(new: Array, old: Array, mask: Array, *, clamp: float | None = None) -> Array:
    """The difference new - old on the scored tokens, 0 elsewhere -> f32[N,T], clipped to +- `clamp`.

    The gradient is 0 where the clamp acts. Selected before any exponential: 0 * exp(garbage) would be nan in the value
    and in the gradient.
    """
    delta = masked.select(mask, new) - masked.select(mask, old)
    return delta if clamp is None else jnp.clip(delta, -clamp, clamp)


def log_ratio(stats: TokenStats, batch: Batch, *, clamp: float | None = None) -> Array:
    """log(pi_new / pi_old) of every scored token -> f32[N,T]."""
    return difference(stats.logp, batch.logp_old, batch.mask, clamp=clamp)


def over_old(stats: TokenStats, batch: Batch, *, clamp: float | None = 20.0) -> Array:
    """Term: pi_new / pi_old of every scored token -> f32[N,T], 1 elsewhere."""
    return jnp.exp(log_ratio(stats, batch, clamp=clamp))


def over_behavior(stats: TokenStats, batch: Batch, *, clamp: float | None = 20.0) -> Array:
    """Term: pi_new over the probability under which the token was sampled -> f32[N,T], 1 elsewhere."""
    return jnp.exp(difference(stats.logp, batch.logp_behavior, batch.mask, clamp=clamp))


def over_itself(stats: TokenStats, batch: Batch) -> Array:
    """Term of value 1 -> f32[N,T], whose derivative is that of logp: it carries the score function."""
    return jnp.exp(difference(stats.logp, jax.lax.stop_gradient(stats.logp), batch.mask))
