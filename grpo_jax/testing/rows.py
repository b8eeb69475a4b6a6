"""Twelve rows for the laws of advantages, groupings and aggregations, and what may happen to them without consequence.

Rows of a group do not stand together, groups differ in size, one has a single row and one equal rewards; a row could
not be scored, another belongs to no group, one has no token and one a hole in its mask, and one prompt has no row.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.types import Array, Batch, Collected, Prompts, Reward, Rollouts

LABELS = (0, 1, 0, 2, 1, 0, 1, -1, 3, 3, 1, 0)
OUTCOMES = (0.1, 0.75, 0.4, 2.0, -3.0, 1.0, 5.0, 7.0, 0.95, 0.95, 0.25, -0.5)
UNSCORED = 6
"""The row whose reward is not valid."""
NOWHERE = tuple(row == UNSCORED or label < 0 for row, label in enumerate(LABELS))
"""True for the rows that are compared with nothing."""
ROWS, PROMPTS, WIDTH = len(LABELS), 6, 5
PROMPT_LABELS = (7, 3, 7, -1, 5, 3)
"""Of the prompts: two that have one together, one without any."""
_LENGTHS = (1, 2, 3, 4, 0, 5, 3, 4, 1, 2, 5, 3)
_MORE_ROWS, _MORE_PROMPTS, _MORE_COLUMNS = 2, 1, 3

Tree = TypeVar("Tree")
Answer = TypeVar("Answer")


def name_of(function: object) -> str:
    """What messages call `function`."""
    return getattr(getattr(function, "func", function), "__name__", repr(function))


def tiny_collected(*, dtype: str = "float32", labels: Iterable[str] = ()) -> Collected:
    """The rows with everything that an advantage may read, floats in `dtype`; prompts have `labels` of these names."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        return jnp.asarray(rng.normal(0.0, 1.0, shape), dtype)

    index = jnp.arange(ROWS, dtype=jnp.int32)
    groups, asked = jnp.asarray(LABELS, jnp.int32), jnp.arange(PROMPTS, dtype=jnp.int32)
    names = {name: jnp.asarray(PROMPT_LABELS, jnp.int32) for name in labels}
    lengths, place = jnp.asarray(_LENGTHS, jnp.int32), jnp.arange(WIDTH, dtype=jnp.int32)[None, :]
    logp = -jnp.abs(normal(ROWS, WIDTH)) - 0.1
    rollouts = Rollouts(
        prompts=Prompts(
            tokens=jnp.ones((PROMPTS, 2), jnp.int32), length=asked * 0 + 1, draw=asked, row=asked, label=names
        ),
        prompt=jnp.where(groups < 0, 4, groups),
        sample=index,
        tokens=jnp.zeros((ROWS, WIDTH), jnp.int32),
        length=lengths,
        stopped=lengths < WIDTH,
        mask=(place < lengths[:, None]) & ~((index[:, None] == 5) & (place == 2)),
        logp=logp,
        logp_full=logp,
        version=jnp.zeros_like(index),
    )
    outcome = jnp.asarray(OUTCOMES, dtype)
    reward = Reward(
        outcome=outcome,
        valid=index != UNSCORED,
        token=normal(ROWS, WIDTH),
        components={"first": outcome - 0.25, "second": jnp.full_like(outcome, 0.25)},
        step_end=(place + index[:, None]) % 2 == 0,
        greedy=0.5 * outcome + 0.25,
    )
    return Collected(
        rollouts=rollouts,
        reward=reward,
        logp_old=logp,
        logp_ref=logp - 0.1,
        value_old=normal(ROWS, WIDTH),
        sum_pi_squared=jnp.exp(2.0 * logp) + 0.01,
    )


def tiny_batch(*, dtype: str = "float32", every_row: bool = False) -> Batch:
    """The same rows as a batch; with `every_row` the one without a token has one."""
    collected = tiny_collected(dtype=dtype)
    rollouts, reward = collected.rollouts, collected.reward
    if every_row:
        filled = jnp.maximum(rollouts.length, 1)
        first = jnp.arange(WIDTH, dtype=jnp.int32)[None, :] == 0
        rollouts = dataclasses.replace(rollouts, length=filled, mask=rollouts.mask | first)
    group = jnp.asarray(LABELS, jnp.int32)
    return Batch(
        rollouts=rollouts,
        mask=rollouts.mask & (reward.valid & (group >= 0))[:, None],
        weight={},
        advantage=reward.token if reward.token is not None else collected.logp_old,
        logp_old=collected.logp_old,
        logp_behavior=rollouts.logp,
        group=group,
        reward=reward,
        logp_ref=collected.logp_ref,
        returns=collected.value_old,
        value_old=collected.value_old,
    )


