"""The mixture of experts, shortened: what is replayed shows in its metrics."""

from pathlib import Path
from typing import Any

import pytest

from experiments.mixture import EXPERIMENT, VARIANTS
from grpo_jax import cli
from grpo_jax.experiment import step_settings
from grpo_jax.journal import read

SHORTENED = (
    *("model.width=16", "model.layers=2", "model.heads=2", "model.kv_heads=2", "model.head_width=8"),
    *("model.expert_hidden=8", "model.expert_path=grouped", "model.head_std=1.0"),
    *("warm_start.steps=1", "warm_start.limit=1", "warm_start.gate=0", "train.steps=3", "train.prompts=16"),
    *("evaluation.prompts=16", "evaluation.full_prompts=16", "evaluation.samples=1", "evaluation.every=3"),
)


def train(root: Path, *flags: str, settings: tuple[str, ...] = ()) -> int:
    sets = [part for setting in settings for part in ("--set", setting)]
    return cli.main(["train", str(root / "experiments" / "mixture.py"), *sets, *flags])


def steps(root: Path, folder: Path, *flags: str) -> list[dict[str, Any]]:
    assert train(root, "--run-dir", str(folder), *flags, settings=SHORTENED) == 0
    return [row for row in read(folder / "metrics.jsonl") if row["phase"] == "grpo" and row["step"]]


def test_it_says_what_it_would_do(root: Path, capsys: pytest.CaptureFixture):
    assert train(root, "--dry-run") == 0
    assert "P = 32, G = 8, N = 256" in capsys.readouterr().out
    replays = {name: step_settings(variant).gradient.replay_experts for name, variant in VARIANTS.items()}
    assert step_settings(EXPERIMENT).gradient.replay_experts
    assert replays == {"own_choices": False, "bfloat16": True, "bfloat16_own_choices": False}


@pytest.mark.slow
def test_three_steps_in_bfloat16_agree_less_when_the_trainer_chooses_for_itself(root: Path, tmp_path: Path):
    """Fresh from its initial values the policy earns nothing and stays, so that both runs sample the same rows."""
    replayed = steps(root, tmp_path / "replayed", "--variant", "bfloat16")
    own = steps(root, tmp_path / "own", "--variant", "bfloat16_own_choices")
    assert [row["step"] for row in replayed] == [1, 2, 3]
    for row, other in zip(replayed, own, strict=True):
        assert row["entropy"] == pytest.approx(other["entropy"], rel=1e-2)
        assert row["experts/load_max"] == other["experts/load_max"] and 1 <= row["experts/load_max"] <= 8
        assert 0 < row["experts/load_entropy"] <= 1 and 0 <= row["experts/unused"] < 1
    assert sum(row["experts/replaced"] for row in own) > 0
    gap, wider = (sum(row["logp_gap/mean"] for row in rows) for rows in (replayed, own))
    assert gap < wider
    assert max(row["logp_gap/max"] for row in replayed) < max(row["logp_gap/max"] for row in own)
