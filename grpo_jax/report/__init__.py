"""What a run came to, for people: learning curves, tables, completions side by side, a paragraph.

Everything is made from the records of `metrics.jsonl` and `samples.jsonl`; nothing here is needed to train or resume.
"""

from grpo_jax.report.curves import PANELS, Panel, Series, figure
from grpo_jax.report.sets import BOUNDS, WIDTH, places, sets_change, sets_table
from grpo_jax.report.words import clean, completions, describe_run, ends, markdown_table, measured, rendered, table

__all__ = [
    "BOUNDS",
    "PANELS",
    "WIDTH",
    "Panel",
    "Series",
    "clean",
    "completions",
    "describe_run",
    "ends",
    "figure",
    "markdown_table",
    "measured",
    "places",
    "rendered",
    "sets_change",
    "sets_table",
    "table",
]
