"""Process supervision: rewards of steps inside a completion (arXiv 2402.03300, section 4.1.3)."""

import jax.numpy as jnp

from grpo_jax import masked
from grpo_jax.advantages.deviations import DDOF, check, guarded
from grpo_jax.advantages.returns import discounted_returns
from grpo_jax.advantages.strategy import given, reads, rows
from grpo_jax.groups import Memory
from grpo_jax.types import Array, Collected


def step_advantages(
    reward: Array,
    ends: Array,
    mask: Array,
    group: Array,
    *,
    num_groups: int,
    valid: Array,
    std: str = "sample",
    eps: float = 1e-6,
    eps_mode: str = "add",
    variance_floor: float = 0.0,
    single_step: str = "zero",
) -> Array:
    """f[N,T], 0 outside `mask`: the standardised rewards of the steps that end at a token or behind it, summed.

    With q the rewards of all steps of all rows of a group, z = (q - mean) / (std + eps) and A_{i,t} is the sum of z_ij
    over the steps j of row i with e_ij >= t: the token that ends a step gets that step's z, tokens behind the last step
    get 0. Equal rewards of all steps give exactly 0. A step ends with a token that trains: `ends` outside `mask` says
    nothing.

    Args:
        reward: f[N,T], q of a step on the token that ends it.
        ends: bool[N,T], the tokens that end a step.
        mask: bool[N,T].
        group: i32[N].
        num_groups: more than the largest label.
        valid: bool[N].
        std: "sample", "population" or "none"; the paper does not say.
        eps: guard of the deviation; the paper has none.
        eps_mode: where it goes.
        variance_floor: of the variance.
        single_step: a group with a single step: "zero", or "raw", as if mean 0 and deviation 1.

    Raises:
        ValueError: an unknown convention.
    """
    check(std=std, eps_mode=eps_mode, single_step=single_step)
    member = masked.members(group, valid)
    steps = ends & mask & member[:, None]

    def of_group(row: Array) -> Array:
        return masked.spread(masked.segment_sum(row, group, num_groups, valid), group)

    def extreme(segment, fill: float, reduce) -> Array:
        row = reduce(masked.select(steps, reward, fill), axis=1)
        return masked.spread(segment(row, group, num_groups, valid), group)

    number = of_group(masked.count(steps, axis=1, dtype=reward.dtype))
    mean = of_group(masked.total(reward, steps, axis=1)) / jnp.maximum(number, 1.0)
    flat = extreme(masked.segment_max, -jnp.inf, jnp.max) <= extreme(masked.segment_min, jnp.inf, jnp.min)
    z = jnp.where(steps & ~flat[:, None], reward - mean[:, None], jnp.zeros_like(reward))
    unit = jnp.ones_like(mean)
    if std != "none":
        variance = of_group(jnp.sum(jnp.square(z), axis=1)) / jnp.maximum(number - DDOF[std], 1.0)
        deviation = jnp.sqrt(jnp.maximum(variance, variance_floor))
        z = z / guarded(deviation, eps=eps, eps_mode=eps_mode)[:, None]
        unit = guarded(unit, eps=eps, eps_mode=eps_mode)
    if single_step == "raw":
        z = jnp.where(steps & (number == 1.0)[:, None], reward / unit[:, None], z)
    return discounted_returns(z, mask & member[:, None], gamma=1.0)


@reads("step_end", "token")
def process_supervision(
    collected: Collected,
    labels: Array,
    memory: Memory,
    *,
    std: str = "sample",
    eps: float = 1e-6,
    eps_mode: str = "add",
    variance_floor: float = 0.0,
    single_step: str = "zero",
) -> tuple[Array, Memory]:
    """Strategy of the kernel `step_advantages`: GRPO with process supervision. Raises ValueError without steps."""
    labels = rows(labels, "process_supervision")
    remedy = "let the reward mark the token that ends each step and put the step's reward there"
    advantage = step_advantages(
        given(collected.reward.token, "Reward.token", "process_supervision", remedy),
        given(collected.reward.step_end, "Reward.step_end", "process_supervision", remedy),
        collected.rollouts.mask,
        labels,
        num_groups=labels.shape[0],
        valid=collected.reward.valid,
        std=std,
        eps=eps,
        eps_mode=eps_mode,
        variance_floor=variance_floor,
        single_step=single_step,
    )
    return advantage, memory
