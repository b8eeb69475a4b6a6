"""The flags of an ablation, what is refused, and the files it ends in."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from grpo_jax import loop
from grpo_jax.ablation import command
from grpo_jax.journal import Journal
from grpo_jax.lifeline import Diverged
from grpo_jax.objectives import dr_grpo
from tests.system.small_run import PLAIN

OTHER = dataclasses.replace(PLAIN, recipe=dr_grpo(constant=8.0))
FILE = Path("some_file.py")


def module(**names: Any) -> Any:
    return SimpleNamespace(**{"EXPERIMENT": PLAIN, "VARIANTS": {"a": PLAIN, "b": OTHER}, **names})


def test_all_variants_take_part_and_experiment_where_it_is_named():
    ablation = command.planned(FILE, module(SEEDS=(3, 4)))
    assert (list(ablation.variants), ablation.seeds) == (["a", "b"], (3, 4))
    named = command.planned(
        FILE, module(SEEDS=(3, 4)), variants="EXPERIMENT, b", seeds="7,8", assignments=("train.steps=2",)
    )
    assert (list(named.variants), named.seeds) == (["EXPERIMENT", "b"], (7, 8))
    assert [experiment.train.steps for experiment in named.variants.values()] == [2, 2]
    assert command.planned(FILE, module()).seeds == (0,)
    assert command.planned(FILE, module(), assignments=()).rollouts is None
    assert command.planned(FILE, module(), rollouts="r.jsonl").rollouts == Path("r.jsonl").absolute()


@pytest.mark.parametrize(
    ("names", "flags", "words"),
    [
        ({"VARIANTS": {}}, {}, "got no VARIANTS, allowed is a mapping"),
        ({"VARIANTS": (1, 2)}, {}, "got VARIANTS of type tuple"),
        ({"VARIANTS": {"a": 3}}, {}, "a is a int, allowed is a grpo_jax.Experiment"),
        ({}, {"variants": "a,c"}, "--variants: got 'c', allowed a, b, EXPERIMENT"),
        ({}, {"variants": "EXPERIMNT"}, "did you mean 'EXPERIMENT'"),
        ({}, {"variants": ","}, "--variants: got ',', allowed are different names"),
        ({}, {"variants": "a,a"}, "allowed are different names"),
        ({}, {"seeds": "0,x"}, "--seeds: got 'x', allowed are whole numbers"),
        ({}, {"seeds": "-1"}, "--seeds: got '-1'"),
        ({}, {"seeds": ""}, "--seeds: got none"),
        ({"SEEDS": (0, "a")}, {}, "SEEDS: got"),
        ({"SEEDS": 3}, {}, "SEEDS: got 3"),
        ({"VARIANTS": {"a": PLAIN, "b": dataclasses.replace(PLAIN, seed=4)}}, {}, "the variants have 0, 4"),
        ({}, {"assignments": ("seed=3",)}, "give seeds with --seeds"),
        ({}, {"assignments": ("train.step=3",)}, "did you mean train.steps"),
        ({"EXPECTED": (("a", "clipped", 0.1),)}, {}, "EXPECTED: got"),
        ({"EXPECTED": (("c", "clipped", 0.1, 0.2),)}, {}, "EXPECTED: got 'c' and 'clipped'"),
        ({"EXPECTED": (("a", "speed", 0.1, 0.2),)}, {}, "allowed are the variants a, b, EXPERIMENT"),
        ({"EXPECTED": (("*", "rise", 0.1, 0.2, "why", 3),)}, {}, "perhaps with a reason behind"),
    ],
)
def test_what_cannot_be_carried_out_is_refused(names: dict, flags: dict, words: str):
    with pytest.raises(ValueError, match=words):
        command.planned(FILE, module(**names), **flags)


def test_expectations_hold_for_a_variant_or_for_every_one():
    rows = (("*", "skipped", 0, 0), ("b", "rise", 0.05, 1.0, "it learns"))
    assert command.planned(FILE, module(EXPECTED=rows)).expected == ((*rows[0], ""), rows[1])


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that end at once: a accuracy of 0.5 for a, 0.75 for b; seed 9 of b diverges."""

    def run(experiment: Any, folder: Path, **how: Any) -> None:
        del how
        name = folder.parent.name
        if (name, experiment.seed) == ("b", 9):
            raise Diverged("It blew up.")
        folder.mkdir(parents=True)
        metrics, timing = Journal(folder / "metrics.jsonl"), Journal(folder / "timing.jsonl")
        metrics.write({"phase": "warm_start", "step": 4, "accuracy/heldout": 0.25})
        after = {"accuracy/heldout": {"a": 0.5, "b": 0.75}[name], "clip/low": 0.0625, "clip/high": 0.0625}
        metrics.write({"phase": "grpo", "step": 1, "reward/mean": 0.5, **after})
        timing.write({"attempt": 1, "seconds": 2.0, "cpu_seconds": 3.0})
        (folder / "summary.json").write_text("{}")

    monkeypatch.setattr(loop, "run", run)


