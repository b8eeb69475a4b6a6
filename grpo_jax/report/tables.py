"""The tables of a page: what runs came to, how they were set, what they took. All cells are escaped here."""

import math
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from grpo_jax.report.markup import details, esc, table
from grpo_jax.report.panels import swatch
from grpo_jax.report.runs import Run, differing
from grpo_jax.report.sets import Measured, by_set, interval, measures, number_of
from grpo_jax.report.words import ROWS, compared, ends, finite

TRAINING = (
    ("reward/mean", "reward", ""),
    ("reward/std", "deviation of the reward", ""),
    ("length/mean", "length, tokens", ""),
    ("entropy", "entropy, nats a token", ""),
    ("kl/ref", "KL to the reference, nats", ""),
    ("clip/low", "clipped low", "%"),
    ("clip/high", "clipped high", "%"),
    ("groups/tied", "tied groups", "%"),
    ("grad_norm", "gradient norm", ""),
)
RECENT = 10
"""Steps at the end of training whose mean is shown: one step is noise."""
_OF_A_LINE = {"step", "attempt", "phase"}


def _said(record: Mapping[str, Any], name: str, unit: str) -> str:
    found = interval(record, name)
    if not math.isfinite(found.value):
        return "-"
    return found.words() if unit == "%" else f"{found.value:.3g}"


def _cell(run: int, name: str, words: str) -> str:
    return f'<td data-run="{run}" data-metric="{esc(name)}">{_bounded(words)}</td>'


def _bounded(words: str) -> str:
    value, _, bounds = words.partition(" (")
    return esc(value) + (f' <span class="bounds">({esc(bounds)}</span>' if bounds else "")


def learning(run: Run) -> list[Mapping[str, Any]]:
    """The records of GRPO steps."""
    return [row for row in run.metrics if row.get("phase") != "warm_start" and row.get("step")]


def _recent(run: Run, name: str) -> float:
    values = [v for v in (number_of(row, name) for row in learning(run)[-RECENT:]) if math.isfinite(v)]
    return math.fsum(values) / len(values) if values else math.nan


def _named(number: int, run: Run, *, several: bool) -> str:
    return f"{swatch(number)} {esc(run.label)}" if several else esc(run.label)


def _before_and_after(run: Run) -> str:
    before, after = ends(run.metrics)
    lines = compared(before, after)
    if not lines:
        return ""
    named = {label: name for name, label, _ in ROWS}
    rows = [[esc(c[0]), _bounded(c[1]), _cell(0, named[c[0]], c[2]), esc(c[3])] for c in lines]
    return table("Held-out problems, before and after GRPO", ["", "before", "after", "change"], rows, kind="numbers")


def _final(runs: Sequence[Run]) -> str:
    """A row for each run: held-out numbers at its end, with intervals."""
    pairs = [ends(run.metrics) for run in runs]
    shown = [row for row in ROWS if any(math.isfinite(number_of(after, row[0])) for _, after in pairs)]
    head = ["run", "GRPO steps", "accuracy before", *(label for _, label, _ in shown)]
    rows = []
    for number, (run, (before, after)) in enumerate(zip(runs, pairs, strict=True)):
        steps = max((int(row["step"]) for row in learning(run)), default=0)
        first = _said(before, "accuracy/heldout", "%").partition(" (")[0]
        cells = [_cell(number, name, _said(after, name, unit)) for name, _, unit in shown]
        rows.append([_named(number, run, several=True), str(steps), esc(first), *cells])
    return table("Final numbers on held-out problems, with intervals at 95 %", head, rows, kind="runs")


def _sets(runs: Sequence[Run]) -> str:
    """Every measure of every held-out set and category: a row each for one run, a column each for several."""
    found = [by_set(run.metrics) for run in runs]
    names = measures([each for sets in found for each in sets])
    if not names:
        return ""
    if len(runs) == 1:
        rows = [
            [esc(each.label), *(_measure(0, each, name) for name in names), _count(each.problems), str(each.step)]
            for each in found[0]
        ]
        head = ["held-out set", *names, "problems", "step"]
        return table("Each held-out set and category at its newest evaluation", head, rows, kind="numbers")
    shown = {name for name, _, _ in ROWS}
    columns = [(name, each) for name in names for sets in found for each in sets if name in each.values]
    first, rest = {}, {}  # (measure, label), in order
    for name, each in columns:
        if f"{name}/{each.label}" not in shown:
            (first if name == "accuracy" or each.category is None else rest)[name, each.label] = None
    out = _columns("More held-out sets, categories and measures", runs, found, list(first))
    more = _columns("Other measures of categories", runs, found, list(rest))
    return out + (details("Other measures of categories", more) if more else "")


def _columns(
    caption: str, runs: Sequence[Run], found: Sequence[Sequence[Measured]], wanted: Sequence[tuple[str, str]]
) -> str:
    """A row for each run, a column for each measure of a set or category; nothing where none is wanted."""
    rows = []
    for number, (run, sets) in enumerate(zip(runs, found, strict=True)):
        known = {each.label: each for each in sets}
        cells = [_measure(number, known[label], name) if label in known else "-" for name, label in wanted]
        rows.append([_named(number, run, several=True), *cells])
    head = ["run", *(f"{name}, {label}" for name, label in wanted)]
    return table(caption, head, rows, kind="runs") if wanted else ""


