"""What is needed to compare recipes at a policy is there, or is asked for in words. No policy is trained here."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.mixed import EXPERIMENT as MIXED
from experiments.mixed import TASK
from experiments.quickstart import EXPERIMENT
from grpo_jax import advantages, objectives
from grpo_jax.contrast import Sample, absent, categories, check, drifting
from grpo_jax.types import Prompts, Reward, Rollouts, Seen
from grpo_jax.updates import SGD
from tests.laws import tiny


def sample(prompts: Prompts | None = None, **reward: Any) -> Sample:
    rollouts: Any = tiny.rows()
    rollouts = rollouts if prompts is None else rollouts.replace(prompts=prompts)
    return Sample({}, {}, rollouts, tiny.record(Reward, outcome=None, valid=None, **reward), Seen())


def recipe(advantage: Any) -> objectives.Recipe:
    return dataclasses.replace(objectives.dr_grpo(), advantage=advantage)


def test_the_sizes_of_a_batch_are_refused_with_ones_that_fit():
    check(EXPERIMENT, rows=16, drift=0)  # two prompts with eight completions
    for rows, words in ((8, "--rows: got 8, allowed are multiples of 8 from 16 up, .* --rows 16"), (100, "--rows 96")):
        with pytest.raises(ValueError, match=words):
            check(EXPERIMENT, rows=rows, drift=0)
    with pytest.raises(ValueError, match="--drift-steps: got -1, allowed 0 to 1000: 0 stays at the policy"):
        check(EXPERIMENT, rows=16, drift=-1)


def test_the_policy_moves_by_whole_batches_at_the_full_rate():
    moved = drifting(EXPERIMENT, rows=512, updates=3)
    assert (moved.train.prompts, moved.train.epochs, moved.train.minibatches) == (64, 3, 1)
    assert moved.optimizer == dataclasses.replace(EXPERIMENT.optimizer, warmup=0, schedule="constant")
    descent = dataclasses.replace(EXPERIMENT, optimizer=SGD(learning_rate=0.5, warmup=9))
    assert drifting(descent, rows=512, updates=1).optimizer == SGD(learning_rate=0.5)


def test_what_a_recipe_reads_and_is_not_there_is_named():
    given = sample()
    able = [name for name, known in objectives.RECIPES.items() if not absent(known, given)]
    assert {"grpo", "dapo", "gspo", "kl_cov", "entropy_bonus", "rloo_kl"} <= set(able)
    assert absent(objectives.grpo_exact_kl(), given) == []
    assert absent(recipe(advantages.gae), given) == ["value_old"]
    critic = objectives.RECIPES["ppo_critic"]
    assert absent(critic, given) == ["value", "value_old"]
    assert absent(critic, dataclasses.replace(given, seen=Seen(value_old=jnp.zeros(3)))) == []
    assert absent(recipe(advantages.remax), given) == ["greedy"]
    assert absent(recipe(advantages.remax), sample(greedy=jnp.zeros(3))) == []
    assert absent(recipe(advantages.gdpo), given) == ["components"]
    assert absent(recipe(advantages.gdpo), sample(components={"a": jnp.zeros(3)})) == []


def test_categories_go_by_their_names_and_only_those_that_occur():
    prompts = TASK.draw(0, np.arange(40))
    codes, names = categories(MIXED, sample(prompts).rollouts)
    assert names == ("differences", "long", "products", "sums") == TASK.names
    assert [names[c] for c in codes] == [fact["category"] for fact in TASK.metadata(prompts)]
    some = TASK.draw(0, np.flatnonzero(codes % 2 == 1))
    again, fewer = categories(MIXED, sample(some).rollouts)
    assert fewer == ("long", "sums") and [fewer[c] for c in again] == [f["category"] for f in TASK.metadata(some)]


def test_prompts_without_categories_are_refused():
    rollouts: Rollouts = sample(EXPERIMENT.data.draw(0, np.arange(2))).rollouts
    with pytest.raises(ValueError, match="--categories: got prompts of quickstart without the label 'category'"):
        categories(EXPERIMENT, rollouts)
