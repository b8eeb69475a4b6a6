"""The tables of an ablation: means with intervals, paired differences, settings that differ, what should coincide."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from grpo_jax.ablation.coincide import Claim
from grpo_jax.ablation.measure import OUTCOMES, TIMES, TRAINING, Measure, Numbers, means, paired
from grpo_jax.ablation.student import Interval
from grpo_jax.experiment import Experiment, settings
from grpo_jax.report import clean, rendered

Results = Mapping[str, Mapping[int, Numbers]]
"""Variant -> seed -> measures of the runs that are done."""
PAIRED = tuple(measure for measure in (*OUTCOMES, *TRAINING) if measure.name != "before")


@dataclass(frozen=True)
class Section:
    """A heading with sentences and perhaps a table below it."""

    title: str
    words: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


def results(found: Results, *, measures: Sequence[Measure], title: str, words: Sequence[str] = ()) -> Section:
    """A row for every variant: its number of seeds, and the mean of every measure with its interval."""
    rows = []
    for name, seeds in found.items():
        values = means(list(seeds.values()), measures)
        rows.append((name, str(len(seeds)), *(said(values[m.name], m.unit) for m in measures)))
    return Section(title, tuple(words), ("variant", "seeds", *(m.label for m in measures)), tuple(rows))


def differences(found: Results) -> Section:
    """Every variant against the first, over the seeds that both have."""
    first, *others = found
    rows = []
    for name in others:
        values = paired(found[name], found[first], PAIRED)
        common = str(len(set(found[name]) & set(found[first])))
        rows.append((name, common, *(said(values[m.name], m.unit, sign=True) for m in PAIRED)))
    words = (
        f"Differences to {first} over the same seeds, shares in points. An asterisk marks an interval without 0; of"
        " many such intervals some are so by chance.",
    )
    return Section(
        f"Paired differences to {first}", words, ("variant", "seeds", *(m.label for m in PAIRED)), tuple(rows)
    )


def said(value: Interval | None, unit: str, *, sign: bool = False) -> str:
    """A mean with the half width of its interval, as a share in per cent or with three digits."""
    if value is None:
        return "-"
    mean, half = value.mean, value.half
    if unit == "%":
        shown, spread = f"{100 * mean:{'+' if sign else ''}.1f}", "" if half is None else f" ± {100 * half:.1f}"
        end = "" if sign else " %"
    else:
        shown, spread, end = f"{mean:{'+' if sign else ''}.3g}", "" if half is None else f" ± {half:.2g}", ""
    star = " *" if sign and half is not None and abs(mean) > half else ""
    return f"{shown}{spread}{end}{star}"


def varying(variants: Mapping[str, Experiment]) -> dict[str, dict[str, str]]:
    """Dotted path -> variant -> canonical text, for the settings in which they differ; names and seeds apart."""
    table = {name: {**settings(e), "optimizer": type(e.optimizer).__name__} for name, e in variants.items()}
    paths = sorted({path for texts in table.values() for path in texts} - {"name", "seed"})
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


def times(found: Results) -> Section:
    """What the runs cost: never twice the same, so it stands apart."""
    words = (
        "Over all attempts, compiling and evaluations included. The first variant pays for what the later ones share:"
        " warm starts, and programs that they compile once.",
    )
    return results(found, measures=TIMES, title="Time of a run", words=words)


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
                table.add_column(heading, justify="right" if _numeric(section, i) else "left", overflow="fold")
            for row in section.rows:
                table.add_row(*(Text(clean(cell)) for cell in row))
            parts.append(table)
    return rendered(*parts, width=width)


def _numeric(section: Section, column: int) -> bool:
    return all(re.match(r"[-+]?\d|-$|[-+]?(inf|nan)", row[column]) for row in section.rows)


def _cell(text: str) -> str:
    return clean(text).replace("|", "\\|")
