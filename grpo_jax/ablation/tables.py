"""The tables of an ablation: means with intervals, paired differences, settings that differ, what should coincide."""

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from grpo_jax.ablation.coincide import Claim
from grpo_jax.ablation.measure import CLAIMED, OUTCOMES, TIMES, Measure, Numbers, means, paired
from grpo_jax.ablation.student import Interval, interval
from grpo_jax.experiment import Experiment, settings
from grpo_jax.report import clean, rendered

Results = Mapping[str, Mapping[int, Numbers]]
"""Variant -> seed -> measures of the runs that are done."""
EVERY = "*"
"""What an expectation says of all variants."""


class Expectation(NamedTuple):
    """Where the mean of a measure over the seeds has to lie, for a variant or for `EVERY` one, and perhaps why."""

    variant: str
    measure: str
    lowest: float
    highest: float
    why: str = ""


PAIRED = tuple(measure for measure in OUTCOMES if measure.name != "before")
ASTERISK = (
    "Over the same seeds, shares in points. An asterisk marks an interval without 0; of many such intervals some are so"
    " by chance."
)


@dataclass(frozen=True)
class Section:
    """A heading with sentences and perhaps a table below it."""

    title: str
    words: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


def results(found: Results, *, measures: Sequence[Measure], title: str, words: Sequence[str] = ()) -> Section:
    """A row for every variant: its number of seeds, and the mean of every measure with its interval."""
    rows: list[tuple[str, ...]] = []
    for name, seeds in found.items():
        values = means(list(seeds.values()), measures)
        rows.append((name, str(len(seeds)), *(said(values[m.name], share=m.share) for m in measures)))
    return Section(title, tuple(words), ("variant", "seeds", *(m.label for m in measures)), tuple(rows))


def differences(found: Results, *, measures: Sequence[Measure], words: Sequence[str] = ()) -> Section:
    """Every variant against the first, over the seeds that both have."""
    first, *others = found
    rows: list[tuple[str, ...]] = []
    for name in others:
        values = paired(found[name], found[first], measures)
        common = str(len(set(found[name]) & set(found[first])))
        rows.append((name, common, *(said(values[m.name], share=m.share, sign=True) for m in measures)))
    head = ("variant", "seeds", *(m.label for m in measures))
    return Section(f"Paired differences to {first}", tuple(words), head, tuple(rows))


def said(value: Interval | None, *, share: bool = False, sign: bool = False) -> str:
    """A mean with the half width of its interval; shares in per cent. With `sign`, a star for an interval without 0."""
    if value is None:
        return "-"
    by = 100 if share else 1
    mean, half, plus = by * value.mean, value.half, "+" if sign else ""
    shown = f"{mean:{plus}.1f}" if share else f"{mean:{plus}.3g}"
    if half is None:
        return shown
    spread = f"{by * half:.1f}" if share else f"{half:.2g}"
    return f"{shown} ± {spread}{' *' if sign and abs(value.mean) > half else ''}"


def varying(variants: Mapping[str, Experiment]) -> dict[str, dict[str, str]]:
    """Dotted path -> variant -> canonical text, for the settings in which they differ; what only names them apart."""
    table = {name: {**settings(e), "optimizer": type(e.optimizer).__name__} for name, e in variants.items()}
    paths = sorted({path for texts in table.values() for path in texts} - {"name", "seed", "recipe.paper"})
    rows = {path: {name: texts.get(path, "-") for name, texts in table.items()} for path in paths}
    return {path: texts for path, texts in rows.items() if len(set(texts.values())) > 1}


def settings_table(variants: Mapping[str, Experiment]) -> Section:
    """For every setting that is not the same everywhere its values, each with the variants that have it."""
    rows = []
    for path, texts in varying(variants).items():
        for value in dict.fromkeys(texts.values()):
            names = [name for name, text in texts.items() if text == value]
            rows.append((path, short(value), ", ".join(names)))
    words = () if rows else ("The variants have the same settings.",)
    return Section("Settings in which they differ", words, ("setting", "value", "variants"), tuple(rows))


def short(text: str) -> str:
    """A description without the modules of its functions."""
    return re.sub(r"(?<!['\w.])(?:[a-z_]\w*\.)+(?=[A-Za-z_])", "", text)


def coincidences(claims: Sequence[Claim], found: Results) -> Section:
    """Which variants should coincide and why, and how far apart they came out."""
    lines = [f"{claim.sentence()}{_apart(claim, found)}" for claim in claims]
    return Section("What should coincide", tuple(lines) or ("No two of these variants have to coincide.",))


def _apart(claim: Claim, found: Results) -> str:
    gaps = [
        abs(found[a][seed]["accuracy"] - found[b][seed]["accuracy"])
        for a, b in itertools.combinations([name for name in claim.names if name in found], 2)
        for seed in set(found[a]) & set(found[b])
    ]
    gaps = [gap for gap in gaps if math.isfinite(gap)]
    return f" Measured: sampled accuracies of one seed differ by {100 * max(gaps):.1f} points at most." if gaps else ""


def failures(ended: Mapping[tuple[str, int], str]) -> Section | None:
    """The runs that diverged, each with its sentence; None where none did."""
    rows = tuple((name, str(seed), sentence) for (name, seed), sentence in ended.items() if sentence)
    return Section("Diverged", (), ("variant", "seed", "why"), rows) if rows else None


