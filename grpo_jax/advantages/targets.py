"""What a critic learns from a strategy: its targets, found through everything that is wrapped around the strategy."""

import functools
import inspect
from typing import Any

from grpo_jax.advantages.strategy import Advantage, bound, composed, initial_memory
from grpo_jax.groups import Memory
from grpo_jax.types import Array, Collected


def critic_targets(strategy: Advantage, collected: Collected, labels: Array) -> Array | None:
    """f32[N,T], the targets of the critic of `strategy`; None for a strategy without one.

    They are those of the strategy marked with `teaches`, of the very rewards that it is handed: what is wrapped around
    it counts as far as it changes rewards (`penalized_tokens`), and not as far as it changes advantages (`whitened`).
    What a strategy remembers does not enter.

    Raises:
        ValueError: more than one strategy inside `strategy` has targets.
    """
    if not any(hasattr(function, "teaches") for function, _ in composed(strategy)):
        return None
    found: list[Array] = []
    _noting(strategy, found)(collected, labels, initial_memory(strategy))
    if len(found) != 1:
        raise ValueError(
            f"advantage: got {len(found)} strategies with a critic, allowed is one: compose with one of them"
        )
    return found[0]


def _noting(x: Any, found: list[Array]) -> Any:
    """`x` in which the strategy with targets leaves them in `found` when it is called."""
    if isinstance(x, tuple):
        parts = tuple(_noting(part, found) for part in x)
        return parts if any(a is not b for a, b in zip(parts, x, strict=True)) else x
    if not callable(x) or isinstance(x, type):
        return x
    function, keywords = bound(x)
    if hasattr(function, "teaches"):
        return functools.partial(_noted(function, found), **keywords)
    inner = {name: _noting(value, found) for name, value in keywords.items()}
    if all(inner[name] is value for name, value in keywords.items()):
        return x
    return functools.partial(function, **inner)


def _noted(function: Any, found: list[Array]) -> Advantage:
    targets = function.teaches
    taken = inspect.signature(targets).parameters

    def strategy(collected: Collected, labels: Array, memory: Memory, **keywords: Any) -> tuple[Array, Memory]:
        shared = {name: value for name, value in keywords.items() if name in taken}
        found.append(targets(collected, labels, **shared))
        return function(collected, labels, memory, **keywords)

    return strategy
