"""What parameters are called in published files, and how their arrays lie there."""

import dataclasses

import numpy as np
import pytest

from grpo_jax import models
from grpo_jax.models.names import parts
from tests.laws.families import FAMILIES, GEMMA2, LLAMA, MIXTRAL


def test_heads_are_told_apart_where_a_published_matrix_joins_them():
    # Two query heads of width 2 over inputs of width 3: rows 0 and 1 of the matrix [4, 3] are those of the first head.
    config = dataclasses.replace(LLAMA, vocab=5, width=3, heads=2, kv_heads=1, head_width=2, layers=1, hidden=1)
    published = np.arange(12).reshape(4, 3)
    (query,) = parts(config, "LlamaForCausalLM")["layers/0/query"]
    assert (query.name, query.shape) == ("model.layers.0.self_attn.q_proj.weight", (4, 3))
    ours = published.reshape(query.apart).transpose(query.back)
    assert ours.shape == (3, 2, 2)
    assert ours[:, 1, 0].tolist() == [6, 7, 8]  # row 2: the first number of the second head
    (output,) = parts(config, "LlamaForCausalLM")["layers/0/output"]
    published = np.arange(12).reshape(3, 4)
    ours = published.reshape(output.apart).transpose(output.back)
    assert ours.shape == (2, 2, 3)
    assert ours[1, 0].tolist() == [2, 6, 10]  # column 2


def test_norms_of_gemma_stand_before_and_behind_each_block():
    found = parts(GEMMA2, "Gemma2ForCausalLM")
    names = {
        name.split("/")[-1]: found[name][0].name.removeprefix("model.layers.1.") for name in found if "/1/" in name
    }
    assert names["attention_norm"] == "input_layernorm.weight"
    assert names["attention_post_norm"] == "post_attention_layernorm.weight"
    assert names["mlp_norm"] == "pre_feedforward_layernorm.weight"
    assert names["mlp_post_norm"] == "post_feedforward_layernorm.weight"
    assert parts(LLAMA, "LlamaForCausalLM")["layers/1/mlp_norm"][0].name.endswith("1.post_attention_layernorm.weight")


def test_every_expert_has_a_tensor_of_its_own():
    found = parts(MIXTRAL, "MixtralForCausalLM")["layers/1/expert_down"]
    assert [(part.expert, part.name) for part in found] == [
        (i, f"model.layers.1.block_sparse_moe.experts.{i}.w2.weight") for i in range(4)
    ]
    assert {part.shape for part in found} == {(16, 10)}  # [outputs, inputs] = [D, F]


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_parameter_is_made_of_tensors_and_every_tensor_is_used_once(name: str):
    config = FAMILIES[name]
    found = parts(config, str(config.family))
    shapes = {n: leaf.shape for n, leaf in models.flat(models.abstract(config)).items()}
    assert found.keys() == shapes.keys()
    tensors = [part.name for made_of in found.values() for part in made_of]
    assert len(tensors) == len(set(tensors))
    for parameter, made_of in found.items():
        each = [tuple(part.apart[axis] for axis in part.back) for part in made_of]
        whole = each[0] if made_of[0].expert is None else (len(each), *each[0])
        assert whole == shapes[parameter]
