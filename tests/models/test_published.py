"""config.json <-> ModelConfig: files as they are published, every field honoured or refused, both ways."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import pytest

from grpo_jax import models
from grpo_jax.models import ModelConfig, RopeScaling
from grpo_jax.models.published import HOW, from_fields, read_config, to_fields
from tests.laws.families import FAMILIES, GEMMA2, GEMMA3, LLAMA, MIXTRAL, QWEN2

MARKS = {"bos_token_id": 1, "eos_token_id": [2, 3], "initializer_range": 0.02, "use_cache": True}


def old(architecture: str, kind: str, sizes: str, **more: Any) -> dict[str, Any]:
    """A config.json as transformers 4 writes it; `sizes` are width, feed-forward, layers, heads, vocabulary."""
    names = "hidden_size intermediate_size num_hidden_layers num_attention_heads vocab_size".split()
    given = dict(zip(names, map(int, sizes.split()), strict=True))
    about = {"architectures": [architecture], "model_type": kind, "torch_dtype": "bfloat16", **MARKS}
    return {**about, **given, "attention_dropout": 0.0, "transformers_version": "4.44.0", **more}


QWEN25 = old(
    "Qwen2ForCausalLM",
    "qwen2",
    "896 4864 24 14 151936",
    num_key_value_heads=2,
    hidden_act="silu",
    max_position_embeddings=32768,
    max_window_layers=24,
    rms_norm_eps=1e-6,
    rope_theta=1000000.0,
    sliding_window=32768,
    tie_word_embeddings=True,
    use_mrope=False,
    use_sliding_window=False,
)
LLAMA32 = old(
    "LlamaForCausalLM",
    "llama",
    "2048 8192 16 32 128256",
    num_key_value_heads=8,
    head_dim=64,
    hidden_act="silu",
    attention_bias=False,
    mlp_bias=False,
    max_position_embeddings=131072,
    pretraining_tp=1,
    rms_norm_eps=1e-5,
    rope_scaling={
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    rope_theta=500000.0,
    tie_word_embeddings=True,
)
GEMMA3_1B = old(
    "Gemma3ForCausalLM",
    "gemma3_text",
    "1152 6912 26 4 262144",
    num_key_value_heads=1,
    head_dim=256,
    hidden_activation="gelu_pytorch_tanh",
    attention_bias=False,
    attn_logit_softcapping=None,
    final_logit_softcapping=None,
    cache_implementation="hybrid",
    max_position_embeddings=32768,
    query_pre_attn_scalar=256,
    rms_norm_eps=1e-6,
    rope_local_base_freq=10000,
    rope_scaling=None,
    rope_theta=1000000,
    sliding_window=512,
    sliding_window_pattern=6,
)
GEMMA2_2B = old(
    "Gemma2ForCausalLM",
    "gemma2",
    "2304 9216 26 8 256000",
    num_key_value_heads=4,
    head_dim=256,
    hidden_act="gelu_pytorch_tanh",
    hidden_activation="gelu_pytorch_tanh",
    attention_bias=False,
    attn_logit_softcapping=50.0,
    final_logit_softcapping=30.0,
    cache_implementation="hybrid",
    max_position_embeddings=8192,
    query_pre_attn_scalar=256,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    sliding_window=4096,
)
MISTRAL = old(
    "MistralForCausalLM",
    "mistral",
    "4096 14336 32 32 32000",
    num_key_value_heads=8,
    hidden_act="silu",
    max_position_embeddings=32768,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    sliding_window=4096,
    tie_word_embeddings=False,
)
QWEN3_MOE = old(
    "Qwen3MoeForCausalLM",
    "qwen3_moe",
    "2048 6144 48 32 151936",
    num_key_value_heads=4,
    head_dim=128,
    hidden_act="silu",
    attention_bias=False,
    decoder_sparse_step=1,
    max_position_embeddings=40960,
    max_window_layers=48,
    mlp_only_layers=[],
    moe_intermediate_size=768,
    norm_topk_prob=True,
    num_experts=128,
    num_experts_per_tok=8,
    output_router_logits=False,
    router_aux_loss_coef=0.001,
    rms_norm_eps=1e-6,
    rope_scaling=None,
    rope_theta=1000000.0,
    sliding_window=None,
    tie_word_embeddings=False,
    use_sliding_window=False,
)
# Name -> a published config.json, and how many numbers its published weights are.
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "qwen2.5-0.5b": (QWEN25, 494_032_768),
    "qwen2.5-1.5b": (
        {**QWEN25, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
        1_543_714_304,
    ),
    "qwen3-0.6b": (
        old(
            "Qwen3ForCausalLM",
            "qwen3",
            "1024 3072 28 16 151936",
            num_key_value_heads=8,
            head_dim=128,
            hidden_act="silu",
            attention_bias=False,
            max_position_embeddings=40960,
            max_window_layers=28,
            rms_norm_eps=1e-6,
            rope_scaling=None,
            rope_theta=1000000,
            sliding_window=None,
            tie_word_embeddings=True,
            use_sliding_window=False,
        ),
        596_049_920,
    ),
    "qwen3-30b-a3b": (QWEN3_MOE, 30_532_122_624),
    "llama-3.2-1b": (LLAMA32, 1_235_814_400),
    "smollm2-135m": (
        old(
            "LlamaForCausalLM",
            "llama",
            "576 1536 30 9 49152",
            num_key_value_heads=3,
            hidden_act="silu",
            attention_bias=False,
            is_llama_config=True,
            max_position_embeddings=8192,
            pretraining_tp=1,
            rms_norm_eps=1e-5,
            rope_interleaved=False,
            rope_scaling=None,
            rope_theta=100000,
            tie_word_embeddings=True,
        ),
        134_515_008,
    ),
    "gemma-2-2b": (GEMMA2_2B, 2_614_341_888),
    "gemma-3-1b": (GEMMA3_1B, 999_885_952),
    "mistral-7b": (MISTRAL, 7_241_732_096),
    "mixtral-8x7b": (
        old(
            "MixtralForCausalLM",
            "mixtral",
            "4096 14336 32 32 32000",
            num_key_value_heads=8,
            hidden_act="silu",
            max_position_embeddings=32768,
            num_experts_per_tok=2,
            num_local_experts=8,
            output_router_logits=False,
            rms_norm_eps=1e-5,
            rope_theta=1000000.0,
            router_aux_loss_coef=0.02,
            sliding_window=None,
            tie_word_embeddings=False,
        ),
        46_702_792_704,
    ),
}


def read(content: dict[str, Any], **changes: Any) -> ModelConfig:
    return from_fields(content, where="config.json", **changes)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_published_model_has_as_many_parameters_as_its_weights(name: str):
    content, count = PUBLISHED[name]
    config = read(content)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(models.abstract(config))) == count
    assert config.param_dtype == "bfloat16"
    assert config.family == content["architectures"][0]


def test_fields_of_llama_say_what_they_say():
    config = read(LLAMA32)
    assert (config.vocab, config.width, config.layers, config.heads, config.kv_heads) == (128256, 2048, 16, 32, 8)
    assert (config.head_width, config.hidden, config.activation, config.gated) == (64, 8192, "silu", True)
    assert (config.tied, config.norm_eps, config.rope_theta, config.context) == (True, 1e-5, 500000.0, 131072)
    scaling = RopeScaling(kind="llama3", factor=32.0, original_positions=8192, low_frequency=1.0, high_frequency=4.0)
    assert config.rope_scaling == scaling
    biased = read({**LLAMA32, "attention_bias": True, "mlp_bias": True})
    assert (biased.qkv_bias, biased.output_bias, biased.mlp_bias) == (True, True, True)


def test_fields_of_gemma_say_what_they_say():
    third = read(GEMMA3_1B)
    assert third.windows == (512, 512, 512, 512, 512, 0) * 4 + (512, 512)  # every sixth layer sees everything
    assert (third.rope_theta, third.local_rope_theta, third.rope_scaling) == (1e6, 1e4, None)
    assert (third.norm_offset, third.post_norms, third.query_key_norm, third.tied) == (1.0, True, True, True)
    assert (third.embed_scale, third.query_scale, third.head_width) == (1152**0.5, 0.0, 256)  # 256 is head_dim
    second = read({**GEMMA2_2B, "query_pre_attn_scalar": 144})
    assert second.windows == (4096, 0) * 13
    assert (second.attention_cap, second.logit_cap, second.query_scale) == (50.0, 30.0, 1 / 12)
    assert (second.query_key_norm, second.local_rope_theta) == (False, 0.0)
    assert read({**GEMMA2_2B, "attn_logit_softcapping": None, "final_logit_softcapping": None}).logit_cap == 0


def test_fields_of_windows_say_what_they_say():
    assert read(MISTRAL).windows == (4096,) * 32
    assert read({**MISTRAL, "sliding_window": None}).windows == ()
    assert read(QWEN25).windows == ()
    used = {**QWEN25, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 21}
    assert read(used).windows == (0,) * 21 + (8,) * 3
    typed = ["sliding_attention", "full_attention"] * 12
    assert read({**used, "layer_types": typed}).windows == (8, 0) * 12
    assert read({**QWEN25, "layer_types": ["full_attention"] * 24}).windows == ()
    moe = {**QWEN3_MOE, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}
    assert read(moe).windows == (8,) * 48


def test_fields_of_mixtures_say_what_they_say():
    config = read({**QWEN3_MOE, "decoder_sparse_step": 2, "mlp_only_layers": [5]})
    assert config.dense_layers == tuple(i for i in range(48) if i % 2 == 0 or i == 5)
    assert (config.experts, config.experts_per_token, config.expert_hidden) == (128, 8, 768)
    assert config.expert_renormalised
    newer = {name: value for name, value in QWEN3_MOE.items() if name != "num_experts"} | {"num_local_experts": 128}
    assert read(newer) == read(QWEN3_MOE)
    assert not read({**QWEN3_MOE, "norm_topk_prob": False}).expert_renormalised
    assert read({**QWEN3_MOE, "mlp_only_layers": list(range(48))}).experts == 0


def test_the_newer_form_says_the_same():
    rules = {**LLAMA32["rope_scaling"], "rope_theta": 500000.0}
    new = {n: v for n, v in LLAMA32.items() if n not in ("rope_theta", "rope_scaling", "torch_dtype")}
    assert read({**new, "rope_parameters": rules, "dtype": "bfloat16"}) == read(LLAMA32)
    types = (["sliding_attention"] * 5 + ["full_attention"]) * 4 + ["sliding_attention"] * 2
    dropped = ("rope_theta", "rope_scaling", "rope_local_base_freq", "sliding_window_pattern")
    new = {n: v for n, v in GEMMA3_1B.items() if n not in dropped}
    both = {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    newest = {**new, "rope_parameters": both, "layer_types": types, "_sliding_window_pattern": 6}
    assert read(newest) == read(GEMMA3_1B)


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "unknown_field": (QWEN25, {"attention_sinks": 4}, "attention_sinks: got 4, allowed is to leave this unknown"),
    "misspelt": (QWEN25, {"rope_thetta": 1e4}, "rope_theta is known"),
    "activation": (QWEN25, {"hidden_act": "tanh"}, "hidden_act: got 'tanh', allowed silu, swish"),
    "activations": (GEMMA2_2B, {"hidden_act": "relu"}, "hidden_act: got 'another function'"),
    "parallel": (LLAMA32, {"pretraining_tp": 2}, "pretraining_tp: got 2, allowed 1"),
    "both_ways": (GEMMA2_2B, {"use_bidirectional_attention": True}, "use_bidirectional_attention: got True"),
    "unread_cap": (GEMMA3_1B, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping: got 50.0, allowed None"),
    "partial": (QWEN25, {"partial_rotary_factor": 0.5}, "partial_rotary_factor: got 0.5"),
    "mrope": (QWEN25, {"use_mrope": True}, "use_mrope: got True"),
    "interleaved": (LLAMA32, {"rope_interleaved": True}, "rope_interleaved: got True"),
    "quantised": (QWEN25, {"quantization_config": {"bits": 4}}, "take the checkpoint that is not quantised"),
    "own_code": (QWEN25, {"auto_map": {"AutoModel": "x.py"}}, "none is run"),
    "jitter": (PUBLISHED["mixtral-8x7b"][0], {"router_jitter_noise": 0.1}, "router_jitter_noise: got 0.1"),
    "encoder": (QWEN25, {"is_encoder_decoder": True}, "is_encoder_decoder: got True"),
    "model_type": (QWEN25, {"model_type": "llama"}, "model_type: got 'llama', allowed qwen2"),
    "no_layers": (QWEN25, {"num_hidden_layers": 0}, "num_hidden_layers: got 0, allowed whole numbers from 1"),
    "many_layers": (QWEN25, {"num_hidden_layers": 10**9}, "num_hidden_layers: got 1000000000"),
    "text": (QWEN25, {"hidden_size": "896"}, "hidden_size: got '896'"),
    "yes": (QWEN25, {"hidden_size": True}, "hidden_size: got True"),
    "fraction": (QWEN25, {"hidden_size": 896.0}, "hidden_size: got 896.0"),
    "negative": (QWEN25, {"rms_norm_eps": -1e-6}, "rms_norm_eps: got -1e-06, allowed numbers from 0"),
    "no_switch": (QWEN25, {"tie_word_embeddings": "yes"}, "tie_word_embeddings: got 'yes', allowed true, false"),
    "heads": (QWEN25, {"num_attention_heads": 13}, "no multiple of 13 heads"),
    "groups": (QWEN25, {"num_key_value_heads": 3}, "kv_heads must divide heads"),
    "types_too_few": (GEMMA3_1B, {"layer_types": ["full_attention"]}, "layer_types: got"),
    "types_unknown": (QWEN25, {"layer_types": ["chunked_attention"] * 24}, "each full_attention or sliding_attention"),
    "types_disagree": (QWEN25, {"layer_types": ["sliding_attention"] * 24}, "what the fields of windows say"),
    "types_unread": (MISTRAL, {"layer_types": ["full_attention"] * 32}, "what the fields of windows say"),
    "window_zero": (MISTRAL, {"sliding_window": 0}, "sliding_window: got 0"),
    "windows_without": (GEMMA2_2B, {"sliding_window": None}, "as there are layers of sliding_attention"),
    "windows_differ": (GEMMA2_2B, {"sliding_window_size": 1024}, "sliding_window_size: got 1024, allowed 4096"),
    "windows_by_version": (
        QWEN3_MOE,
        {"use_sliding_window": True, "sliding_window": 8},
        "versions of this architecture differ",
    ),
    "experts_differ": (QWEN3_MOE, {"num_local_experts": 64}, "num_experts: got 128, allowed 64"),
    "pattern": (GEMMA3_1B, {"layer_types": ["full_attention"] * 26}, "what the fields of windows say"),
    "both_rules": (LLAMA32, {"rope_parameters": {"rope_type": "default"}}, "null beside rope_parameters"),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_field_that_cannot_be_honoured_is_refused(name: str):
    content, change, message = REFUSED[name]
    with pytest.raises(ValueError, match=r"config.json") as caught:
        read({**content, **change})
    assert message in str(caught.value)


def test_everything_that_is_wrong_is_said_at_once():
    with pytest.raises(ValueError, match=r"config.json") as caught:
        read({**QWEN25, "hidden_size": None, "rms_norm_eps": "small", "sinks": 1})
    assert all(name in str(caught.value) for name in ("hidden_size: got None", "rms_norm_eps", "sinks"))


@pytest.mark.parametrize("name", "vocab_size hidden_size num_hidden_layers num_key_value_heads".split())
def test_a_field_that_decides_is_not_guessed(name: str):
    with pytest.raises(ValueError, match=f"{name}: got None"):
        read({field: value for field, value in QWEN25.items() if field != name})
    if name == "num_key_value_heads":  # null is what transformers reads as: as many as query heads
        assert read({**QWEN25, name: None}).kv_heads == 14


def test_architectures_decide():
    for names in (None, [], ["Qwen2ForCausalLM", "LlamaForCausalLM"], "Qwen2ForCausalLM"):
        with pytest.raises(ValueError, match="allowed is a list of one of Qwen2ForCausalLM, Qwen3"):
            read({**QWEN25, "architectures": names})
    with pytest.raises(
        ValueError, match=r"'Qwen2ForSequenceClassification', allowed are .*nearest is Qwen2ForCausalLM"
    ):
        read({**QWEN25, "architectures": ["Qwen2ForSequenceClassification"]})


def test_of_a_model_for_pictures_too_the_text_part_is_described():
    """The file of gemma-3-4b, whose text part leaves out what its configuration class has."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    whole = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "boi_token_index": 255999,
        "eoi_token_index": 256000,
        "eos_token_id": [1, 106],
        "image_token_index": 262144,
        "initializer_range": 0.02,
        "mm_tokens_per_image": 256,
        "model_type": "gemma3",
        "text_config": text,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.50.0.dev0",
        "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
    }
    config = read(whole)
    assert (config.vocab, config.heads, config.kv_heads, config.head_width) == (262_208, 8, 4, 256)
    assert config.rope_scaling == RopeScaling(kind="linear", factor=8.0)
    assert (config.family, config.param_dtype, config.tied) == ("Gemma3ForCausalLM", "bfloat16", True)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(models.abstract(config)))
    assert count == 3_880_263_168  # of the published text part
    for change in ({"tie_word_embeddings": False}, {"text_config": None}, {"fusion": 1}):
        with pytest.raises(ValueError, match=next(iter(change))):
            read({**whole, **change})
    with pytest.raises(ValueError, match=r"\(text_config\) describes .*sinks: got 1"):
        read({**whole, "text_config": {**text, "sinks": 1}})