def _count(problems: float) -> str:
    return f"{problems:,.0f}" if math.isfinite(problems) else "-"


def _measure(number: int, each: Measured, name: str) -> str:
    metric = f"{name}/{each.name}" + ("" if each.category is None else f"[{each.category}]")
    return _cell(number, metric, each.values[name].words()) if name in each.values else "-"


def _training(runs: Sequence[Run]) -> str:
    shown = [row for row in TRAINING if any(math.isfinite(_recent(run, row[0])) for run in runs)]
    if not shown:
        return ""
    rows = [
        [
            _named(n, run, several=len(runs) > 1),
            *(esc(_said({name: _recent(run, name)}, name, unit)) for name, _, unit in shown),
        ]
        for n, run in enumerate(runs)
    ]
    head = ["run", *(label for _, label, _ in shown)]
    return table(f"Training, means of the last {RECENT} steps", head, rows, kind="runs")


def numbers(runs: Sequence[Run]) -> str:
    """What the runs came to."""
    first = _final(runs) if len(runs) > 1 else _before_and_after(runs[0])
    return first + _sets(runs) + _training(runs)


def alerts(runs: Sequence[Run]) -> str:
    """What the runs said of themselves."""
    out = []
    for number, run in enumerate(runs):
        lines = "".join(f"<li>step {step}: {esc(sentence)}</li>" for step, sentence in run.alerts)
        said = f"<ul>{lines}</ul>" if lines else "<p>None.</p>"
        out.append((f"<h3>{_named(number, run, several=True)}</h3>" if len(runs) > 1 else "") + said)
    return "\n".join(out) + "\n"


def settings(runs: Sequence[Run]) -> str:
    """Settings that differ, then all of them."""
    different, same = differing(runs)
    out = ""
    if len(runs) > 1:
        rows = [
            [
                f"<code>{esc(name)}</code>",
                *(f"<code>{esc(run.settings.get(name, '(not there)'))}</code>" for run in runs),
            ]
            for name in different
        ]
        head = ["setting", *(run.label for run in runs)]
        out = table("Settings that differ", head, rows) if rows else "<p>All settings are the same.</p>\n"
    rows = [[f"<code>{esc(name)}</code>", f"<code>{esc(runs[0].settings[name])}</code>"] for name in same]
    rest = "the same in all runs" if len(runs) > 1 else "all"
    return out + details(f"Settings, {rest} ({len(same)})", table(f"Settings, {rest}", ["setting", "value"], rows))


def _numeric(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    out: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            out |= _numeric(value, f"{prefix}{name}/")
        elif math.isfinite(finite(value)) and not isinstance(value, bool):
            out |= {} if not prefix and name in _OF_A_LINE else {f"{prefix}{name}": finite(value)}
    return out


def timing(runs: Sequence[Run]) -> str:
    """Sum, mean and highest of every number of `timing.jsonl`, for each phase of each run."""
    rows = []
    for number, run in enumerate(runs):
        found: dict[tuple[str, str], list[float]] = {}
        for record in run.timing:
            for name, value in _numeric(record).items():
                found.setdefault((str(record.get("phase", "")), name), []).append(value)
        attempts = max((v for v in (number_of(record, "attempt") for record in run.timing) if v >= 1), default=1)
        for (phase, name), values in found.items():
            cells = [*_spent(phase, name, values), f"{len(values):,}", f"{attempts:.0f}"]
            rows.append([_named(number, run, several=len(runs) > 1), *cells])
    if not rows:
        return ""
    head = ["run", "what", "sum", "mean", "highest", "records", "attempts"]
    return table("Time and memory, as timing.jsonl has them", head, sorted(rows, key=itemgetter(1)), kind="timing")


def _spent(phase: str, name: str, values: Sequence[float]) -> list[str]:
    """What it is, its sum, mean and highest value; what is no amount that adds up has no sum."""
    adds_up, words = not name.endswith(("per_second", "_bytes")), name.replace("_", " ")
    if name.startswith("phases/"):
        words = f"seconds of {words.removeprefix('phases/')}"
    if name.endswith("_bytes"):
        values, words = [value / 2**30 for value in values], f"{words.removesuffix(' bytes')}, GiB"
    total = math.fsum(values)
    what = esc(f"{phase.replace('_', ' ')}: {words}")
    return [what, f"{total:,.1f}" if adds_up else "-", f"{total / len(values):,.4g}", f"{max(values):,.4g}"]


def origins(runs: Sequence[Run]) -> str:
    """Where each run lies, what it was started from, and by which versions."""
    found = []
    for run in runs:
        origin = run.config.get("origin")
        facts = {"experiment": run.name, "folder": str(run.folder)}
        facts |= {f"origin: {k}": v for k, v in (origin.items() if isinstance(origin, Mapping) else ())}
        facts |= {f"version: {k}": v for k, v in run.config["versions"].items()}
        facts |= {k: v for k, v in run.config.items() if isinstance(v, str) and v}
        found.append({name: _plain(value) for name, value in facts.items()})
    names = list(dict.fromkeys(name for facts in found for name in facts))
    rows = [[esc(name), *(f"<code>{esc(facts.get(name, '-'))}</code>" for facts in found)] for name in names]
    return table("Origin and versions", ["", *(run.label for run in runs)], rows)


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)
