"""The loop: warm start, evaluation, GRPO, evaluation, summary. Short enough to copy and change.

Every step is a pure function of (state, draws); this file only feeds it, writes down what it returns and saves. The order
at a step is fixed, so that a killed run continues exactly: update, evaluate if due, write the journals, save if due. A
checkpoint therefore never knows more than the journals, and what the journals know beyond it is moved aside on resume.
"""

import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from grpo_jax import heldout, objectives
from grpo_jax.checkpoint import abstract
from grpo_jax.compiled import compiled
from grpo_jax.data import records
from grpo_jax.experiment import Experiment, Summary, WarmStart, step_settings, warm_settings
from grpo_jax.finish import summarise
from grpo_jax.folder import Position, RunFolder, open_folder
from grpo_jax.heldout import Judge
from grpo_jax.lifeline import Diverged, Guard, Heartbeat, Preempted, Signals, write_dump
from grpo_jax.models import axes
from grpo_jax.rewards.text import score
from grpo_jax.samples import heldout_records, rollout_records
from grpo_jax.sharding import make_mesh, place, place_rows, replicate
from grpo_jax.train import Stream, grpo_step, host, init_state, learn_rows, sample_rows, start, stream, supervised_step
from grpo_jax.types import Batch, Metrics, Params, Prompts, TrainState

STEP_LIMIT_S, COMPILE_LIMIT_S = 1800.0, 7200.0
"""Seconds without a finished step after which a run counts as hung; before the first step, compiling included."""


def run(experiment: Experiment, run_dir: str | Path | None = None, fresh: bool = False) -> Summary:
    """Train `experiment` in `run_dir` (default ``runs/NAME``), continuing what is there bit for bit.

    `fresh` moves an existing run aside first. Raises ValueError for settings that cannot be run and RunStopped, which
    carries an exit code, for trouble on the way.
    """
    folder = open_folder(Path(run_dir or Path("runs") / experiment.name), experiment, fresh=fresh)
    try:
        with Signals() as signals, Heartbeat(folder.path / "stacks.txt", STEP_LIMIT_S, COMPILE_LIMIT_S) as heartbeat:
            session = Session(experiment, folder, signals, heartbeat)
            state, position, meta = session.restore()
            if position.phase == 0 and experiment.warm_start:
                state, meta = session.warm_start(experiment.warm_start, state, position.step, meta)
                position = Position(1, 0)
            state, meta = session.reinforce(state, position.step, meta)
            return summarise(experiment, folder, state, meta)
    finally:
        folder.close()


