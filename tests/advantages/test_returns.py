"""Token by token: hand numbers for every way of crossing holes, float64 twins with loops, strategies."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import advantages as a
from grpo_jax.testing.rows import NOWHERE, tiny_collected, tiny_labels

HOLE = jnp.asarray([[True, False, True, False]])
REWARD = jnp.asarray([[1.0, 100.0, 4.0, 100.0]])
VALUE = jnp.asarray([[2.0, 100.0, 3.0, 100.0]])


def test_an_outcome_stands_on_the_last_trained_token():
    mask = jnp.asarray([[True, True, True], [True, False, True], [True, False, False], [False] * 3])
    got = a.at_last_token(jnp.asarray([1.0, 2.0, 3.0, 4.0]), mask)
    np.testing.assert_array_equal(got, [[0, 0, 1], [0, 0, 2], [3, 0, 0], [0, 0, 0]])


def test_returns_across_a_hole():
    returns = partial(a.discounted_returns, REWARD, HOLE, gamma=0.5)
    np.testing.assert_allclose(returns(holes="carry"), [[1 + 0.5 * 4, 0, 4, 0]])
    np.testing.assert_allclose(returns(holes="zero"), [[1 + 0.25 * 4, 0, 4, 0]])
    np.testing.assert_allclose(returns(holes="reset"), [[1, 0, 4, 0]])
    with pytest.raises(ValueError, match="holes is 'skip'"):
        returns(holes="skip")


def test_generalized_advantages_across_a_hole():
    gae = partial(a.generalized_advantages, REWARD, VALUE, HOLE, gamma=0.5, lam=0.5, bootstrap=8.0)
    # carry: position 2: 4 + 0.5 * 8 - 3 = 5; position 0: 1 + 0.5 * 3 - 2 + 0.25 * 5 = 1.75
    advantage, returns = gae(holes="carry")
    np.testing.assert_allclose(advantage, [[1.75, 0, 5, 0]])
    np.testing.assert_allclose(returns, [[3.75, 0, 8, 0]])
    # zero: position 3: 0.5 * 8 = 4; 2: 4 + 0 - 3 + 0.25 * 4 = 2; 1: 0.5 * 3 + 0.25 * 2 = 2; 0: 1 + 0 - 2 + 0.25 * 2
    np.testing.assert_allclose(gae(holes="zero")[0], [[-0.5, 0, 2, 0]])
    # reset: 2: 4 - 3 = 1; 0: 1 - 2 = -1
    np.testing.assert_allclose(gae(holes="reset")[0], [[-1, 0, 1, 0]])


def test_a_lambda_by_length():
    # alpha n = 0.5, 1, 2, 4: 1 - 1 / max(., 1) = 0, 0, 1/2, 3/4
    np.testing.assert_allclose(
        a.length_adaptive_lambda(jnp.asarray([1.0, 2.0, 4.0, 8.0]), alpha=0.5), [0, 0, 0.5, 0.75]
    )


def loops(rows, *, gamma, lam, bootstrap=0.0, values=True):
    """GAE across holes by "carry", row by row and token by token."""
    advantage = np.zeros(rows["mask"].shape)
    for i in np.flatnonzero(rows["valid"] & (rows["group"] >= 0)):
        following, running = bootstrap, 0.0
        for t in reversed(np.flatnonzero(rows["mask"][i])):
            value = rows["value"][i, t] if values else 0.0
            running = rows["token"][i, t] + gamma * following - value + gamma * lam[i] * running
            advantage[i, t], following = running, value
    return advantage


def test_kernels_equal_the_definitions_in_float64(rows, doubled, compiled):
    mask = doubled["mask"] & (doubled["valid"] & (doubled["group"] >= 0))[:, None]
    reward, value = doubled["token"], doubled["value"]
    got = compiled(
        gae=partial(a.generalized_advantages, reward, value, mask, gamma=0.9, lam=0.8, bootstrap=0.3),
        vapo=partial(a.length_adaptive_advantages, reward, value, mask, gamma=0.9, alpha=0.6, lam_value=0.7),
        returns=partial(a.discounted_returns, reward, mask, gamma=0.9),
        remax=partial(a.above_greedy, reward, doubled["greedy"], mask, gamma=0.9, holes="carry"),
    )
    chosen, length = np.asarray(mask), np.asarray(mask).sum(axis=1)
    expected = loops(rows, gamma=0.9, lam=np.full(40, 0.8), bootstrap=0.3)
    np.testing.assert_allclose(got["gae"][0], expected, atol=1e-12)
    np.testing.assert_allclose(got["gae"][1], np.where(chosen, expected + rows["value"], 0.0), atol=1e-12)
    lam = np.clip(1 - 1 / np.maximum(0.6 * length, 1), 0, 1)
    np.testing.assert_allclose(got["vapo"][0], loops(rows, gamma=0.9, lam=lam), atol=1e-12)
    targets = loops(rows, gamma=0.9, lam=np.full(40, 0.7)) + rows["value"]
    np.testing.assert_allclose(got["vapo"][1], np.where(chosen, targets, 0.0), atol=1e-12)
    plain = loops(rows, gamma=0.9, lam=np.ones(40), values=False)
    np.testing.assert_allclose(got["returns"], plain, atol=1e-12)
    np.testing.assert_allclose(got["remax"][0], np.where(chosen, plain - rows["greedy"][:, None], 0.0), atol=1e-12)


def test_what_a_token_is_paid():
    collected = tiny_collected()
    mask = collected.rollouts.mask
    assert collected.reward.token is not None
    at_end, each = a.at_last_token(collected.reward.outcome, mask), np.where(mask, collected.reward.token, 0.0)
    np.testing.assert_array_equal(a.token_rewards(collected, mask), at_end)
    np.testing.assert_array_equal(a.token_rewards(collected, mask, rewards="token"), each)
    np.testing.assert_allclose(a.token_rewards(collected, mask, rewards="both"), at_end + each)
    with pytest.raises(ValueError, match="rewards is 'all'"):
        a.token_rewards(collected, mask, rewards="all")


@pytest.mark.parametrize("holes", ["carry", "zero", "reset"])
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_undiscounted_outcomes_need_no_recursion(gamma: float, holes: str):
    collected = tiny_collected()  # row 5 has a hole
    mask = collected.rollouts.mask
    recursion = a.discounted_returns(a.token_rewards(collected, mask), mask, gamma=gamma, holes=holes)
    np.testing.assert_array_equal(a.token_returns(collected, mask, gamma=gamma, holes=holes), recursion)


def test_strategies_apply_their_kernels():
    collected, labels = tiny_collected(), tiny_labels()
    mask = collected.rollouts.mask & jnp.asarray(~np.asarray(NOWHERE))[:, None]
    reward = a.at_last_token(collected.reward.outcome, mask)
    value = collected.value_old
    assert value is not None
    wanted, targets = a.generalized_advantages(reward, value, mask, gamma=0.9, lam=0.5)
    np.testing.assert_array_equal(a.gae(collected, labels, {}, gamma=0.9, lam=0.5)[0], wanted)
    np.testing.assert_array_equal(a.value_targets(collected, labels, gamma=0.9, lam=0.5), targets)
    wanted, _ = a.length_adaptive_advantages(reward, value, mask, gamma=0.9, alpha=0.5)
    np.testing.assert_array_equal(a.gae_length_adaptive(collected, labels, {}, gamma=0.9, alpha=0.5)[0], wanted)
    wanted = a.whiten(a.discounted_returns(reward, mask, gamma=0.9), mask)
    np.testing.assert_array_equal(a.reinforce_pp(collected, labels, {}, gamma=0.9)[0], wanted)
    # ReMax without discount: R - greedy on every token
    row = np.asarray(collected.reward.outcome) - np.asarray(collected.reward.greedy)
    np.testing.assert_allclose(a.remax(collected, labels, {})[0], np.where(mask, row[:, None], 0.0), rtol=1e-6)


def test_every_token_pays_for_its_distance_from_the_reference():
    collected, labels = tiny_collected(), tiny_labels()  # logp_ref = logp - 0.1: k1 = 0.1, k2 = 0.005 a token
    inner = partial(a.gae, rewards="token", lam=1.0)
    mask = collected.rollouts.mask & jnp.asarray(~np.asarray(NOWHERE))[:, None]
    free = np.asarray(a.gae(collected, labels, {}, lam=1.0)[0])
    later = np.cumsum(np.asarray(mask)[:, ::-1], axis=1)[:, ::-1]  # trained tokens from here on
    got, _ = a.penalized_tokens(collected, labels, {}, advantage=inner, coef=2.0)
    np.testing.assert_allclose(got, np.where(mask, free - 2.0 * 0.1 * later, 0.0), atol=1e-5)

    got, _ = a.penalized_tokens(collected, labels, {}, advantage=inner, coef=2.0, estimator=half_square)
    np.testing.assert_allclose(got, np.where(mask, free - 2.0 * 0.005 * later, 0.0), atol=1e-5)


def half_square(log_ratio):
    return jnp.square(log_ratio) / 2
