"""A run whose reward goes wrong in every way: it goes on, what could not be scored counts nowhere, nothing is left."""

import os
from collections import Counter
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from grpo_jax import cli
from grpo_jax.journal import read
from grpo_jax.rewards.pool import Pool
from grpo_jax.rewards.text import STATUSES, Record

SHARE = 0.3
MARK = "GRPO_JAX_TEST_OF_HOSTILE_REWARDS"
FILE = """
from dataclasses import replace

from _hostile import VARIANTS
from tests.rewards.odd import length

GIVEN = VARIANTS["hostile"]
EXPERIMENT = replace(GIVEN, text_rewards={**GIVEN.text_rewards, "length": (length, 0.1)})
"""
"""The experiment of the benchmark, with a reward that a policy fresh from its initial values earns too."""
SETTINGS = (
    "model.width=16 model.layers=1 model.heads=1 model.kv_heads=1 model.head_width=16 model.hidden=32 warm_start=None"
    " train.steps=2 train.prompts=6 train.group_size=8 evaluation.prompts=4 evaluation.full_prompts=4"
    " evaluation.samples=1 seed=1 scoring.failure_share=0.9 scoring.timeout_s=3"
    f" text_rewards.accuracy.0.share={SHARE}"
).split()


@dataclass
class Run:
    """What is there after a run."""

    code: int
    metrics: list[dict]
    samples: list[dict]
    kinds: list[str | None]  # of the samples
    left: list[str]  # processes
    files: list[str]  # that do not belong to the run
    pools: list[Pool] = field(default_factory=list)


def processes_with(mark: str) -> list[str]:
    """Processes that were started, by whomever, from one with `mark` in its environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append(folder.name)
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder, pools = tmp_path_factory.mktemp("hostile"), []
    (folder / "tmp").mkdir()

    class Watched(Pool):
        def __init__(self, *rewards: Any, **settings: Any) -> None:
            super().__init__(*rewards, **settings)
            pools.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root / "benchmarks")
        patch.chdir(folder)
        mark = f"{MARK}={os.getpid()}-{folder.name}"
        for name, value in (mark.split("="), ("TMPDIR", str(folder / "tmp"))):
            patch.setenv(name, value)
        patch.setattr("grpo_jax.heldout.CHUNK", 4)
        patch.setattr("grpo_jax.loop.setup.Pool", Watched)
        flags = [flag for setting in SETTINGS for flag in ("--set", setting)]
        (folder / "hostile_and_long.py").write_text(FILE, encoding="utf-8")
        code = cli.main(["train", str(folder / "hostile_and_long.py"), *flags, "--run-dir", str(folder / "run")])
        left = processes_with(mark)
        kind = import_module("_misbehave").kind
        samples = [row for row in read(folder / "run" / "samples.jsonl") if row["set"] == "train"]
        kinds = [kind(Record(row["prompt"], row["completion"], (), ""), share=SHARE) for row in samples]
    there = [path.relative_to(folder) for path in folder.rglob("*") if folder / "run" not in path.parents]
    files = [str(path) for path in there if path.parts[0] != "__pycache__"]  # which Python leaves of the file itself
    return Run(code, read(folder / "run" / "metrics.jsonl"), samples, kinds, left, sorted(files), pools)


@pytest.mark.slow
def test_the_run_ends_well_and_leaves_neither_processes_nor_files(run: Run):
    assert run.code == 0
    assert run.left == []
    assert run.files == ["hostile_and_long.py", "run", "tmp"]


@pytest.mark.slow
def test_every_kind_of_trouble_was_there_and_workers_were_replaced(run: Run):
    made = Counter(kind for kind in run.kinds if kind is not None)
    assert len(made) == 10 and sum(made.values()) < len(run.kinds) / 2, made
    (pool,) = run.pools
    assert pool.replaced["timeout"] >= made["hangs"]
    deadly = made["segmentation fault"] + made["eats memory"] + made["ends its process"]
    assert sum(pool.replaced.values()) >= deadly + made["hangs"]
    counted = {s: sum(row.get(f"status/{s}", 0) for row in run.metrics) for s in STATUSES}
    # on a busy machine others may need more than their time too
    assert counted["timeout"] >= made["hangs"] and counted["timeout"] + counted["error"] == sum(made.values())
    assert sum(counted.values()) == 3 * len(run.samples)  # three rewards a row


@pytest.mark.slow
def test_a_row_without_a_score_is_masked_and_the_others_are_compared_without_it(run: Run):
    for row, kind in zip(run.samples, run.kinds, strict=True):
        status = row["statuses"]["accuracy"]
        assert (status in ("error", "timeout")) == (kind is not None) and row["valid"] == (kind is None), (row, kind)
        assert kind != "hangs" or status == "timeout"
        assert kind is None or row["advantage"] == 0
    for key in {(row["step"], row["draw"]) for row in run.samples}:
        group = [row for row in run.samples if (row["step"], row["draw"]) == key and row["valid"]]
        assert abs(sum(row["advantage"] for row in group)) < 1e-4  # deviations from the mean of the valid rows alone
    assert any(row["advantage"] != 0 for row in run.samples)
