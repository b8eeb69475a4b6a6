"""What a run came to, for people: learning curves, tables, completions side by side, a paragraph, a page.

Everything is made from the records of `metrics.jsonl` and `samples.jsonl`; nothing here is needed to train or resume.
The page about one run or several is `report.page`, which is imported by who asks for it.
"""

from grpo_jax.report.choice import reward_of
from grpo_jax.report.curves import PANELS, Panel, Series, figure
from grpo_jax.report.evaluations import BOUNDS, WIDTH, places, sets_change, sets_table
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
    "reward_of",
    "sets_change",
    "sets_table",
    "table",
]
