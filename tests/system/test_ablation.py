"""An ablation runs in one process, shares what can be shared, and goes on after a kill as if there had been none."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
"""A study of several runs, half a minute before the first test."""
HERE = Path(__file__).parent
KILLED, DONE, DIVERGED = -9, 0, 3
SAME = ("table.md", "figure.svg")


def command(*words: str, fault: str = "none", count: int = 0) -> list[str]:
    return [sys.executable, str(HERE / "driver.py"), fault, str(count), "ablate", *words]


def environment() -> dict[str, str]:
    one = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1", "PYTHONPATH": str(HERE.parent.parent)}
    return {**os.environ, **one}


def ablate(folder: Path, *words: str, fault: str = "none", count: int = 0) -> subprocess.CompletedProcess[str]:
    """One process of an ablation, to its end."""
    line = command(str(HERE / "small_ablation.py"), "--dir", str(folder), *words, fault=fault, count=count)
    return subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=600, check=False)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """An ablation that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "ablation"
    return folder, ablate(folder)


def assert_same(folder: Path, whole: Path) -> None:
    """Tables and figures are equal byte by byte, and so is every run."""
    for name in SAME:
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    for run in sorted(path.parent.relative_to(whole) for path in whole.glob("*/seed-*/metrics.jsonl")):
        for name in ("metrics.jsonl", "samples.jsonl"):
            assert (folder / run / name).read_bytes() == (whole / run / name).read_bytes(), (run, name)


def test_a_variant_that_diverges_stands_in_the_table_and_in_the_exit_code(whole):
    folder, process = whole
    assert process.returncode == DIVERGED, process.stderr
    table = (folder / "table.md").read_text()
    assert "## Diverged" in table and "| broken | 0 | Step 1: sampler and trainer disagree by" in table
    assert "| mean | 2 |" in table and "| broken | 2 |" not in table
    found = json.loads((folder / "ablation.json").read_text())
    assert set(found["runs"]) == {"mean", "loo", "descent"} and len(found["diverged"]) == 2
    assert all(run["seconds"] > 0 for seeds in found["runs"].values() for run in seeds.values())
    assert "Time of a run" in process.stdout and "Time of a run" not in table
    assert (folder / "times.md").read_text().startswith("## Time of a run")
    assert (folder / "mean" / "seed-1" / "summary.json").exists()


def test_what_should_coincide_is_said_and_does(whole):
    folder, _ = whole
    (claim,) = json.loads((folder / "ablation.json").read_text())["coincide"]
    assert claim["names"] == ["mean", "loo"] and "up to Adam's epsilon" in claim["closeness"]
    for seed in (0, 1):
        one, two, other = (
            [
                row["reward/mean"]
                for row in lines(folder / name / f"seed-{seed}" / "metrics.jsonl")
                if row["phase"] == "grpo"
            ]
            for name in ("mean", "loo", "descent")
        )
        assert one == pytest.approx(two, abs=1e-6) and one != pytest.approx(other, abs=1e-3)


def test_programs_are_shared_between_seeds_and_between_variants(whole):
    folder, _ = whole
    first, last = (
        json.loads((folder / name / f"seed-{seed}" / "summary.json").read_text())["traces"]
        for name, seed in (("mean", 0), ("descent", 1))
    )
    once = {"supervised_step": 1, "answer_rows": 1, "sample_rows": 1, "score_rows": 1}
    assert first == {**once, "learn_rows": 1}
    # `broken` learns as `mean` does; the other seed added nothing at all.
    assert last == {**once, "learn_rows": 3}


def test_a_warm_start_is_done_once_for_each_seed(whole):
    folder, process = whole
    assert len([path for path in (folder / "warm_starts").iterdir() if path.is_dir()]) == 2
    assert process.stdout.count("is taken from") + process.stderr.count("is taken from") == 6
    starts = [
        [row for row in lines(folder / name / "seed-0" / "metrics.jsonl") if row["phase"] == "warm_start"]
        for name in ("mean", "loo", "descent", "broken")
    ]
    assert starts[0] and all(start == starts[0] for start in starts)


def test_the_same_command_after_a_kill_ends_with_the_same_table(whole, tmp_path: Path):
    # At the end of the third variant, whose optimiser is not that of its warm start; `broken` has still to diverge.
    folder = tmp_path / "ablation"
    assert ablate(folder, fault="summary", count=2).returncode == KILLED
    last = ablate(folder)
    assert last.returncode == DIVERGED, last.stderr
    assert "run 2 of 8" not in last.stderr and "run 3 of 8" in last.stderr
    assert_same(folder, whole[0])


def test_kills_in_every_phase_of_several_runs_change_nothing(whole, tmp_path: Path):
    folder = tmp_path / "ablation"
    for fault, count in (("config", 2), ("imitation", 1), ("save", 3), ("write", 60), ("torn", 30), ("figure", 1)):
        assert ablate(folder, fault=fault, count=count).returncode == KILLED, (fault, count)
    assert ablate(folder).returncode == DIVERGED
    assert_same(folder, whole[0])
    again = ablate(folder)  # nothing is left to do, and the table is the same
    assert again.returncode == DIVERGED and "run " not in again.stderr
    assert_same(folder, whole[0])


def test_shared_rollouts_are_the_same_tokens_and_lead_elsewhere(whole, tmp_path: Path):
    words = ("--variants", "mean,descent", "--seeds", "0", "--rollouts", str(tmp_path / "rollouts.jsonl"))
    assert ablate(tmp_path / "shared", *words).returncode == DONE
    tokens, rewards = {}, {}
    for where in (tmp_path / "shared", whole[0]):
        for name in ("mean", "descent"):
            run = where / name / "seed-0"
            samples = [row for row in lines(run / "samples.jsonl") if row["set"] == "train"]
            tokens[where.name, name] = [(row["step"], row["draw"], row["tokens"]) for row in samples]
            rewards[where.name, name] = [
                row["grad_norm"] for row in lines(run / "metrics.jsonl") if row["phase"] == "grpo"
            ]
    assert tokens["shared", "mean"] == tokens["shared", "descent"] == tokens["ablation", "mean"]
    assert tokens["ablation", "descent"] != tokens["ablation", "mean"]
    assert rewards["shared", "mean"] == rewards["ablation", "mean"]  # recording changes nothing
    assert rewards["shared", "descent"][0] == rewards["ablation", "descent"][0]
    assert rewards["shared", "descent"][1:] != rewards["ablation", "descent"][1:]
    assert "Rollouts are shared" in (tmp_path / "shared" / "table.md").read_text()


def test_an_ablation_killed_at_any_moment_ends_with_the_same_table(whole, tmp_path: Path):
    folder, chance = tmp_path / "ablation", random.Random(0)
    ends: list[int] = []
    while ends[-1:] != [DIVERGED] and len(ends) < 40:
        line = command(str(HERE / "small_ablation.py"), "--dir", str(folder))
        with subprocess.Popen(line, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                ends.append(process.wait(timeout=chance.uniform(2, 6 + 2 * len(ends))))
            except subprocess.TimeoutExpired:
                process.kill()
                ends.append(process.wait())
    assert ends[-1] == DIVERGED and KILLED in ends
    assert_same(folder, whole[0])
