"""Whitening over the tokens of the batch, and what is whitened: REINFORCE++ with and without a group baseline."""

import jax.numpy as jnp

from grpo_jax import masked
from grpo_jax.advantages.deviations import DDOF, all_equal, check
from grpo_jax.advantages.outcome import batch_standardized, group_centered, outcome
from grpo_jax.advantages.strategy import Advantage, counted, rows
from grpo_jax.groups import Memory
from grpo_jax.types import Array, Collected


def whiten(
    x: Array,
    mask: Array,
    *,
    std: str = "sample",
    eps: float = 1e-8,
    eps_mode: str = "add",
    shift_mean: bool = True,
) -> Array:
    """(x - mean) / s over the selected entries, each weighing 1 -> the shape of `x`, 0 outside `mask`.

    Entries that are all exactly equal give exactly 0.

    Args:
        x: any shape.
        mask: of that shape.
        std: "sample" (verl, tunix) or "population" (NeMo-RL, OpenRLHF): the divisor of the variance v.
        eps: guard of the variance.
        eps_mode: "add", s = sqrt(v + eps) (verl, tunix), or "max", s = sqrt(max(v, eps)) (NeMo-RL, OpenRLHF).
        shift_mean: False adds the mean again, as verl does with rewards.

    Raises:
        ValueError: an unknown convention; `std` "none" is none here.
    """
    check(eps_mode=eps_mode)
    if std not in DDOF:
        raise ValueError(f"std is {std!r}; allowed are 'sample', 'population': leave the advantage unwhitened instead")
    mean = masked.mean(x, mask)
    variance = masked.variance(x, mask, ddof=DDOF[std])
    divisor = jnp.sqrt(variance + eps if eps_mode == "add" else jnp.maximum(variance, eps))
    flat = all_equal(x, mask)
    value = jnp.where(flat, jnp.zeros_like(x), x - mean) / jnp.where(divisor > 0, divisor, jnp.ones_like(divisor))
    return masked.select(mask, value if shift_mean else value + mean)


def whitened(
    collected: Collected,
    labels: Array,
    memory: Memory,
    *,
    advantage: Advantage,
    std: str = "sample",
    eps: float = 1e-8,
    eps_mode: str = "add",
    shift_mean: bool = True,
) -> tuple[Array, Memory]:
    """Strategy: another strategy's advantages, whitened over all trained tokens, so that longer rows weigh more."""
    value, memory = advantage(collected, labels, memory)
    mask = counted(collected, rows(labels, "whitened"))
    return whiten(value, mask, std=std, eps=eps, eps_mode=eps_mode, shift_mean=shift_mean), memory


def renormalized(
    collected: Collected,
    labels: Array,
    memory: Memory,
    *,
    advantage: Advantage,
    std: str = "sample",
    eps: float = 1e-6,
) -> tuple[Array, Memory]:
    """Strategy: (A - mean) / (std + eps) of another strategy's advantages of rows, over all rows that have a token.

    Unlike `whitened` every row weighs 1. For strategies that give all tokens of a row one number.
    """
    value, memory = advantage(collected, labels, memory)
    mask = counted(collected, rows(labels, "renormalized"))
    tokens = masked.count(mask, axis=1, dtype=value.dtype)
    row = masked.total(value, mask, axis=1) / jnp.maximum(tokens, 1.0)
    shape = {"num_groups": labels.shape[0], "valid": tokens > 0}
    row = batch_standardized(row, labels, **shape, std=std, eps=eps, eps_mode="add")
    return jnp.where(mask, row[:, None], jnp.zeros((), row.dtype)), memory


def reinforce_pp_baseline(
    collected: Collected,
    labels: Array,
    memory: Memory,
    *,
    singleton: str = "zero",
    whiten_std: str = "sample",
    whiten_eps: float = 1e-8,
    whiten_eps_mode: str = "add",
) -> tuple[Array, Memory]:
    """R_i - mean of its group on every token, whitened: REINFORCE++-baseline (arXiv 2501.03262).

    verl: singleton "raw", sample, "add"; NeMo-RL: singleton "zero", population, "max". The divergence from the
    reference stands in the loss (k2), not in the reward.
    """
    value, memory = group_centered(collected, rows(labels, "reinforce_pp_baseline"), memory, singleton=singleton)
    mask = counted(collected, labels)
    return whiten(value, mask, std=whiten_std, eps=whiten_eps, eps_mode=whiten_eps_mode), memory


def reinforce_batch_norm(
    collected: Collected,
    labels: Array,
    memory: Memory,
    *,
    whiten_std: str = "population",
    whiten_eps: float = 1e-8,
    whiten_eps_mode: str = "max",
) -> tuple[Array, Memory]:
    """R_i on every token, whitened: REINFORCE whose batch baseline is weighted by length (NeMo-RL)."""
    value, memory = outcome(collected, rows(labels, "reinforce_batch_norm"), memory)
    mask = counted(collected, labels)
    return whiten(value, mask, std=whiten_std, eps=whiten_eps, eps_mode=whiten_eps_mode), memory
