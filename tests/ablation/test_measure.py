"""Numbers of a run off hand-made journals, with their arithmetic in sight."""

import math
from pathlib import Path

import pytest

from grpo_jax.ablation.measure import OUTCOMES, curve, means, numbers, paired
from grpo_jax.journal import Journal


def run_of(path: Path, rows: list[dict], timing: list[dict]) -> Path:
    path.mkdir(parents=True)
    for name, records in (("metrics", rows), ("timing", timing)):
        journal = Journal(path / f"{name}.jsonl")
        for record in records:
            journal.write(record)
        journal.close()
    return path


def step(number: int, **values: float) -> dict:
    return {"phase": "grpo", "step": number, "reward/mean": number / 100, "kl/old": 0.5, "grad_norm": 2.0, **values}


ROWS = [
    {"phase": "warm_start", "step": 100, "grad_norm": 99.0},
    {"phase": "warm_start", "step": 200, "accuracy/heldout": 0.25, "greedy/heldout": 0.5},
    *[step(n, **{"clip/low": 0.01, "clip/high": 0.02}) for n in range(1, 10)],
    step(10, **{"clip/low": 0.11, "clip/high": 0.12, "accuracy/heldout": 0.5, "greedy/heldout": 0.75}),
    *[step(n, **{"clip/low": 0.01, "clip/high": 0.02}) for n in range(11, 20)],
    step(
        20,
        **{
            "clip/low": 0.01,
            "clip/high": 0.02,
            "accuracy/heldout": 0.625,
            "greedy/heldout": 1.0,
            "length/heldout": 7.0,
            "entropy/heldout": 0.125,
        },
    ),
]


def test_the_measures_of_a_run_by_hand(tmp_path: Path):
    timing = [{"attempt": 1, "seconds": 2.0, "cpu_seconds": 3.0}, {"attempt": 2, "seconds": 4.0, "cpu_seconds": 5.0}]
    found = numbers(run_of(tmp_path / "run", ROWS, timing))
    assert (found["accuracy"], found["greedy"], found["before"]) == (0.625, 1.0, 0.25)
    assert (found["length"], found["entropy"]) == (7.0, 0.125)
    assert found["reward"] == pytest.approx((0.19 + 0.20) / 2)  # a tenth of 20 steps are the last 2
    assert found["clipped"] == pytest.approx((19 * 0.03 + 0.23) / 20)
    assert (found["kl"], found["grad_norm"]) == (0.5, 2.0)  # steps of the warm start are no GRPO steps
    assert (found["seconds"], found["cpu_seconds"]) == (6.0, 8.0)


def test_the_held_out_reward_and_what_was_not_finite_by_hand(tmp_path: Path):
    rows = [
        {"phase": "warm_start", "step": 9, "accuracy/heldout": 0.25, "format/heldout": 0.5, "loss": math.nan},
        step(1, skipped=1),
        step(2, skipped=0, **{"accuracy/heldout": 0.5, "format/heldout": 0.5}),
        step(3, skipped=2, loss=math.inf, grad_norm=math.nan),
        step(4, skipped=0, **{"accuracy/heldout": 0.75, "format/heldout": 1.0}),
    ]
    found = numbers(run_of(tmp_path / "run", rows, []), {"accuracy": 1.0, "format": 0.5})
    assert (found["start"], found["first"], found["end"]) == (0.25 + 0.25, 0.5 + 0.25, 0.75 + 0.5)
    assert (found["first_rise"], found["rise"]) == (0.25, 0.75)
    assert (found["skipped"], found["nonfinite"]) == (3.0, 2.0)  # of GRPO steps alone
    other = numbers(tmp_path / "run", {"accuracy": 1.0, "own": 1.0})  # a reward that was not evaluated
    assert math.isnan(other["rise"]) and math.isnan(numbers(tmp_path / "run")["start"])


def test_what_a_run_does_not_have_is_no_number(tmp_path: Path):
    cold = [{"phase": "grpo", "step": 0, "accuracy/heldout": 0.125}, step(1, **{"clip/high": 0.25})]
    found = numbers(run_of(tmp_path / "cold", cold, []))
    assert (found["before"], found["accuracy"], found["clipped"]) == (0.125, 0.125, 0.25)
    assert math.isnan(found["greedy"]) and math.isnan(found["length"])
    nothing = numbers(run_of(tmp_path / "none", [], []))
    assert all(math.isnan(value) for name, value in nothing.items() if "seconds" not in name)


def test_a_curve_begins_before_grpo(tmp_path: Path):
    assert curve(run_of(tmp_path / "run", ROWS, [])) == [(0, 0.25), (10, 0.5), (20, 0.625)]


def a_run(accuracy: float) -> dict[str, float]:
    return {measure.name: accuracy for measure in OUTCOMES}


def test_differences_are_taken_seed_by_seed():
    # What a seed does to both cancels: 0.1 +- 0 where the means alone would be 0.5 +- 0.3 and 0.6 +- 0.3
    reference = {0: a_run(0.25), 1: a_run(0.75), 2: a_run(0.5)}
    better = {0: a_run(0.375), 1: a_run(0.875), 7: a_run(0.0)}
    found = paired(better, reference, OUTCOMES)["accuracy"]
    assert found is not None and (found.mean, found.half, found.count) == (0.125, 0.0, 2)
    alone = means(list(reference.values()), OUTCOMES)["accuracy"]
    # deviation 0.25, t with 2 degrees 4.30265
    assert (
        alone is not None and alone.mean == 0.5 and alone.half == pytest.approx(4.30265 * 0.25 / math.sqrt(3), rel=1e-6)
    )
    assert paired({7: a_run(0.0)}, reference, OUTCOMES)["accuracy"] is None
