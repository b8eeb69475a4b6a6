"""Bytes on one device, by hand for a small model, and against what the shards of real arrays hold."""

import dataclasses
from typing import Any

import jax
import pytest

from grpo_jax.experiment import Experiment
from grpo_jax.footprint import footprint, told
from grpo_jax.loop.setup import first_states
from grpo_jax.models import LoRA
from grpo_jax.objectives import grpo
from grpo_jax.sharding import make_mesh
from grpo_jax.updates import Averaged, Optimizer, Replaced
from tests.system.small_run import PLAIN

# Width 16, 4 heads of 4, 32 inside, 1 layer, 20 tokens in both tables; two norms and one at the end.
LAYER = 4 * 16 * 16 + 2 * 16 * 32 + 2 * 16
PARAMETERS = 2 * 20 * 16 + LAYER + 16
# 8 prompts of 7 tokens, 4 samples each.
WIDTH = PLAIN.sampling.max_tokens
COLD = dataclasses.replace(PLAIN, warm_start=None)


def changed(*, model: dict[str, Any] | None = None, train: dict[str, Any] | None = None, **how: Any) -> Experiment:
    new = {
        "model": dataclasses.replace(COLD.model, **(model or {})),
        "train": dataclasses.replace(COLD.train, **(train or {})),
    }
    return dataclasses.replace(COLD, **{**new, **how})


def test_one_device_by_hand():
    found = footprint(changed(model={"remat": "full"}, train={"chunk": 5}))
    assert found.parameters == found.gradients == 4 * PARAMETERS
    # Two moments of Adam for each, and its steps are counted: a few numbers.
    assert 0 <= found.optimizer - 8 * PARAMETERS <= 64
    assert found.reference == found.sampler == 0
    # Keys and values: a layer, 4 heads of 4, every token of the prompts and of the completions, float32.
    assert found.cache == 2 * (4 * 4) * (8 * 7 + 32 * WIDTH) * 4
    # A minibatch is half of the prompts: 4 of them.
    tokens = 4 * (7 + 4 * WIDTH)
    pairs = 4 * 4 * (7 * 7 + 4 * WIDTH * (7 + WIDTH))
    inside = tokens * (2 * 16 + 2 * (4 + 4) * 4 + 3 * 32) * 4
    assert found.layers == tokens * 16 * 4 + inside + 2 * pairs * 4
    assert found.logits == 3 * 4 * 5 * 20
    learning = found.gradients + found.layers + found.logits
    assert found.peak == found.parameters + found.optimizer + max(found.cache, learning)


