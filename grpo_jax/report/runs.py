"""The folders of runs, read for a page: numbers whole, completions thinned out, names that can be told apart.

Nothing here imports jax. `samples.jsonl` may be large: it is read line by line, twice.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo_jax import alerts
from grpo_jax.journal import each, read
from grpo_jax.origin import held
from grpo_jax.report.choice import Judges, disagree, kept, spread
from grpo_jax.report.markup import visible
from grpo_jax.report.words import finite

STEPS = 40
"""Steps of a set whose completions go into a page about one run; fewer each when there are several runs."""
MOST_STEPS = 2**53
"""Beyond it a step is no number that a script can hold."""
Position = tuple[str, int]  # phase, step


@dataclass
class Recorded:
    """What `samples.jsonl` holds of one set."""

    rows: int = 0
    steps: dict[Position, None] = field(default_factory=dict)
    kept: int = 0
    kept_steps: int = 0


@dataclass(frozen=True)
class Run:
    """All that a page says of a run."""

    folder: Path
    label: str
    config: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    timing: Sequence[Mapping[str, Any]]
    samples: Sequence[Mapping[str, Any]]
    recorded: Mapping[str, Recorded]  # set -> how much there is and how much of it is in `samples`
    verifiers: tuple[str, ...]  # fewer than two: there is nothing to disagree
    alerts: Sequence[tuple[int, str]]

    @property
    def settings(self) -> dict[str, str]:
        """Dotted path -> value, as text."""
        return {str(name): str(value) for name, value in self.config["settings"].items()}

    @property
    def name(self) -> str:
        """What the experiment is called."""
        return self.settings.get("name", "run").strip("'\"")


def gather(folders: Sequence[Path], *, most: int, verifiers: Sequence[str] | None = None) -> list[Run]:
    """The runs in `folders`, with at most `most` completions of each set and step.

    Raises ValueError for a folder without a run, a folder given twice, a record that is not one of a run, and for
    `verifiers` that are not there.
    """
    if most < 1:
        raise ValueError(f"--most: got {most}, allowed 1 or more: choose how many completions of a step to keep")
    labels = names_of(folders)
    steps = max(4, STEPS // len(folders))
    return [
        _gathered(folder, label, most=most, steps=steps, verifiers=verifiers)
        for folder, label in zip(folders, labels, strict=True)
    ]


def _gathered(folder: Path, label: str, *, most: int, steps: int, verifiers: Sequence[str] | None) -> Run:
    config = held(folder)
    path = folder / "metrics.jsonl"
    metrics = [_sane(record) for record in _placed(path, each(path))]
    known, recorded = Judges(), {}
    for row in _rows(folder):
        known.see(row)
        there = recorded.setdefault(row["set"], Recorded())
        there.rows += 1
        there.steps.setdefault(_position(row))
    compared = known.chosen(verifiers) if verifiers is not None else known.known()
    settings = {name: value for name, value in config["settings"].items() if isinstance(value, str)}
    return Run(
        folder=folder,
        label=label,
        config=config,
        metrics=metrics,
        timing=read(folder / "timing.jsonl"),
        samples=_thinned(folder, recorded, most=most, steps=steps, verifiers=compared),
        recorded=recorded,
        verifiers=compared,
        alerts=alerts.said(metrics, settings),
    )


def _position(row: Mapping[str, Any]) -> Position:
    return row["phase"], row["step"]


def _sane(record: Mapping[str, Any]) -> dict[str, Any]:
    """The same without numbers that nobody can work with: they are none, as where a value was not finite."""
    numbers = (int, float)
    return {k: None if isinstance(v, numbers) and math.isnan(finite(v)) else v for k, v in record.items()}


def _placed(path: Path, records: Iterator[dict]) -> Iterator[dict]:
    for number, record in enumerate(records, start=1):
        step = record.get("step")
        if not isinstance(record.get("phase"), str) or type(step) is not int or not 0 <= step < MOST_STEPS:
            raise ValueError(
                f"RUN: {path}, record {number} has no phase and step; allowed are records that a run wrote: restore"
                " the file, or remove that line"
            )
        yield record


def _rows(folder: Path) -> Iterator[Mapping[str, Any]]:
    path = folder / "samples.jsonl"
    for row in _placed(path, each(path)):
        if not isinstance(row.get("set"), str):
            raise ValueError(
                f"RUN: {path} has a record of step {row['step']} without a set; allowed are records that a run wrote:"
                " restore the file, or remove that line"
            )
        yield row


def _thinned(
    folder: Path, recorded: Mapping[str, Recorded], *, most: int, steps: int, verifiers: tuple[str, ...]
) -> list[Mapping[str, Any]]:
    """Of each set the completions of at most `steps` steps, `most` of each, in the order of the file."""
    wanted = {}
    for name, there in recorded.items():
        positions = list(there.steps)
        wanted[name] = {positions[i] for i in spread(range(len(positions)), steps)}
        there.kept_steps = len(wanted[name])
    out: list[Mapping[str, Any]] = []
    pending: dict[str, list[Mapping[str, Any]]] = {}
    now: Position | None = None

    def flush() -> None:
        for name, rows in pending.items():
            chosen = kept(rows, most=most, verifiers=verifiers)
            recorded[name].kept += len(chosen)
            out.extend({**row, "disagreement": disagree(row, verifiers)} for row in chosen)
        pending.clear()

    for row in _rows(folder):
        if _position(row) != now:
            flush()
            now = _position(row)
        if now in wanted[row["set"]]:
            pending.setdefault(row["set"], []).append(row)
    flush()
    return out


def names_of(folders: Sequence[Path]) -> list[str]:
    """A name for each folder: as many of its last parts as it takes to tell it from the others.

    Raises ValueError where two are the same folder.
    """
    paths = [Path(folder).resolve() for folder in folders]
    twice = [given for given, path in zip(folders, paths, strict=True) if paths.count(path) > 1]
    if twice:
        raise ValueError(f"RUN: got {twice[0]} twice; allowed is each run once: leave one out")
    out = []
    for path in paths:
        for length in range(1, len(path.parts) + 1):
            name = path.parts[-length:]
            if sum(other.parts[-length:] == name for other in paths) == 1:
                break
        out.append(visible("/".join(name)) or "run")
    return out


def differing(runs: Sequence[Run]) -> tuple[list[str], list[str]]:
    """Names of the settings that differ between runs, and of those that do not, in the order of the first run."""
    tables = [run.settings for run in runs]
    names = list(dict.fromkeys(name for settings in tables for name in settings))
    different = [name for name in names if len({settings.get(name) for settings in tables}) > 1]
    return different, [name for name in names if name not in set(different)]
