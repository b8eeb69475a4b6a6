"""What happened in a run, said in tables and sentences. Text from a model loses its control characters on the way."""

import io
import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

ROWS: tuple[tuple[str, str, str], ...] = (
    ("accuracy/heldout", "accuracy, sampled", "%"),
    ("greedy/heldout", "accuracy, greedy", "%"),
    ("format/heldout", "well-formed answers", "%"),
    ("stopped/heldout", "ended by themselves", "%"),
    ("length/heldout", "length, tokens", ""),
    ("entropy/heldout", "entropy, nats a token", ""),
)
"""Metric, how it is called, and "%" for a share: the rows of a table of before and after."""

_NEWLINE = "\u21b5"
LARGEST = 1e200
"""Numbers beyond it are as good as none: their differences and sums would leave what a float can hold."""


def clean(text: str) -> str:
    """`text` as one line that moves no cursor, rings no bell and turns no direction.

    Line ends become a visible sign and tabs a space; every other control, format, surrogate, private or unassigned
    character goes.
    """
    text = text.replace("\r\n", "\n").replace("\n", _NEWLINE).replace("\t", " ")
    return "".join(c for c in text if unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def finite(value: object) -> float:
    """`value` if it is a number that can be worked with, else nan: a journal may be damaged or not ours."""
    return float(value) if isinstance(value, int | float) and -LARGEST < value < LARGEST else math.nan


def _value(row: Mapping[str, Any], name: str) -> float:
    return finite(row.get(name))


def _shown(row: Mapping[str, Any], name: str, unit: str) -> str:
    """A number with its interval where one was recorded (``/low``, ``/high``)."""
    value, low, high = (_value(row, name + end) for end in ("", "/low", "/high"))
    if not math.isfinite(value):
        return "-"
    if unit == "%":
        interval = f" ({100 * low:.1f} to {100 * high:.1f})" if math.isfinite(low) and math.isfinite(high) else ""
        return f"{100 * value:.1f} %{interval}"
    return f"{value:.3g}"


def _change(before: Mapping[str, Any], after: Mapping[str, Any], name: str, unit: str) -> str:
    change = _value(after, name) - _value(before, name)
    if not math.isfinite(change):
        return ""
    return f"{100 * change:+.1f} points" if unit == "%" else f"{change:+.3g}"


def compared(
    before: Mapping[str, Any], after: Mapping[str, Any], *, rows: Sequence[tuple[str, str, str]] = ROWS
) -> list[list[str]]:
    """What it is, before, after, and the change, all as text; rows that neither record has are left out."""
    return [
        [label, _shown(before, name, unit), _shown(after, name, unit), _change(before, after, name, unit)]
        for name, label, unit in rows
        if math.isfinite(_value(before, name)) or math.isfinite(_value(after, name))
    ]


def table(before: Mapping[str, Any], after: Mapping[str, Any], *, rows: Sequence[tuple[str, str, str]] = ROWS) -> Table:
    """Two records of metrics side by side, for the terminal; rows that neither has are left out."""
    out = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    out.add_column("")
    for heading in ("before GRPO", "after GRPO", "change"):
        out.add_column(heading, justify="right")
    for cells in compared(before, after, rows=rows):
        out.add_row(*(Text(cell) for cell in cells))
    return out


def measured(record: Mapping[str, Any], *, rows: Sequence[tuple[str, str, str]] = ROWS) -> Table:
    """The held-out metrics of one record, with their intervals; what `rows` does not name goes by its own name."""
    named = {name for name, _, _ in rows}
    bounds = ("/low", "/high")
    rest = [name for name in record if "/" in name and name not in named and not name.endswith(bounds)]
    shares = {name for name in record if f"{name}/low" in record}
    more = [(name, clean(name), "%" if name in shares else "") for name in rest]
    out = Table(box=None, pad_edge=False, show_header=False, padding=(0, 3, 0, 0))
    out.add_column("")
    out.add_column("", justify="right")
    for name, label, unit in (*rows, *more):
        if math.isfinite(_value(record, name)):
            out.add_row(Text(label), Text(_shown(record, name, unit)))
    return out


def markdown_table(
    before: Mapping[str, Any], after: Mapping[str, Any], *, rows: Sequence[tuple[str, str, str]] = ROWS
) -> str:
    """The same as a table in Markdown."""
    lines = ["| | before GRPO | after GRPO | change |", "|---|---:|---:|---:|"]
    return "\n".join(lines + [f"| {' | '.join(cells)} |" for cells in compared(before, after, rows=rows)]) + "\n"


def completions(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], *, most: int = 4) -> Table:
    """The same prompts before and after: records of `samples.jsonl` with `prompt`, `completion` and perhaps `answer`.

    A prompt counts once, in the order of `after`; a completion with an accuracy component is marked right or wrong.
    """
    out = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    for heading in ("prompt", "before GRPO", "after GRPO"):
        out.add_column(heading, overflow="fold")
    first = {record["prompt"]: record for record in reversed(before)}
    pairs = {record["prompt"]: record for record in reversed(after)}
    prompts = [prompt for prompt in dict.fromkeys(record["prompt"] for record in after) if prompt in first]
    for prompt in prompts[:most]:
        out.add_row(Text(clean(prompt)), _marked(first[prompt]), _marked(pairs[prompt]))
    return out


