"""Gradients are compared as a user would: at the policy of a run, at a warm start, with and without drift."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from experiments.compare_gradients import main
from grpo_jax import cli
from grpo_jax.objectives import RECIPES
from tests.system import small_run

SMALL = str(Path(small_run.__file__))
TINY = (
    *("model.width=16", "model.layers=1", "model.heads=2", "model.kv_heads=2", "model.head_width=8", "model.hidden=32"),
    *("warm_start.steps=2", "warm_start.limit=2", "warm_start.gate=0", "train.group_size=4"),
    *("evaluation.prompts=16", "evaluation.full_prompts=16", "evaluation.samples=1"),
)


def compared(folder: Path, *flags: str, stem: str = "gradients") -> dict[str, Any]:
    assert main([*flags, "--dir", str(folder)]) == 0
    ElementTree.parse(folder / f"{stem}.svg")
    return json.loads((folder / f"{stem}.json").read_text())


def cosine(found: dict[str, Any], a: str, b: str) -> float:
    return found["cosine"][found["names"].index(a)][found["names"].index(b)]


def column(found: dict[str, Any], field: str) -> dict[str, float]:
    return dict(zip(found["names"], found[field], strict=True))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--recipes", "grpo,drgrpo"], "--recipes: got 'drgrpo', allowed .*did you mean dr_grpo?"),
        (["--categories", "gspoo"], "--categories: got 'gspoo', .*did you mean gspo"),
        (["--rows", "12"], "--rows: got 12, allowed are multiples of 8 from 16 up"),
        (["--drift-steps", "-1"], "--drift-steps: got -1, allowed 0 to 1000"),
        (["--seed", "-1"], "--seed: got -1, allowed 0 to"),
        (["--run", "nowhere"], "RUN: got nowhere, which holds no run"),
        (["--set", "train.promts=3"], "did you mean train.prompts"),
    ],
    ids=["recipe", "categories", "rows", "drift", "seed", "run", "set"],
)
def test_what_cannot_be_is_said_before_anything_is_trained(tmp_path, capsys, flags: list[str], words: str):
    assert main([*flags, "--dir", str(tmp_path / "out")]) == 4
    said = capsys.readouterr().err
    assert all(part in said for part in words.split(".*")) and "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_a_flag_that_is_none_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--recipe-names", "grpo"])
    assert ended.value.code == 4 and "--recipe-names" in capsys.readouterr().err


@pytest.mark.slow
def test_at_the_policy_of_a_run_with_and_without_drift(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run, flags = (
        tmp_path / "run",
        ["--variant", "cold", "--set", "train.steps=2", "--set", "optimizer.learning_rate=0.1"],
    )
    assert cli.main(["train", SMALL, *flags, "--run-dir", str(run)]) == 0
    names = "dr_grpo,rloo,ppo_clip,ppo_dual_clip,dapo,grpo_k1,grpo_k2,grpo,gspo,kl_cov"
    how = ["--run", str(run), "--recipes", names, "--rows", "64"]
    here = compared(tmp_path / "here", *how, "--drift-steps", "0")
    said = capsys.readouterr().out
    assert "cosine to dr_grpo" in said and all(name in said for name in names.split(","))
    assert here["first_draw"] == 2 * 8 and here["step"] == 2  # the problems that the run would have seen next

    # Where nothing has moved no ratio is away from 1, and algebra says which gradients are one.
    assert here["names"] == names.split(",") and sorted(here["order"]) == sorted(here["names"])
    np.testing.assert_allclose(here["ess_ratio"], 1.0, rtol=1e-4)
    assert not any(share for share in here["clipped"] if share is not None)
    for pair in (("dr_grpo", "rloo"), ("ppo_clip", "ppo_dual_clip"), ("grpo", "grpo_k2")):
        np.testing.assert_allclose(cosine(here, *pair), 1.0, atol=1e-4)
    # At the reference the gradient of k3 is 0 for every sample; that of k1 is 0 in expectation alone.
    assert cosine(here, "grpo", "grpo_k1") < 1 - 1e-5

    away = compared(tmp_path / "away", *how, "--drift-steps", "6", "--seed", "0")
    clipped = column(away, "clipped")
    assert 0 < clipped["dapo"] <= clipped["ppo_clip"] and clipped["rloo"] is None  # DAPO's upper bound is wider
    assert max(away["ess_ratio"]) < 0.999
    assert cosine(away, "ppo_clip", "rloo") < 0.999 and cosine(away, "grpo", "grpo_k2") < 1 - 1e-5
    assert column(away, "silent")["gspo"] > column(away, "silent")["dapo"]  # far narrower bounds

    assert main(["--run", str(run), "--categories", "--dir", str(tmp_path / "none")]) == 4
    assert "without the label 'category'" in capsys.readouterr().err


@pytest.mark.slow
def test_every_recipe_at_the_warm_start_and_the_categories_of_the_mixture(tmp_path: Path):
    sets = [part for setting in TINY for part in ("--set", setting)]
    found = compared(tmp_path, *sets, "--rows", "32", "--drift-steps", "1")
    assert (
        set(found["names"]) <= set(RECIPES) and len(found["names"]) >= 40 and len(found["norm"]) == len(found["names"])
    )
    again = compared(tmp_path, *sets, "--rows", "32", "--drift-steps", "1")
    assert again == found  # the policy is taken as it was left, and nothing else decides
    conflict = compared(tmp_path, *sets, "--rows", "128", "--categories", "dr_grpo", stem="conflicts")
    assert conflict["names"] == ["differences", "long", "products", "sums"]
    assert sum(conflict["prompts"]) == 32 and conflict["recipe"] == "dr_grpo"
