"""Metrics by hand, and the sums that make them exact over micro-batches."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import metrics
from grpo_jax import objectives as o
from grpo_jax.types import Batch, Prompts, Reward, Rollouts, TokenStats

RATIO = np.asarray([[0.5, 1.0, 2.0], [1.25, 1.0, 1.0]], np.float32)
MASK = np.asarray([[True, True, True], [True, False, False]])
ADVANTAGE = np.asarray([[-1.0, -1.0, 1.0], [1.0, 1.0, 1.0]], np.float32)


@pytest.fixture
def pair() -> tuple[TokenStats, Batch]:
    """Ratios 0.5, 1, 2 and 1.25; the reference twice as likely as the policy at the first token only."""
    logp = jnp.where(MASK, -1.0, jnp.nan).astype(jnp.float32)
    index = jnp.arange(2, dtype=jnp.int32)
    rollouts = Rollouts(
        prompts=Prompts(tokens=index[:, None], length=jnp.ones_like(index), draw=index, row=index),
        prompt=index,
        sample=index,
        tokens=jnp.zeros((2, 3), jnp.int32),
        length=jnp.asarray([3, 1]),
        stopped=jnp.asarray([False, True]),
        mask=jnp.asarray(MASK),
        logp=logp,
        logp_full=logp,
        version=index,
    )
    batch = Batch(
        rollouts=rollouts,
        mask=jnp.asarray(MASK),
        weight={},
        advantage=jnp.asarray(ADVANTAGE),
        logp_old=logp - jnp.log(RATIO),
        logp_behavior=logp,
        group=index,
        reward=Reward(outcome=jnp.ones(2), valid=jnp.ones(2, bool)),
        logp_ref=logp + jnp.asarray([[math.log(2.0), 0.0, 0.0], [0.0, 0.0, 0.0]]),
    )
    return TokenStats(
        logp=logp, entropy=jnp.where(MASK, jnp.asarray([[1.0, 2.0, 3.0], [6.0, 0.0, 0.0]]), jnp.nan)
    ), batch


def measured(recipe, stats, batch):
    sums = metrics.diagnostic_sums(recipe, stats, batch)
    weight = metrics.diagnostic_weight(batch)
    return metrics.finalise({name: weight * x for name, x in sums.items()})


def test_diagnostics_by_hand(pair):
    got = measured(o.RECIPES["grpo"], *pair)
    # k3 of the log-ratio d: r - log r - 1 at r = 0.5, 1, 2, 1.25
    kl_old = sum(r - math.log(r) - 1 for r in (0.5, 1.0, 2.0, 1.25)) / 4
    ratios = np.asarray([0.5, 1.0, 2.0, 1.25])
    expected = {
        "entropy": (1 + 2 + 3 + 6) / 4,
        "kl/ref": (2 - math.log(2.0) - 1) / 4,
        "kl/old": kl_old,
        "clip/low": 1 / 4,  # r = 0.5 with A = -1
        "clip/high": 2 / 4,  # r = 2 and r = 1.25 with A = 1
        "ratio/ess": ratios.sum() ** 2 / (4 * np.sum(ratios**2)),
    }
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, err_msg=name)


def test_the_load_of_experts_by_hand(pair):
    """Three layers and three experts; the second row has one token, the third layer no experts."""
    one = [[[0, 1], [0, 2], [0, 1]], [[1, 0], [2, 2], [2, 2]]]  # 0: 4 of 8, 1: 3, 2: 1; what is padded counts nowhere
    two = [[[2, 1], [2, 1], [1, 2]], [[1, 2], [0, 0], [0, 0]]]  # 4 and 4 of 8
    choices = jnp.asarray([one, two, np.full((2, 3, 2), -1)], jnp.int32)
    load = metrics.expert_load(choices, jnp.asarray(MASK), experts=3)
    np.testing.assert_allclose(load, [[4 / 8, 3 / 8, 1 / 8], [0, 4 / 8, 4 / 8], [0, 0, 0]], rtol=1e-6)
    rollouts = pair[1].rollouts
    assert metrics.expert_metrics(rollouts, experts=3) == {}
    found = metrics.expert_metrics(rollouts.replace(experts=choices), experts=3)
    entropy = [-sum(p * math.log(p) for p in shares) / math.log(3) for shares in ((0.5, 0.375, 0.125), (0.5, 0.5))]
    np.testing.assert_allclose(found["experts/load_max"], 3 * 0.5, rtol=1e-6)
    np.testing.assert_allclose(found["experts/load_entropy"], sum(entropy) / 2, rtol=1e-6)
    np.testing.assert_allclose(found["experts/unused"], (0 + 1 / 3) / 2, rtol=1e-6)
    demonstrated = rollouts.replace(experts=choices, version=jnp.asarray([-1, 0], jnp.int32))
    # Of the second row alone: a token a layer, two choices, 1/2 and 1/2 of three.
    np.testing.assert_allclose(metrics.expert_metrics(demonstrated, experts=3)["experts/unused"], 1 / 3, rtol=1e-6)


def test_replaced_choices_are_a_share_of_the_sampled_tokens(pair):
    stats, batch = pair
    replaced = jnp.where(MASK, jnp.asarray([[0.5, 0.0, 0.25], [1.0, 0.0, 0.0]]), jnp.nan)
    got = measured(o.RECIPES["grpo"], dataclasses.replace(stats, replaced=replaced), batch)
    np.testing.assert_allclose(got["experts/replaced"], (0.5 + 0.25 + 1.0) / 4, rtol=1e-6)


def test_clip_shares_use_the_bounds_of_the_recipe(pair):
    wide = measured(o.dapo(low=0.6, high=0.28), *pair)
    assert wide["clip/low"] == 0.0 and wide["clip/high"] == 1 / 4  # 0.5 is above 1 - 0.6, 1.25 is below 1.28
    open_above = o.Part(o.token_mean, partial(o.ppo_clip, high=None))
    recipe = dataclasses.replace(o.RECIPES["dapo"], parts=(open_above,))
    assert "clip/high" not in measured(recipe, *pair) and "clip/low" in measured(recipe, *pair)
    assert not {"clip/low", "clip/high"} & measured(o.RECIPES["rloo"], *pair).keys()


def test_clip_shares_are_of_the_ratio_that_is_clipped_and_of_its_bounds(pair):
    """Rows of ratios (0.5, 1, 2) and (1.25): geometric means 1 and 1.25, advantages (-1, -1, 1) and 1."""
    rows = measured(o.gspo(low=0.1, high=0.2), *pair)
    assert rows["clip/low"] == 0.0 and rows["clip/high"] == 1 / 4  # the one token of the second row
    logs = measured(o.gmpo(clip=0.5), *pair)  # exp(-0.5) = 0.61 and exp(0.5) = 1.65
    assert logs["clip/low"] == 1 / 4 and logs["clip/high"] == 1 / 4
    capped = measured(o.cispo_capped(cap=1.1), *pair)
    assert "clip/low" not in capped and capped["clip/high"] == 2 / 4


def test_a_diagnostic_without_its_input_is_left_out(pair):
    stats, batch = pair
    got = measured(
        o.RECIPES["dapo"], dataclasses.replace(stats, entropy=None), dataclasses.replace(batch, logp_ref=None)
    )
    assert got.keys() == {"kl/old", "clip/low", "clip/high", "ratio/ess"}


def test_sums_over_pieces_are_the_sums_over_the_whole(pair):
    stats, batch = pair
    whole = metrics.diagnostic_sums(o.RECIPES["grpo"], stats, batch)
    rows = [jax.tree.map(lambda x, n=n: x[n : n + 1] if x.shape[0] == 2 else x, (stats, batch)) for n in range(2)]
    pieces = [metrics.diagnostic_sums(o.RECIPES["grpo"], *row) for row in rows]
    for name, value in whole.items():
        np.testing.assert_allclose(pieces[0][name] + pieces[1][name], value, rtol=1e-6, err_msg=name)


def test_on_policy_nothing_is_clipped_and_every_token_counts(pair):
    stats, batch = pair
    got = measured(o.RECIPES["grpo"], stats, dataclasses.replace(batch, logp_old=stats.logp))
    assert got["kl/old"] == got["clip/low"] == got["clip/high"] == 0.0 and got["ratio/ess"] == 1.0


def test_diagnostics_of_extreme_and_of_empty_batches_are_finite(pair):
    stats, batch = pair
    for record in (
        dataclasses.replace(batch, logp_old=stats.logp - 500.0),
        dataclasses.replace(batch, logp_old=stats.logp + 500.0),
        dataclasses.replace(batch, mask=jnp.zeros((2, 3), bool)),
    ):
        assert all(np.isfinite(x) for x in measured(o.RECIPES["grpo"], stats, record).values())


def test_no_gradient_flows_through_diagnostics(pair):
    stats, batch = pair

    def total(logp):
        return sum(metrics.diagnostic_sums(o.RECIPES["grpo"], dataclasses.replace(stats, logp=logp), batch).values())

    assert not np.any(jax.grad(total)(stats.logp))


def test_reward_metrics_leave_out_what_could_not_be_scored():
    reward = Reward(
        outcome=jnp.asarray([1.0, 0.0, jnp.nan, 2.0]),
        valid=jnp.asarray([True, True, False, True]),
        components={"format": jnp.asarray([1.0, 1.0, 9.0, 0.0])},
    )
    got = metrics.reward_metrics(reward)
    # mean 1, squares 0 + 1 + 1 over 3 rows
    assert got.keys() == {"reward/mean", "reward/std", "reward/format"}
    np.testing.assert_allclose(got["reward/mean"], 1.0)
    np.testing.assert_allclose(got["reward/std"], math.sqrt(2 / 3), rtol=1e-6)
    np.testing.assert_allclose(got["reward/format"], 2 / 3, rtol=1e-6)


def test_length_metrics(pair):
    assert {k: float(v) for k, v in metrics.length_metrics(pair[1].rollouts).items()} == {
        "length/mean": 2.0,
        "length/stopped": 0.5,
    }


def test_group_metrics_count_groups_with_a_scored_row():
    reward = Reward(outcome=jnp.asarray([1.0, 1.0, 0.0, 1.0, 5.0, 7.0]), valid=jnp.asarray([True] * 5 + [False]))
    got = metrics.group_metrics(reward, jnp.asarray([0, 0, 3, 3, -1, 5]))
    # groups 0 (1, 1: tied) and 3 (0, 1); row 4 has no group, group 5 no scored row
    assert {k: float(v) for k, v in got.items()} == {"groups/count": 2.0, "groups/tied": 0.5, "groups/size": 2.0}
    levels = jnp.asarray([[0, 0, 3, 3, -1, 5], [0, 0, 0, 0, 0, 0]])
    assert metrics.group_metrics(reward, levels) == got
    assert metrics.group_metrics(reward, jnp.zeros((6, 4), jnp.int32)) == {}


def test_the_gap_between_sampler_and_trainer():
    gap = jnp.asarray([[0.0, 1.0, jnp.nan], [3.0, jnp.nan, jnp.nan]])
    mask = jnp.asarray([[True, True, False], [True, False, False]])
    got = metrics.logp_gap(gap, mask)
    np.testing.assert_allclose(got["logp_gap/mean"], 4 / 3, rtol=1e-6)
    assert got["logp_gap/max"] == 3.0
    # place 0.99 * 2 = 1.98 of (0, 1, 3): 1 + 0.98 * 2
    np.testing.assert_allclose(got["logp_gap/p99"], 2.96, rtol=1e-5)


def test_what_a_critic_knows_by_hand(pair):
    """Four tokens: values 0, 1, 1, 2 and targets 1, 1, 1, 3, whose variance is 3/4; differences 1, 0, 0, 1: 1/4."""
    stats, batch = pair
    assert metrics.value_metrics(batch) == {}
    value_old = jnp.asarray([[0.0, 1.0, 1.0], [2.0, jnp.nan, jnp.nan]])
    returns = jnp.asarray([[1.0, 1.0, 1.0], [3.0, jnp.nan, jnp.nan]])
    batch = dataclasses.replace(batch, value_old=value_old, returns=returns)
    expected = {"value/mean": 1.0, "returns/mean": 1.5, "value/explained_variance": 1 - (1 / 4) / (3 / 4)}
    assert metrics.value_metrics(batch) == pytest.approx(expected)
    flat = dataclasses.replace(batch, returns=jnp.ones_like(returns))
    assert metrics.value_metrics(flat)["value/explained_variance"] == 0.0
    # The critic has moved to 1, 1, 1, 2.5; the clip of 0.1 lets the first go to 0.1 and the last to 2.1.
    stats = dataclasses.replace(stats, value=jnp.asarray([[1.0, 1.0, 1.0], [2.5, 0.0, 0.0]]))
    loss = measured(o.ppo_critic(clip_value=0.1), stats, batch)["value/loss"]
    np.testing.assert_allclose(loss, (0.9**2 + 0.9**2) / 2 / 4, rtol=1e-6)
    assert "value/loss" not in measured(o.RECIPES["grpo"], stats, batch)


def test_a_component_is_averaged_over_the_rows_that_have_it():
    nan = math.nan
    components = {"format": jnp.asarray([0.5, nan, 1.0, 9.0]), "never": jnp.full(4, nan)}
    reward = Reward(
        outcome=jnp.asarray([1.0, 0.0, 1.0, 7.0]),
        valid=jnp.asarray([True, True, True, False]),
        components=components,
        greedy=jnp.asarray([1.0, 1.0, 0.5, 8.0]),
    )
    got = metrics.reward_metrics(reward)
    assert got["reward/format"] == (0.5 + 1.0) / 2 and got["reward/never"] == 0.0
    np.testing.assert_allclose(got["reward/greedy"], (1.0 + 1.0 + 0.5) / 3, rtol=1e-6)
    assert "reward/greedy" not in metrics.reward_metrics(reward.replace(greedy=None))


def test_an_exact_divergence_takes_the_place_of_its_estimate(pair):
    stats, batch = pair
    exact = jnp.where(MASK, jnp.asarray([[0.3, 0.5, 0.7], [0.1, 0.0, 0.0]]), jnp.nan)
    got = measured(o.grpo_exact_kl(), dataclasses.replace(stats, kl_full=exact), batch)
    np.testing.assert_allclose(got["kl/ref"], (0.3 + 0.5 + 0.7 + 0.1) / 4, rtol=1e-6)


def test_the_divergence_behind_the_updates_by_hand(pair):
    stats, batch = pair
    got = metrics.kl_after(stats.logp, batch)
    np.testing.assert_allclose(
        got["kl/old_after"], sum(r - math.log(r) - 1 for r in (0.5, 1.0, 2.0, 1.25)) / 4, rtol=1e-5
    )
