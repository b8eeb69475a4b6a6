"""The laws of terms, on a batch of four rows."""

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.objectives import Part, Term, clean, loss, token_mean, weights
from grpo_jax.types import Array, Batch, Prompts, Reward, Rollouts, TokenStats

LENGTHS = (5, 3, 1, 4)
EXTREME = 200.0
"""Nats: exp(200) is infinite in float32, and logits of an untrained or broken model do reach such distances."""

_STATS = ("logp", "entropy", "value", "sum_pi_squared", "kl_full")
_TOKENS = ("advantage", "logp_old", "logp_behavior", "logp_ref", "returns", "value_old")


def check_term(term: Term, *, select: Iterable[str] = (), coef: Iterable[str] = ()) -> None:
    """Check that `term` obeys the laws on which micro-batches, shards, padding and dropped rows rely.

    Args:
        term: ``(TokenStats, Batch) -> f32[N,T]``.
        select: names in ``Batch.select`` that the term reads; they get random bool[N,T].
        coef: names in ``Batch.coef`` that the term reads; they get 0.5.

    Raises:
        AssertionError: a law is broken; the text says which, and what to do.
    """
    stats, batch = _tiny(tuple(select), tuple(coef))
    name = getattr(term, "__name__", repr(term))
    value = term(*clean(stats, batch))
    shape, dtype = stats.logp.shape, stats.logp.dtype
    assert isinstance(value, jax.Array) and value.shape == shape, (
        f"{name} returns shape {jnp.shape(value)} for rows and tokens {shape}: a term gives one number a token"
    )
    assert value.dtype == dtype, (
        f"{name} returns {value.dtype} for log-probabilities in {dtype}: keep the input's dtype"
    )
    total, gradient = _evaluate(term, stats, batch)
    assert np.isfinite(total) and _finite(gradient), f"{name} is not finite, or its gradient is not, on ordinary input"
    _check_rows(term, name, stats, batch)
    _check_mask(term, name, stats, batch)
    _check_padding(term, name, stats, batch)
    _check_extremes(term, name, stats, batch)


def _check_rows(term: Term, name: str, stats: TokenStats, batch: Batch) -> None:
    """A row's entries depend on that row alone."""
    other_stats, other_batch = _tiny(tuple(batch.select), tuple(batch.coef), seed=1)
    keep = jnp.arange(len(LENGTHS)) == 0

    def mix(mine: Array, other: Array) -> Array:
        if mine.ndim == 0 or mine.shape[0] != len(LENGTHS):
            return mine
        return jnp.where(keep.reshape((-1,) + (1,) * (mine.ndim - 1)), mine, other)

    mixed_stats = jax.tree.map(mix, stats, other_stats)
    mixed_batch = jax.tree.map(mix, batch, other_batch)
    before, after = term(*clean(stats, batch))[0], term(*clean(mixed_stats, mixed_batch))[0]
    assert np.array_equal(before, after), (
        f"{name} of a row changes with the other rows: a term is row-local; what reads other rows belongs into a "
        "prepare step that fills Batch.select"
    )


def _check_mask(term: Term, name: str, stats: TokenStats, batch: Batch) -> None:
    """What stands outside the mask, nan included, reaches neither the value nor the gradient."""

    def poison(x: Array | None) -> Array | None:
        return None if x is None else jnp.where(batch.mask, x, jnp.nan)

    bad_stats = dataclasses.replace(stats, **{field: poison(getattr(stats, field)) for field in _STATS})
    rollouts = dataclasses.replace(
        batch.rollouts, logp=poison(batch.rollouts.logp), logp_full=poison(batch.rollouts.logp_full)
    )
    fields = {field: poison(getattr(batch, field)) for field in _TOKENS}
    bad_batch = dataclasses.replace(batch, rollouts=rollouts, **fields)
    total, gradient = _evaluate(term, stats, batch)
    bad_total, bad_gradient = _evaluate(term, bad_stats, bad_batch)
    assert np.array_equal(total, bad_total) and _same(gradient, bad_gradient), (
        f"{name}, or its gradient, changes with nan outside the mask: select(mask, x) what it reads of the rollouts"
    )


