"""Recipes that treat tokens differently: the selection reaches the term."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax import objectives as o


def gradient(laboratory, recipe: o.Recipe, **changes):
    draw, records, batch_of = laboratory
    stats, collected = records(draw() | changes)
    batch = batch_of(collected, recipe, stats)
    slope = jax.grad(lambda logp: o.loss(recipe.parts, dataclasses.replace(stats, logp=logp), batch))(stats.logp)
    return np.asarray(slope), batch


def test_kl_cov_penalises_the_selected_tokens_only(laboratory):
    (with_penalty, batch), (without, _) = (
        gradient(laboratory, o.kl_cov(fraction=0.2, coef=coef)) for coef in (1.0, 0.0)
    )
    changed = np.abs(with_penalty - without) > 1e-6
    np.testing.assert_array_equal(changed, batch.select["kl_cov"])
    assert changed.sum() == 6  # int(0.2 * 30)


def test_clip_cov_and_top_entropy_stop_what_they_leave_out(laboratory):
    for recipe, name in (
        (o.clip_cov(fraction=1.0, cov_low=0.0, cov_high=9.0), "clip_cov"),
        (o.top_entropy(fraction=0.3), "top_entropy"),
    ):
        slope, batch = gradient(laboratory, recipe)
        kept = np.asarray(batch.select[name])
        assert not np.any(slope[~kept]) and np.any(slope[kept]), name


def test_luffy_without_demonstrations_is_ppo_and_with_them_shapes_their_rows(laboratory):
    draw, records, batch_of = laboratory
    stats, collected = records(draw())
    ppo, recipe = o.ppo_group(), o.luffy()
    plain = o.loss(ppo.parts, stats, batch_of(collected, ppo))
    np.testing.assert_allclose(o.loss(recipe.parts, stats, batch_of(collected, recipe, stats)), plain, rtol=1e-6)
    version = jnp.where(jnp.arange(9) == 3, -1, 0)
    collected = dataclasses.replace(collected, rollouts=dataclasses.replace(collected.rollouts, version=version))
    batch = batch_of(collected, recipe, stats)
    value = recipe.parts[0].term(*o.clean(stats, batch))
    p = np.exp(np.asarray(stats.logp[3]))
    np.testing.assert_allclose(value[3], -batch.advantage[3] * p / (p + 0.1), rtol=1e-5)


def test_the_likelihood_is_that_of_positive_rows_and_has_a_denominator_of_its_own(laboratory):
    reward = np.asarray([1, 0, 0, 2, 0, -1, 0, 0, 0], np.float32)
    (with_it, batch), (without, _) = (
        gradient(laboratory, o.positive_likelihood(weight=weight), reward=reward) for weight in (0.1, 0.0)
    )
    expected = np.zeros_like(with_it)
    for row in (0, 3):
        expected[row, np.asarray(batch.mask[row])] = -0.1 / (5 + 6)
    np.testing.assert_allclose(with_it - without, expected, atol=1e-7)
