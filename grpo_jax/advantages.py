"""Advantages: how much better a completion is than the others it is compared with.

Kernels work on arrays, ``(reward f[N], group i32[N]) -> f[N]``; groups may be interleaved and of unequal size. Rows
with ``valid`` False or a negative label are in no statistic and get 0. A group whose rewards are all exactly equal gets
exactly 0, whatever the rounding of its mean. Strategies ``(Collected, labels, memory) -> (f32[N,T], memory)`` apply a
kernel to the outcome reward and give every trained token of a row the row's advantage; an experiment holds a strategy.

Conventions differ between published implementations; they are keywords with these meanings everywhere:

=================  ====================================================================================
``std``            "sample" (divisor n - 1), "population" (divisor n) or "none" (no division)
``eps_mode``       "add": x / (s + eps); "max": x / max(s, eps)
``singleton``      a group of one gets "zero", or "raw": its reward, as if mean 0 and deviation 1
=================  ====================================================================================
"""

from collections.abc import Callable, Mapping

import chex
import jax.numpy as jnp

from grpo_jax import masked
from grpo_jax.groups import Memory, tied
from grpo_jax.types import Array, Collected

Advantage = Callable[[Collected, Array, Memory], tuple[Array, Memory]]

_DDOF: Mapping[str, int] = {"sample": 1, "population": 0}


def _check(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed are {', '.join(map(repr, allowed))}")


def _check_conventions(reward: Array, group: Array, valid: Array, std: str, eps_mode: str, singleton: str) -> None:
    chex.assert_rank([reward, group, valid], 1)
    chex.assert_equal_shape([reward, group, valid])
    _check("std", std, ("sample", "population", "none"))
    _check("eps_mode", eps_mode, ("add", "max"))
    _check("singleton", singleton, ("zero", "raw"))


def _guarded(deviation: Array, eps: float, eps_mode: str) -> Array:
    return deviation + eps if eps_mode == "add" else jnp.maximum(deviation, eps)


def _finish(value: Array, raw: Array, alone: Array, member: Array, singleton: str) -> Array:
    """Groups of one by their convention, rows of no group 0."""
    lonely = raw if singleton == "raw" else jnp.zeros_like(raw)
    return masked.select(member, jnp.where(alone, lonely, value))


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
    singleton: str = "zero",
) -> Array:
    """(R_i - mean of its group) / (standard deviation + eps) -> f[N]; the outcome advantage of GRPO (arXiv 2402.03300).

    `scope` "group" takes the deviation within the group, "batch" that of all raw rewards (arXiv 2508.08221).
    The variance is floored at `variance_floor`. ``std="none"`` is `centered`. Raises ValueError for an unknown
    convention.
    """
    _check_conventions(reward, group, valid, std, eps_mode, singleton)
    _check("scope", scope, ("group", "batch"))
    member = masked.members(group, valid)
    raw = masked.select(member, reward)
    size = masked.spread(masked.segment_count(group, num_groups, valid, raw.dtype), group)
    flat = masked.spread(tied(reward, group, num_groups=num_groups, valid=valid), group)
    value = raw - masked.spread(masked.segment_mean(reward, group, num_groups, valid), group)
    value = jnp.where(flat, jnp.zeros_like(value), value)
    if std == "none":
        return _finish(value, raw, size == 1.0, member, singleton)
    if scope == "batch":
        variance = masked.variance(raw, member, ddof=_DDOF[std])
    else:
        squares = masked.segment_sum(jnp.square(value), group, num_groups, valid)
        variance = masked.spread(squares, group) / jnp.maximum(size - _DDOF[std], 1.0)
    deviation = jnp.sqrt(jnp.maximum(variance, variance_floor))
    # A tied group is 0 / (0 + eps): with eps 0 that would be nan, so its divisor is 1.
    divisor = jnp.where(flat, jnp.ones_like(value), _guarded(deviation, eps, eps_mode))
    unit = 1.0 + eps if eps_mode == "add" else max(1.0, eps)
    return _finish(value / divisor, raw / unit, size == 1.0, member, singleton)


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
    eps: float = 1e-6,
    eps_mode: str = "add",
    singleton: str = "zero",
) -> Array:
    """R_i - mean of the *other* members of its group -> f[N] (RLOO, arXiv 2402.14740).

    Computed as (R_i - mean) n / (n - 1), the same number. With `std` the result is divided by the standard deviation of
    the others; where those are all equal it is left undivided, because there is no scale to divide by.
    """
    _check_conventions(reward, group, valid, std, eps_mode, singleton)
    member = masked.members(group, valid)
    raw = masked.select(member, reward)
    size = masked.spread(masked.segment_count(group, num_groups, valid, raw.dtype), group)
    others = jnp.maximum(size - 1.0, 1.0)
    centred = centered(reward, group, num_groups=num_groups, valid=valid)
    value = centred * size / others
    if std == "none":
        return _finish(value, raw, size == 1.0, member, singleton)
    # With c the centred rewards: sum_{j != i} (R_j - mean of the others)^2 = sum_j c_j^2 - c_i^2 n / (n - 1).
    squares = masked.spread(masked.segment_sum(jnp.square(centred), group, num_groups, valid), group)
    # Rewards whose squares overflow have an infinite deviation, as in `standardized`, and not inf - inf.
    remainder = jnp.where(jnp.isinf(squares), squares, squares - jnp.square(centred) * size / others)
    variance = remainder / jnp.maximum(others - _DDOF[std], 1.0)
    same = _others_tied(raw, group, num_groups=num_groups, valid=valid, size=size)
    deviation = jnp.sqrt(jnp.where(same, jnp.zeros_like(variance), jnp.maximum(variance, 0.0)))
    divisor = jnp.where(same, jnp.ones_like(value), _guarded(deviation, eps, eps_mode))
    unit = 1.0 + eps if eps_mode == "add" else max(1.0, eps)
    return _finish(value / divisor, raw / unit, size == 1.0, member, singleton)


