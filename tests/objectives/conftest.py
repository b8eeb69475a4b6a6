"""A batch of nine rows of four prompts, unequal and interleaved, for the laws of this folder."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import objectives as o
from grpo_jax.advantages import critic_targets
from grpo_jax.types import Batch, Collected, Prompts, Reward, Rollouts, TokenStats

LENGTHS = (5, 3, 1, 6, 0, 2, 4, 6, 3)
PROMPT = (0, 1, 0, 2, 1, 0, 2, 1, 3)
WIDTH = 6

Arrays = dict[str, np.ndarray]


def draw(seed: int = 0, lengths: tuple = LENGTHS, prompt: tuple = PROMPT, width: int = WIDTH) -> Arrays:
    """Numbers of a batch as numpy arrays, with nan wherever nothing may look."""
    rng = np.random.default_rng(seed)
    rows = len(lengths)
    mask = np.arange(width)[None, :] < np.asarray(lengths)[:, None]
    logp = -rng.uniform(0.05, 3.0, (rows, width))
    arrays = {
        "logp": logp,
        "entropy": rng.uniform(0.1, 2.0, (rows, width)),
        "logp_old": logp + rng.normal(0, 0.4, (rows, width)),
        "logp_ref": logp + rng.normal(0, 0.4, (rows, width)),
    }
    # The sampler is next to the old policy on every other row and far from it on the rest: some rows are rejected.
    near = np.where(np.arange(rows) % 2 == 0, 1e-4, 0.4)[:, None]
    arrays["behavior"] = arrays["logp_old"] + near * rng.normal(0, 1.0, (rows, width))
    critic = np.random.default_rng(seed + 100)
    arrays["value"], arrays["value_old"] = critic.normal(0, 0.7, (2, rows, width))
    arrays["kl_full"] = critic.uniform(0.0, 1.0, (rows, width))
    arrays = {name: np.where(mask, x, np.nan).astype(np.float32) for name, x in arrays.items()}
    return arrays | {
        "mask": mask,
        "prompt": np.asarray(prompt, np.int32),
        "sample": np.arange(rows, dtype=np.int32),
        "reward": rng.normal(size=rows).astype(np.float32),
        "valid": np.ones(rows, bool),
    }


def records(arrays: Mapping, prompts: int = 4) -> tuple[TokenStats, Collected]:
    """The arrays as the records that groupings, advantages and terms read."""
    arrays = {name: jnp.asarray(x) for name, x in arrays.items()}
    rows = arrays["mask"].shape[0]
    index = jnp.arange(prompts, dtype=jnp.int32)
    rollouts = Rollouts(
        prompts=Prompts(tokens=index[:, None], length=jnp.ones_like(index), draw=index, row=index),
        prompt=arrays["prompt"],
        sample=arrays["sample"],
        tokens=jnp.zeros(arrays["mask"].shape, jnp.int32),
        length=jnp.sum(arrays["mask"], axis=1, dtype=jnp.int32),
        stopped=jnp.ones(rows, bool),
        mask=arrays["mask"],
        logp=arrays["behavior"],
        logp_full=arrays["behavior"],
        version=jnp.zeros(rows, jnp.int32),
    )
    reward = Reward(outcome=arrays["reward"], valid=arrays["valid"])
    seen = {name: arrays[name] for name in ("logp_old", "logp_ref", "value_old")}
    stats = TokenStats(**{name: arrays[name] for name in ("logp", "entropy", "value", "kl_full")})
    return stats, Collected(rollouts=rollouts, reward=reward, **seen)


def batch_of(collected: Collected, recipe: o.Recipe, stats: TokenStats | None = None) -> Batch:
    """Labels, advantages, mask and weights of a recipe; rows marked by a negative sample belong to no group.

    With `stats` the prepare steps of the recipe have run.
    """
    rollouts, reward = collected.rollouts, collected.reward
    marked = rollouts.sample < 0
    # A grouping that drops rows reads rewards: those of marked rows must not be read, as if they had no label at all.
    unread = dataclasses.replace(reward, valid=reward.valid & ~marked)
    labels, memory = recipe.grouping(dataclasses.replace(collected, reward=unread), {})
    labels = jnp.where(marked, -1, labels)
    advantage, _ = recipe.advantage(collected, labels, memory)
    batch = Batch(
        rollouts=rollouts,
        mask=rollouts.mask & (reward.valid & (labels >= 0))[:, None],
        weight={},
        advantage=advantage,
        logp_old=collected.logp_old,
        logp_behavior=rollouts.logp,
        group=labels,
        reward=reward,
        logp_ref=collected.logp_ref,
        returns=critic_targets(recipe.advantage, collected, labels),
        value_old=collected.value_old,
        coef=o.initial_values(recipe.coefficients),
    )
    batch = dataclasses.replace(batch, weight=o.weights(recipe.parts, batch))
    if stats is None:
        return batch
    for number, prepare in enumerate(recipe.prepare):
        batch = prepare(jax.lax.stop_gradient(stats), batch, jax.random.key(number))
    return batch


@pytest.fixture(scope="session")
def laboratory() -> tuple[Callable[..., Arrays], Callable, Callable]:
    """(draw, records, batch_of) of this file."""
    return draw, records, batch_of


@pytest.fixture(scope="session")
def by_hand() -> Callable[..., tuple[TokenStats, Batch]]:
    """``by_hand(ratio, mismatch=, advantage=, mask=)``: x = -1, the given ratios new / old and old / behaviour."""
    return _by_hand


def _by_hand(ratio: list, *, mismatch: list | None = None, advantage: list | None = None, mask: list | None = None):
    r = np.asarray(ratio, np.float32)
    rows = r.shape[0]
    arrays = draw(lengths=(r.shape[1],) * rows, prompt=(0,) * rows, width=r.shape[1])
    if mask is not None:
        arrays["mask"] = np.asarray(mask, bool)
    arrays["logp"] = np.full_like(r, -1.0)
    arrays["logp_old"] = arrays["logp"] - np.log(r)
    arrays["behavior"] = arrays["logp_old"] - np.log(np.asarray(mismatch or np.ones_like(r), np.float32))
    stats, collected = records(arrays, prompts=1)
    batch = batch_of(collected, o.RECIPES["ppo_clip"])
    value = np.ones_like(r) if advantage is None else np.broadcast_to(np.asarray(advantage, np.float32), r.shape)
    return stats, dataclasses.replace(batch, advantage=jnp.asarray(value))
