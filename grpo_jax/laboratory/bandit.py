"""Bandits: completions of a single token. What is true of a group of samples can be said by hand here."""

import jax.numpy as jnp
import numpy as np

from grpo_jax.laboratory.truth import Completions
from grpo_jax.types import Array


def arms(number: int) -> Completions:
    """The completions of a bandit of `number` arms: one token, one state, the token is the arm.

    Raises:
        ValueError: fewer than two arms, between which there is nothing to choose.
    """
    if number < 2:
        raise ValueError(f"number: got {number}, allowed 2 and more: a policy needs something to choose between")
    return Completions(
        tokens=jnp.arange(number, dtype=jnp.int32)[:, None],
        length=jnp.ones(number, jnp.int32),
        stopped=jnp.ones(number, bool),
        state=jnp.zeros((number, 1), jnp.int32),
        allowed=jnp.ones((1, number), bool),
    )


def coins(success: Array | np.ndarray) -> tuple[Completions, Array, Array]:
    """Prompts that are answered right or wrong: (completions, logits f[P,1,2], reward f[P,2]).

    Args:
        success: f[P], in (0, 1): the probability that arm 1, whose reward is 1, is drawn for a prompt. Arm 0 gets 0.
    """
    success = jnp.asarray(success)
    right = jnp.log(success) - jnp.log1p(-success)
    logits = jnp.stack([jnp.zeros_like(right), right], axis=-1)[:, None, :]
    reward = jnp.broadcast_to(jnp.asarray([0.0, 1.0], success.dtype), (success.shape[0], 2))
    return arms(2), logits, reward
