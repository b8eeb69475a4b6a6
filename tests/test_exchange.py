"""A checkpoint of a run becomes a folder that other tools read, and a published folder becomes one of ours."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from grpo_jax import exchange, models, run
from grpo_jax.experiment import Experiment
from grpo_jax.models import decoder_of
from grpo_jax.models.lora import LoRA
from grpo_jax.models.source import CONFIG
from grpo_jax.revisit import Revisited
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


def test_a_checkpoint_is_written_with_its_adapters_added_and_without_its_critic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    lora = LoRA(rank=2, alpha=6.0, targets=("layers/0/query",))
    config = dataclasses.replace(
        decoder_of(small_run.EXPERIMENT.model, what="a test"), **ROTARY, critic="head", lora=lora
    )
    whole: dict[str, Any] = {**numbered(config)}
    asked: list[Any] = []
    apart = {name: whole["layers"]["0"].pop(f"query_lora_{name}") for name in "ab"}
    adapters = {"layers": {"0": {f"query_lora_{name}": apart[name] for name in "ab"}}}
    params, frozen = {"critic": whole.pop("critic"), **adapters}, whole  # what was trained, and the rest

    @contextmanager
    def visit(folder: Path, experiment: Experiment) -> Iterator[str]:
        asked.append((folder, experiment.model))
        yield "checkpoints"

    def restore(kept: str, experiment: Experiment, which: str) -> Revisited:
        asked.append((kept, which))
        none: Any = 0
        state = TrainState(params=params, opt_state=(), step=none, cursor=none, skipped=none)
        return Revisited(state, {"phase": "grpo", "step": 20, "best": []}, frozen)

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
    # W + (alpha / rank) A B, with A [D, 2] and B [2, H, C]
    whole["layers"]["0"]["query"] += np.float32(3) * np.einsum("dr,rhc->dhc", apart["a"], apart["b"])
    np.testing.assert_allclose(
        back["layers"]["0"].pop("query"), whole["layers"]["0"].pop("query"), rtol=0.01, atol=0.01
    )
    assert equal(back, halved(whole))


def test_a_module_of_the_users_own_is_no_published_architecture(tmp_path: Path):
    experiment: Any = SimpleNamespace(model=object())
    with pytest.raises(ValueError, match="model: got a object, allowed with export is a ModelConfig"):
        exchange.export(tmp_path / "run", experiment, out=tmp_path / "out")


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
    model = dataclasses.replace(decoder_of(small_run.EXPERIMENT.model, what="a test"), **ROTARY)
    train = dataclasses.replace(small_run.EXPERIMENT.train, steps=1)
    experiment = dataclasses.replace(small_run.EXPERIMENT, model=model, train=train, warm_start=None)
    run(experiment, run_dir=tmp_path / "run")
    told = exchange.export(tmp_path / "run", experiment, out=tmp_path / "out")
    assert (told["phase"], told["step"], told["architecture"]) == ("grpo", 1, "Qwen2ForCausalLM")
    _, config = models.load(tmp_path / "out")
    assert config.vocab == model.vocab
    with pytest.raises(ValueError, match="--checkpoint: got 7, allowed newest"):
        exchange.export(tmp_path / "run", experiment, out=tmp_path / "other", checkpoint="7")
