"""`check_grouping` accepts every grouping of the library, and names the law that a bad one breaks."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
import pytest
from jax.core import Tracer

from grpo_jax.groups import GROUPINGS, by_prompt, drop_tied
from grpo_jax.testing import check_grouping
from grpo_jax.types import Array, Collected

Memory = Mapping[str, Array]


@pytest.mark.parametrize("name", GROUPINGS)
def test_the_groupings_of_the_library_obey_the_laws(name: str):
    check_grouping(GROUPINGS[name], labels=("category",))


def every_other_prompt(collected: Collected, memory: Memory) -> tuple[Array, Memory]:
    """Leaves out, with a memory, the prompts of the other parity."""
    prompt = collected.rollouts.prompt
    return jnp.where(prompt % 2 == memory["steps"] % 2, prompt, -1), {**memory, "steps": memory["steps"] + 1}


def test_a_grouping_with_a_memory_or_of_another_grouping_passes():
    memory = {"steps": jnp.zeros((), jnp.int32)}
    check_grouping(every_other_prompt, memory=memory)
    check_grouping(partial(drop_tied, grouping=every_other_prompt), memory=memory)


def by_place(collected: Collected, memory: Memory) -> tuple[Array, Memory]:
    return jnp.arange(collected.rollouts.prompt.shape[0], dtype=jnp.int32) // 3, memory


def floats(collected: Collected, memory: Memory) -> tuple[Array, Memory]:
    return collected.rollouts.prompt.astype(jnp.float32), memory


def by_draw(collected: Collected, memory: Memory) -> tuple[Array, Memory]:
    return 100 * collected.rollouts.prompt, memory


def forgetful(collected: Collected, memory: Memory) -> tuple[Array, Memory]:
    return by_prompt(collected, memory)[0], {}


def counts_calls(collected: Collected, memory: Memory) -> tuple[Array, Memory]:
    _CALLS.append(0)
    prompt = collected.rollouts.prompt
    return jnp.where(prompt == len(_CALLS) % 2, -1, prompt), memory


def knows_whether_it_is_compiled(collected: Collected, memory: Memory) -> tuple[Array, Memory]:
    prompt = collected.rollouts.prompt
    return (prompt // 2 if isinstance(prompt, Tracer) else prompt), memory


def branches(collected: Collected, memory: Memory) -> tuple[Array, Memory]:
    prompt = collected.rollouts.prompt
    return (prompt if collected.reward.outcome.max() > 0 else prompt // 2), memory


def above_the_mean(collected: Collected, memory: Memory) -> tuple[Array, Memory]:
    """Reads rows that could not be scored."""
    reward = collected.reward.outcome
    return jnp.where(reward > reward.mean(), collected.rollouts.prompt, -1), memory


def by_share_of_the_width(collected: Collected, memory: Memory) -> tuple[Array, Memory]:
    share = collected.rollouts.mask.astype(jnp.float32).mean(axis=1)
    return jnp.where(share > 0.5, collected.rollouts.prompt, -1), memory


def small_batches(collected: Collected, memory: Memory) -> tuple[Array, Memory]:
    prompt = collected.rollouts.prompt
    return (prompt if prompt.shape[0] < 13 else prompt // 2), memory


_CALLS: list[int] = []
BROKEN: dict[str, tuple[Any, str]] = {
    "order": (by_place, "by_place depends on the order of the rows"),
    "floats": (floats, r"floats returns labels float32\[12\] for 12 rows"),
    "large labels": (by_draw, "by_draw returns the label 400 for 12 rows"),
    "memory lost": (forgetful, r"given a memory of {'steps': 'float32\[\]'} and returns {}"),
    "not pure": (counts_calls, "counts_calls gives other labels at a second call"),
    "not the same compiled": (knows_whether_it_is_compiled, "gives other groups when it is compiled"),
    "cannot be compiled": (branches, "branches cannot be compiled"),
    "garbage": (above_the_mean, "above_the_mean changes with nan in rows that have no valid reward"),
    "width": (by_share_of_the_width, "depends on the width of the padding"),
    "more rows": (small_batches, "changes with further rows that have no valid reward"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_grouping_that_breaks_a_law_is_told_which(name: str):
    grouping, law = BROKEN[name]
    with pytest.raises(AssertionError, match=law):
        check_grouping(grouping, memory={"steps": jnp.zeros(())})
