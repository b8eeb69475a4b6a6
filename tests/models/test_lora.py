"""Adapters compute what the equation says, begin without effect, and leave everything else as it is."""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import models
from grpo_jax.models import LoRA, layers, parts
from grpo_jax.models.lora import ATTENTION, is_adapter
from grpo_jax.types import Params
from tests.laws.tiny import MODEL, QUICK

EVERYWHERE = ("layers/*", "head")
WIDE = dataclasses.replace(MODEL, gated=True)
ADAPTED = dataclasses.replace(WIDE, lora=LoRA(rank=2, alpha=3.0, targets=EVERYWHERE))


def filled(config: models.ModelConfig, seed: int = 0) -> Params:
    """Parameters whose adapters have learned something."""
    params = models.init(jax.random.key(seed), config)
    rng = np.random.default_rng(seed)
    own, base = models.divide(params, is_adapter)
    own = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), own)
    return models.join(own, base)


def test_a_product_is_that_of_the_matrix_plus_the_scaled_one_of_the_adapter():
    lora = LoRA(rank=1, alpha=3.0)
    config = dataclasses.replace(MODEL, lora=lora)
    layer = {
        "query": jnp.array([[[1.0, 2.0]], [[0.0, -1.0]]]),  # [D = 2, H = 1, C = 2]
        "query_lora_a": jnp.array([[2.0], [1.0]]),
        "query_lora_b": jnp.array([[[0.5, -1.0]]]),
    }
    # x W = (1, 2 - 2) = (1, 0) for x = (1, 2); x A = 4; s = 3 / 1; 3 * 4 * (0.5, -1) = (6, -12)
    found = layers.project(layer, "query", jnp.array([[1.0, 2.0]]), config)
    np.testing.assert_allclose(found, [[[7.0, -12.0]]])


def test_the_scale_falls_with_the_rank_or_with_its_root():
    assert LoRA(rank=16, alpha=32.0).scale == 2.0
    assert LoRA(rank=16, alpha=32.0, rank_stabilised=True).scale == 8.0


def by_hand(params: Any, name: str, config: models.ModelConfig) -> np.ndarray:
    """W + s A B of a matrix, the sum over the rank written out, in float64."""
    lora = config.lora
    assert lora is not None
    scale = lora.alpha / (math.sqrt(lora.rank) if lora.rank_stabilised else lora.rank)
    weight, a, b = (np.asarray(params[f"{name}{end}"], np.float64) for end in ("", "_lora_a", "_lora_b"))
    change = sum(np.multiply.outer(a[..., i], b[i]) for i in range(lora.rank))
    return (weight + scale * change).astype(np.float32)


@pytest.mark.parametrize("stabilised", [False, True])
@pytest.mark.parametrize("backward", ["fast", "plain"])
def test_adapted_logits_are_those_of_the_matrices_made_by_hand(stabilised: bool, backward: str):
    config: Any = dataclasses.replace(ADAPTED, backward=backward)
    config = dataclasses.replace(config, lora=dataclasses.replace(config.lora, rank_stabilised=stabilised))
    params = filled(config)
    names = ("query", "key", "value", "output", "gate", "up", "down")
    inner = {
        i: {**{n: x for n, x in layer.items() if not is_adapter(n)}, **{n: by_hand(layer, n, config) for n in names}}
        for i, layer in params["layers"].items()
    }
    made = {"embed": params["embed"], "norm": params["norm"], "head": by_hand(params, "head", config), "layers": inner}
    tokens = np.random.default_rng(1).integers(0, MODEL.vocab, (2, 5)).astype(np.int32)
    call = jax.jit(models.forward, static_argnums=1, compiler_options=QUICK)
    found = call(params, config, tokens, np.ones((2, 5), bool))
    expected = call(made, WIDE, tokens, np.ones((2, 5), bool))
    base = call({**made, "head": params["head"]}, WIDE, tokens, np.ones((2, 5), bool))
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
    assert np.abs(np.asarray(expected - base)).max() > 0.1


