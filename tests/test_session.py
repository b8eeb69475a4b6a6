"""A session: what a run begins with and where it goes on."""

from pathlib import Path

import jax
import numpy as np
import pytest

from grpo_jax.display import SilentDisplay
from grpo_jax.experiment import step_settings
from grpo_jax.folder import Position, open_folder
from grpo_jax.lifeline import Heartbeat, Preempted, Signals
from grpo_jax.logbook import Logbook
from grpo_jax.phases import Stopwatch
from grpo_jax.session import Session
from grpo_jax.setup import judge, problems
from tests.system.small_run import VARIANTS

COLD = VARIANTS["cold"]


def test_a_session_leaves_with_everything_saved_and_the_next_one_goes_on_there(tmp_path: Path):
    for attempt in (1, 2):
        folder = open_folder(tmp_path / "run", COLD)
        book = Logbook(COLD, folder, SilentDisplay(), Heartbeat(tmp_path / "stacks", 60, 60), Stopwatch())
        session = Session(COLD, folder, Signals(), judge(COLD, problems(COLD)), book)
        state, position, meta = session.restore()
        assert position == Position(1, 0 if attempt == 1 else 3) and folder.attempt == 1
        if attempt == 1:
            begun = jax.device_get(state.params)
            session.save(Position(1, 3), state, meta)
            with pytest.raises(Preempted, match="'step': 3"):
                session.leave(Position(1, 3))
            assert set(session.clock.lap()) == {"saving"}
        else:
            jax.tree.map(np.testing.assert_array_equal, begun, jax.device_get(state.params))
        folder.close()
    assert session.settings == step_settings(COLD)
