"""The experiment of `hostile_rewards.py`: a small task and text rewards only, of which one may go wrong."""

from dataclasses import replace
from functools import partial

from _misbehave import accuracy_or_trouble

from grpo_jax import cli
from grpo_jax.data import Chain
from grpo_jax.experiment import Evaluation, Experiment, Saving, Scoring, Train, WarmStart
from grpo_jax.models import ModelConfig
from grpo_jax.objectives import grpo
from grpo_jax.sampling import Sampling
from grpo_jax.updates import Optimizer

SHARE = 0.075
"""Of the completions: those on which the reward of the variant "hostile" goes wrong."""
TASK = Chain(operands=3, operators="+-", styles=(0.3, 0.0, 0.7), dropped_tag=0.25)

EXPERIMENT = Experiment(
    name="clean",
    data=TASK,
    model=ModelConfig(
        vocab=TASK.tokenizer.vocab_size,
        width=64,
        layers=2,
        heads=4,
        kv_heads=4,
        head_width=16,
        hidden=256,
        positions=TASK.prompt_width + TASK.completion_width,
        rope_theta=1000.0,
    ),
    sampling=Sampling(max_tokens=TASK.completion_width, stop=(TASK.tokenizer.eos,)),
    recipe=grpo(beta=0.0),
    text_rewards=TASK.text_rewards(),
    warm_start=WarmStart(
        steps=400,
        limit=2000,
        gate=0.6,
        check_every=100,
        rows=32,
        optimizer=Optimizer(learning_rate=3e-3, warmup=50, schedule="cosine", final=0.1),
    ),
    train=Train(steps=50, prompts=16, group_size=8, epochs=2, minibatches=2),
    optimizer=Optimizer(learning_rate=6e-4, warmup=5, schedule="linear", final=0.05),
    evaluation=Evaluation(every=50, prompts=64, full_prompts=64, samples=1),
    saving=Saving(every=50, warm_every=500),
    scoring=Scoring(workers=2, timeout_s=0.5, memory_mb=256, canary=False),  # trouble is what is studied here
)

VARIANTS = {
    "clean": EXPERIMENT,
    "hostile": replace(
        EXPERIMENT,
        name="hostile",
        text_rewards={
            **EXPERIMENT.text_rewards,
            "accuracy": (partial(accuracy_or_trouble, share=SHARE), 1.0),
        },
    ),
}

if __name__ == "__main__":
    cli.main_for(__file__)
