"""Six objectives, two optimisers, three seeds: one command that ends in a table, a figure and a claim.

    python experiments/ablate_objectives.py          # or: grpo-jax ablate experiments/ablate_objectives.py

Task, model and warm start are those of `quickstart.py`. What differs is how a batch is used: sixteen optimiser updates
are made from each (four epochs of four minibatches), so that the policy leaves the one that sampled it and clipping has
something to do. At the end the script checks that it had: the bounds of plain GRPO stop between 2 % and 20 % of the
tokens, or the command fails.

Five recipes are published ones; ``loo`` is Dr. GRPO with another baseline, which should change nothing under Adam;
``soft`` has a term that is defined here. Each is trained by Adam and by gradient descent with momentum, with learning
rates of their own: a step of gradient descent is proportional to the gradient, so what an objective multiplies its
gradient by (the length of a row, a deviation of rewards) acts there as a learning rate, and its rate makes up for that.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import jax.numpy as jnp

from grpo_jax import cli
from grpo_jax.advantages import group_leave_one_out, group_standardized
from grpo_jax.experiment import Evaluation, Experiment, Train
from grpo_jax.groups import by_prompt
from grpo_jax.objectives import (
    Part,
    Recipe,
    dapo,
    dr_grpo,
    grpo,
    over_old,
    ppo_group,
    rloo,
    sequence_mean_token_mean,
)
from grpo_jax.types import Array, Batch, TokenStats
from grpo_jax.updates import SGD, Optimizer

QUICKSTART: Experiment = cli.load(Path(__file__).with_name("quickstart.py")).EXPERIMENT
LENGTH = float(QUICKSTART.sampling.max_tokens)


def soft_clip(stats: TokenStats, batch: Batch, *, width: float) -> Array:
    """-A (1 + w tanh((r - 1) / w)) -> f32[N,T]: the gradient fades as the ratio r leaves 1, where PPO's stops at once.

    At r = 1 value and gradient are those of `ppo_clip`.
    """
    ratio = over_old(stats, batch)
    return -batch.advantage * (1.0 + width * jnp.tanh((ratio - 1.0) / width))


RECIPES: dict[str, Recipe] = {
    "grpo": grpo(beta=0.0),
    "dr_grpo": dr_grpo(constant=LENGTH),
    "loo": replace(dr_grpo(constant=LENGTH), advantage=group_leave_one_out),
    "dapo": dapo(),
    "rloo": rloo(),
    "ppo_clip": ppo_group(),
    "soft": Recipe(
        parts=(Part(sequence_mean_token_mean, partial(soft_clip, width=0.2)),),
        advantage=group_standardized,
        grouping=by_prompt,
    ),
}
RATES = {"rloo": 1 / LENGTH}
"""Gradient descent: the share of its learning rate that a recipe gets; rows of `rloo` weigh by their length."""

ADAM = Optimizer(learning_rate=6e-4, warmup=5, schedule="linear", final=0.05, clip_norm=0.0)
DESCENT = SGD(learning_rate=0.03, warmup=5, schedule="linear", final=0.05, momentum=0.9, clip_norm=0.0)

EXPERIMENT = replace(
    QUICKSTART,
    name="ablate_objectives",
    recipe=RECIPES["grpo"],
    train=Train(steps=16, prompts=32, group_size=8, epochs=4, minibatches=4),
    optimizer=ADAM,
    evaluation=Evaluation(every=2, prompts=512, full_prompts=2048, samples=4, show=2),
)
VARIANTS = {
    **{f"{name}-adam": replace(EXPERIMENT, recipe=recipe) for name, recipe in RECIPES.items()},
    **{
        f"{name}-sgd": replace(
            EXPERIMENT,
            recipe=recipe,
            optimizer=replace(DESCENT, learning_rate=DESCENT.learning_rate * RATES.get(name, 1.0)),
        )
        for name, recipe in RECIPES.items()
    },
}
SEEDS = (0, 1, 2)
EXPECTED = (("grpo-adam", "clipped", 0.02, 0.2),)

if __name__ == "__main__":
    cli.ablate_for(__file__)
