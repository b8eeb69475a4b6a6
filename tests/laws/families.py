"""A small model of every family of published models, and of every option that `ModelConfig` has beside them.

Sequences of some ten tokens are longer than the windows here, and within them every frequency of every scaling turns
visibly. Initial norms are ones and initial biases zeros; `perturbed` makes them numbers that show.
"""

import dataclasses

import jax
import numpy as np

from grpo_jax import models
from grpo_jax.models import ModelConfig, RopeScaling
from grpo_jax.types import Params

LLAMA = ModelConfig(
    family="LlamaForCausalLM",
    vocab=13,
    width=16,
    layers=2,
    heads=4,
    kv_heads=2,
    head_width=8,
    hidden=24,
    activation="silu",
    gated=True,
    rope_theta=100.0,
    head_std=0.3,
    norm_eps=1e-5,
)
QWEN2 = dataclasses.replace(
    LLAMA, family="Qwen2ForCausalLM", qkv_bias=True, tied=True, embed_std=0.2, rope_theta=1000.0, norm_eps=1e-6
)
QWEN3 = dataclasses.replace(
    LLAMA, family="Qwen3ForCausalLM", query_key_norm=True, heads=6, head_width=4, vocab=15, norm_eps=1e-6
)
GEMMA2 = dataclasses.replace(
    LLAMA,
    family="Gemma2ForCausalLM",
    vocab=17,
    activation="gelu",
    post_norms=True,
    norm_offset=1.0,
    tied=True,
    embed_std=0.2,
    embed_scale=4.0,
    query_scale=12.0**-0.5,
    attention_cap=1.5,
    logit_cap=2.0,
    windows=(3, 0),
    norm_eps=1e-6,
)
GEMMA3 = dataclasses.replace(
    GEMMA2,
    family="Gemma3ForCausalLM",
    layers=3,
    query_key_norm=True,
    query_scale=10.0**-0.5,
    attention_cap=0.0,
    logit_cap=0.0,
    windows=(4, 4, 0),
    rope_theta=1000.0,
    local_rope_theta=50.0,
    rope_scaling=RopeScaling(kind="linear", factor=2.0),
)
MIXTRAL = dataclasses.replace(
    LLAMA, family="MixtralForCausalLM", experts=4, experts_per_token=2, expert_hidden=10, rope_theta=1000.0
)
YARN = RopeScaling(kind="yarn", factor=4.0, original_positions=64)
LLAMA3 = RopeScaling(kind="llama3", factor=8.0, original_positions=64, low_frequency=1.0, high_frequency=4.0)
LONGROPE = RopeScaling(
    kind="longrope",
    factor=4.0,
    original_positions=32,
    short_factor=(1.0, 1.1, 1.3, 1.7),
    long_factor=(1.5, 2.0, 4.0, 8.0),
)

FAMILIES: dict[str, ModelConfig] = {
    "qwen2": QWEN2,
    "qwen2_untied": dataclasses.replace(QWEN2, tied=False, kv_heads=4),
    "qwen3": QWEN3,
    "llama": LLAMA,
    "llama3": dataclasses.replace(LLAMA, rope_scaling=LLAMA3, tied=True, embed_std=0.2),
    "llama_biased": dataclasses.replace(LLAMA, qkv_bias=True, output_bias=True, mlp_bias=True, kv_heads=1),
    "gemma2": GEMMA2,
    "gemma3": GEMMA3,
    "mistral": dataclasses.replace(LLAMA, family="MistralForCausalLM", windows=(4, 4)),
    "mixtral": MIXTRAL,
    "qwen3_moe": dataclasses.replace(
        MIXTRAL,
        family="Qwen3MoeForCausalLM",
        query_key_norm=True,
        dense_layers=(0,),
        expert_renormalised=False,
        norm_eps=1e-6,
    ),
    "smollm": dataclasses.replace(LLAMA, tied=True, embed_std=0.2, heads=3, kv_heads=1),
    "yarn": dataclasses.replace(QWEN2, rope_scaling=YARN),
    "longrope": dataclasses.replace(LLAMA, rope_scaling=LONGROPE),
    "dynamic": dataclasses.replace(
        LLAMA, rope_scaling=RopeScaling(kind="dynamic", factor=2.0, original_positions=32), activation="gelu_exact"
    ),
}


def perturbed(config: ModelConfig, seed: int = 0) -> Params:
    """Initial parameters, with noise on all that `init` makes ones or zeros: norms, biases, a value head."""
    params = models.init(jax.random.key(seed), config)
    rng = np.random.default_rng(seed)

    def noisy(path: tuple, leaf: jax.Array) -> jax.Array:
        name = path[-1].key
        if not name.endswith(("norm", "bias")) and path[0].key != "critic":
            return leaf
        return leaf + jax.numpy.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(noisy, params)
