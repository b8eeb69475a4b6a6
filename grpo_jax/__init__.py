"""GRPO in JAX: sampling, rewards, group normalisation and the objective as pure functions over a mesh.

`run` and `describe` are the front door; everything below is importable on its own, and importing this package imports
nothing heavy.
"""

import time
from importlib import import_module
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


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(sorted(_HOME))}")
    return getattr(import_module(_HOME[name]), name)
