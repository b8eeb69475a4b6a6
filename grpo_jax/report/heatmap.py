"""A table of numbers between -1 and 1 as coloured squares: an SVG file that needs nothing else.

Equal numbers give equal bytes.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

from grpo_jax.report.curves import BLUE, FONT, ORANGE
from grpo_jax.report.plot import INK, LETTER, MUTED, RULE, px
from grpo_jax.report.words import clean

Matrix = Sequence[Sequence[float]]
MARGIN, HEAD, FOOT = 16, 46, 58
ROOM, SMALLEST, LARGEST = 640, 14, 56
"""Pixels that the squares of one side may take together, and the side of one at least and at most."""
NUMBERED = 30
"""A square of at least so many pixels has its number in it; every one shows it under the pointer."""
MIDDLE = "#f6f5f1"
SLANT = 55
"""Degrees by which the names of the columns lean."""
MOST_LETTERS = 32


class _Layout(NamedTuple):
    """Where the squares are."""

    left: float
    top: float
    side: float
    count: int


def clustered(similarity: Matrix) -> list[int]:
    """An order of the rows in which those that are alike stand together.

    The two groups of the highest mean similarity (average linkage) are joined until one is left; the larger of the two
    goes first, of equal ones that with the first row. What is not a number counts as 0.
    """
    groups = [[row] for row in range(len(similarity))]
    while len(groups) > 1:
        pairs = [(a, b) for a in range(len(groups)) for b in range(a + 1, len(groups))]
        a, b = max(pairs, key=lambda pair: (_linkage(similarity, groups[pair[0]], groups[pair[1]]), -pair[0], -pair[1]))
        first, second = sorted((groups[a], groups[b]), key=lambda rows: (-len(rows), min(rows)))
        groups = [group for number, group in enumerate(groups) if number not in (a, b)]
        groups.append(first + second)
    return groups[0] if groups else []


def _linkage(similarity: Matrix, a: Sequence[int], b: Sequence[int]) -> float:
    return round(math.fsum(_finite(similarity[i][j]) for i in a for j in b) / (len(a) * len(b)), 9)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def draw(matrix: Matrix, names: Sequence[str], *, title: str, note: str = "") -> str:
    """The text of the SVG: the square of row i and column j has the colour of ``matrix[i][j]``, blue 1 and orange -1.

    Raises ValueError where `matrix` is not square with a row for each of `names`.
    """
    if not names or len(matrix) != len(names) or any(len(row) != len(names) for row in matrix):
        raise ValueError(
            f"matrix: got {len(matrix)} rows of {sorted({len(row) for row in matrix})} numbers, allowed is a row and a"
            f" column for each of the {len(names)} names, at least one: give a square one"
        )
    labels = [_shortened(clean(name)) for name in names]
    side = min(max(ROOM // len(names), SMALLEST), LARGEST)
    longest = math.ceil(LETTER * max(map(len, labels)) + 10)
    rise = math.ceil(longest * math.sin(math.radians(SLANT)) + 12)
    at = _Layout(MARGIN + longest, HEAD + rise, side, len(names))
    size = at.count * side
    width = max(at.left + size + longest * math.cos(math.radians(SLANT)) + MARGIN, 380.0, MARGIN * 2 + 8 * len(title))
    height = at.top + size + FOOT + (18 if note else 0)
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{px(width)}" height="{px(height)}" '
        f'viewBox="0 0 {px(width)} {px(height)}" role="img" font-family="{FONT}">',
        f"<title>{escape(clean(title))}</title>",
        f'<rect width="{px(width)}" height="{px(height)}" rx="6" fill="#ffffff"/>',
        _text(MARGIN, 28, title, 16, f'fill="{INK}" font-weight="700"'),
        *_names(labels, at),
        *_squares(matrix, [clean(name) for name in names], at),
        *_legend(at),
    ]
    if note:
        body.append(_text(MARGIN, height - 12, note, 11, f'fill="{MUTED}"'))
    return "\n".join([*body, "</svg>", ""])


def _shortened(name: str) -> str:
    return name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 1]}…"


def _names(labels: Sequence[str], at: _Layout) -> list[str]:
    size, out = min(12.0, max(9.0, 0.62 * at.side)), []
    for number, label in enumerate(labels):
        middle = (number + 0.5) * at.side
        out.append(_text(at.left - 6, at.top + middle + 0.35 * size, label, size, f'fill="{INK}" text-anchor="end"'))
        x, y = px(at.left + middle + 0.3 * size), px(at.top - 6)
        turned = f'fill="{INK}" transform="rotate(-{SLANT} {x} {y})"'
        out.append(_text(at.left + middle + 0.3 * size, at.top - 6, label, size, turned))
    return out


def _squares(matrix: Matrix, names: Sequence[str], at: _Layout) -> list[str]:
    out = []
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            x, y = at.left + j * at.side, at.top + i * at.side
            said = f"{value:.2f}" if math.isfinite(value) else "no number"
            out.append(
                f'<rect x="{px(x)}" y="{px(y)}" width="{px(at.side - 1)}" height="{px(at.side - 1)}" '
                f'fill="{colour(value)}"><title>{escape(names[i])}, {escape(names[j])}: {said}</title></rect>'
            )
            if at.side >= NUMBERED:
                ink = "#ffffff" if abs(_finite(value)) > 0.6 else INK
                how = f'fill="{ink}" text-anchor="middle" pointer-events="none"'
                out.append(_text(x + at.side / 2, y + at.side / 2 + 4, said if math.isfinite(value) else "-", 11, how))
    return out


def colour(value: float) -> str:
    """``#rrggbb`` of a number in [-1, 1]: orange at -1, nearly white at 0, blue at 1; grey for none."""
    if not math.isfinite(value):
        return RULE
    share = min(abs(value), 1.0)
    ends = [(int(MIDDLE[k : k + 2], 16), int((BLUE if value > 0 else ORANGE)[k : k + 2], 16)) for k in (1, 3, 5)]
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in ends)


def _legend(at: _Layout) -> list[str]:
    """A bar from -1 to 1 below the squares."""
    steps, width, y = 21, 210.0, at.top + at.count * at.side + 14
    out = []
    for number in range(steps):
        x = MARGIN + 6 + number * width / steps
        value = -1 + 2 * number / (steps - 1)
        out.append(
            f'<rect x="{px(x)}" y="{px(y)}" width="{px(width / steps + 0.5)}" height="10" fill="{colour(value)}"/>'
        )
    for share, label in ((0.0, "-1"), (0.5, "0"), (1.0, "1")):
        out.append(_text(MARGIN + 6 + share * width, y + 24, label, 11, f'fill="{MUTED}" text-anchor="middle"'))
    return out


def _text(x: float, y: float, content: str, size: float, how: str) -> str:
    return f'<text x="{px(x)}" y="{px(y)}" font-size="{px(size)}" {how}>{escape(clean(content))}</text>'
