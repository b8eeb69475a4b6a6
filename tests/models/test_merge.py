"""Merged parameters are a model without adapters that says the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import models
from tests.models.test_lora import ADAPTED, WIDE, by_hand, filled


@pytest.mark.parametrize("stacked", [False, True])
def test_merging_adds_every_adapter_to_its_matrix(stacked: bool):
    params = filled(ADAPTED)
    given = (models.stack(params), dataclasses.replace(ADAPTED, stacked=True)) if stacked else (params, ADAPTED)
    found, config = models.merged(*given)
    assert config == dataclasses.replace(WIDE, stacked=stacked)
    assert jax.tree.structure(found) == jax.tree.structure(models.abstract(config))
    found = models.unstack(found)
    np.testing.assert_allclose(found["head"], by_hand(params, "head", ADAPTED), rtol=1e-6, atol=1e-7)
    for i, layer in params["layers"].items():
        for name in ("query", "output", "gate", "down"):
            np.testing.assert_allclose(
                found["layers"][i][name], by_hand(layer, name, ADAPTED), rtol=1e-6, atol=1e-7, err_msg=name
            )
        assert found["layers"][i]["mlp_norm"] is layer["mlp_norm"] or stacked


def test_a_sum_is_rounded_once_to_the_dtype_of_the_matrix():
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), filled(ADAPTED))
    found, _ = models.merged(params, ADAPTED)
    wide = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
    expected = jnp.asarray(by_hand(wide["layers"]["1"], "up", ADAPTED), jnp.bfloat16)
    assert found["layers"]["1"]["up"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(found["layers"]["1"]["up"], expected)


def test_parameters_without_adapters_are_returned_as_they_are():
    params = models.init(jax.random.key(0), WIDE)
    assert models.merged(params, WIDE) == (params, WIDE)
