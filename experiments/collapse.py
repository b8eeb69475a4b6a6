"""A failure on purpose: GRPO from a policy that never solves a problem collapses to short, well-formed nonsense.

    grpo-jax train experiments/collapse.py          # or: python experiments/collapse.py

The task is that of `experiments/addition.py` with six digits, but the warm start ends after 200 steps whatever it has
reached (``gate=0``): it has taught what a completion looks like, three fifths of them with the whole chain, and not yet
how to add. Of the reward only the 0.2 for the format is ever earned. A long chain has more chances to lose it, so the
short completions win: within ten steps all reasoning is gone, and with it what could have been right. The reward rises
all the while, and nearly all groups end up tied, so nothing brings the chains back.

What to expect: ``length/mean`` falls from 27 to 11 tokens, which is a bare answer; ``format/heldout`` rises to 0.99;
``accuracy/heldout`` stays at 0.00. The alerts name it as it happens: "completions shrank from 27.5 to 13.3 tokens in 7
steps while the reward hardly rose", "not one answer was right in 10 steps", and that most groups are tied.

What one learns from it: GRPO strengthens what is sampled now and then, so the warm start has to last until right
answers are. That is what ``warm_start.gate`` is for; ``--variant gated`` is the same run with it.
"""

from dataclasses import replace

from grpo_jax import cli
from grpo_jax.data import Addition
from grpo_jax.experiment import Evaluation, Experiment, Saving, Train, WarmStart
from grpo_jax.models import ModelConfig
from grpo_jax.objectives import grpo
from grpo_jax.sampling import Sampling
from grpo_jax.updates import Optimizer

TASK = Addition(digits=6, styles=(0.2, 0.2, 0.6), dropped_tag=0.25)

EXPERIMENT = Experiment(
    name="collapse",
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
        steps=200,
        limit=200,
        gate=0.0,
        rows=32,
        optimizer=Optimizer(learning_rate=3e-3, warmup=50, schedule="cosine", final=0.1),
    ),
    train=Train(steps=40, prompts=32, group_size=8, epochs=2, minibatches=2),
    optimizer=Optimizer(learning_rate=6e-4, warmup=5, schedule="linear", final=0.05),
    evaluation=Evaluation(every=10, prompts=512, full_prompts=2048, samples=4),
    saving=Saving(every=20, warm_every=500),
)

VARIANTS = {
    # The cure: the same run, which begins GRPO when a quarter of the sampled answers are right, however long it takes.
    "gated": replace(
        EXPERIMENT,
        name="collapse-gated",
        warm_start=WarmStart(
            steps=1000,
            limit=4000,
            gate=0.25,
            rows=32,
            optimizer=Optimizer(learning_rate=3e-3, warmup=50, schedule="cosine", final=0.1),
        ),
    ),
}

if __name__ == "__main__":
    cli.main_for(__file__)
