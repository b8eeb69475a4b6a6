"""Warm starts shared between runs: a finished one is left in a folder, and a run that would do the same takes it.

An entry is named after everything that decides it, parameters and journal lines alike, and holds the state, the lines,
and what it took. It appears complete or not at all; what does not prove to be what was left is put aside. So a run that
takes one ends in the same bits and the same `metrics.jsonl` and `samples.jsonl` as one that does it all itself.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax

from grpo_jax import objectives
from grpo_jax.checkpoint import CheckpointError, Checkpoints, abstract
from grpo_jax.checkpoint.digests import sha256
from grpo_jax.experiment import Experiment, data_digest, settings
from grpo_jax.folder import Position, begins_with, versions
from grpo_jax.journal import read, sole_writer
from grpo_jax.lifeline import RunStopped, say
from grpo_jax.loop.imitation import imitate
from grpo_jax.loop.session import Session
from grpo_jax.loop.setup import first_states
from grpo_jax.types import TrainState

JOURNALS = ("metrics.jsonl", "samples.jsonl")
LATER = ("name", "recipe", "optimizer", "train", "saving", "scoring")
"""Groups of settings that only GRPO and the keeping of files read."""
BUT = ("train.chunk", "train.skip_limit", "scoring.timeout_s", "scoring.memory_mb")
"""Settings in these groups that the warm start or its evaluations read all the same."""
OF_GRPO = ("evaluation.every", "model.lora")
"""Settings in other groups that they do not read."""

Warmed = tuple[TrainState, dict[str, Any]]


def warmed(session: Session, state: TrainState, done: int, meta: dict[str, Any], *, shelf: Path | None) -> Warmed:
    """The end of the warm start: taken from `shelf` by a run at its very beginning, else done from step `done` on.

    One that was done is left on the `shelf`. Raises what `imitate` raises.
    """
    warm, entry = session.experiment.warm_start, None if shelf is None else Entry.of(shelf, session.experiment)
    if warm is None:
        raise ValueError("warm_start: got None, allowed is a WarmStart: give the experiment one, or begin with GRPO")
    taken = None if entry is None or done else _take(entry, session)
    if taken is not None:
        return taken
    state, meta = imitate(session, warm, state, done, meta)
    if entry is not None and not entry.path.exists():
        _leave(entry, session, state, meta)
    return state, meta


def deciding(experiment: Experiment) -> dict[str, str]:
    """All that the parameters of a warm start and the lines that it writes depend on, by name."""
    chosen = {
        name: value
        for name, value in settings(experiment).items()
        if name in BUT or (name.partition(".")[0] not in LATER and not name.startswith(OF_GRPO))
    }
    reading = {name: value for name, value in vars(experiment).items() if name not in LATER}
    reading["model"] = experiment.model.without_lora
    return {
        "settings": json.dumps(chosen, sort_keys=True),
        "data_digest": data_digest(experiment),
        **begins_with(experiment),
        "source_digest": objectives.source_digest(reading),
        "versions": json.dumps(versions(), sort_keys=True),
        # Another processor, or another number of its cores, adds numbers in another order.
        "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}, {os.cpu_count()} cores",
    }


class Entry(NamedTuple):
    """A warm start on the shelf, or its place there."""

    path: Path
    identity: dict[str, str]

    @classmethod
    def of(cls, shelf: Path, experiment: Experiment) -> "Entry":
        """The place of the warm start of `experiment`."""
        identity = deciding(experiment)
        return cls(Path(shelf).absolute() / sha256(identity)[:32], identity)

    def checkpoints(self, path: Path | None = None) -> Checkpoints:
        """Its state, in its own place or, while it is made, in another."""
        return Checkpoints((path or self.path) / "checkpoints", identity=self.identity, keep_last=1)


def _take(entry: Entry, session: Session) -> Warmed | None:
    """The warm start of `entry`, its lines in the journals of the run and its state saved there; None if none is good.

    Killed in between, the run has lines and no checkpoint, so it drops them and begins again.
    """
    if not entry.path.exists():
        return None
    try:
        kept = entry.checkpoints()
        try:
            restored = kept.restore(abstract(first_states(session.experiment, session.mesh).state))
        finally:
            kept.close()
        lines = {name: (entry.path / name).read_bytes() for name in JOURNALS}
        damage = "" if restored is not None else "it has no state"
    except (OSError, CheckpointError) as error:
        restored, lines, damage = None, {}, str(error)
    if restored is None or {name: _digest(data) for name, data in lines.items()} != restored.meta["lines"]:
        _put_aside(entry.path, damage or "its lines are not those that were left")
        return None
    folder, position = session.folder, Position.of(restored.meta)
    for journal, name in ((folder.metrics, JOURNALS[0]), (folder.samples, JOURNALS[1])):
        journal.adopt(lines[name])
    meta = {"warm_steps": position.step, "gate_passed": True}
    session.save(position, restored.state, meta)
    spent: dict[str, float] = restored.meta["spent"]
    elsewhere = {f"{name}_elsewhere": value for name, value in spent.items()}
    session.book.time(position, notes={"taken_from": entry.path.name, **elsewhere})
    session.book.reread(show=True)
    session.book.display.message(
        f"the warm start of {position.step} steps is taken from {entry.path}; it took {spent['seconds']:.0f} s there"
    )
    return restored.state, meta


def _leave(entry: Entry, session: Session, state: TrainState, meta: dict[str, Any]) -> None:
    """Put a finished warm start on the shelf; where that is not possible, say so and go on."""
    making = entry.path.with_name(f"{entry.path.name}.partial")
    try:
        with sole_writer(making):
            for old in making.iterdir():  # of a process that was killed
                if old.is_dir():
                    shutil.rmtree(old)
                elif old.name != ".lock":
                    old.unlink()
            _fill(entry, making, session, state, meta)
            os.rename(making, entry.path)
    except RunStopped as error:
        if not isinstance(error, CheckpointError):  # then another process is making the same
            return
        say(f"{entry.path} could not be made, so that other runs repeat this warm start: {error}")
    except OSError as error:
        if not entry.path.exists():
            say(f"{entry.path} could not be made, so that other runs repeat this warm start: {error}")
        shutil.rmtree(making, ignore_errors=True)


def _fill(entry: Entry, making: Path, session: Session, state: TrainState, meta: dict[str, Any]) -> None:
    run, lines = session.folder.path, {}
    for name in JOURNALS:
        data = (run / name).read_bytes()
        lines[name] = _digest(data)
        with open(making / name, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    rows = [row for row in read(run / "timing.jsonl") if row["phase"] == "warm_start"]
    spent = {name: sum(row[name] for row in rows) for name in ("seconds", "cpu_seconds")}
    steps = int(meta["warm_steps"])
    kept = entry.checkpoints(making)
    try:
        kept.save(steps, state, {**Position(0, steps).fields(), "lines": lines, "spent": spent})
    finally:
        kept.close()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _put_aside(path: Path, why: str) -> None:
    number, bad = 1, path.with_name(f"{path.name}.bad")
    while bad.exists():
        number += 1
        bad = path.with_name(f"{path.name}.bad.{number}")
    path.rename(bad)
    say(f"The warm start {path} is damaged ({why}); put aside as {bad.name}, and done anew.")
