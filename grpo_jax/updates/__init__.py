"""Ways to turn a batch into new parameters; all have the signature of `update`, which chooses among them."""

from grpo_jax.updates.gradient import Gradient
from grpo_jax.updates.methods import METHODS, Method, begin, update
from grpo_jax.updates.optimizer import SGD, AnyOptimizer, Optimizer, TrustRegion, build, learning_rate
from grpo_jax.updates.references import AnyReference, Averaged, Fixed, Replaced, advance, moves
from grpo_jax.updates.references import begin as begin_reference

__all__ = [
    "METHODS",
    "SGD",
    "AnyOptimizer",
    "AnyReference",
    "Averaged",
    "Fixed",
    "Gradient",
    "Method",
    "Optimizer",
    "Replaced",
    "TrustRegion",
    "advance",
    "begin",
    "begin_reference",
    "build",
    "learning_rate",
    "moves",
    "update",
]
