"""The algebra of objectives: parts, terms, aggregations, combinators and the loss.

With t_k the terms, w_k the weights of their aggregations (arrays [N,T] made of the rollout record alone, never of the
policy) an objective is

    loss = sum_k sum_{n,t} w_k[n,t] t_k[n,t]

which is linear in tokens: the sum over micro-batches, shards or any other split of the rows equals the whole, because
the weights are computed once over the whole batch.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from grpo_jax.advantages import Advantage
from grpo_jax.groups import Grouping
from grpo_jax.objectives.control import Coefficient
from grpo_jax.objectives.description import describe
from grpo_jax.types import Array, Batch, TokenStats

Term = Callable[[TokenStats, Batch], Array]
"""Row-local ``(TokenStats, Batch) -> f32[N,T]``: the entry of a token depends on its own row only."""

Aggregation = Callable[[Batch], Array]
"""``Batch -> f32[N,T]``, weights over the whole batch, 0 outside the mask."""

Prepare = Callable[[TokenStats, Batch, Array], Batch]
"""``(stop-gradient TokenStats, Batch, key) -> Batch`` with ``select`` filled: what must read other rows."""


class Part(NamedTuple):
    """A term and how its tokens are reduced to a number."""

    aggregation: Aggregation
    term: Term


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A published variant as data: what is compared, what a token is worth and what is minimised.

    `prepare` fills ``Batch.select`` before each optimiser update; `coefficients` are the numbers that terms read by
    name from ``Batch.coef`` and that change after each step.
    """

    parts: tuple[Part, ...]
    advantage: Advantage
    grouping: Grouping
    prepare: tuple[Prepare, ...] = ()
    coefficients: tuple[Coefficient, ...] = ()
    paper: str = dataclasses.field(default="", metadata={"describe": False})

    def __post_init__(self) -> None:
        if not isinstance(self.parts, tuple) or not all(isinstance(part, Part) for part in self.parts):
            raise ValueError(f"parts is {self.parts!r}; it must be a tuple of Part(aggregation, term)")
        if not isinstance(self.prepare, tuple):
            raise ValueError(f"prepare is {self.prepare!r}; it must be a tuple of functions")
        if not isinstance(self.coefficients, tuple) or not all(isinstance(c, Coefficient) for c in self.coefficients):
            raise ValueError(f"coefficients is {self.coefficients!r}; it must be a tuple of Coefficient(...)")
        names = [c.name for c in self.coefficients]
        if len(set(names)) < len(names):
            raise ValueError(f"coefficients are called {', '.join(names)}; every name is there once")
        describe(self, name="recipe")


def prepared(recipe: Recipe, stats: TokenStats, batch: Batch, key: Array) -> Batch:
    """`batch` after the prepare steps of `recipe`, which may read every row of it; `stats` pass on no gradient.

    Step number k draws from `key` with k folded in.
    """
    stats = jax.lax.stop_gradient(stats)
    for number, prepare in enumerate(recipe.prepare):
        batch = prepare(stats, batch, jax.random.fold_in(key, number))
    return batch


def weights(parts: Iterable[Part], batch: Batch) -> dict[str, Array]:
    """Weights of the parts' aggregations over the whole batch: description of the aggregation -> f32[N,T].

    Call it once, before any split into minibatches or micro-batches. An aggregation shared by parts is computed once.
    """
    aggregations = {describe(part.aggregation): part.aggregation for part in parts}
    return {name: aggregation(batch) for name, aggregation in aggregations.items()}


def loss(parts: Iterable[Part], stats: TokenStats, batch: Batch) -> Array:
    """Number to minimise, f32[]: the sum over parts of sum(weight * term).

    Gradients flow through `stats` alone: everything in `batch`, the advantage included, is data. Terms see zeros at
    positions outside the mask, and their values where the weight is 0 are dropped before they are multiplied, so what
    stands in padding poisons neither value nor gradient.

    Args:
        parts: what is summed.
        stats: forward pass of the policy being trained on the rows of `batch`.
        batch: with ``weight`` filled by `weights`.

    Raises:
        ValueError: ``batch.weight`` lacks the weights of a part.
    """
    stats, batch = clean(stats, batch)
    result = jnp.zeros((), stats.logp.dtype)
    for part in parts:
        name = describe(part.aggregation)
        if name not in batch.weight:
            known = ", ".join(batch.weight) or "none"
            raise ValueError(f"no weights for {name}; there are: {known}. Remedy: Batch.weight = weights(parts, batch)")
        result += weighted_sum(part.term(stats, batch), batch.weight[name])
    return result


