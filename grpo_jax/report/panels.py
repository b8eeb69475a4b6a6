"""The curves of a page: one SVG a panel, several metrics of one run or one metric of several runs, with a description.

Colours are variables of the style of the page, so that they follow light and dark.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from grpo_jax.report.curves import BLUE, GREEN, ORANGE, PANELS, PURPLE, RED, TEAL, Metrics, Panel, Series, values_of
from grpo_jax.report.markup import esc
from grpo_jax.report.plot import Axis, Curve, Pen, Theme, axis_of, panel
from grpo_jax.report.runs import Run
from grpo_jax.report.sets import Interval, number_of, parsed

PAGE = Theme("var(--ink)", "var(--muted)", "var(--grid)", "var(--rule)", "var(--paper)")
SHADES = tuple(f"var(--s{n})" for n in range(8))
DASHES = ("", "6 3", "2 3")
"""A ninth run has the colour of the first again, and is dashed."""
_SHADE: dict[str, str] = dict(zip((BLUE, ORANGE, GREEN, PURPLE, RED, TEAL), SHADES, strict=False))
SIZE = (380.0, 214.0)
MOST_MAIN, MOST_OTHERS = 24, 60
"""Panels at most that are seen at once, and behind a line that opens them."""
SPARSE = 1 / 3
"""A metric that fewer records than this share have is drawn as points."""
POINTS_OF_MANY = 120
_NOT_DRAWN = {"phase", "step", "nonfinite"}


@dataclass(frozen=True)
class _Line:
    """One curve to be: a series of one run."""

    series: Series
    metrics: Metrics
    dash: str = ""


def _curve(line: _Line, axis: Axis, *, percent: bool) -> Curve:
    series, name = line.series, line.series.name
    values = values_of(line.metrics, name, axis)
    bars, notes = [], []
    if series.points:
        for row in line.metrics:
            found = Interval(*(number_of(row, name + end) for end in ("", "/low", "/high")))
            if math.isfinite(found.value):
                place = axis.at(row.get("phase", "grpo"), float(row["step"]))
                bars += [(place, found.low, found.high)] if math.isfinite(found.low + found.high) else []
                said = found.words() if percent else f"{found.value:.4g}"
                notes.append(f"{series.label}, step {row['step']}: {said}")
    colour = _SHADE.get(series.colour, series.colour)
    return Curve(series.label, colour, values, series.points, tuple(bars), tuple(notes), line.dash)


def _described(curve: Curve, *, percent: bool) -> str:
    values = [value for _, value in curve.values]
    said = [f"{100 * v:.1f} %" if percent else f"{v:.3g}" for v in (values[0], values[-1], min(values), max(values))]
    first, last, low, high = said
    return f"{curve.label}: {first} to {last}, lowest {low}, highest {high}, {len(values)} values."


def _figure(name: str, plan: Panel, lines: Sequence[_Line], pen: Pen, *, legend: bool) -> str:
    """One panel with its title, description and legend; nothing where no curve has a value."""
    curves = [_curve(line, pen.axis, percent=plan.percent) for line in lines]
    curves = [curve for curve in curves if curve.values]
    if not curves:
        return ""
    body = "".join(panel(plan.scale, curves, pen, corner=(0.0, 0.0), size=SIZE, name=f"{name}-plot"))
    told = " ".join(_described(curve, percent=plan.percent) for curve in curves)
    width, height = (f"{side:g}" for side in (SIZE[0] + 6, SIZE[1]))
    keys = "".join(f"<span>{_swatch(curve.colour)} {esc(curve.label)}</span>" for curve in curves)
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" role="img" aria-labelledby="{name}-t {name}-d">'
        f'<title id="{name}-t">{esc(plan.title)}</title><desc id="{name}-d">{esc(told)}</desc>{body}</svg>'
        + (f"<figcaption>{keys}</figcaption>" if legend and len(curves) > 1 else "")
        + "</figure>\n"
    )


def _swatch(colour: str, dash: str = "") -> str:
    style = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        '<svg class="key" viewBox="0 0 20 8" aria-hidden="true">'
        f'<line x1="1" y1="4" x2="19" y2="4" stroke="{colour}" stroke-width="3"{style}/></svg>'
    )


def swatch(number: int) -> str:
    """The sign of run `number` in legends and tables."""
    return _swatch(*_pen_of(number))


def _pen_of(number: int) -> tuple[str, str]:
    return SHADES[number % len(SHADES)], DASHES[number // len(SHADES) % len(DASHES)]


def _sets(metrics: Metrics, drawn: set[str]) -> list[Panel]:
    """Panels of held-out sets beyond those `drawn`, and of the categories of each."""
    found: dict[str | None, dict[str, str]] = {}
    for name in dict.fromkeys(name for row in metrics for name in row):
        parts = parsed(name)
        if parts and parts[0] == "accuracy" and name not in drawn:
            _, held, category = parts
            found.setdefault(held if category is not None else None, {})[name] = held if category is None else category
    out = []
    for held, names in found.items():
        title = "Accuracy, more held-out sets" if held is None else f"Accuracy by category, {held}"
        pairs = list(names.items())
        for begin in range(0, len(pairs), len(SHADES)):
            part = pairs[begin : begin + len(SHADES)]
            series = [
                Series(name, label, shade, points=True) for (name, label), shade in zip(part, SHADES, strict=False)
            ]
            single = f"Accuracy, {part[0][1]}" if held is None and len(part) == 1 else title
            out.append(Panel(single, tuple(series), high=1.0, percent=True))
    return out


def _others(runs: Sequence[Run], drawn: set[str]) -> tuple[list[Panel], int]:
    """A panel for each metric that is not among those `drawn`, and how many there are beyond the most."""
    counts: dict[str, int] = {}
    rows = sum(len(run.metrics) for run in runs)
    for run in runs:
        for row in run.metrics:
            for name in row:
                if not name.endswith(("/low", "/high")) and name not in drawn | _NOT_DRAWN:
                    counts[name] = counts.get(name, 0) + math.isfinite(number_of(row, name))
    names = sorted((name for name, count in counts.items() if count), key=_of_a_category)
    shares = {name for run in runs for row in run.metrics for name in row if f"{name}/low" in row}
    panels = [
        Panel(name, (Series(name, name, BLUE, points=counts[name] < SPARSE * rows),), low=None, percent=name in shares)
        for name in names[:MOST_OTHERS]
    ]
    return panels, len(names) - len(panels)


def _of_a_category(name: str) -> tuple[bool, str]:
    return "[" in name, name


def _single(panels: Sequence[Panel]) -> list[Panel]:
    """The same with one series a panel, for several runs."""
    out = []
    for each in panels:
        for series in each.series:
            title = f"{each.title}: {series.label}" if len(each.series) > 1 else each.title
            out.append(replace(each, title=title, series=(series,)))
    return out


def curves(runs: Sequence[Run]) -> tuple[str, str]:
    """Markup of the main panels, and of those of all other metrics (empty where there are none)."""
    every = [row for run in runs for row in run.metrics]
    axis = axis_of(every)
    drawn = _metrics(PANELS)
    sets = _sets(every, drawn)
    main = [*PANELS[:1], *sets, *PANELS[1:]]
    drawn |= _metrics(sets)
    others, left = _others(runs, drawn)
    if len(runs) > 1:
        single = _single(main)
        main, others = single[:MOST_MAIN], single[MOST_MAIN:] + others
    pens = Pen(axis, PAGE, legend=False), Pen(axis, PAGE, most=POINTS_OF_MANY, legend=False)
    first = "".join(_drawn(f"p{i}", each, runs, pens[0]) for i, each in enumerate(main))
    rest = "".join(_drawn(f"o{i}", each, runs, pens[1]) for i, each in enumerate(others))
    if left:
        rest += f"<p>{left} more metrics are in metrics.jsonl.</p>"
    return first, rest


def _metrics(panels: Sequence[Panel]) -> set[str]:
    return {series.name for each in panels for series in each.series}


def _drawn(name: str, plan: Panel, runs: Sequence[Run], pen: Pen) -> str:
    if len(runs) == 1:
        return _figure(name, plan, [_Line(series, runs[0].metrics) for series in plan.series], pen, legend=True)
    lines = []
    for number, run in enumerate(runs):
        colour, dash = _pen_of(number)
        lines.append(_Line(replace(plan.series[0], label=run.label, colour=colour), run.metrics, dash))
    return _figure(name, plan, lines, pen, legend=False)
