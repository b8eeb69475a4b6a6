"""The preset of addition on paper, shortened."""

from pathlib import Path

import pytest

from experiments.addition import EXPERIMENT, TASK
from grpo_jax import cli
from grpo_jax.journal import read

SHORTENED = (
    *("model.width=16", "model.layers=1", "model.heads=2", "model.kv_heads=2", "model.head_width=8", "model.hidden=32"),
    *("warm_start.steps=2", "warm_start.limit=2", "warm_start.gate=0", "train.steps=2", "train.prompts=8"),
    *("evaluation.prompts=16", "evaluation.full_prompts=16", "evaluation.samples=1", "evaluation.every=2"),
)


def train(root: Path, *flags: str, settings: tuple[str, ...] = ()) -> int:
    sets = [part for setting in settings for part in ("--set", setting)]
    return cli.main(["train", str(root / "experiments" / "addition.py"), *sets, *flags])


def test_it_says_what_it_would_do(root: Path, capsys: pytest.CaptureFixture):
    assert train(root, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "P = 32, G = 8, N = 256, S = 11, T = 26" in said and "accuracy 1 (ok)" in said
    assert EXPERIMENT.data is TASK


@pytest.mark.slow
def test_a_shortened_run_ends_with_its_journals(root: Path, tmp_path: Path):
    assert train(root, "--run-dir", str(tmp_path / "run"), settings=SHORTENED) == 0
    metrics = read(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in metrics if row["phase"] == "grpo"] == [1, 2]
    assert "accuracy/heldout" in metrics[-1]


def test_another_number_of_digits_asks_for_another_model(root: Path, capsys: pytest.CaptureFixture):
    assert train(root, "--dry-run", settings=("data.digits=6",)) == 4
    assert "model.positions: got 37, allowed >= " in capsys.readouterr().err
