"""A small model of every family of published models, and of every option that `ModelConfig` has beside them.

Sequences of some ten tokens are longer than the windows here, and within them every frequency of every scaling turns
visibly. Initial norms are ones and initial biases zeros; those of `perturbed` are numbers that show.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax import models
from grpo_jax.models import ModelConfig, RopeScaling
from grpo_jax.types import Array, Params, Prompts, Rollouts

P, G, S, T = 4, 2, 5, 6
LENGTHS = (5, 1, 3, 4)
"""Of the prompts: with completions of T tokens, sequences of up to 11."""

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
    """Parameters that are all random, those of norms, biases and value heads too; layers in the layout of `config`."""
    rng = np.random.default_rng(seed)
    apart = dataclasses.replace(config, stacked=False)

    def drawn(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = path[-1].key
        middle = 1.0 if name.endswith("norm") and not config.norm_offset else 0.0
        spread = {"embed": config.embed_std, "head": config.head_std}.get(name, 0.3)
        return jnp.asarray(middle + rng.normal(0, spread, leaf.shape), leaf.dtype)

    params = jax.tree_util.tree_map_with_path(drawn, models.abstract(apart))
    return models.stack(params) if config.stacked else params


def prompts(config: ModelConfig, seed: int = 0) -> Prompts:
    """P prompts of different lengths, padded with the last token of the vocabulary."""
    rng = np.random.default_rng(seed)
    length = np.array(LENGTHS, np.int32)
    tokens = rng.integers(0, config.vocab, (P, S))
    tokens = np.where(np.arange(S) < length[:, None], tokens, config.vocab - 1).astype(np.int32)
    number = np.arange(P, dtype=np.int32)
    return Prompts(
        tokens=jnp.asarray(tokens), length=jnp.asarray(length), draw=jnp.asarray(number), row=jnp.asarray(number)
    )


def rows(config: ModelConfig, seed: int = 0) -> Rollouts:
    """G completions of each prompt, of all lengths from 1 to T."""
    rng = np.random.default_rng(seed)
    n = np.arange(P * G, dtype=np.int32)
    length = jnp.asarray(1 + n % T, jnp.int32)
    nothing = jnp.zeros((P * G, T))
    return Rollouts(
        prompts=prompts(config, seed),
        prompt=jnp.asarray(n // G),
        sample=jnp.asarray(n % G),
        tokens=jnp.asarray(rng.integers(0, config.vocab, (P * G, T)), jnp.int32),
        length=length,
        stopped=jnp.zeros(P * G, bool),
        mask=jnp.arange(T, dtype=jnp.int32)[None] < length[:, None],
        logp=nothing,
        logp_full=nothing,
        version=jnp.zeros(P * G, jnp.int32),
    )


def repeated(params: Params, config: ModelConfig, rollouts: Rollouts) -> Array:
    """Log-probabilities f[N, T] of the tokens by `forward`, every completion behind its own copy of its prompt."""
    tokens, valid = lines(rollouts)
    return chosen(models.forward(params, config, tokens, valid), rollouts)


def lines(rollouts: Rollouts) -> tuple[Array, Array]:
    """Prompt and completion of every row behind each other: tokens i32[N, S + T] and which are there."""
    asked, width = rollouts.prompts, rollouts.tokens.shape[1]
    size, start = asked.tokens.shape[1], asked.length[rollouts.prompt][:, None]
    column = jnp.arange(size + width, dtype=jnp.int32)[None]
    text = jnp.take_along_axis(rollouts.tokens, jnp.clip(column - start, 0, width - 1), 1)
    question = asked.tokens[rollouts.prompt][:, jnp.minimum(column[0], size - 1)]
    return jnp.where(column < start, question, text), column < start + rollouts.length[:, None]


def at_completions(x: Array, rollouts: Rollouts) -> Array:
    """x [N, S + T, ...] of `lines` where the tokens of the completions are predicted: [N, T, ...]."""
    at = rollouts.prompts.length[rollouts.prompt][:, None] - 1
    at = at + jnp.arange(rollouts.tokens.shape[1], dtype=jnp.int32)[None]
    return jnp.take_along_axis(x, at.reshape(*at.shape, *(1,) * (x.ndim - 2)), axis=1)


def chosen(logits: Array, rollouts: Rollouts) -> Array:
    """Log-probabilities f[N, T] of the tokens of the completions from logits [N, S + T, V] of `lines`."""
    logp = jax.nn.log_softmax(at_completions(logits, rollouts), axis=-1)
    logp = jnp.take_along_axis(logp, rollouts.tokens[:, :, None], axis=2)[:, :, 0]
    return jnp.where(rollouts.mask, logp, 0)
