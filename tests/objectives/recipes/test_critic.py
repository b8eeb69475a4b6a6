"""PPO with a critic, by hand."""

import jax
import numpy as np
import pytest

from grpo_jax import objectives as o
from grpo_jax.advantages import fields_read


@pytest.fixture(name="given")
def one_row_of_two_tokens(laboratory):
    """Reward 1; at collection the values 0.5 and 0.25, now 0.5 and 1; ratios 1.5 and 1; reference 0.1 nat lower."""
    draw, records, batch_of = laboratory
    arrays = draw(lengths=(2,), prompt=(0,), width=2)
    arrays["reward"] = np.asarray([1.0], np.float32)
    arrays["value_old"] = np.asarray([[0.5, 0.25]], np.float32)
    arrays["value"] = np.asarray([[0.5, 1.0]], np.float32)
    arrays["logp"] = np.full((1, 2), -1.0, np.float32)
    arrays["logp_old"] = arrays["logp"] - np.log(np.asarray([[1.5, 1.0]], np.float32))
    arrays["logp_ref"] = arrays["logp_old"] - np.float32(0.1)
    stats, collected = records(arrays, prompts=1)
    return lambda recipe: (stats, batch_of(collected, recipe))


def test_the_loss_of_two_tokens(given):
    recipe = o.ppo_critic(lam=0.5, whiten=False, value_coef=0.5, clip_value=0.2)
    stats, batch = given(recipe)
    # delta = 0.25 - 0.5, 1 - 0.25; A = -0.25 + 0.5 * 0.75, 0.75; R = A + V
    np.testing.assert_allclose(batch.advantage, [[0.125, 0.75]], rtol=1e-6)
    np.testing.assert_allclose(batch.returns, [[0.625, 1.0]], rtol=1e-6)
    policy = -(1.2 * 0.125 + 1.0 * 0.75) / 2  # the ratio 1.5 is clipped to 1.2
    # v = 0.5 is where it was; v = 1 is right, but the clipped value 0.45 is not
    critic = ((0.5 - 0.625) ** 2 + (0.45 - 1.0) ** 2) / 2 / 2
    np.testing.assert_allclose(o.loss(recipe.parts, stats, batch), policy + 0.5 * critic, rtol=1e-5)


def test_each_part_moves_its_own_role(given):
    recipe = o.ppo_critic(lam=0.5, whiten=False, clip_value=None, value_coef=0.5)
    stats, batch = given(recipe)
    slope = jax.grad(lambda s: o.loss(recipe.parts, s, batch))(stats)
    np.testing.assert_allclose(slope.value, [[0.5 * (0.5 - 0.625) / 2, 0.0]], atol=1e-7)
    np.testing.assert_allclose(slope.logp, [[0.0, -0.75 / 2]], atol=1e-7)  # the first is clipped


def test_lambda_by_length_has_targets_without_one(given):
    # lambda = 1 - 1 / (1 * 2) for the two tokens; targets with lambda 1 are the reward itself
    _, batch = given(o.ppo_critic(alpha=1.0, whiten=False))
    np.testing.assert_allclose(batch.advantage, [[0.125, 0.75]], rtol=1e-6)
    np.testing.assert_allclose(batch.returns, [[1.0, 1.0]], rtol=1e-6)


def test_the_divergence_is_paid_by_every_token_and_expected_by_the_critic(given):
    _, batch = given(o.ppo_critic(lam=1.0, beta=0.5, whiten=False))
    # rewards -0.05 and 0.95: logp_old - logp_ref is 0.1 on both
    np.testing.assert_allclose(batch.returns, [[0.9, 0.95]], rtol=1e-5)
    np.testing.assert_allclose(batch.advantage, [[0.4, 0.7]], rtol=1e-5)


def test_what_follows_a_row_that_was_cut_off_is_worth_what_one_says(given):
    _, batch = given(o.ppo_critic(lam=1.0, bootstrap=2.0, whiten=False))
    np.testing.assert_allclose(batch.returns, [[3.0, 3.0]], rtol=1e-6)


def test_whitening_is_of_advantages_alone(given):
    plain, white = (given(o.ppo_critic(lam=0.5, whiten=flag))[1] for flag in (False, True))
    np.testing.assert_array_equal(white.returns, plain.returns)
    # 0.125 and 0.75: mean 0.4375, sample deviation 0.625 / sqrt 2
    np.testing.assert_allclose(white.advantage, [[-(0.5**0.5), 0.5**0.5]], rtol=1e-5)


def test_there_is_a_reference_only_for_a_price():
    assert o.wants(o.ppo_critic()) == ("value",) and o.wants(o.ppo_critic(beta=0.1)) == ("logp_ref", "value")
    assert fields_read(o.ppo_critic().advantage) == ("value_old",)
