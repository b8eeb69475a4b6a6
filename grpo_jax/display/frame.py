"""What a live terminal shows of a run, as pure functions of what is known: the same view gives the same picture."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from grpo_jax.report import clean, reward_of

BLOCKS = "▁▂▃▄▅▆▇█"
LABEL, NUMBER = 17, 21
CELL = LABEL + NUMBER + 2
"""Columns of a label with its number: as many of them stand side by side as fit."""
PHASES = {"warm_start": "warm start", "grpo": "GRPO"}


@dataclass(frozen=True)
class Plan:
    """What is known before a run: its name, steps of each phase, completions a GRPO step."""

    name: str = "run"
    steps: Mapping[str, int] = field(default_factory=dict)
    rows: int = 0
    at_most: tuple[str, ...] = ("warm_start",)  # phases that may end before their last step


@dataclass
class View:
    """All that a frame is drawn from; `see` and its sisters bring it up to date."""

    plan: Plan = Plan()
    phase: str = ""
    step: int = 0
    record: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    evaluated: dict[str, str] = field(default_factory=dict)  # held-out set -> its accuracy in words
    curves: dict[str, list[float]] = field(default_factory=dict)
    alerts: deque[str] = field(default_factory=lambda: deque(maxlen=2))
    rows: list[Mapping[str, Any]] = field(default_factory=list)
    memory: tuple[float, str] = (0.0, "")  # bytes, and of what
    passed: int = 1  # steps since the record before
    marks: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=50))  # (seconds, step) in this phase

    def see(
        self, position: Mapping[str, Any], record: Mapping[str, Any], seconds: Mapping[str, float], now: float
    ) -> None:
        """Take in a record of metrics that was written at second `now`."""
        if position["phase"] != self.phase:
            self.marks.clear()
            self.step = 0
        # Every step of GRPO has its record; a warm start has one now and then.
        self.passed = 1 if position["phase"] == "grpo" else max(int(position["step"]) - self.step, 1)
        self.phase, self.step, self.record, self.seconds = position["phase"], int(position["step"]), record, seconds
        self.marks.append((now, self.step))
        if math.isfinite(_number(record, "reward/mean")):
            self.curves.setdefault("reward", []).append(_number(record, "reward/mean"))
        for name in held_out(record):
            value, low, high = (100 * _number(record, f"accuracy/{name}{end}") for end in ("", "/low", "/high"))
            interval = f" ({low:.1f} to {high:.1f})" if math.isfinite(low + high) else ""
            self.evaluated[name] = f"{value:.1f} %{interval}"
            if "[" not in name:  # a category is a number; a curve for each would fill the terminal
                self.curves.setdefault(f"accuracy {name}", []).append(value / 100)


def held_out(record: Mapping[str, Any]) -> list[str]:
    """Names of the held-out sets whose accuracy a record has."""
    parts = [name.split("/") for name in record]
    return [part[1] for part in parts if len(part) == 2 and part[0] == "accuracy"]


def _number(record: Mapping[str, Any], name: str) -> float:
    value = record.get(name)
    return float(value) if isinstance(value, int | float) else math.nan


def sparkline(values: Sequence[float], width: int) -> str:
    """At most `width` blocks, the lowest for the smallest value: means of pieces of equal length if there are more."""
    pieces = min(len(values), width)
    cuts = [round(i * len(values) / pieces) for i in range(pieces + 1)] if pieces else []
    means = [math.fsum(values[a:b]) / (b - a) for a, b in pairwise(cuts)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((value - low) * scale)] for value in means)


def duration(seconds: float) -> str:
    """Minutes and seconds, with hours or days where there are some."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def seconds_left(view: View) -> float:
    """Seconds to the end of the phase at the pace of the last steps; nan before there is a pace."""
    if len(view.marks) < 2 or view.phase not in view.plan.steps:
        return math.nan
    (begin, first), (end, last) = view.marks[0], view.marks[-1]
    return (view.plan.steps[view.phase] - last) * (end - begin) / (last - first) if last > first else math.nan


def _head(view: View, width: int) -> list[RenderableType]:
    total = view.plan.steps.get(view.phase, 0)
    words = [clean(view.plan.name), f"{PHASES.get(view.phase, view.phase)} {view.step}"]
    if not total:
        return [Text("  ".join(words), style="bold")]
    bound = "at most " if view.phase in view.plan.at_most else ""
    words[1] += f" of {bound}{total}"
    left = seconds_left(view)
    if math.isfinite(left):
        words.append(f"{bound}{duration(left)} left")
    room = min(width, 100)
    done = round(room * min(view.step / total, 1.0))
    return [Text("  ".join(words), style="bold"), Text.assemble(("━" * done, "green"), ("─" * (room - done), "dim"))]


