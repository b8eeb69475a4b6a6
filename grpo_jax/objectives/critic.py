"""Terms of a critic: the values of states before each token, and how far they are from their targets."""

import jax.numpy as jnp

from grpo_jax.objectives.description import needs
from grpo_jax.types import Array, Batch, TokenStats


@needs("value")
def value_clip(stats: TokenStats, batch: Batch, *, clip: float | None = 0.2) -> Array:
    """max((v - R)^2, (v_old + clip(v - v_old, +-clip) - R)^2) / 2 -> f32[N,T]: PPO's clipped value loss.

    v is the critic's value of the state before the token, R the target (``Batch.returns``), v_old the value at
    collection. Once v has moved by more than `clip` towards its target the gradient stops. Source: the
    implementation of PPO by its authors, arXiv 1707.06347; verl, OpenRLHF and tunix agree on the factor 1/2.

    Args:
        stats: with ``value``.
        batch: with ``returns``, and ``value_old`` where there is a clip.
        clip: half-width of the interval around the old value; None: the plain square.

    Raises:
        ValueError: a field is missing.
    """
    target = _given(batch.returns, "Batch.returns")
    square = jnp.square(_given(stats.value, "TokenStats.value") - target)
    if clip is None:
        return square / 2
    return jnp.maximum(square, jnp.square(clipped_value(stats, batch, clip=clip) - target)) / 2


def clipped_value(stats: TokenStats, batch: Batch, *, clip: float) -> Array:
    """v_old + clip(v - v_old, -clip, clip) -> f32[N,T]."""
    old = _given(batch.value_old, "Batch.value_old")
    return old + jnp.clip(_given(stats.value, "TokenStats.value") - old, -clip, clip)


def _given(x: Array | None, name: str) -> Array:
    if x is None:
        raise ValueError(f"{name}: got None, which the loss of a critic reads: train with a critic, or drop the part")
    return x
