"""Penalties and bonuses of recipes, by hand and by what they are made of."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import objectives as o
from grpo_jax.objectives.recipes.penalized import penalized

A = 1 / math.sqrt(2.0)  # rewards 1 and -1: mean 0, sample deviation sqrt 2


def test_without_a_coefficient_there_is_no_penalty():
    assert penalized(o.reinforce, 0) is o.reinforce
    assert "by='beta'" in o.describe(penalized(o.reinforce, "beta"))


def test_every_variant_differs_from_grpo_in_its_penalty_only():
    for recipe, part in (
        (o.grpo_k1(), "kl.k1"),
        (o.grpo_k2(), "kl.k2"),
        (o.grpo_straight_through(), "kl.straight_through"),
        (o.grpo_unbiased_kl(), "ratios.over_old"),
    ):
        assert part in o.describe(recipe.parts)
        assert recipe.advantage is o.grpo().advantage and recipe.parts[0].aggregation is o.grpo().parts[0].aggregation


def test_the_surrogate_of_the_adaptive_penalty_is_not_clipped(value):
    # -r A + k3 with beta 1: (-2 A + 4 A) / 2 + (2 - log 2 - 1 + 4 - log 4 - 1) / 2
    got = value(o.ppo_adaptive_kl(), [2.0, 4.0], [1.0, -1.0])
    np.testing.assert_allclose(got, A + (1 - math.log(2.0) + 3 - math.log(4.0)) / 2, rtol=1e-4)


def test_the_surrogate_of_a_trust_region_is_neither_clipped_nor_penalised(value):
    got = value(o.trpo(), [2.0, 4.0], [1.0, -1.0])
    np.testing.assert_allclose(got, A, rtol=1e-4)  # (-2 A + 4 A) / 2
    got = value(o.trpo(), [0.1, 9.0], [1.0, -1.0])
    np.testing.assert_allclose(got, (9.0 - 0.1) / 2 * A, rtol=1e-4)


def test_a_bonus_is_worth_its_coefficient_times_the_mean_entropy(laboratory):
    draw, records, batch_of = laboratory
    stats, collected = records(draw())
    plain, bonus = o.ppo_group(), o.entropy_bonus(coef=0.01)
    losses = [float(o.loss(r.parts, stats, batch_of(collected, r))) for r in (plain, bonus)]
    mean = float(jnp.nanmean(jnp.where(collected.rollouts.mask, stats.entropy, jnp.nan)))
    np.testing.assert_allclose(losses[0] - losses[1], 0.01 * mean, rtol=1e-4)


def test_the_coefficients_follow_the_metrics_of_the_step():
    recipe = o.grpo_adaptive_kl(target=0.1, initial=0.04, horizon=100.0, steps=10.0)
    coef = o.initial_values(recipe.coefficients)
    np.testing.assert_allclose(coef["beta"], 0.04)
    moved = o.controlled(recipe.coefficients, coef, {"kl/ref": jnp.asarray(1.0)})
    np.testing.assert_allclose(moved["beta"], 0.04 * (1 + 0.2 * 0.1), rtol=1e-6)
    recipe = o.entropy_target()
    moved = o.controlled(recipe.coefficients, o.initial_values(recipe.coefficients), {"entropy": jnp.asarray(0.1)})
    np.testing.assert_allclose([moved["entropy_level"], moved["entropy_bonus"]], [0.005, 0.005])
    recipe = o.ppo_adaptive_kl()
    moved = o.controlled(recipe.coefficients, o.initial_values(recipe.coefficients), {"kl/old_after": jnp.asarray(0.0)})
    assert moved["beta_old"] == 0.5


def test_the_divergence_is_paid_out_of_the_reward(laboratory):
    draw, records, batch_of = laboratory
    arrays = draw(lengths=(2, 1), prompt=(0, 0), width=2)
    arrays["reward"] = np.asarray([1.0, 0.0], np.float32)
    arrays["logp_ref"] = arrays["logp_old"] - np.float32(0.5)
    batch = batch_of(records(arrays, prompts=1)[1], o.rloo_kl(beta=0.1))
    # rewards 1 - 0.1 * 2 * 0.5 = 0.9 and -0.05; each minus the other
    np.testing.assert_allclose(batch.advantage, [[0.95, 0.95], [-0.95, 0.0]], rtol=1e-5)


def test_the_exact_divergence_is_the_value_of_the_statistics(laboratory):
    draw, records, batch_of = laboratory
    stats, collected = records(draw())
    recipe = o.grpo_exact_kl(beta=0.5)
    with pytest.raises(ValueError, match='ask for want=\\("kl_full",\\)'):
        o.loss(recipe.parts, dataclasses.replace(stats, kl_full=None), batch_of(collected, recipe))
    full = jnp.where(collected.rollouts.mask, 0.2, jnp.nan)
    losses = [
        float(o.loss(r.parts, dataclasses.replace(stats, kl_full=full), batch_of(collected, r)))
        for r in (o.grpo(beta=0), recipe)
    ]
    np.testing.assert_allclose(losses[1] - losses[0], 0.5 * 0.2 * 8 / 9, rtol=1e-4)  # 8 of 9 rows have tokens
