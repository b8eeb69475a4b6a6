"""Prepare steps: what a term needs to know of other rows, written into ``Batch.select`` once before an update.

A prepare step ``(stats, batch, key, *, name, ...) -> batch`` sees statistics without gradient and every row of the
update; a term reads its result with `chosen`. Ranks and quantiles are found by bisection on the bits of the numbers,
which is exact, sorts nothing and keeps rows where they are.
"""

import dataclasses

import jax
import jax.numpy as jnp

from grpo_jax import masked
from grpo_jax.objectives.algebra import Term, clean
from grpo_jax.objectives.description import needs
from grpo_jax.objectives.ratios import CAP, LogRatio, interval, log_ratio
from grpo_jax.types import Array, Batch, TokenStats


def chosen(stats: TokenStats, batch: Batch, *, name: str) -> Array:
    """``batch.select[name]`` as numbers -> f32[N,T]: 1 and 0 for a selection, weights as they are.

    Raises:
        ValueError: no prepare step has written `name`.
    """
    if name not in batch.select:
        known = ", ".join(batch.select) or "none"
        raise ValueError(f"Batch.select: got no {name!r}, there are: {known}: add the prepare step that writes it")
    return batch.select[name].astype(stats.logp.dtype)


def _with(batch: Batch, name: str, value: Array) -> Batch:
    return dataclasses.replace(batch, select={**batch.select, name: value})


def covariance(stats: TokenStats, batch: Batch) -> Array:
    """(A - mean A)(x - mean x) of every scored token, means over scored tokens, 0 elsewhere -> f32[N,T].

    The part of the token in the covariance that drives the entropy down (arXiv 2505.22617).
    """
    advantage, logp = (masked.select(batch.mask, y) for y in (batch.advantage, stats.logp))
    product = (advantage - masked.mean(advantage, batch.mask)) * (logp - masked.mean(logp, batch.mask))
    return masked.select(batch.mask, product)


def kl_cov_tokens(
    stats: TokenStats, batch: Batch, key: Array, *, fraction: float = 2e-3, name: str = "kl_cov"
) -> Batch:
    """Select the scored tokens of the largest `covariance` (KL-Cov, arXiv 2505.22617) -> ``select[name]`` bool[N,T].

    Of N scored tokens max(1, int(`fraction` N)): 2e-3 for models of 7B parameters, 2e-4 for 32B in the paper. Of equal
    tokens the first ones are taken.
    """
    del key
    return _with(
        batch, name, largest(covariance(stats, batch), batch.mask, share(batch.mask, stats, fraction=fraction))
    )


def clip_cov_tokens(
    stats: TokenStats,
    batch: Batch,
    key: Array,
    *,
    fraction: float = 2e-4,
    cov_low: float = 1.0,
    cov_high: float = 5.0,
    clip_low: float | None = 0.2,
    clip_high: float | None = 0.2,
    clip_bounds: str = "relative",
    ratio: LogRatio = log_ratio,
    clamp_log_ratio: float | None = CAP,
    name: str = "clip_cov",
) -> Batch:
    """Select all tokens but a few drawn among those of high covariance (Clip-Cov, arXiv 2505.22617).

    ``select[name]`` bool[N,T] is False on max(1, int(`fraction` N)) tokens, or on all candidates where there are fewer.
    A candidate is scored, has ``cov_low < covariance < cov_high`` and is not already stopped by the clip. The draw
    belongs to (prompt's draw, sample, position), whatever the order of the rows.

    Args:
        stats: without gradient.
        batch: of the whole update.
        key: of this step.
        fraction: share of the scored tokens that is dropped.
        cov_low: lower bound of a candidate's covariance.
        cov_high: upper bound.
        clip_low: `low` of the clip whose tokens are no candidates, as in `ppo_clip`; None: none.
        clip_high: `high` of that clip.
        clip_bounds: its `bounds`.
        ratio: log-ratio that it clips.
        clamp_log_ratio: that of the clip.
        name: where the selection is written.
    """
    cov = covariance(stats, batch)
    clean_stats, clean_batch = clean(stats, batch)
    r = jnp.exp(ratio(clean_stats, clean_batch, clamp=clamp_log_ratio))
    lower, upper = interval(clip_low, clip_high, clip_bounds)
    stopped = stopped_by_clip(r, clean_batch.advantage, lower, upper)
    candidate = batch.mask & ~stopped & (cov > cov_low) & (cov < cov_high)
    dropped = largest(_lots(batch, key, cov.dtype), candidate, share(batch.mask, stats, fraction=fraction))
    return _with(batch, name, ~dropped)


def stopped_by_clip(r: Array, advantage: Array, lower: float | None, upper: float | None) -> Array:
    """bool: where the clip stops the gradient, r < lower with A < 0 or r > upper with A > 0."""
    stopped = jnp.zeros(r.shape, bool)
    if lower is not None:
        stopped |= (r < lower) & (advantage < 0)
    return stopped if upper is None else stopped | ((r > upper) & (advantage > 0))


@needs("entropy")
def top_entropy_tokens(
    stats: TokenStats, batch: Batch, key: Array, *, fraction: float = 0.2, name: str = "top_entropy"
) -> Batch:
    """Select the tokens whose entropy is at least the quantile 1 - `fraction` (arXiv 2506.01939) -> bool[N,T].

    The quantile is over the scored tokens of the update, with linear interpolation (TRL). As a factor of a term the
    selection leaves the denominator as it is, as in TRL.

    Raises:
        ValueError: the entropy was not asked for, or `fraction` is not in (0, 1].
    """
    del key
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction: got {fraction}, allowed (0, 1]: give the share of the tokens to keep")
    if stats.entropy is None:
        raise ValueError('TokenStats.entropy is None, which top_entropy_tokens reads: ask for want=("entropy",)')
    entropy = masked.select(batch.mask, stats.entropy)
    return _with(batch, name, batch.mask & (entropy >= quantile(entropy, batch.mask, q=1.0 - fraction)))


