"""Rollouts kept in a file, so that several recipes are trained on the very same ones.

The first line says what decides rollouts and their rewards; every other line is one step of one seed, with all that an
update needs from sampling and scoring, its arrays as the bytes that they are, so that nothing is rounded. A step whose
line is there is neither sampled nor scored; one whose line is not is sampled by the run's own policy and added. So the
first run records and others replay, and a run that was killed replays what it had recorded beyond its checkpoint and
goes on as if nothing had happened.
"""

import base64
import contextlib
import dataclasses
import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grpo_jax import objectives
from grpo_jax.checkpoint.digests import sha256
from grpo_jax.experiment import Experiment, settings
from grpo_jax.journal import Journal
from grpo_jax.lifeline import DataError, Exit, RunStopped
from grpo_jax.loop.phases import Scored
from grpo_jax.rewards.text import Score, Scores
from grpo_jax.train import host
from grpo_jax.types import Prompts, Reward, Rollouts

FORMAT = 1
_SAMPLED = tuple(name for name in Rollouts.__dataclass_fields__ if name not in ("prompts", "version"))
_OPTIONAL = ("token", "step_end", "greedy")
"""Fields of a reward that are not in every line."""
_DTYPES = ("bool", "int32", "float32")


class Tape:
    """What one run plays and records. Without a `path` it does neither."""

    def __init__(self, path: Path | None, experiment: Experiment) -> None:
        self.path, self._seed = path, experiment.seed
        self._by = sha256([settings(experiment), experiment.data.digest])
        self._places: dict[int, tuple[int, int]] = {}  # step -> where its line begins and how long it is
        self._journal: Journal | None = None
        self._identity = {} if path is None else identity(experiment)

    def find(self, step: int, prompts: Prompts) -> Scored | None:
        """The rollouts of `step`, which answer `prompts`, if they are recorded.

        Raises DataError for a line that is not what was recorded.
        """
        if self.path is None or step not in self._places:
            return None
        begin, size = self._places[step]
        with open(self.path, "rb") as file:
            file.seek(begin)
            line = file.read(size)
        try:
            return _read(json.loads(line), prompts, self._by)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{self.path}: the rollouts of seed {self._seed}, step {step}, cannot be used ({error}). Remove that"
                " line, so that they are sampled again, or give another file."
            ) from error

    def keep(self, step: int, scored: Scored) -> Scored:
        """Record `scored`, which this run has sampled; returned with a note of that."""
        if self.path is None or self._journal is None:
            return scored
        rollouts, reward = host((scored.rollouts, scored.reward))
        self._journal.write(_line(self._seed, step, self._by, rollouts, reward, scored.scores))
        return dataclasses.replace(scored, replayed=False)

    def sync(self) -> None:
        """Returns when everything recorded is on the disk itself: wanted before a checkpoint that counts on it."""
        if self._journal is not None:
            self._journal.sync()

    def open(self) -> None:
        """Make the file or read its lines. Raises ValueError where it holds rollouts of something else."""
        if self.path is None:
            return
        if self.path.is_dir():
            raise _unusable(self.path, "it is a folder")
        try:
            self._journal = Journal(self.path)
            if not self.path.exists() or not self.path.stat().st_size:
                self._journal.write({"rollouts": FORMAT, **self._identity})
            self._index()
        except OSError as error:
            raise _unusable(self.path, error.strerror or str(error)) from None

    def close(self) -> None:
        """Close the file."""
        if self._journal is not None:
            self._journal.close()

    def _index(self) -> None:
        if self.path is None:
            return
        with open(self.path, "rb") as file:
            first = file.readline()
            self._check(first)
            begin = len(first)
            for line in file:
                seed, step = _place_of(line, self.path)
                if seed == self._seed:
                    self._places.setdefault(step, (begin, len(line)))
                begin += len(line)

    def _check(self, line: bytes) -> None:
        try:
            found = json.loads(line)
            version = found.pop("rollouts")
        except (ValueError, KeyError, AttributeError, TypeError):
            raise ValueError(
                f"rollouts: got {self.path}, which is no file of recorded rollouts; allowed is one that a run has"
                " recorded, or a free name: choose another"
            ) from None
        mine = {"format": FORMAT, **self._identity}
        found = {"format": version, **found}
        lines = [
            f"  {name}: the file has {found.get(name, 'nothing')}, this run {mine.get(name, 'nothing')}"
            for name in dict.fromkeys([*mine, *found])
            if found.get(name) != mine.get(name)
        ]
        if lines:
            remedy = "  use the settings that it was recorded with, or another file"
            raise ValueError("\n".join([f"rollouts: {self.path} was recorded for something else:", *lines, remedy]))


