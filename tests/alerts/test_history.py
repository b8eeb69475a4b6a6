"""The numbers that rules read: means over the last steps, changes, evaluations, and nothing that is not a number."""

import math

import numpy as np
import pytest

from grpo_jax.alerts import History
from grpo_jax.alerts.history import mean


def history(*values: object, name: str = "loss", settings=None, keep: int = 10) -> History:
    found = History(settings or {}, keep)
    for step, value in enumerate(values, 1):
        assert found.add({"phase": "grpo", "step": step, name: value})
    return found


def test_means_are_of_the_last_steps_and_of_finite_numbers():
    h = history(1.0, 2.0, 6.0)
    assert (h.mean("loss", 2), h.mean("loss", 9)) == (4.0, 3.0)  # (2 + 6) / 2 and (1 + 2 + 6) / 3
    assert history(1.0, math.nan, None, "x", 3.0).values("loss", 5) == [1.0, 3.0]
    assert history(np.float32(0.5)).mean("loss", 1) == 0.5
    assert math.isnan(h.mean("missing", 3)) and math.isnan(mean([]))


def test_only_the_last_steps_are_kept_and_all_are_counted():
    h = history(*range(20), keep=4)
    assert h.values("loss", 99) == [16, 17, 18, 19] and h.seen == 20


def test_levels_are_running_means():
    assert history(3.0, 1.0, 5.0, 9.0).levels("loss", 4, 2) == [3.0, 2.0, 3.0, 7.0]


def test_jitter_is_the_mean_change_between_steps():
    assert history(1.0, 2.0, 0.0).jitter("loss", 3) == 1.5  # (1 + 2) / 2
    assert history(1.0).jitter("loss", 3) == 0.0


def test_flat_needs_every_step_to_be_tied():
    assert history(1.0, 1.0, name="groups/tied").flat(2)
    assert not history(1.0, 0.97, name="groups/tied").flat(2)
    assert not history(1.0, name="groups/tied").flat(2)
    assert history(0.0, 0.0, name="groups/count").flat(2)
    assert not history(None, None, name="groups/tied").flat(2)


def test_the_largest_norm_is_of_the_steps_before_the_last():
    assert history(1.0, 7.0, 3.0, name="grad_norm").largest_norm == 7.0
    assert history(1.0, 7.0, name="grad_norm").largest_norm == 1.0


def test_evaluations_are_those_of_whole_sets_with_intervals():
    h = history(0.5, name="reward/mean")
    record = {"accuracy/easy": 0.8, "accuracy/easy/low": 0.7, "accuracy/easy/high": 0.9, "accuracy/hard": 0.2}
    assert not h.add({"phase": "warm_start", "step": 7, **record, "reward/accuracy": 0.1, "accuracy/none": None})
    assert [(e.step, e.name, e.value, e.low, e.high) for e in h.evaluations] == [
        (7, "easy", 0.8, 0.7, 0.9),
        (7, "hard", 0.2, 0.2, 0.2),
    ]
    assert all(math.isnan(e.reward) for e in h.evaluations)
    h.add({"phase": "grpo", "step": 2, "reward/mean": 1.5, **record})
    assert h.evaluations[-1].reward == 1.0  # (0.5 + 1.5) / 2


def test_accuracy_is_that_of_training_or_else_the_last_held_out_one():
    h = history(0.5, name="reward/mean")
    assert math.isnan(h.accuracy())
    h.add({"phase": "grpo", "step": 2, "accuracy/heldout": 0.75})
    assert h.accuracy() == 0.75
    h.add({"phase": "grpo", "step": 3, "reward/accuracy": 0.25})
    assert h.accuracy() == 0.25


@pytest.mark.parametrize(("text", "number"), [("0.001", 0.001), ("11", 11.0), ("None", None), ("(1, 2)", None)])
def test_settings_are_numbers_where_they_can_be(text: str, number: float | None):
    value = history(settings={"a.b": text}).number("a.b")
    assert math.isnan(value) if number is None else value == number
    assert math.isnan(history().number("a.b"))
