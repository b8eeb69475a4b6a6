"""Routing replay: the choices of experts that the sampler recorded, on their way to the layers of the trainer.

Sampler and trainer compute the same numbers in another order, so that a router at the edge between two experts may
choose one here and the other there; then they are two different policies. R3 (arXiv:2510.11370) and R2 record the
choices of the one and use them in the other.
"""

import functools

import jax
import jax.numpy as jnp

from grpo_jax.models import table
from grpo_jax.models.arrange import Arrangement
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.experts import NONE
from grpo_jax.types import Array, Params, Rollouts

RECORDED = "recorded"
"""Under which name a layer finds, beside its parameters, what was recorded for it."""


def placed(rollouts: Rollouts, places: Arrangement) -> Array | None:
    """i32[L, P, G, T, k], recorded choices of experts in prompt-major order, `NONE` where there are none."""
    if rollouts.experts is None:
        return None
    return jax.vmap(functools.partial(places.gather, fill=NONE))(rollouts.experts)


def attach(params: Params, recorded: Array | None, before: int) -> Params:
    """`params` where each of the L layers holds what of recorded i32[L, P, G, T, k] is its own: [P (before + G T), k].

    There stand `before` tokens of a prompt, of which nothing is recorded, in front of its completions.
    """
    if recorded is None:
        return params
    count, prompts, *_, chosen = recorded.shape
    recorded = recorded.reshape(count, prompts, -1, chosen)
    recorded = jnp.pad(recorded, ((0, 0), (0, 0), (before, 0), (0, 0)), constant_values=NONE)
    recorded = recorded.reshape(count, -1, chosen)
    layers = params["layers"]
    if not table.is_unstacked(layers):
        return {**params, "layers": {**layers, RECORDED: recorded}}
    return {**params, "layers": {i: {**layer, RECORDED: recorded[int(i)]} for i, layer in layers.items()}}


def differing(own: Array, recorded: Array) -> Array:
    """f32[...], how many choices own i32[..., k] are not among recorded i32[..., k]; 0 where these are `NONE`."""
    absent = jnp.all(own[..., :, None] != recorded[..., None, :], axis=-1)
    return jnp.sum(absent & (recorded != NONE), axis=-1, dtype=jnp.float32)


def counted(total: Array | None, own: Array | None, recorded: Array | None) -> Array | None:
    """`total` f32[...] and what differs in one more layer; in one without experts, or without a total, `total`."""
    if total is None or own is None or recorded is None:
        return total
    return total + differing(own, recorded)


def share(total: Array | None, config: ModelConfig, shape: tuple[int, ...]) -> Array | None:
    """`total` of all layers as a share of the choices of a token, in `shape`."""
    choices = config.experts_per_token * sum(config.is_mixture(layer) for layer in range(config.layers))
    return None if total is None else total.reshape(shape) / choices
