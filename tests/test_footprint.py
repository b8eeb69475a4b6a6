"""The bytes that are told beforehand are those of arrays counted by hand, and those that a run then has."""

import dataclasses
from typing import Any

import jax
import pytest

from grpo_jax.footprint import memory
from grpo_jax.loop.setup import first_states
from grpo_jax.models import LoRA
from grpo_jax.objectives import grpo
from grpo_jax.updates import Averaged, Optimizer, Replaced
from tests.system.small_run import PLAIN
from tests.test_plan import PARAMETERS

PENALTY = dataclasses.replace(PLAIN, recipe=grpo(beta=0.04))
ADAPTED = dataclasses.replace(PENALTY, model=dataclasses.replace(PLAIN.model, lora=LoRA(rank=2, alpha=4.0)))
ADAPTERS = 4 * 2 * (16 + 16)
"""Query, key, value and output of the only layer: each from 16 numbers to 2 and to 16."""


def changed(experiment: Any, **train: Any) -> Any:
    return dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, **train))


def whole(experiment: Any) -> dict[str, int]:
    return {name: size.whole for name, size in memory(experiment).items()}


def test_a_run_of_all_parameters_by_hand():
    found = whole(PENALTY)
    assert found["trained parameters"] == found["gradients"] == found["reference policy"] == 4 * PARAMETERS
    assert found["frozen parameters"] == 0
    assert 8 * PARAMETERS < found["optimiser state"] < 8 * PARAMETERS + 16
    # Keys and values of 1 layer, 4 heads of 4: prompts of 7 tokens but the last, and 4 completions of 8, float32.
    assert PLAIN.sampling.max_tokens == 8 and PLAIN.data.prompt_width == 7
    assert found["keys and values of a rollout"] == 2 * 1 * 4 * 4 * 8 * (6 + 4 * 8) * 4
    # A minibatch is 4 prompts of 4 rows of 8 tokens, all at a time, a logit for each of 20 tokens.
    assert found["logits of a chunk"] == 4 * 4 * 8 * 20 * 4


def test_adapters_are_what_is_trained_and_their_reference_costs_nothing():
    found = whole(ADAPTED)
    assert found["trained parameters"] == found["gradients"] == 4 * ADAPTERS
    assert found["frozen parameters"] == 4 * PARAMETERS and found["reference policy"] == 0
    assert 8 * ADAPTERS < found["optimiser state"] < 8 * ADAPTERS + 16


@pytest.mark.parametrize("rule", [Replaced(every=2), Averaged(decay=0.9)], ids=["replaced", "averaged"])
def test_a_reference_that_moves_is_another_set_of_what_is_trained(rule: Any):
    assert whole(changed(ADAPTED, reference=rule))["reference policy"] == 4 * ADAPTERS
    assert whole(changed(PENALTY, reference=rule))["reference policy"] == 4 * PARAMETERS
    assert whole(PLAIN)["reference policy"] == 0  # its recipe has no penalty


def test_frozen_parts_have_neither_gradients_nor_moments():
    found = whole(changed(PENALTY, frozen=("embed",)))
    left = PARAMETERS - 20 * 16
    assert found["frozen parameters"] == 4 * 20 * 16
    assert found["trained parameters"] == found["gradients"] == found["reference policy"] == 4 * left
    assert 8 * left < found["optimiser state"] < 8 * left + 16


def test_moments_and_masters_by_hand():
    narrow = dataclasses.replace(PLAIN, model=dataclasses.replace(PLAIN.model, param_dtype="bfloat16"))

    def kept(experiment: Any, **settings: Any) -> int:
        return whole(dataclasses.replace(experiment, optimizer=Optimizer(**settings)))["optimiser state"]

    assert whole(narrow)["trained parameters"] == 2 * PARAMETERS
    assert 0 < kept(narrow) - 8 * PARAMETERS < 16
    assert 0 < kept(PLAIN, moments="bfloat16") - 4 * PARAMETERS < 16
    assert 0 < kept(narrow, moments="bfloat16", master=True) - 8 * PARAMETERS < 16
    # Rows and columns: embed 20 + 16, head 16 + 20, up and down 16 + 32 each; four of 16 x 4 x 4 and three norms whole.
    factored = 4 * (36 + 36 + 48 + 48 + 4 * 256 + 3 * 16)
    assert 0 <= kept(PLAIN, moments="factored", b1=0.0) - factored < 4 * 3 * 16


def test_a_mesh_splits_what_its_rules_split():
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    found = memory(dataclasses.replace(PLAIN, mesh=mesh))
    # Matrices lie on 4 devices each, norms (16 numbers) on 2; rows on 4, heads on 2.
    matrices, norms = PARAMETERS - 3 * 16, 3 * 16
    assert found["trained parameters"].device == 4 * (matrices // 4 + norms // 2)
    cache = found["keys and values of a rollout"]
    assert cache.device * 8 == cache.whole
    assert found["logits of a chunk"].device == 4 * 4 * 8 * 20 * 4 // 4 // 2


@pytest.mark.parametrize("experiment", [ADAPTED, changed(PENALTY, frozen=("layers/*",))], ids=["lora", "frozen"])
def test_what_is_told_is_what_a_run_then_has(experiment: Any):
    cold = dataclasses.replace(experiment, warm_start=None)
    first, found = first_states(cold, None), whole(cold)
    parts = {
        "trained parameters": first.grpo.params,
        "frozen parameters": first.frozen,
        "optimiser state": first.grpo.opt_state,
    }
    for name, part in parts.items():
        assert found[name] == sum(leaf.nbytes for leaf in jax.tree.leaves(part)), name
