"""Training less, or remembering less: what the variants are, and numbers that would differ without each option.

The runs are of three steps, through the command line, on the small experiment of the system tests.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiments import lora as file
from grpo_jax import cli
from grpo_jax.checkpoint import Checkpoints
from grpo_jax.checkpoint.digests import named_leaves
from grpo_jax.experiment import Experiment
from grpo_jax.folder import visit
from grpo_jax.models import flat, init
from grpo_jax.models.lora import is_adapter
from grpo_jax.revisit import restore
from grpo_jax.train import Stream, stream
from grpo_jax.updates import Optimizer
from tests.system import small_run

SMALL = str(Path(small_run.__file__))
VARIANTS = cli.load(Path(small_run.__file__)).VARIANTS  # as the command line loads them: runs know functions by module


def test_every_variant_differs_from_full_training_in_one_thing():
    full = file.VARIANTS["full"]
    groups = ("model", "train", "optimizer", "warm_start")
    different = {
        name: {group for group in groups if getattr(variant, group) != getattr(full, group)}
        for name, variant in file.VARIANTS.items()
    }
    adapted = {"model", "optimizer"}
    assert different == {
        "full": set(),
        "lora": adapted,
        "rslora": adapted,
        **{name: {"train"} for name in ("frozen_embeddings", "reference_replaced", "reference_averaged")},
        **{name: {"optimizer"} for name in ("bf16_moments", "factored")},
        "master": {"model", "optimizer", "warm_start"},
    }
    first = file.QUICKSTART
    assert (full.data, full.sampling, full.reward, full.warm_start) == (
        *(first.data, first.sampling, first.reward),
        first.warm_start,
    )
    scales = [file.VARIANTS[name].model.lora for name in ("lora", "rslora")]
    assert [lora.scale for lora in scales if lora is not None] == [8 / 4, 8 / 2]


def trained(variant: str, folder: Path, *assignments: str) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of a run of three steps, and the lines of these."""
    given = [word for one in ("train.steps=3", "saving.keep=9", *assignments) for word in ("--set", one)]
    assert cli.main(["train", SMALL, "--variant", variant, "--run-dir", str(folder), *given]) == 0
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return folder, [row for row in rows if row["phase"] == "grpo"]


def experiment_of(variant: str) -> Experiment:
    found: Experiment = VARIANTS[variant]
    saving = dataclasses.replace(found.saving, keep=9)
    return dataclasses.replace(found, train=dataclasses.replace(found.train, steps=3), saving=saving)


def revisited(folder: Path, variant: str, which: str = "newest") -> Any:
    with visit(folder, experiment_of(variant)) as kept:
        return restore(kept, experiment_of(variant), which)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_adapters_alone_are_in_checkpoints_and_the_policy_of_the_warm_start_is_kept_once(tmp_path: Path):
    folder, rows = trained("lora", tmp_path / "run")
    found, warm = revisited(folder, "lora"), revisited(folder, "lora", "warm_start/4")
    names = flat(found.state.params)
    assert len(names) == 8 and all(is_adapter(name) for name in names)
    kept = {name.split("/")[-1] for name in named_leaves(found.state.opt_state) if "layers" in name}
    assert kept and all(is_adapter(name) for name in kept)
    # The frozen part is what the warm start ended with, bit for bit, and there is no other copy of it.
    jax.tree.map(np.testing.assert_array_equal, found.frozen, warm.state.params)
    assert warm.frozen is None and (folder / "frozen").is_dir() and not (folder / "reference").exists()
    moved = [np.abs(leaf).max() for name, leaf in names.items() if name.endswith("_b")]
    assert min(moved) > 0
    # The penalty is that of the distance from the base: none before the first update, some behind it.
    assert rows[0]["kl/ref"] < 1e-5 < rows[2]["kl/ref"]
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["trained"], summary["parameters"]) == (256, 2736 + 256)


