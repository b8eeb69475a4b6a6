"""Policy terms: the value and the slope of every branch, by hand."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import objectives as o


@pytest.fixture
def given(laboratory):
    """One row, ratios 0.5, 1, 1.25 and 2 twice: with advantage 2 and with advantage -2."""
    draw, records, batch_of = laboratory
    arrays = draw(lengths=(8,), prompt=(0,), width=8)
    ratio = np.asarray([[0.5, 1.0, 1.25, 2.0] * 2], np.float32)
    arrays["logp_old"] = arrays["logp"] - np.log(ratio)
    stats, collected = records(arrays, prompts=1)
    advantage = jnp.asarray([[2.0] * 4 + [-2.0] * 4])
    return stats, dataclasses.replace(batch_of(collected, o.RECIPES["ppo_clip"]), advantage=advantage)


def slopes(term, stats, batch):
    return jax.grad(lambda logp: jnp.sum(term(dataclasses.replace(stats, logp=logp), batch)))(stats.logp)


def test_reinforce_is_minus_advantage_times_logp(given):
    stats, batch = given
    np.testing.assert_allclose(o.reinforce(stats, batch), -batch.advantage * stats.logp)
    np.testing.assert_array_equal(slopes(o.reinforce, stats, batch), -batch.advantage)


def test_the_clip_stops_what_goes_too_far_in_the_wanted_direction_only(given):
    stats, batch = given
    term = partial(o.ppo_clip, low=0.2, high=0.28)
    # A = 2: -2 min(r, 1.28); A = -2: 2 max(r, 0.8)
    expected = [[-1.0, -2.0, -2.5, -2.56, 1.6, 2.0, 2.5, 4.0]]
    np.testing.assert_allclose(term(stats, batch), expected, rtol=1e-5)
    # slope -A r where the branch is alive: 0 at r = 2 with A > 0 and at r = 0.5 with A < 0
    np.testing.assert_allclose(slopes(term, stats, batch), [[-1.0, -2.0, -2.5, 0.0, 0.0, 2.0, 2.5, 4.0]], rtol=1e-5)


def test_each_bound_can_be_left_open(given):
    stats, batch = given
    plain = [[-1.0, -2.0, -2.5, -4.0, 1.0, 2.0, 2.5, 4.0]]
    np.testing.assert_allclose(o.ppo_clip(stats, batch, low=None, high=None), plain, rtol=1e-5)
    lower = [[-1.0, -2.0, -2.5, -4.0, 1.6, 2.0, 2.5, 4.0]]
    np.testing.assert_allclose(o.ppo_clip(stats, batch, low=0.2, high=None), lower, rtol=1e-5)


def test_the_dual_clip_bounds_the_loss_of_bad_tokens(given):
    stats, batch = given
    term = partial(o.ppo_clip, low=0.2, high=0.2, dual=1.5)
    np.testing.assert_allclose(term(stats, batch)[0, 4:], [1.6, 2.0, 2.5, 3.0], rtol=1e-5)  # 1.5 * 2 instead of 4
    np.testing.assert_allclose(slopes(term, stats, batch)[0, 4:], [0.0, 2.0, 2.5, 0.0], rtol=1e-5)
    np.testing.assert_array_equal(term(stats, batch)[0, :4], o.ppo_clip(stats, batch)[0, :4])


def test_at_ratio_one_the_clipped_surrogate_has_the_gradient_of_reinforce(given):
    stats, batch = given
    batch = dataclasses.replace(batch, logp_old=stats.logp)
    np.testing.assert_array_equal(slopes(o.ppo_clip, stats, batch), slopes(o.reinforce, stats, batch))
    np.testing.assert_array_equal(o.ppo_clip(stats, batch), -batch.advantage)


def test_an_advantage_of_zero_pushes_nowhere(given):
    stats, batch = given
    batch = dataclasses.replace(batch, advantage=jnp.zeros_like(batch.advantage))
    assert not np.any(slopes(o.ppo_clip, stats, batch)) and not np.any(slopes(o.reinforce, stats, batch))


def test_likelihood_and_entropy_terms_have_the_sign_of_something_to_minimise(given):
    stats, batch = given
    np.testing.assert_array_equal(o.negative_log_likelihood(stats, batch), -stats.logp)
    np.testing.assert_array_equal(o.negative_entropy(stats, batch), -stats.entropy)
    with pytest.raises(ValueError, match='want=\\("entropy",\\)'):
        o.negative_entropy(dataclasses.replace(stats, entropy=None), batch)


def test_a_capped_ratio_differs_from_the_dual_clip_inside_the_interval_only(given):
    stats, batch = given
    bound, cap = (
        o.ppo_clip(stats, batch, low=0.2, high=0.2, dual=1.5, dual_form=form) for form in ("bound", "cap_ratio")
    )
    np.testing.assert_allclose(bound, cap, rtol=1e-6)
    # A = -2, r = 1.25 capped at 1.1: max(2 * 1.1, 2 * 1.2); A = 2, r = 1.25: -min(2 * 1.1, 2 * 1.2)
    inside = o.ppo_clip(stats, batch, low=0.2, high=0.2, dual=1.1, dual_form="cap_ratio")
    np.testing.assert_allclose(inside[0], [-1.0, -2.0, -2.2, -2.2, 1.6, 2.0, 2.4, 2.4], rtol=1e-5)
    with pytest.raises(ValueError, match="dual_form: got 'both', allowed 'bound' and 'cap_ratio'"):
        o.ppo_clip(stats, batch, dual=3.0, dual_form="both")


def test_the_unclipped_surrogate_is_the_clipped_one_without_bounds(given):
    stats, batch = given
    np.testing.assert_array_equal(o.unclipped(stats, batch), o.ppo_clip(stats, batch, low=None, high=None))


def test_a_clipped_weight_stops_no_gradient(given):
    stats, batch = given
    term = partial(o.clipped_weight, low=0.4, high=0.5)
    weight = np.asarray([[0.6, 1.0, 1.25, 1.5] * 2])  # ratios 0.5, 1, 1.25 and 2
    np.testing.assert_allclose(term(stats, batch), -weight * batch.advantage * stats.logp, rtol=1e-5)
    np.testing.assert_allclose(slopes(term, stats, batch), -weight * batch.advantage, rtol=1e-5)
    one_sided = partial(o.clipped_weight, low=None, high=1.5, bounds="absolute")
    open_below = np.asarray([[0.5, 1.0, 1.25, 1.5] * 2])
    np.testing.assert_allclose(slopes(one_sided, stats, batch), -open_below * batch.advantage, rtol=1e-5)
    unbounded = partial(o.clipped_weight, low=None, high=None)
    np.testing.assert_allclose(slopes(unbounded, stats, batch)[0, 3], -2.0 * 2.0, rtol=1e-5)
