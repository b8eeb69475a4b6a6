"""The warm start of a run: supervised imitation until the sampled accuracy reaches the gate, then a state for GRPO."""

from typing import Any

import jax
import numpy as np

from grpo_jax.compiled import compiled
from grpo_jax.data import Demonstrations, Task
from grpo_jax.experiment import WarmStart, warm_settings
from grpo_jax.folder import FROZEN, Position
from grpo_jax.lifeline import Diverged
from grpo_jax.loop.session import Session
from grpo_jax.loop.setup import grpo_state
from grpo_jax.models import from_policy
from grpo_jax.sharding import place_rows
from grpo_jax.train import host, supervised_step
from grpo_jax.types import TrainState

BLOCK = 20
"""Warm start steps whose demonstrations are drawn at once."""


def imitate(
    session: Session, warm: WarmStart, state: TrainState, done: int, meta: dict[str, Any]
) -> tuple[TrainState, dict[str, Any]]:
    """The steps of the warm start from `done` on: the state that passed the gate, and the notes kept with it.

    Raises Diverged where the gate is not reached within the limit.
    """
    learn = compiled(
        supervised_step, mesh=session.mesh, donate=("state",), settings=warm_settings(session.experiment, warm)
    )
    taught = Lessons(session.experiment.data, int(session.seed), warm.rows)
    while not meta.get("gate_passed"):
        if done >= warm.limit:
            raise Diverged(
                f"The warm start did not reach a sampled accuracy of {warm.gate} in {done} steps: GRPO would"
                " collapse from here. Raise warm_start.limit, lower warm_start.gate, or give better demonstrations."
            )
        done += 1
        state, metrics = learn(state, *place_rows(taught.at(done - 1), session.mesh))
        position, leaving = Position(0, done), session.signals.requested
        checking = done >= warm.steps and (done - warm.steps) % warm.check_every == 0
        if checking or done % warm.log_every == 0:
            values = host(metrics)
            session.clock.mark("update")
            extra = session.evaluate(state, position, full=False, gate=warm.gate) if checking else {}
            if "gate_passed" in extra:
                meta = {**meta, "warm_steps": done, "gate_passed": True}
            session.book.write(position, values, extra)
            session.folder.checkpoints.poll()
            session.book.guard_updates(done, values, values)
        due = bool(meta.get("gate_passed")) or done % session.experiment.saving.warm_every == 0
        if due or leaving:
            session.save(position, state, meta, passing=not due)
        if leaving:
            session.leave(position)
    return state, meta


def begin(session: Session, state: TrainState) -> TrainState:
    """The state that GRPO begins with: the parameters of `state`, a new optimiser, no steps.

    A critic with a decoder of its own begins with that of the policy. What GRPO does not train is written down and left
    with the session.
    """
    state, frozen = grpo_state(session.experiment, from_policy(state.params), session.mesh)
    session.frozen = session.kept_once(FROZEN, frozen, state)
    return state


class Lessons:
    """The demonstrations of each step, drawn `BLOCK` steps at a time, which is cheaper."""

    def __init__(self, task: Task, seed: int, rows: int) -> None:
        self._task, self._seed, self._rows = task, seed, rows
        self._block: tuple[int, Demonstrations] | None = None

    def at(self, step: int) -> Demonstrations:
        """Those of warm start step `step`, counted from 0."""
        first, rows = step - step % BLOCK, self._rows
        if self._block is None or self._block[0] != first:
            draws = np.arange(first * rows, (first + BLOCK) * rows, dtype=np.int64)
            self._block = first, self._task.demonstrations(self._seed, draws)
        start = (step - first) * rows
        return jax.tree.map(lambda x: x[start : start + rows], self._block[1])
