"""Before the first step: answers that the data knows to be right have to earn a 1, and an empty completion a 0.

A reward that gives every completion the same, because it reads the wrong field or compares the wrong things, looks like
a policy that does not learn. This costs a few calls of each reward and finds it at once.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from grpo_jax.data import Task
from grpo_jax.data.tasks import Answering
from grpo_jax.experiment import Experiment
from grpo_jax.rewards.guards import check_canary
from grpo_jax.rewards.pool import Pool
from grpo_jax.rewards.text import Record

ASKED = 4
"""Problems whose answers are tried."""
COMPONENT = "accuracy"


def check_rewards(experiment: Experiment, pool: Pool | None = None) -> str | None:
    """Try the text rewards on right answers and on none; None, or a sentence on why that could not be done.

    Raises ValueError with the record where a right answer does not score 1 on "accuracy", or none does not score 0.
    """
    task, rewards = experiment.data, experiment.text_rewards
    if not experiment.scoring.canary:
        return None
    if COMPONENT not in rewards:
        return f"no text reward is called {COMPONENT!r}: whether rewards tell right answers from wrong was not tried"
    if not isinstance(task, Answering):
        return (
            f"{type(task).__name__} has no method gold(prompts), token ids of right completions: whether rewards tell"
            " right answers from wrong was not tried"
        )
    gold, junk = tried(task, task, experiment.seed)
    try:
        check_canary(pool or rewards, gold, junk, component=COMPONENT)
    except ValueError as error:
        raise ValueError(f"{error}\nscoring.canary=False starts without this check") from None
    return None


def tried(task: Task, knowing: Answering, seed: int) -> tuple[list[Record], list[Record]]:
    """Records of right completions of the first prompts of a run, as far as they are known, and of empty ones."""
    prompts = task.draw(seed, np.arange(ASKED))
    answers, metadata = task.answers(prompts), task.metadata(prompts)
    asked = [
        (task.prompt_text(prompts, index), answer, known)
        for index, (answer, known) in enumerate(zip(answers, metadata, strict=True))
    ]
    eos = task.tokenizer.eos
    right = zip(asked, knowing.gold(prompts), strict=True)
    gold = [_record(task, *known, ids) for known, ids in right if ids is not None]
    return gold, [_record(task, *known, [eos]) for known in asked]


def _record(task: Task, prompt: str, answer: str, metadata: Mapping[str, object], ids: Sequence[int]) -> Record:
    text = task.tokenizer.decode([token for token in ids if token != task.tokenizer.eos])
    return Record(prompt=prompt, completion=text, tokens=tuple(ids), answer=answer, metadata=metadata)
