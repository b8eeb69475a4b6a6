"""Curves of an ablation as one SVG file: a panel for each variant, its mean over the seeds with their spread.

The means of the other variants stand behind it in grey, so that any two can be compared, however many there are.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

from grpo_jax.report import clean
from grpo_jax.report.curves import BLUE, FONT, ORANGE
from grpo_jax.report.plot import Theme, ticks

WIDTH, COLUMNS, GAP, MARGIN = 900, 3, 18, 16
HEAD, PANEL_HEIGHT, FOOT = 44, 170, 30
LEFT, TOP, BOTTOM = 40, 26, 22
"""Within a panel: room for the labels of the y axis, the title, and the labels of the x axis."""
PALE, PAPER = "#c9ced6", Theme()

Curve = Sequence[tuple[int, float]]
"""(step, value) in order."""


class Band(NamedTuple):
    """Mean, smallest and largest value over the seeds, at one step."""

    step: int
    mean: float
    low: float
    high: float


class _Plot(NamedTuple):
    """Where the plot of a panel is on the page, and its ranges."""

    left: float
    top: float
    width: float
    height: float
    steps: float
    low: float
    high: float

    def x(self, step: float) -> str:
        return _px(self.left + self.width * step / max(self.steps, 1))

    def y(self, value: float) -> str:
        return _px(self.top + self.height * (1 - (value - self.low) / (self.high - self.low)))


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def bands(curves: Sequence[Curve]) -> list[Band]:
    """The steps at which every curve has a value, with their mean and range."""
    tables = [dict(curve) for curve in curves]
    common = sorted(set.intersection(*(set(table) for table in tables))) if tables else []
    values = [(step, [table[step] for table in tables]) for step in common]
    return [Band(step, math.fsum(v) / len(v), min(v), max(v)) for step, v in values]


def draw(curves: Mapping[str, Sequence[Curve]], *, title: str) -> str:
    """The text of the SVG; `curves` maps a variant to those of its seeds, shares of one. Equal numbers, equal bytes."""
    found = {name: bands(seeds) for name, seeds in curves.items()}
    found = {name: band for name, band in found.items() if band}
    rows = -(-len(found) // COLUMNS)
    height = HEAD + rows * PANEL_HEIGHT + max(rows - 1, 0) * GAP + FOOT
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'role="img" font-family="{FONT}">',
        f"<title>{escape(clean(title))}</title>",
        f'<rect width="{WIDTH}" height="{height}" rx="6" fill="#ffffff"/>',
        _text(MARGIN + 4, 28, title, size=16, colour=PAPER.ink, more=' font-weight="700"'),
    ]
    for number, name in enumerate(found):
        body += _panel(name, found, number)
    note = "GRPO steps; the band is the range over the seeds, grey are the means of the other variants"
    body.append(_text(WIDTH / 2, height - 10, note if found else "no numbers yet", more=' text-anchor="middle"'))
    return "\n".join([*body, "</svg>", ""])


def _panel(name: str, found: Mapping[str, Sequence[Band]], number: int) -> list[str]:
    width = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) / COLUMNS
    left = MARGIN + (number % COLUMNS) * (width + GAP)
    top = HEAD + (number // COLUMNS) * (PANEL_HEIGHT + GAP)
    everything = [band for own in found.values() for band in own]
    low, high = min(band.low for band in everything), max(band.high for band in everything)
    room = 0.06 * (high - low) or 0.05
    plot = _Plot(
        left + LEFT,
        top + TOP,
        width - LEFT,
        PANEL_HEIGHT - TOP - BOTTOM,
        max(band.step for band in everything),
        max(0.0, low - room),
        min(1.0, high + room) if high <= 1 else high + room,
    )
    own = found[name]
    out = [
        _text(left + 4, top + 14, name, size=12, colour=PAPER.ink, more=' font-weight="600"'),
        _text(left + width, top + 14, f"{100 * own[-1].mean:.1f}%", colour=BLUE, more=' text-anchor="end"'),
        *_grid(plot),
    ]
    for other, band in found.items():
        if other != name:
            out.append(_line(plot, band, f'stroke="{PALE}" stroke-width="1"'))
    around = [(b.step, b.high) for b in own] + [(b.step, b.low) for b in reversed(own)]
    points = " ".join(f"{plot.x(step)},{plot.y(value)}" for step, value in around)
    out.append(f'<polygon points="{points}" fill="{BLUE}" fill-opacity="0.18" stroke="none"/>')
    out.append(_line(plot, own, f'stroke="{BLUE}" stroke-width="1.8"'))
    end = own[-1]
    out.append(f'<circle cx="{plot.x(end.step)}" cy="{plot.y(end.mean)}" r="3" fill="{ORANGE}" stroke="#ffffff"/>')
    return out


def _grid(plot: _Plot) -> list[str]:
    out = []
    right, base = _px(plot.left + plot.width), _px(plot.top + plot.height)
    for value in ticks(plot.low, plot.high):
        y = plot.y(value)
        out.append(f'<line x1="{_px(plot.left)}" y1="{y}" x2="{right}" y2="{y}" stroke="{PAPER.grid}"/>')
        out.append(_text(plot.left - 6, float(y) + 3.5, f"{100 * value:.6g}%", more=' text-anchor="end"'))
    for step in ticks(0, plot.steps):
        place = float(plot.x(step))
        out.append(_text(place, plot.top + plot.height + 14, f"{step:.6g}", more=' text-anchor="middle"'))
    return [*out, f'<line x1="{_px(plot.left)}" y1="{base}" x2="{right}" y2="{base}" stroke="{PAPER.rule}"/>']


def _line(plot: _Plot, band: Sequence[Band], style: str) -> str:
    points = " ".join(f"{plot.x(b.step)},{plot.y(b.mean)}" for b in band)
    return f'<polyline points="{points}" fill="none" stroke-linejoin="round" stroke-linecap="round" {style}/>'


def _text(x: float, y: float, content: str, *, size: int = 10, colour: str = PAPER.muted, more: str = "") -> str:
    content = escape(clean(content))
    return f'<text x="{_px(x)}" y="{_px(y)}" font-size="{size}" fill="{colour}"{more}>{content}</text>'


def write(path: Path, curves: Mapping[str, Sequence[Curve]], *, title: str) -> None:
    """Writes the figure to `path`."""
    path.write_text(draw(curves, title=title), encoding="utf-8")
