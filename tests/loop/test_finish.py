"""What a run came to is read off its journals, so that a run that was killed ends with the same words."""

import json
import time
from pathlib import Path

import jax.numpy as jnp
import pytest

from grpo_jax.checkpoint import state_digest
from grpo_jax.folder import open_folder
from grpo_jax.loop.finish import summarise
from grpo_jax.types import TrainState
from tests.system.small_run import PLAIN

BEFORE = {"accuracy/heldout": 0.25, "greedy/heldout": 0.5, "length/heldout": 6.0, "entropy/heldout": 2.0}
AFTER = {"accuracy/heldout": 0.75, "greedy/heldout": 1.0, "length/heldout": 7.0, "entropy/heldout": None}
INTERVALS = {"accuracy/heldout/low": 0.1, "accuracy/heldout/high": 0.9}


def state() -> TrainState:
    counter = jnp.asarray(6, jnp.int32)
    return TrainState(params={"w": jnp.ones((2, 3))}, opt_state=(), step=counter, cursor=counter, skipped=counter)


def finished(path: Path) -> dict:
    """The summary of a run with an evaluation behind its warm start and one behind its last step."""
    folder = open_folder(path, PLAIN)
    step = {"reward/mean": 0.5, "groups/tied": 0.5, "length/stopped": 1.0, "entropy": 2.0}
    folder.metrics.write({"phase": "warm_start", "step": 4, "loss": 1.0, **BEFORE, **INTERVALS})
    folder.metrics.write({"phase": "grpo", "step": 5, **step})
    folder.metrics.write({"phase": "grpo", "step": 6, **step, **AFTER, **INTERVALS})
    shown = {"set": "heldout", "number": 0, "prompt": "1+1=", "completion": "2", "tokens": [2], "length": 1}
    judged = {"stopped": True, "components": {"accuracy": 1.0}, "answer": "2"}
    for phase, number in (("warm_start", 4), ("grpo", 6)):
        folder.samples.write({"phase": phase, "step": number, **shown, **judged})
    summarise(PLAIN, folder, state(), {"warm_steps": 4}, begun=(time.monotonic() - 100, time.process_time() - 30))
    folder.close()
    return json.loads((path / "summary.json").read_text())


def test_the_summary_is_the_journal_before_and_after(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    summary = finished(tmp_path)
    assert (summary["name"], summary["steps"], summary["warm_steps"], summary["parameters"]) == ("small", 6, 4, 6)
    assert (summary["accuracy_before"], summary["accuracy_after"]) == (0.25, 0.75)
    assert (summary["greedy_before"], summary["greedy_after"]) == (0.5, 1.0)
    assert (summary["length_before"], summary["length_after"]) == (6.0, 7.0)
    assert summary["estimates"]["after"] == {**AFTER, **INTERVALS}
    assert 100 < summary["seconds"] < 1000 and 30 < summary["cpu_seconds"] < 1000
    kept = state()
    parts = {"params": kept.params, "opt_state": kept.opt_state, "step": kept.step}
    assert summary["state_digest"] == state_digest(parts)
    printed = capsys.readouterr().out
    assert "6 parameters, 4 warm start and 6 GRPO steps" in printed and str(tmp_path / "figure.svg") in printed
    assert (tmp_path / "figure.svg").read_text().startswith(("<svg", "<?xml"))


def test_sets_and_categories_are_in_the_summary_and_in_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = open_folder(tmp_path, PLAIN)
    before = {"accuracy/heldout": 0.25, "n/heldout": 8.0, "accuracy/heldout[a b]": 0.5, "n/heldout[a b]": 4.0}
    before |= {"accuracy/hard": 0.0, "accuracy/hard/high": 0.1, "n/hard": 9.0, "length/mean": 3.0, "clip/low": 0.0}
    after = {**before, "accuracy/heldout[a b]": 0.75, "accuracy/hard": 0.125}
    folder.metrics.write({"phase": "warm_start", "step": 4, **before})
    folder.metrics.write({"phase": "grpo", "step": 6, **after})
    summarise(PLAIN, folder, state(), {"warm_steps": 4}, begun=(time.monotonic(), time.process_time()))
    folder.close()
    found = json.loads((tmp_path / "summary.json").read_text())["estimates"]
    training = {"length/mean", "clip/low"}
    assert found["before"] == {name: value for name, value in before.items() if name not in training}
    assert found["after"] == {name: value for name, value in after.items() if name not in training}
    page = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["a", "b", "4", "50.0", "75.0", "+25.0", "-", "-", "-"] in page
    assert ["hard", "9", "0.0", "12.5", "+12.5", "-", "-", "-"] in page


def test_what_was_not_measured_or_not_finite_is_absent_and_ends_nothing(tmp_path: Path):
    summary = finished(tmp_path)
    assert summary["format_before"] is None and summary["entropy_after"] is None
    assert summary["nonfinite"]["format_before"] == summary["nonfinite"]["entropy_after"] == "nan"
