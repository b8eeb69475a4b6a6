"""Lines of `samples.jsonl`: every completion of every step, and some of every evaluation."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from grpo_jax.data import Task, records
from grpo_jax.rewards.text import Record, Scores
from grpo_jax.types import Batch


def rollout_records(
    batch: Batch,
    task: Task,
    position: Mapping[str, Any],
    scores: Scores | None = None,
    texts: Sequence[Record] | None = None,
) -> Iterator[dict[str, Any]]:
    """A line for each row of a host `batch`: what was asked, sampled, earned and made of it.

    `texts` are the rows as text, where they are known already.
    """
    rollouts, reward = batch.rollouts, batch.reward
    tokens = np.maximum(batch.mask.sum(1), 1)
    advantage = (np.where(batch.mask, batch.advantage, 0).sum(1) / tokens).tolist()
    draw, stopped = rollouts.prompts.draw[rollouts.prompt].tolist(), rollouts.stopped.tolist()
    valid, version = reward.valid.tolist(), rollouts.version.tolist()
    outcome, sample = reward.outcome.tolist(), rollouts.sample.tolist()
    components = {name: values.tolist() for name, values in reward.components.items()}
    group = batch.group.T.tolist() if batch.group.ndim == 2 else batch.group.tolist()
    statuses = {} if scores is None else {name: [score.status for score in rows] for name, rows in scores.items()}
    for n, text in enumerate(records(task, rollouts) if texts is None else texts):
        yield {
            **position,
            "set": "train",
            "draw": draw[n],
            "sample": sample[n],
            "prompt": text.prompt,
            "completion": text.completion,
            "tokens": list(text.tokens),
            "length": len(text.tokens),
            "stopped": stopped[n],
            "components": {name: values[n] for name, values in components.items()},
            "statuses": {name: values[n] for name, values in statuses.items()},
            "valid": valid[n],
            "reward": outcome[n],
            "advantage": advantage[n],
            "group": group[n],
            **({"demonstrated": True} if version[n] < 0 else {}),
        }


def heldout_records(
    shown: Mapping[str, Sequence[tuple[Record, Mapping[str, float]]]], position: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """A line for each completion `shown` of a held-out set: name of the set -> (record, its scores)."""
    for name, rows in shown.items():
        for number, (text, components) in enumerate(rows):
            yield {
                **position,
                "set": name,
                "number": number,
                "prompt": text.prompt,
                "completion": text.completion,
                "tokens": list(text.tokens),
                "length": len(text.tokens),
                "stopped": text.stopped,
                "components": dict(components),
                "answer": text.answer,
            }
