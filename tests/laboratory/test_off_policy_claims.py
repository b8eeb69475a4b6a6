"""What samples of another distribution do to the gradient, and what corrections cost: claims of the literature, exactly."""

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


@pytest.fixture(scope="module")
def cut():
    """Results by (cut, estimator); by cut the mass f[P] that is kept, and the gradient of the reward of what is kept."""
    with jax.enable_x64(True):
        arms, words = bandit(5, prompts=1, arms=4), chain(5)
        worlds = {}
        for name, how in CUTS.items():
            worlds[name] = arms.replace(behavior=lab.truncated(arms.completions, arms.logits, **how))
            worlds[f"{name}, words"] = words.replace(behavior=lab.truncated(words.completions, words.logits, **how))
        rules = {
            "weight": recipe(term=o.importance),
            "weight of rows": recipe(
                term=partial(o.importance, of=o.mismatch_sum), aggregation=o.sequence_mean_token_mean
            ),
            "corrected": recipe(term=o.reweight(o.reinforce, partial(o.importance, of=o.mismatch_sum))),
            "ratio": recipe(term=partial(o.unclipped, ratio=o.log_ratio_behavior)),
            "uncorrected": recipe(),
        }
        found = {}
        for end in ("", ", words"):
            some = {name: world for name, world in worlds.items() if name.endswith("words") == bool(end)}
            found |= measured(some, rules, group_size=1)
        mass, truth = {}, {}
        slope, chances = compiled(lab.policy_gradient), compiled(both_chances)
        for name, world in worlds.items():
            policy, behavior = chances(world)
            kept = (behavior > 0).astype(float)
            mass[name] = (policy * kept).sum(axis=1)
            truth[name] = slope(world.replace(reward=world.reward * kept, behavior=None))
        return found, mass, truth


@pytest.mark.parametrize("how", CUTS)
def test_truncation_biases_the_mean_weight_by_exactly_the_kept_mass(cut, how: str):
    """Of a ratio full / truncated, whose mean would be 1 if everything could be drawn, what can be drawn is missing."""
    found, mass, _ = cut
    assert 0.3 < mass[how] < 0.95
    near(found[how, "weight"].loss, mass[how][0])
    near(found[f"{how}, words", "weight of rows"].loss, mass[f"{how}, words"][0])


@pytest.mark.parametrize("how", CUTS)
def test_the_corrected_gradient_is_that_of_the_reward_that_can_be_sampled(cut, how: str):
    """No weight brings back what is never drawn: the estimate is the gradient of sum_kept pi R, not of J."""
    found, mass, truth = cut
    for name in (how, f"{how}, words"):
        near(found[name, "corrected"].ascent, truth[name])
        assert found[name, "corrected"].aside > 0.01
    near(found[how, "ratio"].ascent, truth[how])
    # Without a correction each kept arm is drawn 1 / mass times as often.
    near(found[how, "uncorrected"].ascent, truth[how] / mass[how][0])


@pytest.fixture(scope="module")
def drift():
    """Results by (drift, estimator) of a bandit whose sampler has drifted away, and its world by drift."""
    with jax.enable_x64(True):
        fixed = {"logits": np.asarray([[[0.0, 0.5, 1.0, 1.5]]]), "reward": np.asarray([[1.0, 0.2, 0.6, 1.4]])}
        policy = bandit(prompts=1, arms=4, **fixed)
        worlds = {}
        for x in DRIFTS:  # at 1 the sampler is uniform, at 2 it prefers what the policy avoids
            sampler = lab.log_probs(policy.completions, policy.logits * (1.0 - x))
            worlds[str(x)] = policy.replace(behavior=sampler)
        rules = {"uncorrected": recipe(), "untouched": recipe(term=o.reweight(o.reinforce, o.importance))}
        for cap in CAPS:
            rules[f"truncated {cap}"] = recipe(term=o.reweight(o.reinforce, partial(o.truncated, upper=cap)))
            masked = partial(o.masked_importance, lower=None, upper=cap)
            rules[f"masked {cap}"] = recipe(term=o.reweight(o.reinforce, masked))
        return measured(worlds, rules, group_size=1), {name: arms_of(world) for name, world in worlds.items()}


class Arms(NamedTuple):
    """A bandit with one prompt in numbers, f[V] each."""

    policy: np.ndarray
    behavior: np.ndarray
    reward: np.ndarray

    def slope(self, share: np.ndarray) -> np.ndarray:
        """sum_c share_c R_c grad log pi_c -> f[1,1,V]; grad log pi_c = e_c - pi."""
        paid = share * self.reward
        return (paid - paid.sum() * self.policy)[None, None]


def both_chances(world: lab.World) -> tuple:
    """Probabilities of the completions f[P,C] under the policy and under the sampler."""
    return lab.probability(lab.log_probs(world.completions, world.logits)), lab.probability(world.sampled_from)


def arms_of(world: lab.World) -> Arms:
    policy, behavior = map(np.asarray, both_chances(world))
    return Arms(policy[0], behavior[0], np.asarray(world.reward[0]))


