"""Longer reasoning: four-digit addition on paper, digit by digit from the right with carries.

    grpo-jax train experiments/addition.py          # or: python experiments/addition.py

A problem is ``4729+5816=``. The whole chain, ``9615210478154510</think><answer>10545</answer>``, has the two digits of
every place and their sum with the carry, the ones first (`grpo_jax/data/addition.py`): 25 tokens, against 9 of a bare
answer. The warm start imitates demonstrations of mixed quality, on purpose: their answers are all right, but two fifths
are bare, a fifth shows half of the chain, two fifths all of it, and a quarter lacks a tag. It ends as soon as a quarter
of the sampled answers are right. GRPO then has only the reward (1 for the answer, 0.2 for the format) to find out that
the longest way is the one that pays; no single digit of a chain earns anything.

What to expect: the length grows from 17 to 25 tokens within ten steps, and the accuracy with it. Measured with the
first command (seed 0; 2 cores of an AMD EPYC server, 2026-11-20, commit b5b03b8: 72 s, 105 CPU seconds, 1,000
supervised and 100 GRPO steps; 2,048 held-out problems, those whose hash is a multiple of 16): sampled accuracy from
28.2 % to 98.9 %, greedy from 62.5 % to 99.8 %, well-formed from 73.3 % to 99.9 %.
"""

from grpo_jax import cli
from grpo_jax.data import Addition
from grpo_jax.experiment import Evaluation, Experiment, Saving, Train, WarmStart
from grpo_jax.models import ModelConfig
from grpo_jax.objectives import grpo
from grpo_jax.sampling import Sampling
from grpo_jax.updates import Optimizer

TASK = Addition(digits=4, styles=(0.4, 0.2, 0.4), dropped_tag=0.25)

EXPERIMENT = Experiment(
    name="addition",
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
        limit=3000,
        gate=0.25,
        check_every=100,
        rows=32,
        optimizer=Optimizer(learning_rate=3e-3, warmup=50, schedule="cosine", final=0.1),
    ),
    train=Train(steps=100, prompts=32, group_size=8, epochs=2, minibatches=2),
    optimizer=Optimizer(learning_rate=6e-4, warmup=5, schedule="linear", final=0.05),
    evaluation=Evaluation(every=10, prompts=512, full_prompts=2048, samples=4),
    saving=Saving(every=20, warm_every=500),
)

if __name__ == "__main__":
    cli.main_for(__file__)
