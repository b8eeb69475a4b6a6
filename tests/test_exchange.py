"""A checkpoint of a run becomes a folder that other tools read, and a published folder becomes one of ours."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from grpo_jax import exchange, models, run
from grpo_jax.checkpoint import Restored
from grpo_jax.experiment import Experiment
from grpo_jax.models.source import CONFIG
from grpo_jax.types import TrainState
from tests.laws.families import LLAMA
from tests.models.numbered import equal, halved, numbered
from tests.system import small_run

ROTARY = {
    "family": "Qwen2ForCausalLM",
    "activation": "silu",
    "gated": True,
    "qkv_bias": True,
    "positions": 0,
    "rope_theta": 1e4,
}


def test_parameters_of_a_checkpoint_are_written_without_its_critic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = dataclasses.replace(small_run.EXPERIMENT.model, **ROTARY, critic="head")
    params, asked = numbered(config), []

    @contextmanager
    def visit(folder: Path, experiment: Experiment) -> Iterator[str]:
        asked.append((folder, experiment.model))
        yield "checkpoints"

    def restore(kept: str, experiment: Experiment, which: str) -> Restored:
        asked.append((kept, which))
        none: Any = 0
        state = TrainState(params=params, opt_state=(), step=none, cursor=none, skipped=none)
        return Restored(3, state, {"phase": "grpo", "step": 20, "best": []})

    monkeypatch.setattr(exchange, "visit", visit)
    monkeypatch.setattr(exchange, "restore", restore)
    experiment = dataclasses.replace(small_run.EXPERIMENT, model=config)
    told = exchange.export(
        tmp_path / "run", experiment, out=tmp_path / "out", checkpoint="best", dtype="bfloat16", tokenizer_from=None
    )
    assert asked == [(tmp_path / "run", config), ("checkpoints", "best")]
    out = tmp_path / "out"
    assert told == {"phase": "grpo", "step": 20, "architecture": "Qwen2ForCausalLM", "folder": str(out)}
    back, found = models.load(out)
    assert found.critic is None
    assert equal(back, models.without_critic(halved(params)))


def test_a_published_folder_becomes_one_of_ours(tmp_path: Path):
    models.save(tmp_path / "published", numbered(LLAMA), LLAMA)
    (tmp_path / "published" / "tokenizer.json").write_text("{}")
    told = exchange.import_weights(tmp_path / "published", tmp_path / "ours", dtype="bfloat16")
    assert (told.family, told.param_dtype) == ("LlamaForCausalLM", "bfloat16")
    assert {path.name for path in (tmp_path / "ours").iterdir()} == {"params", CONFIG, "tokenizer.json"}
    back, config = models.load(tmp_path / "ours")
    assert config == told
    assert equal(back, halved(numbered(LLAMA)))


@pytest.mark.slow
def test_what_a_run_trained_is_exported(tmp_path: Path):
    model = dataclasses.replace(small_run.EXPERIMENT.model, **ROTARY)
    train = dataclasses.replace(small_run.EXPERIMENT.train, steps=1)
    experiment = dataclasses.replace(small_run.EXPERIMENT, model=model, train=train, warm_start=None)
    run(experiment, run_dir=tmp_path / "run")
    told = exchange.export(tmp_path / "run", experiment, out=tmp_path / "out")
    assert (told["phase"], told["step"], told["architecture"]) == ("grpo", 1, "Qwen2ForCausalLM")
    _, config = models.load(tmp_path / "out")
    assert config.vocab == model.vocab
    with pytest.raises(ValueError, match="--checkpoint: got 7, allowed newest"):
        exchange.export(tmp_path / "run", experiment, out=tmp_path / "other", checkpoint="7")
