"""Parameters every number of which is another, as arrays of numpy: nothing has to be compiled for them."""

import jax
import numpy as np

from grpo_jax import models
from grpo_jax.models import ModelConfig
from grpo_jax.types import Params


def numbered(config: ModelConfig, seed: int = 0) -> Params:
    """Normal numbers for every parameter of `config`."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), models.abstract(config))


def together(params: Params) -> Params:
    """The layout with layers on a leading axis."""
    layers = [params["layers"][str(i)] for i in range(len(params["layers"]))]
    return {**params, "layers": {name: np.stack([layer[name] for layer in layers]) for name in layers[0]}}


def halved(params: Params) -> Params:
    """The same numbers rounded to bfloat16."""
    return jax.tree.map(lambda leaf: leaf.astype(jax.numpy.bfloat16), params)


def equal(one: Params, other: Params) -> bool:
    """Same structure, dtypes and bits."""

    def same(a: np.ndarray, b: np.ndarray) -> bool:
        return a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()

    return jax.tree.structure(one) == jax.tree.structure(other) and jax.tree.all(jax.tree.map(same, one, other))
