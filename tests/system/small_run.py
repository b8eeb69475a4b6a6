"""An experiment that takes seconds and in which every step changes the parameters: the reward is dense.

`right` says whether the first token is one of seven, which a fresh policy does about every third time; `digits` counts
the digits. Both are whole numbers, so the functions on tokens and those on text agree exactly.
"""

import dataclasses
from functools import partial

import jax.numpy as jnp

from grpo_jax.advantages import role_baseline
from grpo_jax.data import Chain, Difficulty, Mixture
from grpo_jax.dynamic import Dynamic
from grpo_jax.experiment import Evaluation, Experiment, Saving, Scoring, Train, WarmStart
from grpo_jax.models import LoRA, ModelConfig
from grpo_jax.objectives import grpo, ppo_critic, trpo
from grpo_jax.rewards.tokens import combine
from grpo_jax.sampling import Sampling
from grpo_jax.types import Array, Rollouts
from grpo_jax.updates import Averaged, Optimizer, Replaced, TrustRegion
from tests.system.small_text import always, digits_in_text, right_in_text


def right(rollouts: Rollouts) -> Array:
    """f32[N], 1 where the first token is below 7."""
    return (rollouts.tokens[:, 0] < 7).astype(jnp.float32)


def digits(rollouts: Rollouts) -> Array:
    """f32[N], tokens below 10."""
    inside = jnp.arange(rollouts.tokens.shape[1])[None, :] < rollouts.length[:, None]
    return (inside & (rollouts.tokens < 10)).sum(axis=1).astype(jnp.float32)


DATA = Chain(operands=3)
KINDS = Mixture(parts={"longer": DATA, "shorter": Chain(operands=2)})
PLAIN = Experiment(
    name="small",
    data=DATA,
    model=ModelConfig(
        vocab=DATA.tokenizer.vocab_size,
        width=16,
        layers=1,
        heads=4,
        kv_heads=4,
        head_width=4,
        hidden=32,
        rope_theta=100.0,
    ),
    sampling=Sampling(max_tokens=DATA.completion_width, stop=(DATA.tokenizer.eos,)),
    recipe=grpo(beta=0.0),
    reward=partial(combine, rewards=(("accuracy", right, 1.0), ("digits", digits, 0.25))),
    text_rewards={"accuracy": (right_in_text, 1.0), "digits": (digits_in_text, 0.25)},
    train=Train(steps=6, prompts=8, group_size=4, epochs=1, minibatches=2),
    optimizer=Optimizer(learning_rate=1e-2, warmup=2, schedule="linear"),
    warm_start=WarmStart(
        steps=4,
        limit=8,
        gate=0.0,
        check_every=2,
        rows=8,
        log_every=2,
        optimizer=Optimizer(learning_rate=3e-3, warmup=2),
    ),
    evaluation=Evaluation(every=2, prompts=8, full_prompts=16, samples=2, show=2),
    saving=Saving(every=2, warm_every=2),
    scoring=Scoring(workers=2, canary=False),  # what is called accuracy here is not that of the answer
)

CRITIC = dataclasses.replace(
    PLAIN,
    model=dataclasses.replace(PLAIN.model, critic="head"),
    recipe=ppo_critic(beta=0.01),
    optimizer=dataclasses.replace(PLAIN.optimizer, critic_rate=2.0, critic_warmup=3),
)
# Of groups of four, whose first token is right about every third time, a fifth is refused: most steps take two rounds,
# and most leave something over.
CHOOSY = dataclasses.replace(PLAIN.train, dynamic=Dynamic(rounds=3, component="accuracy"))
PARTS = Mixture({"short": DATA, "sums": Chain(operands=3, operators="+")}, {"short": 0.75, "sums": 0.25})

EXPERIMENT = PLAIN
VARIANTS = {
    "plain": PLAIN,
    "penalty": dataclasses.replace(PLAIN, recipe=grpo(beta=0.04)),
    "text": dataclasses.replace(PLAIN, reward=None),
    "cold": dataclasses.replace(PLAIN, warm_start=None),
    "trust": dataclasses.replace(
        PLAIN, recipe=trpo(), optimizer=TrustRegion(delta=0.05, final=0.5, iterations=4, fisher_share=0.5)
    ),
    "roles": dataclasses.replace(  # what its advantage remembers is part of every checkpoint
        PLAIN, data=KINDS, recipe=dataclasses.replace(PLAIN.recipe, advantage=partial(role_baseline, name="category"))
    ),
    "mesh": dataclasses.replace(PLAIN, mesh={"data": 2, "fsdp": 4}),
    "critic": CRITIC,
    "critic on a mesh": dataclasses.replace(
        CRITIC, model=dataclasses.replace(PLAIN.model, critic="tower"), mesh={"data": 2, "fsdp": 4}
    ),
    "dynamic": dataclasses.replace(PLAIN, train=CHOOSY),
    "dynamic_text": dataclasses.replace(PLAIN, train=CHOOSY, reward=None, recipe=grpo(beta=0.04)),
    "dynamic_mesh": dataclasses.replace(PLAIN, train=CHOOSY, mesh={"data": 2, "fsdp": 4}),
    "difficulty": dataclasses.replace(
        PLAIN, data=PARTS, train=dataclasses.replace(CHOOSY, difficulty=Difficulty()), warm_start=None
    ),
    "frozen": dataclasses.replace(
        PLAIN,
        recipe=grpo(beta=0.04),
        train=dataclasses.replace(PLAIN.train, frozen=("embed", "layers/0/[gud]*")),
    ),
    "lora": dataclasses.replace(
        PLAIN, recipe=grpo(beta=0.04), model=dataclasses.replace(PLAIN.model, lora=LoRA(rank=2, alpha=4.0))
    ),
    "replaced": dataclasses.replace(
        PLAIN, recipe=grpo(beta=0.04), train=dataclasses.replace(PLAIN.train, reference=Replaced(every=2))
    ),
    "averaged lora on a mesh": dataclasses.replace(
        PLAIN,
        recipe=grpo(beta=0.04),
        train=dataclasses.replace(PLAIN.train, reference=Averaged(decay=0.5)),
        model=dataclasses.replace(PLAIN.model, lora=LoRA(rank=2, alpha=4.0)),
        mesh={"data": 2, "fsdp": 4},
    ),
    "few bytes": dataclasses.replace(
        PLAIN,
        model=dataclasses.replace(PLAIN.model, param_dtype="bfloat16"),
        optimizer=dataclasses.replace(PLAIN.optimizer, moments="bfloat16", master=True),
    ),
    "factored on a mesh": dataclasses.replace(
        PLAIN,
        optimizer=dataclasses.replace(PLAIN.optimizer, moments="factored"),
        mesh={"data": 2, "fsdp": 4},
    ),
    "twins": dataclasses.replace(
        PLAIN, text_rewards={"accuracy": (always, 1.0), "digits": (digits_in_text, 0.25)}, warm_start=None
    ),
}
