"""Bandits by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import laboratory as lab


def test_arms_are_completions_of_one_token():
    listed = lab.arms(3)
    assert listed.tokens.tolist() == [[0], [1], [2]] and listed.mask.tolist() == [[True]] * 3
    assert listed.allowed.shape == (1, 3) and bool(listed.stopped.all())


def test_coins_are_right_as_often_as_they_say():
    with jax.enable_x64(True):
        completions, logits, reward = lab.coins(np.asarray([0.25, 0.9]))
        logits = np.asarray(logits[:, 0])
    chance = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert completions.tokens.tolist() == [[0], [1]]
    np.testing.assert_allclose(chance, [[0.75, 0.25], [0.1, 0.9]], rtol=1e-12)
    assert np.asarray(reward).tolist() == [[0.0, 1.0], [0.0, 1.0]]
    assert lab.coins([0.5])[1].dtype == jnp.float32


def test_one_arm_is_no_bandit():
    with pytest.raises(ValueError, match="got 1, allowed 2 and more"):
        lab.arms(1)
