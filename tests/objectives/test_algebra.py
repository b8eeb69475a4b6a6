"""Parts, combinators and the loss, with hand numbers."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import objectives as o
from grpo_jax.advantages import group_centered
from grpo_jax.groups import by_prompt


@pytest.fixture
def pair(laboratory):
    """Two rows: 2 and 1 scored tokens of 3, nan elsewhere."""
    draw, records, batch_of = laboratory
    arrays = draw(lengths=(2, 1), prompt=(0, 0), width=3)
    arrays["logp"] = np.asarray([[-1.0, -2.0, np.nan], [-3.0, np.nan, np.nan]], np.float32)
    arrays["logp_old"] = arrays["logp"]
    arrays["reward"] = np.asarray([1.0, 0.0], np.float32)
    stats, collected = records(arrays, prompts=1)
    recipe = o.Recipe((o.Part(o.token_mean, o.reinforce),), group_centered, by_prompt)
    return stats, batch_of(collected, recipe)


def own(stats, batch):
    return stats.logp * batch.advantage


def poisoned(stats, batch):
    return jnp.where(batch.mask, stats.logp, jnp.nan)


def value(parts, stats, batch):
    return o.loss(parts, stats, dataclasses.replace(batch, weight=o.weights(parts, batch)))


def test_the_loss_is_the_sum_of_weight_times_term(pair):
    stats, batch = pair
    # advantages 1/2 and -1/2; token mean of -A x: -(1/2 (-1) + 1/2 (-2) - 1/2 (-3)) / 3 = 0 / 3
    np.testing.assert_allclose(value((o.Part(o.token_mean, o.reinforce),), stats, batch), 0.0, atol=1e-7)
    # mean over rows of token means: -(1/2 (-1 - 2) / 2 - 1/2 (-3)) / 2 = -(-3/4 + 3/2) / 2
    by_rows = o.Part(o.sequence_mean_token_mean, o.reinforce)
    np.testing.assert_allclose(value((by_rows,), stats, batch), -0.375, rtol=1e-6)
    # every part has its own denominator: the token mean of -x is (1 + 2 + 3) / 3
    likelihood = o.Part(o.token_mean, o.scale(o.negative_log_likelihood, by=0.1))
    np.testing.assert_allclose(value((by_rows, likelihood), stats, batch), -0.375 + 0.1 * 2.0, rtol=1e-6)


def test_an_aggregation_shared_by_parts_is_computed_once(pair):
    parts = (o.Part(o.token_mean, o.reinforce), o.Part(o.token_mean, own))
    assert list(o.weights(parts, pair[1])) == ["grpo_jax.objectives.aggregation.token_mean"]


def test_what_a_term_says_where_the_weight_is_zero_is_dropped(pair):
    stats, batch = pair
    parts = (o.Part(o.token_mean, poisoned),)
    np.testing.assert_allclose(value(parts, stats, batch), -2.0)
    assert np.all(np.isfinite(jax.grad(lambda s: value(parts, s, batch))(stats).logp))


def test_terms_see_zeros_outside_the_mask(pair):
    stats, batch = pair
    hole = jnp.where(batch.mask, 1.0, jnp.nan)
    reward = dataclasses.replace(batch.reward, token=hole, outcome=jnp.asarray([1.0, jnp.nan]))
    batch = dataclasses.replace(
        batch,
        reward=dataclasses.replace(reward, valid=jnp.asarray([True, False])),
        advantage=hole,
        logp_behavior=hole,
        returns=hole,
        select={"some": hole, "number of rows": jnp.ones(2)},
    )
    stats, batch = o.clean(dataclasses.replace(stats, value=hole, kl_full=hole), batch)
    ones = np.asarray(batch.mask, np.float32)
    seen = (batch.advantage, batch.logp_behavior, batch.returns, batch.select["some"], batch.reward.token)
    for x in (*seen, stats.value, stats.kl_full):
        np.testing.assert_array_equal(x, ones)
    np.testing.assert_array_equal(stats.logp, [[-1.0, -2.0, 0.0], [-3.0, 0.0, 0.0]])
    np.testing.assert_array_equal(batch.reward.outcome, [1.0, 0.0])
    np.testing.assert_array_equal(batch.select["number of rows"], 1.0)


def test_an_advantage_of_nan_in_padding_leaves_the_gradient_finite(pair):
    stats, batch = pair
    batch = dataclasses.replace(batch, advantage=jnp.where(batch.mask, 2.0, jnp.nan))
    gradient = jax.grad(lambda s: value((o.Part(o.token_mean, o.reinforce),), s, batch))(stats).logp
    np.testing.assert_allclose(gradient, [[-2 / 3, -2 / 3, 0.0], [-2 / 3, 0.0, 0.0]], rtol=1e-6)


def test_no_gradient_flows_through_the_batch(pair):
    stats, batch = pair
    parts = (o.Part(o.token_mean, o.ppo_clip),)

    def through_everything(logp):
        learned = dataclasses.replace(batch, advantage=jnp.exp(logp), logp_old=1.1 * logp, logp_ref=logp)
        return value(parts, dataclasses.replace(stats, logp=logp), learned)

    def through_stats(logp):
        fixed = dataclasses.replace(batch, advantage=jnp.exp(stats.logp), logp_old=1.1 * stats.logp)
        return value(parts, dataclasses.replace(stats, logp=logp), fixed)

    gradient = jax.grad(through_everything)(stats.logp)
    np.testing.assert_array_equal(gradient, jax.grad(through_stats)(stats.logp))
    assert np.any(gradient != 0)
    assert not np.any(jax.grad(lambda a: value(parts, stats, dataclasses.replace(batch, advantage=a)))(batch.advantage))


def test_weights_that_are_missing_are_named(pair):
    stats, batch = pair
    with pytest.raises(ValueError, match=r"no weights for .*prompt_mean.*there are: .*token_mean\. Remedy"):
        o.loss((o.Part(o.prompt_mean, own),), stats, batch)


def test_combinators(pair):
    stats, batch = pair
    batch = dataclasses.replace(
        batch,
        select={"first": jnp.arange(3)[None, :] < jnp.ones((2, 1), jnp.int32)},
        coef={"beta": jnp.asarray(0.25)},
    )
    x, mask = np.asarray([[-1.0, -2.0, 0.0], [-3.0, 0.0, 0.0]]), np.asarray(batch.mask)
    a = np.asarray([[0.5], [-0.5]]) * mask
    cases = {
        "sum": (o.add(own, o.negative_log_likelihood), a * x - x),
        "sum of nothing": (o.add(), 0 * x),
        "number": (o.scale(own, by=3.0), 3 * a * x),
        "coefficient": (o.scale(own, by="beta"), a * x / 4),
        "choice": (o.where("first", own, o.negative_log_likelihood), np.where([[True, False, False]], a * x, -x)),
        "weight": (o.reweight(own, o.negative_log_likelihood), -a * x * x),
    }
    for name, (term, expected) in cases.items():
        np.testing.assert_allclose(np.where(mask, term(*o.clean(stats, batch)), 0.0), expected, err_msg=name)


def test_no_gradient_flows_through_a_reweighting(pair):
    stats, batch = pair
    parts = (o.Part(o.token_mean, o.reweight(own, o.negative_log_likelihood)),)
    gradient = jax.grad(lambda s: value(parts, s, batch))(stats).logp
    # d(A x w)/dx with w = -x fixed: A w / 3 tokens
    np.testing.assert_allclose(gradient, [[0.5 * 1 / 3, 0.5 * 2 / 3, 0.0], [-0.5 * 3 / 3, 0.0, 0.0]], rtol=1e-6)


def test_combinators_are_described():
    text = o.describe(o.add(o.reinforce, o.scale(o.ppo_clip, by="beta")))
    assert text.startswith("grpo_jax.objectives.algebra.") and "by='beta'" in text and "surrogates.reinforce" in text
    with pytest.raises(ValueError, match="lambda"):
        o.describe(o.reweight(o.reinforce, lambda stats, batch: stats.logp))


@pytest.mark.parametrize("name", ["select", "coef"])
def test_a_name_that_the_batch_lacks_is_an_error(pair, name: str):
    term = o.where("mine", own, own) if name == "select" else o.scale(own, by="mine")
    with pytest.raises(ValueError, match=rf"Batch\.{name} has no 'mine'; there are: none"):
        term(*pair)


def test_a_recipe_is_checked_when_it_is_made():
    part = o.Part(o.token_mean, o.reinforce)
    alone: Any = part  # a Part is itself a tuple, but not one of parts
    listed: Any = [part]
    misspelt: Any = {"lo": 0.1}
    with pytest.raises(ValueError, match="tuple of Part"):
        o.Recipe(alone, group_centered, by_prompt)
    with pytest.raises(ValueError, match="tuple of Part"):
        o.Recipe(listed, group_centered, by_prompt)
    with pytest.raises(ValueError, match=r"recipe\.parts\[0\]\.term is a lambda"):
        o.Recipe((o.Part(o.token_mean, lambda s, b: s.logp),), group_centered, by_prompt)
    with pytest.raises(ValueError, match="unknown keyword 'lo'"):
        o.Recipe((o.Part(o.token_mean, partial(o.ppo_clip, **misspelt)),), group_centered, by_prompt)


def test_the_paper_is_not_part_of_the_description():
    recipe = o.RECIPES["grpo"]
    assert o.describe(dataclasses.replace(recipe, paper="elsewhere")) == o.describe(recipe)
