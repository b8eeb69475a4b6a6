"""The experiments that come with the project run as a user runs them."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

DATA = '{"prompt": "What is 2 plus 2?", "answer": "4", "solution": "2+2=4"}\n'
TINY = {
    "train.steps": "2",
    "warm_start.steps": "2",
    "warm_start.gate": "0",
    "evaluation.prompts": "8",
    "evaluation.full_prompts": "8",
    "evaluation.samples": "2",
}


def command(root: Path, words: Sequence[str], settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
    flags = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    return subprocess.run(
        [sys.executable, *words, *flags], cwd=root, env=environment, capture_output=True, text=True, check=False
    )


def test_the_quickstart_runs_as_a_script_and_goes_on_by_its_other_name(root: Path, tmp_path: Path):
    where = ["--run-dir", str(tmp_path / "run")]
    script = command(root, ["experiments/quickstart.py", *where], TINY)
    assert script.returncode == 0, script.stderr
    assert "accuracy, sampled" in script.stdout and "numbers in" in script.stdout
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["steps"], summary["warm_steps"]) == (2, 2)
    assert summary["traces"] == {
        "supervised_step": 1,
        "answer_rows": 1,
        "sample_rows": 1,
        "score_rows": 1,
        "learn_rows": 1,
    }
    assert 0.1e6 <= summary["parameters"] <= 0.3e6
    assert (tmp_path / "run" / "figure.svg").stat().st_size > 1000

    # The script calls its functions __main__, the command line calls them by the file: the run is the same.
    again = command(root, ["-m", "grpo_jax", "train", "experiments/quickstart.py", *where], TINY)
    assert again.returncode == 0, again.stderr
    assert "continuing" in again.stdout
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["state_digest"] == summary["state_digest"]

    other = command(root, ["experiments/quickstart.py", *where], {**TINY, "seed": "1"})
    assert other.returncode == 4
    assert "seed: the run has 0, this command 1" in other.stderr and "Traceback" not in other.stderr


def test_a_malformed_line_of_data_is_named_and_leaves_no_run_behind(root: Path, tmp_path: Path):
    (tmp_path / "data.jsonl").write_text(DATA + '{"prompt": "What is 3 plus 3?", "anser": "6"}\n')
    words = ["-m", "grpo_jax", "train", "experiments/from_jsonl.py", "--run-dir", str(tmp_path / "run")]
    done = command(root, words, {"data.path": str(tmp_path / "data.jsonl")})
    assert done.returncode in (4, 5)
    assert f'{tmp_path / "data.jsonl"}:2: field "answer" is missing' in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
