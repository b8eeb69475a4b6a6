"""What is in the folder of a run, for a terminal: before and after, held-out sets, curves, alerts, completions.

Made of files alone, without jax: it answers at once, and while the run goes on.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from grpo_jax import alerts, report
from grpo_jax.display.frame import sparkline
from grpo_jax.journal import read
from grpo_jax.origin import held
from grpo_jax.report.choice import FILTERS, judges, pick, reward_of
from grpo_jax.report.sets import table_of_sets

CURVES = ("reward/mean", "accuracy/heldout", "length/mean", "entropy", "value/mean", "value/explained_variance")
WIDTH, SPARKS = 100, 40
"""Columns of the page, and those of a curve."""


def overview(run: Path) -> str:
    """Tables of before and after and of held-out sets, curves, alerts, words. Raises ValueError without a run."""
    config = held(run)
    metrics = read(run / "metrics.jsonl")
    if not metrics:
        return f"{run} has not written a line of metrics yet.\n"
    before, after = report.ends(metrics)
    sets = table_of_sets(metrics)
    tables = ([report.table(before, after)] if after else []) + ([sets] if sets else []) + [curves(metrics)]
    parts = [report.rendered(table, width=WIDTH) for table in tables]
    settings = {name: value for name, value in config["settings"].items() if isinstance(value, str)}
    found = alerts.said(metrics, settings)
    parts += ["".join(f"look at this, step {step}: {report.clean(sentence)}\n" for step, sentence in found)]
    return "\n".join(part for part in [*parts, report.describe_run(metrics) + "\n"] if part)


def curves(metrics: Sequence[Mapping[str, Any]], *, names: Sequence[str] = CURVES) -> Table:
    """A row for each metric that was recorded: its curve, the first and the last value, the range."""
    out = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    out.add_column("")
    out.add_column("curve", no_wrap=True)
    for heading in ("first", "last", "lowest", "highest", "values"):
        out.add_column(heading, justify="right")
    for name in names:
        recorded = [row.get(name) for row in metrics]
        values = [float(value) for value in recorded if isinstance(value, int | float) and math.isfinite(value)]
        if values:
            ends = (values[0], values[-1], min(values), max(values))
            cells = [name, sparkline(values, SPARKS), *(f"{value:.3g}" for value in ends), str(len(values))]
            out.add_row(*(Text(cell) for cell in cells))
    return out


def samples(
    run: Path,
    *,
    which: str,
    set_name: str = "train",
    step: int | None = None,
    most: int = 5,
    verifiers: Sequence[str] | None = None,
) -> str:
    """At most `most` completions of one step, picked by `which` of `FILTERS`, as text without control characters.

    `step` None is the newest step that the set was written down for. For "disagreement" `verifiers` are the components
    to compare; None are all called accuracy... whose values are 0 or 1. Raises ValueError for a filter, a set, a step
    or a verifier that is not there.
    """
    held(run)
    if which not in FILTERS or most < 1:
        wrong, allowed = ("--most", "1 or more") if which in FILTERS else ("--samples", ", ".join(FILTERS))
        got = most if which in FILTERS else which
        raise ValueError(f"{wrong}: got {got}, allowed {allowed}: choose one of these")
    rows = read(run / "samples.jsonl")
    compared = judges(rows, verifiers) if which == "disagreement" else ()
    chosen = _of_step(rows, set_name=set_name, step=step)
    picked = pick(chosen, which=which, verifiers=compared)
    between = f" between {', '.join(map(report.clean, compared))}" if compared else ""
    head = f"{which}{between} of {len(chosen)} completions, {set_name}: {min(len(picked), most)} of {len(picked)}"
    return report.rendered(Text(head, style="bold"), *(_drawn(row) for row in picked[:most]), width=WIDTH)


def _of_step(rows: Sequence[Mapping[str, Any]], *, set_name: str, step: int | None) -> list[Mapping[str, Any]]:
    there = sorted({row["set"] for row in rows})
    if set_name not in there:
        raise ValueError(
            f"--set-name: got {set_name!r}, allowed {', '.join(there) or 'nothing yet'}: choose a set that the run has"
            " written down"
        )
    rows = [row for row in rows if row["set"] == set_name]
    newest = (rows[-1]["phase"], rows[-1]["step"])
    chosen = [r for r in rows if (r["step"] == step if step is not None else (r["phase"], r["step"]) == newest)]
    if not chosen:
        steps = sorted({row["step"] for row in rows})
        raise ValueError(
            f"--step: got {step}, allowed are {len(steps)} steps from {steps[0]} to {steps[-1]} of the set {set_name}:"
            f" take for instance {min(steps, key=lambda known: abs(known - (step or 0)))}"
        )
    return chosen


def _drawn(row: Mapping[str, Any]) -> Text:
    worth = reward_of(row)
    parts = [f"{row['phase']} {row['step']}", f"{worth:.3g}" if math.isfinite(worth) else "no score"]
    parts += [
        f"{report.clean(name)} {value:.3g}" for name, value in row.get("components", {}).items() if value is not None
    ]
    parts += [f"{report.clean(name)}: {state}" for name, state in row.get("statuses", {}).items() if state != "ok"]
    parts += ["" if row.get("stopped", True) else "cut off"]
    parts += [f"answer {report.clean(str(row['answer']))}"] if row.get("answer") else []
    asked, said = report.clean(str(row.get("prompt", ""))), report.clean(str(row.get("completion", "")))
    return Text(f"\n{'  '.join(part for part in parts if part)}\n  {asked}\n  {said}", overflow="fold")
