"""Whitening over tokens and rows: hand numbers, a float64 twin, exact zeros."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import advantages as a
from grpo_jax.testing.rows import NOWHERE, OUTCOMES, tiny_collected, tiny_labels

MASK = jnp.asarray([[True, True], [True, False]])
X = jnp.asarray([[1.0, 4.0], [7.0, jnp.nan]])


def test_hand_numbers():
    # 1, 4, 7: mean 4, sample variance 9, population 6
    np.testing.assert_allclose(a.whiten(X, MASK, eps=0.0), [[-1, 0], [1, 0]], rtol=1e-6)
    np.testing.assert_allclose(a.whiten(X, MASK, eps=7.0), [[-0.75, 0], [0.75, 0]], rtol=1e-6)  # sqrt(9 + 7) = 4
    np.testing.assert_allclose(a.whiten(X, MASK, eps=7.0, eps_mode="max"), [[-1, 0], [1, 0]], rtol=1e-6)
    np.testing.assert_allclose(a.whiten(X, MASK, eps=36.0, eps_mode="max"), [[-0.5, 0], [0.5, 0]], rtol=1e-6)
    root = 3 / 6**0.5
    np.testing.assert_allclose(a.whiten(X, MASK, std="population", eps=0.0), [[-root, 0], [root, 0]], rtol=1e-6)
    np.testing.assert_allclose(a.whiten(X, MASK, eps=0.0, shift_mean=False), [[3, 4], [5, 0]], rtol=1e-6)


@pytest.mark.parametrize("value", [0.35, 0.95, 1 / 3])
def test_equal_entries_give_exactly_zero(value: float):
    x = jnp.full((3, 7), value)
    np.testing.assert_array_equal(a.whiten(x, jnp.ones((3, 7), bool), eps=0.0), 0.0)


def test_without_entries_there_is_nothing():
    np.testing.assert_array_equal(a.whiten(X, jnp.zeros((2, 2), bool)), 0.0)


def test_a_deviation_is_needed():
    with pytest.raises(ValueError, match="std is 'none'; allowed are 'sample', 'population'"):
        a.whiten(X, MASK, std="none")
    with pytest.raises(ValueError, match="eps_mode is 'sub'"):
        a.whiten(X, MASK, eps_mode="sub")


def test_strategies_equal_the_definitions():
    collected, labels = tiny_collected(), tiny_labels()
    mask = np.asarray(collected.rollouts.mask) & ~np.asarray(NOWHERE)[:, None]
    reward, group = np.asarray(OUTCOMES), np.asarray(labels)
    centred = np.zeros(12)
    for g in range(4):
        rows = np.flatnonzero((group == g) & ~np.asarray(NOWHERE))
        centred[rows] = reward[rows] - reward[rows].mean() if len(rows) > 1 else 0.0

    def by_token(row: np.ndarray, ddof: int) -> np.ndarray:
        x = np.broadcast_to(row[:, None], mask.shape)
        return np.where(mask, (x - x[mask].mean()) / x[mask].std(ddof=ddof), 0.0)

    np.testing.assert_allclose(a.reinforce_pp_baseline(collected, labels, {})[0], by_token(centred, 1), atol=1e-5)
    np.testing.assert_allclose(a.reinforce_batch_norm(collected, labels, {})[0], by_token(reward, 0), atol=1e-5)
    again, _ = a.whitened(collected, labels, {}, advantage=a.group_centered)
    np.testing.assert_allclose(again, by_token(centred, 1), atol=1e-5)
    # By rows: every row with a token weighs 1, however long it is.
    some = mask.any(axis=1)
    expected = (centred - centred[some].mean()) / centred[some].std(ddof=1)
    got, _ = a.renormalized(collected, labels, {}, advantage=a.group_centered, eps=0.0)
    np.testing.assert_allclose(got, np.where(mask, expected[:, None], 0.0), atol=1e-5)


def test_a_group_of_one_keeps_its_reward_before_whitening_where_it_says_so():
    collected, labels = tiny_collected(), tiny_labels()
    raw = partial(a.reinforce_pp_baseline, singleton="raw")
    lonely = np.asarray(labels) == 2  # reward 2.0, above the mean
    assert (
        raw(collected, labels, {})[0][lonely, 0] > a.reinforce_pp_baseline(collected, labels, {})[0][lonely, 0]
    ).all()
