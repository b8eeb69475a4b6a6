"""What a baseline does to the gradient, in mean and variance: claims of the literature, exactly."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import laboratory as lab
from grpo_jax import objectives as o
from grpo_jax.advantages import (
    batch_centered,
    gae,
    group_centered,
    group_leave_one_out,
    group_standardized,
    opo,
    optimal_token_baseline,
    outcome,
    reinforce_batch_norm,
    remax,
)
from tests.laboratory.worlds import bandit, chain, compiled, measured, near, recipe

WRONG = 0.7
"""What the critic that is wrong is off by, up in one state and down in the next."""


@pytest.fixture(scope="module")
def found():
    """Results by (world, baseline)."""
    with jax.enable_x64(True):
        arms, one, words = bandit(), bandit(prompts=1), chain()
        value = compiled(lab.state_values)(words.completions, words.logits, words.reward)
        off = np.where(words.completions.state % 2 == 0, WRONG, -WRONG)
        words = {"right": words.replace(value=jnp.asarray(value)), "wrong": words.replace(value=jnp.asarray(value + off))}
        strategies = {
            "mean": group_centered,
            "mean of the others": group_leave_one_out,
            "mean of the batch": batch_centered,
            "over the deviation": group_standardized,
            "over the deviation of the batch": reinforce_batch_norm,
        }
        by_length = {
            "nothing": outcome,
            "a known number": remax,
            "mean by length": opo,
            "mean by energy": optimal_token_baseline,
            "critic, lambda 0": partial(gae, lam=0.0),
            "critic, lambda 0.6": partial(gae, lam=0.6),
            "critic, lambda 1": partial(gae, lam=1.0),
        }
        rules = {name: recipe(strategy) for name, strategy in strategies.items()}
        moments = measured({"two arms": arms}, rules, group_size=2) | measured({"arms": one}, rules, group_size=3)
        moments |= measured(words, {name: recipe(strategy) for name, strategy in by_length.items()}, group_size=2)
        return moments


@pytest.mark.parametrize(
    ("world", "baseline", "factor"),
    [
        ("two arms", "mean", 1 / 2),
        ("arms", "mean", 2 / 3),
        ("two arms", "mean of the batch", 3 / 4),
        ("arms", "mean of the batch", 2 / 3),
        ("two arms", "mean of the others", 1.0),
        ("arms", "mean of the others", 1.0),
    ],
)
def test_a_mean_that_includes_the_sample_shrinks_the_gradient_by_its_share(found, world: str, baseline: str, factor):
    """RLOO (arXiv 2402.14740), Dr. GRPO (2503.20783, appendix A): of n rewards in the mean one is the sample's own."""
    compared = found[world, baseline]
    near([compared.factor, compared.aside], [factor, 0.0])


@pytest.mark.parametrize(
    ("world", "baseline"),
    [
        ("right", "nothing"),
        ("right", "a known number"),
        ("right", "critic, lambda 0"),
        ("right", "critic, lambda 0.6"),
        ("right", "critic, lambda 1"),
        ("wrong", "critic, lambda 1"),
    ],
)
def test_what_does_not_depend_on_the_action_does_not_bias(found, world: str, baseline: str):
    """Williams 1992; GAE (arXiv 1506.02438, section 3): the exact values for any lambda, any values for lambda 1."""
    compared = found[world, baseline]
    near([compared.factor, compared.aside], [1.0, 0.0])


@pytest.mark.parametrize(
    ("world", "baseline"),
    [
        ("right", "mean by length"),
        ("right", "mean by energy"),
        ("arms", "over the deviation"),
        ("two arms", "over the deviation of the batch"),
        ("wrong", "critic, lambda 0"),
        ("wrong", "critic, lambda 0.6"),
    ],
)
def test_what_depends_on_the_action_otherwise_points_elsewhere(found, world: str, baseline: str):
    """OPO, optimal token baseline, GRPO and REINFORCE++ are no multiple of the gradient; nor is a wrong critic."""
    assert found[world, baseline].aside > 0.01


def test_the_values_of_a_critic_lower_the_variance(found):
    """GAE (arXiv 1506.02438): the less of the return is used, the less of its noise."""
    spread = [found["right", f"critic, lambda {lam}"].variance for lam in ("0", "0.6", "1")]
    assert spread[0] < spread[1] < spread[2] < found["right", "nothing"].variance


def test_leave_one_out_is_the_mean_only_advantage_times_a_number_on_every_batch():
    """RLOO = G / (G - 1) Dr. GRPO, not on average but batch by batch."""
    with jax.enable_x64(True):
        world, size = bandit(), 2
        chosen = jnp.asarray(lab.every_batch(3, 4))
        each = [
            compiled(jax.vmap(partial(lab.gradient, world, rule, group_size=size)))(chosen)[1]
            for rule in (o.rloo(), o.dr_grpo(constant=1.0))
        ]
        near(each[0], each[1] * size / (size - 1))
        assert np.abs(each[0]).max() > 0.1


def test_the_best_constant_baseline_weighs_rewards_by_squared_scores_and_opo_by_length():
    """OPO (arXiv 2505.23585): E[|score|^2 R] / E[|score|^2], which is E[n R] / E[n] where |score|^2 is in proportion to n.

    So it is for a uniform policy with a state for every beginning: |grad log p|^2 = 1 - 1/V at every token.
    """
    with jax.enable_x64(True):
        drawn = chain(order=2)
        level = drawn.replace(logits=jnp.zeros_like(drawn.logits))
        rule = recipe(remax)

        @compiled
        def best(world: lab.World) -> dict:
            at = jnp.asarray([[0.0], [1.0], [2.0]])
            variance = jax.vmap(lambda b: lab.exact(world.replace(greedy=b), rule, group_size=1).variance)(at)
            chance = lab.probability(lab.log_probs(world.completions, world.logits))[0]
            score = jax.jacobian(lambda z: jnp.sum(lab.log_probs(world.completions, z), axis=-1)[0])(world.logits)
            weights = {
                "square": jnp.sum(jnp.square(score), axis=(1, 2, 3)) * chance,
                "length": world.completions.length.astype(chance.dtype) * chance,
            }
            means = {name: jnp.sum(w * world.reward[0]) / jnp.sum(w) for name, w in weights.items()}
            # The lowest point of the parabola through three points at 0, 1 and 2.
            curve = variance[2] - 2 * variance[1] + variance[0]
            return means | {"found": 1 - (variance[2] - variance[0]) / (2 * curve)}

        uniform, other = best(level), best(drawn)
    near([uniform["found"], other["found"]], [uniform["square"], other["square"]])
    near(uniform["found"], uniform["length"])
    assert abs(other["found"] - other["length"]) > 0.01
