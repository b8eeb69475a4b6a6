"""A run that is killed, again and again and at every kind of moment, is the run that was left alone."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

KILLED, DONE, PREEMPTED = -9, 0, 75
HERE = Path(__file__).parent
VARYING = {"seconds", "cpu_seconds", "traces"}

NOTHING: Mapping[str, Path] = {}
Fault = tuple[str, int]
"""Name of a fault of the driver, and at which call it comes; ``("damage", 0)`` spoils the newest checkpoint."""

# In the first process the warm start saves behind its steps 2 and 4, GRPO behind its steps 2, 4 and 6; a GRPO step
# writes 34 lines. Which checkpoint a save in the background had completed when the process died differs from time to
# time, and nothing may depend on it.
SHORT: Sequence[Fault] = [
    ("saving", 0),
    ("evaluation", 0),
    ("torn", 60),
    ("save", 1),
    ("damage", 0),
    ("term", 50),
    ("commit", 2),
    ("summary", 0),
]
LONG: Sequence[Fault] = [
    ("config", 0),
    ("imitation", 1),
    ("torn", 3),
    ("saving", 0),
    ("commit", 0),
    ("evaluation", 0),
    ("evaluation", 3),
    ("commit", 3),
    ("begin", 0),
    ("rewind", 4),
    ("commit", 4),
    ("reference", 0),
    ("write", 40),
    ("term", 20),
    ("write", 33),
    ("torn", 34),
    ("saved", 1),
    ("save", 0),
    ("sync", 0),
    ("sync", 0),
    ("save", 1),
    ("damage", 0),
    ("evaluation", 1),
    ("commit", 1),
    ("saving", 0),
    ("term", 60),
    ("figure", 0),
    ("summary", 0),
    ("figure", 0),
]


def attempt(
    folder: Path,
    variant: str,
    fault: str = "none",
    count: int = 0,
    *,
    steps: int = 6,
    keywords: Mapping[str, Path] = NOTHING,
) -> subprocess.CompletedProcess[str]:
    """One process of a run, to its end."""
    with started(folder, variant, fault, count, steps=steps, keywords=keywords) as process:
        output, errors = process.communicate(timeout=600)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def started(
    folder: Path,
    variant: str,
    fault: str = "none",
    count: int = 0,
    *,
    steps: int = 6,
    keywords: Mapping[str, Path] = NOTHING,
) -> subprocess.Popen[str]:
    """One process of a run; `keywords` are those of `grpo_jax.run`."""
    devices = 8 if "mesh" in variant else 1
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(HERE.parent.parent),
        "RUN_KEYWORDS": json.dumps({name: str(path) for name, path in keywords.items()}),
    }
    arguments = ["train", str(HERE / "small_run.py"), "--variant", variant, "--run-dir", str(folder)]
    arguments += ["--set", f"train.steps={steps}"]
    command = [sys.executable, str(HERE / "driver.py"), fault, str(count), *arguments]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )


def outcome(folder: Path) -> dict[str, object]:
    """All that an interrupted run and an uninterrupted one have to share."""
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "summary": {name: value for name, value in summary.items() if name not in VARYING},
        "metrics": (folder / "metrics.jsonl").read_bytes(),
        "samples": (folder / "samples.jsonl").read_bytes(),
    }


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def damage(folder: Path) -> None:
    """Flip a bit in every 64 bytes of the newest parameters: a single one may fall where nobody reads."""
    newest = max((p for p in (folder / "checkpoints").iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    for path in (newest / "params").rglob("*"):
        if path.is_file():
            content = bytearray(path.read_bytes())
            for place in range(0, len(content), 64):
                content[place] ^= 4
            path.write_bytes(content)


def interrupted(
    folder: Path, variant: str, faults: Sequence[Fault], *, steps: int = 6, keywords: Mapping[str, Path] = NOTHING
) -> list[subprocess.CompletedProcess[str]]:
    """The processes of a run with these faults, one after the other, and a last one without."""
    processes = []
    for fault, count in faults:
        if fault == "damage":
            damage(folder)
            continue
        process = attempt(folder, variant, fault, count, steps=steps, keywords=keywords)
        assert process.returncode == (PREEMPTED if fault == "term" else KILLED), (fault, count, process.stderr)
        processes.append(process)
    last = attempt(folder, variant, steps=steps, keywords=keywords)
    assert last.returncode == DONE, last.stderr
    return [*processes, last]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of an uninterrupted run of a variant."""
    folders: dict[str, Path] = {}

    def folder(variant: str) -> Path:
        if variant not in folders:
            folders[variant] = tmp_path_factory.mktemp(variant) / "run"
            process = attempt(folders[variant], variant)
            assert process.returncode == DONE, process.stderr
        return folders[variant]

    return folder


