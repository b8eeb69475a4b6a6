"""Advantages made for rewards that say right or wrong, and for the best of several: MaxRL, pass@k, GPG."""

import jax
import jax.numpy as jnp

from grpo_jax import masked
from grpo_jax.advantages.deviations import check, check_rows, equal_rewards, guarded, scaled
from grpo_jax.advantages.outcome import centered
from grpo_jax.advantages.strategy import rows, to_tokens
from grpo_jax.groups import Memory
from grpo_jax.types import Array, Collected


def relative_to_mean(
    reward: Array, group: Array, *, num_groups: int, valid: Array, eps: float = 1e-6, eps_mode: str = "add"
) -> Array:
    """(R_i - mu) / (mu + eps) with mu the mean of its group -> f[N], 0 where mu <= 0: MaxRL (arXiv 2602.02710).

    For rewards of 0 and 1, where mu is the share of successes. The guard mu <= 0 is prime-rl's.
    """
    check(eps_mode=eps_mode)
    check_rows(reward, group, valid)
    value = centered(reward, group, num_groups=num_groups, valid=valid)
    mean = masked.spread(masked.segment_mean(reward, group, num_groups, valid), group)
    return jnp.where(mean > 0, value / guarded(mean, eps=eps, eps_mode=eps_mode), jnp.zeros_like(value))


def passk_analytic(
    reward: Array,
    group: Array,
    *,
    num_groups: int,
    valid: Array,
    k: int = 2,
    threshold: float = 0.5,
    eps: float = 1e-6,
    eps_mode: str = "add",
) -> Array:
    """Advantage of pass@k over all k-subsets of a group -> f[N] (arXiv 2508.10751, their ``calc_adv``).

    Of n rows c are right, that is R > `threshold`. rho = 1 - C(n-c, k) / C(n, k) is the share of subsets with a right
    row, s = sqrt(rho (1 - rho)) its deviation. A right row gets (1 - rho) / (s + eps), a wrong one
    (1 - rho - C(n-c-1, k-1) / C(n-1, k-1)) / (s + eps). A group of fewer than k rows is taken at k = n.

    Raises:
        ValueError: `k` is below 1.
    """
    check(eps_mode=eps_mode)
    check_rows(reward, group, valid)
    if k < 1:
        raise ValueError(f"k: got {k}, allowed 1 and more: pass@k asks for the best of k completions")
    member = masked.members(group, valid)
    right = member & (reward > threshold)
    number = masked.segment_count(group, num_groups, valid, reward.dtype)
    wrong = number - masked.segment_sum(right.astype(reward.dtype), group, num_groups, valid)

    def factor(j: Array, product: Array) -> Array:
        # C(w-1, k-1) / C(n-1, k-1) = prod_{j=1}^{k-1} (w - j) / (n - j), w wrong ones of n
        x = j.astype(reward.dtype)
        share = jnp.maximum(wrong - x, 0.0) / jnp.maximum(number - x, 1.0)
        return jnp.where(x < number, product * share, product)

    all_wrong_beside = jax.lax.fori_loop(1, k, factor, jnp.ones_like(number))
    none_right = all_wrong_beside * wrong / jnp.maximum(number, 1.0)  # 1 - rho
    s = jnp.sqrt(jnp.maximum(none_right * (1.0 - none_right), 0.0))
    divisor = masked.spread(guarded(s, eps=eps, eps_mode=eps_mode), group)
    of_right, of_wrong = masked.spread(none_right, group), masked.spread(none_right - all_wrong_beside, group)
    same = masked.spread((wrong == 0.0) | (wrong == number), group)
    value = jnp.where(right, of_right, of_wrong) / divisor
    return masked.select(member & ~same, value)


def max_minus_second(
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
) -> Array:
    """The best row of a group gets (best - second best) / (std + eps), the others 0 -> f[N] (arXiv 2503.19595; verl).

    Several best rows have nothing over the second: all get 0. So does a group of one, which verl refuses.
    """
    check(std=std, scope=scope, eps_mode=eps_mode, zero_std=zero_std)
    check_rows(reward, group, valid)
    member = masked.members(group, valid)
    raw = masked.select(member, reward)
    best = masked.spread(masked.segment_max(reward, group, num_groups, valid), group)
    first = member & (raw == best)
    second = masked.spread(masked.segment_max(reward, group, num_groups, valid & ~first), group)
    number = masked.spread(masked.segment_sum(first.astype(raw.dtype), group, num_groups, valid), group)
    ahead = first & (number == 1.0) & jnp.isfinite(second)
    value = jnp.where(ahead, raw - second, jnp.zeros_like(raw))
    scale = {"std": std, "scope": scope, "eps": eps, "eps_mode": eps_mode}
    scale |= {"variance_floor": variance_floor, "zero_std": zero_std}
    return masked.select(member, scaled(value, reward, group, num_groups=num_groups, valid=valid, **scale))


