"""The models that are compared with the reference implementation, as data: name -> `Case`.

Names, defaults and meaning of the settings are those of `config.json`. The file needs nothing but Python, so that both
sides can read it: the process with `transformers` and the one with this library.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LENGTHS = (12, 9, 7, 10)
"""Tokens of the rows of a batch; rows 0 and 1 begin with the same prompt, rows 2 and 3 with another one."""
PROMPTS = (5, 5, 3, 3)
"""Tokens of the prompt of every row."""
NEW_TOKENS = 8
"""Tokens of a greedy continuation of a prompt."""


@dataclass(frozen=True)
class Case:
    """One model. `kind` names its configuration in transformers, `kindConfig`."""

    kind: str
    settings: Mapping[str, Any]
    quick: bool = False  # part of the quick tests
    dtype: str = "float32"  # of the files; the numbers are those of float32 with the weights as rounded
    shards: bool = False  # several files and an index
    version4: bool = False  # config.json as transformers 4 wrote it
    varies: bool = False  # the rotation of a token depends on how long its sequence has become


SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
TIED = {"tie_word_embeddings": True}
ONE_HEAD = {"num_key_value_heads": 1}
ALL_HEADS = {"num_key_value_heads": 4}
WINDOWED = {"use_sliding_window": True, "sliding_window": 4, "num_hidden_layers": 3}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "head_dim": 12}
LOCAL_EXPERTS = {"num_local_experts": 5, "num_experts_per_tok": 2, "head_dim": None}
GEMMA2 = {
    "head_dim": 12,
    "query_pre_attn_scalar": 23,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
    "sliding_window": 4,
    "num_hidden_layers": 3,
    **TIED,
}
GEMMA3 = {
    "head_dim": 12,
    "query_pre_attn_scalar": 10,
    "sliding_window": 4,
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
    },
    **TIED,
}


def rope(kind: str, **rule: Any) -> dict[str, Any]:
    """Rotations with a small base, so that a dozen positions turn through more than a little."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 500.0, **rule}}


LLAMA3 = rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
LONGROPE = {"short_factor": [1.0, 1.1, 1.3, 1.6], "long_factor": [1.0, 1.5, 3.0, 6.0]}


def _cases(kind: str, cases: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]]) -> dict[str, Case]:
    prefix = kind.lower().removesuffix("text")
    return {f"{prefix}-{name}": Case(kind, {**SMALL, **settings}, **how) for name, (settings, how) in cases.items()}


