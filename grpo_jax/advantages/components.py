"""Several rewards a row: their weighted sum, or each normalised on its own (GDPO). Nan is a component that is missing.

What `missing` does with nan: "component", that component is in no statistic and adds 0 to the sum, and a row with none
at all is in no statistic and gets 0 (TRL); "row", a row that lacks any component is treated so.
"""

import dataclasses

import jax.numpy as jnp

from grpo_jax import masked
from grpo_jax.advantages.deviations import DDOF, check, guarded
from grpo_jax.advantages.outcome import group_standardized, standardized
from grpo_jax.advantages.strategy import Advantage, reads, rows, to_tokens
from grpo_jax.groups import Memory
from grpo_jax.types import Array, Collected

Weights = tuple[tuple[str, float], ...]


def present(components: Array, *, missing: str = "component") -> tuple[Array, Array]:
    """(bool[N,K], which components count; bool[N], which rows have any) of f[N,K]; see the module for `missing`."""
    check(missing=missing)
    there = ~jnp.isnan(components)
    if missing == "row":
        there = jnp.broadcast_to(jnp.all(there, axis=1, keepdims=True), there.shape)
    return there, jnp.any(there, axis=1)


def weighted_sum(components: Array, *, weights: tuple[float, ...], missing: str = "component") -> tuple[Array, Array]:
    """(sum_k w_k R_ik f[N], bool[N] False for rows without any reward) of f[N,K] (TRL).

    Raises:
        ValueError: there is another number of weights than of components, or `missing` is unknown.
    """
    _check_weights(components, weights)
    there, scored = present(components, missing=missing)
    factor = jnp.asarray(weights, components.dtype)[None, :]
    return jnp.sum(masked.select(there, components) * factor, axis=1), scored


def separately_standardized(
    components: Array,
    group: Array,
    *,
    num_groups: int,
    valid: Array,
    weights: tuple[float, ...],
    std: str = "sample",
    eps: float = 1e-6,
    eps_mode: str = "add",
    missing: str = "component",
    renormalize_std: str = "sample",
    renormalize_eps: float = 1e-6,
) -> Array:
    """GDPO (arXiv 2601.05242) -> f[N]: each component standardised in its group, summed, then scaled over the batch.

    Z_ik = (R_ik - mu_gk) / (s_gk + eps), S_i = sum_k w_k Z_ik, A = (S - mean S) / (std S + eps), the last over all rows
    with a reward. The sum of Z over a group is 0, so mean S is 0 and not subtracted: its rounding would become an
    advantage of groups of equal rewards.

    Args:
        components: f[N,K], nan where one is missing.
        group: i32[N].
        num_groups: more than the largest label.
        valid: bool[N].
        weights: w, one a component.
        std: of the components.
        eps: of the components; 1e-4 in TRL.
        eps_mode: of the components.
        missing: see the module.
        renormalize_std: "sample", "population", or "none": S itself.
        renormalize_eps: added to the deviation of S.

    Raises:
        ValueError: an unknown convention, or another number of weights than of components.
    """
    _check_weights(components, weights)
    check(std=renormalize_std)
    there, scored = present(components, missing=missing)
    total = jnp.zeros_like(components[:, 0])
    for k, weight in enumerate(weights):
        shape = {"num_groups": num_groups, "valid": valid & there[:, k]}
        total += weight * standardized(components[:, k], group, **shape, std=std, eps=eps, eps_mode=eps_mode)
    member = masked.members(group, valid & scored)
    if renormalize_std == "none":
        return masked.select(member, total)
    divisor = jnp.maximum(masked.count(member, dtype=total.dtype) - DDOF[renormalize_std], 1.0)
    deviation = jnp.sqrt(masked.total(jnp.square(total), member) / divisor)
    return masked.select(member, total / guarded(deviation, eps=renormalize_eps, eps_mode="add"))


@reads("components")
def weighted_components(
    collected: Collected,
    labels: Array,
    memory: Memory,
    *,
    weights: Weights | None = None,
    missing: str = "component",
    advantage: Advantage = group_standardized,
) -> tuple[Array, Memory]:
    """Strategy: `advantage` of sum_k w_k R_ik in the place of the outcome.

    Args:
        collected: with ``Reward.components``, nan where one is missing.
        labels: of the rows.
        memory: handed on.
        weights: (name, weight) of the components that count; None: all of them, with weight 1.
        missing: see the module.
        advantage: strategy that reads outcomes.

    Raises:
        ValueError: a component is absent.
    """
    components, factors = _stacked(collected, weights, "weighted_components")
    reward, scored = weighted_sum(components, weights=factors, missing=missing)
    paid = dataclasses.replace(collected.reward, outcome=reward, valid=collected.reward.valid & scored)
    return advantage(dataclasses.replace(collected, reward=paid), labels, memory)


@reads("components")
def gdpo(
    collected: Collected,
    labels: Array,
    memory: Memory,
    *,
    weights: Weights | None = None,
    std: str = "sample",
    eps: float = 1e-6,
    eps_mode: str = "add",
    missing: str = "component",
    renormalize_std: str = "sample",
    renormalize_eps: float = 1e-6,
) -> tuple[Array, Memory]:
    """Strategy of the kernel `separately_standardized`: GDPO. `weights` as in `weighted_components`."""
    labels = rows(labels, "gdpo")
    components, factors = _stacked(collected, weights, "gdpo")
    value = separately_standardized(
        components,
        labels,
        num_groups=labels.shape[0],
        valid=collected.reward.valid,
        weights=factors,
        std=std,
        eps=eps,
        eps_mode=eps_mode,
        missing=missing,
        renormalize_std=renormalize_std,
        renormalize_eps=renormalize_eps,
    )
    return to_tokens(value, collected), memory


def _stacked(collected: Collected, weights: Weights | None, strategy: str) -> tuple[Array, tuple[float, ...]]:
    """The components f[N,K] that count, and their weights."""
    found = collected.reward.components
    chosen = tuple((name, 1.0) for name in sorted(found)) if weights is None else weights
    absent = [name for name, _ in chosen if name not in found]
    if absent or not chosen:
        raise ValueError(
            f"{strategy}.weights: got {', '.join(map(repr, absent)) or 'none'}, allowed"
            f" {', '.join(map(repr, sorted(found))) or 'none'}, the components of this reward: name its scorers"
        )
    return jnp.stack([found[name] for name, _ in chosen], axis=1), tuple(weight for _, weight in chosen)


def _check_weights(components: Array, weights: tuple[float, ...]) -> None:
    if components.ndim != 2 or components.shape[1] != len(weights):
        raise ValueError(
            f"weights: got {len(weights)} for components of shape {components.shape}, allowed one for each"
        )
