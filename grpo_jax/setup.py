"""What a run is set up from: held-out problems, what judges with them, processes that score, what a display is told."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from grpo_jax.data import assert_disjoint
from grpo_jax.display import Plan
from grpo_jax.experiment import Experiment
from grpo_jax.heldout import Judge
from grpo_jax.objectives import functions
from grpo_jax.rewards.pool import Pool
from grpo_jax.sharding import make_mesh
from grpo_jax.types import Prompts

CHECKED = 1 << 17
"""Draws that are compared with the held-out problems one by one; for later ones their class says that they differ."""


def plan(experiment: Experiment) -> Plan:
    """What the display is told of the run beforehand."""
    warm, train = experiment.warm_start, experiment.train
    steps: Mapping[str, int] = {"warm_start": warm.limit if warm else 0, "grpo": train.steps}
    return Plan(experiment.name, steps, rows=train.prompts * train.group_size)


def workers(experiment: Experiment) -> AbstractContextManager[Pool | None]:
    """The processes that score text, if a reward is the user's own; None where all are the library's."""
    scoring, rewards = experiment.scoring, experiment.text_rewards
    own = [
        f for reward, _ in rewards.values() for f, _ in functions(reward) if not f.__module__.startswith("grpo_jax.")
    ]
    if not own:
        return nullcontext()
    return Pool(rewards, workers=scoring.workers, timeout_s=scoring.timeout_s, memory_mb=scoring.memory_mb)


def judge(experiment: Experiment, prompts: Prompts, pool: Pool | None = None) -> Judge:
    """What evaluates the policies of `experiment` on the held-out `prompts`."""
    return Judge(
        task=experiment.data,
        model=experiment.model,
        sampling=experiment.sampling,
        text_rewards=experiment.text_rewards,
        reward=experiment.reward,
        seed=experiment.seed,
        prompts=prompts,
        mesh=None if experiment.mesh is None else make_mesh(experiment.mesh),
        pool=pool,
    )


def problems(experiment: Experiment) -> Prompts:
    """The held-out problems. Raises ValueError where the data cannot give all that the run will ask of it."""
    warm, train = experiment.warm_start, experiment.train
    prompts = experiment.data.heldout(experiment.evaluation.full_prompts)
    if warm:
        experiment.data.demonstrations(experiment.seed, np.arange(warm.rows))
    draws = min(max(train.steps * train.prompts, warm.limit * warm.rows if warm else 0), CHECKED)
    assert_disjoint(experiment.data, prompts, seed=experiment.seed, draws=draws)
    return prompts
