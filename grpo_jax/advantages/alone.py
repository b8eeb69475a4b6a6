"""Whether a strategy can learn from one completion of a prompt, found out by asking it."""

import jax.numpy as jnp

from grpo_jax.advantages.strategy import Advantage, initial_memory
from grpo_jax.types import Array, Collected, Prompts, Reward, Rollouts

OUTCOMES = (0.0, 1.0, 0.25, 0.5)


def learns_alone(strategy: Advantage) -> bool:
    """Whether rows that have no group but themselves are told apart: some advantage is finite and not 0.

    The strategy is applied to four rows of different rewards, each a group of its own. One that compares the
    completions of a prompt with each other gives them all 0, or what is no number, unless its `singleton` says
    otherwise. A strategy that refuses these rows, because it reads what they lack, is given the benefit of the doubt.
    """
    collected = _four()
    try:
        value, _ = strategy(collected, collected.rollouts.prompt, initial_memory(strategy))
    except ValueError:
        return True
    return bool(jnp.all(jnp.isfinite(value)) & jnp.any(jnp.abs(value) > 1e-6))


def _four() -> Collected:
    """Four rows of two tokens, with everything that a strategy may read."""
    count, width = len(OUTCOMES), 2
    number = jnp.arange(count, dtype=jnp.int32)
    outcome = jnp.asarray(OUTCOMES, jnp.float32)

    def each(value: float | Array) -> Array:
        return jnp.broadcast_to(jnp.asarray(value, jnp.float32), (count, width))

    yes = jnp.ones((count, width), bool)
    prompts = Prompts(tokens=number[:, None], length=jnp.ones_like(number), draw=number, row=number)
    rollouts = Rollouts(
        prompts=prompts,
        prompt=number,
        sample=jnp.zeros_like(number),
        tokens=jnp.zeros((count, width), jnp.int32),
        length=jnp.full_like(number, width),
        stopped=yes[:, 0],
        mask=yes,
        logp=each(-1.0),
        logp_full=each(-1.0),
        version=jnp.zeros_like(number),
    )
    reward = Reward(
        outcome=outcome,
        valid=yes[:, 0],
        token=outcome[:, None] * jnp.asarray([[1.0, 0.5]]) + jnp.asarray([[0.0, 0.1]]),  # steps of a row differ too
        components={"accuracy": outcome, "format": outcome[::-1]},
        step_end=yes,
        greedy=jnp.full_like(outcome, 0.5),
    )
    seen = {"logp_ref": each(-1.1), "value_old": each(0.3), "sum_pi_squared": each(0.4)}
    return Collected(rollouts=rollouts, reward=reward, logp_old=rollouts.logp_full, **seen)
