"""Learning curves of one run or several as SVG: small panels, no plotting library, equal bytes from equal numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from grpo_jax.report.plot import Axis, Curve, Pen, Scale, axis_of, panel, text
from grpo_jax.report.saving import replace
from grpo_jax.report.words import clean, finite

BLUE, ORANGE, GREEN, PURPLE, RED, TEAL = "#2563ab", "#d9660a", "#2a8540", "#7a4fb0", "#c23b4b", "#14808f"
FONT = "-apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif"

WIDTH, COLUMNS, GAP, MARGIN = 900, 3, 18, 16
HEAD, PANEL_HEIGHT, FOOT = 44, 178, 30
Metrics = Sequence[Mapping[str, Any]]


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

    @property
    def scale(self) -> Scale:
        """Title and range, for the drawing."""
        return Scale(self.title, self.low, self.high, self.percent)


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


def values_of(metrics: Metrics, name: str, axis: Axis) -> list[tuple[float, float]]:
    """Places on the x axis and finite values of a metric, in order."""
    found = [(axis.at(row.get("phase", "grpo"), float(row["step"])), row.get(name)) for row in metrics]
    return [(x, finite(v)) for x, v in found if math.isfinite(finite(v))]


def _curves(panel: Panel, metrics: Metrics, axis: Axis) -> list[Curve]:
    """The curves of a panel for one run; none for a metric that was not recorded."""
    found = [(series, values_of(metrics, series.name, axis)) for series in panel.series]
    return [Curve(s.label, s.colour, values, points=s.points) for s, values in found if values]


def draw(metrics: Metrics, *, title: str, panels: Sequence[Panel] = PANELS) -> str:
    """The text of the SVG. Records have `phase` ("warm_start" or another), `step`, and numbers by name."""
    pen = Pen(axis_of(metrics))
    theme, split = pen.theme, pen.axis.split
    found = [(each, _curves(each, metrics, pen.axis)) for each in panels]
    used = [(each, curves) for each, curves in found if curves]
    rows = -(-len(used) // COLUMNS)
    height = HEAD + rows * PANEL_HEIGHT + max(rows - 1, 0) * GAP + FOOT
    step = (WIDTH - 2 * MARGIN + GAP) / COLUMNS
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'role="img" font-family="{FONT}">',
        f"<title>{escape(clean(title))}</title>",
        f'<rect width="{WIDTH}" height="{height}" rx="6" fill="{theme.paper}"/>',
        text(MARGIN + 4, 28, title, size=16, colour=theme.ink, more=' font-weight="700"'),
    ]
    for i, (each, curves) in enumerate(used):
        corner = (MARGIN + (i % COLUMNS) * step, HEAD + (i // COLUMNS) * (PANEL_HEIGHT + GAP))
        body += panel(each.scale, curves, pen, corner=corner, size=(step - GAP, PANEL_HEIGHT))
    note = "GRPO steps; the dashed line is where the warm start ends" if 0 < split < 1 else "steps"
    note = note if used else "no numbers yet"
    body.append(text(WIDTH / 2, height - 10, note, colour=theme.muted, more=' text-anchor="middle"'))
    return "\n".join([line for line in body if line] + ["</svg>", ""])


def figure(path: Path, metrics: Metrics, *, title: str, panels: Sequence[Panel] = PANELS) -> None:
    """Writes the learning curves of a run to `path`; panels without a number are left out."""
    replace(Path(path), draw(metrics, title=title, panels=panels))
