"""Objectives that are told more than what whole completions earned, on the task of the quickstart.

    grpo-jax train experiments/signals.py --variant process          # or: python experiments/signals.py --variant ...

The task, the model, the warm start and the optimiser are those of `experiments/quickstart.py`; each variant asks for
something that rewards of completions do not say, and the run finds it out:

``exact_kl``      the divergence from the reference over the whole vocabulary, in the loss: a second model in each pass
``token_baseline``  the sum of squared probabilities at every token, of which the optimal baseline is made
``greedy``        what the greedy completion of the same prompt earns, the baseline of ReMax: one more row a prompt
``process``       a reward for every value of the chain, right or wrong: process supervision
``adaptive_kl``   how far a step has moved the policy, measured behind it: the penalty of PPO doubles or halves
``truncated``     sampling without its least likely tenth, corrected by what the trainer says of the same tokens
``demonstrated``  a right answer that the policy did not write, in every group: LUFFY
``roles``         the mean reward of each of two kinds of problems, remembered from step to step
"""

from dataclasses import replace
from functools import partial

from grpo_jax import cli
from grpo_jax.advantages import optimal_token_baseline, process_supervision, remax, role_baseline
from grpo_jax.data import Chain, Mixture
from grpo_jax.experiment import Evaluation, Experiment, Saving, Train, WarmStart
from grpo_jax.models import ModelConfig
from grpo_jax.objectives import decoupled_ppo, grpo, grpo_exact_kl, luffy, ppo_adaptive_kl
from grpo_jax.sampling import Sampling
from grpo_jax.updates import Optimizer

IMITATION = Optimizer(learning_rate=3e-3, warmup=50, schedule="cosine", final=0.1)
TASK = Chain(styles=(0.5, 0.1, 0.4), dropped_tag=0.25)
KINDS = Mixture(parts={"long": TASK, "short": replace(TASK, operands=4)})
GRPO = grpo(beta=0.0)

EXPERIMENT = Experiment(
    name="signals",
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
    recipe=GRPO,
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


def variant(name: str, **changes) -> Experiment:
    """The experiment with `changes`, under a name of its own."""
    return replace(EXPERIMENT, name=f"signals-{name}", **changes)


VARIANTS = {
    "exact_kl": variant("exact_kl", recipe=grpo_exact_kl(beta=0.01)),
    "token_baseline": variant("token_baseline", recipe=replace(GRPO, advantage=optimal_token_baseline)),
    "greedy": variant("greedy", recipe=replace(GRPO, advantage=remax)),
    "process": variant(
        "process",
        recipe=replace(GRPO, advantage=process_supervision),
        reward=TASK.process_reward(format_weight=0.2),
    ),
    "adaptive_kl": variant("adaptive_kl", recipe=ppo_adaptive_kl(target=0.01)),
    "truncated": variant("truncated", recipe=decoupled_ppo(), sampling=EXPERIMENT.sampling.replace(top_p=0.9)),
    "demonstrated": variant("demonstrated", recipe=luffy(), train=replace(EXPERIMENT.train, demonstrations=1)),
    "roles": variant(
        "roles",
        data=KINDS,
        recipe=replace(GRPO, advantage=partial(role_baseline, name="category", roles=2)),
        reward=KINDS.reward(format_weight=0.2),
        text_rewards=KINDS.text_rewards(format_weight=0.2),
    ),
}

if __name__ == "__main__":
    cli.main_for(__file__)
