"""The laboratory itself: all batches, their probabilities, and the path that a run takes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import laboratory as lab
from grpo_jax import objectives as o
from grpo_jax.advantages import group_centered
from tests.laboratory.worlds import chain, compiled, near, recipe


def test_every_batch_is_listed_once():
    listed = lab.every_batch(3, 4)
    assert listed.shape == (81, 4) and len({tuple(row) for row in listed.tolist()}) == 81
    with pytest.raises(ValueError, match=r"got 15\^6 batches"):
        lab.every_batch(15, 6)


def test_a_group_of_two_coins_by_hand():
    """p = 1/4: of (0,0), (0,1), (1,0), (1,1) the mixed ones have A = -1/2, 1/2 and scores -1/4, 3/4 in the right logit.

    Their gradient of ascent is (1/2)(1/2 + 1/2)(1/2) = 1/4 whatever p; they come 2 p (1 - p) = 3/8 of the time.
    """
    with jax.enable_x64(True):
        completions, logits, reward = lab.coins(np.asarray([0.25]))
        world = lab.World(completions=completions, logits=logits, reward=reward)
        found = compiled(partial(lab.exact, recipe=recipe(group_centered), group_size=2))(world)
    ascent = 3 / 8 * (1 / 2) * (1 / 2)  # (1/2 A score summed over two rows) = (1/2) (1/2) (3/4 + 1/4) = 1/4
    near(found.gradient[0, 0], [ascent, -ascent])
    near(found.square, 3 / 8 * 2 * (1 / 4) ** 2)
    near(found.variance, 3 / 8 * 2 * (1 / 4) ** 2 - 2 * ascent**2)
    assert found.batches == 4


@pytest.mark.slow
def test_what_is_sampled_agrees_with_what_is_listed_within_its_standard_error():
    with jax.enable_x64(True):
        world, rule = chain(6), recipe(group_centered)

        @compiled
        def both(key):
            return lab.exact(world, rule, group_size=2), lab.sampled(world, rule, key, group_size=2, batches=4000)

        exact, drawn = both(jax.random.key(0))
    error = np.linalg.norm(drawn.gradient - exact.gradient)
    assert 0 < error < 3 * drawn.standard_error < 0.2 * np.linalg.norm(exact.gradient)
    np.testing.assert_allclose(drawn.variance, exact.variance, rtol=0.1)


def test_an_estimate_is_a_factor_of_the_truth_and_what_is_aside():
    found = lab.parallel(jnp.asarray([3.0, 4.0]), jnp.asarray([2.0, 0.0]))
    assert float(found.factor) == 1.5 and float(found.aside) == pytest.approx(4 / 3)


@pytest.mark.slow
def test_every_recipe_can_be_measured():
    """Prepare steps, coefficients and exact divergences included: finite moments for all of `RECIPES`."""
    with jax.enable_x64(True):
        world = chain(6)
        for name, rule in o.RECIPES.items():
            found = compiled(partial(lab.exact, recipe=rule, group_size=2))(world)
            assert np.isfinite(found.gradient).all() and found.variance > 0, name
