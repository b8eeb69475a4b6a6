"""Bandits: completions of a single token. What is true of a group of samples can be said by hand here."""

from collections.abc import Sequence

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
        tokens=jnp.asarray(np.arange(number, dtype=np.int32)[:, None]),
        length=jnp.asarray(np.ones(number, np.int32)),
        stopped=jnp.asarray(np.ones(number, bool)),
        state=jnp.asarray(np.zeros((number, 1), np.int32)),
        allowed=jnp.asarray(np.ones((1, number), bool)),
    )


def coins(success: Sequence[float] | np.ndarray) -> tuple[Completions, Array, Array]:
    """Prompts that are answered right or wrong: (completions, logits f[P,1,2], reward f[P,2]).

    Args:
        success: f[P], in (0, 1): the probability that arm 1, whose reward is 1, is drawn for a prompt. Arm 0 gets 0.
    """
    chance = np.asarray(success, np.float64)
    right = np.log(chance) - np.log1p(-chance)
    logits = np.stack([np.zeros_like(right), right], axis=-1)[:, None, :]
    reward = np.broadcast_to(np.asarray([0.0, 1.0]), (chance.shape[0], 2))
    return arms(2), jnp.asarray(logits), jnp.asarray(reward)
