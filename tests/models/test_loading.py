"""Weights become parameters exactly, on any mesh, or are refused with all that is wrong with them."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import models
from grpo_jax.models import loading, safetensors
from grpo_jax.models.lora import without_adapters
from grpo_jax.models.source import CONFIG, SINGLE
from grpo_jax.sharding import make_mesh, sharding_tree
from tests.laws.families import FAMILIES, LLAMA, QWEN2
from tests.models.numbered import equal, halved, numbered, together


def rewritten(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Change the tensors of a folder of one file."""
    path = folder / SINGLE
    arrays = {name: safetensors.read(path, tensor) for name, tensor in safetensors.read_header(path).items()}
    change(arrays)
    path.unlink()
    safetensors.write(path, {n: (a.dtype, a.shape) for n, a in arrays.items()}, lambda n: [arrays[n]])


@pytest.fixture(name="llama")
def a_folder(tmp_path: Path) -> Path:
    models.save(tmp_path / "llama", numbered(LLAMA), LLAMA)
    return tmp_path / "llama"


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_what_was_saved_is_loaded_bit_for_bit_in_either_layout(name: str, tmp_path: Path):
    config = dataclasses.replace(FAMILIES[name], heads=4, kv_heads=2)
    params = numbered(config)
    models.save(tmp_path / "out", params, config)
    back, found = models.load(tmp_path / "out")
    assert equal(back, params)
    assert found.family == config.family
    if not config.dense_layers:
        stack, stacked = models.load(tmp_path / "out", stacked=True)
        assert stacked.stacked
        assert equal(stack, together(params))
        models.save(tmp_path / "again", stack, stacked)
        assert (tmp_path / "again" / SINGLE).read_bytes() == (tmp_path / "out" / SINGLE).read_bytes()


def test_every_kind_of_float_is_read_as_the_dtype_that_is_asked_for(llama: Path):
    params = numbered(LLAMA)
    back, config = models.load(llama, param_dtype="bfloat16", compute_dtype="bfloat16")
    assert (config.param_dtype, config.compute_dtype) == ("bfloat16", "bfloat16")
    assert equal(back, halved(params))
    rewritten(llama, lambda arrays: arrays.update({n: a.astype(np.float16) for n, a in arrays.items()}))
    back, config = models.load(llama)
    assert config.param_dtype == "float32"  # what config.json says, whatever the file holds
    assert equal(back, jax.tree.map(lambda leaf: leaf.astype(np.float16).astype(np.float32), params))
    rewritten(llama, lambda arrays: arrays.update({"model.norm.weight": np.full(16, 1e6, np.float32)}))
    with pytest.raises(ValueError, match=r"model\.norm\.weight: got numbers in float32 that float16 cannot hold"):
        models.load(llama, param_dtype="float16")


def test_no_array_shares_memory_with_another(llama: Path):
    back, _ = models.load(llama)
    first = {name: np.asarray(leaf).copy() for name, leaf in models.flat(back).items()}
    again, _ = models.load(llama)  # reuses whatever could be reused
    assert all(np.array_equal(leaf, first[name]) for name, leaf in models.flat(back).items())
    assert equal(back, again)


def test_what_is_missing_left_over_or_misshapen_is_said_all_at_once(llama: Path):
    def change(arrays: dict[str, np.ndarray]) -> None:
        del arrays["model.layers.0.mlp.up_proj.weight"], arrays["lm_head.weight"]
        arrays["model.norm.weight"] = np.zeros(8, np.float32)
        arrays["model.layers.2.mlp.up_proj.weight"] = np.zeros((24, 16), np.float32)
        arrays["model.layers.0.self_attn.o_proj.weight"] = np.zeros((16, 32), np.int8)
        arrays["model.layers.1.self_attn.o_proj.weight"] = np.zeros((16, 32), jnp.float8_e4m3fn)
        arrays["evil\x1b[2J"] = np.zeros(1, np.float32)

    rewritten(llama, change)
    with pytest.raises(ValueError, match="not those of LlamaForCausalLM") as caught:
        models.load(llama)
    for told in (
        "model.layers.0.mlp.up_proj.weight is missing",
        "lm_head.weight is missing",
        "model.norm.weight has the shape [8], not [16]",
        "'model.layers.2.mlp.up_proj.weight' [24, 16] is left over",
        "o_proj.weight is int8, not one of F32, F16, BF16",
        "o_proj.weight is float8_e4m3fn, not one of",
        "'evil\\x1b[2J' [1] is left over",
    ):
        assert told in str(caught.value)


