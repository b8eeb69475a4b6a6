"""Learning curves as one SVG file: small panels, no plotting library, equal bytes from equal numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

from grpo_jax.report.words import clean

BLUE, ORANGE, GREEN, PURPLE, RED, TEAL = "#2563ab", "#d9660a", "#2a8540", "#7a4fb0", "#c23b4b", "#14808f"
INK, MUTED, GRID, RULE = "#1f2328", "#656d76", "#e6e8eb", "#8b939c"
FONT = "-apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif"

WIDTH, COLUMNS, GAP, MARGIN = 900, 3, 18, 16
HEAD, PANEL_HEIGHT, FOOT = 44, 178, 30
LEFT, TOP, BOTTOM = 40, 26, 22
"""Within a panel: room for the labels of the y axis, the title, and the labels of the x axis."""
LETTER = 6.0
"""Width of a letter of a legend, in pixels, about: there is no font to ask."""
WARM_SHARE = 0.28
"""Share of the width of a panel for the warm start, which may have many more steps than what follows."""
MOST_POINTS = 240


@dataclass(frozen=True)
class Series:
    """One metric in a panel: a curve, or points where it was measured now and then."""

    name: str
    label: str
    colour: str
    points: bool = False


@dataclass(frozen=True)
class Panel:
    """Some series over one axis. `high` None: as high as the numbers; `percent`: shares shown as per cent."""

    title: str
    series: tuple[Series, ...]
    low: float | None = 0.0
    high: float | None = None
    percent: bool = False


PANELS = (
    Panel(
        "Accuracy",
        (
            Series("reward/accuracy", "training", BLUE),
            Series("accuracy/heldout", "held out", ORANGE, points=True),
            Series("greedy/heldout", "greedy", GREEN, points=True),
        ),
        high=1.0,
        percent=True,
    ),
    Panel("Reward, mean", (Series("reward/mean", "training", BLUE),), low=None),
    Panel(
        "Length, tokens",
        (Series("length/mean", "training", PURPLE), Series("length/heldout", "held out", ORANGE, points=True)),
    ),
    Panel(
        "Entropy, nats a token",
        (Series("entropy", "training", TEAL), Series("entropy/heldout", "held out", ORANGE, points=True)),
    ),
    Panel(
        "Well-formed answers",
        (Series("reward/format", "training", GREEN), Series("format/heldout", "held out", ORANGE, points=True)),
        high=1.0,
        percent=True,
    ),
    Panel("Tied groups (teach nothing)", (Series("groups/tied", "share", RED),), high=1.0, percent=True),
    Panel("KL to the reference, nats", (Series("kl/ref", "training", PURPLE),)),
)


class _Axis(NamedTuple):
    """Maps steps of the two phases to [0, 1]: warm start from 0 to `split`, what follows from `split` to 1."""

    warm: float
    steps: float
    split: float

    def at(self, phase: str, step: float) -> float:
        if phase == "warm_start":
            return self.split * step / max(self.warm, 1.0)
        return self.split + (1.0 - self.split) * step / max(self.steps, 1.0)


class _Frame(NamedTuple):
    """Where the plot of a panel is on the page, and its range of values."""

    left: float
    top: float
    width: float
    height: float
    low: float
    high: float

    def x(self, share: float) -> float:
        return self.left + self.width * share

    def y(self, value: float) -> float:
        return self.top + self.height * (1.0 - (value - self.low) / (self.high - self.low))


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers (1, 2, 2.5 or 5 times a power of ten apart) within [low, high]."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1.0, 2.0, 2.5, 5.0, 10.0) if m * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) + 0.0 for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _number(value: float, percent: bool = False) -> str:
    return f"{value * 100:.6g}%" if percent else f"{value:.6g}"


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _axis(metrics: Sequence[Mapping[str, Any]]) -> _Axis:
    warm = max((float(row["step"]) for row in metrics if row.get("phase") == "warm_start"), default=0.0)
    steps = max((float(row["step"]) for row in metrics if row.get("phase") != "warm_start"), default=0.0)
    split = 0.0 if not warm else 1.0 if not steps else WARM_SHARE
    return _Axis(warm, steps, split)


def _values(metrics: Sequence[Mapping[str, Any]], name: str, axis: _Axis) -> list[tuple[float, float]]:
    """Places on the x axis and finite values of a metric, in order."""
    found = [(axis.at(row.get("phase", "grpo"), float(row["step"])), row.get(name)) for row in metrics]
    return [(x, float(v)) for x, v in found if isinstance(v, int | float) and math.isfinite(v)]


def binned(values: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most `most` points: means over runs of neighbours of equal number."""
    size = -(-len(values) // most)
    pieces = [values[i : i + size] for i in range(0, len(values), size)] if size else []
    return [(math.fsum(x for x, _ in p) / len(p), math.fsum(v for _, v in p) / len(p)) for p in pieces]


def smoothed(values: Sequence[tuple[float, float]], reach: int) -> list[tuple[float, float]]:
    """Means over up to `reach` neighbours on either side; fewer, and as many on both sides, near the ends."""
    out = []
    for i, (x, _) in enumerate(values):
        near = min(reach, i, len(values) - 1 - i)
        window = [v for _, v in values[i - near : i + near + 1]]
        out.append((x, math.fsum(window) / len(window)))
    return out


def _path(frame: _Frame, values: Sequence[tuple[float, float]], style: str) -> str:
    if not values:
        return ""
    points = " ".join(f"{_px(frame.x(x))},{_px(frame.y(v))}" for x, v in values)
    return f'<polyline points="{points}" fill="none" stroke-linejoin="round" stroke-linecap="round" {style}/>'


def _text(x: float, y: float, content: str, *, size: int = 10, colour: str = MUTED, more: str = "") -> str:
    content = escape(clean(content))
    return f'<text x="{_px(x)}" y="{_px(y)}" font-size="{size}" fill="{colour}"{more}>{content}</text>'


def _curve(frame: _Frame, series: Series, values: list[tuple[float, float]], split: float) -> list[str]:
    """One series: a faint line and its running mean in either phase, or points joined by a thin line."""
    if series.points:
        dots = [
            f'<circle cx="{_px(frame.x(x))}" cy="{_px(frame.y(v))}" r="3" fill="{series.colour}" stroke="#ffffff"/>'
            for x, v in values
        ]
        return [_path(frame, values, f'stroke="{series.colour}" stroke-width="1" stroke-opacity="0.6"'), *dots]
    out = []
    warm = [pair for pair in values if pair[0] <= split] if split else []
    for phase in (warm, values[len(warm) :]):
        reduced = binned(phase)
        if len(reduced) == 1:
            out.append(
                f'<circle cx="{_px(frame.x(reduced[0][0]))}" cy="{_px(frame.y(reduced[0][1]))}" r="1.5" '
                f'fill="{series.colour}"/>'
            )
        out.append(_path(frame, reduced, f'stroke="{series.colour}" stroke-width="1" stroke-opacity="0.25"'))
        bold = smoothed(reduced, max(1, len(reduced) // 24))
        out.append(_path(frame, bold, f'stroke="{series.colour}" stroke-width="1.8"'))
    return out


def _range(panel: Panel, values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    low = low - room if panel.low is None else min(panel.low, low)
    high = high + room if panel.high is None else max(panel.high, high)
    return low, high if high > low else low + 1.0


def _grid(frame: _Frame, panel: Panel, axis: _Axis) -> list[str]:
    """Horizontal lines with values, steps below, and the dashed line where the warm start ends."""
    out = []
    for value in ticks(frame.low, frame.high):
        y = frame.y(value)
        out.append(
            f'<line x1="{_px(frame.left)}" y1="{_px(y)}" x2="{_px(frame.x(1))}" y2="{_px(y)}" stroke="{GRID}"/>'
            + _text(frame.left - 6, y + 3.5, _number(value, panel.percent), more=' text-anchor="end"')
        )
    bottom = frame.top + frame.height + 14
    if axis.steps:
        for step in ticks(0, axis.steps, 3 if axis.split else 4):
            out.append(_text(frame.x(axis.at("grpo", step)), bottom, _number(step), more=' text-anchor="middle"'))
    if axis.warm and not axis.steps:
        for step in ticks(0, axis.warm):
            place = frame.x(axis.at("warm_start", step))
            out.append(_text(place, bottom, _number(step), more=' text-anchor="middle"'))
    if 0 < axis.split < 1:
        x = _px(frame.x(axis.split))
        out.append(
            f'<line x1="{x}" y1="{_px(frame.top - 4)}" x2="{x}" y2="{_px(frame.top + frame.height)}" '
            f'stroke="{RULE}" stroke-dasharray="3 3"/>'
            + _text(
                frame.x(axis.split / 2) - 5, bottom, f"warm {_number(axis.warm)}", size=9, more=' text-anchor="middle"'
            )
        )
    base = _px(frame.top + frame.height)
    out.append(f'<line x1="{_px(frame.left)}" y1="{base}" x2="{_px(frame.x(1))}" y2="{base}" stroke="{RULE}"/>')
    return out


def _legend(right: float, y: float, shown: Sequence[Series]) -> list[str]:
    """Labels in their colours, from the right, where a panel has more than one series."""
    if len(shown) < 2:
        return []
    out = []
    for series in reversed(shown):
        out.append(_text(right, y, series.label, colour=series.colour, more=' font-weight="600" text-anchor="end"'))
        right -= LETTER * len(series.label) + 9
    return out


def _panel(panel: Panel, metrics: Sequence[Mapping[str, Any]], axis: _Axis, left: float, top: float) -> list[str]:
    """One panel with its corner at (left, top); nothing where none of its metrics was recorded."""
    curves = [(series, _values(metrics, series.name, axis)) for series in panel.series]
    curves = [(series, values) for series, values in curves if values]
    # What matters is what follows the warm start: its beginning may run out of the panel.
    measured = [pair for _, values in curves for pair in values]
    late = [v for x, v in measured if x >= axis.split]
    low, high = _range(panel, late or [v for _, v in measured])
    width = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) / COLUMNS
    frame = _Frame(left + LEFT, top + TOP, width - LEFT, PANEL_HEIGHT - TOP - BOTTOM, low, high)
    out = [_text(left + 4, top + 14, panel.title, size=12, colour=INK, more=' font-weight="600"')]
    out += _legend(left + width, top + 14, [series for series, _ in curves])
    out += _grid(frame, panel, axis)
    name = f"plot-{_px(left)}-{_px(top)}"
    out.append(
        f'<clipPath id="{name}"><rect x="{_px(frame.left - 4)}" y="{_px(frame.top - 4)}" '
        f'width="{_px(frame.width + 8)}" height="{_px(frame.height + 8)}"/></clipPath><g clip-path="url(#{name})">'
    )
    for series, values in curves:
        out += _curve(frame, series, values, axis.split)
    return [*out, "</g>"]


def draw(metrics: Sequence[Mapping[str, Any]], *, title: str, panels: Sequence[Panel] = PANELS) -> str:
    """The text of the SVG. Records have `phase` ("warm_start" or another), `step`, and numbers by name."""
    axis = _axis(metrics)
    used = [p for p in panels if any(_values(metrics, series.name, axis) for series in p.series)]
    rows = -(-len(used) // COLUMNS)
    height = HEAD + rows * PANEL_HEIGHT + max(rows - 1, 0) * GAP + FOOT
    step = (WIDTH - 2 * MARGIN + GAP) / COLUMNS
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'role="img" font-family="{FONT}">',
        f"<title>{escape(clean(title))}</title>",
        f'<rect width="{WIDTH}" height="{height}" rx="6" fill="#ffffff"/>',
        _text(MARGIN + 4, 28, title, size=16, colour=INK, more=' font-weight="700"'),
    ]
    for i, panel in enumerate(used):
        left = MARGIN + (i % COLUMNS) * step
        body += _panel(panel, metrics, axis, left, HEAD + (i // COLUMNS) * (PANEL_HEIGHT + GAP))
    note = "GRPO steps; the dashed line is where the warm start ends" if 0 < axis.split < 1 else "steps"
    body.append(_text(WIDTH / 2, height - 10, note if used else "no numbers yet", more=' text-anchor="middle"'))
    return "\n".join([line for line in body if line] + ["</svg>", ""])


def figure(path: Path, metrics: Sequence[Mapping[str, Any]], *, title: str, panels: Sequence[Panel] = PANELS) -> None:
    """Writes the learning curves of a run to `path`; panels without a number are left out."""
    Path(path).write_text(draw(metrics, title=title, panels=panels), encoding="utf-8")
