"""Several held-out sets, categories and the best state through the command line, killed and looked at again."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from grpo_jax.journal import read

HERE = Path(__file__).parent
FILE = str(HERE / "small_sets.py")
SETS = ("heldout", "longer", "mixed")
SETTINGS = ("--set", "evaluation.every=1", "--set", "train.steps=6", "--set", "heldout.longer.operators=+")


def command(*arguments: str, fault: str = "none", count: int = 0) -> subprocess.CompletedProcess[str]:
    """One process of the command line, which a fault may end."""
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "PYTHONPATH": str(HERE.parent.parent),
    }
    line = [sys.executable, str(HERE / "driver.py"), fault, str(count), *arguments]
    return subprocess.run(line, env=environment, capture_output=True, text=True, encoding="utf-8", check=False)


def trained(folder: Path, faults: Sequence[tuple[str, int]] = ()) -> Path:
    """A run that was ended by each of `faults` in turn before it went to its end."""
    for fault, count in faults:
        ended = command("train", FILE, *SETTINGS, "--run-dir", str(folder), fault=fault, count=count)
        assert ended.returncode == (75 if fault == "term" else -signal.SIGKILL), ended.stderr
    done = command("train", FILE, *SETTINGS, "--run-dir", str(folder))
    assert done.returncode == 0, done.stderr
    (folder / "printed").write_text(done.stdout)
    return folder


def kept(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("sets") / "run")


def test_every_evaluation_has_all_sets_and_categories(run: Path):
    rows = [row for row in read(run / "metrics.jsonl") if "n/heldout" in row]
    assert [(row["phase"], row["step"]) for row in rows] == [("warm_start", 4), *(("grpo", k) for k in range(1, 7))]
    for row in rows:
        assert (
            row["n/mixed"]
            == row["n/mixed[2]"] + row["n/mixed[3]"]
            == (8 if 0 < row["step"] < 6 and row["phase"] == "grpo" else 16)
        )
        for name in (*SETS, "heldout[3]", "longer[4]", "mixed[2]", "mixed[3]"):
            for measure in ("accuracy", "greedy", "pass@2", "maj@2"):
                low, value, high = (row[f"{measure}/{name}{end}"] for end in ("/low", "", "/high"))
                assert 0 <= low <= value <= high <= 1
    assert {row["set"] for row in read(run / "samples.jsonl")} == {"train", *SETS, *(f"{name}/greedy" for name in SETS)}
    assert re.search(r"mixed +16 ", (run / "printed").read_text())
    summary = json.loads((run / "summary.json").read_text())
    assert summary["traces"]["answer_rows"] == 1
    assert summary["estimates"]["after"]["accuracy/mixed[2]"] == rows[-1]["accuracy/mixed[2]"]


def test_the_best_state_stays_and_is_looked_at(run: Path):
    rows = [row for row in read(run / "metrics.jsonl") if "n/heldout" in row]
    # Checkpoints are numbered through: 4 of the warm start, then 1 to 6. The first of equal ones is the best.
    lengths = [row["length/mixed"] for row in rows]
    best = 4 + lengths.index(min(lengths))
    assert kept(run) == sorted({best, 10})
    assert command("eval", str(run), "--checkpoint", "best", "--sets", "mixed").returncode == 0
    (found,) = json.loads((run / "eval.json").read_text())["evaluations"]
    at = rows[best - 4]
    assert found["checkpoint"] == {"phase": at["phase"], "step": at["step"]} and found["sets"] == {"mixed": 16}
    assert {name.partition("/")[2].partition("[")[0].partition("/")[0] for name in found["metrics"]} == {"mixed"}
    missing = command("sample", str(run), "--checkpoint", "17")
    assert missing.returncode == 4 and "allowed newest, " in missing.stderr and ", best (" in missing.stderr


FEW = [("evaluation", 8), ("saving", 1)]
MANY = [("saving", 1), ("evaluation", 8), ("commit", 1), ("term", 34 * 2 + 14), ("save", 0), ("summary", 0)]
"""Deaths while the second state of GRPO is saved, in an evaluation, at a commit, on being told to leave, at the end."""


@pytest.mark.parametrize(
    "faults",
    [pytest.param(FEW, marks=pytest.mark.slow), pytest.param(MANY, marks=pytest.mark.slow)],
    ids=["few", "many"],
)
def test_a_run_that_was_killed_keeps_what_it_would_have_kept(
    faults: Sequence[tuple[str, int]], run: Path, tmp_path: Path
):
    again = trained(tmp_path / "run", faults)
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert (again / name).read_bytes() == (run / name).read_bytes()
    assert kept(again) == kept(run)
