"""The end of a run: `summary.json`, the figure, and what happened in a table, in completions and in words."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import jax

from grpo_jax import report
from grpo_jax.checkpoint import state_digest
from grpo_jax.compiled import traces
from grpo_jax.experiment import Experiment, Summary
from grpo_jax.folder import RunFolder
from grpo_jax.journal import read, write_json
from grpo_jax.lifeline import page, say
from grpo_jax.types import Params, TrainState

MEASURED = ("accuracy", "greedy", "format", "length", "entropy")


def summarise(
    experiment: Experiment,
    folder: RunFolder,
    state: TrainState,
    meta: Mapping[str, Any],
    *,
    begun: tuple[float, float],
    frozen: Params | None = None,
) -> Summary:
    """Write and print what the run came to; `begun` are wall and CPU seconds from which this attempt counts.

    The digest is that of the `state`, without what is `frozen`.
    """
    folder.checkpoints.wait()
    metrics = read(folder.path / "metrics.jsonl")
    before, after = report.ends(metrics)
    numbers = {
        f"{name}_{when}": _number(row.get(f"{name}/heldout"))
        for when, row in (("before", before), ("after", after))
        for name in MEASURED
    }
    summary = Summary(
        name=experiment.name,
        steps=experiment.train.steps,
        warm_steps=int(meta.get("warm_steps", 0)),
        seconds=time.monotonic() - begun[0] + _earlier(folder, "seconds"),
        cpu_seconds=time.process_time() - begun[1] + _earlier(folder, "cpu_seconds"),
        parameters=sum(x.size for x in jax.tree.leaves((state.params, frozen))),
        trained=sum(x.size for x in jax.tree.leaves(state.params)),
        state_digest=state_digest({"params": state.params, "opt_state": state.opt_state, "step": state.step}),
        estimates={"before": _estimates(before), "after": _estimates(after)},
        traces=traces(),
        **numbers,
    )
    write_json(folder.path / "summary.json", asdict(summary))
    report.figure(folder.path / "figure.svg", metrics, title=experiment.name)
    _print(folder, summary, metrics)
    return summary


def _earlier(folder: RunFolder, name: str) -> float:
    """What the attempts before this one spent, up to their last line."""
    return sum(row[name] for row in read(folder.path / "timing.jsonl") if row["attempt"] < folder.attempt)


def _number(value: float | None) -> float:
    """A value of a journal, where what was not finite and what was not measured are both absent."""
    return math.nan if value is None else float(value)


def _estimates(row: Mapping[str, Any]) -> dict[str, float]:
    """What an evaluation found of every set and category, by the names of the journal."""
    there = tuple(f"/{place}{end}" for place in report.places(row) for end in ("", *report.BOUNDS))
    return {name: value for name, value in row.items() if name.endswith(there)}


def _print(folder: RunFolder, summary: Summary, metrics: Sequence[Mapping[str, Any]]) -> None:
    """The end of a run for a person: a table, the same prompts before and after, and a paragraph."""
    before, after = report.ends(metrics)
    samples = [row for row in read(folder.path / "samples.jsonl") if row["set"] == "heldout"]
    first, last = (
        [row for row in samples if (row["phase"], row["step"]) == (end["phase"], end["step"])]
        for end in (before, after)
    )
    shown = report.rendered(report.table(before, after), report.completions(first, last))
    if len(report.places(before, after)) > 1:
        shown = f"{report.rendered(report.sets_change(before, after), width=report.WIDTH)}\n{shown}"
    part = "" if summary.trained == summary.parameters else f" of which {summary.trained:,} are trained by GRPO"
    told = (
        f"\n{shown}\n{report.describe_run(metrics)}\n\n"
        f"{summary.parameters:,} parameters{part}, {summary.warm_steps} warm start and {summary.steps} GRPO steps,"
        f" {summary.seconds:.0f} s, {summary.cpu_seconds:.0f} CPU s; curves in {folder.path / 'figure.svg'},"
        f" numbers in {folder.path / 'summary.json'}\n"
    )
    try:
        page(told)
    except OSError as error:  # everything is on disk: the run is done
        say(f"the summary could not be printed ({error.strerror}); numbers are in {folder.path / 'summary.json'}")
