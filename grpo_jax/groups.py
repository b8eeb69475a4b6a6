"""Groupings: which rows are compared with each other, as labels.

A grouping is a strategy ``(Collected, memory) -> (labels i32[N], memory)``. Rows with the same label form a group; a
negative label belongs to no group, and its row is in no mean, deviation, count or denominator. Labels lie below N, so
that ``num_groups = N`` always suffices. `memory` holds the state of stateful groupings and passes through the others.
"""

from collections.abc import Callable, Mapping

import jax.numpy as jnp

from grpo_jax import masked
from grpo_jax.types import Array, Collected

Memory = Mapping[str, Array]
Grouping = Callable[[Collected, Memory], tuple[Array, Memory]]


def by_prompt(collected: Collected, memory: Memory) -> tuple[Array, Memory]:
    """Rows that answer the same prompt form a group (arXiv 2402.03300)."""
    return collected.rollouts.prompt, memory


def tied(reward: Array, group: Array, *, num_groups: int, valid: Array) -> Array:
    """bool[num_groups]: True where a group's valid rewards are all exactly equal, or it has no valid row.

    The test compares the largest with the smallest reward. A standard deviation would not do: in float32 that of
    0.85, 0.85, 0.85 is not 0, because their mean is not 0.85.
    """
    largest = masked.segment_max(reward, group, num_groups, valid)
    return largest <= masked.segment_min(reward, group, num_groups, valid)


def drop_tied(collected: Collected, memory: Memory, *, grouping: Grouping = by_prompt) -> tuple[Array, Memory]:
    """Labels of `grouping` with -1 for the rows of groups that teach nothing: all outcome rewards exactly equal.

    Dynamic sampling of DAPO (arXiv 2503.14476, equation 11), whose rewards are right or wrong: a group is kept iff it
    has at least one of each. Groups of one are dropped.
    """
    labels, memory = grouping(collected, memory)
    rows = labels.shape[0]
    reward = collected.reward
    flat = tied(reward.outcome, labels, num_groups=rows, valid=reward.valid)
    return jnp.where(masked.spread(flat, labels), -1, labels), memory


GROUPINGS: dict[str, Grouping] = {"by_prompt": by_prompt, "drop_tied": drop_tied}
