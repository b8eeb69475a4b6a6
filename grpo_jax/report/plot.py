"""Drawing one panel of curves as SVG elements: scales, grid, lines, points with intervals. No metric is known here."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

from grpo_jax.report.words import clean

INK, MUTED, GRID, RULE = "#1f2328", "#656d76", "#e6e8eb", "#8b939c"
LEFT, TOP, BOTTOM = 40, 26, 22
"""Within a panel: room for the labels of the y axis, the title, and the labels of the x axis."""
LETTER = 6.0
"""Width of a letter of a legend, in pixels, about: there is no font to ask."""
WARM_SHARE = 0.28
"""Share of the width of a panel for the warm start, which may have many more steps than what follows."""
MOST_POINTS = 240
Pair = tuple[float, float]


@dataclass(frozen=True)
class Theme:
    """Colours, as SVG takes them; a page gives variables of its style, so that light and dark follow the reader."""

    ink: str = INK
    muted: str = MUTED
    grid: str = GRID
    rule: str = RULE
    paper: str = "#ffffff"


@dataclass(frozen=True)
class Scale:
    """A panel: its title and its range. None: as the numbers go; `percent`: shares shown as per cent."""

    title: str
    low: float | None = 0.0
    high: float | None = None
    percent: bool = False


@dataclass(frozen=True)
class Curve:
    """What is drawn of one series: (place on the x axis in [0, 1], value), and for points intervals and words."""

    label: str
    colour: str
    values: Sequence[Pair]
    points: bool = False
    bars: Sequence[tuple[float, float, float]] = ()  # (place, low, high)
    notes: Sequence[str] = ()  # one for each point, shown under the pointer
    dash: str = ""


class Axis(NamedTuple):
    """Maps steps of the two phases to [0, 1]: warm start from 0 to `split`, what follows from `split` to 1."""

    warm: float
    steps: float
    split: float

    def at(self, phase: str, step: float) -> float:
        """Place of a step."""
        if phase == "warm_start":
            return self.split * step / max(self.warm, 1.0)
        return self.split + (1.0 - self.split) * step / max(self.steps, 1.0)


class Frame(NamedTuple):
    """Where the plot of a panel is on the page, and its range of values."""

    left: float
    top: float
    width: float
    height: float
    low: float
    high: float

    def x(self, share: float) -> float:
        """Pixels of a place on the x axis."""
        return self.left + self.width * share

    def y(self, value: float) -> float:
        """Pixels of a value."""
        return self.top + self.height * (1.0 - (value - self.low) / (self.high - self.low))


@dataclass(frozen=True)
class Pen:
    """How panels of one drawing look: the shared x axis, the colours, the points of a curve at most."""

    axis: Axis
    theme: Theme = field(default_factory=Theme)
    most: int = MOST_POINTS
    legend: bool = True


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers (1, 2, 2.5 or 5 times a power of ten apart) within [low, high]."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1.0, 2.0, 2.5, 5.0, 10.0) if m * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) + 0.0 for i in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float, *, percent: bool = False) -> str:
    """A label of an axis."""
    return f"{value * 100:.6g}%" if percent else f"{value:.6g}"


def px(value: float) -> str:
    """A coordinate with at most one decimal."""
    return f"{value:.1f}".removesuffix(".0")


def axis_of(metrics: Sequence[Mapping[str, Any]]) -> Axis:
    """The x axis on which all of `metrics` find a place."""
    warm = max((float(row["step"]) for row in metrics if row.get("phase") == "warm_start"), default=0.0)
    steps = max((float(row["step"]) for row in metrics if row.get("phase") != "warm_start"), default=0.0)
    split = 0.0 if not warm else 1.0 if not steps else WARM_SHARE
    return Axis(warm, steps, split)


def binned(values: Sequence[Pair], most: int = MOST_POINTS) -> list[Pair]:
    """At most `most` points: means over runs of neighbours of equal number."""
    size = -(-len(values) // most)
    pieces = [values[i : i + size] for i in range(0, len(values), size)] if size else []
    return [(math.fsum(x for x, _ in p) / len(p), math.fsum(v for _, v in p) / len(p)) for p in pieces]


def smoothed(values: Sequence[Pair], reach: int) -> list[Pair]:
    """Means over up to `reach` neighbours on either side; fewer, and as many on both sides, near the ends."""
    out = []
    for i, (x, _) in enumerate(values):
        near = min(reach, i, len(values) - 1 - i)
        window = [v for _, v in values[i - near : i + near + 1]]
        out.append((x, math.fsum(window) / len(window)))
    return out


def text(x: float, y: float, content: str, *, colour: str, size: int = 10, more: str = "") -> str:
    """A line of text, escaped and without control characters; `more` are attributes as they stand."""
    content = escape(clean(content))
    return f'<text x="{px(x)}" y="{px(y)}" font-size="{size}" fill="{colour}"{more}>{content}</text>'


def _path(frame: Frame, values: Sequence[Pair], style: str) -> str:
    if not values:
        return ""
    points = " ".join(f"{px(frame.x(x))},{px(frame.y(v))}" for x, v in values)
    return f'<polyline points="{points}" fill="none" stroke-linejoin="round" stroke-linecap="round" {style}/>'


def _dots(frame: Frame, curve: Curve, pen: Pen) -> list[str]:
    """Points joined by a thin line, each with its interval and its words where there are some."""
    out = [_path(frame, curve.values, f'stroke="{curve.colour}" stroke-width="1" stroke-opacity="0.6"')]
    for x, low, high in curve.bars:
        place = px(frame.x(x))
        out.append(
            f'<line x1="{place}" y1="{px(frame.y(low))}" x2="{place}" y2="{px(frame.y(high))}" '
            f'stroke="{curve.colour}" stroke-width="1.4" stroke-opacity="0.55"/>'
        )
    for i, (x, v) in enumerate(curve.values):
        end = f"><title>{escape(clean(curve.notes[i]))}</title></circle>" if curve.notes else "/>"
        out.append(
            f'<circle cx="{px(frame.x(x))}" cy="{px(frame.y(v))}" r="3" fill="{curve.colour}" '
            f'stroke="{pen.theme.paper}"{end}'
        )
    return out


def _line(frame: Frame, curve: Curve, pen: Pen) -> list[str]:
    """A faint line and its running mean, in either phase."""
    out, split = [], pen.axis.split
    dash = f' stroke-dasharray="{curve.dash}"' if curve.dash else ""
    warm = [pair for pair in curve.values if pair[0] <= split] if split else []
    for phase in (warm, curve.values[len(warm) :]):
        reduced = binned(phase, pen.most)
        if len(reduced) == 1:
            out.append(
                f'<circle cx="{px(frame.x(reduced[0][0]))}" cy="{px(frame.y(reduced[0][1]))}" r="1.5" '
                f'fill="{curve.colour}"/>'
            )
        out.append(_path(frame, reduced, f'stroke="{curve.colour}" stroke-width="1" stroke-opacity="0.25"'))
        bold = smoothed(reduced, max(1, len(reduced) // 24))
        out.append(_path(frame, bold, f'stroke="{curve.colour}" stroke-width="1.8"{dash}'))
    return out


def _range(scale: Scale, values: Sequence[float]) -> Pair:
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    low = low - room if scale.low is None else min(scale.low, low)
    high = high + room if scale.high is None else max(scale.high, high)
    return low, high if high > low else low + 1.0


def _grid(frame: Frame, scale: Scale, pen: Pen) -> list[str]:
    """Horizontal lines with values, steps below, and the dashed line where the warm start ends."""
    out, axis, theme = [], pen.axis, pen.theme
    for value in ticks(frame.low, frame.high):
        y, label = frame.y(value), number(value, percent=scale.percent)
        out.append(
            f'<line x1="{px(frame.left)}" y1="{px(y)}" x2="{px(frame.x(1))}" y2="{px(y)}" stroke="{theme.grid}"/>'
            + text(frame.left - 6, y + 3.5, label, colour=theme.muted, more=' text-anchor="end"')
        )
    bottom, middle = frame.top + frame.height + 14, ' text-anchor="middle"'
    if axis.steps:
        for step in ticks(0, axis.steps, 3 if axis.split else 4):
            out.append(text(frame.x(axis.at("grpo", step)), bottom, number(step), colour=theme.muted, more=middle))
    if axis.warm and not axis.steps:
        for step in ticks(0, axis.warm):
            place = frame.x(axis.at("warm_start", step))
            out.append(text(place, bottom, number(step), colour=theme.muted, more=middle))
    if 0 < axis.split < 1:
        x, words = px(frame.x(axis.split)), f"warm {number(axis.warm)}"
        out.append(
            f'<line x1="{x}" y1="{px(frame.top - 4)}" x2="{x}" y2="{px(frame.top + frame.height)}" '
            f'stroke="{theme.rule}" stroke-dasharray="3 3"/>'
            + text(frame.x(axis.split / 2) - 5, bottom, words, colour=theme.muted, size=9, more=middle)
        )
    base = px(frame.top + frame.height)
    return [*out, f'<line x1="{px(frame.left)}" y1="{base}" x2="{px(frame.x(1))}" y2="{base}" stroke="{theme.rule}"/>']


def _legend(right: float, y: float, shown: Sequence[Curve]) -> list[str]:
    """Labels in their colours, from the right, where a panel has more than one series."""
    if len(shown) < 2:
        return []
    out = []
    for curve in reversed(shown):
        out.append(text(right, y, curve.label, colour=curve.colour, more=' font-weight="600" text-anchor="end"'))
        right -= LETTER * len(curve.label) + 9
    return out


def panel(
    scale: Scale, curves: Sequence[Curve], pen: Pen, *, corner: Pair, size: Pair, name: str | None = None
) -> list[str]:
    """Elements of a panel of `size` pixels with its upper left corner at `corner`. Each curve has a value.

    `name` is an identifier that the page has only once; None takes one from the corner.
    """
    (left, top), (width, height), split = corner, size, pen.axis.split
    # What matters is what follows the warm start: its beginning may run out of the panel.
    measured = [pair for curve in curves for pair in curve.values]
    late = [v for x, v in measured if x >= split]
    low, high = _range(scale, late or [v for _, v in measured])
    frame = Frame(left + LEFT, top + TOP, width - LEFT, height - TOP - BOTTOM, low, high)
    out = [text(left + 4, top + 14, scale.title, size=12, colour=pen.theme.ink, more=' font-weight="600"')]
    out += _legend(left + width, top + 14, curves) if pen.legend else []
    out += _grid(frame, scale, pen)
    name = name or f"plot-{px(left)}-{px(top)}"
    out.append(
        f'<clipPath id="{name}"><rect x="{px(frame.left - 4)}" y="{px(frame.top - 4)}" '
        f'width="{px(frame.width + 8)}" height="{px(frame.height + 8)}"/></clipPath><g clip-path="url(#{name})">'
    )
    for curve in curves:
        out += _dots(frame, curve, pen) if curve.points else _line(frame, curve, pen)
    return [*out, "</g>"]
