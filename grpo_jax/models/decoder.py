"""The decoder, written plainly: the definition that every faster path is tested against."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import chex
import jax
import jax.numpy as jnp

from grpo_jax.models import attention, critic, layers, table
from grpo_jax.models.config import ModelConfig
from grpo_jax.types import Array, Params

Carry = TypeVar("Carry")
Body = Callable[[Carry, Mapping[str, Array], attention.Window], Carry]
_POLICIES = {"full": jax.checkpoint_policies.nothing_saveable, "dots": jax.checkpoint_policies.dots_saveable}


def forward(params: Params, config: ModelConfig, tokens: Array, valid: Array, segment: Array | None = None) -> Array:
    """Logits [B, T, V] of the token after each of tokens i32[B, T], in ``config.logprob_dtype``.

    ``valid`` bool[B, T] is False for padding, on either side: it is not attended to, and positions count the valid
    tokens only. Logits at padding mean nothing. Differentiable any number of times when ``config.backward`` is plain.

    ``segment`` i32[B, T] packs several sequences into a row: a token attends to those before it of its own number, and
    positions start again with every number. Negative numbers are padding, like a False in `valid`.

    Raises ValueError where T is more than the positions that the model can tell apart.
    """
    params = layers.cast(params, config)
    return layers.unembed(params, _last(params, config, tokens, valid, segment), config)


def values(params: Params, config: ModelConfig, tokens: Array, valid: Array, segment: Array | None = None) -> Array:
    """Values f32[B, T] of the states behind each of tokens i32[B, T], by the critic; the rest as in `forward`."""
    params = layers.cast(params, config)
    return critic.value(params, _last(critic.trunk(params), config, tokens, valid, segment), config)


def _last(params: Params, config: ModelConfig, tokens: Array, valid: Array, segment: Array | None) -> Array:
    """Output [B, T, D] of the last layer."""
    chex.assert_rank([tokens, valid], 2)
    check_length(config, tokens.shape[1])
    valid, position, mask = _places(valid, segment)
    x = layers.embed(params, jnp.where(valid, tokens, 0), position, config)
    rotations = layers.rotations(position, config, x.dtype)
    mask = attention.Mask(mask, position, position)

    def body(x: Array, layer: Mapping[str, Array], window: attention.Window) -> Array:
        normed = layers.rms_norm(x, layer["attention_norm"], config)
        rotation = rotations(window)
        key, value = layers.key_value(layer, normed, rotation, config)
        query = layers.query(layer, normed, rotation, config)
        found = attention.attend(query, key, value, mask.within(window), config)
        return layers.close(layer, x, found, config)

    return fold(body, x, params, config)


def _places(valid: Array, segment: Array | None) -> tuple[Array, Array, Array]:
    """Which tokens count bool[B, T], their positions i32[B, T], and who may see whom bool[B, T, T]."""
    causal = jnp.tril(jnp.ones((valid.shape[1],) * 2, bool))
    if segment is None:
        position = jnp.maximum(jnp.cumsum(valid.astype(jnp.int32), axis=1) - 1, 0)
        return valid, position, causal[None] & valid[:, None, :]
    chex.assert_equal_shape([valid, segment])
    valid = valid & (segment >= 0)
    mask = causal[None] & valid[:, None, :] & (segment[:, :, None] == segment[:, None, :])
    return valid, jnp.maximum(jnp.sum(mask, axis=2, dtype=jnp.int32) - 1, 0), mask


def fold(body: Body[Carry], x: Carry, params: Params, config: ModelConfig, *, last: Body[Carry] | None = None) -> Carry:
    """Applies `body` for every layer in turn, `last` in place of it for the last one when given.

    A body is given x, the parameters of the layer, and its window: a number. Stacked layers go through a `lax.scan`,
    and where their windows differ they are scanned too, so that the window is an array i32[] there.
    ``config.remat`` says what the backward pass computes again.
    """
    windows = [config.window(i) for i in range(config.layers)]
    bodies = {window: remat(_of(body, window), config) for window in windows}
    final = bodies[windows[-1]] if last is None else remat(_of(last, windows[-1]), config)
    if table.is_unstacked(params["layers"]):
        ordered = [params["layers"][str(i)] for i in range(config.layers)]
        for layer, window in zip(ordered[:-1], windows[:-1], strict=True):
            x = bodies[window](x, layer)
        return final(x, ordered[-1])
    scanned, windows = params["layers"], windows if last is None else windows[:-1]
    scanned = scanned if last is None else jax.tree.map(lambda leaf: leaf[:-1], scanned)
    if len({*windows}) > 1:
        each, among = remat(body, config), (scanned, jnp.asarray(windows, jnp.int32))
        x, _ = jax.lax.scan(lambda x, of: (each(x, *of), None), x, among)
    else:
        each = bodies[config.window(0)]
        x, _ = jax.lax.scan(lambda x, layer: (each(x, layer), None), x, scanned)
    return x if last is None else final(x, jax.tree.map(lambda leaf: leaf[-1], params["layers"]))


def _of(body: Body[Carry], window: int) -> Callable[[Carry, Mapping[str, Array]], Carry]:
    return lambda x, layer: body(x, layer, window)


def remat(body: Callable[..., Carry], config: ModelConfig) -> Callable[..., Carry]:
    """`body` with the recomputation that ``config.remat`` asks for."""
    return body if config.remat == "none" else jax.checkpoint(body, policy=_POLICIES[config.remat])


def check_length(config: ModelConfig, width: int) -> None:
    """ValueError when a sequence of `width` tokens has more positions than the model can tell apart.

    These are the learned ones, and those that its rotations are defined for (`RopeScaling.length`).
    """
    if config.rope_scaling is not None:
        config.rope_scaling.check_length(width)
    if config.positions and width > config.positions:
        raise ValueError(
            f"a sequence of {width} tokens is too long for ModelConfig.positions={config.positions}; allowed are "
            f"at most {config.positions} tokens: shorten prompt or completion, or build the model with more positions"
        )