def cells(view: View) -> list[tuple[str, str]]:
    """Labels with numbers in words, the most important first; what a record does not have is left out."""
    record = view.record

    def shown(label: str, name: str, form: str = "{:.3g}", unit: float = 1.0) -> list[tuple[str, str]]:
        value = _number(record, name)
        return [(label, form.format(unit * value))] if math.isfinite(value) else []

    share = ("{:.1f} %", 100.0)
    found = shown("reward", "reward/mean", "{:.3f}" + f" ± {_number(record, 'reward/std'):.3f}")
    for name in record:
        kind, _, component = name.partition("/")
        if kind == "reward" and component not in ("mean", "std"):
            form, unit = share if component == "accuracy" else ("{:.3f}", 1.0)
            found += shown(clean(component), name, form, unit)
    found += [(_set_label(name), words) for name, words in view.evaluated.items()]
    found += shown("length", "length/mean", "{:.1f}" + f", {100 * _number(record, 'length/stopped'):.0f} % ended")
    found += shown("entropy", "entropy") + shown("KL reference", "kl/ref") + shown("KL old", "kl/old")
    found += shown("clipped low", "clip/low", *share) + shown("clipped high", "clip/high", *share)
    found += shown("gap", "logp_gap/mean", "{:.1g}" + f", max {_number(record, 'logp_gap/max'):.1g}")
    found += shown("tied groups", "groups/tied", *share) + shown("gradient norm", "grad_norm")
    found += shown("loss", "loss") + (shown("refused", "skipped", "{:.0f}") if record.get("skipped") else [])
    found += [(f"rewards: {s}", f"{record[f'status/{s}']:.0f}") for s in FAILURES if record.get(f"status/{s}")]
    total = _seconds(view) / view.passed
    if total > 0:
        tokens = view.plan.rows * _number(record, "length/mean") / total
        found += [("tokens a second", f"{tokens:.0f}")] if math.isfinite(tokens) and view.plan.rows else []
        found += [("seconds a step", f"{total:.2f}")]
    memory, of = view.memory
    return [*found, ("memory, peak", f"{memory / 2**30:.2f} GiB {of}")] if memory else found


def _set_label(name: str) -> str:
    """``accuracy heldout`` for a set, ``[easy] of heldout`` for a category of it: what tells them apart comes first."""
    held, bracket, category = name.partition("[")
    return f"[{clean(category)} of {clean(held)}" if bracket else f"accuracy {clean(name)}"


FAILURES = ("error", "timeout", "unparsable")


APART = ("evaluation", "saving")
"""What happens between steps and is no part of them."""


def _seconds(view: View) -> float:
    return math.fsum(value for name, value in view.seconds.items() if name not in APART)


def _phases(view: View) -> list[RenderableType]:
    """The phases of a step with their seconds and their share of it, then what happened beside it."""
    total, lines = _seconds(view), []
    words = [
        f"{name} {value / view.passed:.2f} s" + (f" ({100 * value / total:.0f} %)" if name not in APART else "")
        for name, value in view.seconds.items()
        if total > 0
    ]
    if words:
        lines.append(Text("  ".join(words), style="dim", overflow="fold"))
    return lines


def _table(found: Sequence[tuple[str, str]], width: int) -> Table:
    """The cells side by side, read row by row; labels take a fixed width, so that nothing jumps about."""
    columns = max(1, width // CELL)
    out = Table.grid(padding=(0, 1))
    for _ in range(columns):
        out.add_column(width=LABEL, no_wrap=True, overflow="ellipsis", style="dim")
        out.add_column(width=NUMBER, no_wrap=True, overflow="ellipsis")
    for begin in range(0, len(found), columns):
        out.add_row(*(Text(part) for cell in found[begin : begin + columns] for part in cell))
    return out


def _curves(view: View, width: int) -> list[RenderableType]:
    lines = []
    for name, values in view.curves.items():
        form, unit = ("{:.1f} %", 100.0) if name.startswith("accuracy") else ("{:.3f}", 1.0)
        ends = f"{form} to {form}".format(unit * values[0], unit * values[-1])
        room = max(width - LABEL - len(ends) - 2, 1)
        label = Text(f"{clean(name):<{LABEL}.{LABEL}} ", style="dim")
        lines.append(Text.assemble(label, (sparkline(values, min(room, 60)), "cyan"), f" {ends}", no_wrap=True))
    return lines


def chosen(rows: Sequence[Mapping[str, Any]], most: int = 3) -> list[Mapping[str, Any]]:
    """The best, the worst and those in the middle by reward, of records of `samples.jsonl`."""
    ranked = sorted(rows, key=reward_of, reverse=True)
    if len(ranked) <= most:
        return ranked
    return [ranked[round(i * (len(ranked) - 1) / (most - 1))] for i in range(most)] if most > 1 else ranked[:most]


def cropped(text: str, room: int) -> str:
    """One harmless line of at most about `room` characters: the beginning and the end, where answers stand."""
    if len(text) <= room:
        return clean(text)
    half = max(room // 2 - 2, 1)
    return f"{clean(text[:half])} … {clean(text[-half:])}"


def _completion(row: Mapping[str, Any], width: int) -> list[RenderableType]:
    accuracy, reward = row.get("components", {}).get("accuracy"), reward_of(row)
    right = accuracy > 0.5 if isinstance(accuracy, int | float) else None
    mark, style = {None: ("·", "default"), True: ("✓", "green"), False: ("✗", "red")}[right]
    worth = f"{reward:.2f}" if math.isfinite(reward) else "no score"
    end = "" if row.get("stopped", True) else " (cut off)"
    asked = Text(f"{mark} {worth}{end}  {cropped(str(row.get('prompt', '')), 2 * width)}", style="dim")
    asked.truncate(width, overflow="ellipsis")
    said = Text(f"  {cropped(str(row.get('completion', '')), 2 * width - 4)}", style=style, overflow="fold")
    return [asked, said]


def frame(view: View, width: int) -> RenderableType:
    """The picture of `view` in a terminal of `width` columns."""
    parts = _head(view, width)
    for sentence in view.alerts:
        short = sentence if len(sentence) <= 2 * width - 4 else sentence[: 2 * width - 5] + "…"
        parts.append(Text(f"! {clean(short)}", style="bold yellow"))
    parts += [_table(cells(view), width), *_phases(view), *_curves(view, width)]
    if view.rows:
        parts.append(Text(f"completions of step {view.rows[0].get('step', view.step)}, by reward", style="dim"))
    for row in view.rows:
        parts += _completion(row, width)
    return Group(*parts)
