"""Ways to turn a batch into new parameters; all have the signature of `update`, which chooses among them."""

from grpo_jax.updates.gradient import Gradient
from grpo_jax.updates.methods import METHODS, Method, begin, update
from grpo_jax.updates.optimizer import SGD, AnyOptimizer, Optimizer, TrustRegion, build, learning_rate

__all__ = [
    "METHODS",
    "SGD",
    "AnyOptimizer",
    "Gradient",
    "Method",
    "Optimizer",
    "TrustRegion",
    "begin",
    "build",
    "learning_rate",
    "update",
]
