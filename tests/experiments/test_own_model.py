"""Modules of one's own, trained from the command line: they agree with themselves, resume, and are told apart."""

import json
from pathlib import Path
from typing import Any

import pytest

from grpo_jax import cli
from grpo_jax.journal import read
from grpo_jax.loop.phases import Phases

SHORTENED = (
    *("warm_start.steps=120", "warm_start.limit=120", "warm_start.gate=0", "train.steps=3", "train.prompts=16"),
    *("evaluation.prompts=16", "evaluation.full_prompts=16", "evaluation.samples=1", "evaluation.every=3"),
    *("saving.every=2", "train.group_size=4"),
)
SMALL = {"linen": ("model.module.width=8", "model.module.layers=1"), "nnx": ("model.module.width=32",)}


def train(root: Path, folder: Path, framework: str, *settings: str) -> int:
    flags = [part for setting in (*SHORTENED, *SMALL[framework], *settings) for part in ("--set", setting)]
    variant = ["--variant", "nnx"] if framework == "nnx" else []
    return cli.main(["train", str(root / "experiments" / "own_model.py"), *variant, *flags, "--run-dir", str(folder)])


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_three_steps_of_a_module_agree_with_its_sampler_and_go_on_where_they_stopped(
    root: Path, tmp_path: Path, framework: str
):
    assert train(root, tmp_path / "whole", framework) == 0
    rows = [row for row in read(tmp_path / "whole" / "metrics.jsonl") if row["phase"] == "grpo"]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row["logp_gap/max"] < 1e-4 for row in rows)
    assert any(row["grad_norm"] > 0 for row in rows)
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    kind = "Convolution" if framework == "linen" else "Recurrent"
    assert kind in json.dumps(config)

    steps = iter(range(10))
    learn = Phases.learn

    def stopped(phases: Phases, *given: Any) -> Any:
        if next(steps) == 2:
            raise KeyboardInterrupt
        return learn(phases, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Phases, "learn", stopped)
        assert train(root, tmp_path / "parts", framework) != 0
    assert not (tmp_path / "parts" / "summary.json").exists()
    assert train(root, tmp_path / "parts", framework) == 0
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    first, second = (json.loads((tmp_path / n / "summary.json").read_text()) for n in ("whole", "parts"))
    assert first["state_digest"] == second["state_digest"]
