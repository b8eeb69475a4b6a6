"""Four kinds of problems in one run, from easy to hard, each with an accuracy of its own.

    grpo-jax train experiments/mixed.py          # or: python experiments/mixed.py

All are left-to-right arithmetic modulo 10 (`grpo_jax/data/chain.py`) with one tokenizer and one reward: sums of four
numbers, differences among six, products among eight, and twelve numbers in a row. The longer a problem, the fewer of
its demonstrations show the whole chain. `Mixture` draws a quarter from each.
Every evaluation reports ``accuracy/heldout`` over all and ``accuracy/heldout[<category>]`` for each; the category is in
the metadata that rewards see and in ``Prompts.label``, so a grouping can compare within categories.

A policy that learns from a mixture learns the parts at different times: the easy ones are solved, and teach nothing any
more, while the hard ones have just begun to pay.
"""

from grpo_jax import cli
from grpo_jax.data import Chain, Mixture
from grpo_jax.experiment import Evaluation, Experiment, Saving, Train, WarmStart
from grpo_jax.models import ModelConfig
from grpo_jax.objectives import grpo
from grpo_jax.sampling import Sampling
from grpo_jax.updates import Optimizer

TASK = Mixture(
    parts={
        "sums": Chain(operands=4, operators="+", styles=(0.3, 0.1, 0.6)),
        "differences": Chain(operands=6, operators="+-", styles=(0.4, 0.1, 0.5)),
        "products": Chain(operands=8, operators="+-*", styles=(0.5, 0.1, 0.4)),
        "long": Chain(operands=12, operators="+-", styles=(0.6, 0.1, 0.3)),
    },
    shares={"sums": 0.25, "differences": 0.25, "products": 0.25, "long": 0.25},
)

EXPERIMENT = Experiment(
    name="mixed",
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
        gate=0.28,
        check_every=100,
        rows=32,
        optimizer=Optimizer(learning_rate=3e-3, warmup=50, schedule="cosine", final=0.1),
    ),
    train=Train(steps=80, prompts=32, group_size=8, epochs=2, minibatches=2),
    optimizer=Optimizer(learning_rate=6e-4, warmup=5, schedule="linear", final=0.05),
    evaluation=Evaluation(every=10, prompts=512, full_prompts=2048, samples=4),
    saving=Saving(every=20, warm_every=500),
)

if __name__ == "__main__":
    cli.main_for(__file__)