def test_a_run_killed_in_every_phase_is_the_uninterrupted_run(uninterrupted: Callable[[str], Path], tmp_path: Path):
    folder = tmp_path / "run"
    processes = interrupted(folder, "plain", SHORT)
    assert outcome(folder) == outcome(uninterrupted("plain"))
    assert any("is damaged" in process.stderr for process in processes)
    assert [path.name for path in (folder / "checkpoints").iterdir() if ".bad" in path.name] != []
    keys = [
        (row["phase"], row["step"], row["set"], row.get("draw", row.get("number")), row.get("sample"))
        for row in lines(folder / "samples.jsonl")
    ]
    assert [key for key, count in Counter(keys).items() if count > 1] == []
    # The torn line, and what the killed processes knew beyond their checkpoints.
    superseded = (folder / "samples.jsonl.superseded").read_bytes().splitlines()
    assert b'{"phase": "grpo", "step": 1, "lo' in superseded and len(superseded) > 30
    attempts = [row["attempt"] for row in lines(folder / "timing.jsonl")]
    assert attempts == sorted(attempts) and attempts[-1] > 3


def test_every_compiled_function_is_traced_once_in_a_run(uninterrupted: Callable[[str], Path]):
    summary = json.loads((uninterrupted("plain") / "summary.json").read_text())
    assert summary["traces"] == {
        "supervised_step": 1,
        "answer_rows": 1,
        "sample_rows": 1,
        "score_rows": 1,
        "learn_rows": 1,
    }


def test_a_finished_run_is_finished(uninterrupted: Callable[[str], Path]):
    folder = uninterrupted("plain")
    before = outcome(folder)
    assert attempt(folder, "plain").returncode == DONE
    assert outcome(folder) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant",
    [
        *("plain", "penalty", "text", "cold", "mesh", "roles", "critic", "critic on a mesh", "trust"),
        *("frozen", "lora", "replaced", "averaged lora on a mesh", "few bytes"),
    ],
)
def test_every_kind_of_run_survives_every_kind_of_kill(variant: str, tmp_path: Path):
    only_warm = ("imitation", "begin")
    faults = [fault for fault in LONG if variant != "cold" or fault[0] not in only_warm]
    interrupted(tmp_path / "a", variant, faults, steps=16)
    assert attempt(tmp_path / "b", variant, steps=16).returncode == DONE
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b")


SHARED: Sequence[Fault] = [
    ("filling", 1),
    ("leaving", 0),
    ("recorded", 2),
    ("evaluation", 1),
    ("recorded", 0),
    ("commit", 1),
    ("torn", 40),
    ("term", 50),
]


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["plain", "text"])
def test_a_killed_run_with_a_shared_warm_start_and_recorded_rollouts_is_the_uninterrupted_one(
    variant: str, tmp_path: Path
):
    # Rewards on text are those of the user's own file here, so they run in workers, and steps in chunks.
    one, two = ({"warm_starts": tmp_path / n / "warm", "rollouts": tmp_path / n / "rollouts"} for n in ("a", "b"))
    interrupted(tmp_path / "a" / "run", variant, SHARED, keywords=one)
    assert attempt(tmp_path / "b" / "run", variant, keywords=two).returncode == DONE
    whole = outcome(tmp_path / "b" / "run")
    assert outcome(tmp_path / "a" / "run") == whole
    assert one["rollouts"].read_bytes() == two["rollouts"].read_bytes()
    assert [p.name for p in one["warm_starts"].iterdir()] == [p.name for p in two["warm_starts"].iterdir()]
    three = {"warm_starts": one["warm_starts"], "rollouts": tmp_path / "c" / "rollouts"}
    interrupted(tmp_path / "c" / "run", variant, [("taken", 0), ("commit", 0), ("recorded", 1)], keywords=three)
    assert outcome(tmp_path / "c" / "run") == whole
    taken = [row for row in lines(tmp_path / "c" / "run" / "timing.jsonl") if "taken_from" in row]
    assert {row["phase"] for row in taken} == {"warm_start"}


ROUNDS: Sequence[Fault] = [
    ("round", 0),
    ("round", 2),
    ("saving", 1),
    ("rounds", 1),
    ("torn", 40),
    ("round", 3),
    ("term", 50),
    ("commit", 1),
    ("rounds", 0),
]


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["dynamic", "dynamic_text", "dynamic_mesh", "difficulty"])
def test_a_run_killed_between_its_rounds_is_the_uninterrupted_run(variant: str, tmp_path: Path):
    interrupted(tmp_path / "a", variant, ROUNDS, steps=16)
    assert attempt(tmp_path / "b", variant, steps=16).returncode == DONE
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b")
    steps = [row for row in lines(tmp_path / "b" / "metrics.jsonl") if row.get("dynamic/rounds")]
    assert max(row["dynamic/rounds"] for row in steps) > 1 and max(row["dynamic/surplus"] for row in steps) > 0


@pytest.mark.slow
def test_a_run_killed_at_any_moment_is_the_uninterrupted_run(uninterrupted: Callable[[str], Path], tmp_path: Path):
    folder, chance = tmp_path / "run", random.Random(0)
    ends = []
    while ends[-1:] != [DONE] and len(ends) < 40:
        with started(folder, "plain") as process:
            # Longer and longer: most of the first seconds are imports, and a run may be slow on a busy machine.
            try:
                ends.append(process.wait(timeout=chance.uniform(1, 4 + len(ends))))
            except subprocess.TimeoutExpired:
                process.kill()
                ends.append(process.wait())
    assert ends[-1] == DONE and KILLED in ends
    assert outcome(folder) == outcome(uninterrupted("plain"))
