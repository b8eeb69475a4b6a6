"""A run on disk: its settings, journals and checkpoints, and where it stands among them."""

import errno
import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from grpo_jax import __version__, objectives, weights
from grpo_jax.checkpoint import Checkpoints, Restored
from grpo_jax.experiment import Experiment, data_digest, settings
from grpo_jax.journal import Journal, looking, read, sole_writer, write_json
from grpo_jax.lifeline import DataError, say
from grpo_jax.origin import CONFIG, FORMAT, Origin, held, stored
from grpo_jax.types import TrainState

PHASES = ("warm_start", "grpo")
BEFORE_CONFIG = (".lock", f"{CONFIG}.partial")
"""What a run killed in its first moments leaves behind."""
REFERENCE, FROZEN = BESIDE = ("reference", "frozen")
"""Folders of what a run begins GRPO with and does not change: the reference policy, and parameters not trained."""
PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")


class Position(NamedTuple):
    """A point of a run: positions are ordered as the run passes them."""

    phase: int  # index into PHASES
    step: int  # steps done in the phase

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Position":
        """Position of a journal record or of a checkpoint's `meta`."""
        return cls(PHASES.index(record["phase"]), int(record["step"]))

    def fields(self) -> dict[str, Any]:
        """What a record stores of its position."""
        return {"phase": PHASES[self.phase], "step": self.step}

    def index(self, meta: Mapping[str, Any]) -> int:
        """The number of the checkpoint here: steps of the warm start, of which `meta` knows, and of GRPO."""
        return meta.get("warm_steps", 0) + self.step if self.phase else self.step


@dataclass
class RunFolder:
    """The files of one run. Create it with `open_folder`, close it with `close`."""

    path: Path
    metrics: Journal
    samples: Journal
    timing: Journal
    checkpoints: Checkpoints
    attempt: int
    identity: dict[str, str]
    _accepted: dict[str, Any] | None
    _held: ExitStack

    def restore(self, *abstract: TrainState) -> Restored | None:
        """The newest valid checkpoint, with the journals rewound to it; None for a run that has none.

        `abstract` gives shapes, dtypes and shardings of the state, in each phase where their optimisers differ.
        """
        restored = self.checkpoints.restore(*abstract)
        reached = Position(-1, 0) if restored is None else Position.of(restored.meta)
        moved = [j.rewind(lambda record: Position.of(record) <= reached) for j in (self.metrics, self.samples)]
        if restored is None and any(moved):
            say(
                f"{self.path} has no checkpoint: the run begins again. What it had written is in"
                f" {self.metrics.superseded.name} and {self.samples.superseded.name}."
            )
        self._check_metrics(reached)
        if self._accepted is not None:
            *earlier, latest = self._accepted["history"]
            at = {"phase": PHASES[0], "step": 0} if restored is None else reached.fields()
            write_json(self.path / CONFIG, {**self._accepted, "history": [*earlier, {**at, **latest}]})
            self._accepted = None
        return restored

    def _check_metrics(self, reached: Position) -> None:
        """Raise a DataError unless every GRPO step up to `reached` has its line: a shortened file would hide some."""
        if reached.phase != PHASES.index("grpo"):
            return
        there = {record["step"] for record in read(self.metrics.path) if record["phase"] == "grpo"}
        missing = [step for step in range(1, reached.step + 1) if step not in there]
        if missing:
            raise DataError(
                f"{self.metrics.path} lacks the lines of {len(missing)} of {reached.step} GRPO steps, the first of them"
                f" step {missing[0]}, although the checkpoint is behind them: the file was cut or edited. Restore it,"
                " or start anew with --fresh, which moves this run aside."
            )

    def save(self, position: Position, state: TrainState, meta: dict, *, passing: bool = False) -> None:
        """Start an asynchronous save of everything up to `position`. The journals hold all of it already.

        What the ranking ``meta["best"]`` names stays; a `passing` save leaves nothing behind once the run has gone on.
        """
        self.metrics.sync()
        self.samples.sync()
        best = [row["index"] for row in meta.get("best", [])]
        self.checkpoints.save(position.index(meta), state, {**meta, **position.fields()}, best=best, passing=passing)

    @contextmanager
    def beside(self, name: str) -> Iterator[Checkpoints]:
        """A checkpoint that is written once and stays beside those of the run, of the names in `BESIDE`."""
        kept = Checkpoints(self.path / name, identity=self.identity, keep_last=1)
        try:
            yield kept
        finally:
            kept.close()

    def close(self) -> None:
        """Finish pending saves and release the folder."""
        try:
            self.checkpoints.close()
        finally:
            for journal in (self.metrics, self.samples, self.timing):
                journal.close()
            self._held.close()


