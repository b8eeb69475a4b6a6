"""Jitted functions shared between runs, each counted when it is traced.

A compiled function is found again by the canonical description of what is bound to it and the source of every user
function in it, so that runs that differ only in data (a seed, say) share it, a function that was edited does not, and a
test can assert that a run traces nothing twice.
"""

import gc
import inspect
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from grpo_jax.objectives import describe, source_digest

TRACES: Counter[str] = Counter()
"""Name of a function -> how often it was traced in this process."""

_JAX_ADVICE = " (set JAX_PLATFORMS='' to automatically choose an available backend)"
_COMPILED: dict[tuple, Callable[..., Any]] = {}


def compiled(
    function: Callable[..., Any], *, mesh: Mesh | None = None, donate: tuple[str, ...] = (), **bound: object
) -> Callable[..., Any]:
    """``jax.jit`` of `function` with the settings `bound` and `mesh`, one object for equal descriptions and sources.

    `donate` names arguments whose buffers the call may reuse; they are passed by position.
    """
    name = function.__name__
    key = (f"{function.__module__}.{function.__qualname__}", describe(bound), source_digest(bound), mesh, donate)
    if key not in _COMPILED:
        settings = {**bound, "mesh": mesh}

        def counted(*args: object, **kwargs: object) -> object:
            TRACES[name] += 1
            return function(*args, **kwargs, **settings)

        counted.__name__ = name
        names = list(inspect.signature(function).parameters)
        _COMPILED[key] = jax.jit(counted, donate_argnums=tuple(names.index(argument) for argument in donate))
    return _COMPILED[key]


def check_backend() -> None:
    """Raise a ValueError unless JAX finds the devices that ``JAX_PLATFORMS`` asks for."""
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:
        why = (str(error).splitlines() or [""])[0].removesuffix(_JAX_ADVICE) or "it finds no such device"
        raise ValueError(
            f"JAX_PLATFORMS: got {os.environ.get('JAX_PLATFORMS', '')!r}, which JAX cannot start ({why}); allowed are"
            " platforms whose devices and packages are there: set JAX_PLATFORMS=cpu, or install jax for yours"
        ) from None


def keep_programs() -> Path:
    """Keep compiled programs on disk from now on, so that the next run of the same experiment compiles nothing; where.

    The folder is ``JAX_COMPILATION_CACHE_DIR`` if that is set, else ``grpo_jax`` in the user's cache. It may be deleted
    at any time. A program is found again by its text, its device and the version of its compiler.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or Path(home) / "grpo_jax")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


def traces() -> dict[str, int]:
    """A copy of the counts so far."""
    return dict(TRACES)


def forget() -> None:
    """Drop every compiled function and count: for tests that count traces."""
    _COMPILED.clear()
    TRACES.clear()


MAPS, MOST_MAPS = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")
"""Linux: a line for each piece of memory that this process has mapped, and how many it may have."""


def make_room(share: float = 0.4) -> bool:
    """Drop every compiled program once this process has mapped `share` of the pieces of memory that it may; whether.

    A program compiled for a CPU keeps many of them, so that a process which goes from variant to variant comes to the
    end of what Linux allows (65,530 by default) after some fifty, and dies of it. Programs that are needed again are
    read from disk, see `keep_programs`. Elsewhere there is no such limit, and nothing is dropped.
    """
    if not (MAPS.exists() and MOST_MAPS.exists()):
        return False
    if MAPS.read_bytes().count(b"\n") < share * int(MOST_MAPS.read_text()):
        return False
    _COMPILED.clear()
    jax.clear_caches()
    gc.collect()
    return True
