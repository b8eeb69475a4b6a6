"""Log-ratios and ratios of the same tokens under two policies."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import objectives as o


@pytest.fixture
def given(laboratory):
    draw, records, batch_of = laboratory
    arrays = draw(lengths=(3,), prompt=(0,), width=4)
    arrays["logp_old"] = arrays["logp"] - np.asarray([[0.5, 100.0, -100.0, 0.0]], np.float32)
    arrays["behavior"] = arrays["logp"] - np.asarray([[0.25, 0.0, 0.0, 0.0]], np.float32)
    stats, collected = records(arrays, prompts=1)
    return stats, batch_of(collected, o.RECIPES["ppo_clip"])


def test_the_log_ratio_is_zero_outside_the_mask_whatever_stands_there(given):
    stats, batch = given
    assert np.isnan(stats.logp[0, 3])
    np.testing.assert_allclose(o.log_ratio(stats, batch), [[0.5, 100.0, -100.0, 0.0]], rtol=1e-5)


def test_a_clamp_bounds_the_value_and_stops_the_gradient(given):
    stats, batch = given
    np.testing.assert_allclose(o.log_ratio(stats, batch, clamp=20.0), [[0.5, 20.0, -20.0, 0.0]], rtol=1e-5)

    def total(logp, clamp):
        return jnp.sum(o.log_ratio(dataclasses.replace(stats, logp=logp), batch, clamp=clamp))

    np.testing.assert_array_equal(jax.grad(partial(total, clamp=20.0))(stats.logp), [[1.0, 0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(jax.grad(partial(total, clamp=None))(stats.logp), [[1.0, 1.0, 1.0, 0.0]])


def test_ratios_over_the_old_policy_the_sampler_and_itself(given):
    stats, batch = given
    e20 = np.exp(20.0)
    np.testing.assert_allclose(o.over_old(stats, batch), [[np.exp(0.5), e20, 1 / e20, 1.0]], rtol=1e-5)
    np.testing.assert_allclose(o.over_behavior(stats, batch), [[np.exp(0.25), 1.0, 1.0, 1.0]], rtol=1e-5)
    np.testing.assert_array_equal(o.over_itself(stats, batch), np.ones((1, 4)))
    gradient = jax.grad(lambda logp: jnp.sum(o.over_itself(dataclasses.replace(stats, logp=logp), batch)))(stats.logp)
    np.testing.assert_array_equal(gradient, [[1.0, 1.0, 1.0, 0.0]])
