"""Tasks: where prompts, right answers and demonstrations come from. The prompt of draw k is a function of (seed, k).

By difficulty (`grpo_jax.data.difficulty`) it is one of (seed, k) and of success rates that are part of the state.
"""

from grpo_jax.data.addition import Addition
from grpo_jax.data.chain import Chain
from grpo_jax.data.difficulty import Difficulty, by_variance, in_pools
from grpo_jax.data.jsonl import Jsonl
from grpo_jax.data.mixture import Mixture
from grpo_jax.data.tasks import Demonstrations, Task, assert_disjoint, records

__all__ = [
    "Addition",
    "Chain",
    "Demonstrations",
    "Difficulty",
    "Jsonl",
    "Mixture",
    "Task",
    "assert_disjoint",
    "by_variance",
    "in_pools",
    "records",
]
