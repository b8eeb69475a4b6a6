"""Rows in prompt-major order, whatever order they came in: row ``p * G + k`` is the k-th row of prompt p.

The shift by one between what the model reads and what it predicts is here too, in `shifted`.
"""

import chex
import jax.numpy as jnp
from flax import struct

from grpo_jax.types import Array, Prompts, Rollouts


class Arrangement(struct.PyTreeNode):
    """A place for every row, and the row of every place."""

    slot: Array  # i32[N], place p * G + k of a row; P * G for a row that has none
    row: Array  # i32[P, G], row at a place; N where there is none
    group: int = struct.field(pytree_node=False)

    def gather(self, x: Array, fill: float = 0) -> Array:
        """[N, ...] in the order of the rows to [P, G, ...], `fill` at places without a row."""
        return x.at[self.row].get(mode="fill", fill_value=fill)

    def restore(self, x: Array) -> Array:
        """[P, G, ...] back to [N, ...]; nan for a row without a place."""
        return x.reshape(-1, *x.shape[2:]).at[self.slot].get(mode="fill", fill_value=jnp.nan)


def arrange(prompt: Array, prompts: int, group: int | None = None) -> Arrangement:
    """Places for rows that answer prompt i32[N] out of `prompts`, at most `group` of each (default: N / P).

    Rows of a prompt keep their order. A row with `group` rows of its prompt before it, or whose prompt does not exist,
    has no place: what is restored for it is nan, never another row's number.

    Raises ValueError when `group` is not given and N / P is not whole, or when N rows cannot fit.
    """
    chex.assert_rank(prompt, 1)
    rows = prompt.shape[0]
    if group is None and rows % prompts:
        raise ValueError(
            f"{rows} rows answer {prompts} prompts, so not every prompt has the same number of them; give the largest "
            f"number of rows of a prompt as group_size"
        )
    group = group or max(rows // prompts, 1)
    if rows > prompts * group:
        raise ValueError(
            f"{rows} rows do not fit {prompts} prompts with group_size={group}; allowed is a group_size of at least "
            f"{-(-rows // prompts)}, and at least the number of rows of every prompt"
        )
    index = jnp.arange(rows, dtype=jnp.int32)
    order = jnp.argsort(prompt, stable=True).astype(jnp.int32)
    ordered = prompt[order]
    rank = index - jnp.searchsorted(ordered, ordered, side="left").astype(jnp.int32)
    placed = (rank < group) & (ordered >= 0) & (ordered < prompts)
    slot = jnp.where(placed, ordered * group + rank, prompts * group).astype(jnp.int32)
    row = jnp.full((prompts * group,), rows, jnp.int32).at[slot].set(order, mode="drop")
    return Arrangement(jnp.zeros_like(slot).at[order].set(slot), row.reshape(prompts, group), group)


def prefix(prompts: Prompts) -> tuple[Array, Array]:
    """All of a prompt but its last token, which the completions start with: tokens i32[P, S-1], seen bool[P, S-1].

    One padded column is left for S = 1, so that no array is empty.
    """
    width = max(prompts.tokens.shape[1] - 1, 1)
    seen = jnp.arange(width, dtype=jnp.int32)[None] < prompts.length[:, None] - 1
    return jnp.where(seen, prompts.tokens[:, :width], 0), seen


def last_token(prompts: Prompts) -> Array:
    """i32[P], the token that the first one of a completion follows."""
    return jnp.take_along_axis(prompts.tokens, prompts.length[:, None] - 1, axis=1)[:, 0]


def shifted(rollouts: Rollouts, places: Arrangement) -> tuple[Array, Array, Array]:
    """What a model reads and predicts in the completions: inputs, targets i32[P, G, T] and read bool[P, G, T].

    Input t is the token before target t; the first is the last one of the prompt. Past the end of a row, and in places
    without a row, tokens are 0 and `read` is False.
    """
    width = rollouts.tokens.shape[1]
    length = places.gather(rollouts.length)
    read = jnp.arange(width, dtype=jnp.int32)[None, None] < length[:, :, None]
    targets = jnp.where(read, places.gather(rollouts.tokens), 0)
    first = jnp.broadcast_to(last_token(rollouts.prompts)[:, None, None], (*length.shape, 1))
    return jnp.concatenate([first, targets[:, :, :-1]], axis=2), targets, read
