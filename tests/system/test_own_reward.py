"""A reward in the user's own file: it scores in worker processes, and what it cannot score counts nowhere."""

import json
from pathlib import Path

import pytest

from grpo_jax import cli
from grpo_jax.journal import read

FILE = '''
import ctypes
import time
from dataclasses import replace
from functools import partial

from experiments.from_jsonl import EXPERIMENT as GIVEN


def short(record, *, limit):
    """1 for a completion of at most `limit` characters. Some completions cannot be scored, in three ways."""
    kind = len(record.completion) % 7
    if kind == 3:
        raise RuntimeError("no idea")
    if kind == 5:
        time.sleep(60)
    if kind == 6:
        ctypes.string_at(0)
    return float(len(record.completion) <= limit)


EXPERIMENT = replace(GIVEN, text_rewards={**GIVEN.text_rewards, "short": (partial(short, limit=4), 0.25)})
'''
SETTINGS = (
    "model.width=16 model.layers=1 model.heads=1 model.kv_heads=1 model.head_width=16 model.hidden=32"
    " model.positions=28 data.prompt_width=16 data.completion_width=12 sampling.max_tokens=12 data.heldout_share=0.25"
    " warm_start=None train.steps=2 train.prompts=4 train.group_size=4 evaluation.prompts=4 evaluation.full_prompts=4"
    " evaluation.samples=1 scoring.workers=2 scoring.timeout_s=0.3 scoring.failure_share=0.9 scoring.canary=False"
).split()


pytestmark = pytest.mark.slow
"""A run that waits for rewards that hang; `tests/rewards/test_pool.py` has the same cases without a run."""


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("own_reward")
    (folder / "own_reward.py").write_text(FILE, encoding="utf-8")
    questions = [{"prompt": f"{a} or {b}?", "answer": str(max(a, b))} for a in range(10) for b in range(10)]
    (folder / "data.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions), encoding="utf-8")
    flags = [flag for setting in (f"data.path={folder}/data.jsonl", *SETTINGS) for flag in ("--set", setting)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("grpo_jax.heldout.CHUNK", 4)
        code = cli.main(["train", str(folder / "own_reward.py"), *flags, "--run-dir", str(folder / "run")])
    assert code == 0
    return [row for row in read(Path(folder) / "run" / "samples.jsonl") if row["set"] == "train"]


def test_every_row_has_the_score_and_the_status_that_its_completion_deserves(samples: list[dict]):
    kinds = set()
    for row in samples:
        length = len(row["completion"])
        kinds.add(length % 7)
        status = {3: "error", 5: "timeout", 6: "error"}.get(length % 7, "ok")
        assert row["statuses"]["short"] == status, row
        assert row["components"]["short"] == (float(length <= 4) if status == "ok" else 0.0)
    assert {3, 5, 6} & kinds
    assert {0, 1, 2, 4} & kinds


def test_a_row_that_could_not_be_scored_is_worth_nothing_and_the_others_are_compared_without_it(samples: list[dict]):
    for row in samples:
        assert row["valid"] == (row["statuses"]["short"] == "ok")
        assert row["valid"] or row["advantage"] == 0
    for key in {(row["step"], row["draw"]) for row in samples}:
        group = [row for row in samples if (row["step"], row["draw"]) == key and row["valid"]]
        assert abs(sum(row["advantage"] for row in group)) < 1e-4  # deviations from the mean of the valid rows alone