def gpg_factor(reward: Array, group: Array, *, num_groups: int, valid: Array, alpha: str = "varied_rows") -> Array:
    """f[], what GPG multiplies advantages by, B being the number of rows.

    "varied_rows": B / (rows in groups of unequal rewards), the paper's; "nonzero_rewards": B / (rewards that are not
    0), verl's; "none": 1. The divisor is at least 1.
    """
    check(alpha=alpha)
    member = masked.members(group, valid)
    if alpha == "none":
        return jnp.ones((), reward.dtype)
    if alpha == "nonzero_rewards":
        informative = member & (reward != 0.0)
    else:
        informative = member & ~equal_rewards(reward, group, num_groups=num_groups, valid=valid)
    whole, part = masked.count(member, dtype=reward.dtype), masked.count(informative, dtype=reward.dtype)
    return whole / jnp.maximum(part, 1.0)


def gpg_centered(
    reward: Array,
    group: Array,
    *,
    num_groups: int,
    valid: Array,
    alpha: str = "varied_rows",
    f_norm: float = 1.0,
    singleton: str = "zero",
) -> Array:
    """alpha (R_i - mean of its group) / f_norm -> f[N]: GPG (arXiv 2504.02546). verl: "nonzero_rewards", "raw"."""
    shape = {"num_groups": num_groups, "valid": valid}
    value = centered(reward, group, **shape, singleton=singleton)
    return gpg_factor(reward, group, **shape, alpha=alpha) * value / f_norm


def maxrl(
    collected: Collected, labels: Array, memory: Memory, *, eps: float = 1e-6, eps_mode: str = "add"
) -> tuple[Array, Memory]:
    """Strategy of the kernel `relative_to_mean`: MaxRL."""
    reward, shape = _shape(collected, labels, "maxrl")
    return to_tokens(relative_to_mean(reward, labels, **shape, eps=eps, eps_mode=eps_mode), collected), memory


def passk(
    collected: Collected,
    labels: Array,
    memory: Memory,
    *,
    k: int = 2,
    threshold: float = 0.5,
    eps: float = 1e-6,
    eps_mode: str = "add",
) -> tuple[Array, Memory]:
    """Strategy of the kernel `passk_analytic`."""
    reward, shape = _shape(collected, labels, "passk")
    value = passk_analytic(reward, labels, **shape, k=k, threshold=threshold, eps=eps, eps_mode=eps_mode)
    return to_tokens(value, collected), memory


def passk_max_minus_second(
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
) -> tuple[Array, Memory]:
    """Strategy of the kernel `max_minus_second`."""
    reward, shape = _shape(collected, labels, "passk_max_minus_second")
    scale = {"std": std, "scope": scope, "eps": eps, "eps_mode": eps_mode}
    scale |= {"variance_floor": variance_floor, "zero_std": zero_std}
    return to_tokens(max_minus_second(reward, labels, **shape, **scale), collected), memory


def gpg(
    collected: Collected,
    labels: Array,
    memory: Memory,
    *,
    alpha: str = "varied_rows",
    f_norm: float = 1.0,
    singleton: str = "zero",
) -> tuple[Array, Memory]:
    """Strategy of the kernel `gpg_centered`."""
    reward, shape = _shape(collected, labels, "gpg")
    value = gpg_centered(reward, labels, **shape, alpha=alpha, f_norm=f_norm, singleton=singleton)
    return to_tokens(value, collected), memory


def _shape(collected: Collected, labels: Array, strategy: str) -> tuple[Array, dict]:
    """The outcomes, and what every kernel of rows is told of them."""
    rows(labels, strategy)
    return collected.reward.outcome, {"num_groups": labels.shape[0], "valid": collected.reward.valid}
