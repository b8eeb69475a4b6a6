"""The warm start: the same demonstrations in any blocks, a gate that has to be reached."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

import grpo_jax
from grpo_jax import heldout, lifeline
from grpo_jax.experiment import step_settings
from grpo_jax.loop import course, imitation
from grpo_jax.loop.imitation import Lessons
from grpo_jax.loop.session import Session
from grpo_jax.train import init_state
from grpo_jax.types import TrainState
from tests.system.small_run import CRITIC, DATA, PLAIN


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


@pytest.mark.slow
def test_a_tower_begins_where_the_warm_start_has_brought_the_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The warm start decays what it trains and leaves the critic alone; the step after it looks with the new policy."""
    monkeypatch.setattr(heldout, "CHUNK", 16)
    assert PLAIN.warm_start is not None
    decaying = dataclasses.replace(PLAIN.warm_start.optimizer, weight_decay=0.5)
    experiment = dataclasses.replace(
        CRITIC,
        model=dataclasses.replace(PLAIN.model, critic="tower"),
        warm_start=dataclasses.replace(PLAIN.warm_start, optimizer=decaying),
        train=dataclasses.replace(PLAIN.train, steps=0),
    )
    states, begin = [], course.begin

    def noted(session: Session, state: TrainState) -> TrainState:
        states.extend((state, begin(session, state)))
        return states[-1]

    monkeypatch.setattr(course, "begin", noted)
    grpo_jax.run(experiment, tmp_path / "run")
    policy, begun = (state.params for state in states)
    untouched = init_state(experiment.seed, step_settings(experiment).gradient).params["critic"]
    jax.tree.map(np.testing.assert_array_equal, policy["critic"], untouched)
    assert np.abs(np.asarray(policy["embed"]) - np.asarray(untouched["embed"])).max() > 1e-3
    for name in ("embed", "norm", "layers"):
        jax.tree.map(np.testing.assert_array_equal, begun["critic"][name], policy[name])
