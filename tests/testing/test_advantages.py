"""`check_advantage` accepts every estimator of the library, and names the law that a bad one breaks."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from jax.core import Tracer

from grpo_jax import advantages as a
from grpo_jax import masked
from grpo_jax.advantages import (
    ADVANTAGES,
    batch_centered,
    group_centered,
    group_leave_one_out,
    group_standardized,
    standardized,
)
from grpo_jax.testing import check_advantage
from grpo_jax.types import Array, Collected

Memory = Mapping[str, Array]
Strategy = Any

BATCH = {"compared": "batch"}
NO_BASELINE = {"ties": False, "shifts": False}
COMPARES: dict[str, dict[str, Any]] = {
    "batch_centered": BATCH,
    "reinforce_batch_norm": BATCH,
    "reinforce_pp": BATCH,
    "reinforce_pp_baseline": BATCH,  # centred by group, then whitened by the batch
    "outcome": NO_BASELINE,
    "remax": NO_BASELINE,
    "gae": NO_BASELINE,
    "gae_length_adaptive": NO_BASELINE,
    "role_baseline": {**NO_BASELINE, "local": False, "labels": ("role",)},
    "maxrl": {"shifts": False},  # right and wrong are 1 and 0
    "passk": {"shifts": False},
    "gpg": {"local": False},  # a factor of the batch
    "gdpo": {"local": False},
}
"""What an entry compares, where that is not the rows of a group."""
BOUND = {"role_baseline": partial(a.role_baseline, roles=8)}
"""What an entry needs to know before it can be asked."""
CONVENTIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    **{
        f"{std} {mode} {strategy.__name__}": (partial(strategy, std=std, eps_mode=mode), keywords)
        for std, mode in (("sample", "max"), ("population", "add"))
        for strategy, keywords in (
            (group_standardized, {}),
            (group_leave_one_out, {}),
            (batch_centered, {"compared": "batch"}),
        )
    },
    # A deviation of the batch: rewards are compared in their group, and divided by what depends on all.
    "one deviation": (partial(group_standardized, scope="batch"), {"local": False, "shifts": False}),
    "one deviation, all shifted": (partial(group_standardized, scope="batch"), {"compared": "batch"}),
    "groups of one keep their reward": (partial(group_centered, singleton="raw"), {}),
    "a floor": (partial(group_standardized, variance_floor=0.25), {}),
    "one deviation, none where all others are equal": (
        partial(group_leave_one_out, std="sample", zero_std="divide", eps=0.1),
        {},
    ),
    "lengths, divided": (partial(a.opo, std="sample", singleton="raw"), {}),
    "outcomes, divided": (partial(a.outcome, std="sample"), {**NO_BASELINE, "local": False}),
    "gpg of verl": (partial(a.gpg, alpha="nonzero_rewards", singleton="raw"), {"local": False, "shifts": False}),
    "pass@3, max": (partial(a.passk, k=3, eps_mode="max"), {"shifts": False}),
    "the best, undivided": (partial(a.passk_max_minus_second, std="none"), {}),
    "components, rows that lack one out": (
        partial(a.weighted_components, missing="row", advantage=a.maxrl),
        COMPARES["maxrl"],
    ),
    "gdpo without the batch": (partial(a.gdpo, std="population", renormalize_std="none"), {}),
    "steps, centred": (partial(a.process_supervision, std="none", single_step="raw"), {}),
    "whitened values": (
        partial(a.whitened, advantage=a.gae, std="population", eps_mode="max"),
        {**NO_BASELINE, "local": False},
    ),
    "rows again": (partial(a.renormalized, advantage=group_centered), BATCH),
    "rewards of tokens": (
        partial(a.reinforce_pp, rewards="token", gamma=0.5, holes="reset"),
        NO_BASELINE | {"local": False},
    ),
    "both, penalized": (
        partial(a.penalized_tokens, advantage=partial(a.gae, rewards="token", holes="reset"), rewards="both"),
        NO_BASELINE,
    ),
    "token baseline of verl": (
        partial(a.optimal_token_baseline, eps_mode="add", singleton="raw"),
        {"ties": False},
    ),
}


@pytest.mark.parametrize("name", ADVANTAGES)
def test_the_advantages_of_the_library_obey_the_laws(name: str):
    strategy = BOUND.get(name, ADVANTAGES[name])
    check_advantage(strategy, **COMPARES.get(name, {}), memory=a.initial_memory(strategy))


@pytest.mark.parametrize("name", CONVENTIONS)
def test_their_other_conventions_obey_the_laws(name: str):
    strategy, keywords = CONVENTIONS[name]
    check_advantage(strategy, **keywords)


def spread(row: Array, collected: Collected) -> Array:
    mask = collected.rollouts.mask
    return jnp.where(mask, row[:, None], jnp.zeros((), row.dtype))


def member(collected: Collected, labels: Array) -> Array:
    return masked.members(labels, collected.reward.valid)


def raw(collected: Collected, labels: Array, memory: Memory) -> tuple[Array, Memory]:
    """REINFORCE without a baseline."""
    return spread(masked.select(member(collected, labels), collected.reward.outcome), collected), memory


def moving_baseline(
    collected: Collected, labels: Array, memory: Memory, *, decay: float = 0.5
) -> tuple[Array, dict[str, Array]]:
    """Rewards without the mean of earlier steps, which memory holds."""
    known, reward = member(collected, labels), collected.reward.outcome
    baseline = memory["baseline"]
    value = masked.select(known, reward - baseline)
    moved = decay * baseline + (1 - decay) * masked.mean(reward, known)
    return spread(value, collected), {**memory, "baseline": moved}


def test_an_estimator_without_a_baseline_passes_when_it_says_so():
    check_advantage(raw, ties=False, shifts=False)
    with pytest.raises(AssertionError, match=r"raw gives 0\.85 where all rewards of the group are 0\.85.*ties=False"):
        check_advantage(raw)
    with pytest.raises(AssertionError, match=r"raw changes where 2 is added .* shifts=False"):
        check_advantage(raw, ties=False)


def test_an_estimator_with_a_memory_passes():
    check_advantage(moving_baseline, ties=False, shifts=False, memory={"baseline": jnp.zeros(())})


def test_what_is_compared_has_to_be_one_of_two():
    with pytest.raises(ValueError, match="compared: got 'prompt', allowed are 'group', 'batch'"):
        check_advantage(raw, compared="prompt")


# Each breaks one law.


def a_row(collected: Collected, labels: Array, memory: Memory) -> tuple[Array, Memory]:
    return group_centered(collected, labels, memory)[0][:, 0], memory


def no_memory(collected: Collected, labels: Array, memory: Memory) -> Any:
    return group_centered(collected, labels, memory)[0]


def halved(collected: Collected, labels: Array, memory: Memory) -> tuple[Array, Memory]:
    return group_centered(collected, labels, memory)[0].astype(jnp.float16), memory


def single(collected: Collected, labels: Array, memory: Memory) -> tuple[Array, Memory]:
    return group_centered(collected, labels, memory)[0].astype(jnp.float32), memory


def forgetful(collected: Collected, labels: Array, memory: Memory) -> tuple[Array, Memory]:
    return group_centered(collected, labels, {})[0], {}


def changes_its_memory(collected: Collected, labels: Array, memory: Any) -> tuple[Array, Memory]:
    memory["steps"] = memory["steps"] + 1
    return group_centered(collected, labels, memory)[0], memory


def not_finite(collected: Collected, labels: Array, memory: Memory) -> tuple[Array, Memory]:
    value, memory = group_centered(collected, labels, memory)
    return value / value, memory


def everybody(collected: Collected, labels: Array, memory: Memory) -> tuple[Array, Memory]:
    reward = collected.reward.outcome
    return spread(reward - jnp.mean(reward), collected), memory


def everywhere(collected: Collected, labels: Array, memory: Memory) -> tuple[Array, Memory]:
    reward = masked.select(member(collected, labels), collected.reward.outcome)
    return jnp.broadcast_to(reward[:, None], collected.rollouts.mask.shape), memory


def nothing(collected: Collected, labels: Array, memory: Memory) -> tuple[Array, Memory]:
    return jnp.zeros_like(collected.logp_old), memory


def counts_calls(collected: Collected, labels: Array, memory: Memory) -> tuple[Array, Memory]:
    _CALLS.append(0)
    return group_centered(collected, labels, memory)[0] * float(len(_CALLS)), memory


def knows_whether_it_is_compiled(collected: Collected, labels: Array, memory: Memory) -> tuple[Array, Memory]:
    value, memory = group_centered(collected, labels, memory)
    return value * (2.0 if isinstance(value, Tracer) else 1.0), memory


def branches(collected: Collected, labels: Array, memory: Memory) -> tuple[Array, Memory]:
    value, memory = group_centered(collected, labels, memory)
    return (value if jnp.max(value) > 0 else -value), memory


def in_rows_of_two(collected: Collected, labels: Array, memory: Memory) -> tuple[Array, Memory]:
    reward = masked.select(member(collected, labels), collected.reward.outcome).reshape(-1, 2)
    value = (reward - jnp.mean(reward, axis=1, keepdims=True)).reshape(-1)
    return spread(masked.select(member(collected, labels), value), collected), memory


def four_groups(collected: Collected, labels: Array, memory: Memory) -> tuple[Array, Memory]:
    reward = collected.reward
    value = standardized(reward.outcome, labels, num_groups=4, valid=reward.valid, std="none")
    return spread(value, collected), memory


def multiplied(collected: Collected, labels: Array, memory: Memory) -> tuple[Array, Memory]:
    value, memory = group_centered(collected, labels, memory)
    return value * collected.rollouts.mask.astype(value.dtype) * jnp.square(1.0 + 0.0 * collected.logp_old), memory


def mean_over_the_width(collected: Collected, labels: Array, memory: Memory) -> tuple[Array, Memory]:
    value, memory = group_centered(collected, labels, memory)
    return value * jnp.mean(collected.rollouts.mask.astype(value.dtype), axis=1, keepdims=True), memory


def shared_among_rows(collected: Collected, labels: Array, memory: Memory) -> tuple[Array, Memory]:
    value, memory = group_centered(collected, labels, memory)
    return value / labels.shape[0], memory


def nan_without_rows(collected: Collected, labels: Array, memory: Memory) -> tuple[Array, Memory]:
    value, memory = group_centered(collected, labels, memory)
    number = masked.count(member(collected, labels), dtype=value.dtype)
    return jnp.where(collected.rollouts.mask, value * number / number, 0.0), memory


def rounded(collected: Collected, labels: Array, memory: Memory) -> tuple[Array, Memory]:
    """GRPO without the question whether a group is tied: float32 makes advantages of nothing."""
    reward = collected.reward.outcome
    known = member(collected, labels)
    mean = masked.spread(masked.segment_mean(reward, labels, labels.shape[0], known), labels)
    centred = masked.select(known, reward - mean)
    squares = masked.segment_mean(jnp.square(centred), labels, labels.shape[0], known)
    return spread(centred / (jnp.sqrt(masked.spread(squares, labels)) + 1e-6), collected), memory


def relative(collected: Collected, labels: Array, memory: Memory) -> tuple[Array, Memory]:
    value, memory = group_centered(collected, labels, memory)
    known = member(collected, labels)
    return value * jnp.square(masked.select(known, collected.reward.outcome))[:, None], memory


def one_scale(collected: Collected, labels: Array, memory: Memory) -> tuple[Array, Memory]:
    value, memory = group_centered(collected, labels, memory)
    return value / (jnp.max(jnp.abs(value)) + 1e-6), memory


def squared(collected: Collected, labels: Array, memory: Memory) -> tuple[Array, Memory]:
    value, memory = group_centered(collected, labels, memory)
    return value * jnp.abs(value), memory


_CALLS: list[int] = []
BROKEN: dict[str, tuple[Strategy, str]] = {
    "row": (a_row, r"returns shape \(12,\) for rows and tokens \(12, 5\)"),
    "alone": (no_memory, r"returns .*: a strategy returns \(advantage f32\[N,T\], memory\)"),
    "float16": (halved, "returns float16 for rewards in float32: keep the input's dtype"),
    "float32": (single, "returns float32 for rewards in float64: keep the input's dtype"),
    "memory lost": (forgetful, r"given a memory of {'steps': 'float32\[\]'} and returns {}"),
    "memory changed": (changes_its_memory, "changes the memory that it is given"),
    "nan": (not_finite, "is not finite on ordinary rewards"),
    "invalid rows": (everybody, "is not 0 for a row without a valid reward or without a group"),
    "outside the mask": (everywhere, r"is not 0 outside Rollouts\.mask"),
    "nothing": (nothing, "is 0 everywhere, on rewards that differ"),
    "not pure": (counts_calls, "gives other numbers at a second call"),
    "not the same compiled": (knows_whether_it_is_compiled, "gives other numbers when it is compiled"),
    "cannot be compiled": (branches, "cannot be compiled .*choose values by jnp.where"),
    "order": (in_rows_of_two, "depends on the order of the rows"),
    "numbers of labels": (four_groups, "depends on the numbers of the labels"),
    "garbage": (multiplied, "changes with nan in rows that have no valid reward"),
    "width": (mean_over_the_width, "depends on the width of the padding"),
    "more rows": (shared_among_rows, "changes with further rows that have no valid reward or no group"),
    "nothing scored": (nan_without_rows, "is not 0 where no row could be scored"),
    "ties": (rounded, r"where all rewards of the group are .* ask grpo_jax\.groups\.tied"),
    "shifts": (relative, "changes where 2 is added to all rewards of the group"),
    "other groups": (one_scale, "of a group changes with the rewards of another group"),
    "extremes": (squared, r"is not finite where the rewards of a group are 1e\+30"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_strategy_that_breaks_a_law_is_told_which(name: str):
    strategy, law = BROKEN[name]
    with pytest.raises(AssertionError, match=f"^{strategy.__name__} .*{law}"):
        check_advantage(strategy, memory={"steps": jnp.zeros(())})


def test_the_extreme_rewards_of_the_law_are_extreme():
    with np.errstate(over="ignore", under="ignore"):
        assert np.isinf(np.square(np.float32(1e30))) and np.square(np.float32(1e-45)) == 0
