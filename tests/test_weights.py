"""A run that begins with weights of a folder: these very parameters, of the model that they belong to and no others."""

import dataclasses
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from grpo_jax import models
from grpo_jax.models import ModelConfig
from grpo_jax.sharding import make_mesh
from grpo_jax.weights import Weights, check, fingerprint, load
from tests.laws.families import FAMILIES, perturbed

CONFIG = FAMILIES["qwen3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Published weights of a small Qwen3."""
    path = tmp_path_factory.mktemp("published") / "qwen3"
    models.save(path, perturbed(CONFIG), CONFIG)
    return path


def same(one: object, other: object) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_the_parameters_are_those_of_the_folder(folder: Path):
    weights, model = Weights(str(folder)), models.read_config(folder)
    same(load(weights, model, None), perturbed(CONFIG))
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    placed = load(weights, model, mesh)
    same(placed, perturbed(CONFIG))
    assert placed["embed"].sharding.mesh == mesh and placed["layers"]["0"]["query"].sharding.num_devices == 8


def test_how_a_model_is_computed_is_the_choice_of_the_experiment(folder: Path):
    model = models.read_config(folder, param_dtype="bfloat16", stacked=True, remat="full", critic="head")
    check(Weights(str(folder)), model)
    params = load(Weights(str(folder)), model, None)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    assert params["layers"]["query"].shape[0] == CONFIG.layers and not np.any(params["critic"]["weight"])


def test_another_model_is_refused_field_by_field(folder: Path):
    other: ModelConfig = dataclasses.replace(
        models.read_config(folder), rope_theta=50.0, heads=12, family="Qwen2ForCausalLM"
    )
    with pytest.raises(ValueError, match="holds another model") as refusal:
        check(Weights(str(folder)), other)
    lines = str(refusal.value).splitlines()
    where = re.escape(str(folder / "config.json"))
    assert re.fullmatch(rf"  model.heads: got 12, {where} says 6", lines[1])
    assert re.fullmatch(rf"  model.rope_theta: got 50.0, {where} says 100.0", lines[2])
    assert re.fullmatch(rf"  model.family: got 'Qwen2ForCausalLM', {where} says 'Qwen3ForCausalLM'", lines[3])
    assert len(lines) == 5 and "models.read_config(path)" in lines[4]


def test_other_bytes_have_another_fingerprint(folder: Path, tmp_path: Path):
    changed = jax.tree.map(lambda x: x, perturbed(CONFIG))
    changed["norm"] = changed["norm"].at[3].add(0.5)
    models.save(tmp_path / "changed", changed, CONFIG)
    one, other = (fingerprint(Weights(str(path))) for path in (folder, tmp_path / "changed"))
    assert one != other and one == fingerprint(Weights(str(folder), fingerprint=one))
    with pytest.raises(ValueError, match=rf"weights.fingerprint: got {one}, but the files in .* have {other}"):
        fingerprint(Weights(str(tmp_path / "changed"), fingerprint=one))


def test_a_folder_of_ours_is_as_good(folder: Path, tmp_path: Path):
    models.store(tmp_path / "ours", perturbed(CONFIG), CONFIG)
    models.store(tmp_path / "others", perturbed(CONFIG, seed=1), CONFIG)
    ours = Weights(str(tmp_path / "ours"))
    check(ours, models.read_config(folder))
    same(load(ours, models.read_config(folder), None), perturbed(CONFIG))
    assert fingerprint(ours) == fingerprint(ours) != fingerprint(Weights(str(tmp_path / "others")))


def test_no_folder_is_refused_in_words(tmp_path: Path):
    with pytest.raises(ValueError, match="allowed are a folder that exists or owner/name on the Hub"):
        fingerprint(Weights(str(tmp_path / "none")))
