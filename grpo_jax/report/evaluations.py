"""One evaluation or two side by side as a table: a row for each held-out set and for each of its categories."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from grpo_jax.report.sets import interval, number_of
from grpo_jax.report.words import clean

BOUNDS = ("/low", "/high")
FIRST, LAST = ("accuracy", "greedy"), ("length",)
"""Measures that stand in front of the others, and those that stand behind them."""
SHARES = re.compile(r"accuracy|greedy|format|(pass|maj)@\d+")
"""Measures that are shares; a reward of the user's own may be any number."""
OMITTED = re.compile(r"n|stopped|entropy|greedy_.*")
"""Measures that are in the record and in no table of sets."""
WIDTH = 180
"""Columns that a page with a table of sets may take; a row is never broken."""


def places(*records: Mapping[str, Any]) -> list[str]:
    """The sets and, behind each, its categories, ``set[category]``, of which the records say something."""
    found: dict[str, None] = {}
    for record in records:
        counted = [name.removeprefix("n/") for name in record if name.startswith("n/")]
        old = [name.removeprefix("accuracy/") for name in record if re.fullmatch(r"accuracy/[^/]+", name)]
        found |= dict.fromkeys(counted or old)
    sets = dict.fromkeys(place.partition("[")[0] for place in found)
    return [place for name in sets for place in sorted(found, key=_order) if place.partition("[")[0] == name]


def _order(place: str) -> tuple[bool, str]:
    return "[" in place, place


def measures(record: Mapping[str, Any], there: Sequence[str]) -> list[str]:
    """What the record has measured at the places and a table shows: accuracy first, then in the order of the record."""
    found: dict[str, None] = {}
    for place in there:
        end = f"/{place}"
        names = [name.removesuffix(end) for name in record if name.endswith(end)]
        found |= dict.fromkeys(name for name in names if not OMITTED.fullmatch(name))
    middle = [name for name in found if name not in (*FIRST, *LAST)]
    return [*(n for n in FIRST if n in found), *sorted(middle, key=_kind), *(n for n in LAST if n in found)]


def _kind(measure: str) -> int:
    """pass@k and maj@k stand together, in front of other rewards; sorting keeps the order within."""
    return 0 if measure.startswith("pass@") else 1 if measure.startswith("maj@") else 2


def sets_table(record: Mapping[str, Any]) -> Table:
    """One evaluation: a row for each set and category, shares in percent with their 95 % interval."""
    rows = places(record)
    columns = measures(record, rows)
    out = _headed(["n", *(f"{name} %" if SHARES.fullmatch(name) else name for name in columns)])
    for place in rows:
        cells = (value(record, name, place) for name in columns)
        out.add_row(Text(_label(place)), _count(record, place), *map(Text, cells))
    return out


def sets_change(before: Mapping[str, Any], after: Mapping[str, Any]) -> Table:
    """Two evaluations: a row for each set and category with accuracy, sampled and greedy, before and after."""
    out = _headed(["n", "accuracy % before", "after", "change", "greedy % before", "after", "change"])
    for place in places(before, after):
        cells = [
            cell
            for name in FIRST
            for cell in (value(before, name, place), value(after, name, place), _change(before, after, name, place))
        ]
        out.add_row(Text(_label(place)), _count({**before, **after}, place), *map(Text, cells))
    return out


def value(record: Mapping[str, Any], measure: str, place: str) -> str:
    """A share in percent with its interval where it has one, another number as it is; a dash for what is not there."""
    found = interval(record, f"{measure}/{place}")
    if SHARES.fullmatch(measure):
        return found.short() if math.isfinite(found.value) else "-"
    return f"{found.value:.3g}" if math.isfinite(found.value) else "-"


def _change(before: Mapping[str, Any], after: Mapping[str, Any], measure: str, place: str) -> str:
    change = number_of(after, f"{measure}/{place}") - number_of(before, f"{measure}/{place}")
    return f"{100 * change:+.1f}" if math.isfinite(change) else "-"


def _label(place: str) -> str:
    name, _, category = place.partition("[")
    return f"  {clean(category.removesuffix(']'))}" if category else clean(name)


def _count(record: Mapping[str, Any], place: str) -> Text:
    count = number_of(record, f"n/{place}")
    return Text(f"{count:.0f}" if math.isfinite(count) else "-")


def _headed(headings: Sequence[str]) -> Table:
    out = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    out.add_column("set, category", no_wrap=True)
    for heading in headings:
        out.add_column(clean(heading), justify="right", no_wrap=True)
    return out
