"""The loop: warm start, evaluation, GRPO, evaluation, summary. Short enough to copy and change.

Every step is a pure function of (state, draws); this file only feeds it, writes down what it returns and saves. The
order at a step is fixed, so that a killed run continues exactly: update, evaluate if due, write the journals, save if
due. A checkpoint therefore never knows more than the journals, and what the journals know beyond it is moved aside on
resume.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from grpo_jax import STARTED, heldout, objectives
from grpo_jax.alerts import Alerts
from grpo_jax.checkpoint import abstract
from grpo_jax.compiled import compiled
from grpo_jax.data import Demonstrations, assert_disjoint, records
from grpo_jax.display import Display, Plan, choose
from grpo_jax.experiment import Experiment, Summary, WarmStart, settings, step_settings, warm_settings
from grpo_jax.finish import summarise
from grpo_jax.folder import Position, RunFolder, open_folder
from grpo_jax.heldout import Judge
from grpo_jax.journal import read
from grpo_jax.lifeline import Diverged, Exit, Guard, Heartbeat, Preempted, RunStopped, Signals, write_dump
from grpo_jax.objectives import functions
from grpo_jax.origin import Origin
from grpo_jax.questions import further_sets
from grpo_jax.rewards.guards import FailureLimit
from grpo_jax.rewards.pool import Pool
from grpo_jax.rewards.text import Scores, status_counts
from grpo_jax.samples import heldout_records, rollout_records
from grpo_jax.sharding import make_mesh, place_rows
from grpo_jax.train import (
    Stream,
    grpo_step,
    host,
    init_state,
    learn_rows,
    place_state,
    sample_rows,
    start,
    stream,
    supervised_step,
)
from grpo_jax.types import Batch, Metrics, Params, Prompts, Reward, TrainState

CHECKED = 1 << 17
"""Draws that are compared with the held-out problems one by one; for later ones their class says that they differ."""
BLOCK = 20
"""Warm start steps whose demonstrations are drawn at once."""
Stepped = tuple[TrainState, Metrics, Batch, Scores | None]
Learner = Callable[[TrainState, Prompts], Stepped]
STEP_LIMIT_S, COMPILE_LIMIT_S = 1800.0, 7200.0
"""Seconds without a finished step after which a run counts as hung; before the first step, compiling included."""


def run(
    experiment: Experiment, run_dir: str | Path | None = None, fresh: bool = False, *, origin: Origin | None = None
) -> Summary:
    """Train `experiment` in `run_dir` (default ``runs/NAME``), continuing what is there bit for bit.

    `fresh` moves an existing run aside first; `origin` says how to make the experiment again, for `grpo-jax eval` and
    `sample`. Raises ValueError for settings that cannot be run and RunStopped, which
    carries an exit code, for trouble on the way.
    """
    prompts = problems(experiment)  # before anything is written: trouble with the data leaves no folder behind
    folder = open_folder(Path(run_dir or Path("runs") / experiment.name), experiment, fresh=fresh, origin=origin)
    display = choose(process_index=jax.process_index(), plan=plan(experiment))
    try:
        with (
            Signals() as signals,
            Heartbeat(folder.path / "stacks.txt", STEP_LIMIT_S, COMPILE_LIMIT_S) as heartbeat,
            workers(experiment) as pool,
        ):
            session = Session(experiment, folder, signals, heartbeat, judge(experiment, prompts, pool), display)
            state, position, meta = session.restore()
            if position.phase == 0 and experiment.warm_start:
                state, meta = session.warm_start(experiment.warm_start, state, position.step, meta)
                position = Position(1, 0)
            state, meta = session.reinforce(state, position.step, meta)
            display.close()  # the tables of the summary come below the last picture
            return summarise(experiment, folder, state, meta)
    finally:
        display.close()
        folder.close()


def plan(experiment: Experiment) -> Plan:
    """What the display is told of the run beforehand."""
    warm, train = experiment.warm_start, experiment.train
    steps = {"warm_start": warm.limit if warm else 0, "grpo": train.steps}
    return Plan(experiment.name, steps, rows=train.prompts * train.group_size)


def workers(experiment: Experiment) -> AbstractContextManager[Pool | None]:
    """The processes that score text, if a reward is the user's own; None where all are the library's."""
    scoring, rewards = experiment.scoring, experiment.text_rewards
    own = [
        f for reward, _ in rewards.values() for f, _ in functions(reward) if not f.__module__.startswith("grpo_jax.")
    ]
    if not own:
        return nullcontext()
    return Pool(rewards, workers=scoring.workers, timeout_s=scoring.timeout_s, memory_mb=scoring.memory_mb)


def judge(experiment: Experiment, prompts: Prompts, pool: Pool | None = None) -> Judge:
    """What evaluates the policies of `experiment` on the held-out `prompts`."""
    return Judge(
        task=experiment.data,
        model=experiment.model,
        sampling=experiment.sampling,
        text_rewards=experiment.text_rewards,
        reward=experiment.reward,
        seed=experiment.seed,
        prompts=prompts,
        mesh=None if experiment.mesh is None else make_mesh(experiment.mesh),
        pool=pool,
        further=further_sets(experiment.heldout, count=experiment.evaluation.full_prompts),
        category=experiment.evaluation.category,
        ks=experiment.evaluation.ks,
    )


def problems(experiment: Experiment) -> Prompts:
    """The held-out problems. Raises ValueError where the data cannot give all that the run will ask of it."""
    warm, train = experiment.warm_start, experiment.train
    prompts = experiment.data.heldout(experiment.evaluation.full_prompts)
    if warm:
        experiment.data.demonstrations(experiment.seed, np.arange(warm.rows))
    draws = min(max(train.steps * train.prompts, warm.limit * warm.rows if warm else 0), CHECKED)
    judging = judge(experiment, prompts)
    heldout.check(judging, experiment)
    further = {name: given for name, (_, given) in judging.further.items()}
    assert_disjoint(experiment.data, prompts, seed=experiment.seed, draws=draws, further=further)
    return prompts


class Session:
    """One process working on one run: what is fixed for its whole life, and the two phases."""

    def __init__(
        self,
        experiment: Experiment,
        folder: RunFolder,
        signals: Signals,
        heartbeat: Heartbeat,
        judge: Judge,
        display: Display,
    ) -> None:
        self.experiment, self.folder, self.signals, self.heartbeat = experiment, folder, signals, heartbeat
        self.display, self.alerts = display, Alerts(settings(experiment))
        self.judge, self.mesh = judge, judge.mesh
        self.step = step_settings(experiment)
        self.seed = np.int32(experiment.seed)
        self.guard = Guard(experiment.train.skip_limit)
        self.failures = FailureLimit(share=experiment.scoring.failure_share)
        self.clock = (STARTED, 0.0)  # wall and CPU seconds at the last line of the journals
        self._block: tuple[int, Demonstrations] | None = None

    # Beginning

    def restore(self) -> tuple[TrainState, Position, dict[str, Any]]:
        """The state to go on from, where that is, and the notes kept with it."""
        warm = self.experiment.warm_start
        first = warm_settings(self.experiment, warm) if warm else self.step.gradient
        fresh = place_state(init_state(int(self.seed), first), self.experiment.model, self.mesh)
        restored = self.folder.restore(abstract(fresh))
        if restored is None:
            return fresh, Position(0 if warm else 1, 0), {"warm_steps": 0}
        for row in read(self.folder.path / "metrics.jsonl"):  # what was said before is not said again
            self.alerts.see(row)
        place = f"{restored.meta['phase']} step {restored.meta['step']}"
        self.display.message(f"continuing {self.folder.path} behind {place}")
        return restored.state, Position.of(restored.meta), restored.meta

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
                    f"The warm start did not reach a sampled accuracy of {warm.gate} in {done} steps: GRPO would"
                    " collapse from here. Raise warm_start.limit, lower warm_start.gate, or give better demonstrations."
                )
            done += 1
            state, metrics = learn(state, *place_rows(self.demonstrations(warm.rows, done - 1), self.mesh))
            position, leaving = Position(0, done), self.signals.requested
            checking = done >= warm.steps and (done - warm.steps) % warm.check_every == 0
            if checking or done % warm.log_every == 0:
                extra = self.evaluate(state, position, full=False, gate=warm.gate) if checking else {}
                if "gate_passed" in extra:
                    meta = {**meta, "warm_steps": done, "gate_passed": True}
                self.write(position, host(metrics), extra)
                self.folder.checkpoints.poll()
                self.guard.check(
                    int(metrics["skipped/consecutive"]), step=done, dump=partial(self._dump, done, metrics)
                )
            if meta.get("gate_passed") or leaving or done % self.experiment.saving.warm_every == 0:
                self.folder.save(position, state, meta)
            if leaving:
                self._leave(position)
        return place_state(start(state.params, self.step.gradient), self.experiment.model, self.mesh), meta

    def demonstrations(self, rows: int, step: int) -> Demonstrations:
        """Those of warm start step `step`, counted from 0. They are drawn `BLOCK` steps at a time, which is cheaper."""
        first = step - step % BLOCK
        if self._block is None or self._block[0] != first:
            draws = np.arange(first * rows, (first + BLOCK) * rows, dtype=np.int64)
            self._block = first, self.experiment.data.demonstrations(self.experiment.seed, draws)
        begin = (step - first) * rows
        return jax.tree.map(lambda x: x[begin : begin + rows], self._block[1])

    # GRPO

    def reinforce(self, state: TrainState, done: int, meta: dict[str, Any]) -> tuple[TrainState, dict[str, Any]]:
        """The GRPO steps from `done` on. The journal of a step is written while the next one computes."""
        train, saving = self.experiment.train, self.experiment.saving
        if done == 0 and not self.experiment.warm_start:
            self.write(Position(1, 0), {}, self.evaluate(state, Position(1, 0), full=True))
        learn = self.learner(self.reference(state, done))
        waiting: tuple[int, Metrics, Batch, Scores | None] | None = None
        for step in range(done + 1, train.steps + 1):
            draws = np.arange((step - 1) * train.prompts, step * train.prompts, dtype=np.int64)
            prompts = self.experiment.data.draw(self.experiment.seed, draws)
            state, metrics, batch, scores = learn(state, prompts)
            if waiting is not None:
                self.record(*waiting, {})
            waiting = (step, metrics, batch, scores)
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
        """The reference policy, if the recipe has a KL term: what GRPO began with, kept beside the run."""
        if "logp_ref" not in objectives.wants(self.experiment.recipe):
            return None
        with self.folder.reference() as kept:
            params = kept.restore_params(abstract(state.params))
            if params is None and done:
                raise ValueError(
                    f"{self.folder.path}: the reference policy of this run is missing; restore its folder 'reference',"
                    " or start anew with --fresh"
                )
            if params is None:
                kept.save(0, state, {})
                params = jax.tree.map(lambda x: x.copy(), state.params)
        return params

    def learner(self, reference: Params | None) -> Learner:
        """One step as one compiled function, or as two around a text reward."""
        mesh, settings = self.mesh, self.step
        if settings.reward is not None:
            whole = compiled(grpo_step, mesh=mesh, donate=("state",), settings=settings)

            def fused(state: TrainState, prompts: Prompts) -> Stepped:
                return *whole(state, place_rows(prompts, mesh), self.seed, reference=reference), None

            return fused
        sample = compiled(sample_rows, mesh=mesh, settings=settings)
        learn = compiled(learn_rows, mesh=mesh, donate=("state",), settings=settings)
        keys = [stream(int(self.seed), name) for name in (Stream.ROLLOUT, Stream.UPDATE)]

        def two_halves(state: TrainState, prompts: Prompts) -> Stepped:
            rollouts = sample(state.params, place_rows(prompts, mesh), keys[0], state.step)
            rows = records(self.experiment.data, host(rollouts))
            reward, scores = self.judge.score(rows)
            _check_scored(reward, scores)
            self.failures.check(rows, scores)
            return *learn(state, rollouts, place_rows(reward, mesh), keys[1], reference=reference), scores

        return two_halves

    # What every step leaves behind

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
        return metrics

    def record(self, step: int, metrics: Metrics, batch: Batch, scores: Scores | None, extra: dict[str, float]) -> None:
        """Write down one GRPO step, and stop the run where its numbers say so."""
        position = Position(1, step)
        values, rows = host((metrics, batch))
        written = list(rollout_records(rows, self.experiment.data, position.fields(), scores))
        for row in written:
            self.folder.samples.write(row)
        self.display.completions(written)
        if scores is not None:
            extra = {**extra, **{f"status/{name}": count for name, count in status_counts(scores).items()}}
        self.write(position, values, extra)
        self.guard.check(int(values["skipped/consecutive"]), step=step, dump=partial(self._dump, step, rows))
        gap, limit = float(values["logp_gap/max"]), self.experiment.train.gap_limit
        if not gap <= limit and not int(values["skipped"]):
            raise Diverged(
                f"Step {step}: sampler and trainer disagree by {gap:.3g} nats on a token, allowed are {limit:.3g}."
                " Their parameters, temperature or positions differ; with bfloat16 compute raise train.gap_limit to a"
                " few tenths."
            )

    def write(self, position: Position, metrics: Metrics | dict, extra: dict[str, float]) -> None:
        """One line of metrics, one of times, one for the reader; the watchdog sees a finished step."""
        values = {name: float(value) for name, value in metrics.items()} | extra
        self.folder.metrics.write({**position.fields(), **values})
        now = (time.monotonic(), time.process_time())
        (seconds, cpu), self.clock = (now[0] - self.clock[0], now[1] - self.clock[1]), now
        timing = {"attempt": self.folder.attempt, "seconds": seconds, "cpu_seconds": cpu}
        self.folder.timing.write({**position.fields(), **timing})
        self.heartbeat.beat()
        self.display.step(position.fields(), values, seconds={"step": seconds})
        for sentence in self.alerts.see({**position.fields(), **values}):
            self.display.alert(sentence)

    def _dump(self, step: int, batch: Batch | Metrics) -> Path:
        paths, _ = jax.tree.flatten_with_path(batch)
        arrays = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths}
        info = {"step": step, "seed": int(self.seed), "settings": objectives.describe(self.step)}
        return write_dump(self.folder.path / f"dump-{step}", arrays, info)

    def _leave(self, position: Position) -> None:
        self.folder.checkpoints.wait()
        raise Preempted(f"SIGTERM: everything up to {position.fields()} is saved; run the same command again to go on.")


def _check_scored(reward: Reward, scores: Scores) -> None:
    """Stop a run whose rewards failed on every row: there is nothing to learn from, and the cause is not the policy."""
    if not np.asarray(reward.valid).any():
        failed = ((name, s) for name, row in scores.items() for s in row[:1] if s.status in ("error", "timeout"))
        name, first = next(failed)
        raise RunStopped(
            Exit.DATA,
            f"The text reward {name!r} failed on every row, on the first with {first.status}: {first.detail}. Correct"
            " the reward, its settings or the data.",
        )
