"""What a baseline does to the gradient, in mean and variance: claims of the literature, exactly."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import laboratory as lab
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
from grpo_jax.groups import Memory
from grpo_jax.types import Array, Collected
from tests.laboratory.worlds import bandit, chain, compiled, measured, near, recipe

WRONG = 0.7
"""What the critic that is wrong is off by, up in one state and down in the next."""


def apart(collected: Collected, labels: Array, memory: Memory, *, size: int) -> tuple[Array, Memory]:
    """The leave-one-out advantages minus the mean-only ones times G / (G - 1)."""
    others, own = (strategy(collected, labels, memory)[0] for strategy in (group_leave_one_out, group_centered))
    return others - own * size / (size - 1), memory


@pytest.fixture(scope="module")
def arms() -> dict:
    """Results by (world, baseline)."""
    strategies = {
        "mean": group_centered,
        "mean of the others": group_leave_one_out,
        "mean of the batch": batch_centered,
        "over the deviation": group_standardized,
        "over the deviation of the batch": reinforce_batch_norm,
        "apart": partial(apart, size=3),
    }
    with jax.enable_x64(True):
        rules = {name: recipe(strategy) for name, strategy in strategies.items()}
        found = measured({"one": bandit(prompts=1)}, rules, group_size=3)
        few = {name: rules[name] for name in ("mean", "mean of the batch", "over the deviation of the batch")}
        return found | measured({"two": bandit()}, few, group_size=2)


@pytest.fixture(scope="module")
def words() -> dict:
    """Results by (critic, baseline)."""
    strategies = {
        "nothing": outcome,
        "a known number": remax,
        "mean by length": opo,
        "mean by energy": optimal_token_baseline,
    }
    with jax.enable_x64(True):
        world = chain()
        value = compiled(lab.state_values)(world.completions, world.logits, world.reward)
        off = np.where(world.completions.state % 2 == 0, WRONG, -WRONG)
        worlds = {"right": jnp.asarray(value), "wrong": jnp.asarray(value + off)}
        worlds = {name: world.replace(value=x) for name, x in worlds.items()}
        found = measured(worlds, {name: recipe(strategy) for name, strategy in strategies.items()}, group_size=2)
        for lam in (0.0, 0.6, 1.0):  # each by itself: a recipe has one critic
            found |= measured(worlds, {f"critic, lambda {lam:g}": recipe(partial(gae, lam=lam))}, group_size=2)
        return found


@pytest.mark.parametrize(
    ("world", "baseline", "factor"),
    [
        ("two", "mean", 1 / 2),
        ("one", "mean", 2 / 3),
        ("two", "mean of the batch", 3 / 4),
        ("one", "mean of the batch", 2 / 3),
        ("one", "mean of the others", 1.0),
    ],
)
def test_a_mean_that_includes_the_sample_shrinks_the_gradient_by_its_share(arms: dict, world, baseline, factor):
    """RLOO (arXiv 2402.14740), Dr. GRPO (2503.20783, appendix A): of n rewards in the mean one is the sample's own."""
    compared = arms[world, baseline]
    near([compared.factor, compared.aside], [factor, 0.0])


def test_leave_one_out_is_the_mean_only_advantage_times_a_number_on_every_batch(arms: dict):
    """RLOO = G / (G - 1) Dr. GRPO, not on average but batch by batch: the mean square of the difference is 0."""
    assert arms["one", "apart"].square < 1e-28 < arms["one", "mean"].square


@pytest.mark.parametrize(
    ("world", "baseline"), [("one", "over the deviation"), ("two", "over the deviation of the batch")]
)
def test_dividing_by_a_deviation_of_the_sample_points_elsewhere(arms: dict, world: str, baseline: str):
    """GRPO (arXiv 2402.03300) and REINFORCE++ (2501.03262): no multiple of the gradient, however many batches."""
    assert arms[world, baseline].aside > 0.01


@pytest.mark.slow
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
def test_what_does_not_depend_on_the_action_does_not_bias(words: dict, world: str, baseline: str):
    """Williams 1992; GAE (arXiv 1506.02438, section 3): the exact values for any lambda, any values for lambda 1."""
    compared = words[world, baseline]
    near([compared.factor, compared.aside], [1.0, 0.0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "baseline"),
    [
        ("right", "mean by length"),
        ("right", "mean by energy"),
        ("wrong", "critic, lambda 0"),
        ("wrong", "critic, lambda 0.6"),
    ],
)
def test_what_depends_on_the_action_otherwise_points_elsewhere(words: dict, world: str, baseline: str):
    """OPO (arXiv 2505.23585) and the optimal token baseline weigh by the sample's own length; a critic may be wrong."""
    assert words[world, baseline].aside > 0.01


@pytest.mark.slow
def test_the_values_of_a_critic_lower_the_variance(words: dict):
    """GAE (arXiv 1506.02438): the less of the return is used, the less of its noise."""
    spread = [words["right", f"critic, lambda {lam}"].variance for lam in ("0", "0.6", "1")]
    assert spread[0] < spread[1] < spread[2] < words["right", "nothing"].variance


@pytest.mark.slow
def test_the_best_constant_baseline_weighs_rewards_by_squared_scores_and_opo_by_length():
    """OPO (arXiv 2505.23585): E[|score|^2 R] / E[|score|^2], which is E[n R] / E[n] where |score|^2 is as the length n.

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
