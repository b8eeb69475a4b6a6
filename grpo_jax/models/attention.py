"""Softmax attention, plain and of G completions that share a prompt.

Inside, arrays lead with prompt, key/value head and sample: queries [P, J, G, M, C] with ``M = R T`` (R query heads a
key/value head, T positions), keys and values [P, J, G, S, C]. Queries come
scaled. Query head h reads key head ``h // R``.
"""

import chex
import jax
import jax.numpy as jnp

from grpo_jax.models import layers
from grpo_jax.models.config import ModelConfig
from grpo_jax.types import Array

MASKED = -1e30  # a score that no softmax sees; finite, so that a query without any key gives no nan
_JOIN = 2  # prefixes of up to so many times the completion's width are joined to every completion's own keys
_SMALL = 1024  # attention matrices of up to so many entries are transposed first: CPU products of small ones want that


def attend(query: Array, key: Array, value: Array, mask: Array, config: ModelConfig) -> Array:
    """Queries [B, T, H, C], keys and values [B, S, J, C], mask bool[B, T, S] -> [B, T, H, C]."""
    query, key, value = (x[:, None] for x in (query, key, value))
    rows = _by_head(query, key.shape[3])
    found = _softmax(config)(rows, _major(key), _major(value), _repeated(mask, config.repeats))
    return _by_position(found, query.shape)[:, 0]


def attend_prefix(query: Array, key: Array, value: Array, seen: Array, config: ModelConfig) -> Array:
    """Causal attention within a prefix: arrays [P, S, heads, C], seen bool[P, S] False for padding -> [P, S, H, C]."""
    return attend(query, key, value, _causal(seen.shape[1])[None] & seen[:, None, :], config)


def attend_group(
    query: Array, prefix: tuple[Array, Array], own: tuple[Array, Array], seen: Array, config: ModelConfig
) -> Array:
    """Attention of completions to their prompt's prefix and, causally, to themselves.

    Queries [P, G, T, H, C]; prefix keys and values [P, S, J, C] with seen bool[P, S] False for padding; own keys and
    values [P, G, T, J, C]. Returns [P, G, T, H, C].

    A short prefix is joined to the keys of every completion: one softmax, half the time of two parts. The keys of a
    long one are read once for all completions of the prompt, which is faster and never holds G copies of them.
    """
    chex.assert_rank([query, *prefix, *own, seen], [5, 4, 4, 5, 5, 2])
    rows = _by_head(query, own[0].shape[3])
    own_kv, prefix_kv = [_major(x) for x in own], [_major(x[:, None]) for x in prefix]
    part = _joined if seen.shape[1] <= _JOIN * query.shape[2] else _shared
    return _by_position(part(rows, prefix_kv, own_kv, seen, config), query.shape)


def _joined(query: Array, prefix: list[Array], own: list[Array], seen: Array, config: ModelConfig) -> Array:
    """Prefix keys [P, J, 1, S, C] repeated in front of the own keys [P, J, G, T, C] of every completion."""
    width = own[0].shape[3]
    key, value = (
        jnp.concatenate([jnp.broadcast_to(a, (*b.shape[:3], *a.shape[3:])), b], axis=3)
        for a, b in zip(prefix, own, strict=True)
    )
    before = jnp.broadcast_to(seen[:, None, :], (seen.shape[0], width, seen.shape[1]))
    causal = jnp.broadcast_to(_causal(width)[None], (seen.shape[0], width, width))
    mask = jnp.concatenate([before, causal], axis=2)
    return _softmax(config)(query, key, value, _repeated(mask, config.repeats))


def _shared(query: Array, prefix: list[Array], own: list[Array], seen: Array, config: ModelConfig) -> Array:
    """Two scores, one softmax: ``[P J, G M, C] x [P J, S, C]`` for the prefix, ``[M, C] x [T, C]`` a completion."""
    prompts, heads, group, rows, size = query.shape
    wide = layers.accumulator(query.dtype)
    flat = query.reshape(prompts, heads, group * rows, size)
    before = jnp.einsum("pjmc,pjsc->pjms", flat, prefix[0][:, :, 0], preferred_element_type=wide)
    before = jnp.where(seen[:, None, None], before, MASKED)
    after = jnp.einsum("pjgmc,pjgtc->pjgmt", query, own[0], preferred_element_type=wide)
    after = jnp.where(jnp.tile(_causal(own[0].shape[3]), (config.repeats, 1)), after, MASKED)
    after = after.reshape(prompts, heads, group * rows, -1)  # long rows: exp of short ones is not vectorised

    peak = jnp.maximum(jnp.max(before, axis=-1, keepdims=True), jnp.max(after, axis=-1, keepdims=True))
    peak = jax.lax.stop_gradient(peak)
    before, after = jnp.exp(before - peak), jnp.exp(after - peak)
    total = jnp.sum(before, axis=-1, keepdims=True) + jnp.sum(after, axis=-1, keepdims=True)
    before, after = before.astype(query.dtype), after.astype(query.dtype).reshape(prompts, heads, group, rows, -1)
    found = jnp.einsum("pjms,pjsc->pjmc", before, prefix[1][:, :, 0], preferred_element_type=wide)
    own_found = jnp.einsum("pjgmt,pjgtc->pjgmc", after, own[1], preferred_element_type=wide)
    return ((found + own_found.reshape(found.shape)) / total).astype(query.dtype).reshape(query.shape)