def _others_tied(reward: Array, group: Array, *, num_groups: int, valid: Array, size: Array) -> Array:
    """bool[N]: True where the other members of the row's group have exactly equal rewards.

    That is so iff the group is tied, or all but this row have the group's largest, or its smallest, reward.
    """
    answer = size <= 2.0
    for extreme in (masked.segment_max, masked.segment_min):
        bound = masked.spread(extreme(reward, group, num_groups, valid), group)
        at_bound = (reward == bound).astype(reward.dtype)
        number = masked.spread(masked.segment_sum(at_bound, group, num_groups, valid), group)
        answer |= (number - at_bound) == (size - 1.0)
    return answer


def _to_tokens(advantage: Array, collected: Collected) -> Array:
    """f[N] -> f[N,T]: the row's advantage on its trained tokens, 0 elsewhere."""
    mask = collected.rollouts.mask
    return jnp.where(mask, advantage[:, None], jnp.zeros((), advantage.dtype))


def _rows(labels: Array, strategy: str) -> Array:
    if labels.ndim != 1:
        raise ValueError(
            f"{strategy} compares whole rows: labels have shape {labels.shape}, allowed is i32[N]; "
            "choose a grouping that gives one label a row, or an advantage made for this one"
        )
    return labels


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
    singleton: str = "zero",
) -> tuple[Array, Memory]:
    """Strategy of the kernel `standardized`: GRPO."""
    reward, labels = collected.reward, _rows(labels, "group_standardized")
    advantage = standardized(
        reward.outcome,
        labels,
        num_groups=labels.shape[0],
        valid=reward.valid,
        std=std,
        scope=scope,
        eps=eps,
        eps_mode=eps_mode,
        variance_floor=variance_floor,
        singleton=singleton,
    )
    return _to_tokens(advantage, collected), memory


def group_centered(
    collected: Collected, labels: Array, memory: Memory, *, singleton: str = "zero"
) -> tuple[Array, Memory]:
    """Strategy of the kernel `centered`: Dr. GRPO."""
    reward, labels = collected.reward, _rows(labels, "group_centered")
    advantage = centered(reward.outcome, labels, num_groups=labels.shape[0], valid=reward.valid, singleton=singleton)
    return _to_tokens(advantage, collected), memory


def group_leave_one_out(
    collected: Collected,
    labels: Array,
    memory: Memory,
    *,
    std: str = "none",
    eps: float = 1e-6,
    eps_mode: str = "add",
    singleton: str = "zero",
) -> tuple[Array, Memory]:
    """Strategy of the kernel `leave_one_out`: RLOO."""
    reward, labels = collected.reward, _rows(labels, "group_leave_one_out")
    advantage = leave_one_out(
        reward.outcome,
        labels,
        num_groups=labels.shape[0],
        valid=reward.valid,
        std=std,
        eps=eps,
        eps_mode=eps_mode,
        singleton=singleton,
    )
    return _to_tokens(advantage, collected), memory


def batch_centered(
    collected: Collected,
    labels: Array,
    memory: Memory,
    *,
    std: str = "none",
    eps: float = 1e-5,
    eps_mode: str = "max",
) -> tuple[Array, Memory]:
    """R_i - mean over the batch, divided by the batch's deviation if `std` says so: REINFORCE with a baseline.

    Williams 1992. All rows that belong to some group form the one group compared; a batch of a single row gives 0.
    """
    reward, labels = collected.reward, _rows(labels, "batch_centered")
    advantage = standardized(
        reward.outcome,
        jnp.minimum(labels, 0),
        num_groups=1,
        valid=reward.valid,
        std=std,
        eps=eps,
        eps_mode=eps_mode,
    )
    return _to_tokens(advantage, collected), memory


ADVANTAGES: dict[str, Advantage] = {
    "group_standardized": group_standardized,
    "group_centered": group_centered,
    "group_leave_one_out": group_leave_one_out,
    "batch_centered": batch_centered,
}