def test_what_settings_add():
    plain = footprint(COLD)
    assert footprint(changed(recipe=grpo(beta=0.04))).reference == plain.parameters
    half = footprint(changed(model={"compute_dtype": "bfloat16"}))
    # The sampler and the backward pass read a copy of two bytes each; keys and values have two bytes.
    assert (half.sampler, half.cache) == (2 * PARAMETERS, plain.cache // 2)
    assert half.gradients == plain.gradients + 2 * PARAMETERS
    # A tied table is turned over for sampling.
    assert footprint(changed(model={"tied": True})).sampler == 20 * 16 * 4
    pieces = footprint(changed(train={"minibatches": 1, "microbatches": 4}))
    assert pieces.gradients == 2 * plain.gradients and pieces.layers * 2 == plain.layers
    deep = {"layers": 3, "remat": "none"}
    assert footprint(changed(model={**deep, "remat": "full"})).layers < footprint(changed(model=deep)).layers


@pytest.mark.parametrize("mesh", [{"fsdp": 8}, {"data": 2, "fsdp": 4}, {"fsdp": 2, "tensor": 4}], ids=str)
def test_on_a_mesh_it_is_what_the_first_device_holds(mesh: dict[str, int]):
    experiment = changed(mesh=mesh)
    state = first_states(experiment, make_mesh(mesh))[1]
    device = jax.devices()[0]

    def there(tree: object) -> int:
        shards = [shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards]
        return sum(shard.data.nbytes for shard in shards if shard.device == device)

    found = footprint(experiment)
    assert (found.parameters, found.optimizer) == (there(state.params), there(state.opt_state))
    shards = mesh.get("data", 1) * mesh["fsdp"]
    heads = 4 // mesh.get("tensor", 1)
    assert found.cache == 2 * (heads * 4) * (8 // shards) * (7 + 4 * WIDTH) * 4
    # Sampling has parameters whole on every shard of fsdp: by hand, what of them tensor does not split is norms.
    assert found.sampler == 4 * ((PARAMETERS - 3 * 16) // mesh.get("tensor", 1) + 3 * 16)


def test_it_is_told_in_a_line():
    line = told(footprint(COLD), devices=8)
    assert line.startswith(f"memory of each of 8 devices, about: parameters {4 * PARAMETERS / 1e6:.3f}, optimizer ")
    assert line.endswith(f"; peak {footprint(COLD).peak / 1e6:.3f} MB") and "reference" not in line
    assert told(footprint(COLD), devices=1).startswith("memory of the device, about: ")


ADAPTED = {"lora": LoRA(rank=2, alpha=4.0)}
ADAPTERS = 4 * 2 * (16 + 16)
"""Query, key, value and output of the only layer: each from 16 numbers to 2 and to 16."""


def test_adapters_are_what_is_trained_and_their_reference_costs_nothing():
    found = footprint(changed(recipe=grpo(beta=0.04), model=ADAPTED))
    assert (found.parameters, found.gradients, found.frozen) == (4 * ADAPTERS, 4 * ADAPTERS, 4 * PARAMETERS)
    assert found.reference == 0 and 8 * ADAPTERS < found.optimizer <= 8 * ADAPTERS + 64


@pytest.mark.parametrize("rule", [Replaced(every=2), Averaged(decay=0.9)], ids=["replaced", "averaged"])
def test_a_reference_that_moves_is_another_set_of_what_is_trained(rule: Any):
    given: dict[str, Any] = {"recipe": grpo(beta=0.04), "train": {"reference": rule}}
    assert footprint(changed(**given, model=ADAPTED)).reference == 4 * ADAPTERS
    assert footprint(changed(**given)).reference == 4 * PARAMETERS


def test_frozen_parts_have_neither_gradients_nor_moments():
    found = footprint(changed(recipe=grpo(beta=0.04), train={"frozen": ("embed",)}))
    left = PARAMETERS - 20 * 16
    assert found.frozen == 4 * 20 * 16
    assert found.parameters == found.gradients == found.reference == 4 * left
    assert 0 <= found.optimizer - 8 * left <= 64


def test_moments_and_masters_by_hand():
    narrow = {"param_dtype": "bfloat16"}

    def kept(model: dict[str, Any], **settings: Any) -> int:
        return footprint(changed(model=model, optimizer=Optimizer(**settings))).optimizer

    assert footprint(changed(model=narrow)).parameters == 2 * PARAMETERS
    assert 0 <= kept(narrow) - 8 * PARAMETERS <= 64
    assert 0 <= kept({}, moments="bfloat16") - 4 * PARAMETERS <= 64
    assert 0 <= kept(narrow, moments="bfloat16", master=True) - 8 * PARAMETERS <= 64
    # Rows and columns: both tables 20 + 16, up and down 16 + 32 each; four of 16 x 4 x 4 and three norms whole.
    factored = 4 * (2 * 36 + 2 * 48 + 4 * 256 + 3 * 16)
    # An array of one number stands wherever there is nothing else: at most two for each of eleven parameters.
    assert 0 <= kept({}, moments="factored", b1=0.0) - factored <= 4 * 2 * 11 + 64


@pytest.mark.parametrize("what", [{"model": ADAPTED}, {"train": {"frozen": ("layers/*",)}}], ids=["lora", "frozen"])
def test_what_is_told_is_what_a_run_then_has(what: dict[str, Any]):
    experiment = changed(**what)
    first, found = first_states(experiment, None), footprint(experiment)
    there = (first.grpo.params, first.frozen, first.grpo.opt_state)
    kept = tuple(sum(leaf.nbytes for leaf in jax.tree.leaves(part)) for part in there)
    assert (found.parameters, found.frozen, found.optimizer) == kept
