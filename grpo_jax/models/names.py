"""What parameters are called in published checkpoints, and how their arrays lie there.

A matrix is stored ``[outputs, inputs]`` there and ``[inputs, outputs]`` here, with heads on an axis of their own; the
experts of a layer are tensors of their own, or share one. Loading and saving read the same tables.
"""

import dataclasses
import math
from collections.abc import Mapping

from grpo_jax.models.config import ModelConfig
from grpo_jax.models.table import Entry, layer_table, outer_table

_ATTENTION = {
    "attention_norm": "input_layernorm.weight",
    "query": "self_attn.q_proj.weight",
    "key": "self_attn.k_proj.weight",
    "value": "self_attn.v_proj.weight",
    "output": "self_attn.o_proj.weight",
    "query_bias": "self_attn.q_proj.bias",
    "key_bias": "self_attn.k_proj.bias",
    "value_bias": "self_attn.v_proj.bias",
    "output_bias": "self_attn.o_proj.bias",
    "query_norm": "self_attn.q_norm.weight",
    "key_norm": "self_attn.k_norm.weight",
}
_MLP = {
    "mlp_norm": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
    "gate_bias": "mlp.gate_proj.bias",
    "up_bias": "mlp.up_proj.bias",
    "down_bias": "mlp.down_proj.bias",
}
_POST_NORMED = {
    "attention_post_norm": "post_attention_layernorm.weight",
    "mlp_norm": "pre_feedforward_layernorm.weight",
    "mlp_post_norm": "post_feedforward_layernorm.weight",
}
_QWEN_EXPERTS = {
    "router": "mlp.gate.weight",
    "expert_gate": "mlp.experts.{expert}.gate_proj.weight",
    "expert_up": "mlp.experts.{expert}.up_proj.weight",
    "expert_down": "mlp.experts.{expert}.down_proj.weight",
}
_MIXTRAL_EXPERTS = {
    "router": "block_sparse_moe.gate.weight",
    "expert_gate": "block_sparse_moe.experts.{expert}.w1.weight",
    "expert_up": "block_sparse_moe.experts.{expert}.w3.weight",
    "expert_down": "block_sparse_moe.experts.{expert}.w2.weight",
}
_OUTER = {"embed": "model.embed_tokens.weight", "norm": "model.norm.weight", "head": "lm_head.weight"}
_LLAMA = {**_ATTENTION, **_MLP}
_GEMMA = {**_LLAMA, **_POST_NORMED}

NAMES: Mapping[str, Mapping[str, str]] = {
    "Qwen2ForCausalLM": _LLAMA,
    "Qwen3ForCausalLM": _LLAMA,
    "Qwen3MoeForCausalLM": {**_LLAMA, **_QWEN_EXPERTS},
    "LlamaForCausalLM": _LLAMA,
    "Gemma2ForCausalLM": _GEMMA,
    "Gemma3ForCausalLM": _GEMMA,
    "MistralForCausalLM": _LLAMA,
    "MixtralForCausalLM": {**_LLAMA, **_MIXTRAL_EXPERTS},
}
"""Architecture -> parameter of a layer -> its tensor there, behind ``model.layers.3.``."""

# Parameter -> how the axes of the array here lie in the tensor there, where that is not the same order. What is joined
# there (heads and their width) is told by the number of axes that the tensor has.
_ORDER = {
    "query": (1, 2, 0),
    "key": (1, 2, 0),
    "value": (1, 2, 0),
    "output": (2, 0, 1),
    "gate": (1, 0),
    "up": (1, 0),
    "down": (1, 0),
    "router": (1, 0),
    "head": (1, 0),
    "expert_gate": (1, 0),
    "expert_up": (1, 0),
    "expert_down": (1, 0),
}
# Parameter -> how many of the axes of `_ORDER` are joined into each axis of the tensor.
_JOINED = {"query": (2, 1), "key": (2, 1), "value": (2, 1), "output": (1, 2)}
_JOINED_BIAS = {"query_bias": (2,), "key_bias": (2,), "value_bias": (2,)}
EXPERT_PARAMETERS = ("expert_gate", "expert_up", "expert_down")


@dataclasses.dataclass(frozen=True)
class Part:
    """One tensor of a checkpoint and what it is of one parameter: all of it, or one expert.

    ``parameter[expert] == tensor.reshape(apart).transpose(back)``; and ``tensor ==
    parameter[expert].transpose(order).reshape(shape)``.
    """

    name: str  # of the tensor
    shape: tuple[int, ...]  # of the tensor
    apart: tuple[int, ...]  # the same with heads on an axis of their own
    order: tuple[int, ...]  # axis of the parameter (of one expert) for every axis of `apart`
    expert: int | None = None  # index into the first axis of the parameter; None: the tensor is all of it

    @property
    def back(self) -> tuple[int, ...]:
        """Axis of `apart` for every axis of the parameter."""
        return tuple(self.order.index(axis) for axis in range(len(self.order)))


def parts(config: ModelConfig, architecture: str) -> dict[str, list[Part]]:
    """Name of every parameter (``layers/3/query``) -> the tensors that it is made of, as in a file of `architecture`.

    Raises KeyError for a parameter that the architecture has no name for.
    """
    inner = NAMES[architecture]
    found = {name: _parts(name, entry, _OUTER[name]) for name, entry in outer_table(config).items()}
    for layer in range(config.layers):
        for name, entry in layer_table(config, layer).items():
            found[f"layers/{layer}/{name}"] = _parts(name, entry, f"model.layers.{layer}.{inner[name]}")
    return found


def _parts(name: str, entry: Entry, template: str) -> list[Part]:
    if name not in EXPERT_PARAMETERS:
        return [_part(name, entry.shape, template, None)]
    count, *each = entry.shape
    return [_part(name, tuple(each), template.format(expert=expert), expert) for expert in range(count)]


def _part(name: str, own: tuple[int, ...], tensor: str, expert: int | None) -> Part:
    order = _ORDER.get(name, tuple(range(len(own))))
    apart = tuple(own[axis] for axis in order)
    joined = {**_JOINED, **_JOINED_BIAS}.get(name, (1,) * len(own))
    shape, at = [], 0
    for count in joined:
        shape.append(math.prod(apart[at : at + count]))
        at += count
    return Part(tensor, tuple(shape), apart, order, expert)
