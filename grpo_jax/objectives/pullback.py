"""Gradients of a batch prompt by prompt: one linearisation of the forward pass, pulled back for several losses.

A row reaches the parameters only through its own statistics, so the gradient of a batch is the sum of those of its
prompts. No tree of parameters is made a vector: its leaves may be sharded.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from grpo_jax.types import Array, Params, Rollouts, TokenStats

Forward = Callable[[Params, Rollouts], TokenStats]
"""What a policy says of the tokens of any rollouts: those of one prompt with its G rows as well as whole batches."""


class Walk(NamedTuple):
    """What is pulled back, and how many prompts at a time."""

    forward: Forward
    params: Params
    rollouts: Rollouts
    group_size: int | None
    block: int

    def places(self) -> Array:
        """i32[blocks, block, G]: the rows of every prompt, N where there is none; the last block is filled up so."""
        rollouts, block = self.rollouts, self.block
        rows, prompts = rollouts.prompt.shape[0], rollouts.prompts.length.shape[0]
        if self.group_size is None and rows % prompts:
            raise ValueError(
                f"group_size: got None for {rows} rows of {prompts} prompts, which it does not divide; allowed is the"
                " largest number of rows of a prompt: give it"
            )
        if block < 1:
            raise ValueError(f"block: got {block}, allowed >= 1: set 1 for one prompt at a time")
        group = self.group_size or rows // prompts
        order = jnp.argsort(rollouts.prompt, stable=True).astype(jnp.int32)
        first = jnp.searchsorted(rollouts.prompt[order], jnp.arange(prompts + 1, dtype=jnp.int32)).astype(jnp.int32)
        place = first[:-1, None] + jnp.arange(group, dtype=jnp.int32)[None, :]
        here = place < first[1:, None]
        index = jnp.where(here, order.at[place].get(mode="clip"), rows)
        spare = -prompts % block
        return jnp.pad(index, ((0, spare), (0, 0)), constant_values=rows).reshape(-1, block, group)

    def rows_of(self, number: Array, index: Array) -> Rollouts:
        """The rows `index` i32[G] of prompt `number` i32[], as rollouts of one prompt; absent ones have no token."""
        rollouts = self.rollouts
        prompts = jax.tree.map(lambda x: x.at[number[None]].get(mode="clip"), rollouts.prompts)
        apart = rollouts.replace(prompts=None, experts=None)
        rows: Any = jax.tree.map(lambda x: x.at[index].get(mode="clip"), apart)
        there = index < rollouts.prompt.shape[0]
        experts = None if rollouts.experts is None else rollouts.experts.at[:, index].get(mode="clip")
        return rows.replace(
            prompts=prompts,
            prompt=jnp.zeros_like(index),
            mask=rows.mask & there[:, None],
            length=jnp.where(there, rows.length, 0),
            experts=experts,
        )


def walked(walk: Walk, cotangents: TokenStats, *, keep: bool) -> tuple[Params, Array, Any]:
    """Sums over the prompts: gradients [K, ...] and squares of their norms f32[K]; with `keep` also each, [P, K, ...].

    A row with a gradient that is in no place makes everything nan: numbers without it would be wrong in silence.
    """
    places, prompts = walk.places(), walk.rollouts.prompts.length.shape[0]
    cotangents = _none_lost(cotangents, places)
    shape = (jax.tree.leaves(cotangents)[0].shape[0],)

    def one(number: Array, index: Array) -> Params:
        _, pull = jax.vjp(lambda params: walk.forward(params, walk.rows_of(number, index)), walk.params)
        mine = jax.tree.map(lambda x: x.at[:, index].get(mode="fill", fill_value=0), cotangents)
        return jax.vmap(lambda slope: pull(slope)[0])(mine)

    def several(total: tuple[Params, Array], xs: tuple[Array, Array]) -> tuple[tuple[Params, Array], Any]:
        found = jax.vmap(one)(*xs)  # [block, K, ...]
        gradient = jax.tree.map(lambda t, x: t + jnp.sum(x, axis=0), total[0], found)
        return (gradient, total[1] + jnp.sum(_squares(found), axis=0)), found if keep else None

    numbers = jnp.arange(places.shape[0] * walk.block, dtype=jnp.int32).reshape(-1, walk.block)
    zero = jax.tree.map(lambda x: jnp.zeros(shape + x.shape, x.dtype), walk.params), jnp.zeros(shape, jnp.float32)
    (total, squares), kept = jax.lax.scan(several, zero, (numbers, places))
    each = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:prompts], kept)
    return total, squares, each


def _squares(found: Params) -> Array:
    """Squared norms f32[A, B] of gradients with leading axes A and B."""
    leaves = [jnp.square(x.astype(jnp.float32)) for x in jax.tree.leaves(found)]
    return sum((jnp.sum(x, axis=tuple(range(2, x.ndim))) for x in leaves), start=jnp.zeros((), jnp.float32))


def _none_lost(cotangents: TokenStats, places: Array) -> TokenStats:
    """`cotangents`, nan where a row with one has no place."""
    rows = cotangents.logp.shape[1]
    placed = jnp.zeros((rows,), bool).at[places.ravel()].set(True, mode="drop")

    def guarded(x: Array) -> Array:
        lost = jnp.any((x != 0) & ~placed.reshape(1, -1, *(1,) * (x.ndim - 2)))
        return jnp.where(lost, jnp.nan, x)

    return jax.tree.map(guarded, cotangents)


def products(a: Params, b: Params) -> Array:
    """Inner products of gradients with leading axes A and B -> f32[A, B]: sums over leaves, none of which is moved."""
    total = jnp.zeros((), jnp.float32)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        axes = tuple(range(1, x.ndim))
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        x, y = x.astype(dtype), y.astype(dtype)
        total = total + jnp.tensordot(x, y, axes=(axes, axes), precision="highest")
    return total
