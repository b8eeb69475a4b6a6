"""Runs are read whole but for their completions, which are thinned out and counted."""

from pathlib import Path

import pytest

from grpo_jax.report.runs import differing, gather, names_of
from tests.report.run_folder import metrics_of, sample_of, write_run


def test_names_are_as_short_as_tells_them_apart(tmp_path: Path):
    folders = [tmp_path / "a" / "sums", tmp_path / "b" / "sums", tmp_path / "b" / "seed=1"]
    assert names_of(folders) == ["a/sums", "b/sums", "seed=1"]
    assert names_of(folders[:1]) == ["sums"]
    assert names_of([tmp_path / "x\u202ey"]) == ["x⟨U+202E⟩y"]
    with pytest.raises(ValueError, match="twice; allowed is each run once"):
        names_of([folders[0], tmp_path / "b" / ".." / "a" / "sums"])


def test_of_many_completions_the_most_wanted_are_kept_and_all_are_counted(tmp_path: Path):
    rows = [sample_of(step, n, n / 10) for step in range(1, 101) for n in range(10)]
    held = {"phase": "grpo", "step": 100, "set": "heldout", "components": {"accuracy": 1.0}}
    folder = write_run(tmp_path / "run", metrics_of(0.5), [*rows, held])
    (run,) = gather([folder], most=2)
    train, heldout = run.recorded["train"], run.recorded["heldout"]
    assert (train.rows, len(train.steps), train.kept, train.kept_steps) == (1000, 100, 80, 40)
    assert (heldout.rows, heldout.kept) == (1, 1) and len(run.samples) == 81
    steps = [row["step"] for row in run.samples if row["set"] == "train"]
    assert (steps[0], steps[-1]) == (1, 100) and steps == sorted(steps)
    # Of each step the worst and the best.
    assert {row["sample"] for row in run.samples if row["set"] == "train"} == {0, 9}
    # Three runs share the room: 40 // 3 steps of each.
    more = [write_run(tmp_path / name, metrics_of(0.5), rows) for name in ("b", "c")]
    assert [run.recorded["train"].kept_steps for run in gather([folder, *more], most=2)] == [13, 13, 13]


def test_verifiers_are_found_and_their_disagreement_is_noted(tmp_path: Path):
    rows = [sample_of(1, n, None, components={"accuracy": float(n), "accuracy_b": 1.0, "c": 0.0}) for n in (0, 1)]
    folder = write_run(tmp_path / "run", metrics_of(0.5), rows)
    (run,) = gather([folder], most=2)
    assert run.verifiers == ("accuracy", "accuracy_b")
    assert [row["disagreement"] for row in run.samples] == [True, False]
    (run,) = gather([folder], most=2, verifiers=["accuracy_b", "c"])
    assert [row["disagreement"] for row in run.samples] == [True, True]
    with pytest.raises(ValueError, match="--verifiers: got 'x'"):
        gather([folder], most=2, verifiers=["x", "c"])


def test_settings_that_differ_come_apart_from_those_that_do_not(tmp_path: Path):
    one = write_run(tmp_path / "a", metrics_of(0.5), [], settings={"seed": "1", "only": "x"})
    two = write_run(tmp_path / "b", metrics_of(0.5), [], settings={"seed": "2"})
    assert differing(gather([one, two], most=1)) == (["seed", "only"], ["name", "optimizer.learning_rate"])


def test_a_folder_that_is_none_and_records_that_are_none_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="which holds no run"):
        gather([tmp_path], most=1)
    with pytest.raises(ValueError, match="--most: got 0, allowed 1 or more"):
        gather([tmp_path], most=0)
    for number, (metrics, samples) in enumerate(
        [
            ([{"entropy": 1.0}], []),
            ([{"phase": "grpo", "step": 10**400}], []),
            ([{"phase": "grpo", "step": "1"}], []),
            ([], [{"phase": "grpo", "step": 1}]),
        ]
    ):
        folder = write_run(tmp_path / str(number), metrics, samples)
        with pytest.raises(ValueError, match="allowed are records that a run wrote"):
            gather([folder], most=1)
