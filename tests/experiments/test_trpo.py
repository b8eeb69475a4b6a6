"""TRPO on the task of the quickstart, shortened: its steps stay within their bound."""

from pathlib import Path

import pytest

from grpo_jax import cli
from grpo_jax.journal import read

TINY = (
    *("model.width=16", "model.layers=1", "model.heads=2", "model.kv_heads=2", "model.head_width=8", "model.hidden=32"),
    *("warm_start.steps=30", "warm_start.limit=30", "warm_start.gate=0", "train.steps=4", "train.prompts=8"),
    *("evaluation.prompts=16", "evaluation.full_prompts=16", "evaluation.samples=1", "evaluation.every=4"),
)


def train(root: Path, *flags: str, settings: tuple[str, ...] = ()) -> int:
    sets = [part for setting in settings for part in ("--set", setting)]
    return cli.main(["train", str(root / "experiments" / "trpo.py"), *sets, *flags])


def test_it_says_what_it_would_do(root: Path, capsys: pytest.CaptureFixture):
    assert train(root, "--dry-run") == 0
    assert "P = 32, G = 8, N = 256" in capsys.readouterr().out
    assert train(root, "--dry-run", "--variant", "natural", settings=("optimizer.delta=0",)) == 4
    assert "optimizer.delta: got 0.0, allowed > 0" in capsys.readouterr().err


@pytest.mark.slow
def test_its_steps_lower_the_loss_within_a_bound_that_falls(root: Path, tmp_path: Path):
    where = ("--run-dir", str(tmp_path / "run"))
    assert train(root, *where, settings=(*TINY, "optimizer.delta=0.02", "optimizer.final=0.5")) == 0
    steps = [row for row in read(tmp_path / "run" / "metrics.jsonl") if row["phase"] == "grpo"]
    assert [row["trust/delta"] for row in steps] == pytest.approx([0.02, 0.0175, 0.015, 0.0125])
    taken = [row for row in steps if row["trust/accepted"] == 1]
    assert len(taken) >= 2 and steps[-1]["trust/rollbacks"] == len(steps) - len(taken)
    for row in taken:
        assert 0 < row["trust/kl"] <= row["trust/delta"] and row["trust/improvement"] > 0


@pytest.mark.slow
def test_without_a_line_search_every_step_is_whole(root: Path, tmp_path: Path):
    where = ("--run-dir", str(tmp_path / "run"), "--variant", "natural")
    assert train(root, *where, settings=TINY) == 0
    steps = [row for row in read(tmp_path / "run" / "metrics.jsonl") if row["phase"] == "grpo"]
    assert all(row["trust/step_fraction"] in (0, 1) and row["trust/rollbacks"] == 0 for row in steps)
    assert sum(row["trust/accepted"] for row in steps) >= 2
