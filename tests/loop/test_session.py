"""A session: what a run begins with and where it goes on."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from grpo_jax.display import SilentDisplay
from grpo_jax.experiment import Saving, step_settings
from grpo_jax.folder import Position, open_folder
from grpo_jax.lifeline import Heartbeat, Preempted, Signals
from grpo_jax.loop.logbook import Logbook
from grpo_jax.loop.phases import Stopwatch
from grpo_jax.loop.session import Session
from grpo_jax.loop.setup import judge, problems
from tests.system.small_run import VARIANTS

COLD = VARIANTS["cold"]


def test_a_session_leaves_with_everything_saved_and_the_next_one_goes_on_there(tmp_path: Path):
    for attempt in (1, 2):
        folder = open_folder(tmp_path / "run", COLD)
        book = Logbook(COLD, folder, SilentDisplay(), Heartbeat(tmp_path / "stacks", 60, 60), Stopwatch())
        session = Session(COLD, folder, Signals(), judge(COLD, problems(COLD)), book)
        state, position, meta = session.restore()
        assert position == Position(1, 0 if attempt == 1 else 3) and folder.attempt == attempt
        if attempt == 1:
            begun = jax.device_get(state.params)
            for step in (1, 2, 3):
                book.write(Position(1, step), {}, {})
            session.save(Position(1, 3), state, meta)
            with pytest.raises(Preempted, match="'step': 3"):
                session.leave(Position(1, 3))
            assert "saving" in session.clock.lap()
        else:
            jax.tree.map(np.testing.assert_array_equal, begun, jax.device_get(state.params))
        folder.close()
    assert session.settings == step_settings(COLD)


def test_the_ranking_goes_with_the_notes_and_names_what_is_best(tmp_path: Path):
    ranking = dataclasses.replace(COLD, saving=Saving(best="accuracy/heldout", keep_best=2))
    folder = open_folder(tmp_path / "run", ranking)
    book = Logbook(ranking, folder, SilentDisplay(), Heartbeat(tmp_path / "stacks", 60, 60), Stopwatch())
    session = Session(ranking, folder, Signals(), judge(ranking, problems(ranking)), book)
    meta = {"warm_steps": 10}
    for step, value in ((2, 0.5), (4, 0.25), (6, 0.75), (8, None)):
        position = Position(1, step)
        meta = session.ranked(position, meta, {} if value is None else {"accuracy/heldout": value})
        assert session.among_best(position, meta) == (value is not None)
    # Numbers of checkpoints count the warm start too.
    assert meta == {"warm_steps": 10, "best": [{"index": 16, "value": 0.75}, {"index": 12, "value": 0.5}]}
    assert session.ranked(Position(0, 3), {}, {"accuracy/heldout": 0.5})["best"] == [{"index": 3, "value": 0.5}]
    nothing = session.ranked(Position(1, 10), meta, {"accuracy/heldout": float("nan"), "other": 1.0})
    assert nothing == meta and not session.among_best(Position(1, 10), nothing)
    folder.close()
