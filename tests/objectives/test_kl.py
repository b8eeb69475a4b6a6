"""Estimators of the KL divergence: hand numbers, gradients, and what they estimate."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import objectives as o


def test_hand_numbers_at_a_ratio_of_two():
    delta = jnp.asarray([math.log(2.0)])
    np.testing.assert_allclose(o.k1(delta), [-0.693147], rtol=1e-6)
    np.testing.assert_allclose(o.k2(delta), [0.693147**2 / 2], rtol=1e-6)
    np.testing.assert_allclose(o.k3(delta), [2 - 0.693147 - 1], rtol=1e-6)
    np.testing.assert_allclose(o.absolute(-delta), [0.693147], rtol=1e-6)


def test_gradients_are_the_published_ones():
    x = jnp.asarray([0.7, -1.3, 0.0])  # delta; x = logp falls as delta rises: d/dx = -d/ddelta
    for kernel, expected in ((o.k1, [1, 1, 1]), (o.k2, -x), (o.k3, 1 - np.exp(x)), (o.absolute, [-1, 1, 0])):
        got = -jax.grad(lambda d, kernel=kernel: jnp.sum(kernel(d)))(x)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7, err_msg=kernel.__name__)


def test_k3_keeps_its_digits_near_zero():
    # k3 = delta^2 / 2 + delta^3 / 6 + ...; the plain exp(delta) - delta - 1 gives 0 or 1.2e-7 in float32 here
    np.testing.assert_allclose(o.k3(jnp.asarray([1e-3])), [1e-6 / 2 + 1e-9 / 6], rtol=2e-3)


def test_estimators_have_the_right_mean_and_k2_the_right_gradient():
    p_logits, q_logits = jnp.asarray([0.3, -0.2, 0.5]), jnp.asarray([-0.4, 0.3, 0.2])

    def divergence(logits):
        p = jax.nn.log_softmax(logits)
        return jnp.sum(jnp.exp(p) * (p - jax.nn.log_softmax(q_logits)))

    def expected(kernel, logits):
        """Mean over tokens drawn from the fixed policy of the kernel of the log-ratio under `logits`."""
        drawn = jnp.exp(jax.nn.log_softmax(p_logits))
        return jnp.sum(drawn * kernel(jax.nn.log_softmax(q_logits) - jax.nn.log_softmax(logits)))

    exact, gradient = jax.value_and_grad(divergence)(p_logits)
    for kernel in (o.k1, o.k3):
        np.testing.assert_allclose(expected(kernel, p_logits), exact, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(partial(expected, o.k2))(p_logits), gradient, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(jax.grad(partial(expected, o.k1))(p_logits), 0.0, atol=1e-7)


@pytest.fixture
def given(laboratory):
    draw, records, batch_of = laboratory
    arrays = draw(lengths=(3,), prompt=(0,), width=4)
    arrays["logp_ref"] = arrays["logp"] + np.asarray([[math.log(2.0), 30.0, -30.0, 0.0]], np.float32)
    stats, collected = records(arrays, prompts=1)
    return stats, batch_of(collected, o.RECIPES["ppo_clip"])


def test_clamps_bound_the_value_and_stop_the_gradient(given):
    stats, batch = given
    term = partial(o.kl_penalty, estimator=o.k1, clamp_log_ratio=20.0)
    np.testing.assert_allclose(term(stats, batch), [[-math.log(2.0), -20.0, 20.0, 0.0]], rtol=1e-5)
    capped = partial(o.kl_penalty, estimator=o.k1, clamp_log_ratio=None, clamp_output=10.0)
    np.testing.assert_allclose(capped(stats, batch), [[-math.log(2.0), -10.0, 10.0, 0.0]], rtol=1e-5)
    for each in (term, capped):
        gradient = jax.grad(lambda logp, each=each: jnp.sum(each(dataclasses.replace(stats, logp=logp), batch)))
        np.testing.assert_array_equal(gradient(stats.logp), [[1.0, 0.0, 0.0, 0.0]])


def test_a_weight_multiplies_before_the_output_is_clamped_and_is_differentiated(given):
    stats, batch = given
    plain = o.kl_penalty(stats, batch, estimator=o.k3)
    weighted = partial(o.kl_penalty, estimator=o.k3, weight=o.over_itself)
    np.testing.assert_allclose(weighted(stats, batch), plain)
    gradient = jax.grad(lambda logp: weighted(dataclasses.replace(stats, logp=logp), batch)[0, 0])(stats.logp)
    # d(w k3)/dx = k3 w' + w k3' = k3 + 1 - e^delta = (2 - ln 2 - 1) + 1 - 2
    np.testing.assert_allclose(gradient[0, 0], -math.log(2.0), rtol=1e-5)
    assert np.max(partial(weighted, clamp_output=3.0)(stats, batch)) == 3.0


def test_a_batch_without_reference_is_refused(given):
    stats, batch = given
    with pytest.raises(ValueError, match="Remedy: give the run a reference policy"):
        o.kl_penalty(stats, dataclasses.replace(batch, logp_ref=None))


def test_straight_through_takes_the_value_of_one_and_the_gradient_of_another():
    x = jnp.asarray([0.7, -1.3, 0.0])
    np.testing.assert_array_equal(o.straight_through(x), o.k3(x))
    both = partial(o.straight_through, value=o.k1, gradient=o.k3)
    np.testing.assert_allclose(both(x), -x)
    gradient = jax.grad(lambda d: jnp.sum(o.straight_through(d)))(x)
    np.testing.assert_allclose(gradient, x, rtol=1e-6)  # d k2 / d delta
    gradient = jax.grad(lambda d: jnp.sum(both(d)))(x)
    np.testing.assert_allclose(gradient, np.exp(x) - 1, rtol=1e-5, atol=1e-7)


def test_the_exact_divergence_is_handed_through(given):
    stats, batch = given
    full = jnp.full(batch.mask.shape, 0.3)
    np.testing.assert_array_equal(o.kl_exact(dataclasses.replace(stats, kl_full=full), batch), full)
    with pytest.raises(ValueError, match='ask for want=\\("kl_full",\\)'):
        o.kl_exact(dataclasses.replace(stats, kl_full=None), batch)
