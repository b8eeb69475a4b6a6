"""Every recipe and every advantage of the library on the quickstart: one command that ends in a table and a verdict.

    python experiments/all_recipes.py          # or: grpo-jax ablate experiments/all_recipes.py

Task, model, warm start, batch and optimiser are those of `quickstart.py`, so the rows differ in their objective alone.
A run is 20 steps of 256 completions, each used for four optimiser updates; the first held-out evaluation stands behind
20 updates, the last behind 80.

`ROWS` says of every variant beforehand whether it is expected to learn here, and if not, why. The command fails unless

* no number of any metric is infinite or nan, and no update was refused, in any run;
* every variant that is expected to learn has raised the sampled reward by at least 5 points, both after 20 updates and
  at the end, as a mean over three seeds;
* every variant that is not has raised it by less.

The reward of a completion is 1 for the right answer and 0.2 for the format; a point is a hundredth of the first. It is
measured on held-out problems, four sampled completions each before GRPO and at the end, one in between. Recipes are
those of `objectives.RECIPES`, with the hyper-parameters of their papers. An advantage that none of them has stands in
the place of GRPO's in a clipped surrogate with the mean over tokens.
"""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp

from grpo_jax import cli
from grpo_jax.advantages import ADVANTAGES
from grpo_jax.experiment import Evaluation, Experiment, Train
from grpo_jax.groups import by_prompt
from grpo_jax.objectives import RECIPES, Part, Recipe, ppo_clip, ppo_critic, token_mean, wants
from grpo_jax.train import TokenReward
from grpo_jax.types import Reward, Rollouts
from grpo_jax.updates import TrustRegion

_FILE = cli.load(Path(__file__).with_name("quickstart.py"))
QUICKSTART: Experiment = _FILE.EXPERIMENT
REWARD: TokenReward = _FILE.TASK.reward(format_weight=0.2)
(END_OF_THOUGHT,) = QUICKSTART.data.tokenizer.encode("</think>", specials=True)
LEAST_RISE = 0.05
"""Five points of reward."""


class Row(NamedTuple):
    """What is expected of a variant on this task."""

    learns: bool = True
    why: str = ""  # always where it does not learn, and where something else is known of it


ALONE = (
    "outcome",
    "opo",
    "gpg",
    "maxrl",
    "passk",
    "passk_max_minus_second",
    "weighted_components",
    "gdpo",
    "reinforce_batch_norm",
    "reinforce_pp",
    "reinforce_pp_baseline",
    "remax",
    "optimal_token_baseline",
    "process_supervision",
)
"""Advantages that are in no recipe of the library."""
LEFT_OUT = {"role_baseline": "roles are labels of prompts, and here all are of one kind: see signals.py"}
"""Advantages that cannot be tried here, with what they need."""
AGREED = "as ppo_clip: sampler and trainer hold the same parameters, so that the weights are 1"
REMARKS = {
    "ppo_dual_clip": "as ppo_clip: no ratio of a bad token comes near 3",
    "grpo_two_sided": "as ppo_clip: no ratio of a bad token comes near 4",
    **dict.fromkeys(("tis", "tis_sequence", "icepop", "mis_sequence", "decoupled_ppo"), AGREED),
    **dict.fromkeys(("geometric_mask", "rejection"), AGREED),
    "luffy": "as ppo_clip: nobody else's completions are in the batch",
    "gspo": "its bounds stop every second row, so that it goes in small steps",
    "gspo_token": "as gspo: all tokens of a row have one advantage",
    "luspo": "as gspo: its bounds stop every second row",
    "grpo_straight_through": "as grpo_k2: it has its gradient",
    "trpo": "20 updates in all, one a step: the first evaluation stands behind 5",
    "passk_max_minus_second": "one completion of a group at most has an advantage, and only if it alone is the best",
}
"""What is known beforehand of variants that learn."""
UPDATES = ("ppo_vapo", "trpo")
"""Variants with a setting of their own beside recipe: another critic, another kind of update."""
ROWS: dict[str, Row] = {name: Row(why=REMARKS.get(name, "")) for name in (*RECIPES, *ALONE, *UPDATES)}


def in_steps(rollouts: Rollouts, *, reward: TokenReward, thought: int) -> Reward:
    """`reward` with two steps in every row: the thought up to the token `thought`, then the answer.

    The first step earns the format and the second the answer, each on the token that ends it; outcomes stay as they
    are. A row that never closes its thought is one step.
    """
    found = reward(rollouts)
    place = jnp.arange(rollouts.tokens.shape[1], dtype=jnp.int32)[None, :]
    last = place == rollouts.length[:, None] - 1
    closes = rollouts.mask & (rollouts.tokens == thought) & ~last
    first = closes & (jnp.cumsum(closes.astype(jnp.int32), axis=1) == 1)
    paid = [jnp.where(at, found.components[name][:, None], 0.0) for at, name in ((first, "format"), (last, "accuracy"))]
    return found.replace(token=sum(paid), step_end=first | last)


def of_advantage(name: str) -> Recipe:
    """The recipe in which an advantage is tried that no published one of the library has."""
    return Recipe(parts=(Part(token_mean, ppo_clip),), advantage=ADVANTAGES[name], grouping=by_prompt)


EXPERIMENT = replace(
    QUICKSTART,
    name="all_recipes",
    train=Train(steps=20, prompts=32, group_size=8, epochs=2, minibatches=2),
    evaluation=Evaluation(every=5, prompts=512, full_prompts=512, samples=4, show=1),
    saving=replace(QUICKSTART.saving, every=20),
)


def of_recipe(recipe: Recipe) -> Experiment:
    """`EXPERIMENT` with a recipe, and with a value head on the policy's layers where the recipe reads values."""
    model = replace(EXPERIMENT.model, critic="head") if "value" in wants(recipe) else EXPERIMENT.model
    return replace(EXPERIMENT, recipe=recipe, model=model)


VARIANTS = {
    **{name: of_recipe(recipe) for name, recipe in RECIPES.items()},
    **{name: of_recipe(of_advantage(name)) for name in ALONE},
    "ppo_vapo": of_recipe(ppo_critic(alpha=1.0)),
}
VARIANTS |= {
    "process_supervision": replace(
        VARIANTS["process_supervision"], reward=partial(in_steps, reward=REWARD, thought=END_OF_THOUGHT)
    ),
    "trpo": replace(
        of_recipe(RECIPES["trpo"]),
        optimizer=TrustRegion(),
        train=replace(EXPERIMENT.train, epochs=1, minibatches=1),
    ),
}
SEEDS = (0, 1, 2)
EXPECTED = (
    ("*", "nonfinite", 0, 0),
    ("*", "skipped", 0, 0),
    *(
        (name, measure, *((LEAST_RISE, math.inf) if row.learns else (-math.inf, LEAST_RISE)), row.why)
        for name, row in ROWS.items()
        for measure in ("first_rise", "rise")
    ),
)

if __name__ == "__main__":
    cli.ablate_for(__file__)