def _marked(record: Mapping[str, Any]) -> Text:
    accuracy = record.get("components", {}).get("accuracy")
    mark, style = ("", "") if accuracy is None else ("✓ ", "green") if accuracy > 0.5 else ("✗ ", "red")
    return Text(mark + clean(record["completion"]), style=style)


def rendered(*parts: RenderableType, width: int = 100) -> str:
    """What a terminal of `width` columns would show, as plain text."""
    out = io.StringIO()  # standard output may be closed, full or unable to spell this
    console = Console(
        file=out, width=width, color_system=None, force_terminal=False, highlight=False, markup=False, emoji=False
    )
    for part in parts:
        console.print(part)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _from_to(before: Mapping[str, Any], after: Mapping[str, Any], name: str, unit: str = "") -> str | None:
    old, new = _value(before, name), _value(after, name)
    if not (math.isfinite(old) and math.isfinite(new)):
        return None
    if unit == "%":
        return f"from {100 * old:.1f} % to {100 * new:.1f} %"
    return f"from {old:.3g} to {new:.3g}"


def _mean(metrics: Sequence[Mapping[str, Any]], name: str) -> float:
    values = [v for v in (_value(row, name) for row in metrics) if math.isfinite(v)]
    return math.fsum(values) / len(values) if values else math.nan


def ends(metrics: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The evaluations before and after GRPO: the last before its first step, and the last of all; empty without one."""
    evaluated = [row for row in metrics if any(name.endswith("/heldout") for name in row)]
    begin = [row for row in evaluated if row.get("phase") == "warm_start" or not row.get("step")]
    return (begin or evaluated[:1] or [{}])[-1], (evaluated or [{}])[-1]


def describe_run(metrics: Sequence[Mapping[str, Any]]) -> str:
    """A paragraph from the records of `metrics.jsonl`: what changed, by how much, and what to look at."""
    before, after = ends(metrics)
    learning = [row for row in metrics if row.get("phase") != "warm_start" and row.get("step")]
    steps = max((int(row["step"]) for row in learning), default=0)
    warm = max((int(row["step"]) for row in metrics if row.get("phase") == "warm_start"), default=0)
    if not steps:
        return "No GRPO step has been recorded yet."
    said = []
    accuracy = _from_to(before, after, "accuracy/heldout", "%")
    begun = f" after {warm} of warm start" if warm else ""
    said.append(
        f"In {steps} GRPO steps{begun} accuracy on held-out problems went {accuracy}."
        if accuracy
        else f"{steps} GRPO steps were done{begun}; nothing was evaluated on held-out problems."
    )
    for name, words, unit in (
        ("greedy/heldout", "Greedy decoding went {}.", "%"),
        ("format/heldout", "Well-formed answers went {}.", "%"),
        ("length/heldout", "Completions went {} tokens on average.", ""),
        ("entropy/heldout", "Entropy went {} nats a token.", ""),
    ):
        change = _from_to(before, after, name, unit)
        said += [words.format(change)] if change else []
    tied = _mean(learning, "groups/tied")
    if math.isfinite(tied):
        said.append(f"In {100 * tied:.0f} % of the groups all samples earned the same: these teach nothing.")
    return " ".join(said + _advice(before, after, learning))


def _advice(before: Mapping[str, Any], after: Mapping[str, Any], learning: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the numbers of a run ask for, most urgent first."""
    late = learning[-max(1, len(learning) // 5) :]
    early = learning[: max(1, len(learning) // 5)]
    advice = []
    if _value(after, "accuracy/heldout/low") <= _value(before, "accuracy/heldout/high"):
        advice.append(
            "The intervals of accuracy before and after overlap: it may be chance. Train longer or evaluate more."
        )
    if _mean(late, "reward/mean") > _mean(early, "reward/mean") and _value(after, "accuracy/heldout") < _value(
        before, "accuracy/heldout"
    ):
        advice.append("Reward rose while held-out accuracy fell: read completions, the reward may be gamed.")
    if _mean(late, "entropy") < 0.1 * _mean(early, "entropy"):
        advice.append(
            "Entropy fell by more than 90 %, so samples hardly differ: lower the learning rate, "
            "raise the upper clip bound or the temperature."
        )
    if _mean(late, "groups/tied") > 0.7:
        advice.append(
            "By the end most groups were tied: take more samples a prompt, harder or easier prompts, "
            "or drop tied groups."
        )
    if _mean(late, "length/stopped") < 0.5:
        advice.append("Most completions reached the length limit: allow more tokens or reward stopping.")
    return [f"Look at this: {sentence}" for sentence in advice]
