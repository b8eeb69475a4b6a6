"""Ranks, quantiles and the prepare steps made of them."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import masked
from grpo_jax import objectives as o
from grpo_jax.objectives.selection import quantile

KEY = jax.random.key(0)


def numbers(dtype) -> tuple[np.ndarray, np.ndarray]:
    """Both signs, equal ones, both zeros, tiny and infinite ones, and nan outside the mask."""
    rng = np.random.default_rng(0)
    x = rng.choice([-3.0, -0.0, 0.0, 1e-40, 2.5, 2.5, 7.0, np.inf, -np.inf], (6, 7)) * rng.choice([1.0, 1.5], (6, 7))
    mask = rng.random((6, 7)) < 0.7
    return np.where(mask, x, np.nan).astype(dtype), mask


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_largest_are_those_of_a_stable_sort(dtype):
    x, mask = numbers(dtype)
    with jax.enable_x64(True):
        ours = jax.jit(o.largest)
        order = np.argsort(-np.where(mask, x, -np.inf).ravel() - 0.0, kind="stable")
        order = order[mask.ravel()[order]]
        for number in (1, 2, 5, 17, int(mask.sum()), 100):
            expected = np.zeros(x.size, bool)
            expected[order[:number]] = True
            got = ours(jnp.asarray(x), jnp.asarray(mask), jnp.asarray(number, jnp.int32))
            np.testing.assert_array_equal(np.asarray(got).ravel(), expected, err_msg=str(number))


def test_nothing_is_chosen_of_nothing():
    got = o.largest(jnp.ones((2, 3)), jnp.zeros((2, 3), bool), jnp.asarray(1, jnp.int32))
    assert not np.any(got)


@pytest.mark.parametrize("q", [0.0, 0.3, 0.8, 1.0])
def test_the_quantile_is_that_of_numpy(q: float):
    rng = np.random.default_rng(1)
    x, mask = rng.normal(size=(5, 9)).astype(np.float32), rng.random((5, 9)) < 0.8
    got = quantile(jnp.asarray(x), jnp.asarray(mask), q=q)
    np.testing.assert_allclose(got, np.quantile(x[mask], q), rtol=1e-5)
    np.testing.assert_allclose(got, masked.quantile(jnp.asarray(x), jnp.asarray(mask), q), rtol=1e-6)
    assert quantile(jnp.asarray(x), jnp.zeros((5, 9), bool), q=q) == 0.0


@pytest.fixture
def given(by_hand):
    """Five scored tokens with A = 1, 1, 1, -1, -1 (mean 0.2) and x = -1, -2, -3, -4, -5 (mean -3); nan elsewhere."""
    mask = [[True] * 3, [True, True, False]]
    stats, batch = by_hand([[1.0] * 3] * 2, advantage=[[1.0] * 3, [-1.0, -1.0, np.nan]], mask=mask)
    logp = jnp.asarray([[-1.0, -2.0, -3.0], [-4.0, -5.0, np.nan]])
    entropy = jnp.asarray([[0.1, 0.5, 0.2], [0.4, 0.3, np.nan]])
    return dataclasses.replace(stats, logp=logp, entropy=entropy), dataclasses.replace(batch, logp_old=logp)


def test_the_covariance_is_centred_over_scored_tokens(given):
    # (0.8)(2), (0.8)(1), 0; (-1.2)(-1), (-1.2)(-2)
    np.testing.assert_allclose(o.covariance(*given), [[1.6, 0.8, 0.0], [1.2, 2.4, 0.0]], rtol=1e-5)


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, [[0, 0, 0], [0, 1, 0]]), (0.5, [[1, 0, 0], [0, 1, 0]])])
def test_kl_cov_selects_the_share_of_largest_covariance_and_at_least_one(given, fraction: float, expected):
    got = o.kl_cov_tokens(*given, key=KEY, fraction=fraction).select["kl_cov"]  # int(0.5 * 5) = 2
    np.testing.assert_array_equal(got, expected)


def test_clip_cov_drops_candidates_only(given):
    everything = partial(o.clip_cov_tokens, fraction=1.0, cov_low=1.0, cov_high=2.0)
    got = everything(*given, key=KEY).select["clip_cov"]
    np.testing.assert_array_equal(np.asarray(got)[[0, 0, 0, 1, 1], [0, 1, 2, 0, 1]], [0, 1, 1, 0, 1])
    stats, batch = given
    clipped = dataclasses.replace(batch, logp_old=batch.logp_old - jnp.asarray([[0.5, 0, 0], [0, 0, 0]]))  # r = 1.65
    got = everything(stats, clipped, KEY).select["clip_cov"]
    np.testing.assert_array_equal(np.asarray(got)[[0, 0, 0, 1, 1], [0, 1, 2, 0, 1]], [1, 1, 1, 0, 1])
    one = o.clip_cov_tokens(*given, key=KEY, fraction=0.2, cov_low=0.5, cov_high=9.0).select["clip_cov"]
    assert np.sum(~np.asarray(one)) == 1


def test_the_draw_of_clip_cov_belongs_to_the_token_whatever_the_order(laboratory):
    draw, records, batch_of = laboratory
    step = partial(o.clip_cov_tokens, fraction=0.3, cov_low=-9.0, cov_high=9.0)
    arrays = draw()
    order = np.random.default_rng(2).permutation(9)
    selected = []
    for each in (arrays, {name: x[order] for name, x in arrays.items()}):
        stats, collected = records(each)
        selected.append(np.asarray(step(stats, batch_of(collected, o.RECIPES["ppo_clip"]), KEY).select["clip_cov"]))
    np.testing.assert_array_equal(selected[0][order], selected[1])
    stats, collected = records(arrays)
    other = step(stats, batch_of(collected, o.RECIPES["ppo_clip"]), jax.random.key(1)).select["clip_cov"]
    assert np.any(selected[0] != np.asarray(other))
    assert np.sum(~selected[0]) == int(0.3 * 30)


def test_top_entropy_keeps_what_reaches_the_interpolated_quantile(given):
    # 0.1 .. 0.5: the quantile 0.6 is at index 2.4, 0.3 + 0.4 * 0.1 = 0.34
    got = o.top_entropy_tokens(*given, key=KEY, fraction=0.4).select["top_entropy"]
    np.testing.assert_array_equal(got, [[0, 1, 0], [1, 0, 0]])
    assert np.sum(o.top_entropy_tokens(*given, key=KEY, fraction=1.0).select["top_entropy"]) == 5
    with pytest.raises(ValueError, match=r"fraction: got 0.0, allowed \(0, 1\]"):
        o.top_entropy_tokens(*given, key=KEY, fraction=0.0)
    with pytest.raises(ValueError, match='ask for want=\\("entropy",\\)'):
        o.top_entropy_tokens(dataclasses.replace(given[0], entropy=None), given[1], KEY)


def test_demonstrations_are_rows_that_no_version_of_the_policy_sampled(given):
    stats, batch = given
    rollouts = dataclasses.replace(batch.rollouts, version=jnp.asarray([3, -1]))
    got = o.demonstrations(stats, dataclasses.replace(batch, rollouts=rollouts), KEY).select["off_policy"]
    np.testing.assert_array_equal(got, [[0, 0, 0], [1, 1, 0]])


def test_normalised_weights_average_one(by_hand):
    mask = [[True, True], [True, False], [False, False]]
    given = by_hand([[1.0, 1.0]] * 3, mismatch=[[2.0, 0.5], [0.5, 1.0], [1.0, 1.0]], mask=mask)
    tokens = o.normalized_weight(*given, key=KEY, weight=o.importance).select["weight"]  # mean of 2, 0.5, 0.5 is 1
    np.testing.assert_allclose(np.asarray(tokens)[[0, 0, 1], [0, 1, 0]], [2.0, 0.5, 0.5], rtol=1e-5)
    rows = partial(o.importance, of=o.mismatch_sum)  # rows with tokens 1 and 0.5, mean 0.75
    got = o.normalized_weight(*given, key=KEY, weight=rows, level="row", name="mine").select["mine"]
    np.testing.assert_allclose(np.asarray(got)[:2, 0], [1 / 0.75, 0.5 / 0.75], rtol=1e-5)
    with pytest.raises(ValueError, match="level: got 'batch', allowed 'token' and 'row'"):
        o.normalized_weight(*given, key=KEY, weight=rows, level="batch")


def test_what_was_not_prepared_is_named(given):
    with pytest.raises(ValueError, match=r"Batch.select: got no 'kl_cov', there are: none: add the prepare step"):
        o.chosen(*given, name="kl_cov")


def test_only_what_binds_counts_as_stopped():
    r, advantage = jnp.asarray([0.5, 0.5, 2.0, 2.0]), jnp.asarray([-1.0, 1.0, -1.0, 1.0])
    np.testing.assert_array_equal(o.stopped_by_clip(r, advantage, 0.8, 1.2), [1, 0, 0, 1])
    np.testing.assert_array_equal(o.stopped_by_clip(r, advantage, None, None), [0, 0, 0, 0])
