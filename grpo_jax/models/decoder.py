"""The decoder, written plainly: the definition that every faster path is tested against."""

from collections.abc import Callable, Mapping

import chex
import jax
import jax.numpy as jnp

from grpo_jax.models import attention, critic, layers, table
from grpo_jax.models.config import ModelConfig
from grpo_jax.types import Array, Params

Body = Callable[[Array, Mapping[str, Array]], Array]
_POLICIES = {"full": jax.checkpoint_policies.nothing_saveable, "dots": jax.checkpoint_policies.dots_saveable}


def forward(params: Params, config: ModelConfig, tokens: Array, valid: Array) -> Array:
    """Logits f32[B, T, V] of the token after each of tokens i32[B, T].

    ``valid`` bool[B, T] is False for padding, on either side: it is not attended to, and positions count the valid
    tokens only. Logits at padding mean nothing. Differentiable any number of times when ``config.backward`` is plain.
    """
    params = layers.cast(params, config)
    return layers.unembed(params, _last(params, config, tokens, valid), config)


def values(params: Params, config: ModelConfig, tokens: Array, valid: Array) -> Array:
    """Values f32[B, T] of the states behind each of tokens i32[B, T], by the critic; the rest as in `forward`."""
    params = layers.cast(params, config)
    return critic.value(params, _last(critic.trunk(params), config, tokens, valid), config)


def _last(params: Params, config: ModelConfig, tokens: Array, valid: Array) -> Array:
    """Output [B, T, D] of the last layer."""
    chex.assert_rank([tokens, valid], 2)
    check_length(config, tokens.shape[1])
    position = jnp.maximum(jnp.cumsum(valid.astype(jnp.int32), axis=1) - 1, 0)
    x = layers.embed(params, jnp.where(valid, tokens, 0), position, config)
    rotation = layers.angles(position, config, x.dtype)
    causal = jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))
    mask = causal[None] & valid[:, None, :]

    def body(x: Array, layer: Mapping[str, Array]) -> Array:
        normed = layers.rms_norm(x, layer["attention_norm"], config)
        key, value = layers.key_value(layer, normed, rotation, config)
        found = attention.attend(layers.query(layer, normed, rotation, config), key, value, mask, config)
        return layers.close(layer, x, found, config)

    return fold(body, x, params, config)


def fold(body: Body, x: Array, params: Params, config: ModelConfig, *, last: Body | None = None) -> Array:
    """Applies `body` for every layer in turn, `last` in place of it for the last one when given.

    Stacked layers go through a `lax.scan`; ``config.remat`` says what the backward pass computes again.
    """
    bodies = [remat(f, config) for f in (body, last or body)]
    stacked = not table.is_unstacked(params["layers"])
    if not stacked:
        ordered = [params["layers"][str(i)] for i in range(config.layers)]
        for layer in ordered[:-1]:
            x = bodies[0](x, layer)
        return bodies[1](x, ordered[-1])
    scanned = params["layers"] if last is None else jax.tree.map(lambda leaf: leaf[:-1], params["layers"])
    x, _ = jax.lax.scan(lambda x, layer: (bodies[0](x, layer), None), x, scanned)
    return x if last is None else bodies[1](x, jax.tree.map(lambda leaf: leaf[-1], params["layers"]))


def remat(body: Body, config: ModelConfig) -> Body:
    """`body` with the recomputation that ``config.remat`` asks for."""
    return body if config.remat == "none" else jax.checkpoint(body, policy=_POLICIES[config.remat])


def check_length(config: ModelConfig, width: int) -> None:
    """ValueError when a sequence of `width` tokens needs more learned positions than the model has."""
    if config.positions and width > config.positions:
        raise ValueError(
            f"a sequence of {width} tokens is too long for ModelConfig.positions={config.positions}; allowed are "
            f"at most {config.positions} tokens: shorten prompt or completion, or build the model with more positions"
        )