def open_folder(
    path: Path,
    experiment: Experiment,
    *,
    fresh: bool = False,
    origin: Origin | None = None,
    accept_code_change: bool = False,
) -> RunFolder:
    """The folder of a new run, or of one to continue: then its settings must be those of `experiment`.

    `fresh` moves an existing run aside (``NAME.1``, ``NAME.2``, ...) and starts anew; nothing is ever overwritten.
    `origin` is written down for those who look at the run later; it may differ from one start to the next.
    With `accept_code_change` functions may have changed; which, and from which step on, goes into the ``history`` of
    `config.json`. Raises ValueError for a folder that holds a run with other settings or something else than a run or
    that cannot be used, DataError where the disk is full, and RunStopped (code 4) for one in which another process
    works.
    """
    path, config = Path(path).absolute(), _config(experiment)  # what cannot be described leaves no folder behind
    try:
        _check_folder(path)
        if fresh and path.exists():
            move_aside(path)
        path.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            held.enter_context(sole_writer(path))
            return _opened(path, experiment, _agreed(path / CONFIG, config, origin, accept_code_change), held)
    except OSError as error:
        raise _unusable(path, error) from None


def _opened(
    path: Path, experiment: Experiment, agreed: tuple[dict[str, Any], dict[str, Any] | None], held: ExitStack
) -> RunFolder:
    """The folder, once it is `held` against other processes; takes over what is held."""
    config, accepted = agreed
    identity = _identity(config)
    return RunFolder(
        path=path,
        metrics=Journal(path / "metrics.jsonl"),
        samples=Journal(path / "samples.jsonl"),
        timing=Journal(path / "timing.jsonl"),
        checkpoints=Checkpoints(path / "checkpoints", identity=identity, keep_last=experiment.saving.keep),
        attempt=max((record["attempt"] for record in read(path / "timing.jsonl")), default=0) + 1,
        identity=identity,
        _accepted=accepted,
        _held=held.pop_all(),
    )


def _unusable(path: Path, error: OSError) -> ValueError | DataError:
    why = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DataError(f"{path} cannot be written: {why}. Free some space, then run the same command again.")
    return ValueError(
        f"run_dir: got {path}, which cannot be used ({why}); allowed is a folder that can be written: choose another"
        " --run-dir"
    )


@contextmanager
def visit(path: Path, experiment: Experiment) -> Iterator[Checkpoints]:
    """The checkpoints of the run in `path`, to be looked at: nothing is written there, and it may be read-only.

    Raises ValueError where there is no run, or one with other settings than `experiment`, and RunStopped (code 4) while
    another process works in it.
    """
    path, config = Path(path).absolute(), _config(experiment)
    there = held(path)
    lines = _differences(there, config)
    if lines:
        remedy = "use the file, the --variant and the --set of the run"
        raise ValueError("\n".join([f"RUN: {path} holds a run with other settings:", *lines, f"  {remedy}"]))
    with looking(path):
        kept = Checkpoints(path / "checkpoints", identity=_identity(there), read_only=True)
        try:
            yield kept
        finally:
            kept.close()


def versions() -> dict[str, str]:
    """Name -> version of what may decide the last bits of a run."""
    packages = {name: version(name) for name in PACKAGES}
    return {**packages, "grpo-jax": __version__, "python": platform.python_version()}


def _config(experiment: Experiment) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "settings": settings(experiment),
        "data_digest": data_digest(experiment),
        **begins_with(experiment),
        "source_digest": objectives.source_digest(experiment),
        "sources": objectives.source_digests(experiment),
        "versions": versions(),
    }


def begins_with(experiment: Experiment) -> dict[str, str]:
    """Fingerprint of the files that the initial parameters come from, under "weights"; nothing where there are none."""
    return {} if experiment.weights is None else {"weights": weights.fingerprint(experiment.weights)}


def _identity(config: Mapping[str, Any]) -> dict[str, str]:
    """What its checkpoints have to agree in: the run as it was begun, whatever code was accepted since."""
    first = next(iter(config.get("history") or ()), {})
    return {
        "settings": json.dumps(config["settings"], sort_keys=True),
        "data_digest": config["data_digest"],
        "source_digest": first.get("was", config["source_digest"]),
        **{name: config[name] for name in ("weights",) if name in config},
    }


