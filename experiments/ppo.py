"""PPO with a critic on the task of the quickstart: four roles, advantages token by token, no groups.

    grpo-jax train experiments/ppo.py --variant head          # or: python experiments/ppo.py --variant tower

Task, reward, warm start and the number of rows of a step are those of `quickstart.py`. What a completion is compared
with is different: not the other completions of its prompt, but what a critic expected before each token. So every
prompt is answered once, and there are eight times as many prompts. `docs/critic.md` explains the parts.

========  ==========================================================================================================
variant   the critic
========  ==========================================================================================================
head      a value head on the last layer of the policy, whose layers serve both
tower     a decoder of its own, which begins as a copy of the policy
vapo      as `tower`, with a lambda that depends on the length of the row and targets without a lambda
penalty   as `head`, with the divergence from the reference taken from the reward of every token: all four roles
========  ==========================================================================================================
"""

from dataclasses import replace
from pathlib import Path

from grpo_jax import cli
from grpo_jax.experiment import Experiment
from grpo_jax.objectives import ppo_critic

QUICKSTART: Experiment = cli.load(Path(__file__).with_name("quickstart.py")).EXPERIMENT

EXPERIMENT = replace(
    QUICKSTART,
    name="ppo-head",
    model=replace(QUICKSTART.model, critic="head"),
    recipe=ppo_critic(),
    train=replace(QUICKSTART.train, steps=100, prompts=256, group_size=1),
    # A head of 65 numbers follows the policy that it stands on only if it moves faster.
    optimizer=replace(QUICKSTART.optimizer, critic_rate=5.0),
)
TOWER = replace(
    EXPERIMENT,
    name="ppo-tower",
    model=replace(QUICKSTART.model, critic="tower"),
    optimizer=replace(QUICKSTART.optimizer, critic_rate=3.0),
)

VARIANTS = {
    "head": EXPERIMENT,
    "tower": TOWER,
    "vapo": replace(TOWER, name="ppo-vapo", recipe=ppo_critic(alpha=1.0)),
    "penalty": replace(EXPERIMENT, name="ppo-penalty", recipe=ppo_critic(beta=0.001)),
}

if __name__ == "__main__":
    cli.main_for(__file__)
