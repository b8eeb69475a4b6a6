"""Coefficients that follow a measurement: adaptive penalties and entropy bonuses.

A term reads a coefficient by its name, ``scale(term, by="beta")``; its value is part of the state of a run. After each
step `controlled` computes the next values from the present ones and the metrics of the step. The rules themselves are
kernels on two numbers.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp

from grpo_jax.objectives.description import functions
from grpo_jax.types import Array, Metrics

Control = Callable[[Mapping[str, Array], Metrics], Array]
"""``(coefficients, metrics of the step) -> f32[]``, the next value of one coefficient."""


class Coefficient(NamedTuple):
    """A number of the objective that changes in a run."""

    name: str
    initial: float
    control: Control


def proportional(
    value: Array, measured: Array, *, target: float, horizon: float, steps: float, clip: float = 0.2
) -> Array:
    """value (1 + clip(measured / target - 1, -clip, clip) steps / horizon) (arXiv 1909.08593; verl, OpenRLHF).

    Args:
        value: the coefficient, f32[].
        measured: the divergence, nats, f32[].
        target: the divergence to hold, positive.
        horizon: in the unit of `steps`: the relative error acts in full over this many.
        steps: samples (in the paper) that this update stands for.
        clip: the relative error is clipped to +- this.
    """
    error = jnp.clip(measured / target - 1.0, -clip, clip)
    return value * (1.0 + error * (steps / horizon))


def doubling(value: Array, measured: Array, *, target: float, band: float = 1.5, factor: float = 2.0) -> Array:
    """value / factor below target / band, value * factor above band * target, else value (arXiv 1707.06347, section 4).

    Args:
        value: the coefficient, f32[]; the paper begins at 1.
        measured: KL(old || new) after the update, nats, f32[].
        target: the divergence to hold; 0.003, 0.01 and 0.03 in the paper.
        band: how far the divergence may be off, as a factor.
        factor: what the coefficient is multiplied or divided by.
    """
    low, high = measured < target / band, measured > target * band
    return jnp.where(low, value / factor, jnp.where(high, value * factor, value))


def stepping(value: Array, measured: Array, *, target: float, step: float = 0.005, floor: float | None = None) -> Array:
    """value + step where measured <= target, else value - step (Skywork-OR1, arXiv 2505.22312).

    Args:
        value: the coefficient of the entropy bonus, f32[].
        measured: the entropy, nats, f32[].
        target: the least entropy to hold; 0.2 in the paper.
        step: what the coefficient moves by; 0.005 in the paper.
        floor: it does not fall below this; None (the paper states none): without bound.
    """
    moved = jnp.where(measured <= target, value + step, value - step)
    return moved if floor is None else jnp.maximum(moved, floor)


def following(
    coef: Mapping[str, Array], metrics: Metrics, *, name: str, measure: str, rule: Callable[[Array, Array], Array]
) -> Array:
    """Control: the rule applied to the coefficient `name` and the metric `measure`.

    A metric that is not finite (of an update that was refused) leaves the coefficient as it is.
    """
    value, measured = _named(coef, name, "coefficients"), _named(metrics, measure, "metrics")
    moved = rule(value, measured.astype(value.dtype))
    return jnp.where(jnp.isfinite(moved), moved, value)


def gated(coef: Mapping[str, Array], metrics: Metrics, *, control: Control, measure: str, target: float) -> Array:
    """Control: what `control` gives while the metric `measure` is at most `target`, else 0.

    With the entropy as the metric, the bonus of Skywork-OR1, which acts only where the entropy has fallen to the
    target; `control` moves the level on meanwhile, under a name of its own.
    """
    value = control(coef, metrics)
    return jnp.where(_named(metrics, measure, "metrics") <= target, value, jnp.zeros_like(value))


def measured(coefficients: tuple[Coefficient, ...]) -> frozenset[str]:
    """The metrics that the controls follow: what is bound in them as the keyword ``measure``."""
    bound = (keywords.get("measure") for one in coefficients for _, keywords in functions(one.control))
    return frozenset(name for name in bound if isinstance(name, str))


def initial_values(coefficients: tuple[Coefficient, ...]) -> dict[str, Array]:
    """Name -> f32[], the values that a run begins with."""
    return {one.name: jnp.asarray(one.initial, jnp.float32) for one in coefficients}


def controlled(coefficients: tuple[Coefficient, ...], coef: Mapping[str, Array], metrics: Metrics) -> dict[str, Array]:
    """The coefficients of the next step; all read the values of this one, and names without a control stay.

    Args:
        coefficients: those of the recipe.
        coef: values during the step.
        metrics: of the step, after its updates.

    Raises:
        ValueError: a control reads a name that is not there.
    """
    return {**coef, **{one.name: one.control(coef, metrics).astype(coef[one.name].dtype) for one in coefficients}}


def _named(table: Mapping[str, Array], name: str, kind: str) -> Array:
    if name not in table:
        known = ", ".join(sorted(table)) or "none"
        raise ValueError(f"{kind}: got no {name!r}, there are: {known}: name one of them")
    return table[name]
