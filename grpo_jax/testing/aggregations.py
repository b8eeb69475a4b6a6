"""The laws of aggregations, on twelve rows."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.objectives import Aggregation
from grpo_jax.testing import rows as tiny
from grpo_jax.types import Array, Batch

_alike = partial(np.allclose, rtol=1e-5, atol=1e-7)

Compiled = Callable[[Batch], np.ndarray]


def check_aggregation(aggregation: Aggregation, *, total: float | None = None) -> None:
    """Check that an aggregation obeys the laws on which micro-batches, shards, padding and dropped rows rely.

    Shape and dtype; no weight below 0, and 0 outside the mask; weights that do not change with log-probabilities, the
    order of the rows, padding, or rows that are not in the mask; zeros for a batch without tokens.

    Args:
        aggregation: ``Batch -> f32[N,T]``, its settings bound with `functools.partial`.
        total: what all weights sum to where every row has a token: 1 for a mean over tokens; None: nothing is said.

    Raises:
        AssertionError: a law is broken; the text says which, and what to do.
    """
    name, batch = tiny.name_of(aggregation), tiny.tiny_batch()
    usual = _eager(aggregation, name, batch)
    with jax.enable_x64(True):
        _eager(aggregation, name, tiny.tiny_batch(dtype="float64"))
    mask = np.asarray(batch.mask)
    assert np.all(np.isfinite(usual)) and np.all(usual >= 0), (
        f"{name} gives a weight that is negative or not finite: the sign of a token belongs into its term"
    )
    assert not usual[~mask].any(), (
        f"{name} gives weight outside Batch.mask, to padding or to rows that do not count: multiply by the mask"
    )
    assert usual.any(), f"{name} gives no token a weight"
    compiled = _compile(aggregation, name)
    assert _alike(usual, compiled(batch)), (
        f"{name} gives other weights when it is compiled: it reads or changes something outside its argument"
    )
    _check_policy(aggregation, compiled, name, batch)
    _check_rows(compiled, name, batch)
    _check_empty(aggregation, compiled, name, batch)
    if total is not None:
        found = float(compiled(tiny.tiny_batch(every_row=True)).sum())
        assert np.isclose(found, total, rtol=1e-5), (
            f"{name} sums to {found:g} where {total:g} was declared: correct the denominator, or check it with total="
        )


def _eager(aggregation: Aggregation, name: str, batch: Batch) -> np.ndarray:
    value = aggregation(batch)
    wanted, dtype = batch.mask.shape, batch.advantage.dtype
    assert isinstance(value, jax.Array) and value.shape == wanted, (
        f"{name} returns shape {jnp.shape(value)} for rows and tokens {wanted}: an aggregation gives the weight of"
        " every token"
    )
    assert value.dtype == dtype, (
        f"{name} returns {value.dtype} for a batch in {dtype}: make the mask a number by"
        " mask.astype(batch.advantage.dtype)"
    )
    return np.asarray(value)


def _compile(aggregation: Aggregation, name: str) -> Compiled:
    jitted = jax.jit(aggregation)

    def weights(batch: Batch) -> np.ndarray:
        return np.asarray(tiny.compilable(jitted, name, batch))

    return weights


def _check_policy(aggregation: Aggregation, compiled: Compiled, name: str, batch: Batch) -> None:
    """A weight is data: no log-probability changes it, and no gradient flows through it."""

    def moved(by: Array) -> Batch:
        rollouts = dataclasses.replace(
            batch.rollouts, logp=batch.rollouts.logp + by, logp_full=batch.rollouts.logp_full + by
        )
        names = ("logp_old", "logp_behavior", "logp_ref")
        return dataclasses.replace(batch, rollouts=rollouts, **{field: getattr(batch, field) + by for field in names})

    by = jnp.asarray(np.random.default_rng(2).normal(size=batch.mask.shape), batch.advantage.dtype)
    _, slope = jax.vjp(lambda by: aggregation(moved(by)), by)
    still = not np.asarray(slope(by)[0]).any()
    assert still and np.array_equal(compiled(batch), compiled(moved(by))), (
        f"{name} changes with log-probabilities: weights are computed once and may not read the policy; what does is a"
        " term, or a factor by objectives.reweight"
    )


def _check_rows(compiled: Compiled, name: str, batch: Batch) -> None:
    """Order, padding, and what is not in the mask change no weight."""
    usual = compiled(batch)
    order = np.random.default_rng(1).permutation(tiny.ROWS)
    assert _alike(usual[order], compiled(tiny.in_order(batch, order))), (
        f"{name} depends on the order of the rows: a row names its prompt and group, Rollouts.prompt and Batch.group"
    )
    assert np.array_equal(usual, compiled(tiny.spoiled_batch(batch))), (
        f"{name} changes with nan outside Batch.mask: select before computing, as grpo_jax.masked does"
    )
    wide = compiled(tiny.widened(batch))
    assert _alike(usual, wide[:, : tiny.WIDTH]) and not wide[:, tiny.WIDTH :].any(), (
        f"{name} depends on the width of the padding: count Batch.mask, not the array"
    )
    more = tiny.grown(batch)
    extra = np.arange(more.mask.shape[0]) >= tiny.ROWS
    valid = more.reward.valid & jnp.asarray(~extra)
    reward = dataclasses.replace(more.reward, valid=valid)
    more = dataclasses.replace(more, mask=more.mask & valid[:, None], reward=reward)
    value = compiled(tiny.spoiled_batch(more))
    assert _alike(usual, value[: tiny.ROWS]) and not value[tiny.ROWS :].any(), (
        f"{name} changes with further rows that could not be scored: such a row is in no denominator; count"
        " objectives.counted(batch), not the array"
    )


def _check_empty(aggregation: Aggregation, compiled: Compiled, name: str, batch: Batch) -> None:
    """Without tokens there are zeros, compiled (where 0 / 0 may be rewritten) or not."""
    empty = dataclasses.replace(batch, mask=jnp.zeros_like(batch.mask))
    assert not np.asarray(aggregation(empty)).any() and not compiled(empty).any(), (
        f"{name} does not give zeros for a batch without tokens: divide by jnp.maximum(count, 1.0)"
    )