def _check_folder(path: Path) -> None:
    """Raise a ValueError unless a run may live in `path`: nothing is there, or an empty folder, or a run."""
    if path.exists() and not path.is_dir():
        raise ValueError(
            f"run_dir: got {path}, which is a file; allowed is a folder or a free name: choose another --run-dir"
        )
    if path.is_dir() and not (path / CONFIG).exists():
        foreign = sorted(entry.name for entry in path.iterdir() if entry.name not in BEFORE_CONFIG)
        if foreign:
            raise ValueError(
                f"run_dir: got {path}, which holds {foreign[0]!r} and no run (no {CONFIG}); allowed is a run, an empty"
                " folder or a free name: choose another --run-dir"
            )


def _agreed(
    path: Path, config: dict[str, Any], origin: Origin | None, accept_code_change: bool
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What `config.json` says from now on, and what it is to say once the run is restored with code that has changed.

    A difference to what is there is an error that lists it. A run that has not written a line yet, because its settings
    could not be run, takes new ones.
    """
    come = {} if origin is None else {"origin": origin.fields()}
    if not path.exists() or not _begun(path.parent):
        write_json(path, {**config, **come})
        return config, None
    old = stored(path)
    if old["versions"] != config["versions"]:
        say(
            f"{path.parent} was begun with other versions: {_version_changes(old['versions'], config['versions'])}."
            " It goes on, but not necessarily with the same last bits."
        )
    changed = old.get("source_digest") != config["source_digest"]
    known = {name: config[name] for name in ("source_digest", "sources")} if accept_code_change else {}
    lines = _differences({**old, **known}, config)
    if lines:
        remedy = (
            "use its settings to continue it, another --run-dir for a new run, or --fresh to move the old one aside"
        )
        if changed and not accept_code_change:
            remedy += "; --accept-code-change goes on with code that has changed"
        raise ValueError("\n".join([f"run_dir: {path.parent} holds a run with other settings:", *lines, f"  {remedy}"]))
    new = {**old, **come, "format": FORMAT}
    if new != old:
        write_json(path, new)
    if not changed:
        return new, None
    names = _changed_functions(old, config)
    say(f"{path.parent} goes on with code that has changed: {', '.join(names) or 'which function is not known'}.")
    entry = {"functions": names, "was": old.get("source_digest"), "is": config["source_digest"]}
    new = {**new, **known, "history": [*(old.get("history") or ()), entry]}
    return new, new


def _changed_functions(old: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    was, now = old.get("sources"), config["sources"]
    return [] if was is None else sorted(name for name in {*was, *now} if was.get(name) != now.get(name))


def _differences(old: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """What differs between the content of a `config.json` and that of this command, a line each."""
    was, now = old["settings"], config["settings"]
    lines = [
        f"  {name}: the run has {was.get(name, 'nothing')}, this command {now.get(name, 'nothing')}"
        for name in sorted({*was, *now})
        if was.get(name) != now.get(name)
    ]
    if old.get("source_digest") != config["source_digest"]:
        names = _changed_functions(old, config)
        what = f"the function {names[0]}" if len(names) == 1 else f"the functions {', '.join(names)}"
        lines.append(f"  the code of {what if names else 'a function of this experiment'} has changed")
    if old.get("data_digest") != config["data_digest"]:
        told = f"SHA-256 {old.get('data_digest', 'unknown'):.12}, now {config['data_digest']:.12}"
        lines.append(f"  the data file has changed: {told}")
    if old.get("weights") != config.get("weights"):
        told = f"fingerprint {old.get('weights') or 'none':.12}, now {config.get('weights') or 'none':.12}"
        lines.append(f"  the weights that it begins with have changed: {told}")
    return lines


def _begun(path: Path) -> bool:
    """Whether a run has left anything in `path` that depends on its settings."""
    lines = any((path / name).exists() and (path / name).stat().st_size for name in ("metrics.jsonl", "samples.jsonl"))
    return lines or any((path / name).exists() for name in ("checkpoints", *BESIDE))


def _version_changes(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    return ", ".join(f"{name} {old.get(name, 'absent')} -> {new.get(name, 'absent')}" for name in names)


def move_aside(path: Path) -> None:
    """Rename a run; refused (RunStopped, code 4) while another process works in it."""
    number = 1
    while path.with_name(f"{path.name}.{number}").exists():
        number += 1
    with sole_writer(path):
        path.rename(path.with_name(f"{path.name}.{number}"))
