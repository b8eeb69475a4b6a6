"""``show``, ``report``, ``eval`` and ``sample`` hand their flags on, and find the experiment of a run by its origin."""

import json
from pathlib import Path
from typing import Any

import pytest

from grpo_jax import cli, revisit
from tests.system import small_run

SMALL = str(Path(small_run.__file__))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run that knows its file, a variant and a setting, and nothing else."""
    origin = {"file": SMALL, "variant": "cold", "assignments": ["train.steps=3"]}
    (tmp_path / "config.json").write_text(json.dumps({"settings": {}, "versions": {}, "origin": origin}))
    return tmp_path


def test_the_flags_of_eval_and_sample_reach_the_run_and_its_experiment(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    asked: list[tuple[Path, Any, dict[str, Any]]] = []

    def answer(run: Path, experiment: Any, **how: Any) -> None:
        asked.append((run, experiment, how))

    monkeypatch.setattr(revisit, "evaluate_again", answer)
    monkeypatch.setattr(revisit, "sample_again", answer)
    monkeypatch.setattr(revisit, "evaluation_table", lambda _: "a table")
    monkeypatch.setattr(revisit, "sample_page", lambda _: "a page")
    assert cli.main(["eval", str(run), "--sets", "a,b", "--ks", "1,4", "--prompts", "8", "--checkpoint", "best"]) == 0
    assert cli.main(["sample", str(run), "--set", "train.steps=4", "--prompt", "x", "y", "--temperature", "0"]) == 0
    (_, first, evaluated), (_, second, sampled) = asked
    assert evaluated == {
        "prompts": 8,
        "samples": None,
        "seed": None,
        "sets": ["a", "b"],
        "ks": [1, 4],
        "checkpoint": "best",
    }
    assert sampled == {
        "texts": ["x", "y"],
        "samples": 1,
        "temperature": 0.0,
        "seed": None,
        "checkpoint": "newest",
    }
    # The experiment is that of the origin, and settings given here take the place of those written down.
    assert (first.warm_start, first.train.steps, second.warm_start, second.train.steps) == (None, 3, None, 4)
    out, error = capsys.readouterr()
    assert "a table" in out and "a page" in out and f"experiment: {SMALL}" in error


def test_a_folder_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for command in ("show", "eval", "sample"):
        assert cli.main([command, str(tmp_path)]) == 4
        assert "which holds no run" in capsys.readouterr().err
