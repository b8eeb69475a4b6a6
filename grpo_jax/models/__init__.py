"""Models: a config of scalars, one table of parameters, a plain forward pass and the fast log-probabilities."""

from grpo_jax.models.config import ModelConfig
from grpo_jax.models.decoder import forward
from grpo_jax.models.fisher import fisher
from grpo_jax.models.logprobs import logprobs
from grpo_jax.models.table import abstract, axes, flat, init, stack, unstack

__all__ = ["ModelConfig", "abstract", "axes", "fisher", "flat", "forward", "init", "logprobs", "stack", "unstack"]
