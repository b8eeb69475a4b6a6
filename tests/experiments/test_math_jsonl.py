"""Every row of SETTINGS, on published shapes without their weights: it divides over its mesh, what it keeps fits."""

import json
import math
from pathlib import Path

import pytest

from experiments.math_jsonl import CHIPS, HUB, SETTINGS, VARIANTS
from grpo_jax.arguments import made
from grpo_jax.footprint import footprint
from grpo_jax.models import decoder_of
from tests.text import published

QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "rms_norm_eps": 1e-6}
QWEN3 = {**QWEN2, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 128}
NAMES = "vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads intermediate_size".split()
SHAPES = {
    "qwen2.5-0.5b": (QWEN2, (151936, 896, 24, 14, 2, 4864), {"tie_word_embeddings": True}),
    "qwen2.5-1.5b": (QWEN2, (151936, 1536, 28, 12, 2, 8960), {"tie_word_embeddings": True}),
    "qwen2.5-7b": (QWEN2, (152064, 3584, 28, 28, 4, 18944), {"tie_word_embeddings": False}),
    "qwen3-0.6b": (QWEN3, (151936, 1024, 28, 16, 8, 3072), {"tie_word_embeddings": True}),
    "qwen3-8b": (QWEN3, (151936, 4096, 36, 32, 8, 12288), {"tie_word_embeddings": False}),
    "llama-3.2-1b": (
        {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5},
        (128256, 2048, 16, 32, 8, 8192),
        {"tie_word_embeddings": True, "head_dim": 64},
    ),
    "gemma-3-1b": (
        {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "sliding_window": 512},
        (262144, 1152, 26, 4, 1, 6912),
        {"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window_pattern": 6},
    ),
}
"""Model -> fields of its published config.json: numbers are in the order of `NAMES`."""
LEFT = 0.9
"""Share of the memory that what is counted may take: buffers of the compiler are not counted."""


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for every model with a config.json and a small tokenizer, and a file of questions."""
    folder = tmp_path_factory.mktemp("shapes")
    for name, (family, numbers, rest) in SHAPES.items():
        published.write(folder / name, "qwen3")
        fields = {**family, **dict(zip(NAMES, numbers, strict=True)), **rest}
        (folder / name / "config.json").write_text(json.dumps(fields))
    lines = [json.dumps({"prompt": f"{n}?", "answer": str(n)}) for n in range(40)]
    (folder / "questions.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_every_model_has_a_row_for_every_kind_of_chips():
    assert {*SETTINGS} == {(model, chips) for model in HUB for chips in CHIPS} and {*HUB} == {*SHAPES}
    assert {*VARIANTS} == {f"{model}.{chips}" for model, chips in SETTINGS}


def test_every_row_divides_over_its_mesh_and_fits_its_memory(shapes: Path):
    for (model, chips), (prompts, _, pieces, *_, mesh) in SETTINGS.items():
        given = [f"checkpoint={shapes / model}", f"data={shapes / 'questions.jsonl'}"]
        experiment = made(VARIANTS[f"{model}.{chips}"], given)
        sizes = dict(mesh or {})
        assert math.prod(sizes.values()) == CHIPS[chips].count, (model, chips)
        shards = sizes.get("data", 1) * sizes.get("fsdp", 1)
        assert prompts % pieces == 0 and prompts // pieces % shards == 0, (model, chips)
        tensor, decoder = sizes.get("tensor", 1), decoder_of(experiment.model, what="a test")
        split = (decoder.heads, decoder.kv_heads, decoder.hidden, decoder.vocab)
        assert all(number % tensor == 0 for number in split), (model, chips)
        assert decoder.width % sizes.get("fsdp", 1) == 0, (model, chips)
        found = footprint(experiment)
        assert found.peak <= LEFT * CHIPS[chips].gigabytes * 1e9, (model, chips, found)
