"""One table makes the parameters, their abstract shapes, their axes and their names."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax import models
from grpo_jax.models import ModelConfig

LIST = ModelConfig(
    vocab=50,
    width=32,
    layers=4,
    heads=4,
    kv_heads=2,
    head_width=8,
    hidden=64,
    gated=True,
    positions=20,
    rope_theta=10.0,
)
STACKED = dataclasses.replace(LIST, stacked=True)
KEY = jax.random.key(0)
init = functools.partial(jax.jit, static_argnums=1)(models.init)


def shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


def test_init_has_the_abstract_shapes_and_every_dimension_has_an_axis():
    for config in (LIST, STACKED, dataclasses.replace(LIST, tied=True, param_dtype="bfloat16", gated=False)):
        abstract = models.abstract(config)
        assert shapes(jax.eval_shape(lambda c=config: models.init(KEY, c))) == shapes(abstract)
        ranks = jax.tree.map(lambda leaf, axes: (leaf.ndim, len(axes)), abstract, models.axes(config))
        assert all(a == b for a, b in jax.tree.leaves(ranks, is_leaf=lambda x: isinstance(x, tuple)))


def test_both_layouts_have_the_same_values_and_names():
    one, other = init(KEY, LIST), init(KEY, STACKED)
    assert one["layers"]["3"]["query"].shape == (32, 4, 8)
    assert other["layers"]["query"].shape == (4, 32, 4, 8)
    named, named_other = models.flat(one), models.flat(other)
    assert set(named) == set(named_other)
    assert {"embed", "head", "norm", "position", "layers/0/gate", "layers/3/down"} <= set(named)
    for name, leaf in named.items():
        np.testing.assert_array_equal(leaf, named_other[name])
    for there_and_back in (models.unstack(models.stack(one)), models.unstack(other)):
        jax.tree.map(np.testing.assert_array_equal, dict(there_and_back), dict(one))


def test_initial_deviations_are_those_of_the_table():
    """Inputs 32 -> 32^-.5; what writes to the residual stream is divided by sqrt(2 * 4 layers) as well."""
    params = models.flat(init(KEY, LIST))
    expected = {
        "embed": 0.5,
        "head": 0.02,
        "layers/2/query": 32**-0.5,
        "layers/2/output": (4 * 8) ** -0.5 / 8**0.5,
        "layers/2/down": 64**-0.5 / 8**0.5,
    }
    for name, deviation in expected.items():
        # The deviation of n normal numbers has itself a deviation of about sigma / sqrt(2 n): five of them are allowed.
        tolerance = 5 * deviation / (2 * params[name].size) ** 0.5
        assert abs(float(jnp.std(params[name])) - deviation) < tolerance, name
    np.testing.assert_array_equal(params["norm"], 1)


def test_no_two_parameters_are_initialised_with_the_same_numbers():
    first = [
        float(leaf.reshape(-1)[0] / jnp.std(leaf))
        for name, leaf in models.flat(init(KEY, LIST)).items()
        if "norm" not in name
    ]
    assert len({round(x, 5) for x in first}) == len(first)
