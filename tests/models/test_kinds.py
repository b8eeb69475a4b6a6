import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from grpo_jax import models
from grpo_jax.models import ModelConfig, OwnModel, kinds
from grpo_jax.models.own import MODULE
from grpo_jax.objectives import grpo
from grpo_jax.updates import Gradient, Optimizer, TrustRegion
from tests.models.own_modules import VOCAB, Attention

DECODER = ModelConfig(vocab=5, width=4, layers=1, heads=1, kv_heads=1, head_width=4, hidden=4)
WRONG: Any = "gpt"
OWN = models.from_linen(Attention, vocab=VOCAB)


def test_the_type_of_a_config_decides():
    assert kinds.KINDS.keys() == {ModelConfig, OwnModel}
    assert set(models.abstract(OWN)) == {MODULE} and "embed" in models.abstract(DECODER)
    one = jnp.zeros((1, 2), jnp.int32)
    for config in (DECODER, OWN):
        params = models.init(jax.random.key(0), config)
        assert models.forward(params, config, one, one == 0).shape == (1, 2, config.vocab)
        assert jax.tree.structure(params) == jax.tree.structure(models.abstract(config))


def test_what_is_no_model_is_refused():
    with pytest.raises(ValueError, match="of type str, allowed are ModelConfig, OwnModel: build one, or wrap"):
        models.axes(WRONG)


def test_a_trust_region_needs_a_model_whose_curvature_is_known():
    settings = Gradient(model=OWN, recipe=grpo(), optimizer=TrustRegion(), group_size=2, updates=1)
    with pytest.raises(ValueError, match="TrustRegion for a OwnModel"):
        settings.check(2)
    dataclasses.replace(settings, optimizer=Optimizer()).check(2)
    dataclasses.replace(settings, model=DECODER).check(2)
    with pytest.raises(ValueError, match="curvature nobody can tell"):
        models.fisher({}, OWN, WRONG, WRONG, temperature=1.0)


def test_what_only_the_decoder_can_do_says_so():
    assert models.decoder_of(DECODER, what="weights") is DECODER
    with pytest.raises(ValueError, match="got a OwnModel, allowed with weights is a ModelConfig"):
        models.decoder_of(OWN, what="weights")
    assert models.adapters(jax.random.key(0), OWN) == models.adapters(jax.random.key(0), DECODER) == {}