def weighted_sum(value: Array, weight: Array) -> Array:
    """sum(weight * value) over the entries of non-zero weight -> f32[]."""
    chex.assert_equal_shape([value, weight])
    used = weight != 0
    return jnp.sum(jnp.where(used, value, jnp.zeros_like(value)) * weight.astype(value.dtype))


def clean(stats: TokenStats, batch: Batch) -> tuple[TokenStats, Batch]:
    """What terms see: zeros outside the mask and for rewards that are not valid, no gradient through `batch`."""
    batch = jax.lax.stop_gradient(batch)

    def kept(x: Array | None) -> Array | None:
        if x is None or x.shape != batch.mask.shape:
            return x
        return jnp.where(batch.mask, x, jnp.zeros_like(x))

    reward = batch.reward
    outcome = jnp.where(reward.valid, reward.outcome, jnp.zeros_like(reward.outcome))
    cleaned = {
        name: kept(getattr(batch, name))
        for name in ("advantage", "logp_old", "logp_behavior", "logp_ref", "returns", "value_old")
    }
    batch = dataclasses.replace(
        batch,
        reward=dataclasses.replace(reward, outcome=outcome, token=kept(reward.token)),
        select={name: kept(x) for name, x in batch.select.items()},
        **cleaned,
    )
    names = ("logp", "entropy", "value", "sum_pi_squared", "kl_full")
    return dataclasses.replace(stats, **{name: kept(getattr(stats, name)) for name in names}), batch


def add(*terms: Term) -> Term:
    """The sum of terms, as a term."""
    return functools.partial(_added, terms=tuple(terms))


def _added(stats: TokenStats, batch: Batch, *, terms: tuple[Term, ...]) -> Array:
    return sum((term(stats, batch) for term in terms), start=jnp.zeros_like(stats.logp))


def scale(term: Term, by: float | str) -> Term:
    """`term` times a number, or times ``batch.coef[by]``, a coefficient that changes in a run."""
    return functools.partial(_scaled, term=term, by=by)


def _scaled(stats: TokenStats, batch: Batch, *, term: Term, by: float | str) -> Array:
    if not isinstance(by, str):
        return term(stats, batch) * by
    return term(stats, batch) * _named(batch.coef, by, "coef").astype(stats.logp.dtype)


def where(name: str, a: Term, b: Term) -> Term:
    """`a` on the tokens that ``batch.select[name]`` (bool) selects, `b` on the others.

    Both are computed everywhere, so each must be finite everywhere: a gradient does not survive a nan in the branch
    that is not taken.
    """
    return functools.partial(_where, name=name, a=a, b=b)


def _where(stats: TokenStats, batch: Batch, *, name: str, a: Term, b: Term) -> Array:
    selected = _named(batch.select, name, "select")
    chex.assert_type(selected, jnp.bool_)
    return jnp.where(selected, a(stats, batch), b(stats, batch))


def reweight(term: Term, weight: Term) -> Term:
    """`term` times `weight`, through which no gradient flows (importance corrections, masks)."""
    return functools.partial(_reweighted, term=term, weight=weight)


def _reweighted(stats: TokenStats, batch: Batch, *, term: Term, weight: Term) -> Array:
    return term(stats, batch) * jax.lax.stop_gradient(weight(stats, batch))


def _named(table: Mapping[str, Array], name: str, field: str) -> Array:
    if name not in table:
        raise ValueError(f"Batch.{field} has no {name!r}; there are: {', '.join(table) or 'none'}")
    return table[name]
