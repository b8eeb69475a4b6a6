"""One process working on one run: what is fixed for its whole life, and what both phases of a run do with it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from grpo_jax import heldout
from grpo_jax.checkpoint import abstract, ranked
from grpo_jax.experiment import Experiment, step_settings
from grpo_jax.folder import Position, RunFolder
from grpo_jax.heldout import Judge
from grpo_jax.lifeline import Preempted, Signals
from grpo_jax.loop.logbook import Logbook
from grpo_jax.loop.setup import first_states
from grpo_jax.samples import heldout_records
from grpo_jax.types import TrainState


class Session:
    """The experiment, its folder and everything that works on them."""

    def __init__(
        self, experiment: Experiment, folder: RunFolder, signals: Signals, judge: Judge, book: Logbook
    ) -> None:
        self.experiment, self.folder, self.signals, self.judge, self.book = experiment, folder, signals, judge, book
        self.mesh, self.clock = judge.mesh, book.clock
        self.settings = step_settings(experiment)
        self.seed = np.int32(experiment.seed)

    def restore(self) -> tuple[TrainState, Position, dict[str, Any]]:
        """The state to go on from, where that is, and the notes kept with it."""
        fresh, later = first_states(self.experiment, self.mesh)
        restored = self.folder.restore(abstract(fresh), abstract(later))
        if restored is None:
            return fresh, Position(0 if self.experiment.warm_start else 1, 0), {"warm_steps": 0}
        self.book.reread()
        place = f"{restored.meta['phase']} step {restored.meta['step']}"
        self.book.display.message(f"continuing {self.folder.path} behind {place}")
        return restored.state, Position.of(restored.meta), restored.meta

    def evaluate(
        self, state: TrainState, position: Position, *, full: bool, gate: float | None = None
    ) -> dict[str, float]:
        """Held-out metrics of a state; some of its completions go to the journal of samples.

        With a `gate`, a small evaluation that reaches it is followed by the full one, whose metrics are returned.
        """
        settings = self.experiment.evaluation
        sizes: dict[str, Any] = {"prompts": settings.full_prompts, "samples": settings.samples}
        small: dict[str, Any] = {"prompts": settings.prompts, "samples": settings.small_samples}
        metrics, shown = heldout.evaluate(state.params, self.judge, **(sizes if full else small), show=settings.show)
        if gate is not None and metrics["accuracy/heldout"] >= gate:
            metrics, shown = heldout.evaluate(state.params, self.judge, **sizes, show=settings.show)
            metrics["gate_passed"] = 1.0
        for row in heldout_records(shown, position.fields()):
            self.folder.samples.write(row)
        self.clock.mark("evaluation")
        return metrics

    def ranked(self, position: Position, meta: dict[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
        """`meta` with the ranking of the best states, if `metrics` say what that at `position` is worth.

        The ranking is kept with every checkpoint, so that it goes on as if nothing had happened.
        """
        saving, value = self.experiment.saving, metrics.get(self.experiment.saving.best or "")
        if value is None:
            return meta
        how = {"value": float(value), "keep": saving.keep_best, "mode": saving.best_mode}
        return {**meta, "best": ranked(meta.get("best", []), index=position.index(meta), **how)}

    def among_best(self, position: Position, meta: Mapping[str, Any]) -> bool:
        """Whether the state at `position` is one of those that the ranking in `meta` names."""
        return any(row["index"] == position.index(meta) for row in meta.get("best", []))

    def save(self, position: Position, state: TrainState, meta: dict[str, Any], *, passing: bool = False) -> None:
        """Start to save everything up to `position`; `passing` if only because the process has to leave."""
        self.folder.save(position, state, meta, passing=passing)
        self.clock.mark("saving")

    def leave(self, position: Position) -> None:
        """End the process because the machine is wanted: raises Preempted when everything is on the disk."""
        self.folder.checkpoints.wait()
        raise Preempted(f"SIGTERM: everything up to {position.fields()} is saved; run the same command again to go on.")