def test_changes_say_how_to_compute_and_never_what():
    config = read(QWEN25, param_dtype="float32", compute_dtype="bfloat16", stacked=True, remat="full", critic="head")
    assert (config.param_dtype, config.compute_dtype, config.stacked) == ("float32", "bfloat16", True)
    with pytest.raises(
        ValueError, match=r"rope_theta: got 1.0 as a change of a published model, allowed are changes of"
    ):
        read(QWEN25, rope_theta=1.0)


def test_a_file_is_read_from_its_folder_and_bounded(tmp_path: Path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(QWEN25))
    assert read_config(tmp_path) == read_config(path) == read(QWEN25)
    path.write_text(json.dumps({**QWEN25, "id2label": {"0": "x" * 2**20}}))
    with pytest.raises(ValueError, match="got more than 1048576 bytes"):
        read_config(path)
    path.write_text('{"architectures": ["Qwen2ForCausalLM"], "architectures": []}')
    with pytest.raises(ValueError, match="occurs twice"):
        read_config(path)


IGNORED = {*HOW.split(), "context"}


def what_it_is(config: ModelConfig) -> dict[str, Any]:
    """All of a config but how it is computed."""
    given = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    unused = {"hidden"} if config.experts and not config.dense_layers else set()
    return {name: value for name, value in given.items() if name not in IGNORED | unused}


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_what_is_written_is_read_back(name: str):
    config = dataclasses.replace(FAMILIES[name], heads=4, kv_heads=2)
    assert what_it_is(read(json.loads(json.dumps(to_fields(config))))) == what_it_is(config)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_what_was_published_is_written_as_it_was(name: str):
    config = read(PUBLISHED[name][0])
    assert read(json.loads(json.dumps(to_fields(config)))) == config


