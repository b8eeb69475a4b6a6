"""Truths against arithmetic by hand and against sums written as loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import laboratory as lab
from tests.laboratory.worlds import chain, compiled, near


@pytest.fixture(scope="module")
def world():
    """A language model of three tokens for two prompts, and what this module says of it, in float64."""
    with jax.enable_x64(True):
        drawn = chain(4, prompts=2)

        @compiled
        def everything(x: lab.World) -> dict:
            listed, p, q = x.completions, x.logits, x.reference_logits
            return {
                "logp": lab.log_probs(listed, p),
                "other": lab.log_probs(listed, q),
                "expected": lab.expected(listed, p, x.reward),
                "J": lab.expected_reward(x, p),
                "slope": lab.policy_gradient(x),
                "kl": lab.divergence(listed, p, q),
                "local": lab.local_divergence(listed, p, q, p),
                "values": lab.state_values(listed, p, x.reward),
                "cut": lab.truncated(listed, p, top_k=2),
            }

        return drawn, everything(drawn)


def chances(drawn: lab.World, logits: np.ndarray) -> np.ndarray:
    """f[P,C] by loops."""
    listed, out = drawn.completions, np.ones(drawn.reward.shape)
    softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for p, c in np.ndindex(*out.shape):
        for t in range(int(listed.length[c])):
            out[p, c] *= softmax[p, int(listed.state[c, t]), int(listed.tokens[c, t])]
    return out


def test_probabilities_are_products_over_tokens_and_sum_to_one(world):
    drawn, found = world
    by_loops = chances(drawn, np.asarray(drawn.logits))
    near(np.exp(found["logp"].sum(-1)), by_loops)
    near(by_loops.sum(1), [1.0, 1.0])
    assert (found["logp"][:, ~np.asarray(drawn.completions.mask)] == 0).all()


def test_expectations_and_divergences_are_sums_over_completions(world):
    drawn, found = world
    p, q = (chances(drawn, np.asarray(x)) for x in (drawn.logits, drawn.reference))
    near(found["expected"], (p * np.asarray(drawn.reward)).sum(1))
    near(found["J"], found["expected"].mean())
    near(found["kl"], (p * np.log(p / q)).sum(1).mean())
    near(found["local"], found["kl"])  # the chain rule of the divergence


def test_the_policy_gradient_is_the_slope_of_the_expected_reward(world):
    drawn, found = world
    logits, reward = np.asarray(drawn.logits), np.asarray(drawn.reward)
    for place in ((0, 0, 1), (1, 2, 0)):
        step = np.zeros_like(logits)
        step[place] = 1e-5
        ends = [(chances(drawn, logits + sign * step) * reward).sum(1).mean() for sign in (1, -1)]
        np.testing.assert_allclose(found["slope"][place], (ends[0] - ends[1]) / 2e-5, rtol=1e-6)


def test_the_value_of_a_state_is_the_mean_reward_of_what_begins_with_it(world):
    drawn, found = world
    tokens, chance = np.asarray(drawn.completions.tokens), chances(drawn, np.asarray(drawn.logits))
    reward, length = np.asarray(drawn.reward), np.asarray(drawn.completions.length)
    for c in range(len(tokens)):
        for t in range(length[c]):
            begins = [d for d in range(len(tokens)) if length[d] > t and (tokens[d, :t] == tokens[c, :t]).all()]
            mean = (chance[:, begins] * reward[:, begins]).sum(1) / chance[:, begins].sum(1)
            near(found["values"][:, c, t], mean)
        assert (found["values"][:, c, length[c] :] == 0).all()


def test_a_truncated_sampler_draws_the_two_likeliest_tokens_of_each_state(world):
    drawn, found = world
    chance = np.exp(found["cut"].sum(-1))
    near(chance.sum(1), [1.0, 1.0])
    least = np.asarray(drawn.logits).argmin(-1)
    listed = drawn.completions
    for p, c in np.ndindex(*chance.shape):
        never = any(least[p, int(listed.state[c, t])] == int(listed.tokens[c, t]) for t in range(int(listed.length[c])))
        assert (chance[p, c] == 0) == never


def test_by_default_the_policy_itself_is_old_and_samples():
    drawn = lab.World(completions=lab.arms(2), logits=jnp.zeros((1, 1, 2)), reward=jnp.zeros((1, 2)))
    assert drawn.old_logits is drawn.logits
    np.testing.assert_allclose(np.exp(drawn.sampled_from), [[[0.5], [0.5]]])


def test_a_world_without_a_reference_says_so():
    drawn = lab.World(completions=lab.arms(2), logits=jnp.zeros((1, 1, 2)), reward=jnp.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"World\.reference: got None"):
        assert drawn.reference_logits is None
