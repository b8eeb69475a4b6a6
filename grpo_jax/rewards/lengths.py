"""What a completion pays for its length, in tokens."""

import jax.numpy as jnp

from grpo_jax.types import Array, Rollouts


def overlong_penalty(
    length: Array, *, max_length: int, buffer_length: int, penalty: float = 1.0, floor: bool = True
) -> Array:
    """penalty * min((max_length - buffer_length - L) / buffer_length, 0) -> f32, the shape of `length`.

    The soft punishment of DAPO (arXiv 2503.14476, equation 13): 0 up to ``max_length - buffer_length`` tokens, then
    falling to ``-penalty`` at `max_length`. Behind it stays there with `floor` (the paper, TRL) and falls on without
    (verl, tunix), which is the same where generation ends at `max_length`. float64 under x64.

    Args:
        length: i32, tokens of completions; tunix counts characters, which is another quantity.
        max_length: L_max, 20480 in the paper.
        buffer_length: L_cache, 4096 in the paper.
        penalty: 1 in the paper.
        floor: whether the penalty is bounded.

    Raises:
        ValueError: the buffer is not within 1 and `max_length`.
    """
    if not 1 <= buffer_length <= max_length:
        raise ValueError(
            f"buffer_length: got {buffer_length}, allowed 1 to max_length = {max_length}: it is the part of the length"
            " over which the penalty grows"
        )
    over = (max_length - buffer_length - length.astype(float)) / buffer_length
    return penalty * jnp.clip(over, -1.0 if floor else None, 0.0)


def soft_overlong(
    rollouts: Rollouts, *, max_length: int, buffer_length: int, penalty: float = 1.0, floor: bool = True
) -> Array:
    """f32[N], `overlong_penalty` of every row, as a scorer for `grpo_jax.rewards.tokens.combine`."""
    keywords = {"max_length": max_length, "buffer_length": buffer_length, "penalty": penalty, "floor": floor}
    return overlong_penalty(rollouts.length, **keywords)
