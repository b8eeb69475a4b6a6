"""TRPO on the task of the quickstart, shortened: its steps stay within their bound."""

from pathlib import Path

import pytest

from grpo_jax import cli
from grpo_jax.journal import read


def train(root: Path, *flags: str, settings: tuple[str, ...] = ()) -> int:
    sets = [part for setting in settings for part in ("--set", setting)]
    return cli.main(["train", str(root / "experiments" / "trpo.py"), *sets, *flags])


def test_it_says_what_it_would_do(root: Path, capsys: pytest.CaptureFixture):
    assert train(root, "--dry-run") == 0
    assert "P = 32, G = 8, N = 256" in capsys.readouterr().out
    assert train(root, "--dry-run", "--variant", "natural", settings=("optimizer.delta=0",)) == 4
    assert "optimizer.delta: got 0.0, allowed > 0" in capsys.readouterr().err


def small(root: Path, folder: Path, *settings: str) -> list[dict]:
    """What the GRPO steps of a run of seconds wrote, each of them two updates, whose reward is dense."""
    sets = [part for setting in settings for part in ("--set", setting)]
    file = str(root / "tests" / "system" / "small_run.py")
    assert cli.main(["train", file, "--variant", "trust", "--run-dir", str(folder), *sets]) == 0
    return [row for row in read(folder / "metrics.jsonl") if row["phase"] == "grpo"]


@pytest.mark.slow
def test_steps_lower_the_loss_within_a_bound_that_falls(root: Path, tmp_path: Path):
    steps = small(root, tmp_path / "run")
    # from 0.05 to half of it over 12 updates; a step reports the mean of its two
    expected = [0.05 * (1 - 0.5 * (2 * k + 0.5) / 12) for k in range(6)]
    assert [row["trust/delta"] for row in steps] == pytest.approx(expected)
    assert sum(row["trust/accepted"] for row in steps) * 2 + steps[-1]["trust/rollbacks"] == 12
    taken = [row for row in steps if row["trust/accepted"] > 0]
    assert len(taken) >= 3
    for row in taken:
        assert 0 < row["trust/kl"] <= row["trust/delta"] and row["trust/improvement"] > 0


@pytest.mark.slow
def test_without_a_line_search_every_step_is_whole(root: Path, tmp_path: Path):
    steps = small(root, tmp_path / "run", "optimizer.backtracks=0")
    assert all(row["trust/step_fraction"] == 1 and row["trust/rollbacks"] == 0 for row in steps)
