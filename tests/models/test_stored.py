"""A folder of parameters alone, in the format of our checkpoints."""

import dataclasses
from pathlib import Path

import pytest

from grpo_jax import models
from grpo_jax.models import stored
from grpo_jax.models.source import CONFIG
from grpo_jax.sharding import make_mesh
from tests.laws.families import LLAMA
from tests.models.numbered import equal, halved, numbered, together


@pytest.fixture(name="folder", scope="module")
def a_stored_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored") / "out"
    models.store(folder, together(numbered(LLAMA)), dataclasses.replace(LLAMA, stacked=True))
    return folder


def test_what_was_stored_is_loaded_in_either_layout_and_on_a_mesh(folder: Path):
    params = numbered(LLAMA)
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    back, config = models.load(folder, mesh=mesh)
    assert config.family == "LlamaForCausalLM"
    assert equal(back, params)
    assert back["layers"]["0"]["query"].sharding.mesh == mesh
    stack, _ = models.load(folder, stacked=True, param_dtype="bfloat16")
    assert equal(stack, together(halved(params)))


def test_arrays_that_are_not_those_of_the_config_are_refused(folder: Path, tmp_path: Path):
    config = models.read_config(folder)
    with pytest.raises(ValueError, match=r"its arrays differ from those of config.json in layers/2/attention_norm"):
        stored.restore(folder, dataclasses.replace(config, layers=3), None)
    (tmp_path / "params").mkdir()
    (tmp_path / CONFIG).write_bytes((folder / CONFIG).read_bytes())
    assert stored.is_stored(tmp_path)
    with pytest.raises(ValueError, match=r"got parameters that cannot be read .* import them again"):
        models.load(tmp_path)


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path):
    (tmp_path / "note").touch()
    with pytest.raises(ValueError, match="which exists, allowed is a new or empty folder"):
        models.store(tmp_path, numbered(LLAMA), LLAMA)
    with pytest.raises(ValueError, match="cannot express"):
        models.store(tmp_path / "other", numbered(LLAMA), dataclasses.replace(LLAMA, gated=False))
    assert [path.name for path in tmp_path.iterdir()] == ["note"]
