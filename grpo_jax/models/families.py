"""The published architectures, as data: what each of them always is, and what its config.json may say.

Defaults are those of the configuration classes of transformers 4 and 5, where both agree and published files leave the
field out; a field that decides and is always written has none.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from grpo_jax.models.fields import REQUIRED
from grpo_jax.models.safetensors import brief

ACTIVATIONS = MappingProxyType(
    {
        "silu": "silu",
        "swish": "silu",
        "gelu_pytorch_tanh": "gelu",
        "gelu_new": "gelu",
        "gelu": "gelu_exact",
        "relu": "relu",
    }
)
"""`hidden_act` -> ModelConfig.activation. The first name of each is the one that is written."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture.

    `fixed`, `counts`, `amounts` and `switches` are by the name in ModelConfig; what a family has by rules of its own is
    named by the literals.
    """

    architecture: str
    model_type: str
    fixed: Mapping[str, Any]  # what its config.json cannot change
    counts: Mapping[str, tuple[str, Any]]  # -> field, default
    amounts: Mapping[str, tuple[str, Any]]
    switches: Mapping[str, tuple[str, Any]]
    only: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)  # field -> values that change nothing
    activation: tuple[str, str] = ("hidden_act", "silu")  # field, default
    kv_heads: Any = REQUIRED  # default; None: as many as query heads
    head_width: int | None = None  # default; None: width / heads
    context: int = 32768  # default of the length of sequences that it is made for
    theta: float = 10_000.0  # default base of rotations
    local_theta: float = 0.0  # the same for layers with a window; 0: one rule for all layers
    windows: Literal["none", "all", "used_by_all", "used_by_last", "alternating", "pattern"] = "none"
    window: int | None = None  # default width of a window
    experts: Literal["none", "qwen", "mixtral"] = "none"
    query_scalar: bool = False  # whether query_pre_attn_scalar sets the scale of queries
    divided: bool = False  # whether transformers refuses a width that is no multiple of the number of heads
    embed_scaled: bool = False  # whether embeddings are multiplied by the root of their width


_COUNTS = {
    "vocab": ("vocab_size", REQUIRED),
    "width": ("hidden_size", REQUIRED),
    "layers": ("num_hidden_layers", REQUIRED),
    "heads": ("num_attention_heads", REQUIRED),
    "hidden": ("intermediate_size", REQUIRED),
}
_EPS = {"norm_eps": ("rms_norm_eps", 1e-6)}
_TIED = {"tied": ("tie_word_embeddings", False)}
_BIAS = {"qkv_bias": ("attention_bias", False)}
_GATED = {"gated": True}
_ROUTER_LOSS = ("output_router_logits", "router_aux_loss_coef")
UNREAD = MappingProxyType({"Qwen3MoeForCausalLM": _ROUTER_LOSS, "MixtralForCausalLM": _ROUTER_LOSS})
"""Architecture -> fields of a loss that is added in their own training, which nothing here computes."""

_GEMMA = {
    "counts": _COUNTS,
    "switches": {"tied": ("tie_word_embeddings", True), **_BIAS},
    "activation": ("hidden_activation", "gelu_pytorch_tanh"),
    "kv_heads": 4,
    "head_width": 256,
    "window": 4096,
    "query_scalar": True,
    "embed_scaled": True,
    "divided": True,
}

FAMILIES: Mapping[str, Family] = {
    family.architecture: family
    for family in (
        Family(
            architecture="Qwen2ForCausalLM",
            model_type="qwen2",
            fixed={**_GATED, "qkv_bias": True},
            counts=_COUNTS,
            amounts=_EPS,
            switches=_TIED,
            windows="used_by_last",
        ),
        Family(
            architecture="Qwen3ForCausalLM",
            model_type="qwen3",
            fixed={**_GATED, "query_key_norm": True},
            counts=_COUNTS,
            amounts=_EPS,
            switches={**_TIED, **_BIAS},
            head_width=128,
            windows="used_by_last",
        ),
        Family(
            architecture="Qwen3MoeForCausalLM",
            model_type="qwen3_moe",
            fixed={**_GATED, "query_key_norm": True},
            counts=_COUNTS,
            amounts=_EPS,
            switches={**_TIED, **_BIAS},
            windows="used_by_all",
            experts="qwen",
        ),
        Family(
            architecture="LlamaForCausalLM",
            model_type="llama",
            fixed=_GATED,
            counts=_COUNTS,
            amounts=_EPS,
            switches={**_TIED, **_BIAS, "mlp_bias": ("mlp_bias", False)},
            only={"pretraining_tp": (1, None)},
            kv_heads=None,
            divided=True,
            context=2048,
        ),
        Family(
            architecture="Gemma2ForCausalLM",
            model_type="gemma2",
            fixed={**_GATED, "post_norms": True, "norm_offset": 1.0},
            amounts={
                **_EPS,
                "attention_cap": ("attn_logit_softcapping", 50.0),
                "logit_cap": ("final_logit_softcapping", 30.0),
            },
            only={"use_bidirectional_attention": (False, None)},
            context=8192,
            windows="alternating",
            **_GEMMA,
        ),
        Family(
            architecture="Gemma3ForCausalLM",
            model_type="gemma3_text",
            fixed={**_GATED, "post_norms": True, "norm_offset": 1.0, "query_key_norm": True},
            amounts={**_EPS, "logit_cap": ("final_logit_softcapping", None)},
            # Its configuration has the field and its modelling never reads it.
            only={"use_bidirectional_attention": (False, None), "attn_logit_softcapping": (None,)},
            context=131_072,
            theta=1_000_000.0,
            local_theta=10_000.0,
            windows="pattern",
            **_GEMMA,
        ),
        Family(
            architecture="MistralForCausalLM",
            model_type="mistral",
            fixed=_GATED,
            counts=_COUNTS,
            amounts=_EPS,
            switches=_TIED,
            windows="all",
            window=4096,
            context=131_072,
        ),
        Family(
            architecture="MixtralForCausalLM",
            model_type="mixtral",
            fixed=_GATED,
            counts=_COUNTS,
            amounts={"norm_eps": ("rms_norm_eps", 1e-5)},
            switches=_TIED,
            only={"router_jitter_noise": (0.0,)},
            windows="all",
            context=131_072,
            theta=1_000_000.0,
            experts="mixtral",
        ),
    )
}
"""Architecture, as `architectures` in a config.json names it -> what it is."""


WITH_PICTURES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "Gemma3ForConditionalGeneration": (
        "Gemma3ForCausalLM",
        {
            "vocab_size": 262_208,
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
        },
    )
}
"""Architecture that reads pictures too -> the one of its text part, and fields that published files leave out there.
Of a text without pictures its logits are those of the text part, which alone is read."""
PICTURES = ("vision_tower.", "multi_modal_projector.")
"""How the names of tensors begin that only pictures go through."""
TEXT_PART = "language_model."
"""What stands before the names of the text part."""


def family_of(architecture: object, *, where: str) -> Family:
    """The family of an architecture. Raises ValueError with the known ones and the nearest for any other."""
    if isinstance(architecture, str) and architecture in FAMILIES:
        return FAMILIES[architecture]
    near = difflib.get_close_matches(str(architecture), FAMILIES, n=1, cutoff=0.0)[0]
    known = ", ".join([*FAMILIES, *WITH_PICTURES])
    raise ValueError(
        f"{where}: got the architecture {brief(architecture)}, allowed are {known}: take a checkpoint of one of these;"
        f" the nearest is {near}"
    )
