"""Masked sums: what is not selected does not exist, in the value and in the gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import masked

X = jnp.asarray([1.0, 2.0, jnp.nan, 6.0, jnp.inf])
MASK = jnp.asarray([True, True, False, True, False])
NONE = jnp.zeros(5, bool)


def test_sums_and_means_are_over_the_selected_entries():
    assert masked.total(X, MASK) == 1 + 2 + 6
    assert masked.count(MASK) == 3
    assert masked.mean(X, MASK) == (1 + 2 + 6) / 3
    # deviations from the mean 3: -2, -1, 3, squares 4 + 1 + 9 = 14
    np.testing.assert_allclose(masked.variance(X, MASK), 14 / 3, rtol=1e-6)
    np.testing.assert_allclose(masked.variance(X, MASK, ddof=1), 14 / 2, rtol=1e-6)


def test_an_axis_is_reduced_alone():
    x = jnp.asarray([[1.0, 3.0, jnp.nan], [5.0, jnp.nan, jnp.nan], [jnp.nan] * 3])
    mask = jnp.asarray([[True, True, False], [True, False, False], [False] * 3])
    np.testing.assert_array_equal(masked.mean(x, mask, axis=1), [2.0, 5.0, 0.0])
    np.testing.assert_array_equal(masked.count(mask, axis=1), [2.0, 1.0, 0.0])
    np.testing.assert_array_equal(masked.total(x, mask, axis=0), [6.0, 3.0, 0.0])


def test_an_empty_selection_gives_zero():
    for value in (masked.total(X, NONE), masked.mean(X, NONE), masked.variance(X, NONE), masked.quantile(X, NONE, 0.5)):
        assert value == 0.0
    assert masked.variance(X, jnp.asarray([True, False, False, False, False]), ddof=1) == 0.0


@pytest.mark.parametrize("reduce", [masked.total, masked.mean, masked.variance])
def test_no_gradient_and_no_nan_from_outside_the_mask(reduce):
    gradient = jax.grad(lambda x: reduce(x, MASK))(X)
    assert np.all(np.isfinite(gradient))
    np.testing.assert_array_equal(np.asarray(gradient)[[2, 4]], 0.0)


@pytest.mark.parametrize("q", [0.0, 0.2, 0.5, 0.99, 1.0])
def test_quantiles_interpolate_linearly(q: float):
    x = np.asarray([[5.0, -1.0, 2.5], [7.0, 0.5, 100.0]], np.float32)
    mask = np.asarray([[True, True, True], [True, True, False]])
    np.testing.assert_allclose(
        masked.quantile(jnp.asarray(x), jnp.asarray(mask), q), np.quantile(x[mask], q), rtol=1e-6
    )


def test_segments_are_sums_over_interleaved_members():
    x = jnp.asarray([1.0, 10.0, 2.0, jnp.nan, 30.0, jnp.nan])
    group = jnp.asarray([0, 2, 0, 2, 2, -1])
    valid = jnp.asarray([True, True, True, False, True, True])
    np.testing.assert_array_equal(masked.segment_sum(x, group, 4, valid), [3.0, 0.0, 40.0, 0.0])
    np.testing.assert_array_equal(masked.segment_count(group, 4, valid), [2.0, 0.0, 2.0, 0.0])
    np.testing.assert_array_equal(masked.segment_mean(x, group, 4, valid), [1.5, 0.0, 20.0, 0.0])
    np.testing.assert_array_equal(masked.segment_max(x, group, 4, valid), [2.0, -np.inf, 30.0, -np.inf])
    np.testing.assert_array_equal(masked.segment_min(x, group, 4, valid), [1.0, np.inf, 10.0, np.inf])
    means = masked.segment_mean(x, group, 4, valid)
    np.testing.assert_array_equal(masked.spread(means, group)[:5], [1.5, 20.0, 1.5, 20.0, 20.0])


def test_the_dtype_is_kept():
    with jax.enable_x64(True):
        x = jnp.asarray([1.0, 2.0], jnp.float64)
        mask = jnp.asarray([True, True])
        assert {f(x, mask).dtype for f in (masked.total, masked.mean, masked.variance)} == {jnp.dtype(jnp.float64)}
        assert masked.segment_mean(x, jnp.asarray([0, 0]), 1, mask).dtype == jnp.float64


def test_selecting_with_another_shape_is_an_error():
    with pytest.raises(AssertionError):
        masked.select(MASK[:4], X)