def tiny_labels() -> Array:
    """i32[12], the labels of the rows."""
    return jnp.asarray(LABELS, jnp.int32)


def in_order(tree: Tree, order: np.ndarray) -> Tree:
    """Every array of rows in another order."""
    return jax.tree.map(lambda x: x[order] if _of_rows(x) else x, tree)


def widened(tree: Tree) -> Tree:
    """Three more columns of padding; what stands there is 1."""

    def widen(x: Array) -> Array:
        if x.shape != (ROWS, WIDTH):
            return x
        padding = jnp.zeros if x.dtype == jnp.bool_ else jnp.ones
        return jnp.concatenate([x, padding((ROWS, _MORE_COLUMNS), x.dtype)], axis=1)

    return jax.tree.map(widen, tree)


def grown(tree: Tree) -> Tree:
    """Two more rows, copies of the first two, and a prompt that nobody answers. They still have to be masked."""

    def grow(x: Array) -> Array:
        more = _MORE_ROWS if _of_rows(x) else _MORE_PROMPTS if x.shape[:1] == (PROMPTS,) else 0
        return jnp.concatenate([x, x[:more]]) if more else x

    return jax.tree.map(grow, tree)


def nowhere(rows: int) -> np.ndarray:
    """bool[rows]: True for the rows that count nowhere, those that `grown` adds included."""
    return np.concatenate([np.asarray(NOWHERE), np.ones(rows - ROWS, bool)])


def unscored(collected: Collected, rows: np.ndarray) -> Collected:
    """`collected` with rewards that are not valid in the marked rows."""
    return _rewarded(collected, valid=collected.reward.valid & ~jnp.asarray(rows))


def spoiled(collected: Collected) -> Collected:
    """Nan for every number that counts nowhere: of rows without a valid reward or a group, and outside the mask."""
    mask = np.asarray(collected.rollouts.mask)
    gone = nowhere(mask.shape[0])
    return jax.tree.map(lambda x: _spoil(x, gone, gone[:, None] | ~mask), collected)


def spoiled_batch(batch: Batch) -> Batch:
    """The same of a batch."""
    mask = np.asarray(batch.mask)
    return jax.tree.map(lambda x: _spoil(x, nowhere(mask.shape[0]), ~mask), batch)


def rescored(collected: Collected, change: Callable[[Array], Array]) -> Collected:
    """`change` on the outcome, on every component and on the rewards of the tokens, column by column."""
    reward = collected.reward
    components = {name: change(x) for name, x in reward.components.items()}
    token = None if reward.token is None else jax.vmap(change, in_axes=1, out_axes=1)(reward.token)
    return _rewarded(collected, outcome=change(reward.outcome), components=components, token=token)


def together(labels: Array | np.ndarray, rows: np.ndarray) -> np.ndarray:
    """bool[n, n]: which pairs of `rows` have the same label; False for a row of no group, even with itself."""
    chosen = np.asarray(labels)[rows]
    return (chosen[:, None] == chosen[None, :]) & (chosen[:, None] >= 0)


def forms(memory: object) -> object:
    """Name -> dtype and shape of what a strategy remembers."""
    if not isinstance(memory, Mapping):
        return type(memory).__name__
    return {key: f"{jnp.asarray(x).dtype}{list(jnp.shape(x))}" for key, x in sorted(memory.items())}


def compilable(jitted: Callable[..., Answer], name: str, *arguments: object) -> Answer:
    """What `jitted`, which messages call `name`, answers. Raises AssertionError where it cannot be compiled."""
    try:
        return jitted(*arguments)
    except jax.errors.JAXTypeError as error:
        line = str(error).splitlines()[0]
        raise AssertionError(
            f"{name} cannot be compiled ({line}): choose values by jnp.where, not by `if`, with jnp functions"
        ) from error


def _rewarded(collected: Collected, **changes: object) -> Collected:
    return dataclasses.replace(collected, reward=dataclasses.replace(collected.reward, **changes))


def _of_rows(x: Array) -> bool:
    return x.ndim > 0 and x.shape[0] == ROWS


def _spoil(x: Array, rows: np.ndarray, tokens: np.ndarray) -> Array:
    where = rows if x.shape == rows.shape else tokens if x.shape == tokens.shape else None
    if where is None or not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    return jnp.where(where, jnp.asarray(jnp.nan, x.dtype), x)
