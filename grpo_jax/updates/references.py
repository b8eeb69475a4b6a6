"""Which policy the penalty compares with: the one that training began with, or one that moves with the policy.

A reference that moves is part of `TrainState`, and so of every checkpoint; of a policy that is trained in part it is
that part alone. Replacing and averaging it are the two updates of Gorbatovski et al., "Learn your reference model"
(arXiv:2404.09656), the hard and the soft one; the average is taken after every step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from grpo_jax.models.layers import accumulator
from grpo_jax.types import Array, Params


@dataclass(frozen=True)
class Fixed:
    """The policy that training began with, for the whole run."""


@dataclass(frozen=True)
class Replaced:
    """The policy behind the last step whose number is a multiple of `every`, at first that of the beginning."""

    every: int

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"train.reference.every: got {self.every}, allowed >= 1 steps: set 100, or use Fixed()")


@dataclass(frozen=True)
class Averaged:
    """The exponential average of the policies: after each step ``ref <- decay ref + (1 - decay) params``.

    It is kept in float32 at least, because a small share of a step would be lost in fewer digits. Of adapters the two
    factors are averaged, not their product.
    """

    decay: float

    def __post_init__(self) -> None:
        if not 0 < self.decay < 1:
            raise ValueError(
                f"train.reference.decay: got {self.decay}, allowed 0 < decay < 1: 0.99 looks back about 100 steps; use"
                " Fixed() for a reference that stays, Replaced(every=1) for the policy of the step before"
            )


AnyReference = Fixed | Replaced | Averaged


class Rule(NamedTuple):
    """What a kind of reference keeps in the state at the beginning, and after each step."""

    begin: Callable[[Params], Params | None]
    advance: Callable[[Any, Params, Params, Array], Params]  # settings, reference, policy behind step i32[], step


def _wide(x: Array) -> Array:
    return jnp.array(x, accumulator(x.dtype), copy=True)


def _averages(params: Params) -> Params:
    return jax.tree.map(_wide, params)


def _copied(params: Params) -> Params:
    return jax.tree.map(jnp.copy, params)


def _nothing(params: Params) -> None:
    del params


def _stay(settings: Fixed, reference: Params, params: Params, step: Array) -> Params:
    del settings, params, step
    return reference


def _replace(settings: Replaced, reference: Params, params: Params, step: Array) -> Params:
    due = step % settings.every == 0
    return jax.tree.map(lambda old, new: jnp.where(due, new, old), reference, params)


def _average(settings: Averaged, reference: Params, params: Params, step: Array) -> Params:
    del step
    share = 1 - settings.decay
    return jax.tree.map(lambda old, new: old + share * (new.astype(old.dtype) - old), reference, params)


REFERENCES: dict[type, Rule] = {
    Fixed: Rule(_nothing, _stay),
    Replaced: Rule(_copied, _replace),
    Averaged: Rule(_averages, _average),
}
"""Type of ``Gradient.reference`` -> how that kind of reference moves."""


def begin(settings: AnyReference, params: Params) -> Params | None:
    """What the state keeps of the reference before the first step from the policy `params`; None of a fixed one."""
    return _rule(settings).begin(params)


def advance(settings: AnyReference, reference: Params, params: Params, step: Array) -> Params:
    """The `reference` after step number `step` i32[], counted from 1, which has led to the policy `params`."""
    return _rule(settings).advance(settings, reference, params, step)


def moves(settings: AnyReference) -> bool:
    """Whether the state keeps the reference."""
    return not isinstance(settings, Fixed)


def _rule(settings: AnyReference) -> Rule:
    kind = type(settings)
    if kind not in REFERENCES:
        allowed = ", ".join(f"{known.__name__}(...)" for known in REFERENCES)
        raise ValueError(f"train.reference: got {settings!r:.80}, allowed {allowed}: give one of these")
    return REFERENCES[kind]