class Session:
    """One process working on one run: what is fixed for its whole life, and the two phases."""

    def __init__(self, experiment: Experiment, folder: RunFolder, signals: Signals, heartbeat: Heartbeat) -> None:
        self.experiment, self.folder, self.signals, self.heartbeat = experiment, folder, signals, heartbeat
        self.mesh: Mesh | None = None if experiment.mesh is None else make_mesh(experiment.mesh)
        self.step = step_settings(experiment)
        self.seed = np.int32(experiment.seed)
        self.guard = Guard(experiment.train.skip_limit)
        self.judge = Judge(
            task=experiment.task,
            model=experiment.model,
            sampling=experiment.sampling,
            text_rewards={name: (reward, weight) for name, reward, weight in experiment.text_rewards},
            reward=experiment.reward,
            seed=experiment.seed,
            prompts=experiment.task.heldout(experiment.evaluation.full_prompts),
            mesh=self.mesh,
        )
        self.clock = time.monotonic()

    # Beginning

    def restore(self) -> tuple[TrainState, Position, dict[str, Any]]:
        """The state to go on from, where that is, and the notes kept with it."""
        warm = self.experiment.warm_start
        fresh = self.laid_out(
            init_state(self.seed, warm_settings(self.experiment, warm) if warm else self.step.gradient)
        )
        restored = self.folder.restore(abstract(fresh))
        if restored is None:
            return fresh, Position(0 if warm else 1, 0), {"warm_steps": 0}
        print(f"continuing {self.folder.path} behind {restored.meta['phase']} step {restored.meta['step']}", flush=True)
        return restored.state, Position.of(restored.meta), restored.meta

    def laid_out(self, state: TrainState) -> TrainState:
        """`state` on the mesh: parameters and what the optimiser keeps of them by their rules, the rest everywhere."""
        if self.mesh is None:
            return state
        names = axes(self.experiment.model)
        shape = jax.tree.structure(state.params)

        def lay(part: object) -> object:
            return place(part, self.mesh, names) if jax.tree.structure(part) == shape else replicate(part, self.mesh)

        opt_state = jax.tree.map(lay, state.opt_state, is_leaf=lambda x: jax.tree.structure(x) == shape)
        rest = replicate(state.replace(params={}, opt_state=()), self.mesh)
        return rest.replace(params=lay(state.params), opt_state=opt_state)

    # Warm start

    def warm_start(
        self, warm: WarmStart, state: TrainState, done: int, meta: dict[str, Any]
    ) -> tuple[TrainState, dict[str, Any]]:
        """Imitation until the sampled accuracy reaches the gate; then a state for GRPO."""
        settings = warm_settings(self.experiment, warm)
        learn = compiled(supervised_step, mesh=self.mesh, donate=("state",), settings=settings)
        while not meta.get("gate_passed"):
            if done >= warm.limit:
                raise Diverged(
                    f"The warm start did not reach a sampled accuracy of {warm.gate} in {done} steps: GRPO would collapse from"
                    " here. Raise warm_start.limit, lower warm_start.gate, or give better demonstrations."
                )
            done += 1
            draws = np.arange((done - 1) * warm.rows, done * warm.rows, dtype=np.int64)
            state, metrics = learn(
                state, *place_rows(self.experiment.task.demonstrations(self.experiment.seed, draws), self.mesh)
            )
            position, leaving = Position(0, done), self.signals.requested
            checking = done >= warm.steps and (done - warm.steps) % warm.check_every == 0
            if checking or done % warm.log_every == 0:
                extra = self.evaluate(state, position, full=False, gate=warm.gate) if checking else {}
                if "gate_passed" in extra:
                    meta = {**meta, "warm_steps": done, "gate_passed": True}
                self.write(position, host(metrics), extra)
                self.guard.check(int(metrics["skipped/consecutive"]), step=done, dump=lambda: self._dump(done, metrics))
            if meta.get("gate_passed") or leaving or done % self.experiment.saving.warm_every == 0:
                self.folder.save(position, state, meta)
            if leaving:
                self._leave(position)
        return start(state.params, self.step.gradient), meta

    # GRPO

    def reinforce(self, state: TrainState, done: int, meta: dict[str, Any]) -> tuple[TrainState, dict[str, Any]]:
        """The GRPO steps from `done` on. The journal of a step is written while the next one computes."""
        train, saving = self.experiment.train, self.experiment.saving
        if done == 0 and not self.experiment.warm_start:
            self.write(Position(1, 0), {}, self.evaluate(state, Position(1, 0), full=True))
        learn = self.learner(self.reference(state, done))
        waiting: tuple[int, Metrics, Batch] | None = None
        for step in range(done + 1, train.steps + 1):
            draws = np.arange((step - 1) * train.prompts, step * train.prompts, dtype=np.int64)
            prompts = self.experiment.task.draw(self.experiment.seed, draws)
            state, metrics, batch = learn(state, prompts)
            if waiting is not None:
                self.record(*waiting, {})
            waiting = (step, metrics, batch)
            leaving = self.signals.requested
            last = step == train.steps
            evaluating = last or step % self.experiment.evaluation.every == 0
            if evaluating or leaving or step % saving.every == 0:
                extra = self.evaluate(state, Position(1, step), full=last) if evaluating else {}
                self.record(*waiting, extra)
                waiting = None
            if last or leaving or step % saving.every == 0:
                self.folder.save(Position(1, step), state, meta)
            if leaving and not last:
                self._leave(Position(1, step))
            self.folder.checkpoints.poll()
        return state, meta

    def reference(self, state: TrainState, done: int) -> Params | None:
        """The reference policy, if the recipe has a KL term: the parameters that GRPO began with, kept beside the run."""
        if "logp_ref" not in objectives.wants(self.experiment.recipe):
            return None
        with self.folder.reference() as kept:
            params = kept.restore_params(abstract(state.params))
            if params is None and done:
                raise ValueError(
                    f"{self.folder.path}: the reference policy of this run is missing; restore its folder 'reference', or start"
                    " anew with --fresh"
                )
            if params is None:
                kept.save(0, state, {})
                params = jax.tree.map(lambda x: x.copy(), state.params)
        return params

    def learner(self, reference: Params | None) -> Any:
        """``(state, prompts) -> (state, metrics, batch)``: one compiled function, or two around a text reward."""
        bound = {"settings": self.step}
        if self.step.reward is not None:
            whole = compiled(grpo_step, mesh=self.mesh, donate=("state",), **bound)
            return lambda state, prompts: whole(state, place_rows(prompts, self.mesh), self.seed, reference=reference)
        sample = compiled(sample_rows, mesh=self.mesh, **bound)
        learn = compiled(learn_rows, mesh=self.mesh, donate=("state",), **bound)

        def two_halves(state: TrainState, prompts: Prompts) -> tuple[TrainState, Metrics, Batch]:
            key = stream(self.seed, Stream.ROLLOUT)
            rollouts = sample(state.params, place_rows(prompts, self.mesh), key, state.step)
            rows = records(self.experiment.task, host(rollouts))
            reward, _ = score(rows, self.judge.text_rewards)
            key = stream(self.seed, Stream.UPDATE)
            return learn(state, rollouts, place_rows(reward, self.mesh), key, reference=reference)

        return two_halves

    # What every step leaves behind

    def evaluate(self, state: TrainState, position: Position, *, full: bool, gate: float | None = None) -> dict[str, float]:
        """Held-out metrics of a state; some of its completions go to the journal of samples.

        With a `gate`, a small evaluation that reaches it is followed by the full one, whose metrics are returned.
        """
        settings = self.experiment.evaluation
        sizes = {"prompts": settings.full_prompts, "samples": settings.samples}
        small = {"prompts": settings.prompts, "samples": 1}
        metrics, shown = heldout.evaluate(state.params, self.judge, **(sizes if full else small), show=settings.show)
        if gate is not None and metrics["accuracy/heldout"] >= gate:
            metrics, shown = heldout.evaluate(state.params, self.judge, **sizes, show=settings.show)
            metrics["gate_passed"] = 1.0
        for row in heldout_records(shown, position.fields()):
            self.folder.samples.write(row)
        return metrics

    def record(self, step: int, metrics: Metrics, batch: Batch, extra: dict[str, float]) -> None:
        """Write down one GRPO step, and stop the run where its numbers say so."""
        position = Position(1, step)
        values, rows = host((metrics, batch))
        for row in rollout_records(rows, self.experiment.task, position.fields()):
            self.folder.samples.write(row)
        self.write(position, values, extra)
        self.guard.check(int(values["skipped/consecutive"]), step=step, dump=lambda: self._dump(step, rows))
        gap = float(values["logp_gap/max"])
        if gap > self.experiment.train.gap_limit:
            raise Diverged(
                f"Step {step}: sampler and trainer disagree by {gap:.3g} nats on a token, allowed are"
                f" {self.experiment.train.gap_limit:.3g}. Their parameters, temperature or positions differ; with bfloat16 compute"
                " raise train.gap_limit to a few tenths."
            )

    def write(self, position: Position, metrics: Metrics | dict, extra: dict[str, float]) -> None:
        """One line of metrics, one of times, one for the reader; the watchdog sees a finished step."""
        values = {name: float(value) for name, value in metrics.items()} | extra
        self.folder.metrics.write({**position.fields(), **values})
        now = time.monotonic()
        self.folder.timing.write({**position.fields(), "attempt": self.folder.attempt, "seconds": now - self.clock})
        self.clock = now
        self.heartbeat.beat()
        shown = (
            "loss",
            "reward/mean",
            "length/mean",
            "entropy",
            "accuracy/heldout",
            "greedy/heldout",
            "format/heldout",
        )
        words = "  ".join(f"{name} {values[name]:.3f}" for name in shown if name in values)
        print(f"{position.fields()['phase']} {position.step:>5}  {words}", flush=True)

    def _dump(self, step: int, batch: Batch | Metrics) -> Path:
        paths, _ = jax.tree.flatten_with_path(batch)
        arrays = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths}
        info = {"step": step, "seed": int(self.seed), "settings": objectives.describe(self.step)}
        return write_dump(self.folder.path / f"dump-{step}", arrays, info)

    def _leave(self, position: Position) -> None:
        self.folder.checkpoints.wait()
        raise Preempted(f"SIGTERM: everything up to {position.fields()} is saved; run the same command again to go on.")
