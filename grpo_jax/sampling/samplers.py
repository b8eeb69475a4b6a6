"""Which sampler a model has: the type of its config says it."""

from collections.abc import Callable
from typing import Any

import jax

from grpo_jax.models.config import ModelConfig
from grpo_jax.models.kinds import AnyModel, chosen
from grpo_jax.models.own import OwnModel
from grpo_jax.sampling import own
from grpo_jax.sampling.generate import generate as of_a_decoder
from grpo_jax.sampling.settings import Sampling
from grpo_jax.types import Array, Params, Prompts, Rollouts

SAMPLERS: dict[type, Callable[..., Rollouts]] = {ModelConfig: of_a_decoder, OwnModel: own.generate}
"""Type of a config -> the sampler of its models. `models.kinds.KINDS` is the other half."""


def generate(
    params: Params,
    config: AnyModel,
    prompts: Prompts,
    sampling: Sampling,
    key: Array,
    mesh: jax.sharding.Mesh | None = None,
    **how: Any,
) -> Rollouts:
    """Draws `group_size` completions of each prompt: row ``n = p * G + g`` is sample g of prompt p.

    Token t of a row is drawn with the key ``fold_in(row key, t)``; the row key is `key` folded with the draw number of
    the prompt, the number of the sample and turn 0. Further keywords and the result as in `generate.generate`.
    """
    return chosen(SAMPLERS, config)(params, config, prompts, sampling, key, mesh, **how)