@pytest.mark.parametrize("stacked", [False, True])
def test_new_adapters_change_nothing_and_no_other_number(stacked: bool):
    config = dataclasses.replace(ADAPTED, stacked=stacked)
    params = models.init(jax.random.key(3), config)
    own, base = models.divide(params, models.trained(config))
    jax.tree.map(np.testing.assert_array_equal, base, models.init(jax.random.key(3), config.without_lora))
    jax.tree.map(np.testing.assert_array_equal, own, models.adapters(jax.random.key(3), config))
    for name, leaf in models.flat(own).items() if not stacked else ():
        if name.endswith("_b"):
            assert not np.asarray(leaf).any()
        else:  # the deviation is (inputs of the matrix) ** -0.5, so that x A has the size of x
            assert np.std(leaf) * math.sqrt(leaf.size / 2) == pytest.approx(1, abs=0.35), name


def test_only_adapters_and_the_critic_are_trained():
    config = dataclasses.replace(ADAPTED, critic="tower")
    names = [name for name in parts.names(models.abstract(config)) if models.trained(config)(name)]
    assert {name.split("/")[0] for name in names} == {"layers", "critic", "head_lora_a", "head_lora_b"}
    assert not any(is_adapter(name) for name in names if name.startswith("critic"))
    assert all(is_adapter(name) for name in names if not name.startswith("critic"))
    params = models.init(jax.random.key(0), config)
    assert jax.tree.structure(params) == jax.tree.structure(models.abstract(config))
    own, _ = models.divide(params, models.trained(config))
    assert models.without_adapters(models.without_critic(own)) == {}
    less = [name for name in names if models.trained(config, ("layers/0/*",))(name)]
    assert len(names) - len(less) == 14


def test_adapters_have_a_dtype_and_axes_of_their_own():
    config = dataclasses.replace(MODEL, param_dtype="bfloat16", lora=LoRA(rank=2, alpha=2.0))
    first = models.abstract(config)["layers"]["0"]
    assert (first["query"].dtype, first["query_lora_a"].dtype) == (jnp.bfloat16, jnp.float32)
    axes = models.axes(config)["layers"]["0"]
    assert axes["output_lora_a"] == ("heads", "head", "rank") and axes["output_lora_b"] == ("rank", "embed")
    assert first["output_lora_a"].shape == (2, 8, 2) and first["key_lora_b"].shape == (2, 1, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "model.lora.rank: got 0, allowed >= 1"),
        ({"alpha": 0.0}, "model.lora.alpha: got 0.0, allowed > 0"),
        ({"targets": "layers/*"}, "model.lora.targets: got 'layers/*', allowed is a tuple"),
        ({"targets": ()}, "model.lora.targets: got (), allowed is a tuple"),
        ({"dtype": "int8"}, "model.lora.dtype: got 'int8'"),
    ],
    ids=["rank", "alpha", "text", "none", "dtype"],
)
def test_numbers_that_describe_no_adapter_are_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        LoRA(**{"rank": 2, "alpha": 2.0, **changes})


@pytest.mark.parametrize("pattern", ["layers/*/qeury", "embed", "layers/*/attention_norm", "layers/9/query"])
def test_a_target_without_a_matrix_is_refused(pattern: str):
    config = dataclasses.replace(MODEL, lora=LoRA(rank=2, alpha=2.0, targets=(*ATTENTION, pattern)))
    with pytest.raises(ValueError, match=re.escape(f"model.lora.targets: got {pattern!r}, which matches no matrix")):
        models.abstract(config)


def test_experts_have_no_adapters():
    mixture = dataclasses.replace(MODEL, gated=True, experts=4, experts_per_token=2, expert_hidden=8)
    with pytest.raises(ValueError, match="allowed here are patterns of query, key, value, output, head"):
        models.abstract(dataclasses.replace(mixture, lora=LoRA(rank=2, alpha=2.0, targets=("layers/*/expert_up",))))


def test_adapters_that_split_a_stack_are_refused():
    lora = LoRA(rank=2, alpha=2.0, targets=("layers/0/query",))
    with pytest.raises(ValueError, match=r"layer 1 has other adapters than layer 0.*set model\.stacked=False"):
        models.abstract(dataclasses.replace(MODEL, stacked=True, lora=lora))


def test_parameters_with_adapters_need_a_config_that_describes_them():
    params = models.init(jax.random.key(0), ADAPTED)
    with pytest.raises(ValueError, match="got None with parameters that have an adapter of key"):
        models.forward(params, WIDE, jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool))
