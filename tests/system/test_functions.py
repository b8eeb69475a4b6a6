"""Every command takes an experiment that is a function, and a run remembers with which arguments it was made."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_jax import cli
from grpo_jax.ablation import command
from grpo_jax.origin import Origin
from tests.system import small_function

FILE = str(Path(small_function.__file__))
GIVEN = ["--set", "checkpoint=some"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps."""
    folder = tmp_path_factory.mktemp("made") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("grpo_jax.heldout.CHUNK", 16)
        assert cli.main(["train", FILE, *GIVEN, "--run-dir", str(folder)]) == 0
    return folder


@pytest.fixture(autouse=True)
def small_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grpo_jax.heldout.CHUNK", 16)


def test_the_run_keeps_the_assignments_and_the_settings_that_came_of_them(run: Path):
    config = json.loads((run / "config.json").read_text())
    assert config["origin"] == {"file": FILE, "variant": None, "assignments": ["checkpoint=some"]}
    assert config["settings"]["name"] == "'some'" and config["settings"]["train.steps"] == "2"


def test_the_same_command_goes_on_and_another_argument_is_another_run(run: Path, capsys: pytest.CaptureFixture[str]):
    before = (run / "metrics.jsonl").read_bytes()
    assert cli.main(["train", FILE, *GIVEN, "--run-dir", str(run)]) == 0
    assert (run / "metrics.jsonl").read_bytes() == before
    assert cli.main(["train", FILE, *GIVEN, "--set", "rate=0.5", "--run-dir", str(run)]) == 4
    assert "optimizer.learning_rate: the run has 0.01, this command 0.5" in capsys.readouterr().err


def test_eval_and_sample_make_it_again(run: Path):
    assert cli.main(["eval", str(run), "--prompts", "8", "--samples", "1"]) == 0
    assert cli.main(["sample", str(run)]) == 0
    (found,) = json.loads((run / "eval.json").read_text())["evaluations"]
    assert found["checkpoint"] == {"phase": "grpo", "step": 2}


def test_a_dry_run_shows_the_settings_of_a_variant(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["train", FILE, *GIVEN, "--variant", "slow", "--set", "train.prompts=12", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "optimizer.learning_rate = 0.001\n" in out and "train.prompts = 12\n" in out


def test_what_is_missing_is_told_with_its_flag(capsys: pytest.CaptureFixture[str]):
    for words in (["train", FILE], ["train", FILE, "--dry-run"], ["ablate", FILE, "--dry-run"]):
        assert cli.main(words) == 4
        error = capsys.readouterr().err
        assert "got no value for checkpoint: str" in error and "add --set checkpoint=STR" in error
    assert cli.main(["train", FILE, *GIVEN, "--set", "rate=13"]) == 4
    assert "small_function.py:14: KeyError: 'unlucky'; allowed is" in capsys.readouterr().err


def test_an_ablation_makes_every_variant_and_writes_down_how():
    ablation = command.planned(
        Path(FILE), cli.load(Path(FILE)), seeds="0,1", assignments=("checkpoint=some", "steps=1", "train.prompts=12")
    )
    found = [(run.variant, run.seed, run.experiment) for run in ablation.runs()]
    assert [(variant, seed) for variant, seed, _ in found] == [("slow", 0), ("fast", 0), ("slow", 1), ("fast", 1)]
    for variant, _, experiment in found:
        assert getattr(experiment.optimizer, "learning_rate", None) == {"slow": 1e-3, "fast": 1e-2}[variant]
        assert (experiment.train.steps, experiment.train.prompts) == (1, 12)
    origin = ablation.origin(list(ablation.runs())[2])
    assert origin == Origin(FILE, "slow", ("checkpoint=some", "steps=1", "train.prompts=12", "seed=1"))


@pytest.mark.slow
def test_an_ablation_trains_every_variant(tmp_path: Path):
    words = ["ablate", FILE, *GIVEN, "--seeds", "0,1", "--set", "steps=1", "--dir", str(tmp_path / "x")]
    assert cli.main(words) == 0
    for variant, rate in (("slow", "0.001"), ("fast", "0.01")):
        config = json.loads((tmp_path / "x" / variant / "seed-1" / "config.json").read_text())
        assert config["settings"]["optimizer.learning_rate"] == rate


def test_a_file_that_is_run_as_a_script_takes_the_same_flags():
    # The file stands in the folder of the tests, which is no place of modules by itself.
    environment = {**os.environ, "PYTHONPATH": str(Path(FILE).resolve().parents[2])}
    line = [sys.executable, FILE, "--dry-run"]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 4 and "add --set checkpoint=STR" in done.stderr