def test_without_a_warm_start_the_base_is_made_again_and_nothing_of_it_is_written_down(tmp_path: Path):
    folder, _ = trained("lora", tmp_path / "run", "warm_start=None")
    assert not (folder / "frozen").exists()
    experiment = dataclasses.replace(experiment_of("lora"), warm_start=None)
    with visit(folder, experiment) as kept:
        found = restore(kept, experiment)
    base = init(stream(experiment.seed, Stream.INIT), experiment.model.without_lora)
    jax.tree.map(np.testing.assert_array_equal, found.frozen, base)


@pytest.mark.slow
def test_frozen_parts_stay_bit_for_bit_and_leave_the_checkpoints(tmp_path: Path):
    folder, _ = trained("frozen", tmp_path / "frozen")
    whole, _ = trained("penalty", tmp_path / "whole")
    found, warm = revisited(folder, "frozen"), revisited(folder, "frozen", "warm_start/4")
    before, after = flat(warm.state.params), flat(found.policy)
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert same == {"embed", "layers/0/up", "layers/0/down"}
    assert set(flat(found.frozen)) == same
    every = flat(revisited(whole, "penalty").policy)
    assert not any(np.array_equal(before[name], every[name]) for name in before)


@pytest.mark.slow
def test_a_reference_that_moves_is_nearer_and_is_in_the_checkpoints(tmp_path: Path):
    _, fixed = trained("penalty", tmp_path / "fixed")
    folder, moved = trained("replaced", tmp_path / "replaced")
    assert [row["kl/ref"] for row in moved[:2]] == [row["kl/ref"] for row in fixed[:2]]
    assert moved[2]["kl/ref"] < 0.2 * fixed[2]["kl/ref"]  # replaced behind step 2
    found = revisited(folder, "replaced").state
    behind_two = revisited(folder, "replaced", "2").state.params
    jax.tree.map(np.testing.assert_array_equal, found.reference, behind_two)
    assert not (folder / "reference").exists() and (tmp_path / "fixed" / "reference").exists()


@pytest.mark.parametrize(
    ("settings", "bytes_a_parameter"),
    [
        ((), 8),
        (("optimizer.moments=bfloat16",), 4),
        (("model.param_dtype=bfloat16", "optimizer.moments=bfloat16", "optimizer.master=True"), 8),
    ],
    ids=["float32", "bfloat16", "master"],
)
def test_a_dry_run_tells_what_the_optimiser_takes(
    settings: tuple[str, ...], bytes_a_parameter: int, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    given = [word for one in settings for word in ("--set", one)]
    assert cli.main(["train", SMALL, "--dry-run", "--run-dir", str(tmp_path / "none"), *given]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("memory of the device"))
    told = float(line.split("optimizer ")[1].split(",")[0])
    assert told == pytest.approx(bytes_a_parameter * 2736 / 1e6, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("moments", ["bfloat16", "factored"])
def test_moments_are_kept_as_they_are_asked_for(moments: str, tmp_path: Path):
    folder, rows = trained("cold", tmp_path / "run", f"optimizer.moments={moments}")
    optimizer: Any = experiment_of("cold").optimizer
    assert isinstance(optimizer, Optimizer)
    experiment = dataclasses.replace(experiment_of("cold"), optimizer=dataclasses.replace(optimizer, moments=moments))
    with visit(folder, experiment) as kept:
        state = restore(kept, experiment).state
    arrays = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    if moments == "bfloat16":
        assert {str(leaf.dtype) for leaf in arrays} == {"bfloat16"} and sum(leaf.size for leaf in arrays) == 2 * count
    else:
        assert count < sum(leaf.size for leaf in arrays) < 1.7 * count
    assert all(row["skipped"] == 0 for row in rows[1:])  # before step 1 there is an evaluation alone


def test_a_checkpoint_folder_names_where_it_is(tmp_path: Path):
    assert Checkpoints(tmp_path / "here", identity={}).directory == tmp_path / "here"
