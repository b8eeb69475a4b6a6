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


def test_the_mismatch_is_old_over_behaviour_and_the_policy_over_it_a_product(by_hand):
    stats, batch = by_hand([[2.0, 0.5]], mismatch=[[3.0, 1.0]])
    np.testing.assert_allclose(np.exp(o.log_mismatch(stats, batch)), [[3.0, 1.0]], rtol=1e-5)
    np.testing.assert_allclose(np.exp(o.log_ratio_behavior(stats, batch)), [[6.0, 0.5]], rtol=1e-5)
    np.testing.assert_allclose(o.log_ratio_behavior(stats, batch, clamp=1.0), [[1.0, np.log(0.5)]], rtol=1e-5)


def test_a_row_has_one_log_ratio_over_its_scored_tokens(by_hand):
    mask = [[True, True, True], [True, False, True], [False] * 3]
    stats, batch = by_hand([[2.0, 4.0, 1.0], [2.0, 9.0, 8.0], [3.0] * 3], mask=mask)
    log2 = np.log(2.0)
    got = o.sequence_log_ratio(stats, batch)
    np.testing.assert_allclose(got, [[3 * log2 / 3] * 3, [4 * log2 / 2] * 3, [0.0] * 3], rtol=1e-5)
    total = o.sequence_log_ratio(stats, batch, reduction="sum")
    np.testing.assert_allclose(total, [[3 * log2] * 3, [4 * log2] * 3, [0.0] * 3], rtol=1e-5)
    bounded = o.sequence_log_ratio(stats, batch, reduction="sum", floor=0.5, cap=2.2)
    np.testing.assert_allclose(bounded, [[3 * log2] * 3, [2.2] * 3, [0.5] * 3], rtol=1e-5)
    clamped = o.sequence_log_ratio(stats, batch, reduction="sum", clamp=1.0)
    np.testing.assert_allclose(clamped, [[log2 + 1.0] * 3, [log2 + 1.0] * 3, [0.0] * 3], rtol=1e-5)


def test_the_gradient_of_a_row_goes_through_every_token_or_through_its_own(by_hand):
    stats, batch = by_hand([[2.0, 4.0]])

    def jacobian(**keywords):
        ratio = partial(o.sequence_log_ratio, **keywords)
        return jax.jacobian(lambda logp: ratio(dataclasses.replace(stats, logp=logp), batch)[0])(stats.logp)[:, 0]

    np.testing.assert_allclose(jacobian(), np.full((2, 2), 0.5))
    np.testing.assert_allclose(jacobian(reduction="sum"), np.ones((2, 2)))
    np.testing.assert_allclose(jacobian(gradient="token"), np.eye(2))
    np.testing.assert_array_equal(jacobian(cap=0.1), np.zeros((2, 2)))
    np.testing.assert_array_equal(jacobian(gradient="token", cap=0.1), np.zeros((2, 2)))
    token, row = (o.sequence_log_ratio(stats, batch, gradient=name) for name in ("token", "row"))
    np.testing.assert_array_equal(token, row)


@pytest.mark.parametrize(
    ("bounds", "expected"), [("relative", (0.5, 3.0)), ("absolute", (0.5, 2.0)), ("log", (np.exp(-0.5), np.exp(2.0)))]
)
def test_bounds_are_read_as_they_are_meant(bounds: str, expected):
    assert o.interval(0.5, 2.0, bounds) == pytest.approx(expected)
    assert o.interval(None, None, bounds) == (None, None)


def test_unknown_words_are_refused(by_hand):
    given = by_hand([[1.0]])
    with pytest.raises(ValueError, match="bounds: got 'wide', allowed 'relative', 'absolute' and 'log'"):
        o.interval(0.1, 0.1, "wide")
    with pytest.raises(ValueError, match="reduction: got 'median', allowed 'mean', 'sum' and 'max'"):
        o.sequence_log_ratio(*given, reduction="median")
    with pytest.raises(ValueError, match="gradient: got 'all', allowed 'row' and 'token'"):
        o.sequence_log_ratio(*given, gradient="all")
