"""Worlds for the claims, and one way to measure many recipes in one compilation, in float64."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax import laboratory as lab
from grpo_jax import objectives as o
from grpo_jax.advantages import Advantage, begins, outcome
from grpo_jax.groups import Grouping, Memory, by_prompt
from grpo_jax.types import Array, Collected

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""For programs that are compiled once and run a few times on next to nothing."""


def recipe(
    advantage: Advantage = outcome,
    term: o.Term = o.reinforce,
    aggregation: o.Aggregation = o.sequence_mean_token_sum,
    grouping: Grouping = by_prompt,
) -> o.Recipe:
    """By default the plainest estimate there is: the mean over rows of R_i times the score of the row."""
    return o.Recipe((o.Part(aggregation, term),), advantage, grouping)


class Result(NamedTuple):
    """Moments of an estimator, and its mean as the gradient of the expected reward times a factor, and aside of it."""

    loss: Any  # numbers, as arrays of numpy once they are measured
    ascent: Any  # f[P, Z, V]
    variance: Any
    square: Any
    factor: Any
    aside: Any


def result(world: lab.World, moments: lab.Moments) -> Result:
    compared = lab.parallel(moments.ascent, lab.policy_gradient(world))
    return Result(moments.loss, moments.ascent, moments.variance, moments.square, *compared)


def _switch(*, strategies: tuple[Advantage, ...]) -> Memory:
    return {"switch": jnp.zeros(len(strategies))}


@begins(_switch)
def one_of(collected: Collected, labels: Array, memory: Memory, *, strategies: tuple[Advantage, ...]) -> tuple:
    """The strategy whose place ``memory["switch"]`` f[K] marks with 1, the others with 0."""
    found = [memory["switch"][place] * strategy(collected, labels, {})[0] for place, strategy in enumerate(strategies)]
    return sum(found[1:], start=found[0]), memory


def measured(
    worlds: Mapping[str, lab.World], recipes: Mapping[str, o.Recipe], *, group_size: int
) -> dict[tuple[str, str], Result]:
    """(world, recipe) -> exact results, of worlds of one shape and recipes of one grouping, in one compilation.

    A recipe that holds them all has every part of theirs, with a coefficient, and every advantage, with a switch.
    """
    parts = tuple(
        o.Part(part.aggregation, o.scale(part.term, by=name)) for name, rule in recipes.items() for part in rule.parts
    )
    (grouping,) = {rule.grouping for rule in recipes.values()}
    advantage = partial(one_of, strategies=tuple(rule.advantage for rule in recipes.values()))
    whole = o.Recipe(parts, advantage, grouping)

    def of_recipe(world: lab.World, switch: Array) -> Result:
        coef = dict(zip(recipes, switch, strict=True))
        return result(world, lab.exact(world, whole, group_size=group_size, coef=coef, memory={"switch": switch}))

    every = compiled(lambda world: jax.vmap(of_recipe, in_axes=(None, 0))(world, jnp.eye(len(recipes))))
    found = {}
    for place, world in worlds.items():
        each = every(world.replace(old=world.old_logits))
        found |= {(place, name): Result(*(x[n] for x in each)) for n, name in enumerate(recipes)}
    return found


def compiled(function: Callable) -> Callable:
    """`function` jitted quickly, its result as numpy arrays."""
    jitted = jax.jit(function, compiler_options=QUICK)
    return lambda *arguments: jax.tree.map(np.asarray, jitted(*arguments))


def bandit(seed: int = 0, *, prompts: int = 2, arms: int = 3, **fields: Any) -> lab.World:
    """Random logits, rewards and reference."""
    return _world(lab.arms(arms), seed, prompts, fields)


def chain(seed: int = 0, *, prompts: int = 1, length: int = 3, order: int = 1, **fields: Any) -> lab.World:
    """A language model of three tokens: 15 completions of 1 to 3 tokens."""
    return _world(lab.sentences(vocab=3, length=length, order=order), seed, prompts, fields)


def _world(completions: lab.Completions, seed: int, prompts: int, fields: Mapping[str, Any]) -> lab.World:
    rng = np.random.default_rng(seed)
    table, count = (prompts, *completions.allowed.shape), completions.length.shape[0]
    drawn = {
        "logits": rng.normal(size=table),
        "reward": rng.normal(1.0, 1.0, (prompts, count)),
        "reference": rng.normal(size=table),
        "value": np.zeros((prompts, *completions.tokens.shape)),
        "greedy": rng.normal(size=prompts),
    }
    return lab.World(completions=completions, **{name: jnp.asarray(x) for name, x in {**drawn, **fields}.items()})


near = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)
"""Equal but for rounding in float64."""
