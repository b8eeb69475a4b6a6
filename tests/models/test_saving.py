"""A folder that is written is whole or not there, and holds what it was given."""

import dataclasses
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import models
from grpo_jax.models import saving
from grpo_jax.models.safetensors import read, read_header
from grpo_jax.models.source import CONFIG, INDEX, SINGLE, tensors
from tests.laws.families import LLAMA, MIXTRAL, QWEN2
from tests.models.numbered import equal, numbered


def test_matrices_are_written_as_outputs_by_inputs(tmp_path: Path):
    params = numbered(LLAMA)
    models.save(tmp_path / "out", params, LLAMA)
    header = read_header(tmp_path / "out" / SINGLE)

    def written(name: str) -> np.ndarray:
        return read(tmp_path / "out" / SINGLE, header[name])

    layer = params["layers"]["1"]
    np.testing.assert_array_equal(written("model.layers.1.mlp.up_proj.weight"), np.asarray(layer["up"]).T)
    query = written("model.layers.1.self_attn.q_proj.weight")  # [4 heads * 8, 16]
    np.testing.assert_array_equal(query[8 * 2 + 3], np.asarray(layer["query"])[:, 2, 3])
    for name, letter in (("key", "k"), ("value", "v")):
        matrix = written(f"model.layers.1.self_attn.{letter}_proj.weight")  # [2 heads * 8, 16]
        np.testing.assert_array_equal(matrix[8 * 1 + 3], np.asarray(layer[name])[:, 1, 3])
    output = written("model.layers.1.self_attn.o_proj.weight")  # [16, 4 heads * 8]
    np.testing.assert_array_equal(output[:, 8 * 2 + 3], np.asarray(layer["output"])[2, 3])
    np.testing.assert_array_equal(written("model.layers.1.mlp.gate_proj.weight"), np.asarray(layer["gate"]).T)
    np.testing.assert_array_equal(written("model.layers.1.mlp.down_proj.weight"), np.asarray(layer["down"]).T)
    np.testing.assert_array_equal(written("model.embed_tokens.weight"), params["embed"])
    np.testing.assert_array_equal(written("lm_head.weight"), np.asarray(params["head"]).T)


def test_an_expert_is_a_tensor(tmp_path: Path):
    params = numbered(MIXTRAL)
    models.save(tmp_path / "out", params, MIXTRAL)
    placed = tensors(tmp_path / "out")["model.layers.0.block_sparse_moe.experts.2.w1.weight"]
    expected = np.asarray(params["layers"]["0"]["expert_gate"])[2].T
    np.testing.assert_array_equal(read(placed.file, placed.tensor), expected)


def test_many_bytes_are_split_over_files_with_an_index(tmp_path: Path):
    params = numbered(LLAMA)
    models.save(tmp_path / "out", params, LLAMA, shard_bytes=4000)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert len(files) > 3
    content = json.loads((tmp_path / "out" / INDEX).read_text())
    assert content["metadata"] == {"total_size": sum(leaf.nbytes for leaf in jax.tree.leaves(params))}
    sizes = [sum(t.end - t.begin for t in read_header(tmp_path / "out" / file).values()) for file in files]
    assert max(sizes) <= 4000
    back, _ = models.load(tmp_path / "out")
    assert equal(params, back)


def test_a_dtype_is_converted_or_refused(tmp_path: Path):
    params = numbered(LLAMA)
    models.save(tmp_path / "half", params, LLAMA, dtype="bfloat16")
    assert json.loads((tmp_path / "half" / CONFIG).read_text())["dtype"] == "bfloat16"
    back, config = models.load(tmp_path / "half")
    assert config.param_dtype == "bfloat16"
    np.testing.assert_array_equal(back["norm"], params["norm"].astype(jnp.bfloat16))
    params["norm"][0] = 1e6
    with pytest.raises(ValueError, match="norm: got numbers in float32 that float16 cannot hold"):
        models.save(tmp_path / "small", params, LLAMA, dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["half"]
    with pytest.raises(ValueError, match="dtype: got 'int8', allowed are float32, float16, bfloat16"):
        models.save(tmp_path / "small", params, LLAMA, dtype="int8")


def test_only_the_parameters_of_the_config_are_written(tmp_path: Path):
    params = {**numbered(LLAMA), "more": np.zeros(1)}
    del params["layers"]["0"]["up"]
    params["layers"]["1"]["query"] = params["layers"]["1"]["query"][:, :1]
    with pytest.raises(ValueError, match=r"layers/0/up is missing; layers/1/query has the shape .*; more is left over"):
        models.save(tmp_path / "out", params, LLAMA)
    with pytest.raises(ValueError, match="cannot express gated False"):
        models.save(tmp_path / "out", numbered(LLAMA), dataclasses.replace(LLAMA, gated=False))
    assert not any(tmp_path.iterdir())


def test_a_critic_is_left_out(tmp_path: Path):
    config = dataclasses.replace(LLAMA, critic="tower")
    params = numbered(config)
    models.save(tmp_path / "out", params, config)
    back, found = models.load(tmp_path / "out")
    assert found.critic is None
    assert equal(models.without_critic(params), back)


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    models.save(out, numbered(LLAMA), LLAMA)  # an empty one is taken
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    with pytest.raises(ValueError, match="which exists, allowed is a new or empty folder"):
        models.save(out, numbered(LLAMA), LLAMA)
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


@pytest.mark.parametrize("place", ["write", "write_json", "_flush"])
def test_after_a_failure_nothing_of_the_folder_stays(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, place, full)
    with pytest.raises(OSError, match="No space left"):
        models.save(tmp_path / "out", numbered(LLAMA), LLAMA)
    assert not any(tmp_path.iterdir())


def test_the_files_of_a_tokenizer_are_copied_and_its_numbers_written(tmp_path: Path):
    given = tmp_path / "tokenizer"
    given.mkdir()
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json", "modeling_own.py", "model.bin"):
        (given / name).write_text(f"{name} of the base")
    (given / CONFIG).write_text('{"eos_token_id": [7, 9], "bos_token_id": 3, "auto_map": {"x": "y"}}')
    models.save(tmp_path / "out", numbered(QWEN2), QWEN2, tokenizer_from=given)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {SINGLE, CONFIG, "tokenizer.json", "chat_template.jinja", "generation_config.json"}
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "tokenizer.json of the base"
    content = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert [content[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [3, [7, 9], None]
    assert "auto_map" not in content
    with pytest.raises(ValueError, match=r"tokenizer_from: got .* which has none of tokenizer.json"):
        models.save(tmp_path / "other", numbered(QWEN2), QWEN2, tokenizer_from=tmp_path)
    (given / "vocab.json").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match="a link that leads out of the folder"):
        models.save(tmp_path / "other", numbered(QWEN2), QWEN2, tokenizer_from=given)
    assert not (tmp_path / "other").exists()


def test_the_folder_can_be_read_by_those_who_may_read_its_place(tmp_path: Path):
    models.save(tmp_path / "out", numbered(LLAMA), LLAMA)
    assert os.stat(tmp_path / "out").st_mode & 0o777 == 0o755
