"""An ablation goes on where it was, and is refused where another one is."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grpo_jax import loop
from grpo_jax.ablation.study import Ablation, carry_out, differences, ends, open_ablation
from grpo_jax.lifeline import Diverged, Preempted, RunStopped
from grpo_jax.objectives import dr_grpo
from tests.system.small_run import PLAIN

OTHER = dataclasses.replace(PLAIN, recipe=dr_grpo(constant=8.0))
TWO = Ablation("file.py", {"a": PLAIN, "b": OTHER}, (0, 1), ("train.steps=6",))
Ran = list[tuple[str, int]]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> tuple[Ran, Callable[[str, int, BaseException], None]]:
    """Runs that were asked for, without running them, and a way to have one end otherwise."""
    calls: Ran = []
    wrong: dict[tuple[str, int], BaseException] = {}

    def run(experiment: Any, folder: Path, **how: Any) -> None:
        key = (folder.parent.name, experiment.seed)
        calls.append(key)
        folder.mkdir(parents=True, exist_ok=True)
        if key in wrong:
            raise wrong.pop(key)
        assert how["rollouts"] is None
        assert folder.name == f"seed-{experiment.seed}" and how["warm_starts"] == folder.parent.parent / "warm_starts"
        assert how["origin"].assignments == ("train.steps=6", f"seed={experiment.seed}")
        (folder / "summary.json").write_text("{}")

    monkeypatch.setattr(loop, "run", run)
    return calls, lambda name, seed, error: wrong.update({(name, seed): error})


def test_one_seed_comes_after_the_other_and_what_has_ended_is_not_done_again(ran: Any, tmp_path: Path):
    calls, _ = ran
    with open_ablation(tmp_path / "x", TWO) as folder:
        assert set(carry_out(folder, TWO).values()) == {""}
    assert calls == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    with open_ablation(tmp_path / "x", TWO) as folder:
        carry_out(folder, TWO)
    assert len(calls) == 4
    (folder / "b" / "seed-0" / "summary.json").unlink()
    carry_out(folder, TWO)
    assert calls[4:] == [("b", 0)]


def test_a_run_that_diverges_is_noted_and_the_others_go_on(ran: Any, tmp_path: Path):
    calls, fail = ran
    fail("b", 0, Diverged("It blew up."))
    with open_ablation(tmp_path / "x", TWO) as folder:
        found = carry_out(folder, TWO)
        assert found[("b", 0)] == "It blew up." and len(calls) == 4
        assert carry_out(folder, TWO) == found and len(calls) == 4
        assert ends(folder) == found


@pytest.mark.parametrize("error", [Preempted("Saved."), ValueError("wrong"), OSError(28, "No space left")])
def test_whatever_else_stops_a_run_stops_the_ablation_which_goes_on_there(
    error: BaseException, ran: Any, tmp_path: Path
):
    calls, fail = ran
    fail("b", 0, error)
    with open_ablation(tmp_path / "x", TWO) as folder, pytest.raises(type(error)):
        carry_out(folder, TWO)
    with open_ablation(tmp_path / "x", TWO) as folder:
        carry_out(folder, TWO)
    assert calls == [("a", 0), ("b", 0), ("b", 0), ("a", 1), ("b", 1)]


def opened(path: Path, ablation: Ablation, **how: Any) -> Path:
    with open_ablation(path, ablation, **how) as folder:
        return folder


def test_another_ablation_is_refused_with_the_difference_and_moved_aside_when_asked(tmp_path: Path):
    opened(tmp_path / "x", TWO)
    train = dataclasses.replace(OTHER.train, steps=7)
    other = dataclasses.replace(TWO, variants={"a": PLAIN, "b": dataclasses.replace(OTHER, train=train)})
    with pytest.raises(ValueError, match="holds another ablation") as refused:
        opened(tmp_path / "x", other)
    assert "  b: train.steps: the folder has 6; this command 7" in str(refused.value)
    assert "--fresh" in str(refused.value) and "a: " not in str(refused.value)
    opened(tmp_path / "x", other, fresh=True)
    assert (tmp_path / "x.1" / "plan.json").exists()


def test_every_kind_of_difference_has_a_line_and_additions_have_none():
    plan = TWO.plan()
    assert differences(plan, plan) == []
    more = dataclasses.replace(TWO, variants={**TWO.variants, "c": PLAIN}, seeds=(0, 1, 2))
    assert differences(plan, more.plan()) == []
    (fewer,) = differences(more.plan(), dataclasses.replace(more, seeds=(0, 1)).plan())
    assert fewer == "  seeds: the folder has 0, 1, 2; this command 0, 1"
    (order,) = differences(plan, dataclasses.replace(TWO, variants={"b": OTHER, "a": PLAIN}).plan())
    assert order == "  variants: the folder has a, b; this command b, a"
    (shared,) = differences(plan, dataclasses.replace(TWO, rollouts=Path("r")).plan())
    assert shared == "  rollouts: the folder has each its own; this command r"
    changed = TWO.plan()
    changed["variants"]["a"] |= {"source_digest": "x", "data_digest": "y"}
    assert differences(plan, changed) == [
        "  a: the code of a function of this variant has changed",
        "  a: the data file has changed",
    ]


def test_what_is_no_ablation_is_left_alone(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="which is a file"):
        opened(tmp_path / "file", TWO)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("x")
    for fresh in (False, True):
        with pytest.raises(ValueError, match=r"holds 'thesis.tex' and no ablation"):
            opened(tmp_path / "folder", TWO, fresh=fresh)
    opened(tmp_path / "x", TWO)
    (tmp_path / "x" / "plan.json").write_text("{}")
    with pytest.raises(ValueError, match="is damaged or was edited"):
        opened(tmp_path / "x", TWO)


def test_nobody_else_may_work_in_it(tmp_path: Path):
    with open_ablation(tmp_path / "x", TWO), pytest.raises(RunStopped, match="is in use by process"):
        opened(tmp_path / "x", TWO)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"variants": {}}, "got no VARIANTS"),
        ({"variants": {"a/b": PLAIN}}, "got the name 'a/b'"),
        ({"variants": {".x": PLAIN}}, "got the name '.x'"),
        ({"variants": {"warm_starts": PLAIN}}, "got the name 'warm_starts'"),
        ({"seeds": ()}, "--seeds: got none"),
        ({"seeds": (1, 1)}, "--seeds: got 1, 1, allowed are different"),
    ],
)
def test_names_that_name_no_folder_and_seeds_that_repeat_are_refused(change: dict, words: str):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(TWO, **change)


def test_a_run_knows_how_it_is_made_again():
    origin = TWO.origin(list(TWO.runs())[3])
    assert (origin.file, origin.variant, origin.assignments) == ("file.py", "b", ("train.steps=6", "seed=1"))
    itself = dataclasses.replace(TWO, variants={"EXPERIMENT": PLAIN})
    assert itself.origin(next(itself.runs())).variant is None
