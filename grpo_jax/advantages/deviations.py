"""By what a centred reward is divided: the standard deviation of a group, of the other rows, or of the batch."""

from collections.abc import Mapping

import chex
import jax.numpy as jnp

from grpo_jax import masked
from grpo_jax.groups import tied
from grpo_jax.types import Array

DDOF: Mapping[str, int] = {"sample": 1, "population": 0}
_ALLOWED: Mapping[str, tuple[str, ...]] = {
    "std": ("sample", "population", "none"),
    "scope": ("group", "others", "batch"),
    "eps_mode": ("add", "max"),
    "zero_std": ("divide", "unscaled"),
    "singleton": ("zero", "raw"),
    "single_step": ("zero", "raw"),
    "holes": ("carry", "zero", "reset"),
    "missing": ("component", "row"),
    "alpha": ("varied_rows", "nonzero_rewards", "none"),
    "update": ("step", "row"),
    "rewards": ("outcome", "token", "both"),
}


def check(**conventions: str) -> None:
    """Raise ValueError for a convention that does not exist."""
    for name, value in conventions.items():
        allowed = _ALLOWED[name]
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}; allowed are {', '.join(map(repr, allowed))}: choose one of these")


def check_rows(*arrays: Array) -> None:
    """Assert that all are of one shape [N]."""
    chex.assert_rank(list(arrays), 1)
    chex.assert_equal_shape(list(arrays))


def guarded(deviation: Array, *, eps: float, eps_mode: str) -> Array:
    """`deviation` + eps, or the larger of the two; 1 where that is 0, since nothing can be divided by it."""
    divisor = deviation + eps if eps_mode == "add" else jnp.maximum(deviation, eps)
    return jnp.where(divisor > 0, divisor, jnp.ones_like(divisor))


def equal_rewards(reward: Array, group: Array, *, num_groups: int, valid: Array, scope: str = "group") -> Array:
    """bool[N]: the rewards of the row's group, of the others in it, or of the batch are all exactly equal."""
    if scope == "batch":
        return jnp.broadcast_to(all_equal(reward, masked.members(group, valid)), reward.shape)
    if scope == "others":
        return _others_tied(reward, group, num_groups=num_groups, valid=valid)
    return masked.spread(tied(reward, group, num_groups=num_groups, valid=valid), group)


def all_equal(x: Array, mask: Array) -> Array:
    """bool[]: the selected entries are all exactly equal, or there is none."""
    return jnp.max(masked.select(mask, x, -jnp.inf)) <= jnp.min(masked.select(mask, x, jnp.inf))


def deviation(
    reward: Array, group: Array, *, num_groups: int, valid: Array, std: str = "sample", scope: str = "group"
) -> Array:
    """f[N], the standard deviation of the rewards that `scope` names, exactly 0 where those are all equal.

    Args:
        reward: f[N].
        group: i32[N].
        num_groups: more than the largest label.
        valid: bool[N].
        std: "sample" (divisor n - 1) or "population" (divisor n).
        scope: "group", the row's group, itself included; "others", the other members of its group; "batch", all raw
            rewards of the batch (arXiv 2508.08221).
    """
    member = masked.members(group, valid)
    raw = masked.select(member, reward)
    equal = equal_rewards(reward, group, num_groups=num_groups, valid=valid, scope=scope)
    if scope == "batch":
        variance = jnp.broadcast_to(masked.variance(raw, member, ddof=DDOF[std]), raw.shape)
    else:
        size = masked.spread(masked.segment_count(group, num_groups, valid, raw.dtype), group)
        centred = raw - masked.spread(masked.segment_mean(reward, group, num_groups, valid), group)
        squares = masked.spread(masked.segment_sum(jnp.square(centred), group, num_groups, valid), group)
        number = size
        if scope == "others":
            number = size - 1.0
            squares = _squares_of_others(raw, centred, squares, group, num_groups=num_groups, valid=valid)
        variance = squares / jnp.maximum(number - DDOF[std], 1.0)
    return jnp.sqrt(jnp.where(equal, jnp.zeros_like(variance), jnp.maximum(variance, 0.0)))


def scaled(
    value: Array,
    reward: Array,
    group: Array,
    *,
    num_groups: int,
    valid: Array,
    std: str,
    scope: str,
    eps: float,
    eps_mode: str,
    variance_floor: float,
    zero_std: str,
) -> Array:
    """`value` / (deviation of `reward` guarded by `eps`) -> f[N]; `value` itself where ``std`` is "none".

    The variance is floored at `variance_floor`. `zero_std` "unscaled" leaves the value undivided where the rewards
    are all equal (NeMo-RL). Every other convention is that of `deviation` and `guarded`.
    """
    if std == "none":
        return value
    s = deviation(reward, group, num_groups=num_groups, valid=valid, std=std, scope=scope)
    divisor = guarded(jnp.maximum(s, variance_floor**0.5), eps=eps, eps_mode=eps_mode)
    if zero_std == "unscaled":
        divisor = jnp.where(s == 0.0, jnp.ones_like(divisor), divisor)
    return value / divisor


def _squares_of_others(
    reward: Array, centred: Array, squares: Array, group: Array, *, num_groups: int, valid: Array
) -> Array:
    """sum_{j != i} (R_j - mean of the others)^2 -> f[N].

    With c the centred rewards and `squares` their sum of squares it is squares - c_i^2 n / (n - 1). Where c_i alone is
    the largest, that difference may cancel entirely, and the sum is taken directly: there is one such row in a group.
    """
    size = masked.spread(masked.segment_count(group, num_groups, valid, centred.dtype), group)
    difference = squares - jnp.square(centred) * size / jnp.maximum(size - 1.0, 1.0)
    # Rewards whose squares overflow have an infinite deviation, and not inf - inf.
    difference = jnp.where(jnp.isinf(squares), squares, difference)
    far = jnp.abs(centred)
    largest = far == masked.spread(masked.segment_max(far, group, num_groups, valid), group)
    number = masked.spread(masked.segment_sum(largest.astype(far.dtype), group, num_groups, valid), group)
    alone = largest & (number == 1.0)
    rest = valid & ~alone
    apart = reward - masked.spread(masked.segment_mean(reward, group, num_groups, rest), group)
    direct = masked.spread(masked.segment_sum(jnp.square(apart), group, num_groups, rest), group)
    return jnp.where(alone, direct, difference)


def _others_tied(reward: Array, group: Array, *, num_groups: int, valid: Array) -> Array:
    """bool[N]: True where the other members of the row's group have exactly equal rewards.

    That is so iff the group is tied, or all but this row have the group's largest, or its smallest, reward.
    """
    size = masked.spread(masked.segment_count(group, num_groups, valid, reward.dtype), group)
    answer = size <= 2.0
    for extreme in (masked.segment_max, masked.segment_min):
        bound = masked.spread(extreme(reward, group, num_groups, valid), group)
        at_bound = (reward == bound).astype(reward.dtype)
        number = masked.spread(masked.segment_sum(at_bound, group, num_groups, valid), group)
        answer |= (number - at_bound) == (size - 1.0)
    return answer
