"""Models: a config of scalars, one table of parameters, a plain forward pass and the fast log-probabilities."""

from grpo_jax.models.config import ModelConfig
from grpo_jax.models.critic import from_policy, without_critic
from grpo_jax.models.decoder import values
from grpo_jax.models.kinds import (
    AnyModel,
    abstract,
    adapters,
    axes,
    decoder_of,
    fisher,
    forward,
    init,
    kind_of,
    logprobs,
    trained,
)
from grpo_jax.models.loading import load
from grpo_jax.models.lora import LoRA, without_adapters
from grpo_jax.models.merge import merged
from grpo_jax.models.own import OwnModel, from_linen, from_nnx
from grpo_jax.models.parts import divide, join, like
from grpo_jax.models.published import read_config
from grpo_jax.models.rope import RopeScaling
from grpo_jax.models.saving import save
from grpo_jax.models.source import fingerprint
from grpo_jax.models.stored import store
from grpo_jax.models.table import flat, stack, unstack

__all__ = [
    "AnyModel",
    "LoRA",
    "ModelConfig",
    "OwnModel",
    "RopeScaling",
    "abstract",
    "adapters",
    "axes",
    "decoder_of",
    "divide",
    "fingerprint",
    "fisher",
    "flat",
    "forward",
    "from_linen",
    "from_nnx",
    "from_policy",
    "init",
    "join",
    "kind_of",
    "like",
    "load",
    "logprobs",
    "merged",
    "read_config",
    "save",
    "stack",
    "store",
    "trained",
    "unstack",
    "values",
    "without_adapters",
    "without_critic",
]
