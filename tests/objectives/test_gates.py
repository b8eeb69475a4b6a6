"""Soft gates by hand, at ratios where the arithmetic can be followed."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import objectives as o

E = math.e


def slopes(term, stats, batch):
    return jax.grad(lambda logp: jnp.sum(term(stats.replace(logp=logp), batch)))(stats.logp)


def test_the_geometric_mean_is_over_tokens_clipped_to_their_own_side(by_hand):
    # log-ratios 1 and -1; A > 0: min(1, 0.4) and -1, mean -0.3; A < 0: 1 and max(-1, -0.4), mean 0.3
    stats, batch = by_hand([[E, 1 / E], [E, 1 / E], [E, 1 / E]], advantage=[[2.0], [-2.0], [0.0]])
    expected = [[-2 * math.exp(-0.3)] * 2, [2 * math.exp(0.3)] * 2, [0.0, 0.0]]
    np.testing.assert_allclose(o.geometric_clip(stats, batch), expected, rtol=1e-5)
    unbounded = o.geometric_clip(stats, batch, low=None, high=None)
    np.testing.assert_allclose(unbounded, [[-2.0] * 2, [2.0] * 2, [0.0] * 2], rtol=1e-5)
    relative = o.geometric_clip(stats, batch, low=0.5, high=1.0, bounds="relative")  # log 0.5 and log 2
    up, down = (math.log(2.0) - 1) / 2, (1 + math.log(0.5)) / 2
    np.testing.assert_allclose(relative[:2, 0], [-2 * math.exp(up), 2 * math.exp(down)], rtol=1e-5)
    open_below = o.geometric_clip(stats, batch, low=2.0, high=1.0, bounds="relative")  # 1 - 2 < 0 bounds nothing
    np.testing.assert_allclose(open_below[1, 0], 2.0, rtol=1e-5)


def test_the_soft_gate_has_the_slope_of_reinforce_at_ratio_one_and_its_own_value(by_hand):
    stats, batch = by_hand([[1.0, 2.0], [1.0, 2.0]], advantage=[[3.0], [-3.0]])
    value = o.soft_gate(stats, batch)
    sigmoid = 1 / (1 + math.exp(-1.0)), 1 / (1 + math.exp(-1.05))
    np.testing.assert_allclose(value[0], [-3 * 4 / 2, -3 * 4 * sigmoid[0]], rtol=1e-5)
    np.testing.assert_allclose(value[1], [3 * 4 / 1.05 / 2, 3 * 4 / 1.05 * sigmoid[1]], rtol=1e-5)
    slope = slopes(o.soft_gate, stats, batch)
    np.testing.assert_allclose(slope[:, 0], [-3.0, 3.0], rtol=1e-5)
    # d/dx = -A 4 sigmoid (1 - sigmoid) r, r = 2
    np.testing.assert_allclose(
        slope[:, 1], [-24 * s * (1 - s) * sign for s, sign in zip(sigmoid, (1, -1), strict=True)], rtol=1e-5
    )


def test_the_soft_weight_is_that_of_the_row_and_carries_no_gradient(by_hand):
    stats, batch = by_hand([[2.0, 2.0], [1.0, 1.0], [2.0, 0.25]], advantage=[[1.0], [1.0], [-1.0]])
    # row ratios 4, 1 and 1/2; phi = e^lambda w^k e^(-lambda w)
    phi = [math.exp(3) * 4**2 * math.exp(-12), 1.0, math.exp(2) * 0.5**3 * math.exp(-1)]
    expected = [[phi[0]] * 2, [phi[1]] * 2, [-phi[2]] * 2]  # -phi A x with x = -1
    np.testing.assert_allclose(o.soft_weight(stats, batch), expected, rtol=1e-4)
    np.testing.assert_allclose(slopes(o.soft_weight, stats, batch), -np.asarray(expected), rtol=1e-4)
    floored = partial(o.soft_weight, lambda_positive=0.0, lambda_min=1e-4)
    np.testing.assert_allclose(floored(stats, batch)[0, 0], 16 * math.exp(1e-4 * (1 - 4)), rtol=1e-5)


def test_a_shaped_probability_teaches_most_at_gamma(by_hand):
    stats, batch = by_hand([[1.0, 1.0, 1.0]], advantage=[[2.0]])
    stats = stats.replace(logp=jnp.log(jnp.asarray([[0.9, 0.1, 0.01]])))
    np.testing.assert_allclose(o.shaped_probability(stats, batch), [[-1.8, -1.0, -2 / 11]], rtol=1e-5)  # -2 p/(p+0.1)
    slope = slopes(o.shaped_probability, stats, batch)
    np.testing.assert_allclose(slope, [[-2 * 0.1 * p / (p + 0.1) ** 2 for p in (0.9, 0.1, 0.01)]], rtol=1e-5)
    assert np.argmin(slope) == 1


@pytest.mark.parametrize("term", [o.geometric_clip, o.soft_gate, o.soft_weight])
def test_far_from_the_old_policy_a_gate_is_finite(by_hand, term):
    for ratio in (1e30, 1e-30):
        stats, batch = by_hand([[ratio] * 3] * 2, advantage=[[1.0], [-1.0]])
        assert np.all(np.isfinite(term(stats, batch))) and np.all(np.isfinite(slopes(term, stats, batch)))
