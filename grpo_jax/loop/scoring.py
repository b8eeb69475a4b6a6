"""Scores of completions as text: begun, waited for, put together, and refused where there is not one."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from grpo_jax.heldout import Judge
from grpo_jax.lifeline import Exit, RunStopped
from grpo_jax.rewards.text import Record, Scores, score
from grpo_jax.types import Reward


def submitted(judge: Judge, texts: Sequence[Record]) -> Callable[[], tuple[Reward, Scores]]:
    """Scores on their way: what is returned waits for them. In this process they are made at once."""
    if judge.pool is not None:
        return judge.pool.submit(texts).result
    made = score(texts, judge.text_rewards)

    def known() -> tuple[Reward, Scores]:
        return made

    return known


def together(parts: Sequence[tuple[Reward, Scores]]) -> tuple[Reward, Scores]:
    """The rewards and scores of all rows in order."""
    if len(parts) == 1:
        return parts[0]
    reward = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(reward for reward, _ in parts))
    names = parts[0][1]
    return reward, {name: tuple(score for _, scores in parts for score in scores[name]) for name in names}


def check_scored(reward: Reward, scores: Scores) -> None:
    """Stop a run whose rewards failed on every row: there is nothing to learn from, and the cause is not the policy."""
    if not np.asarray(reward.valid).any():
        failed = ((name, s) for name, row in scores.items() for s in row[:1] if s.status in ("error", "timeout"))
        name, first = next(failed)
        raise RunStopped(
            Exit.DATA,
            f"The text reward {name!r} failed on every row, on the first with {first.status}: {first.detail}. Correct"
            " the reward, its settings or the data.",
        )