def test_a_square_matrix_of_the_wrong_shape_elsewhere_is_told_by_its_shape(llama: Path):
    rewritten(
        llama, lambda a: a.update({"model.layers.0.mlp.up_proj.weight": a["model.layers.0.mlp.up_proj.weight"].T})
    )
    with pytest.raises(ValueError, match=r"up_proj.weight has the shape \[16, 24\], not \[24, 16\]"):
        models.load(llama)


def test_of_a_model_for_pictures_too_the_text_part_is_read(tmp_path: Path):
    config = FAMILIES["gemma3"]
    models.save(tmp_path / "out", numbered(config), config)
    content = json.loads((tmp_path / "out" / CONFIG).read_text())
    text = {name: value for name, value in content.items() if name != "architectures"}
    around = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "image_token_index": 5}
    (tmp_path / "out" / CONFIG).write_text(json.dumps({**around, "text_config": text, "vision_config": {"depth": 1}}))

    def change(arrays: dict[str, np.ndarray]) -> None:
        inside = {f"language_model.{name}": arrays.pop(name) for name in [*arrays]}
        arrays.update(inside, **{"vision_tower.embeddings.weight": np.zeros(3), "multi_modal_projector.x": np.zeros(2)})

    rewritten(tmp_path / "out", change)
    back, found = models.load(tmp_path / "out")
    assert found.family == "Gemma3ForCausalLM"
    assert equal(back, numbered(config))
    rewritten(tmp_path / "out", lambda arrays: arrays.update(extra=np.zeros(1)))
    with pytest.raises(ValueError, match=r"'extra' .* is left over"):
        models.load(tmp_path / "out")


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_experts_that_share_a_tensor_are_told_apart(name: str, tmp_path: Path):
    config = FAMILIES[name]
    models.save(tmp_path / "out", numbered(config), config)
    experts = range(config.experts)

    def change(arrays: dict[str, np.ndarray]) -> None:
        for layer in (i for i in range(config.layers) if config.is_mixture(i)):
            at = f"model.layers.{layer}."
            old, kinds = f"{at}mlp.", ("gate_proj", "up_proj", "down_proj")
            if name == "mixtral":
                old, kinds = f"{at}block_sparse_moe.", ("w1", "w3", "w2")
            gate, up, down = ([arrays.pop(f"{old}experts.{e}.{kind}.weight") for e in experts] for kind in kinds)
            both = [np.concatenate(pair) for pair in zip(gate, up, strict=True)]
            arrays[f"{at}mlp.experts.gate_up_proj"], arrays[f"{at}mlp.experts.down_proj"] = (
                np.stack(both),
                np.stack(down),
            )
            arrays[f"{at}mlp.gate.weight"] = arrays.pop(f"{old}gate.weight")

    rewritten(tmp_path / "out", change)
    assert equal(models.load(tmp_path / "out")[0], numbered(config))
    last = "model.layers.1.mlp.experts.down_proj"
    rewritten(tmp_path / "out", lambda arrays: arrays.update({last: arrays[last][:-1]}))
    with pytest.raises(ValueError, match=r"mlp\.experts\.down_proj' \[3, 16, 10\] is left over") as caught:
        models.load(tmp_path / "out")
    assert ("w2" if name == "mixtral" else "down_proj") + ".weight is missing" in str(caught.value)


