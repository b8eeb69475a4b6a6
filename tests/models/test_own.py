from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from grpo_jax import models
from grpo_jax.models import OwnModel, own
from grpo_jax.objectives import describe, source_digests
from tests.models.own_modules import VOCAB, Attention, Dropping, Half, Running, Sums

LINEN = models.from_linen(Attention(width=4), vocab=VOCAB)
NNX = models.from_nnx(partial(Sums, width=4), vocab=VOCAB)
ARRAY: Any = np.ones(3)
TOKENS = jnp.asarray([[3, 1, 4], [1, 5, 0]], jnp.int32)
VALID = jnp.asarray([[True, True, True], [True, True, False]])


def test_logits_are_those_of_the_linen_module_with_the_parameters_that_it_makes():
    params = models.init(jax.random.key(7), LINEN)
    module = Attention(width=4)
    made = module.init(jax.random.key(7), TOKENS[:1, :2], VALID[:1, :2])["params"]
    jax.tree.map(np.testing.assert_array_equal, params[own.MODULE], made)
    wanted = module.apply({"params": made}, TOKENS, VALID)
    np.testing.assert_array_equal(models.forward(params, LINEN, TOKENS, VALID), wanted)


def test_logits_are_those_of_the_nnx_module_with_the_parameters_that_it_makes():
    params = models.init(jax.random.key(7), NNX)
    module = Sums(width=4, rngs=nnx.Rngs(jax.random.key(7)))
    np.testing.assert_array_equal(params[own.MODULE]["layers"]["1"]["kernel"], module.layers[1].kernel[...])
    np.testing.assert_array_equal(models.forward(params, NNX, TOKENS, VALID), module(TOKENS, VALID))


def test_parameters_of_many_layers_keep_their_places():
    """Layer 10 stands behind layer 2 in a module, and before it in a tree whose keys are text."""
    config = models.from_nnx(partial(Sums, width=2, layers=11), vocab=VOCAB)
    params = models.init(jax.random.key(0), config)
    module = Sums(width=2, layers=11, rngs=nnx.Rngs(jax.random.key(0)))
    np.testing.assert_array_equal(models.forward(params, config, TOKENS, VALID), module(TOKENS, VALID))


@pytest.mark.parametrize("config", [LINEN, NNX], ids=["linen", "nnx"])
def test_shapes_and_axes_are_known_without_parameters(config: OwnModel):
    params = models.init(jax.random.key(0), config)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), models.abstract(config)
    )
    named = models.axes(config)
    assert jax.tree.all(jax.tree.map(lambda leaf, axes: axes == (None,) * leaf.ndim, params, named))


def test_a_model_is_what_its_description_says():
    assert replace(LINEN) == LINEN and hash(replace(LINEN)) == hash(LINEN)
    assert models.from_linen(partial(Attention, width=5), vocab=VOCAB) != LINEN
    assert "Attention(vocab=11, width=4)" in describe(LINEN)
    assert any(name.endswith("Attention") for name in source_digests(LINEN))
    assert any(name.endswith("Sums") for name in source_digests(models.from_nnx(Sums, vocab=VOCAB)))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: models.from_linen(Sums, vocab=VOCAB), "allowed is a class of linen.Module"),
        (lambda: models.from_nnx(Attention, vocab=VOCAB), "allowed is a class of nnx.Module"),
        (lambda: models.from_nnx(Sums(rngs=nnx.Rngs(0)), vocab=VOCAB), "has its parameters already"),
        (lambda: models.from_nnx(Half, vocab=VOCAB), "allowed are both of hidden and head"),
        (lambda: models.from_linen(Attention, vocab=0), "model.vocab: got 0"),
        (lambda: models.from_linen(Attention, vocab=3, positions=-1), "model.positions: got -1"),
        (lambda: models.from_linen(partial(Attention, width=ARRAY), vocab=3), "an array"),
        (lambda: models.init(jax.random.key(0), models.from_nnx(Dropping, vocab=VOCAB)), "Rng"),
        (lambda: models.init(jax.random.key(0), models.from_linen(Running, vocab=VOCAB)), "batch_stats"),
        (lambda: models.forward({}, LINEN, TOKENS, VALID, segment=TOKENS), "packed rows"),
        (lambda: own.check_length(models.from_linen(Attention, vocab=3, positions=4), 5), "allowed >= 5"),
    ],
)
def test_what_cannot_be_trained_is_refused(make, said: str):
    with pytest.raises(ValueError, match=said):
        make()
