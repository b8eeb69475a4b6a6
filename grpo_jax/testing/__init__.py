"""Laws that users can run on functions of their own, each on a batch of a few rows or a few records.

A test of a function of one's own is one line: ``check_term(mine)``, ``check_advantage(mine)``,
``check_grouping(mine)``, ``check_aggregation(mine)`` or ``check_reward(mine)``. What breaks a law raises AssertionError
with a sentence that says which law, and what to do. The library's own functions are held by the same checks
(docs/testing.md).
"""

from grpo_jax.testing.advantages import check_advantage
from grpo_jax.testing.aggregations import check_aggregation
from grpo_jax.testing.groups import check_grouping
from grpo_jax.testing.terms import check_term
from grpo_jax.testing.text_rewards import ODD_COMPLETIONS, RECORDS, check_reward

__all__ = [
    "ODD_COMPLETIONS",
    "RECORDS",
    "check_advantage",
    "check_aggregation",
    "check_grouping",
    "check_reward",
    "check_term",
]
