"""Advantages of the outcome reward: a baseline taken off, a deviation divided by."""

from typing import Any

import jax.numpy as jnp

from grpo_jax import masked
from grpo_jax.advantages.deviations import check, check_rows, equal_rewards, scaled
from grpo_jax.advantages.strategy import rows, to_tokens
from grpo_jax.groups import Memory
from grpo_jax.types import Array, Collected


def _scale(std: str, scope: str, eps: float, eps_mode: str, variance_floor: float, zero_std: str) -> dict[str, Any]:
    """The conventions of a division, checked."""
    check(std=std, scope=scope, eps_mode=eps_mode, zero_std=zero_std)
    return {
        "std": std,
        "scope": scope,
        "eps": eps,
        "eps_mode": eps_mode,
        "variance_floor": variance_floor,
        "zero_std": zero_std,
    }


def _finish(
    centred: Array,
    reward: Array,
    group: Array,
    *,
    num_groups: int,
    valid: Array,
    singleton: str,
    scale: dict[str, Any],
) -> Array:
    """`centred` divided as `scale` says, groups of one by their convention, rows of no group 0."""
    check(singleton=singleton)
    value = scaled(centred, reward, group, num_groups=num_groups, valid=valid, **scale)
    alone = masked.spread(masked.segment_count(group, num_groups, valid), group) == 1.0
    lonely = jnp.zeros_like(value)
    if singleton == "raw":
        unit = 1.0 + scale["eps"] if scale["eps_mode"] == "add" else max(1.0, scale["eps"])
        lonely = reward if scale["std"] == "none" else reward / unit
    return masked.select(masked.members(group, valid), jnp.where(alone, lonely, value))


def _deviation_from_mean(reward: Array, group: Array, num_groups: int, valid: Array) -> Array:
    """R_i - mean of its group -> f[N], exactly 0 in groups of equal rewards, whatever the rounding of their mean."""
    value = masked.select(masked.members(group, valid), reward)
    value = value - masked.spread(masked.segment_mean(reward, group, num_groups, valid), group)
    flat = equal_rewards(reward, group, num_groups=num_groups, valid=valid)
    return jnp.where(flat, jnp.zeros_like(value), value)


def standardized(
    reward: Array,
    group: Array,
    *,
    num_groups: int,
    valid: Array,
    std: str = "sample",
    scope: str = "group",
    eps: float = 1e-6,
    eps_mode: str = "add",
    variance_floor: float = 0.0,
    zero_std: str = "divide",
    singleton: str = "zero",
) -> Array:
    """(R_i - mean of its group) / (standard deviation + eps) -> f[N]; the outcome advantage of GRPO (arXiv 2402.03300).

    ``scope="batch"`` is the deviation of PPO-Lite (arXiv 2508.08221), ``std="none"`` is `centered`. verl and oat:
    sample, 1e-6, singleton "raw" (verl's vectorised form with ``variance_floor=1e-6``); TRL: sample, 1e-4; simply:
    population, 1e-5, eps_mode "max". Raises ValueError for an unknown convention.
    """
    check_rows(reward, group, valid)
    scale = _scale(std, scope, eps, eps_mode, variance_floor, zero_std)
    value = _deviation_from_mean(reward, group, num_groups, valid)
    return _finish(value, reward, group, num_groups=num_groups, valid=valid, singleton=singleton, scale=scale)


def centered(reward: Array, group: Array, *, num_groups: int, valid: Array, singleton: str = "zero") -> Array:
    """R_i - mean of its group -> f[N]; the advantage of Dr. GRPO (arXiv 2503.20783)."""
    return standardized(reward, group, num_groups=num_groups, valid=valid, std="none", singleton=singleton)


