"""Penalties on the log-ratio and bounds on probabilities, by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import objectives as o


def test_the_penalty_is_a_divergence_from_the_old_policy(by_hand):
    stats, batch = by_hand([[2.0, 0.5, 1.0]])
    forward = [[r - math.log(r) - 1 for r in (2.0, 0.5, 1.0)]]  # k3 of x - o
    np.testing.assert_allclose(o.old_penalty(stats, batch, estimator=o.k3), forward, rtol=1e-5, atol=1e-7)
    reverse = [[1 / r + math.log(r) - 1 for r in (2.0, 0.5, 1.0)]]
    got = o.old_penalty(stats, batch, estimator=o.k3, direction="reverse")
    np.testing.assert_allclose(got, reverse, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(o.old_penalty(stats, batch), [[math.log(2), math.log(2), 0.0]], rtol=1e-5)
    slope = jax.grad(lambda logp: jnp.sum(o.old_penalty(stats.replace(logp=logp), batch)))(stats.logp)
    np.testing.assert_allclose(slope, [[1.0, -1.0, 0.0]])  # nothing pushes where the policies agree
    with pytest.raises(ValueError, match="direction: got 'back', allowed 'forward' and 'reverse'"):
        o.old_penalty(stats, batch, direction="back")


P_NEW = [[0.9, 0.6, 0.1, 0.5], [0.9, 0.6, 0.1, 0.5], [0.9, 0.6, 0.1, 0.5]]
P_OLD = [[0.6, 0.5, 0.4, 0.9], [0.6, 0.5, 0.4, 0.9], [0.6, 0.5, 0.4, 0.9]]  # changes 0.3, 0.1, -0.3, -0.4


@pytest.fixture
def given(by_hand):
    stats, batch = by_hand([[1.0] * 4] * 3, advantage=[[1.0], [-1.0], [0.0]])
    return stats.replace(logp=jnp.log(jnp.asarray(P_NEW))), batch.replace(logp_behavior=jnp.log(jnp.asarray(P_OLD)))


def test_a_token_is_dropped_when_its_probability_has_moved_too_far_its_way(given):
    kept = o.probability_kept(*given, tv_low=0.35, tv_high=0.2, symmetric=False)
    np.testing.assert_array_equal(kept, [[0, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 0]])  # A = 0 takes the low branch
    value = o.probability_clip(*given, tv_low=0.35, tv_high=0.2)
    ratio = np.divide(P_NEW[0], P_OLD[0])
    signs = np.asarray([[0, -1, -1, -1], [1, 1, 1, 0], [0] * 4])
    np.testing.assert_allclose(value, ratio * signs, rtol=1e-5, atol=1e-7)
    both = o.probability_kept(*given, tv_low=0.35, tv_high=0.2, symmetric=True)
    np.testing.assert_array_equal(both, [[0, 1, 1, 0]] * 3)


def test_the_pull_is_the_square_of_the_log_ratio_to_the_sampler(given):
    expected = np.log(np.divide(P_NEW, P_OLD)) ** 2
    np.testing.assert_allclose(o.squared_log_ratio(*given), expected, rtol=1e-5)