def test_tables_of_rotations_and_a_second_copy_of_tied_weights_are_known(tmp_path: Path):
    models.save(tmp_path / "out", numbered(QWEN2), QWEN2)

    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"]
        arrays["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)

    rewritten(tmp_path / "out", change)
    assert equal(models.load(tmp_path / "out")[0], numbered(QWEN2))
    rewritten(tmp_path / "out", lambda arrays: arrays.update({"lm_head.weight": arrays["lm_head.weight"] + 1}))
    with pytest.raises(ValueError, match=r"'lm_head.weight' .* is left over"):
        models.load(tmp_path / "out")


@pytest.mark.parametrize("name", ["qwen2", "mixtral", "gemma2"])
@pytest.mark.parametrize("stacked", [False, True], ids=["plain", "stacked"])
def test_on_a_mesh_every_device_holds_its_part_of_the_same_numbers(name: str, stacked: bool, tmp_path: Path):
    config = dataclasses.replace(FAMILIES[name], vocab=16)
    models.save(tmp_path / "out", numbered(config), config)
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    back, found = models.load(tmp_path / "out", mesh=mesh, stacked=stacked)
    expected = numbered(config)
    assert equal(back, together(expected) if stacked else expected)
    layouts = sharding_tree(models.axes(found), models.abstract(found), mesh)
    assert jax.tree.all(jax.tree.map(lambda leaf, layout: leaf.sharding == layout, back, layouts))


def test_a_process_reads_the_slices_of_its_own_devices_only(llama: Path, monkeypatch: pytest.MonkeyPatch):
    """A process of two that has devices 0 to 3 of `fsdp`: the first half of the width, so half of all bytes."""
    mesh, read = make_mesh({"fsdp": 8}), 0
    real = safetensors.read_open

    def counted(file: int, tensor: safetensors.Tensor, *rest: Any) -> np.ndarray:
        nonlocal read
        found = real(file, tensor, *rest)
        read += found.size * tensor.dtype.itemsize
        return found

    def half(shape: tuple[int, ...], layout: Any, callback: Callable[[Any], np.ndarray]) -> list[np.ndarray]:
        places = layout.devices_indices_map(shape)
        return [callback(places[device]) for device in mesh.devices.flat[:4]]

    monkeypatch.setattr(loading, "read_open", counted)
    monkeypatch.setattr(jax, "make_array_from_callback", half)
    models.load(llama, mesh=mesh)
    split = models.abstract(LLAMA)
    layouts = sharding_tree(models.axes(LLAMA), split, mesh)
    expected = jax.tree.map(lambda leaf, to: 4 * 4 * int(np.prod(to.shard_shape(leaf.shape))), split, layouts)
    assert read == sum(jax.tree.leaves(expected))
    assert read == (llama / SINGLE).stat().st_size / 2 - header_bytes(llama) / 2  # every parameter has the width 16


def test_what_several_devices_hold_is_read_once(llama: Path, monkeypatch: pytest.MonkeyPatch):
    read, real = [], safetensors.read_open

    def counted(file: int, tensor: safetensors.Tensor, *rest: Any) -> np.ndarray:
        found = real(file, tensor, *rest)
        read.append(found.nbytes)
        return found

    monkeypatch.setattr(loading, "read_open", counted)
    models.load(llama, mesh=make_mesh({"data": 4, "fsdp": 2}))
    assert sum(read) == (llama / SINGLE).stat().st_size - header_bytes(llama)


def header_bytes(folder: Path) -> int:
    return 8 + int.from_bytes((folder / SINGLE).read_bytes()[:8], "little")


def test_a_critic_is_made_and_not_read(llama: Path):
    back, config = models.load(llama, critic="tower")
    assert config.critic == "tower"
    assert jax.tree.structure(back) == jax.tree.structure(models.abstract(config))
    assert equal(back["critic"]["layers"], back["layers"])
    assert not np.any(back["critic"]["weight"])
    assert equal(models.without_critic(back), numbered(LLAMA))


def test_adapters_are_made_and_not_read(llama: Path):
    lora = models.LoRA(rank=2, alpha=2.0, targets=("layers/*/query",))
    back, config = models.load(llama, lora=lora)
    assert config.lora == lora
    assert jax.tree.structure(back) == jax.tree.structure(models.abstract(config))
    assert equal(without_adapters(back), numbered(LLAMA))
    assert np.any(back["layers"]["1"]["query_lora_a"])
    assert not np.any(back["layers"]["1"]["query_lora_b"])
    with pytest.raises(ValueError, match=r"config\.lora: got adapters, .* models\.merged first"):
        models.save(llama.parent / "other", back, config)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda f: (f / SINGLE).write_bytes((f / SINGLE).read_bytes()[:-1]), "of a file of"),
    "header": (lambda f: (f / SINGLE).write_bytes(b"\xff" * 64), "announce a header"),
    "empty": (lambda f: (f / SINGLE).write_bytes(b""), "a header of 0 bytes in a file of 0"),
    "no_weights": (lambda f: (f / SINGLE).rename(f / "pytorch_model.bin"), "a pickle can run code"),
    "no_config": (lambda f: (f / CONFIG).unlink(), "got no file of this name"),
    "config": (lambda f: (f / CONFIG).write_text("{"), "got no JSON object"),
    "linked_config": (lambda f: ((f / CONFIG).unlink(), (f / CONFIG).symlink_to("/etc/passwd")), "leads out of"),
}


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_a_broken_folder_is_refused_before_any_weight_is_read(llama: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    change, message = BROKEN[name]
    change(llama)
    monkeypatch.setattr(loading, "read_open", None)
    with pytest.raises(ValueError, match=message):
        models.load(llama)


def test_the_config_decides_what_the_tensors_have_to_be(llama: Path):
    content = json.loads((llama / CONFIG).read_text())
    (llama / CONFIG).write_text(json.dumps({**content, "num_hidden_layers": 3, "attention_bias": True}))
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.k_proj\.bias is missing.*layers\.2\..* is missing"):
        models.load(llama)
    (llama / CONFIG).write_text(json.dumps({**content, "architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(ValueError, match="got the architecture 'GPT2LMHeadModel', allowed are Qwen2ForCausalLM"):
        models.load(llama)
