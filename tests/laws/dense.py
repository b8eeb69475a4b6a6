"""The Fisher information of a small model as a matrix, put together in NumPy from the plain forward pass.

Nothing of what computes products with it is used: each completion is read alone, behind a copy of its prompt.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from grpo_jax import models
from grpo_jax.types import Params, Rollouts
from tests.laws import tiny

MODEL = models.ModelConfig(
    vocab=tiny.V,
    width=8,
    layers=2,
    heads=2,
    kv_heads=1,
    head_width=4,
    hidden=8,
    rope_theta=100.0,
    head_std=0.3,
    backward="plain",
)
"""A model of 656 parameters, whose Jacobian fits."""


class Tokens(NamedTuple):
    """What a policy says of every token: float64."""

    log_p: np.ndarray  # [N, T, V]
    jacobian: np.ndarray  # [N, T, V, D], of the log-probabilities


def flat(tree: Params) -> np.ndarray:
    """The leaves of a tree of parameters behind each other, f64[D]."""
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def tokens(
    params: Params,
    rollouts: Rollouts,
    *,
    temperature: float,
    model: models.ModelConfig = MODEL,
    jacobian: bool = True,
) -> Tokens:
    """The policy `params` of `model` at the tokens of `rollouts`, and its derivatives where they are asked for.

    The backward pass of the model has to be plain.
    """
    prompts, n = rollouts.prompts, rollouts.tokens.shape[0]
    width = prompts.tokens.shape[1] + tiny.T
    lines, valid = np.zeros((n, width), np.int32), np.zeros((n, width), bool)
    place = np.zeros((n, tiny.T), np.int32)
    for i in range(n):
        asked = int(prompts.length[rollouts.prompt[i]])
        lines[i, :asked] = prompts.tokens[rollouts.prompt[i], :asked]
        lines[i, asked : asked + tiny.T] = rollouts.tokens[i]
        valid[i, : asked + int(rollouts.length[i])] = True
        place[i] = np.arange(asked - 1, asked - 1 + tiny.T)
    start, restore = ravel_pytree(params)
    given = [jnp.asarray(x) for x in (lines, valid, place)]

    def logits(x: jax.Array) -> jax.Array:
        found = models.forward(restore(x), model, given[0], given[1])
        return jnp.take_along_axis(found, given[2][:, :, None], axis=1)

    z = np.asarray(jax.jit(logits)(start), np.float64) / temperature
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    if not jacobian:
        return Tokens(log_p, np.zeros(0))
    change = np.asarray(jax.jit(jax.jacfwd(logits))(start), np.float64) / temperature
    return Tokens(log_p, change - np.einsum("ntv,ntvd->ntd", np.exp(log_p), change)[:, :, None])


def information(said: Tokens, weight: np.ndarray) -> np.ndarray:
    """f64[D, D], sum over tokens of weight [N, T] and the expectation of the squared slope of the log-probability."""
    slope = said.jacobian * np.sqrt(np.exp(said.log_p) * weight[:, :, None])[..., None]
    slope = slope.reshape(-1, slope.shape[-1])
    return slope.T @ slope


def divergence(old: Tokens, new: Tokens) -> np.ndarray:
    """KL(old || new) of every token, f64[N, T]."""
    return (np.exp(old.log_p) * (old.log_p - new.log_p)).sum(-1)
