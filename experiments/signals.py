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
from pathlib import Path

from grpo_jax import cli
from grpo_jax.advantages import optimal_token_baseline, process_supervision, remax, role_baseline
from grpo_jax.data import Chain, Mixture
from grpo_jax.experiment import Experiment
from grpo_jax.objectives import decoupled_ppo, grpo, grpo_exact_kl, luffy, ppo_adaptive_kl

_FILE = cli.load(Path(__file__).with_name("quickstart.py"))
QUICKSTART: Experiment = _FILE.EXPERIMENT
TASK: Chain = _FILE.TASK
KINDS = Mixture(parts={"long": TASK, "short": replace(TASK, operands=4)})
GRPO = grpo(beta=0.0)

EXPERIMENT = replace(QUICKSTART, name="signals", recipe=GRPO)


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
