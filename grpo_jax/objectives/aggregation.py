"""Aggregations: how per-token terms become one number, as weights f32[N,T] made of the batch's record alone.

m is the mask, n_i the number of scored tokens of row i. A *counted row* has a valid reward and belongs to a group; rows
that do not count are in no numerator and no denominator, so masking a row equals never having sampled it. A counted row
may still have no scored token; ``empty`` says whether such a row is in the number D of rows: "count" or "skip".
"""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp

from grpo_jax import masked
from grpo_jax.types import Array, Batch, TokenStats

Selection = Callable[[Batch], Array]
"""``Batch -> bool[N,T]``, from the record alone: which tokens an aggregation is over."""


def counted(batch: Batch) -> Array:
    """bool[N]: rows with a valid reward and a label of at least 0 (at every level, or for some token)."""
    group = batch.group
    if group.ndim == 2:
        group = jnp.max(group, axis=1) if group.shape == batch.mask.shape else jnp.min(group, axis=0)
    return masked.members(group, batch.reward.valid)


def _scored(batch: Batch) -> Array:
    return batch.mask & counted(batch)[:, None]


def _rows(batch: Batch, empty: str) -> Array:
    """bool[N]: the rows of the denominator."""
    if empty not in ("count", "skip"):
        raise ValueError(f"empty is {empty!r}; allowed are 'count' (rows without tokens are in the mean) and 'skip'")
    rows = counted(batch)
    return rows if empty == "count" else rows & jnp.any(batch.mask, axis=1)


def _number(mask: Array, dtype: jnp.dtype) -> Array:
    """Count of True, at least 1."""
    return jnp.maximum(masked.count(mask, dtype=dtype), 1.0)


def token_mean(batch: Batch) -> Array:
    """Weights m / sum(m): every token of the batch weighs the same (DAPO, arXiv 2503.14476, pooled)."""
    scored, dtype = _scored(batch), batch.advantage.dtype
    return scored.astype(dtype) / _number(scored, dtype)


def sequence_mean_token_mean(batch: Batch, *, empty: str = "count") -> Array:
    """Weights m / (n_i D): the mean over rows of the mean over their tokens (GRPO, arXiv 2402.03300)."""
    scored, dtype = _scored(batch), batch.advantage.dtype
    length = jnp.maximum(masked.count(scored, axis=1, dtype=dtype), 1.0)
    return scored.astype(dtype) / length[:, None] / _number(_rows(batch, empty), dtype)


def sequence_mean_token_sum(batch: Batch, *, empty: str = "count") -> Array:
    """Weights m / D: the mean over rows of the sum over their tokens, the policy gradient of whole completions."""
    dtype = batch.advantage.dtype
    return _scored(batch).astype(dtype) / _number(_rows(batch, empty), dtype)


def fixed_length(batch: Batch, *, constant: float, rows: str = "all") -> Array:
    """Weights m / (constant D): a length no completion changes (Dr. GRPO, arXiv 2503.20783).

    Args:
        batch: the record.
        constant: positive, in tokens; as a rule the largest length that may be sampled, not the width of the array.
        rows: D counts "all" counted rows, the "nonempty" ones, or is 1 for "none".

    Raises:
        ValueError: `constant` is not positive or `rows` is unknown.
    """
    if not constant > 0:
        raise ValueError(f"constant is {constant!r}; it must be positive, as a rule the sampling's maximal length")
    if rows not in ("all", "nonempty", "none"):
        raise ValueError(f"rows is {rows!r}; allowed are 'all', 'nonempty' and 'none'")
    weight = _scored(batch).astype(batch.advantage.dtype) / constant
    if rows == "none":
        return weight
    return weight / _number(_rows(batch, "count" if rows == "all" else "skip"), weight.dtype)


def prompt_mean(batch: Batch, *, empty: str = "count") -> Array:
    """Weights m / (scored tokens of the prompt's rows, times the number of prompts).

    Every prompt weighs the same, within a prompt every token: the mean of DAPO as its paper writes it. Rows belong
    together by ``rollouts.prompt``, whatever the grouping; with ``empty="skip"`` a prompt without scored tokens is not
    in the number of prompts.
    """
    scored, dtype = _scored(batch), batch.advantage.dtype
    prompt, prompts = batch.rollouts.prompt, batch.rollouts.prompts.length.shape[0]
    length = masked.count(scored, axis=1, dtype=dtype)
    tokens = masked.segment_sum(length, prompt, prompts, counted(batch))
    present = masked.segment_count(prompt, prompts, _rows(batch, empty)) > 0
    share = scored.astype(dtype) / jnp.maximum(masked.spread(tokens, prompt), 1.0)[:, None]
    return share / _number(present, dtype)


def restricted(aggregation: Callable[[Batch], Array], *, to: Selection) -> Callable[[Batch], Array]:
    """`aggregation` over the selected tokens alone, in its denominators too, as an aggregation.

    A factor in the term (`reweight`) takes tokens out of the sum and leaves the denominators as they are.
    """
    return partial(_restricted, aggregation=aggregation, to=to)


def _restricted(batch: Batch, *, aggregation: Callable[[Batch], Array], to: Selection) -> Array:
    return aggregation(batch.replace(mask=batch.mask & to(batch)))


def positive(batch: Batch) -> Array:
    """bool[N,T]: the tokens of rows with a reward above 0."""
    return jnp.broadcast_to((batch.reward.outcome > 0)[:, None], batch.mask.shape)


def recorded(batch: Batch, *, weight: Callable[[TokenStats, Batch], Array]) -> Array:
    """bool[N,T]: the tokens to which a correction gives a weight above 0, on the old policy's log-probabilities.

    `weight` is a term such as `kept` that reads ``logp_old`` and ``logp_behavior``: with it an aggregation is over the
    tokens that a rejection keeps (verl narrows the mask of the response so).
    """
    return weight(TokenStats(logp=batch.logp_old), batch) > 0


AGGREGATIONS: dict[str, Callable[..., Array]] = {
    "token_mean": token_mean,
    "sequence_mean_token_mean": sequence_mean_token_mean,
    "sequence_mean_token_sum": sequence_mean_token_sum,
    "fixed_length": fixed_length,
    "prompt_mean": prompt_mean,
}