QUICK = {"quick": True}
CASES: dict[str, Case] = {
    **_cases(
        "Qwen2",
        {
            "tied": ({**TIED, **rope("default")}, QUICK),
            "untied": ({"vocab_size": 131, **ALL_HEADS}, {"shards": True}),
            "one_head": ({**ONE_HEAD, "rms_norm_eps": 1e-5}, {"version4": True}),
            "windows": ({**WINDOWED, "max_window_layers": 1}, {}),
            "windows4": ({**WINDOWED, "max_window_layers": 2}, {"version4": True}),
            "no_windows": ({"sliding_window": 4, "use_sliding_window": False}, {}),
            "bfloat16": ({**TIED}, {"dtype": "bfloat16"}),
            "yarn": (rope("yarn", factor=4.0, original_max_position_embeddings=16), {"version4": True}),
        },
    ),
    **_cases(
        "Qwen3",
        {
            "tied": ({**TIED, **rope("default"), "head_dim": 12}, {}),
            "untied": ({**ONE_HEAD, "head_dim": 16, "attention_bias": True, **rope("default")}, QUICK),
            "windows": ({**WINDOWED, "max_window_layers": 1, "head_dim": 8}, {"version4": True}),
            "bfloat16": ({"head_dim": 16, "attention_bias": True}, {"dtype": "bfloat16", "shards": True}),
        },
    ),
    **_cases(
        "Qwen3Moe",
        {
            "renormalised": ({**EXPERTS, "norm_topk_prob": True}, {}),
            "as_they_are": ({**EXPERTS, "norm_topk_prob": False, "attention_bias": True}, {"shards": True}),
            "every_other": (
                {**EXPERTS, "norm_topk_prob": True, "decoder_sparse_step": 2, "num_hidden_layers": 4},
                {"version4": True},
            ),
            "some_dense": ({**EXPERTS, "norm_topk_prob": True, "mlp_only_layers": [1], **rope("default")}, QUICK),
            "windows": ({**EXPERTS, "use_sliding_window": True, "sliding_window": 4, **TIED}, {}),
            "bfloat16": ({**EXPERTS, "norm_topk_prob": True}, {"dtype": "bfloat16"}),
        },
    ),
    **_cases(
        "Llama",
        {
            "plain": ({"hidden_act": "gelu"}, {"shards": True}),
            "llama3": ({**LLAMA3, **TIED}, QUICK),
            "llama3_4": ({**LLAMA3}, {"version4": True, "dtype": "bfloat16"}),
            "biases": ({"attention_bias": True, "mlp_bias": True, "head_dim": 12, **ALL_HEADS}, {}),
            "linear": (rope("linear", factor=3.0), {"version4": True}),
            "dynamic": ({**rope("dynamic", factor=3.0), "max_position_embeddings": 8}, {"varies": True}),
            "dynamic_short": (rope("dynamic", factor=3.0), {"version4": True}),
            "yarn": (rope("yarn", factor=4.0, original_max_position_embeddings=16), {}),
            "yarn_whole": (
                rope(
                    "yarn",
                    factor=4.0,
                    original_max_position_embeddings=16,
                    beta_fast=4.0,
                    beta_slow=0.5,
                    mscale=0.8,
                    mscale_all_dim=0.5,
                    truncate=False,
                ),
                {},
            ),
            "yarn_factor": (rope("yarn", factor=4.0, original_max_position_embeddings=16, attention_factor=1.3), {}),
            "longrope_short": (rope("longrope", original_max_position_embeddings=32, **LONGROPE), {}),
            "longrope_long": (rope("longrope", original_max_position_embeddings=6, **LONGROPE), {"varies": True}),
            "smollm": ({**TIED, "num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 24}, {}),
        },
    ),
    **_cases(
        "Gemma2",
        {
            "caps": (GEMMA2, QUICK),
            "untied": ({**GEMMA2, "tie_word_embeddings": False, "attention_bias": True}, {"version4": True}),
            "no_caps": ({**GEMMA2, "attn_logit_softcapping": None, "final_logit_softcapping": None}, {}),
            "bfloat16": (GEMMA2, {"dtype": "bfloat16"}),
        },
    ),
    **_cases(
        "Gemma3Text",
        {
            "pattern": (GEMMA3, QUICK),
            "pattern4": ({**GEMMA3, "layer_types": ["sliding_attention", "full_attention"] * 2}, {"version4": True}),
            "six": ({**GEMMA3, "layer_types": None, "num_hidden_layers": 7}, {"version4": True}),
            "caps": ({**GEMMA3, "final_logit_softcapping": 4.0}, {"shards": True}),
            "biases": ({**GEMMA3, "attention_bias": True, "tie_word_embeddings": False}, {}),
            "bfloat16": (GEMMA3, {"dtype": "bfloat16", "shards": True}),
        },
    ),
    **_cases(
        "Mistral",
        {
            "window": ({"sliding_window": 4, "head_dim": 12, **rope("default")}, QUICK),
            "no_window": ({"sliding_window": None}, {"version4": True}),
            "wide": ({"sliding_window": 40, **ONE_HEAD}, {"shards": True}),
            "window4": ({"sliding_window": 6}, {"version4": True, "dtype": "bfloat16"}),
        },
    ),
    **_cases(
        "Mixtral",
        {
            "plain": ({**LOCAL_EXPERTS, **rope("default")}, QUICK),
            "window": ({**LOCAL_EXPERTS, "sliding_window": 4, "num_experts_per_tok": 3}, {"shards": True}),
            "one_expert": ({**LOCAL_EXPERTS, **TIED, "num_experts_per_tok": 1}, {"version4": True}),
        },
    ),
}