def _check_padding(term: Term, name: str, stats: TokenStats, batch: Batch) -> None:
    """Three more columns of padding change no number."""
    width = batch.mask.shape[1]

    def widen(x: Array) -> Array:
        if x.ndim != 2 or x.shape != batch.mask.shape:
            return x
        return jnp.concatenate([x, jnp.zeros_like(x[:, :3])], axis=1)

    wide_stats, wide_batch = jax.tree.map(widen, (stats, batch))
    mask = np.asarray(batch.mask)
    before, after = term(*clean(stats, batch)), term(*clean(wide_stats, wide_batch))
    close = np.allclose(np.asarray(before)[mask], np.asarray(after)[:, :width][mask], rtol=1e-5, atol=1e-7)
    assert close, f"{name} depends on the width of the padding: use sums and counts over Batch.mask, not over the array"


def _check_extremes(term: Term, name: str, stats: TokenStats, batch: Batch) -> None:
    """Log-ratios of +-200 nats give finite values and gradients."""
    others = {field: getattr(batch, field) - EXTREME for field in ("logp_old", "logp_behavior", "logp_ref")}
    cases = {
        EXTREME: (stats, dataclasses.replace(batch, **others)),
        -EXTREME: (dataclasses.replace(stats, logp=stats.logp - EXTREME), batch),
    }
    for distance, (moved, record) in cases.items():
        total, gradient = _evaluate(term, moved, record)
        assert np.isfinite(total) and _finite(gradient), (
            f"{name} is not finite, or its gradient is not, at a log-ratio of {distance:+.0f} nats: clip it before "
            "exp, as log_ratio(stats, batch, clamp=20.0) does"
        )


def _evaluate(term: Term, stats: TokenStats, batch: Batch) -> tuple[Array, TokenStats]:
    """Token mean of `term` and its gradient with respect to `stats`."""

    def objective(stats: TokenStats) -> Array:
        return loss(parts, stats, batch)

    parts = (Part(token_mean, term),)
    batch = dataclasses.replace(batch, weight=weights(parts, batch))
    return jax.value_and_grad(objective)(stats)


def _finite(tree: TokenStats) -> bool:
    return all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(tree))


def _same(a: TokenStats, b: TokenStats) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def _tiny(select: tuple[str, ...], coef: tuple[str, ...], seed: int = 0) -> tuple[TokenStats, Batch]:
    """Four rows with every optional field, ratios on both sides of 1 and advantages of both signs."""
    rng = np.random.default_rng(seed)
    shape = rows, _ = len(LENGTHS), max(LENGTHS)

    def normal(scale: float = 1.0) -> Array:
        return jnp.asarray(rng.normal(0.0, scale, shape), jnp.float32)

    def positive(top: float) -> Array:
        return jnp.asarray(rng.uniform(0.01, top, shape), jnp.float32)

    logp = -positive(3.0)
    rollouts = _rollouts(logp + normal(0.2))
    stats = TokenStats(
        logp=logp,
        entropy=positive(2.0),
        value=normal(),
        sum_pi_squared=positive(1.0),
        kl_full=positive(1.0),
        hidden=jnp.asarray(rng.normal(size=(rows, 3)), jnp.float32),
    )
    batch = Batch(
        rollouts=rollouts,
        mask=rollouts.mask,
        weight={},
        advantage=normal(),
        logp_old=logp + normal(0.3),
        logp_behavior=rollouts.logp,
        group=rollouts.prompt,
        reward=Reward(outcome=normal()[:, 0], valid=jnp.ones(rows, bool), token=normal()),
        logp_ref=logp + normal(0.3),
        returns=normal(),
        value_old=normal(),
        select={name: normal() > 0 for name in select},
        coef={name: jnp.asarray(0.5, jnp.float32) for name in coef},
    )
    return stats, batch


def _rollouts(logp: Array) -> Rollouts:
    """Rows of `LENGTHS`, two a prompt, with a hole in the mask of the first."""
    rows, width = logp.shape
    index = jnp.arange(rows, dtype=jnp.int32)
    lengths = jnp.asarray(LENGTHS, jnp.int32)
    ones = jnp.ones(rows // 2, jnp.int32)
    place = jnp.arange(width)[None, :]
    return Rollouts(
        prompts=Prompts(tokens=ones[:, None], length=ones, draw=index[: rows // 2], row=index[: rows // 2]),
        prompt=index // 2,
        sample=index % 2,
        tokens=jnp.zeros((rows, width), jnp.int32),
        length=lengths,
        stopped=lengths < width,
        mask=(place < lengths[:, None]) & ~((index[:, None] == 0) & (place == 2)),
        logp=logp,
        logp_full=logp,
        version=jnp.zeros(rows, jnp.int32),
    )
