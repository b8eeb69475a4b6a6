"""The quickstart with dynamic sampling takes more than a round where a round is not enough, and says what it drew."""

from pathlib import Path

import pytest

from experiments.dynamic import EXPERIMENT, QUICKSTART, VARIANTS
from grpo_jax import cli
from grpo_jax.experiment import settings
from grpo_jax.journal import read

SHORT = (
    "train.steps=3 train.prompts=8 train.group_size=4 warm_start.steps=2 warm_start.gate=0 evaluation.prompts=8"
    " evaluation.full_prompts=8 evaluation.samples=1 evaluation.show=0 saving.every=3"
).split()


def train(root: Path, folder: Path, *flags: str, changes: tuple[str, ...] = ()) -> list[dict]:
    sets = [part for setting in (*SHORT, *changes) for part in ("--set", setting)]
    words = ["train", str(root / "experiments" / "dynamic.py"), "--run-dir", str(folder), *sets, *flags]
    assert cli.main(words) == 0
    return [row for row in read(folder / "metrics.jsonl") if row["phase"] == "grpo" and row["step"]]


def test_nothing_differs_from_the_quickstart_but_the_name_and_dynamic_sampling():
    plain = settings(QUICKSTART)
    for experiment in (EXPERIMENT, *VARIANTS.values()):
        here = settings(experiment)
        differ = {name for name in {*here, *plain} if here.get(name) != plain.get(name)}
        assert all(name == "name" or name.startswith("train.dynamic") for name in differ)
    assert settings(VARIANTS["without"])["train.dynamic"] == "None"


@pytest.mark.slow
def test_a_policy_that_solves_nothing_uses_all_rounds_and_fills_what_stays_open(root: Path, tmp_path: Path):
    # After two steps of imitation no completion earns anything: all four rounds of 8 prompts x 4 samples are refused.
    steps = train(root, tmp_path / "run")
    assert [row["dynamic/rounds"] for row in steps] == [4.0] * 3
    assert [row["samples/drawn"] for row in steps] == [4.0 * 8 * 4 * step for step in (1, 2, 3)]
    for row in steps:
        assert row["dynamic/refused"] == 1.0 and row["dynamic/filled"] == 8.0 and row["groups/count"] == 0.0
        assert row["sampled/reward"] == 0.0 and row["skipped"] == 0 and row["loss"] == 0.0
    # Nothing was trained on, so there is no line of it.
    assert all(row["set"] != "train" for row in read(tmp_path / "run" / "samples.jsonl"))


@pytest.mark.slow
def test_a_policy_that_solves_some_problems_is_trained_on_groups_that_differ(root: Path, tmp_path: Path):
    changes = ("warm_start.steps=600", "train.steps=6")
    steps = train(root, tmp_path / "with", changes=changes)
    plain = train(root, tmp_path / "without", "--variant", "without", changes=changes)
    assert all(row["groups/tied"] == 0.0 for row in steps if row["groups/count"])
    assert max(row["groups/tied"] for row in plain) > 0 and "dynamic/rounds" not in plain[0]