def leave_one_out(
    reward: Array,
    group: Array,
    *,
    num_groups: int,
    valid: Array,
    std: str = "none",
    scope: str = "others",
    eps: float = 1e-6,
    eps_mode: str = "add",
    variance_floor: float = 0.0,
    zero_std: str = "unscaled",
    singleton: str = "zero",
) -> Array:
    """R_i - mean of the *other* members of its group -> f[N] (RLOO, arXiv 2402.14740).

    Computed as (R_i - mean) n / (n - 1), the same number. With ``std="sample"`` it is what NeMo-RL calls GRPO: the
    deviation too is that of the others, and where those are all equal nothing is divided, because there is no scale.
    verl's loops have ``singleton="raw"``. Raises ValueError for an unknown convention.
    """
    check_rows(reward, group, valid)
    scale = _scale(std, scope, eps, eps_mode, variance_floor, zero_std)
    size = masked.spread(masked.segment_count(group, num_groups, valid, reward.dtype), group)
    value = _deviation_from_mean(reward, group, num_groups, valid) * size / jnp.maximum(size - 1.0, 1.0)
    return _finish(value, reward, group, num_groups=num_groups, valid=valid, singleton=singleton, scale=scale)


def length_weighted(
    reward: Array,
    group: Array,
    length: Array,
    *,
    num_groups: int,
    valid: Array,
    std: str = "none",
    scope: str = "group",
    eps: float = 1e-6,
    eps_mode: str = "add",
    variance_floor: float = 0.0,
    zero_std: str = "divide",
    singleton: str = "zero",
) -> Array:
    """R_i - sum_j n_j R_j / sum_j n_j over its group, n_j = `length` -> f[N]; OPO (arXiv 2505.23585).

    A group without any token gets 0. verl has ``singleton="raw"``. Raises ValueError for an unknown convention.
    """
    check_rows(reward, group, valid, length)
    scale = _scale(std, scope, eps, eps_mode, variance_floor, zero_std)
    member = masked.members(group, valid)
    raw, weight = masked.select(member, reward), length.astype(reward.dtype)
    total = masked.spread(masked.segment_sum(weight, group, num_groups, valid), group)
    paid = masked.spread(masked.segment_sum(weight * raw, group, num_groups, valid), group)
    value = raw - paid / jnp.maximum(total, 1.0)
    nothing = (total == 0.0) | equal_rewards(reward, group, num_groups=num_groups, valid=valid)
    value = jnp.where(nothing, jnp.zeros_like(value), value)
    return _finish(value, reward, group, num_groups=num_groups, valid=valid, singleton=singleton, scale=scale)


def batch_standardized(
    reward: Array,
    group: Array,
    *,
    num_groups: int,
    valid: Array,
    std: str = "none",
    scope: str = "batch",
    eps: float = 1e-5,
    eps_mode: str = "max",
    variance_floor: float = 0.0,
    zero_std: str = "divide",
) -> Array:
    """R_i - mean over the batch, divided by a deviation if `std` says so -> f[N]: REINFORCE with a baseline.

    Williams 1992. All rows that belong to some group are compared; a batch of a single row gives 0. simply:
    population, 1e-5, eps_mode "max". Raises ValueError for an unknown convention.
    """
    check_rows(reward, group, valid)
    scale = _scale(std, scope, eps, eps_mode, variance_floor, zero_std)
    member = masked.members(group, valid)
    value = _deviation_from_mean(reward, jnp.minimum(group, 0), 1, valid)
    return masked.select(member, scaled(value, reward, group, num_groups=num_groups, valid=valid, **scale))


def uncentered(
    reward: Array,
    group: Array,
    *,
    num_groups: int,
    valid: Array,
    std: str = "none",
    scope: str = "batch",
    eps: float = 1e-6,
    eps_mode: str = "add",
    variance_floor: float = 0.0,
    zero_std: str = "divide",
) -> Array:
    """R_i itself, divided by a deviation if `std` says so -> f[N]; REINFORCE without a baseline (Williams 1992)."""
    check_rows(reward, group, valid)
    scale = _scale(std, scope, eps, eps_mode, variance_floor, zero_std)
    member = masked.members(group, valid)
    raw = masked.select(member, reward)
    return masked.select(member, scaled(raw, reward, group, num_groups=num_groups, valid=valid, **scale))


