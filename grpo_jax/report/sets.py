"""What was measured on each held-out set and on each category of one, read off the names of metrics.

``accuracy/<set>`` and ``accuracy/<set>[<category>]``, likewise ``greedy``, ``avg@k``, ``pass@k`` and ``maj@k``; the
bounds of an interval end in ``/low`` and ``/high``; ``n/<set>`` is the number of problems.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from grpo_jax.report.words import clean, finite

_NAME = re.compile(r"(accuracy|greedy|(?:avg|pass|maj)@\d+)/([^\[\]]+?)(?:\[(.*)\])?", re.DOTALL)


class Interval(NamedTuple):
    """A measured share and its bounds, nan where none were recorded."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def words(self) -> str:
        """The same in per cent."""
        if not math.isfinite(self.value):
            return "-"
        bounded = math.isfinite(self.low + self.high)
        return f"{100 * self.value:.1f} %" + (f" ({100 * self.low:.1f} to {100 * self.high:.1f})" if bounded else "")

    def short(self) -> str:
        """The same for a narrow column whose heading says per cent."""
        bounded = math.isfinite(self.low + self.high)
        return f"{100 * self.value:.1f}" + (f" ({100 * self.low:.1f}-{100 * self.high:.1f})" if bounded else "")


@dataclass(frozen=True)
class Measured:
    """The newest numbers of a set, or of one of its categories, all of one evaluation."""

    name: str
    category: str | None
    phase: str
    step: int
    values: Mapping[str, Interval]  # "accuracy", "pass@4", ...
    problems: float = math.nan  # how many could be scored, where that was recorded

    @property
    def label(self) -> str:
        """The set, and the category where it is one."""
        return self.name if self.category is None else f"{self.name} [{self.category}]"


def number_of(record: Mapping[str, Any], name: str) -> float:
    """A number of a record; nan where it is not there or was not finite."""
    return finite(record.get(name))


def interval(record: Mapping[str, Any], name: str) -> Interval:
    """A metric of a record with its bounds."""
    return Interval(*(number_of(record, name + end) for end in ("", "/low", "/high")))


def parsed(name: str) -> tuple[str, str, str | None] | None:
    """Measure, set and category of the name of a metric; None for the name of another, or of a bound."""
    match = None if name.endswith(("/low", "/high")) else _NAME.fullmatch(name)
    return (match[1], match[2], match[3]) if match else None


def by_set(metrics: Sequence[Mapping[str, Any]]) -> list[Measured]:
    """The newest evaluation of each held-out set and category: a set, then its categories, in order of appearance."""
    newest: dict[tuple[str, str | None], Measured] = {}
    for record in metrics:
        found: dict[tuple[str, str | None], dict[str, Interval]] = {}
        for name in record:
            parts = parsed(name)
            if parts and math.isfinite(number_of(record, name)):
                found.setdefault(parts[1:], {})[parts[0]] = interval(record, name)
        for (name, category), values in found.items():
            position = str(record.get("phase", "grpo")), int(record.get("step", 0))
            count = number_of(record, f"n/{name}" if category is None else f"n/{name}[{category}]")
            newest[name, category] = Measured(name, category, *position, values, count)
    sets = list(dict.fromkeys(name for name, _ in newest))
    order = [(sets.index(name), category is not None, i) for i, (name, category) in enumerate(newest)]
    return [measured for _, measured in sorted(zip(order, newest.values(), strict=True), key=_place)]


def _place(pair: tuple[tuple[int, bool, int], Measured]) -> tuple[int, bool, int]:
    return pair[0]


def measures(found: Sequence[Measured]) -> list[str]:
    """Names of all measures, accuracy and greedy before those of several samples."""
    names = list(dict.fromkeys(name for measured in found for name in measured.values))
    return sorted(names, key=["accuracy", "greedy"].count, reverse=True)


def table_of_sets(metrics: Sequence[Mapping[str, Any]]) -> Table | None:
    """A row for each set and category, for the terminal; None where nothing was evaluated."""
    found = by_set(metrics)
    if not found:
        return None
    names = measures(found)
    out = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    out.add_column("held-out set, %", overflow="fold")
    counted = ["problems"] if any(math.isfinite(each.problems) for each in found) else []
    for name in (*names, *counted, "step"):
        out.add_column(name, justify="right", no_wrap=True)
    for each in found:
        label = clean(each.name) if each.category is None else f"  {clean(each.category)}"
        cells = [each.values[name].short() if name in each.values else "" for name in names]
        count = [f"{each.problems:.0f}" if math.isfinite(each.problems) else ""] if counted else []
        out.add_row(Text(label), *(Text(cell) for cell in (*cells, *count, str(each.step))))
    return out