def _attend(query: Array, key: Array, value: Array, mask: Array) -> tuple[Array, Array]:
    """``softmax(q k^T) v`` and the softmax; mask bool[P, M, S]."""
    scores = jnp.einsum("pjgmc,pjgsc->pjgms", query, key, preferred_element_type=layers.accumulator(query.dtype))
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, MASKED), axis=-1).astype(query.dtype)
    return jnp.einsum("pjgms,pjgsc->pjgmc", weights, value), weights


def _plain(query: Array, key: Array, value: Array, mask: Array) -> Array:
    return _attend(query, key, value, mask)[0]


_fast = jax.custom_vjp(_plain)


def _forward(query: Array, key: Array, value: Array, mask: Array) -> tuple[Array, tuple[Array, ...]]:
    found, weights = _attend(query, key, value, mask)
    return found, (query, key, value, weights, found)


def _backward(saved: tuple[Array, ...], d_found: Array) -> tuple[Array, Array, Array, None]:
    """With w the weights and o = w v: ``ds = w (do v^T - sum(do o))``, half the passes of the rule JAX derives."""
    query, key, value, weights, found = saved
    wide = layers.accumulator(query.dtype)
    slope = jnp.einsum("pjgmc,pjgsc->pjgms", d_found, value, preferred_element_type=wide)
    along = jnp.sum(d_found.astype(wide) * found.astype(wide), axis=-1, keepdims=True)
    d_scores = (weights.astype(wide) * (slope - along)).astype(query.dtype)
    d_query = jnp.einsum("pjgms,pjgsc->pjgmc", d_scores, key)
    if weights.shape[3] * weights.shape[4] > _SMALL:
        d_key = jnp.einsum("pjgms,pjgmc->pjgsc", d_scores, query)
        return d_query, d_key, jnp.einsum("pjgms,pjgmc->pjgsc", weights, d_found), None
    d_scores, weights = jax.lax.optimization_barrier((d_scores.swapaxes(3, 4), weights.swapaxes(3, 4)))
    d_key = jnp.einsum("pjgsm,pjgmc->pjgsc", d_scores, query)
    return d_query, d_key, jnp.einsum("pjgsm,pjgmc->pjgsc", weights, d_found), None


_fast.defvjp(_forward, _backward)


def _softmax(config: ModelConfig):
    return _fast if config.backward == "fast" else _plain


def _causal(width: int) -> Array:
    return jnp.tril(jnp.ones((width, width), bool))


def _repeated(mask: Array, repeats: int) -> Array:
    """A mask [P, T, S] of positions, for the R T queries of a key/value head."""
    return mask if repeats == 1 else jnp.tile(mask, (1, repeats, 1))


def _major(x: Array) -> Array:
    """[P, G, T, J, C] -> [P, J, G, T, C]."""
    return x.transpose(0, 3, 1, 2, 4)


def _by_head(query: Array, kv_heads: int) -> Array:
    """Queries [P, G, T, H, C] -> [P, J, G, R T, C]."""
    prompts, group, width, heads, size = query.shape
    query = query.reshape(prompts, group, width, kv_heads, heads // kv_heads, size).transpose(0, 3, 1, 4, 2, 5)
    return query.reshape(prompts, kv_heads, group, -1, size)


def _by_position(found: Array, shape: tuple[int, ...]) -> Array:
    """The way back: [P, J, G, R T, C] -> `shape`, which is [P, G, T, H, C]."""
    prompts, group, width, heads, size = shape
    found = found.reshape(prompts, found.shape[1], group, heads // found.shape[1], width, size)
    return found.transpose(0, 2, 4, 1, 3, 5).reshape(shape)