def expected(claims: Sequence[Expectation], found: Results) -> tuple[Section | None, list[str]]:
    """What the file expects of means over the seeds, as a section, and a sentence for each that lies outside.

    Expectations of several variants that are the same share a row.
    """
    rows, wrong, alike = [], [], defaultdict(list)
    for claim in claims:
        alike[claim._replace(variant=EVERY if claim.variant == EVERY else "")].append(claim.variant)
    for claim, variants in alike.items():
        names = [name for name in found if claim.variant == EVERY or name in variants]
        values = {name: interval([row[claim.measure] for row in found[name].values()]) for name in names}
        share = any(m.share for m in CLAIMED if m.name == claim.measure)
        allowed, unit = _range(claim, share=share), " %" if share else ""
        outside = [name for name, value in values.items() if value is None or not _inside(value.mean, claim)]
        wrong += [
            f"{name}: {claim.measure} is {said(values[name], share=share)}{unit}, expected {allowed}{unit}"
            for name in outside
        ]
        if names:
            several = names[0] if len(names) == 1 else f"{len(names)} variants"
            called = f"{'every variant' if claim.variant == EVERY else several}: {claim.measure}{unit}"
            shown = _extent(list(values.values()), share=share)
            rows.append((called, allowed, shown, "no" if outside else "yes", claim.why))
    head = ("mean", "expected", "measured", "inside", "why")
    if not any(row[-1] for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    return (Section("What the file expects", (), head, tuple(rows)) if rows else None), wrong


def beside(section: Section, claims: Sequence[Expectation], *, measure: str) -> Section:
    """`section`, whose rows are variants, with columns for what the file expects of `measure`, and why."""
    share = any(m.share for m in CLAIMED if m.name == measure)
    said_of = {claim.variant: (_range(claim, share=share), claim.why) for claim in claims if claim.measure == measure}
    more = [said_of.get(row[0], said_of.get(EVERY, ("-", ""))) for row in section.rows]
    columns = sum(any(column) for column in zip(*more, strict=True)) if said_of else 0
    head = (*section.head, *(f"{measure} expected", "why")[:columns])
    rows = tuple((*row, *cells[:columns]) for row, cells in zip(section.rows, more, strict=True))
    return replace(section, head=head, rows=rows)


def _inside(mean: float, claim: Expectation) -> bool:
    return claim.lowest <= mean <= claim.highest


def _range(claim: Expectation, *, share: bool) -> str:
    """The allowed values in words."""
    low, high = (said(Interval(bound, None, 1), share=share) for bound in (claim.lowest, claim.highest))
    if claim.lowest == claim.highest:
        return low
    if math.isinf(claim.highest):
        return f"at least {low}" if math.isfinite(claim.lowest) else "any"
    return f"{low} to {high}" if math.isfinite(claim.lowest) else f"at most {high}"


def _extent(values: Sequence[Interval | None], *, share: bool) -> str:
    """A mean with its interval, or the smallest and the largest of several means."""
    there = [value for value in values if value is not None]
    if len(values) == 1 or not there:
        return said(values[0], share=share)
    ends = (function(value.mean for value in there) for function in (min, max))
    low, high = (said(Interval(end, None, 1), share=share) for end in ends)
    return low if low == high else f"{low} to {high}"


def times(found: Results) -> Section:
    """What the runs cost: never twice the same, so it stands apart."""
    words = (
        "Over all attempts, compiling and evaluations included. The first variant pays for what the later ones share:"
        " warm starts, and programs that they compile once.",
        f"All runs together: {_total(found, 'seconds'):.0f} s, {_total(found, 'cpu_seconds'):.0f} CPU s.",
    )
    return results(found, measures=TIMES, title="Time of a run", words=words)


def _total(found: Results, name: str) -> float:
    return math.fsum(row[name] for seeds in found.values() for row in seeds.values())


def markdown(sections: Sequence[Section]) -> str:
    """The sections as a page in Markdown."""
    parts = []
    for section in sections:
        lines = [f"## {section.title}", "", *(line for words in section.words for line in (clean(words), ""))]
        if section.rows:
            align = [":---" if i == 0 or not _numeric(section, i) else "---:" for i in range(len(section.head))]
            rows = [section.head, align, *([_cell(cell) for cell in row] for row in section.rows)]
            lines += [f"| {' | '.join(row)} |" for row in rows]
        parts.append("\n".join(lines).rstrip())
    return "\n\n".join(parts) + "\n"


def terminal(sections: Sequence[Section], *, width: int) -> str:
    """The sections as text for a terminal of `width` columns."""
    parts: list[Any] = []
    for section in sections:
        parts += [Text(f"\n{section.title}", style="bold"), *(Text(clean(words)) for words in section.words)]
        if section.rows:
            table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
            for i, heading in enumerate(section.head):
                number = _numeric(section, i)
                table.add_column(
                    heading, justify="right" if number else "left", overflow="fold", no_wrap=number or not i
                )
            for row in section.rows:
                table.add_row(*(Text(clean(cell)) for cell in row))
            parts.append(table)
    return rendered(*parts, width=width)


def _numeric(section: Section, column: int) -> bool:
    return all(re.match(r"[-+]?\d|-$|[-+]?(inf|nan)", row[column]) for row in section.rows)


def _cell(text: str) -> str:
    return clean(text).replace("|", "\\|")
