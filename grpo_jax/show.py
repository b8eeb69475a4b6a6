"""What is in the folder of a run, for a terminal: before and after, curves, alerts, completions.

Made of files alone, without jax: it answers at once, and while the run goes on.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from grpo_jax import alerts, report
from grpo_jax.display.frame import reward_of, sparkline
from grpo_jax.journal import read
from grpo_jax.origin import held

CURVES = ("reward/mean", "accuracy/heldout", "length/mean", "entropy")
FILTERS = ("worst", "best", "truncated", "invalid")
WIDTH, SPARKS = 100, 40
"""Columns of the page, and those of a curve."""


def overview(run: Path) -> str:
    """The table of before and after, curves, alerts and a paragraph. Raises ValueError where there is no run."""
    config = held(run)
    metrics = read(run / "metrics.jsonl")
    if not metrics:
        return f"{run} has not written a line of metrics yet.\n"
    before, after = report.ends(metrics)
    tables = ([report.table(before, after)] if after else []) + [curves(metrics)]
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


def samples(run: Path, *, which: str, set_name: str = "train", step: int | None = None, most: int = 5) -> str:
    """At most `most` completions of one step, picked by `which` of `FILTERS`, as text without control characters.

    `step` None is the newest step that the set was written down for. Raises ValueError for a filter, a set or a step
    that is not there.
    """
    held(run)
    if which not in FILTERS or most < 1:
        wrong, allowed = ("--most", "1 or more") if which in FILTERS else ("--samples", ", ".join(FILTERS))
        got = most if which in FILTERS else which
        raise ValueError(f"{wrong}: got {got}, allowed {allowed}: choose one of these")
    rows = read(run / "samples.jsonl")
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
    picked = pick(chosen, which=which)
    head = f"{which} of {len(chosen)} completions, {set_name}: {min(len(picked), most)} of {len(picked)}"
    return report.rendered(Text(head, style="bold"), *(_drawn(row) for row in picked[:most]), width=WIDTH)


def pick(rows: Sequence[Mapping[str, Any]], *, which: str) -> list[Mapping[str, Any]]:
    """Those of `rows` that the filter keeps: all by reward for worst and best, else the ones concerned, in order.

    Truncated completions did not stop by themselves; invalid ones could not be scored. Rows without a score are neither
    among the best nor among the worst.
    """
    if which == "truncated":
        return [row for row in rows if not row.get("stopped", True)]
    if which == "invalid":
        return [row for row in rows if not row.get("valid", True)]
    return sorted((r for r in rows if r.get("valid", True)), key=reward_of, reverse=which == "best")


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
