"""The divergence as part of the reward, by hand."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import objectives as o
from grpo_jax.advantages import group_centered

MASK = jnp.asarray([[True, True, True], [True, False, True], [True, False, False], [False] * 3])


def test_an_outcome_stands_on_the_last_scored_token():
    got = o.at_last_token(jnp.asarray([1.0, 2.0, 3.0, 4.0]), MASK)
    np.testing.assert_array_equal(got, [[0, 0, 1], [0, 0, 2], [3, 0, 0], [0, 0, 0]])


def test_every_token_pays_for_its_distance_and_padding_for_nothing():
    logp = jnp.where(MASK, -1.0, jnp.nan)
    ref = logp + jnp.asarray([[math.log(2.0), 0.0, -1.0]] * 4)
    reward = jnp.where(MASK, 1.0, jnp.nan)
    got = o.kl_in_reward(reward, logp, ref, MASK, coef=0.1)  # k1 = logp - logp_ref
    expected = np.where(MASK, [[1 + 0.1 * math.log(2.0), 1.0, 1 - 0.1]] * 4, 0.0)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    squared = o.kl_in_reward(reward, logp, ref, MASK, coef=1.0, estimator=o.k2, clamp_log_ratio=0.5)
    np.testing.assert_allclose(squared[0], [1 - 0.5**2 / 2, 1.0, 1 - 0.5**2 / 2], rtol=1e-6)


@pytest.fixture
def collected(laboratory):
    """Two rows of one prompt with reward 1 and 0, 2 and 1 tokens; the reference log 2 below and above the policy."""
    draw, records, _ = laboratory
    arrays = draw(lengths=(2, 1), prompt=(0, 0), width=2)
    arrays["reward"] = np.asarray([1.0, 0.0], np.float32)
    arrays["logp_ref"] = arrays["logp_old"] + np.asarray([[-math.log(2.0)], [math.log(2.0)]], np.float32)
    return records(arrays, prompts=1)[1]


def test_the_outcome_pays_for_the_whole_row_before_the_baseline(collected):
    labels = jnp.zeros(2, jnp.int32)
    value, _ = o.penalized_outcome(collected, labels, {}, advantage=group_centered, coef=0.1)
    # rewards 1 - 0.1 * 2 log 2 and 0 + 0.1 log 2, minus their mean
    first = (1 - 0.3 * math.log(2.0)) / 2
    np.testing.assert_allclose(value, [[first, first], [-first, 0.0]], rtol=1e-5)
    plain, _ = o.penalized_outcome(collected, labels, {}, advantage=group_centered, coef=0.0)
    np.testing.assert_allclose(plain, [[0.5, 0.5], [-0.5, 0.0]], rtol=1e-6)


def test_without_a_reference_it_is_refused(collected):
    with pytest.raises(ValueError, match="give the run a reference policy"):
        o.penalized_outcome(
            dataclasses.replace(collected, logp_ref=None), jnp.zeros(2, jnp.int32), {}, advantage=group_centered
        )
