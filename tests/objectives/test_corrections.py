"""Importance weights and rejections by hand: rows of two tokens with old / behaviour as given."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import objectives as o

# products 1, 3, 0.5; geometric means 1, sqrt 3, sqrt 0.5
MISMATCH = [[2.0, 0.5], [3.0, 1.0], [0.5, 1.0]]


@pytest.fixture
def given(by_hand):
    return by_hand([[2.0, 1.0]] * 3, mismatch=MISMATCH)


def test_weights_of_tokens(given):
    np.testing.assert_allclose(o.importance(*given), MISMATCH, rtol=1e-5)
    np.testing.assert_allclose(o.truncated(*given, upper=2.5), [[2.0, 0.5], [2.5, 1.0], [0.5, 1.0]], rtol=1e-5)
    two_sided = o.truncated(*given, lower=0.8, upper=2.5)
    np.testing.assert_allclose(two_sided, [[2.0, 0.8], [2.5, 1.0], [0.8, 1.0]], rtol=1e-5)
    masked = o.masked_importance(*given, lower=0.6, upper=2.5)
    np.testing.assert_allclose(masked, [[2.0, 0.0], [0.0, 1.0], [0.0, 1.0]], rtol=1e-5)


def test_weights_of_rows_stand_on_every_position(given):
    rows = o.truncated(*given, of=o.mismatch_sum, upper=2.0)
    np.testing.assert_allclose(rows, [[1.0] * 2, [2.0] * 2, [0.5] * 2], rtol=1e-5)
    mean = o.importance(*given, of=o.mismatch_mean)
    np.testing.assert_allclose(mean, np.sqrt([[1.0] * 2, [3.0] * 2, [0.5] * 2]), rtol=1e-5)
    np.testing.assert_array_equal(o.kept_rows(*given, lower=0.8, upper=1.8), [[1, 1], [1, 1], [0, 0]])


def test_the_policy_itself_can_be_corrected(given):
    # new / behaviour = new / old * old / behaviour, new / old = 2 and 1
    got = o.importance(*given, of=o.log_ratio_behavior)
    np.testing.assert_allclose(got, [[4.0, 0.5], [6.0, 1.0], [1.0, 1.0]], rtol=1e-5)


def test_statistics_are_formed_before_they_are_reduced(given):
    # k3 of old / behaviour: w - log w - 1
    k3 = np.asarray(MISMATCH) - np.log(MISMATCH) - 1
    np.testing.assert_allclose(o.statistic(*given), k3, rtol=1e-4, atol=1e-6)
    for level, expected in {"sum": k3.sum(1), "mean": k3.mean(1), "max": k3.max(1)}.items():
        got = o.statistic(*given, level=level)
        np.testing.assert_allclose(got, np.repeat(expected[:, None], 2, axis=1), rtol=1e-4, atol=1e-6, err_msg=level)


def test_bounds_on_the_exponential_of_k1_are_on_the_inverse_weight(given):
    # row sums of k1: exp = behaviour / old = 1, 1/3, 2
    got = o.kept(*given, estimator=o.k1, level="sum", lower=0.4, upper=2.5, exponential=True)
    np.testing.assert_array_equal(got, [[1, 1], [0, 0], [1, 1]])


def test_rejection_in_the_term_keeps_the_denominator_and_in_the_aggregation_narrows_it(given):
    stats, batch = given
    keep = partial(o.kept, estimator=o.k1, level="sum", lower=0.4, upper=2.5, exponential=True)
    narrowed = o.restricted(o.token_mean, to=partial(o.recorded, weight=keep))(batch)
    np.testing.assert_allclose(narrowed, [[1 / 4] * 2, [0] * 2, [1 / 4] * 2], rtol=1e-6)
    factor = o.token_mean(batch) * keep(stats, batch)
    np.testing.assert_allclose(factor, [[1 / 6] * 2, [0] * 2, [1 / 6] * 2], rtol=1e-6)


def test_bad_rows_that_are_off_policy_are_left_out(by_hand):
    # mean of log behaviour / new: -(log 4 + log 1) / 2 < 0, (log 4 + log 1) / 2 = 0.69
    ratio = [[4.0, 1.0], [0.25, 1.0], [0.25, 1.0]]
    given = by_hand(ratio, advantage=[[-1.0], [-1.0], [1.0]])
    np.testing.assert_array_equal(o.off_policy_mask(*given, threshold=0.5), [[1, 1], [0, 0], [1, 1]])
    np.testing.assert_array_equal(o.off_policy_mask(*given, threshold=0.7), np.ones((3, 2)))
    against_old = o.off_policy_mask(*given, threshold=0.5, of=o.log_ratio)
    np.testing.assert_array_equal(against_old, [[1, 1], [0, 0], [1, 1]])


def test_extreme_mismatches_give_finite_weights(by_hand):
    given = by_hand([[1.0, 1.0]], mismatch=[[1e30, 1e-30]])
    for weight in (o.importance, o.truncated, o.masked_importance, partial(o.importance, of=o.mismatch_sum)):
        assert np.all(np.isfinite(weight(*given)))
    assert np.array_equal(o.kept(*given, upper=0.02), [[0, 0]])


def test_an_unknown_level_is_refused(given):
    with pytest.raises(ValueError, match=r"level: got 'row', allowed 'token', 'sum', 'mean' and 'max'"):
        o.statistic(*given, level="row")


def test_no_bound_keeps_everything():
    value = jnp.asarray([0.0, 1.0, 2.0])
    np.testing.assert_array_equal(o.within(value, None, None), [True, True, True])
    np.testing.assert_array_equal(o.within(value, 1.0, None), [False, True, True])  # bounds are inclusive
    np.testing.assert_array_equal(o.within(value, None, 1.0), [True, True, False])
