"""Sums, means and order statistics over the entries a mask selects.

Every function selects before it computes: an entry outside the mask may be nan or infinite and reaches neither the
value nor the gradient. An empty selection gives 0 for sums and means. The dtype of the values is kept.
"""

import chex
import jax
import jax.numpy as jnp

from grpo_jax.types import Array


def select(mask: Array, x: Array, fill: float | bool = 0.0) -> Array:
    """Entries of `x` where `mask` is True and `fill` elsewhere; both of one shape, the dtype of `x`."""
    chex.assert_equal_shape([mask, x])
    return jnp.where(mask, x, jnp.asarray(fill, x.dtype))


def count(mask: Array, *, axis: int | None = None, dtype: jnp.dtype | None = None) -> Array:
    """Number of True entries, as a float (float32 unless said) so that it divides without a cast."""
    return jnp.sum(mask, axis=axis, dtype=dtype or jnp.float32)


def total(x: Array, mask: Array, *, axis: int | None = None) -> Array:
    """Sum of the selected entries."""
    return jnp.sum(select(mask, x), axis=axis)


def mean(x: Array, mask: Array, *, axis: int | None = None) -> Array:
    """Mean of the selected entries, 0 where there is none."""
    return total(x, mask, axis=axis) / jnp.maximum(count(mask, axis=axis, dtype=x.dtype), 1.0)


def variance(x: Array, mask: Array, *, ddof: int = 0) -> Array:
    """Variance of the selected entries in two passes, divisor ``n - ddof``; 0 with fewer than ``ddof + 1``."""
    centred = select(mask, select(mask, x) - mean(x, mask))
    return jnp.sum(jnp.square(centred)) / jnp.maximum(count(mask, dtype=x.dtype) - ddof, 1.0)


def quantile(x: Array, mask: Array, q: float) -> Array:
    """Quantile `q` in [0, 1] of the selected entries with linear interpolation, 0 where there is none.

    With v_0 <= ... <= v_{n-1} the selected values and h = q (n - 1), the result is
    v_floor(h) + (h - floor(h)) (v_ceil(h) - v_floor(h)).
    """
    ordered = jnp.sort(select(mask, x, jnp.inf).ravel())
    place = q * jnp.maximum(count(mask, dtype=x.dtype) - 1.0, 0.0)
    low, high = jnp.floor(place), jnp.ceil(place)
    below, above = ordered[low.astype(jnp.int32)], ordered[high.astype(jnp.int32)]
    value = below + (place - low) * (above - below)
    return jnp.where(jnp.any(mask), value, jnp.zeros_like(value))


def members(group: Array, valid: Array) -> Array:
    """bool[N]: the rows that belong to a group, that is those with a label of at least 0 and ``valid`` True."""
    chex.assert_equal_shape([group, valid])
    return valid & (group >= 0)


def _slots(group: Array, num_groups: int, valid: Array) -> Array:
    """Labels with the rows of no group sent to one extra slot at the end, which the callers cut off."""
    return jnp.where(members(group, valid), group, num_groups)


def segment_sum(x: Array, group: Array, num_groups: int, valid: Array) -> Array:
    """Sum of `x` [N] over the members of each group -> [num_groups]; 0 for an empty group."""
    kept = select(members(group, valid), x)
    return jax.ops.segment_sum(kept, _slots(group, num_groups, valid), num_groups + 1)[:num_groups]


def segment_count(group: Array, num_groups: int, valid: Array, dtype: jnp.dtype | None = None) -> Array:
    """Number of members of each group as a float -> [num_groups]."""
    return segment_sum(jnp.ones(group.shape, dtype or jnp.float32), group, num_groups, valid)


def segment_mean(x: Array, group: Array, num_groups: int, valid: Array) -> Array:
    """Mean of `x` [N] over the members of each group -> [num_groups]; 0 for an empty group."""
    size = segment_count(group, num_groups, valid, x.dtype)
    return segment_sum(x, group, num_groups, valid) / jnp.maximum(size, 1.0)


def segment_max(x: Array, group: Array, num_groups: int, valid: Array) -> Array:
    """Largest `x` [N] of each group -> [num_groups]; minus infinity for an empty group."""
    kept = select(members(group, valid), x, -jnp.inf)
    return jax.ops.segment_max(kept, _slots(group, num_groups, valid), num_groups + 1)[:num_groups]


def segment_min(x: Array, group: Array, num_groups: int, valid: Array) -> Array:
    """Smallest `x` [N] of each group -> [num_groups]; infinity for an empty group."""
    return -segment_max(-x, group, num_groups, valid)


def spread(per_group: Array, group: Array) -> Array:
    """Value of its group for every row: [num_groups] -> [N]. A row of no group gets that of group 0: select it away."""
    return per_group[jnp.maximum(group, 0)]
