"""An ablation that takes seconds: two recipes that should coincide, another optimiser, and a variant that diverges."""

import dataclasses

from grpo_jax.advantages import group_leave_one_out
from grpo_jax.experiment import Evaluation, Saving, Train, WarmStart
from grpo_jax.objectives import dr_grpo
from grpo_jax.updates import SGD, Optimizer
from tests.system.small_run import PLAIN

MEAN = dataclasses.replace(
    PLAIN,
    name="mean",
    recipe=dr_grpo(constant=8.0),
    train=Train(steps=3, prompts=8, group_size=4, minibatches=2),
    optimizer=Optimizer(learning_rate=1e-2, clip_norm=0.0),
    warm_start=WarmStart(steps=2, limit=4, gate=0.0, check_every=1, rows=8, log_every=1, optimizer=PLAIN.optimizer),
    evaluation=Evaluation(every=2, prompts=8, full_prompts=16, samples=2, show=1),
    saving=Saving(every=2, warm_every=1),
)
VARIANTS = {
    "mean": MEAN,
    "loo": dataclasses.replace(MEAN, recipe=dataclasses.replace(MEAN.recipe, advantage=group_leave_one_out)),
    "descent": dataclasses.replace(MEAN, optimizer=SGD(learning_rate=0.5, momentum=0.9)),
    "broken": dataclasses.replace(MEAN, train=dataclasses.replace(MEAN.train, gap_limit=1e-12)),
}
SEEDS = (0, 1)
