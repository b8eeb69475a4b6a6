"""One process working on one run: what is fixed for its whole life, and what both phases of a run do with it."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from grpo_jax import heldout
from grpo_jax.checkpoint import abstract, ranked
from grpo_jax.experiment import Experiment, step_settings
from grpo_jax.folder import FROZEN, REFERENCE, Position, RunFolder
from grpo_jax.heldout import Judge
from grpo_jax.lifeline import Preempted, Signals
from grpo_jax.loop.logbook import Logbook
from grpo_jax.loop.setup import first_states
from grpo_jax.models import join
from grpo_jax.samples import heldout_records
from grpo_jax.types import Params, TrainState


class Session:
    """The experiment, its folder and everything that works on them."""

    def __init__(
        self, experiment: Experiment, folder: RunFolder, signals: Signals, judge: Judge, book: Logbook
    ) -> None:
        self.experiment, self.folder, self.signals, self.judge, self.book = experiment, folder, signals, judge, book
        self.mesh, self.clock = judge.mesh, book.clock
        self.settings = step_settings(experiment)
        self.seed = np.int32(experiment.seed)
        self.frozen: Params | None = None  # what GRPO leaves as it is, once it has begun

    def restore(self) -> tuple[TrainState, Position, dict[str, Any]]:
        """The state to go on from, where that is, and the notes kept with it."""
        first, warm = first_states(self.experiment, self.mesh), self.experiment.warm_start
        restored = self.folder.restore(abstract(first.state), abstract(first.grpo))
        if not warm:
            self.frozen = first.frozen  # made again, so it is not written down
        if restored is None:
            return first.state, Position(0 if warm else 1, 0), {"warm_steps": 0}
        if warm and Position.of(restored.meta).phase:
            self.frozen = self.kept_once(FROZEN, first.frozen)
        self.book.reread()
        place = f"{restored.meta['phase']} step {restored.meta['step']}"
        self.book.display.message(f"continuing {self.folder.path} behind {place}")
        return restored.state, Position.of(restored.meta), restored.meta

    def kept_once(self, name: str, params: Params | None, state: TrainState | None = None) -> Params | None:
        """What the run keeps by `name` (see `folder.BESIDE`), laid out as `params`.

        Where that is not there yet, `params` are written down, as of a run at `state`; without one the run is behind
        that, and a ValueError says what is missing. What was written down is `params` itself, not a copy.
        """
        if not jax.tree.leaves(params):
            return params
        with self.folder.beside(name) as kept:
            found = kept.restore_params(abstract(params))
            if found is not None:
                return found
            if state is None:
                what = {REFERENCE: "reference policy", FROZEN: "frozen part"}[name]
                raise ValueError(
                    f"{self.folder.path}: the {what} of this run is missing; restore its folder {name!r}, or start anew"
                    " with --fresh"
                )
            kept.save(0, state.replace(params=params, opt_state=(), memory={}), {})
            return params

    def evaluate(
        self, state: TrainState, position: Position, *, full: bool, gate: float | None = None
    ) -> dict[str, float]:
        """Held-out metrics of a state; some of its completions go to the journal of samples.

        With a `gate`, a small evaluation that reaches it is followed by the full one, whose metrics are returned.
        """
        settings = self.experiment.evaluation
        sizes: dict[str, Any] = {"prompts": settings.full_prompts, "samples": settings.samples}
        small: dict[str, Any] = {"prompts": settings.prompts, "samples": settings.small_samples}
        policy = join(state.params, self.frozen)
        metrics, shown = heldout.evaluate(policy, self.judge, **(sizes if full else small), show=settings.show)
        if gate is not None and metrics["accuracy/heldout"] >= gate:
            metrics, shown = heldout.evaluate(policy, self.judge, **sizes, show=settings.show)
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