def test_a_model_without_a_family_gets_the_first_that_fits():
    assert to_fields(dataclasses.replace(QWEN2, family=None))["architectures"] == ["Qwen2ForCausalLM"]
    assert to_fields(dataclasses.replace(GEMMA3, family=None))["architectures"] == ["Gemma3ForCausalLM"]
    assert to_fields(dataclasses.replace(LLAMA, family=None))["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gated": False}, "gated False"),
        ({"positions": 8}, "positions 8"),
        ({"rope_theta": 0.0}, "rope_theta 0.0"),
        ({"output_bias": True}, "output_bias True"),
        ({"norm_offset": 0.5}, "norm_offset 0.5"),
        ({"windows": (3, 5)}, "windows (3, 5)"),
        ({"logit_cap": 2.0}, "logit_cap 2.0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_model_that_no_family_expresses_is_refused_with_what_does_not_fit(change: dict[str, Any], words: str):
    for family in ("LlamaForCausalLM", None):
        with pytest.raises(ValueError, match="cannot express") as caught:
            to_fields(dataclasses.replace(LLAMA, family=family, **change))
        assert words in str(caught.value) or family is None


def test_heads_that_do_not_divide_the_width_are_refused_where_transformers_refuses_them():
    with pytest.raises(ValueError, match="hidden_size: got 16, allowed are multiples of the 3"):
        to_fields(dataclasses.replace(LLAMA, heads=3, kv_heads=1))
    assert to_fields(dataclasses.replace(FAMILIES["qwen3"], heads=3, kv_heads=1))


def test_a_scale_of_queries_is_written_as_the_whole_number_it_comes_from():
    assert to_fields(GEMMA2)["query_pre_attn_scalar"] == 12  # GEMMA2 has 12 ** -0.5
    with pytest.raises(ValueError, match="query_scale"):
        to_fields(dataclasses.replace(GEMMA2, query_scale=0.3))


def test_the_mixture_writes_the_width_of_its_experts():
    assert to_fields(MIXTRAL)["intermediate_size"] == 10
