"""Models: a config of scalars, one table of parameters, a plain forward pass and the fast log-probabilities."""

from grpo_jax.models.config import ModelConfig
from grpo_jax.models.critic import from_policy, without_critic
from grpo_jax.models.decoder import values
from grpo_jax.models.kinds import AnyModel, abstract, axes, fisher, forward, init, kind_of, logprobs
from grpo_jax.models.own import OwnModel, from_linen, from_nnx
from grpo_jax.models.rope import RopeScaling
from grpo_jax.models.table import flat, stack, unstack

__all__ = [
    "AnyModel",
    "ModelConfig",
    "OwnModel",
    "RopeScaling",
    "abstract",
    "axes",
    "fisher",
    "flat",
    "forward",
    "from_linen",
    "from_nnx",
    "from_policy",
    "init",
    "kind_of",
    "logprobs",
    "stack",
    "unstack",
    "values",
    "without_critic",
]
