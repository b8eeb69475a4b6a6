"""Models: a config of scalars, one table of parameters, a plain forward pass and the fast log-probabilities."""

from grpo_jax.models.config import ModelConfig
from grpo_jax.models.critic import from_policy, without_critic
from grpo_jax.models.decoder import forward, values
from grpo_jax.models.fisher import fisher
from grpo_jax.models.logprobs import logprobs
from grpo_jax.models.lora import LoRA, without_adapters
from grpo_jax.models.merge import merged
from grpo_jax.models.parts import divide, join, like, trained
from grpo_jax.models.rope import RopeScaling
from grpo_jax.models.table import abstract, adapters, axes, flat, init, stack, unstack

__all__ = [
    "LoRA",
    "ModelConfig",
    "RopeScaling",
    "abstract",
    "adapters",
    "axes",
    "divide",
    "fisher",
    "flat",
    "forward",
    "from_policy",
    "init",
    "join",
    "like",
    "logprobs",
    "merged",
    "stack",
    "trained",
    "unstack",
    "values",
    "without_adapters",
    "without_critic",
]
