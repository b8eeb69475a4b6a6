"""The warm start: the same demonstrations in any blocks, a gate that has to be reached."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import grpo_jax
from grpo_jax import heldout, lifeline
from grpo_jax.loop import imitation
from grpo_jax.loop.imitation import Lessons
from tests.system.small_run import DATA, PLAIN


def test_demonstrations_are_drawn_by_number(monkeypatch: pytest.MonkeyPatch):
    # The blocks in which they are drawn are seen by nobody: step 4 of 8 rows has the draws 32 to 39.
    for block in (1, 3, 20):
        monkeypatch.setattr(imitation, "BLOCK", block)
        found = Lessons(DATA, 5, 8).at(4)
        np.testing.assert_array_equal(found.prompts.draw, np.arange(32, 40))
        expected = DATA.demonstrations(5, np.arange(32, 40))
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_array_equal(found.length, expected.length)


def test_a_warm_start_that_misses_its_gate_stops_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(heldout, "CHUNK", 16)
    assert PLAIN.warm_start is not None
    unreachable = dataclasses.replace(PLAIN, warm_start=dataclasses.replace(PLAIN.warm_start, gate=1.0))
    with pytest.raises(lifeline.Diverged, match=r"did not reach a sampled accuracy of 1\.0 in 8 steps") as stop:
        grpo_jax.run(unreachable, tmp_path / "run")
    assert stop.value.code == 3
