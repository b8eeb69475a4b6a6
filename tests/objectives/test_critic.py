"""The clipped value loss by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import objectives as o


@pytest.fixture
def given(by_hand):
    """Targets 1; values from 0 to 0.1, 0.5, -0.5, and from 2 to 1.5."""
    stats, batch = by_hand([[1.0] * 4])
    stats = dataclasses.replace(stats, value=jnp.asarray([[0.1, 0.5, -0.5, 1.5]]))
    return stats, dataclasses.replace(batch, returns=jnp.ones((1, 4)), value_old=jnp.asarray([[0.0, 0.0, 0.0, 2.0]]))


def test_the_larger_of_the_two_squares_counts(given):
    # clipped values 0.1, 0.2, -0.2, 1.8; distances to 1: max(0.9, 0.9), max(0.5, 0.8), max(1.5, 1.2), max(0.5, 0.8)
    expected = [[0.9**2 / 2, 0.8**2 / 2, 1.5**2 / 2, 0.8**2 / 2]]
    np.testing.assert_allclose(o.value_clip(*given), expected, rtol=1e-6)
    np.testing.assert_allclose(o.clipped_value(*given, clip=0.2), [[0.1, 0.2, -0.2, 1.8]], rtol=1e-6)
    plain = [[0.9**2 / 2, 0.5**2 / 2, 1.5**2 / 2, 0.5**2 / 2]]
    np.testing.assert_allclose(o.value_clip(*given, clip=None), plain, rtol=1e-6)


def test_the_gradient_stops_where_the_value_has_moved_far_enough_towards_the_target(given):
    stats, batch = given
    slope = jax.grad(lambda v: jnp.sum(o.value_clip(dataclasses.replace(stats, value=v), batch)))(stats.value)
    np.testing.assert_allclose(slope, [[-0.9, 0.0, -1.5, 0.0]], rtol=1e-6)  # v - R, away from the target too


def test_what_is_missing_is_named(given):
    stats, batch = given
    with pytest.raises(ValueError, match=r"Batch.value_old: got None.*train with a critic"):
        o.value_clip(stats, dataclasses.replace(batch, value_old=None))
    with pytest.raises(ValueError, match=r"TokenStats.value: got None"):
        o.value_clip(dataclasses.replace(stats, value=None), batch)
    with pytest.raises(ValueError, match=r"Batch.returns: got None"):
        o.value_clip(stats, dataclasses.replace(batch, returns=None))
    assert np.all(np.isfinite(o.value_clip(stats, dataclasses.replace(batch, value_old=None), clip=None)))
