"""Jitted functions shared between runs, each counted when it is traced.

A compiled function is found again by the canonical description of what is bound to it, so that runs that differ only in
data (a seed, say) share it, and a test can assert that a run traces nothing twice.
"""

import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from grpo_jax.objectives import describe

TRACES: Counter[str] = Counter()
"""Name of a function -> how often it was traced in this process."""

_COMPILED: dict[tuple, Callable[..., Any]] = {}


def compiled(
    function: Callable[..., Any], *, mesh: Mesh | None = None, donate: tuple[str, ...] = (), **bound: object
) -> Callable[..., Any]:
    """``jax.jit`` of `function` with the settings `bound` and `mesh`, one object for equal descriptions.

    `donate` names arguments whose buffers the call may reuse.
    """
    name = function.__name__
    key = (f"{function.__module__}.{function.__qualname__}", describe(bound), mesh, donate)
    if key not in _COMPILED:
        settings = {**bound, "mesh": mesh}

        def counted(*args: object, **kwargs: object) -> object:
            TRACES[name] += 1
            return function(*args, **kwargs, **settings)

        counted.__name__ = name
        names = list(inspect.signature(function).parameters)
        _COMPILED[key] = jax.jit(counted, donate_argnums=tuple(names.index(argument) for argument in donate))
    return _COMPILED[key]


def traces() -> dict[str, int]:
    """A copy of the counts so far."""
    return dict(TRACES)


def forget() -> None:
    """Drop every compiled function and count: for tests that count traces."""
    _COMPILED.clear()
    TRACES.clear()
