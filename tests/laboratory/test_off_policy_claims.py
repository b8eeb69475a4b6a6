"""What samples of another distribution do to the gradient, and what corrections cost: claims, exactly."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import laboratory as lab
from grpo_jax import objectives as o
from tests.laboratory.worlds import bandit, chain, compiled, measured, near, recipe

CUTS = {"top_k": {"top_k": 2}, "top_p": {"top_p": 0.7}, "min_p": {"min_p": 0.3}}
CAPS = (1.0, 1.5, 3.0, 10.0)
DRIFTS = (0.0, 0.5, 1.0, 2.0)
LOW, HIGH = 0.2, 0.28


class Arms(NamedTuple):
    """A bandit with one prompt in numbers, f[V] each."""

    policy: np.ndarray
    behavior: np.ndarray
    reward: np.ndarray

    def slope(self, share: np.ndarray) -> np.ndarray:
        """sum_c share_c R_c grad log pi_c -> f[1,1,V]; grad log pi_c = e_c - pi."""
        paid = share * self.reward
        return (paid - paid.sum() * self.policy)[None, None]


class Arranged(NamedTuple):
    """Results by (world, estimator), and the arms by world."""

    found: dict
    arms: dict


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def bandits() -> Arranged:
    """A bandit of four arms under samplers that truncate, that have drifted away, and under a clip."""
    logits, reward = np.asarray([0.0, 0.5, 1.0, 1.5]), np.asarray([1.0, 0.2, 0.6, 1.4])
    with jax.enable_x64(True):
        policy = bandit(prompts=1, arms=4, logits=logits[None, None], reward=reward[None])
        worlds = {name: policy.replace(behavior=truncated(policy, how)) for name, how in CUTS.items()}
        for x in DRIFTS:  # at 1 the sampler is uniform, at 2 it prefers what the policy avoids
            sampler = np.log(softmax(logits * (1.0 - x)))[None, :, None]
            worlds[str(x)] = policy.replace(behavior=jnp.asarray(sampler))
        old = np.asarray([1.0, 0.9, 1.0, 0.2])
        worlds["stale"] = policy.replace(
            old=jnp.asarray(old[None, None]),
            behavior=jnp.asarray(np.log(softmax(old))[None, :, None]),
            reward=jnp.asarray(reward[None] - 1.1),
        )
        rules = {
            "uncorrected": recipe(),
            "weight": recipe(term=o.importance),
            "corrected": recipe(term=o.reweight(o.reinforce, o.importance)),
            "ratio": recipe(term=partial(o.unclipped, ratio=o.log_ratio_behavior)),
            "clipped": recipe(term=partial(o.ppo_clip, low=LOW, high=HIGH)),
            "unclipped": recipe(term=o.unclipped),
        }
        for cap in CAPS:
            rules[f"truncated {cap}"] = recipe(term=o.reweight(o.reinforce, partial(o.truncated, upper=cap)))
            masked = partial(o.masked_importance, lower=None, upper=cap)
            rules[f"masked {cap}"] = recipe(term=o.reweight(o.reinforce, masked))
        found = measured(
            {name: world.replace(behavior=world.sampled_from) for name, world in worlds.items()}, rules, group_size=1
        )
    arms = {
        name: Arms(softmax(logits), np.exp(np.asarray(world.behavior)[0, :, 0]), np.asarray(world.reward[0]))
        for name, world in worlds.items()
    }
    return Arranged(found, arms)


def truncated(world: lab.World, how: dict) -> jax.Array:
    return jnp.asarray(compiled(partial(lab.truncated, **how))(world.completions, world.logits))


@pytest.fixture(scope="module")
def words() -> tuple[dict, lab.World]:
    """A language model that has moved away from the policy that sampled, and one whose sampler truncates."""
    with jax.enable_x64(True):
        policy, away = chain(2), chain(7).logits
        # The policy stays and the old one is placed behind it, so that the gradient to be found is one and the same.
        worlds = {str(x): policy.replace(old=policy.logits + x * away) for x in (0.0, 0.3, 0.6)}
        worlds = {
            name: world.replace(behavior=jnp.asarray(compiled(lab.log_probs)(world.completions, world.old_logits)))
            for name, world in worlds.items()
        }
        worlds["top_p"] = policy.replace(old=policy.logits, behavior=truncated(policy, CUTS["top_p"]))
        of_row = partial(o.sequence_log_ratio, reduction="sum", cap=None)
        rules = {
            "row": recipe(term=partial(o.unclipped, ratio=of_row), aggregation=o.sequence_mean_token_mean),
            "token": recipe(term=o.unclipped),
            "mean": recipe(term=partial(o.unclipped, ratio=o.sequence_log_ratio)),
            "weight": recipe(term=partial(o.importance, of=o.mismatch_sum), aggregation=o.sequence_mean_token_mean),
            "corrected": recipe(term=o.reweight(o.reinforce, partial(o.importance, of=o.mismatch_sum))),
        }
        return measured(worlds, rules, group_size=1), worlds["top_p"]


@pytest.mark.parametrize("how", CUTS)
def test_truncation_biases_the_mean_weight_by_exactly_the_kept_mass(bandits: Arranged, how: str):
    """Of a ratio full / truncated, whose mean would be 1 if everything could be drawn, what can be drawn is missing."""
    arms = bandits.arms[how]
    mass = arms.policy[arms.behavior > 0].sum()
    assert 0.3 < mass < 0.95
    near(bandits.found[how, "weight"].loss, mass)


@pytest.mark.parametrize("how", CUTS)
def test_the_corrected_gradient_is_that_of_the_reward_that_can_be_sampled(bandits: Arranged, how: str):
    """No weight brings back what is never drawn: the estimate is the gradient of sum_kept pi R, not of J."""
    arms = bandits.arms[how]
    kept = np.where(arms.behavior > 0, arms.policy, 0.0)
    for name in ("corrected", "ratio"):
        near(bandits.found[how, name].ascent, arms.slope(kept))
    assert bandits.found[how, "corrected"].aside > 0.01
    # Without a correction each kept arm is drawn 1 / mass times as often.
    near(bandits.found[how, "uncorrected"].ascent, arms.slope(kept) / kept.sum())


@pytest.mark.slow
def test_of_a_row_what_is_kept_is_the_probability_that_it_can_be_drawn_whole(words):
    found, world = words
    policy = np.exp(np.asarray(lab_log_probs(world)).sum(-1))
    kept = np.where(np.isfinite(np.asarray(world.behavior).sum(-1)), policy, 0.0)
    assert 0.3 < kept.sum() < 0.95
    near(found["top_p", "weight"].loss, kept.sum())
    with jax.enable_x64(True):
        only = world.replace(reward=world.reward * jnp.asarray(kept / policy), behavior=None)
        near(found["top_p", "corrected"].ascent, compiled(lab.policy_gradient)(only))


def lab_log_probs(world: lab.World) -> np.ndarray:
    with jax.enable_x64(True):
        return compiled(lab.log_probs)(world.completions, world.logits)


def test_importance_weights_are_unbiased_and_their_variance_grows_with_the_drift(bandits: Arranged):
    found = bandits.found
    whole = [found[str(x), "corrected"] for x in DRIFTS]
    near([x.factor for x in whole], 1.0)
    near([x.aside for x in whole], 0.0)
    variance = [float(x.variance) for x in whole]
    assert sorted(variance) == variance and variance[-1] > 3 * variance[0]


@pytest.mark.parametrize("cap", CAPS)
def test_truncated_weights_bound_the_second_moment_at_the_price_of_a_bias(bandits: Arranged, cap: float):
    """Ionides 2008; Yao et al. 2025: E_b[min(w, C)^2 h^2] <= C E_pi[h^2], and the mean is sum min(pi, C b) h."""
    found, arms = bandits
    on_policy = found[str(DRIFTS[0]), "corrected"].square
    for x in DRIFTS:
        result = found[str(x), f"truncated {cap}"]
        assert result.square <= cap * on_policy * (1 + 1e-12)
        here = arms[str(x)]
        near(result.ascent, here.slope(np.minimum(here.policy, cap * here.behavior)))
    assert found[str(DRIFTS[-1]), "corrected"].square > 3 * on_policy


@pytest.mark.parametrize("cap", CAPS)
def test_masked_weights_leave_out_what_truncated_ones_shrink(bandits: Arranged, cap: float):
    """IcePop (arXiv 2510.18855): the mean is sum pi h over the samples whose weight is at most C."""
    found, arms = bandits
    for x in DRIFTS[1:]:
        here = arms[str(x)]
        kept = np.where(here.policy <= cap * here.behavior, here.policy, 0.0)
        masked, truncated = (found[str(x), f"{name} {cap}"] for name in ("masked", "truncated"))
        near(masked.ascent, here.slope(kept))
        assert masked.square <= truncated.square * (1 + 1e-12)


def test_a_larger_cap_trades_bias_for_variance(bandits: Arranged):
    found = bandits.found
    for x in DRIFTS[1:]:
        row = [found[str(x), f"truncated {cap}"] for cap in CAPS]
        whole = found[str(x), "corrected"]
        bias = [float(np.linalg.norm(one.ascent - whole.ascent)) for one in row]
        assert sorted(bias, reverse=True) == bias and bias[0] > 0.01
        square = [float(one.square) for one in row]
        assert sorted(square) == square


@pytest.mark.slow
def test_only_the_ratio_of_the_whole_row_is_unbiased(words):
    """The product over a row corrects for the states too; a token's own ratio (PPO) and GSPO's mean do not."""
    stale, _ = words
    for x in ("0.3", "0.6"):
        near([stale[x, "row"].factor, stale[x, "row"].aside], [1.0, 0.0])
        assert stale[x, "token"].aside > 0.01 and stale[x, "mean"].aside > 0.01
    for name in ("row", "token", "mean"):
        near([stale["0.0", name].factor, stale["0.0", name].aside], [1.0, 0.0])


@pytest.mark.slow
def test_and_its_variance_is_the_largest(words):
    """GSPO (arXiv 2507.18071, section 3): the geometric mean of a row's ratios spreads least."""
    stale, _ = words
    spread = [float(stale["0.6", name].variance) for name in ("row", "token", "mean")]
    assert sorted(spread, reverse=True) == spread


def test_the_clip_takes_exactly_the_samples_behind_its_bounds_out_of_the_gradient(bandits: Arranged):
    """PPO (arXiv 1707.06347, equation 7): no gradient where r > 1 + e and A > 0, or r < 1 - e and A < 0.

    The mean is sum pi A grad log pi over the other arms: a bias towards the old policy.
    """
    found, arms = bandits.found, bandits.arms["stale"]
    ratio = arms.policy / arms.behavior
    stopped = ((ratio > 1 + HIGH) & (arms.reward > 0)) | ((ratio < 1 - LOW) & (arms.reward < 0))
    assert 0 < stopped.sum() < stopped.size
    near(found["stale", "clipped"].ascent, arms.slope(np.where(stopped, 0.0, arms.policy)))
    near([found["stale", "unclipped"].factor, found["stale", "unclipped"].aside], [1.0, 0.0])