@contextlib.contextmanager
def recorded(path: Path | None, experiment: Experiment) -> Iterator[Tape]:
    """The rollouts of `path`, for this run alone; None records and replays nothing.

    Raises ValueError for a file of another experiment and RunStopped (code 4) while another run uses it.
    """
    tape = Tape(path if path is None else Path(path).absolute(), experiment)
    with contextlib.ExitStack() as held:
        if tape.path is not None:
            held.enter_context(_alone(tape.path))
        tape.open()
        held.callback(tape.close)
        yield tape


def identity(experiment: Experiment) -> dict[str, str | int]:
    """What decides the rollouts of a policy and their rewards, the seed apart, by name."""
    reading = (experiment.data, experiment.sampling, experiment.reward, experiment.text_rewards)
    return {
        "model": objectives.describe(experiment.model),
        "data": objectives.describe(experiment.data),
        "data_digest": experiment.data.digest,
        "sampling": objectives.describe(experiment.sampling),
        "reward": "None" if experiment.reward is None else objectives.describe(experiment.reward),
        "text_rewards": objectives.describe(experiment.text_rewards),
        "source_digest": objectives.source_digest(reading),
        "train.prompts": experiment.train.prompts,
        "train.group_size": experiment.train.group_size,
        **({"train.demonstrations": shown} if (shown := experiment.train.demonstrations) else {}),
    }


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Refuse a second run on one file: what it replays must not depend on which of them was quicker."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise RunStopped(
            Exit.CONFIGURATION, f"{path} is in use by another run. Wait for it, or record in another file."
        ) from None
    finally:
        os.close(descriptor)


def _unusable(path: Path, why: str) -> ValueError:
    return ValueError(
        f"rollouts: got {path}, which cannot be used ({why}); allowed is a file that can be read and written: choose"
        " another"
    )


def _line(seed: int, step: int, by: str, rollouts: Rollouts, reward: Reward, scores: Scores | None) -> dict[str, Any]:
    texts = {
        name: {"status": [score.status for score in row], "detail": [score.detail for score in row]}
        for name, row in (scores or {}).items()
    }
    return {
        "seed": seed,
        "step": step,
        "by": by,
        "draw": np.asarray(rollouts.prompts.draw).tolist(),
        "version": int(np.asarray(rollouts.version)[0]),
        "versions": None if (rollouts.version == rollouts.version[0]).all() else _packed(rollouts.version),
        "rollouts": {name: _packed(x) for name in _SAMPLED if (x := getattr(rollouts, name)) is not None},
        "outcome": _packed(reward.outcome),
        "valid": _packed(reward.valid),
        **{name: None if getattr(reward, name) is None else _packed(getattr(reward, name)) for name in _OPTIONAL},
        "components": {name: _packed(values) for name, values in reward.components.items()},
        "scores": None if scores is None else texts,
    }


def _read(line: Mapping[str, Any], prompts: Prompts, by: str) -> Scored:
    if line["draw"] != np.asarray(prompts.draw).tolist():
        raise ValueError("they answer other draws")
    arrays: dict[str, Any] = {name: _unpacked(value) for name, value in line["rollouts"].items()}
    each = line.get("versions")
    version: Any = _unpacked(each) if each else np.full(arrays["tokens"].shape[0], line["version"], np.int32)
    rollouts = Rollouts(prompts=prompts, version=version, **arrays)
    components: Any = {name: _unpacked(values) for name, values in line["components"].items()}
    given: dict[str, Any] = {
        name: _unpacked(line[name]) for name in ("outcome", "valid", *_OPTIONAL) if line.get(name) is not None
    }
    scores = None
    if line["scores"] is not None:
        scores = {
            name: _scores(components[name], said["status"], said["detail"]) for name, said in line["scores"].items()
        }
    return Scored(rollouts, Reward(**given, components=components), scores, replayed=line["by"] != by)


def _scores(values: np.ndarray, statuses: Sequence[str], details: Sequence[str]) -> tuple[Score, ...]:
    return tuple(Score(float(v), s, d) for v, s, d in zip(values, statuses, details, strict=True))


def _packed(x: Any) -> dict[str, Any]:
    """An array as JSON that gives back the same bytes."""
    array = np.asarray(x)
    if array.dtype.name not in _DTYPES:
        raise ValueError(f"rollouts: got an array of {array.dtype}; allowed are those of {', '.join(_DTYPES)}")
    data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "base64": base64.b64encode(data).decode()}


def _unpacked(value: Mapping[str, Any]) -> np.ndarray:
    if value["dtype"] not in _DTYPES:
        raise ValueError(f"an array of {value['dtype']}")
    shape, dtype = tuple(map(int, value["shape"])), np.dtype(value["dtype"])
    data = base64.b64decode(value["base64"], validate=True)
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError("an array of another length than its shape says")
    return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype).reshape(shape)


def _place_of(line: bytes, path: Path) -> tuple[int, int]:
    try:
        row = json.loads(line)
        return int(row["seed"]), int(row["step"])
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path} holds a line that is no recorded step. Remove it, or give another file.") from None
