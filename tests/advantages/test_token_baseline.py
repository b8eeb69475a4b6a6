"""The optimal baseline of each token: hand numbers, a float64 twin with loops, exact zeros."""

import math
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import advantages as a
from grpo_jax.testing.rows import tiny_collected, tiny_labels

ENERGY = jnp.asarray([[1.0, 2.0], [3.0, 4.0]])
RETURNS = jnp.asarray([[8.0, 6.0], [4.0, 100.0]])


def rows(number: int = 2, group: int = 0) -> dict:
    return {"group": jnp.full(number, group, jnp.int32), "num_groups": number, "valid": jnp.ones(number, bool)}


def test_the_energy_of_a_prefix():
    # p = 1/2, sum p^2 = 1/2: 1 - 1 + 1/2 = 1/2; p = 1/4, sum 3/8: 1 - 1/2 + 3/8 = 7/8
    logp = jnp.asarray([[math.log(0.5), jnp.nan, math.log(0.25)]])
    squares = jnp.asarray([[0.5, jnp.nan, 0.375]])
    mask = jnp.asarray([[True, False, True]])
    np.testing.assert_allclose(a.score_energy(logp, squares, mask), [[0.5, 0.5, 1.375]])


def test_hand_numbers():
    mask = jnp.asarray([[True, True], [True, False]])
    # position 0: (8 + 3 * 4) / (1 + 3) = 5; position 1: row 0 alone, 6
    kernel = partial(a.above_token_baseline, RETURNS, ENERGY, mask)
    np.testing.assert_allclose(kernel(**rows()), [[3, 0], [-1, 0]])
    # with 1 added: (8 + 12) / 5 = 4; 12 / 3 = 4
    np.testing.assert_allclose(kernel(**rows(), eps=1.0, eps_mode="add"), [[4, 2], [0, 0]])
    alone = {**rows(), "group": jnp.asarray([0, 1], jnp.int32)}
    np.testing.assert_array_equal(kernel(**alone), 0.0)
    np.testing.assert_allclose(kernel(**alone, singleton="raw"), [[8, 6], [4, 0]])


@pytest.mark.parametrize("reward", [0.35, 0.95, 1 / 3])
def test_equal_returns_give_exactly_zero(reward: float):
    energy = jnp.cumsum(jnp.asarray(np.random.default_rng(0).uniform(0.1, 0.9, (7, 4)), jnp.float32), axis=1)
    returns, mask = jnp.full((7, 4), reward), jnp.ones((7, 4), bool)
    np.testing.assert_array_equal(a.above_token_baseline(returns, energy, mask, **rows(7)), 0.0)


def twin(rows, members) -> np.ndarray:
    mask, found = rows["mask"], np.zeros(rows["mask"].shape)
    w = 1 - 2 * np.exp(rows["logp"]) + rows["square"]
    energy = np.cumsum(np.where(mask, w, 0.0), axis=1)
    for group in members:
        for t in range(mask.shape[1]):
            here = group[mask[group, t]]
            if len(here) and len(group) > 1:
                baseline = np.sum(rows["token"][here, t] * energy[here, t]) / (np.sum(energy[here, t]) + 0.01)
                found[here, t] = rows["token"][here, t] - baseline
    return found


def test_the_kernel_equals_the_definition_in_float64(rows, doubled, members, compiled):
    mask = doubled["mask"] & (doubled["valid"] & (doubled["group"] >= 0))[:, None]
    energy = a.score_energy(doubled["logp"], doubled["square"], mask)
    kernel = partial(a.above_token_baseline, doubled["token"], energy, doubled["mask"], doubled["group"])
    got = compiled(value=partial(kernel, num_groups=40, valid=doubled["valid"], eps=0.01, eps_mode="add"))
    np.testing.assert_allclose(got["value"], twin(rows, members), rtol=1e-9, atol=1e-12)


def test_the_strategy_is_its_kernel():
    collected, labels = tiny_collected(), tiny_labels()
    mask = collected.rollouts.mask & (collected.reward.valid & (labels >= 0))[:, None]
    returns = a.discounted_returns(a.at_last_token(collected.reward.outcome, mask), mask, gamma=0.9)
    assert collected.sum_pi_squared is not None
    energy = a.score_energy(collected.logp_old, collected.sum_pi_squared, mask)
    expected = a.above_token_baseline(returns, energy, mask, labels, num_groups=12, valid=collected.reward.valid)
    np.testing.assert_array_equal(a.optimal_token_baseline(collected, labels, {}, gamma=0.9)[0], expected)
