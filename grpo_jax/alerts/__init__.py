"""Trouble in a run, said in words: what was seen, what it means and which setting to change.

All of it follows from the records of `metrics.jsonl`: `Alerts` watches a run, `said` asks a finished one.
"""

from grpo_jax.alerts.history import History, Thresholds
from grpo_jax.alerts.rules import RULES, Rule
from grpo_jax.alerts.watch import Alerts, said

__all__ = ["RULES", "Alerts", "History", "Rule", "Thresholds", "said"]
