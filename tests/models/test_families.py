"""The data of the families fits the names that it uses."""

import dataclasses
from typing import cast

import pytest

from grpo_jax.models import ModelConfig
from grpo_jax.models.config import Activation
from grpo_jax.models.families import ACTIVATIONS, FAMILIES, family_of
from grpo_jax.models.names import NAMES


def test_a_family_speaks_of_fields_that_a_model_has():
    known = {field.name for field in dataclasses.fields(ModelConfig)}
    for name, family in FAMILIES.items():
        assert name == family.architecture
        assert {*family.fixed, *family.counts, *family.amounts, *family.switches} <= known
    assert NAMES.keys() == FAMILIES.keys()


def test_activations_are_those_of_a_model():
    for own in set(ACTIVATIONS.values()):
        ModelConfig(
            vocab=1, width=1, layers=1, heads=1, kv_heads=1, head_width=1, hidden=1, activation=cast(Activation, own)
        )


def test_an_unknown_architecture_is_refused_with_the_known_ones():
    assert family_of("LlamaForCausalLM", where="").model_type == "llama"
    with pytest.raises(
        ValueError, match=r"x: got the architecture 'LlamaForCausalLm', allowed .*nearest is LlamaForCau"
    ):
        family_of("LlamaForCausalLm", where="x")
    with pytest.raises(ValueError, match="got the architecture None"):
        family_of(None, where="x")
