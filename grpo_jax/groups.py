"""Groupings: which rows are compared with each other, as labels.

A grouping is a strategy ``(Collected, memory) -> (labels i32[N], memory)``. Rows with the same label form a group; a
negative label belongs to no group, and its row is in no mean, deviation, count or denominator. Labels lie below N, so
that ``num_groups = N`` always suffices. `memory` holds the state of stateful groupings and passes through the others.
"""

from collections.abc import Callable, Mapping
from functools import partial

import jax.numpy as jnp

from grpo_jax import masked
from grpo_jax.types import Array, Collected

Memory = Mapping[str, Array]
Grouping = Callable[[Collected, Memory], tuple[Array, Memory]]


def by_prompt(collected: Collected, memory: Memory) -> tuple[Array, Memory]:
    """Rows that answer the same prompt form a group (arXiv 2402.03300)."""
    return collected.rollouts.prompt, memory


def by_label(collected: Collected, memory: Memory, *, name: str) -> tuple[Array, Memory]:
    """Rows whose prompts have the same label `name` (`Prompts.label`) form a group, whatever the prompt.

    A row that answers no prompt, or one whose label is negative, is in no group. Labels may be any numbers: a group
    goes by the number of the first prompt in it, which lies below P. Raises ValueError where the prompts have no such
    label.
    """
    rollouts = collected.rollouts
    if name not in rollouts.prompts.label:
        raise ValueError(
            f"by_label.name: got {name!r}, allowed {', '.join(sorted(rollouts.prompts.label)) or 'none'}, the labels of"
            f" these prompts: let the task make it, as Jsonl(labels=({name!r},)) does of a key of its lines, or group"
            " by another one"
        )
    label = rollouts.prompts.label[name]
    first = jnp.argmax(label[:, None] == label[None, :], axis=1).astype(jnp.int32)
    group = jnp.where(label < 0, -1, first)
    answered = (rollouts.prompt >= 0) & (rollouts.prompt < label.shape[0])
    return jnp.where(answered, group.at[rollouts.prompt].get(mode="clip"), -1), memory


def tied(reward: Array, group: Array, *, num_groups: int, valid: Array) -> Array:
    """bool[num_groups]: True where a group's valid rewards are all exactly equal, or it has no valid row.

    The test compares the largest with the smallest reward. A standard deviation would not do: in float32 that of
    0.85, 0.85, 0.85 is not 0, because their mean is not 0.85.
    """
    largest = masked.segment_max(reward, group, num_groups, valid)
    return largest <= masked.segment_min(reward, group, num_groups, valid)


def drop_tied(
    collected: Collected, memory: Memory, *, grouping: Grouping = by_prompt, component: str | None = None
) -> tuple[Array, Memory]:
    """Labels of `grouping` with -1 for the rows of groups that teach nothing: all rewards exactly equal.

    Dynamic sampling of DAPO (arXiv 2503.14476, equation 11), whose rewards are right or wrong: a group is kept iff it
    has at least one of each. Groups of one are dropped. With `component` the rewards asked are those of that name (the
    metric of verl's filter), else the outcomes. Raises ValueError for a component that the reward lacks.
    """
    labels, memory = grouping(collected, memory)
    reward = _asked(collected, component, "drop_tied")
    flat = tied(reward, labels, num_groups=labels.shape[0], valid=collected.reward.valid)
    return jnp.where(masked.spread(flat, labels), -1, labels), memory


def drop_outside(
    collected: Collected,
    memory: Memory,
    *,
    grouping: Grouping = by_prompt,
    low: float = 0.0,
    high: float = 1.0,
    component: str | None = None,
) -> tuple[Array, Memory]:
    """Labels of `grouping` with -1 for the rows of groups whose mean reward is not between `low` and `high`, exclusive.

    OpenRLHF's filter; with rewards of 0 and 1 and its default range, the groups that `drop_tied` drops. Raises
    ValueError for an empty range or a component that the reward lacks.
    """
    if not low < high:
        raise ValueError(f"drop_outside: got low={low}, high={high}, allowed low < high: exchange them")
    labels, memory = grouping(collected, memory)
    reward, rows = _asked(collected, component, "drop_outside"), labels.shape[0]
    mean = masked.segment_mean(reward, labels, rows, collected.reward.valid)
    # The rounding of a mean of equal rewards may lie on the other side of a bound: the extremes do not round.
    largest = masked.segment_max(reward, labels, rows, collected.reward.valid)
    smallest = masked.segment_min(reward, labels, rows, collected.reward.valid)
    inside = (mean > low) & (mean < high) & (largest > low) & (smallest < high)
    return jnp.where(masked.spread(inside, labels), labels, -1), memory


def drop_truncated(collected: Collected, memory: Memory, *, grouping: Grouping = by_prompt) -> tuple[Array, Memory]:
    """Labels of `grouping` with -1 for rows that were cut off at the longest length instead of stopping.

    Overlong filtering (arXiv 2503.14476): a completion without an end was not judged. Its reward is in no mean either;
    TRL drops such rows from the loss alone.
    """
    labels, memory = grouping(collected, memory)
    return jnp.where(collected.rollouts.stopped, labels, -1), memory


def _asked(collected: Collected, component: str | None, grouping: str) -> Array:
    """The rewards that a filter asks."""
    if component is None:
        return collected.reward.outcome
    components = collected.reward.components
    if component not in components:
        raise ValueError(
            f"{grouping}.component: got {component!r}, allowed None and"
            f" {', '.join(map(repr, sorted(components))) or 'nothing else'}, the components of this reward"
        )
    return components[component]


GROUPINGS: dict[str, Grouping] = {
    "by_prompt": by_prompt,
    "by_category": partial(by_label, name="category"),
    "drop_tied": drop_tied,
    "drop_outside": drop_outside,
    "drop_truncated": drop_truncated,
}