def group_standardized(
    collected: Collected,
    labels: Array,
    memory: Memory,
    *,
    std: str = "sample",
    scope: str = "group",
    eps: float = 1e-6,
    eps_mode: str = "add",
    variance_floor: float = 0.0,
    zero_std: str = "divide",
    singleton: str = "zero",
) -> tuple[Array, Memory]:
    """Strategy of the kernel `standardized`: GRPO."""
    reward, labels = collected.reward, rows(labels, "group_standardized")
    scale = _scale(std, scope, eps, eps_mode, variance_floor, zero_std)
    shape = {"num_groups": labels.shape[0], "valid": reward.valid}
    return to_tokens(standardized(reward.outcome, labels, **shape, **scale, singleton=singleton), collected), memory


def group_centered(
    collected: Collected, labels: Array, memory: Memory, *, singleton: str = "zero"
) -> tuple[Array, Memory]:
    """Strategy of the kernel `centered`: Dr. GRPO."""
    reward, labels = collected.reward, rows(labels, "group_centered")
    advantage = centered(reward.outcome, labels, num_groups=labels.shape[0], valid=reward.valid, singleton=singleton)
    return to_tokens(advantage, collected), memory


def group_leave_one_out(
    collected: Collected,
    labels: Array,
    memory: Memory,
    *,
    std: str = "none",
    scope: str = "others",
    eps: float = 1e-6,
    eps_mode: str = "add",
    variance_floor: float = 0.0,
    zero_std: str = "unscaled",
    singleton: str = "zero",
) -> tuple[Array, Memory]:
    """Strategy of the kernel `leave_one_out`: RLOO; with ``std="sample"`` the GRPO of NeMo-RL."""
    reward, labels = collected.reward, rows(labels, "group_leave_one_out")
    scale = _scale(std, scope, eps, eps_mode, variance_floor, zero_std)
    shape = {"num_groups": labels.shape[0], "valid": reward.valid}
    return to_tokens(leave_one_out(reward.outcome, labels, **shape, **scale, singleton=singleton), collected), memory


def opo(
    collected: Collected,
    labels: Array,
    memory: Memory,
    *,
    std: str = "none",
    scope: str = "group",
    eps: float = 1e-6,
    eps_mode: str = "add",
    variance_floor: float = 0.0,
    zero_std: str = "divide",
    singleton: str = "zero",
) -> tuple[Array, Memory]:
    """Strategy of the kernel `length_weighted`: OPO; the length of a row is the number of its trained tokens."""
    reward, labels = collected.reward, rows(labels, "opo")
    length = masked.count(collected.rollouts.mask, axis=1, dtype=reward.outcome.dtype)
    scale = _scale(std, scope, eps, eps_mode, variance_floor, zero_std)
    shape = {"num_groups": labels.shape[0], "valid": reward.valid}
    advantage = length_weighted(reward.outcome, labels, length, **shape, **scale, singleton=singleton)
    return to_tokens(advantage, collected), memory


def batch_centered(
    collected: Collected,
    labels: Array,
    memory: Memory,
    *,
    std: str = "none",
    scope: str = "batch",
    eps: float = 1e-5,
    eps_mode: str = "max",
    variance_floor: float = 0.0,
    zero_std: str = "divide",
) -> tuple[Array, Memory]:
    """Strategy of the kernel `batch_standardized`: REINFORCE with the mean of the batch as its baseline."""
    reward, labels = collected.reward, rows(labels, "batch_centered")
    scale = _scale(std, scope, eps, eps_mode, variance_floor, zero_std)
    shape = {"num_groups": labels.shape[0], "valid": reward.valid}
    return to_tokens(batch_standardized(reward.outcome, labels, **shape, **scale), collected), memory


def outcome(
    collected: Collected,
    labels: Array,
    memory: Memory,
    *,
    std: str = "none",
    scope: str = "batch",
    eps: float = 1e-6,
    eps_mode: str = "add",
    variance_floor: float = 0.0,
    zero_std: str = "divide",
) -> tuple[Array, Memory]:
    """Strategy of the kernel `uncentered`: REINFORCE without a baseline."""
    reward, labels = collected.reward, rows(labels, "outcome")
    scale = _scale(std, scope, eps, eps_mode, variance_floor, zero_std)
    shape = {"num_groups": labels.shape[0], "valid": reward.valid}
    return to_tokens(uncentered(reward.outcome, labels, **shape, **scale), collected), memory
