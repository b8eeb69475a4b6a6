"""Ways to turn a batch into new parameters. All have the signature of `gradient.update`."""

from grpo_jax.updates.gradient import Gradient, update
from grpo_jax.updates.optimizer import SGD, AnyOptimizer, Optimizer, build, learning_rate

__all__ = ["SGD", "AnyOptimizer", "Gradient", "Optimizer", "build", "learning_rate", "update"]
