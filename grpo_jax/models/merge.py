"""Adapters added to the matrices beside which they stand: one policy in the form of a model without any."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from grpo_jax.models import layers, table
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.lora import INPUTS, A, B, is_adapter
from grpo_jax.types import Array, Params


def merged(params: Params, config: ModelConfig) -> tuple[Params, ModelConfig]:
    """`params` with every W replaced by ``W + s A B`` and without adapters, and the config that describes them.

    The sum is made in float32 at least and rounded once, to the dtype of W. Parameters without adapters are returned as
    they are.
    """
    if config.lora is None:
        return params, config
    add = functools.partial(_added, scale=config.lora.scale)
    stacked = not table.is_unstacked(params["layers"])
    inner = params["layers"]
    inner = _level(inner, jax.vmap(add)) if stacked else {i: _level(layer, add) for i, layer in inner.items()}
    return {**_level(params, add), "layers": inner}, dataclasses.replace(config, lora=None)


def _level(tree: Mapping, add) -> dict:
    """The arrays of one dict with its adapters added; dicts in it as they are."""
    found = {name: part for name, part in tree.items() if not is_adapter(name)}
    return {
        name: add(part, tree[name + A], tree[name + B]) if name in INPUTS and name + A in tree else part
        for name, part in found.items()
    }


def _added(weight: Array, a: Array, b: Array, *, scale: float) -> Array:
    wide = layers.accumulator(weight.dtype)
    change = jnp.tensordot(a.astype(wide), b.astype(wide), axes=1, precision=jax.lax.Precision.HIGHEST)
    return (weight.astype(wide) + scale * change).astype(weight.dtype)
