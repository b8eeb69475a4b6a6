"""GRPO in JAX: sampling, rewards, group normalisation and the objective as pure functions over a mesh.

`run` and `describe` are the front door; everything below is importable on its own, and importing this package imports
nothing heavy.
"""

import os
import time
from collections.abc import MutableMapping
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grpo_jax.experiment import Experiment, Summary
    from grpo_jax.loop import run
    from grpo_jax.objectives import describe

__version__ = "0.1.0"
STARTED = time.monotonic()
"""When this process imported the package: what `seconds` of a summary counts from."""
__all__ = ["STARTED", "Experiment", "Summary", "__version__", "describe", "run"]

_HOME = {
    "Experiment": "grpo_jax.experiment",
    "Summary": "grpo_jax.experiment",
    "describe": "grpo_jax.objectives",
    "run": "grpo_jax.loop",
}

WRONG_REDUCTIONS = frozenset({"0.10.2"})
"""Versions of jaxlib whose compiler for CPUs gets some reductions of large arrays wrong, in silence: rows from some
number on have other sums (github.com/jax-ml/jax/issues/39103). The option takes that kind of fusion away, and no other;
versions that were not tried may not know it, and end at an unknown option."""
_OPTION = "--xla_cpu_experimental_ynn_fusion_type"


def _compile_reductions_rightly(environment: MutableMapping[str, str], jaxlib: str) -> None:
    """Add the option to ``XLA_FLAGS``, which counts if JAX has not used a device yet; who has set it knows better."""
    flags = environment.get("XLA_FLAGS", "")
    if jaxlib in WRONG_REDUCTIONS and _OPTION not in flags:
        environment["XLA_FLAGS"] = f"{flags} {_OPTION}=-reduce".strip()


with suppress(PackageNotFoundError):  # JAX itself will say what is missing
    _compile_reductions_rightly(os.environ, version("jaxlib"))


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(sorted(_HOME))}")
    return getattr(import_module(_HOME[name]), name)
