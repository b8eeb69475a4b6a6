"""Cutting a batch into minibatches of whole prompts and micro-batches, without changing a number.

The weights of a batch were computed over all of it, so any cut is exact: the loss of the batch is the sum of the losses
of its pieces.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from grpo_jax.models.arrange import arrange as places
from grpo_jax.types import Array, Batch


def arrange(batch: Batch, group_size: int) -> Batch:
    """`batch` with its rows as ``[P, G, ...]`` in prompt-major order; places without a row count nowhere.

    Rows may come in any order and groups may be ragged up to `group_size`; levels of `group` and layers of `experts`
    move from the first axis to the third. `split` and `flatten` take it from here. Where a row of some weight finds no
    place every weight becomes nan: an update that would lose a row is refused, not done.
    """
    prompts = batch.rollouts.prompts
    count = prompts.tokens.shape[0]
    seats = places(batch.rollouts.prompt, count, group_size)
    rows: Any = jax.tree.map(lambda x: x.at[seats.row].get(mode="clip"), _rows_first(batch))
    rows = _vacated(rows, seats.row < batch.mask.shape[0])
    rows = rows.replace(rollouts=rows.rollouts.replace(prompts=prompts), coef=batch.coef)
    homeless = seats.slot == count * group_size
    lost = jnp.zeros((), bool)
    for w in batch.weight.values():
        lost |= jnp.any((w != 0) & homeless[:, None])
    return rows.replace(weight={name: jnp.where(lost, jnp.nan, w) for name, w in rows.weight.items()})


def _vacated(rows: Batch, taken: Array) -> Batch:
    """`rows` [P, G, ...] with a row without a token that counts nowhere where a place is not `taken` bool[P, G]."""
    tokens = taken[:, :, None]
    rollouts = rows.rollouts.replace(mask=rows.rollouts.mask & tokens, length=jnp.where(taken, rows.rollouts.length, 0))
    return rows.replace(
        rollouts=rollouts,
        mask=rows.mask & tokens,
        weight={name: jnp.where(tokens, w, 0) for name, w in rows.weight.items()},
        group=jnp.where(tokens if rows.group.ndim > taken.ndim else taken, rows.group, -1),
        reward=rows.reward.replace(valid=rows.reward.valid & taken),
    )


def take(arranged: Batch, index: Array) -> Batch:
    """The prompts `index` i32[Q] of an arranged batch, with all their rows."""
    return _per_prompt(arranged, lambda x: jnp.take(x, index, axis=0))


def split(arranged: Batch, pieces: int) -> Batch:
    """An arranged batch with a leading axis of `pieces`; piece k holds the prompts k, k + pieces, ...

    The strided cut keeps the prompts of a shard on it, since a shard holds a contiguous block of prompts.
    """

    def cut(x: Array) -> Array:
        return jnp.swapaxes(x.reshape(x.shape[0] // pieces, pieces, *x.shape[1:]), 0, 1)

    cut_batch = _per_prompt(arranged, cut)
    repeated = jax.tree.map(lambda c: jnp.broadcast_to(c, (pieces, *c.shape)), arranged.coef)
    return cut_batch.replace(coef=repeated)


def has_levels(batch: Batch) -> bool:
    """Whether the labels of `batch` are i32[L, N], several levels a row, and not i32[N, T]."""
    return batch.group.ndim == 2 and batch.group.shape != batch.mask.shape


def flatten(arranged: Batch, *, levels: bool) -> Batch:
    """An arranged batch as rows ``[P * G, ...]`` again, its prompts numbered from 0; `levels` as `has_levels` told."""
    prompts = arranged.rollouts.prompts
    count, group_size = arranged.mask.shape[:2]
    rows = arranged.replace(rollouts=arranged.rollouts.replace(prompts=None), coef={})
    rows = jax.tree.map(lambda x: x.reshape(count * group_size, *x.shape[2:]), rows)
    prompt = jnp.repeat(jnp.arange(count, dtype=jnp.int32), group_size)
    experts = rows.rollouts.experts
    rollouts = rows.rollouts.replace(
        prompts=prompts, prompt=prompt, experts=None if experts is None else jnp.swapaxes(experts, 0, 1)
    )
    return rows.replace(rollouts=rollouts, coef=arranged.coef, group=rows.group.T if levels else rows.group)


def _rows_first(batch: Batch) -> Batch:
    """The leaves of `batch` that have a row axis, with that axis first."""
    rollouts = batch.rollouts.replace(prompts=None)
    if rollouts.experts is not None:
        rollouts = rollouts.replace(experts=jnp.swapaxes(rollouts.experts, 0, 1))
    group = batch.group.T if has_levels(batch) else batch.group
    return batch.replace(rollouts=rollouts, group=group, coef={})


def _per_prompt(arranged: Batch, function: Callable[[Array], Array]) -> Batch:
    """`function` over every leaf but the coefficients: in an arranged batch they all lead with the prompt axis."""
    moved: Any = jax.tree.map(function, arranged.replace(coef={}))
    return moved.replace(coef=arranged.coef)
