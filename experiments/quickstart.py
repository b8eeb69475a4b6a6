"""A language model learns multi-step arithmetic by GRPO, from nothing, in about a minute on a laptop.

    make quickstart          # or: python experiments/quickstart.py [--set train.steps=50] [--variant supervised_only]

A decoder of 0.15 million parameters sees problems such as ``7-7+6-7-2*1=`` (left to right, modulo 10) and answers in
the style of R1, ``06977</think><answer>7</answer>``. A supervised warm start imitates demonstrations of mixed quality,
on purpose: their answers are all right, but half of them show no intermediate value, a tenth every second one, four in
ten the whole chain, and a quarter have one tag missing. It stops as soon as a third of the sampled answers are right.
GRPO then has only the reward (1 for the answer, 0.2 for the format) to find out that long, complete, well-formed chains
pay.

Held-out problems are those whose hash is a multiple of 16; training never draws one of them, and the run asserts it.

Measured on 2 cores of an AMD EPYC server, 5 seeds, cold start (`benchmarks/quickstart.py`): sampled held-out accuracy
from 34.0 % to 99.4 % (median; lowest 97.2 %), greedy 100.0 %, well-formed 99.9 %, in 57 s and 90 CPU
seconds. 4,300 supervised steps alone reach 50.2 % (``--variant supervised_only``, 80 CPU seconds).
"""

from dataclasses import replace

from grpo_jax import cli
from grpo_jax.data import Chain
from grpo_jax.experiment import Evaluation, Experiment, Saving, Train, WarmStart
from grpo_jax.models import ModelConfig
from grpo_jax.objectives import grpo
from grpo_jax.sampling import Sampling
from grpo_jax.updates import Optimizer

IMITATION = Optimizer(learning_rate=3e-3, warmup=50, schedule="cosine", final=0.1)
TASK = Chain(styles=(0.5, 0.1, 0.4), dropped_tag=0.25)

EXPERIMENT = Experiment(
    name="quickstart",
    data=TASK,
    model=ModelConfig(
        vocab=TASK.tokenizer.vocab_size,
        width=64,
        layers=3,
        heads=4,
        kv_heads=4,
        head_width=16,
        hidden=256,
        positions=TASK.prompt_width + TASK.completion_width,
        rope_theta=1000.0,
    ),
    sampling=Sampling(max_tokens=TASK.completion_width, stop=(TASK.tokenizer.eos,)),
    recipe=grpo(beta=0.0),
    reward=TASK.reward(format_weight=0.2),
    text_rewards=TASK.text_rewards(format_weight=0.2),
    warm_start=WarmStart(
        steps=1000,
        limit=2600,
        gate=0.32,
        check_every=100,
        rows=32,
        optimizer=IMITATION,
    ),
    train=Train(steps=160, prompts=32, group_size=8, epochs=2, minibatches=2),
    optimizer=Optimizer(learning_rate=6e-4, warmup=5, schedule="linear", final=0.05),
    evaluation=Evaluation(every=10, prompts=512, full_prompts=2048, samples=4),
    saving=Saving(every=20, warm_every=500),
)

VARIANTS = {
    # The control: what the same compute gives without reinforcement learning.
    "supervised_only": replace(
        EXPERIMENT,
        name="quickstart-supervised",
        train=replace(EXPERIMENT.train, steps=0),
        warm_start=WarmStart(steps=4300, limit=4300, gate=0.0, rows=32, optimizer=IMITATION),
    ),
}

if __name__ == "__main__":
    cli.main_for(__file__)
