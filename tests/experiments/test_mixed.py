"""The mixture runs as the command line runs it, and says how each of its parts fares."""

from pathlib import Path

import numpy as np
import pytest

from experiments.mixed import EXPERIMENT, TASK
from grpo_jax import cli
from grpo_jax.journal import read

SHORTENED = (
    *("model.width=16", "model.layers=1", "model.heads=2", "model.kv_heads=2", "model.head_width=8", "model.hidden=32"),
    *("warm_start.steps=2", "warm_start.limit=2", "warm_start.gate=0", "train.steps=2", "train.prompts=16"),
    *("evaluation.prompts=32", "evaluation.full_prompts=64", "evaluation.samples=1", "evaluation.every=2"),
)


def train(root: Path, *flags: str, settings: tuple[str, ...] = ()) -> int:
    """``grpo-jax train experiments/mixed.py`` with settings and flags."""
    sets = [part for setting in settings for part in ("--set", setting)]
    return cli.main(["train", str(root / "experiments" / "mixed.py"), *sets, *flags])


@pytest.mark.slow
def test_a_shortened_run_reports_every_category(root: Path, tmp_path: Path):
    assert train(root, "--run-dir", str(tmp_path / "run"), settings=SHORTENED) == 0
    metrics = read(tmp_path / "run" / "metrics.jsonl")
    before = next(row for row in metrics if "accuracy/heldout" in row)
    for row in (before, metrics[-1]):
        parts = [row[f"accuracy/heldout[{name}]"] for name in TASK.names]
        np.testing.assert_allclose(row["accuracy/heldout"], np.mean(parts), atol=1e-6)  # each part has a quarter
    prompts = {row["prompt"] for row in read(tmp_path / "run" / "samples.jsonl") if row["set"] == "train"}
    assert len({len(prompt) for prompt in prompts}) == 4  # four, six, eight and twelve numbers


def test_what_a_run_would_be_can_be_seen_and_a_part_be_changed(root: Path, capsys: pytest.CaptureFixture):
    assert train(root, "--dry-run", settings=("data.parts.long.operands=10", "sampling.max_tokens=15")) == 0
    said = capsys.readouterr().out
    assert "data.parts.long.operands = 10\n" in said and "data.parts.sums.operands = 4\n" in said
    assert train(root, "--dry-run", settings=("data.parts.lang.operands=7",)) == 4
    assert "did you mean data.parts.long?" in capsys.readouterr().err
    assert train(root, "--dry-run", settings=("data.shares=sums:0.1,differences:0.1,products:0.1,long:0.7",)) == 0
    assert "data.shares = {'differences': 0.1, 'long': 0.7" in capsys.readouterr().out


def test_the_four_parts_share_one_reward_and_are_held_out_alike():
    assert "by_part" not in str(EXPERIMENT.reward)
    codes = np.asarray(TASK.heldout(EXPERIMENT.evaluation.full_prompts).label["category"])
    assert np.bincount(codes).tolist() == [512] * 4
