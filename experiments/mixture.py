"""A mixture of experts learns arithmetic, going again through the experts that it sampled with.

    grpo-jax train experiments/mixture.py

The task of the quickstart; each of three layers has eight experts of width 64, and a token goes through two of them. On
a CPU every expert computes every token (`model.expert_path` dense), because XLA has no grouped product there.

`Train.replay_experts` makes what learns go through the experts that the sampler chose (docs/mixture.md). Without it the
trainer chooses for itself, and a token at the edge between two experts is scored by another policy than the one that
sampled it. There are two ways to see that, each with a variant that replays and one that does not:

    --variant own_choices               float32, four updates a batch: the policy moves, and its choices with it
    --variant bfloat16                  bfloat16, one update a batch: sampler and trainer round differently
    --variant bfloat16_own_choices

Measured in bfloat16, a row a command (seed 0; 2 cores of an AMD EPYC server, 2026-11-20, commit 1ab8171; 200 supervised
and 12 GRPO steps, means over these steps, the largest gap of all of them):

                            logp_gap/mean   logp_gap/p99   logp_gap/max   experts/replaced
    bfloat16                    0.00080        0.0063          0.028            0.13 %
    bfloat16_own_choices        0.00090        0.0063          0.274            0.13 %

One choice in 750 falls otherwise in the trainer. The 99th percentile does not notice; the largest gap is ten times that
with replay. docs/mixture.md has the figures of float32, and what replay does not cover.
"""

from dataclasses import replace
from pathlib import Path

from grpo_jax import cli
from grpo_jax.experiment import Evaluation, Experiment, Saving, Train, WarmStart
from grpo_jax.updates import Optimizer

QUICKSTART: Experiment = cli.load(Path(__file__).with_name("quickstart.py")).EXPERIMENT

EXPERIMENT = replace(
    QUICKSTART,
    name="mixture",
    model=replace(
        QUICKSTART.model,
        hidden=64,
        activation="silu",
        gated=True,
        experts=8,
        experts_per_token=2,
        expert_hidden=64,
        expert_path="dense",
    ),
    warm_start=WarmStart(
        steps=600,
        limit=2000,
        gate=0.25,
        check_every=100,
        rows=32,
        optimizer=Optimizer(learning_rate=3e-3, warmup=50, schedule="cosine", final=0.1),
    ),
    train=Train(steps=40, prompts=32, group_size=8, epochs=2, minibatches=2),
    optimizer=Optimizer(learning_rate=6e-4, warmup=5, schedule="linear", final=0.05),
    evaluation=Evaluation(every=10, prompts=256, full_prompts=1024, samples=2),
    saving=Saving(every=20, warm_every=500),
)

# Long enough to see the gap, not to learn much. In bfloat16 sampler and trainer agree to some hundredths of a nat, and
# what is beyond a nat would be another model. Without replay there is no bound, and the run is not to stop.
ROUNDED = replace(
    EXPERIMENT,
    name="mixture-bfloat16",
    model=replace(EXPERIMENT.model, compute_dtype="bfloat16"),
    warm_start=WarmStart(steps=200, limit=200, gate=0.0, check_every=200, rows=32),
    train=replace(EXPERIMENT.train, steps=12, epochs=1, minibatches=1, gap_limit=1.0),
    evaluation=replace(EXPERIMENT.evaluation, every=12, full_prompts=256),
)

VARIANTS = {
    "own_choices": replace(
        EXPERIMENT, name="mixture-own-choices", train=replace(EXPERIMENT.train, replay_experts=False)
    ),
    "bfloat16": ROUNDED,
    "bfloat16_own_choices": replace(
        ROUNDED,
        name="mixture-bfloat16-own-choices",
        train=replace(ROUNDED.train, replay_experts=False, gap_limit=100.0),
    ),
}

if __name__ == "__main__":
    cli.main_for(__file__)
