"""The loop: warm start, evaluation, GRPO, evaluation, summary. Short enough to copy and change.

Every phase is a function of (state, draws); this file only feeds it, has written down what it returns and saves. The
order at a step is fixed, so that a killed run continues exactly: update, evaluate if due, write the journals, save if
due. A checkpoint therefore never knows more than the journals, and what the journals know beyond it is moved aside on
resume.
"""

from pathlib import Path
from typing import Any

import jax

from grpo_jax.display import choose
from grpo_jax.experiment import Experiment, Summary
from grpo_jax.folder import REFERENCE, Position, open_folder
from grpo_jax.journal import read
from grpo_jax.lifeline import Heartbeat, Signals
from grpo_jax.loop.canary import check_rewards
from grpo_jax.loop.finish import summarise
from grpo_jax.loop.imitation import begin
from grpo_jax.loop.logbook import Logbook
from grpo_jax.loop.phases import Learned, Phases, Stopwatch
from grpo_jax.loop.recorded import Tape, recorded
from grpo_jax.loop.rounds import Rounds, refuse_recording
from grpo_jax.loop.session import Session
from grpo_jax.loop.setup import chunks, judge, plan, problems, workers
from grpo_jax.loop.warm_starts import warmed
from grpo_jax.models import without_adapters, without_critic
from grpo_jax.origin import Origin
from grpo_jax.rewards.guards import FailureLimit
from grpo_jax.train import refers
from grpo_jax.types import Params, TrainState
from grpo_jax.updates import moves

STEP_LIMIT_S, COMPILE_LIMIT_S = 1800.0, 7200.0
"""Seconds without a finished step after which a run counts as hung; before the first step, compiling included."""


def run(
    experiment: Experiment,
    run_dir: str | Path | None = None,
    fresh: bool = False,
    *,
    origin: Origin | None = None,
    accept_code_change: bool = False,
    warm_starts: Path | None = None,
    rollouts: Path | None = None,
) -> Summary:
    """Train `experiment` in `run_dir` (default ``runs/NAME``), continuing what is there bit for bit.

    `fresh` moves an existing run aside first, `accept_code_change` goes on with functions whose source has changed;
    `origin` says how to make the experiment again, for `grpo-jax eval` and `sample`. `warm_starts` is a folder in which
    runs with the same warm start share it: the first leaves it there, the others take it and end in the same bits as if
    they had not. `rollouts` is a file of recorded rollouts: steps that it holds for this seed are trained on as they
    are, the others are sampled and added to it. Raises ValueError for settings that cannot be run and RunStopped, which
    carries an exit code, for trouble on the way.
    """
    refuse_recording(experiment, rollouts)
    prompts = problems(experiment)  # before anything is written: trouble with the data leaves no folder behind
    path, starting = Path(run_dir or Path("runs") / experiment.name), {"fresh": fresh, "origin": origin}
    folder = open_folder(path, experiment, **starting, accept_code_change=accept_code_change)
    display = choose(process_index=jax.process_index(), plan=plan(experiment))
    try:
        with (
            Signals() as signals,
            Heartbeat(folder.path / "stacks.txt", STEP_LIMIT_S, COMPILE_LIMIT_S) as heartbeat,
            workers(experiment) as pool,
            recorded(rollouts, experiment) as tape,
        ):
            book = Logbook(experiment, folder, display, heartbeat, Stopwatch())
            session = Session(experiment, folder, signals, judge(experiment, prompts, pool), book)
            state, position, meta = session.restore()
            if position.step == 0 and (untried := check_rewards(experiment, pool)):
                display.message(untried)
            if position.phase == 0 and experiment.warm_start:
                state, meta = warmed(session, state, position.step, meta, shelf=warm_starts)
                state, position = begin(session, state), Position(1, 0)
            state, meta = reinforce(session, tape, state, position.step, meta)
            display.close()  # the tables of the summary come below the last picture
            return summarise(experiment, folder, state, meta, begun=book.begun, frozen=session.frozen)
    finally:
        display.close()
        folder.close()


def reinforce(
    session: Session, tape: Tape, state: TrainState, done: int, meta: dict[str, Any]
) -> tuple[TrainState, dict[str, Any]]:
    """The GRPO steps from `done` on. The journal of a step is written while the next one is sampled."""
    experiment, book, clock = session.experiment, session.book, session.clock
    train, saving = experiment.train, experiment.saving
    if done == 0:
        meta = before(session, state, meta)
    limit = FailureLimit(share=experiment.scoring.failure_share)
    how = {"clock": clock, "failures": limit, "chunks": chunks(experiment), "frozen": session.frozen}
    phases = Phases(session.settings, session.judge, reference(session, state, done), **how)
    rows = Rounds(experiment, phases, tape, state, clock=clock, mesh=session.mesh)
    waiting: tuple[int, Learned] | None = None
    for step in range(done + 1, train.steps + 1):
        if waiting is None:
            clock.mark("rest")
        rows.begin(step, state)
        if waiting is not None:
            book.step(*waiting, {})
        state, learned = rows.learn(state, rows.finish(step, state))
        waiting = (step, learned)
        leaving = session.signals.requested
        last = step == train.steps
        evaluating = last or step % experiment.evaluation.every == 0
        if evaluating or leaving or step % saving.every == 0:
            jax.block_until_ready(learned.metrics)
            clock.mark("update")
            extra = session.evaluate(state, Position(1, step), full=last) if evaluating else {}
            book.step(*waiting, extra)
            waiting = None
            meta = session.ranked(Position(1, step), meta, extra)
        due = last or step % saving.every == 0 or session.among_best(Position(1, step), meta)
        if due or leaving:
            tape.sync()
            session.save(Position(1, step), state, meta, passing=not due)
        if leaving and not last:
            session.leave(Position(1, step))
        session.folder.checkpoints.poll()
    return state, meta


def before(session: Session, state: TrainState, meta: dict[str, Any]) -> dict[str, Any]:
    """What GRPO begins with is evaluated, unless the warm start ended with that; `meta` with what it is worth."""
    if session.experiment.warm_start:
        return session.ranked(Position(0, meta["warm_steps"]), meta, read(session.folder.path / "metrics.jsonl")[-1])
    first = Position(1, 0)
    if "best" not in meta:  # else the state was restored, with its evaluation
        metrics = session.evaluate(state, first, full=True)
        session.book.write(first, {}, metrics)
        meta = session.ranked(first, meta, metrics)
        if session.among_best(first, meta):
            session.save(first, state, meta)
    return meta


def reference(session: Session, state: TrainState, done: int) -> Params | None:
    """The reference policy, if the recipe has one that stays: what GRPO began with, kept beside the run.

    It has the frozen parameters of the policy, and only the others are kept: where adapters alone are trained there are
    none, because it is the policy without adapters.
    """
    if not refers(session.experiment.recipe) or moves(session.experiment.train.reference):
        return None
    own = without_adapters(without_critic(state.params))
    kept = session.kept_once(REFERENCE, own, None if done else state)
    return jax.tree.map(lambda x: x.copy(), kept) if kept is own else kept  # a step uses up what it trains