def test_an_ablation_ends_in_its_files(trained: None, tmp_path: Path):
    shown: list[str] = []
    ablation = command.planned(FILE, module(), seeds="0,1")
    assert command.ablate(ablation, tmp_path / "x", show=shown.append) == 0
    table = (tmp_path / "x" / "table.md").read_text()
    assert table.startswith("# Ablation of some_file.py\n\n## Results\n")
    assert "| a | 2 | 50.0 ± 0.0 |" in table and "| b | 2 | +25.0 ± 0.0 * |" in table
    assert "12.5 ± 0.0" in table and "seconds" not in table
    found = json.loads((tmp_path / "x" / "ablation.json").read_text())
    assert found["means"]["b"]["accuracy"] == {"mean": 0.75, "half": 0.0, "count": 2}
    assert found["differences"]["b"]["accuracy"]["mean"] == 0.25 and found["reference"] == "a"
    assert found["runs"]["a"]["1"]["cpu_seconds"] == 3.0 and found["settings"].keys() == {
        "recipe.advantage",
        "recipe.parts",
    }
    assert (tmp_path / "x" / "figure.svg").read_text().startswith("<svg")
    (page,) = shown
    assert "Time of a run" in page and str(tmp_path / "x" / "table.md") in page


def test_a_divergence_decides_the_exit_code_and_takes_nothing_away(trained: None, tmp_path: Path):
    ablation = command.planned(FILE, module(), seeds="0,9")
    assert command.ablate(ablation, tmp_path / "x", show=str) == 3
    table = (tmp_path / "x" / "table.md").read_text()
    assert "| a | 2 |" in table and "| b | 1 | 75.0 |" in table and "| b | 9 | It blew up. |" in table


def test_an_ablation_of_which_nothing_is_left_says_why(trained: None, tmp_path: Path):
    ablation = command.planned(FILE, module(), variants="b", seeds="9")
    assert command.ablate(ablation, tmp_path / "x", show=str) == 3
    assert "It blew up." in (tmp_path / "x" / "table.md").read_text()


@pytest.mark.parametrize(("low", "ends"), [(0.1, True), (0.2, False)])
def test_a_mean_that_is_not_what_the_file_expects_ends_in_an_error(
    low: float, ends: bool, trained: None, tmp_path: Path
):
    expecting = module(EXPECTED=(("a", "clipped", low, 0.5),))
    ablation = command.planned(FILE, expecting, seeds="0,1")
    if ends:
        assert command.ablate(ablation, tmp_path / "x", show=str) == 0
    else:
        with pytest.raises(ValueError, match=r"EXPECTED: a: clipped is 12\.5 ± 0\.0 %, expected 20\.0 to 50\.0 %"):
            command.ablate(ablation, tmp_path / "x", show=str)
    assert f"12.5 ± 0.0 | {'yes' if ends else 'no'} |" in (tmp_path / "x" / "table.md").read_text()
    changed = command.planned(FILE, expecting, seeds="0,1", assignments=("train.steps=2",))
    assert command.ablate(changed, tmp_path / "y", show=str) == 0  # other settings, other numbers: it is only said


def test_a_preview_names_every_variant_and_trains_nothing(tmp_path: Path):
    page = command.preview(command.planned(FILE, module(), seeds="0,1"), tmp_path / "x")
    assert f"4 runs in {tmp_path / 'x'}: 2 variants with the seeds 0, 1" in page
    assert "a: 2,736 parameters, 6 steps of 8 x 4 rows, 2 updates each" in page and "recipe.parts" in page
    assert not (tmp_path / "x").exists()