def demonstrations(stats: TokenStats, batch: Batch, key: Array, *, name: str = "off_policy") -> Batch:
    """Select the rows that no version of the policy sampled, ``rollouts.version < 0`` -> ``select[name]`` bool[N,T]."""
    del stats, key
    rows = jnp.broadcast_to((batch.rollouts.version < 0)[:, None], batch.mask.shape)
    return _with(batch, name, rows & batch.mask)


def normalized_weight(
    stats: TokenStats, batch: Batch, key: Array, *, weight: Term, level: str = "token", name: str = "weight"
) -> Batch:
    """Write `weight` divided by its mean over the update -> ``select[name]`` f32[N,T].

    Self-normalised importance sampling: the weights of an update average 1 (verl's rollout_is_batch_normalize).

    Args:
        stats: without gradient.
        batch: of the whole update.
        key: not used.
        weight: a correction, such as `truncated`.
        level: mean over scored "token"s, or over "row"s with a scored token, for weights that are one a row.
        name: where the weights are written.

    Raises:
        ValueError: `level` is unknown.
    """
    del key
    value = weight(*clean(stats, batch))
    if level == "token":
        mean = masked.mean(value, batch.mask)
    elif level == "row":
        mean = masked.mean(jnp.max(masked.select(batch.mask, value), axis=1), jnp.any(batch.mask, axis=1))
    else:
        raise ValueError(f"level: got {level!r}, allowed 'token' and 'row': choose what the mean is over")
    return _with(batch, name, value / jnp.where(mean > 0, mean, jnp.ones_like(mean)))


def share(mask: Array, stats: TokenStats, *, fraction: float) -> Array:
    """max(1, int(fraction * number of True)) -> i32[], the product in the dtype of the log-probabilities."""
    number = masked.count(mask, dtype=stats.logp.dtype)
    return jnp.maximum(jnp.floor(number * fraction).astype(jnp.int32), 1)


def largest(x: Array, mask: Array, number: Array) -> Array:
    """bool: the `number` largest of the selected entries, all of them where there are fewer; of equal ones the first.

    Args:
        x: f[N,T] without nan.
        mask: bool[N,T].
        number: i32[], at least 1.
    """
    order = _ordered_bits(x)
    bar = _kth_largest_bits(order, mask, number)
    above = mask & (order > bar)
    level = mask & (order == bar)
    room = number - jnp.sum(above, dtype=jnp.int32)
    before = jnp.cumsum(level.ravel().astype(jnp.int32)).reshape(level.shape)
    return above | (level & (before <= room))


def quantile(x: Array, mask: Array, *, q: float) -> Array:
    """Quantile `q` of the selected entries with linear interpolation -> f[], as `masked.quantile` without a sort."""
    number = jnp.sum(mask, dtype=jnp.int32)
    place = q * jnp.maximum(number - 1, 0).astype(x.dtype)
    low, high = jnp.floor(place), jnp.ceil(place)
    order = _ordered_bits(x)
    below, above = (
        _from_ordered_bits(_kth_largest_bits(order, mask, number - rank.astype(jnp.int32)), x.dtype)
        for rank in (low, high)
    )
    value = below + (place - low) * (above - below)
    return jnp.where(number > 0, value, jnp.zeros_like(value))


def _lots(batch: Batch, key: Array, dtype: jnp.dtype) -> Array:
    """Uniform numbers f[N,T], each of its prompt's draw, sample and position."""
    rollouts = batch.rollouts
    draw = rollouts.prompts.draw[jnp.maximum(rollouts.prompt, 0)]
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, draw)
    keys = jax.vmap(jax.random.fold_in)(keys, rollouts.sample)
    return jax.vmap(lambda own: jax.random.uniform(own, batch.mask.shape[1:], dtype))(keys)


def _words(dtype: jnp.dtype) -> tuple[jnp.dtype, int]:
    bits = jnp.finfo(dtype).bits
    return jnp.dtype(f"uint{bits}"), bits


def _ordered_bits(x: Array) -> Array:
    """Unsigned integers in the order of the numbers `x`; -0 and 0 are one number."""
    word, bits = _words(x.dtype)
    raw = jax.lax.bitcast_convert_type(x + jnp.zeros((), x.dtype), word)
    top = jnp.asarray(1 << (bits - 1), word)
    return jnp.where(raw >= top, ~raw, raw | top)


def _from_ordered_bits(order: Array, dtype: jnp.dtype) -> Array:
    """The inverse of `_ordered_bits`."""
    word, bits = _words(dtype)
    top = jnp.asarray(1 << (bits - 1), word)
    return jax.lax.bitcast_convert_type(jnp.where(order >= top, order ^ top, ~order), dtype)


def _kth_largest_bits(order: Array, mask: Array, number: Array) -> Array:
    """The largest value that at least `number` selected entries reach; 0, below every number, where there are fewer."""
    bits = jnp.iinfo(order.dtype).bits

    def lower(k: Array, bar: Array) -> Array:
        trial = bar | jnp.left_shift(jnp.ones((), order.dtype), jnp.asarray(bits - 1 - k, order.dtype))
        return jnp.where(jnp.sum(mask & (order >= trial), dtype=jnp.int32) >= number, trial, bar)

    return jax.lax.fori_loop(0, bits, lower, jnp.zeros((), order.dtype))