def test_importance_weights_are_unbiased_and_their_variance_grows_with_the_drift(drift):
    found, _ = drift
    untouched = [found[str(x), "untouched"] for x in DRIFTS]
    near([x.factor for x in untouched], 1.0)
    near([x.aside for x in untouched], 0.0)
    variance = [float(x.variance) for x in untouched]
    assert sorted(variance) == variance and variance[-1] > 3 * variance[0]


@pytest.mark.parametrize("cap", CAPS)
def test_truncated_weights_bound_the_second_moment_at_the_price_of_a_bias(drift, cap: float):
    """Ionides 2008; Yao et al. 2025: E_b[min(w, C)^2 h^2] <= C E_pi[h^2], and the mean is sum min(pi, C b) h."""
    found, worlds = drift
    on_policy = found[str(DRIFTS[0]), "untouched"].square
    for x in DRIFTS:
        result = found[str(x), f"truncated {cap}"]
        assert result.square <= cap * on_policy * (1 + 1e-12)
        arms = worlds[str(x)]
        near(result.ascent, arms.slope(np.minimum(arms.policy, cap * arms.behavior)))
    assert found[str(DRIFTS[-1]), "untouched"].square > 3 * on_policy


@pytest.mark.parametrize("cap", CAPS)
def test_masked_weights_leave_out_what_truncated_ones_shrink(drift, cap: float):
    """IcePop (arXiv 2510.18855): the mean is sum pi h over the samples whose weight is at most C."""
    found, worlds = drift
    for x in DRIFTS[1:]:
        arms = worlds[str(x)]
        kept = np.where(arms.policy <= cap * arms.behavior, arms.policy, 0.0)
        masked, truncated = (found[str(x), f"{name} {cap}"] for name in ("masked", "truncated"))
        near(masked.ascent, arms.slope(kept))
        assert masked.square <= truncated.square * (1 + 1e-12)


def test_a_larger_cap_trades_bias_for_variance(drift):
    found, _ = drift
    for x in DRIFTS[1:]:
        row = [found[str(x), f"truncated {cap}"] for cap in CAPS]
        whole = found[str(x), "untouched"]
        bias = [float(np.linalg.norm(one.ascent - whole.ascent)) for one in row]
        assert sorted(bias, reverse=True) == bias and bias[0] > 0.01
        square = [float(one.square) for one in row]
        assert sorted(square) == square


@pytest.fixture(scope="module")
def stale():
    """Results by (drift, estimator) of a language model that has moved away from the policy that sampled."""
    with jax.enable_x64(True):
        policy, away = chain(2), chain(7).logits
        # The policy stays and the old one is placed behind it, so that the gradient to be found is one and the same.
        worlds = {str(x): policy.replace(old=policy.logits + x * away) for x in (0.0, 0.3, 0.6)}
        of_row = partial(o.sequence_log_ratio, reduction="sum", cap=None)
        rules = {
            "row": recipe(term=partial(o.unclipped, ratio=of_row), aggregation=o.sequence_mean_token_mean),
            "token": recipe(term=o.unclipped),
            "mean": recipe(term=partial(o.unclipped, ratio=o.sequence_log_ratio)),
        }
        return measured(worlds, rules, group_size=1)


def test_only_the_ratio_of_the_whole_row_is_unbiased(stale):
    """The product over a row corrects for the states too; a token's own ratio (PPO) and GSPO's mean do not."""
    for x in ("0.3", "0.6"):
        near([stale[x, "row"].factor, stale[x, "row"].aside], [1.0, 0.0])
        assert stale[x, "token"].aside > 0.01 and stale[x, "mean"].aside > 0.01
    for name in ("row", "token", "mean"):
        near([stale["0.0", name].factor, stale["0.0", name].aside], [1.0, 0.0])


def test_and_its_variance_is_the_largest(stale):
    """GSPO (arXiv 2507.18071, section 3): the geometric mean of a row's ratios spreads least."""
    spread = [float(stale["0.6", name].variance) for name in ("row", "token", "mean")]
    assert sorted(spread, reverse=True) == spread


def test_the_clip_takes_exactly_the_samples_behind_its_bounds_out_of_the_gradient():
    """PPO (arXiv 1707.06347, equation 7): no gradient where r > 1 + e and A > 0, or r < 1 - e and A < 0.

    The mean is sum pi A grad log pi over the other arms: a bias towards the old policy.
    """
    with jax.enable_x64(True):
        world = bandit(2, prompts=1, arms=4)
        world = world.replace(old=bandit(7, prompts=1, arms=4).logits, reward=world.reward - 1.0)
        low, high = 0.2, 0.28
        rules = {"clipped": recipe(term=partial(o.ppo_clip, low=low, high=high)), "unclipped": recipe(term=o.unclipped)}
        found = measured({"stale": world}, rules, group_size=1)
        arms = arms_of(world)
    ratio = arms.policy / arms.behavior
    stopped = ((ratio > 1 + high) & (arms.reward > 0)) | ((ratio < 1 - low) & (arms.reward < 0))
    assert 0 < stopped.sum() < stopped.size
    near(found["stale", "clipped"].ascent, arms.slope(np.where(stopped, 0.0, arms.policy)))
    near([found["stale", "unclipped"].factor, found["stale", "unclipped"].aside], [1.0, 0.0])
