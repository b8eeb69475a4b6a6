"""What a strategy is: how a row's number reaches its tokens, what a strategy reads, and what it remembers."""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp

from grpo_jax import masked
from grpo_jax.groups import Memory
from grpo_jax.types import Array, Collected

Advantage = Callable[[Collected, Array, Memory], tuple[Array, Memory]]

OPTIONAL = ("components", "greedy", "label", "logp_ref", "step_end", "sum_pi_squared", "token", "value_old")
"""Fields of `Collected`, of its `Reward` and of its `Prompts` that are there only where somebody fills them."""


def reads(*names: str) -> Callable[[Callable], Callable]:
    """Decorator: the strategy reads these optional fields, so the run has to fill them. Raises ValueError otherwise."""
    for name in names:
        if name not in OPTIONAL:
            raise ValueError(f"reads: got {name!r}, allowed {', '.join(OPTIONAL)}: name fields that may be absent")

    def mark(function: Callable) -> Callable:
        vars(function)["reads"] = tuple(sorted(names))
        if "logp_ref" in names:
            vars(function)["needs"] = ("logp_ref",)  # the mark by which a recipe asks for a reference policy
        return function

    return mark


def begins(memory: Callable[..., Memory]) -> Callable[[Callable], Callable]:
    """Decorator: the strategy remembers; ``memory(**keywords)`` is what it begins with.

    `memory` takes keywords of the strategy, by the same names.
    """

    def mark(function: Callable) -> Callable:
        vars(function)["begins"] = memory
        return function

    return mark


def teaches(targets: Callable[..., Array]) -> Callable[[Callable], Callable]:
    """Decorator: the strategy has a critic; ``targets(collected, labels, **keywords)`` f32[N,T] is what that learns.

    `targets` takes keywords of the strategy, by the same names.
    """

    def mark(function: Callable) -> Callable:
        vars(function)["teaches"] = targets
        return function

    return mark


def fields_read(strategy: Any) -> tuple[str, ...]:
    """Sorted names of the optional fields that `strategy`, and every function bound in it, reads (see `OPTIONAL`)."""
    return tuple(sorted({name for function, _ in composed(strategy) for name in getattr(function, "reads", ())}))


def initial_memory(strategy: Any) -> dict[str, Array]:
    """What `strategy`, and every function bound in it, remembers before the first step: name -> array."""
    memory: dict[str, Array] = {}
    for function, keywords in composed(strategy):
        begin = getattr(function, "begins", None)
        if begin is not None:
            wanted = inspect.signature(begin).parameters
            memory.update(begin(**{name: x for name, x in keywords.items() if name in wanted}))
    return memory


def composed(x: Any) -> Iterator[tuple[Callable, Mapping[str, Any]]]:
    """Every function in a composition with its keywords, outermost first."""
    if isinstance(x, tuple):
        for part in x:
            yield from composed(part)
    elif callable(x):
        function, keywords = bound(x)
        yield function, keywords
        for value in keywords.values():
            yield from composed(value)


def bound(x: Callable) -> tuple[Callable, dict[str, Any]]:
    """The function inside a partial of partials, and its keywords: those that are bound, and the other defaults."""
    keywords: dict[str, Any] = {}
    while isinstance(x, functools.partial):
        keywords, x = {**x.keywords, **keywords}, x.func
    defaults = {name: p.default for name, p in _parameters(x).items() if p.default is not inspect.Parameter.empty}
    return x, {**defaults, **keywords}


def _parameters(function: Callable) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # builtins without a signature
        return {}


def given(array: Array | None, field: str, strategy: str, remedy: str) -> Array:
    """`array`, the content of the optional `field`. Raises ValueError, with what to do, where it is absent."""
    if array is None:
        raise ValueError(f"{field}: got None, which {strategy} reads; allowed is an array: {remedy}")
    return array


def rows(labels: Array, strategy: str) -> Array:
    """`labels`. Raises ValueError where they are not i32[N]."""
    if labels.ndim != 1:
        raise ValueError(
            f"{strategy} compares whole rows: labels have shape {labels.shape}, allowed is i32[N]; "
            "choose a grouping that gives one label a row, or an advantage made for this one"
        )
    return labels


def counted(collected: Collected, labels: Array) -> Array:
    """bool[N,T]: the trained tokens of rows with a valid reward and a group."""
    return collected.rollouts.mask & masked.members(labels, collected.reward.valid)[:, None]


def to_tokens(advantage: Array, collected: Collected) -> Array:
    """f[N] -> f[N,T]: the row's advantage on its trained tokens, 0 elsewhere."""
    mask = collected.rollouts.mask
    return jnp.where(mask, advantage[:, None], jnp.zeros((), advantage.dtype))
