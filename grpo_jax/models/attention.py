"""Softmax attention, plain and of G completions that share a prompt.

Inside, arrays lead with prompt, key/value head and sample: queries [P, J, G, M, C] with ``M = R T`` (R query heads a
key/value head, T positions), keys and values [P, J, G, S, C]. Queries come
scaled. Query head h reads key head ``h // R``.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from grpo_jax.models import layers
from grpo_jax.models.config import ModelConfig
from grpo_jax.types import Array

Window = int | Array
"""How many tokens, itself included, one attends to, 0 for all: a number, or i32[] where layers are scanned."""
MASKED = -1e30  # a score that no softmax sees; finite, so that a query without any key gives no nan
_JOIN = 2  # prefixes of up to so many times the completion's width are joined to every completion's own keys
_SMALL = 1024  # attention matrices of up to so many entries are transposed first: CPU products of small ones want that


class Mask(NamedTuple):
    """Who may see whom bool[..., T, S], and where they are: what a window narrows."""

    seen: Array  # bool[..., T, S], or what broadcasts to it
    asking: Array  # i32[..., T], position of the queries
    asked: Array  # i32[..., S], position of the keys

    def within(self, window: Window) -> Array:
        """bool[..., T, S], only keys less than `window` positions before the query; all of them for a window of 0."""
        if isinstance(window, int) and window == 0:
            return self.seen
        distance = self.asking[..., :, None] - self.asked[..., None, :]
        near = distance < window
        return self.seen & (near if isinstance(window, int) else near | (window == 0))


def attend(query: Array, key: Array, value: Array, mask: Array, config: ModelConfig) -> Array:
    """Queries [B, T, H, C], keys and values [B, S, J, C], mask bool[B, T, S] -> [B, T, H, C]."""
    query, key, value = (x[:, None] for x in (query, key, value))
    rows = _by_head(query, key.shape[3])
    found = _softmax(config)(rows, _major(key), _major(value), _repeated(mask, config.repeats))
    return _by_position(found, query.shape)[:, 0]


def attend_prefix(
    query: Array, key: Array, value: Array, seen: Array, config: ModelConfig, window: Window = 0
) -> Array:
    """Causal attention within a prefix: arrays [P, S, heads, C], seen bool[P, S] False for padding -> [P, S, H, C]."""
    place = jnp.arange(seen.shape[1], dtype=jnp.int32)[None]
    mask = Mask(_causal(seen.shape[1])[None] & seen[:, None, :], place, place)
    return attend(query, key, value, mask.within(window), config)


def attend_group(
    query: Array,
    prefix: tuple[Array, Array],
    own: tuple[Array, Array],
    seen: Array,
    config: ModelConfig,
    window: Window = 0,
) -> Array:
    """Attention of completions to their prompt's prefix and, causally, to themselves.

    Queries [P, G, T, H, C]; prefix keys and values [P, S, J, C] with seen bool[P, S] False for the padding behind them;
    own keys and values [P, G, T, J, C]. Returns [P, G, T, H, C].

    A short prefix is joined to the keys of every completion: one softmax, half the time of two parts. The keys of a
    long one are read once for all completions of the prompt, which is faster and never holds G copies of them.
    """
    chex.assert_rank([query, *prefix, *own, seen], [5, 4, 4, 5, 5, 2])
    rows = _by_head(query, own[0].shape[3])
    own_kv, prefix_kv = [_major(x) for x in own], [_major(x[:, None]) for x in prefix]
    part = _joined if seen.shape[1] <= _JOIN * query.shape[2] else _shared
    masks = _group_masks(seen, query.shape[2], window)
    return _by_position(part(rows, prefix_kv, own_kv, masks, config), query.shape)


def _group_masks(seen: Array, width: int, window: Window) -> tuple[Array, Array]:
    """What completions may see: of the prefix bool[P, S], or with a window [P, T, S], and of themselves bool[T, T]."""
    place = jnp.arange(width, dtype=jnp.int32)
    own = Mask(_causal(width), place, place).within(window)
    if isinstance(window, int) and window == 0:
        return seen, own
    asking = jnp.sum(seen, axis=1, keepdims=True, dtype=jnp.int32) + place[None]
    asked = jnp.arange(seen.shape[1], dtype=jnp.int32)[None]
    return Mask(seen[:, None, :], asking, asked).within(window), own


def _joined(
    query: Array, prefix: list[Array], own: list[Array], masks: tuple[Array, Array], config: ModelConfig
) -> Array:
    """Prefix keys [P, J, 1, S, C] repeated in front of the own keys [P, J, G, T, C] of every completion."""
    width = own[0].shape[3]
    key, value = (
        jnp.concatenate([jnp.broadcast_to(a, (*b.shape[:3], *a.shape[3:])), b], axis=3)
        for a, b in zip(prefix, own, strict=True)
    )
    seen, causal = masks
    before = seen[:, None, :] if seen.ndim == 2 else seen
    before = jnp.broadcast_to(before, (seen.shape[0], width, seen.shape[-1]))
    causal = jnp.broadcast_to(causal[None], (seen.shape[0], width, width))
    mask = jnp.concatenate([before, causal], axis=2)
    return _softmax(config)(query, key, value, _repeated(mask, config.repeats))


def _shared(
    query: Array, prefix: list[Array], own: list[Array], masks: tuple[Array, Array], config: ModelConfig
) -> Array:
    """Two scores, one softmax: ``[P J, G M, C] x [P J, S, C]`` for the prefix, ``[M, C] x [T, C]`` a completion."""
    (seen, causal), (prompts, heads, group, rows, size) = masks, query.shape
    wide = layers.accumulator(query.dtype)
    flat = query.reshape(prompts, heads, group * rows, size)
    before = jnp.einsum("pjmc,pjsc->pjms", flat, prefix[0][:, :, 0], preferred_element_type=wide)
    before = layers.capped(before, config.attention_cap)
    before = jnp.where(_for_group(seen, config.repeats, group), before, MASKED)
    after = jnp.einsum("pjgmc,pjgtc->pjgmt", query, own[0], preferred_element_type=wide)
    after = layers.capped(after, config.attention_cap)
    after = jnp.where(jnp.tile(causal, (config.repeats, 1)), after, MASKED)
    after = after.reshape(prompts, heads, group * rows, -1)  # long rows: exp of short ones is not vectorised

    peak = jnp.maximum(jnp.max(before, axis=-1, keepdims=True), jnp.max(after, axis=-1, keepdims=True))
    peak = jax.lax.stop_gradient(peak)
    before, after = jnp.exp(before - peak), jnp.exp(after - peak)
    total = jnp.sum(before, axis=-1, keepdims=True) + jnp.sum(after, axis=-1, keepdims=True)
    before, after = before.astype(query.dtype), after.astype(query.dtype).reshape(prompts, heads, group, rows, -1)
    found = jnp.einsum("pjms,pjsc->pjmc", before, prefix[1][:, :, 0], preferred_element_type=wide)
    own_found = jnp.einsum("pjgmt,pjgtc->pjgmc", after, own[1], preferred_element_type=wide)
    return ((found + own_found.reshape(found.shape)) / total).astype(query.dtype).reshape(query.shape)


def _attend(query: Array, key: Array, value: Array, mask: Array, cap: float) -> tuple[Array, Array, Array]:
    """``softmax(q k^T) v``, the softmax and the capped scores; mask bool[P, M, S]."""
    scores = jnp.einsum("pjgmc,pjgsc->pjgms", query, key, preferred_element_type=layers.accumulator(query.dtype))
    scores = layers.capped(scores, cap)
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, MASKED), axis=-1).astype(query.dtype)
    return jnp.einsum("pjgms,pjgsc->pjgmc", weights, value), weights, scores


def _plain(query: Array, key: Array, value: Array, mask: Array, cap: float) -> Array:
    return _attend(query, key, value, mask, cap)[0]


_fast = jax.custom_vjp(_plain, nondiff_argnums=(4,))


def _forward(query: Array, key: Array, value: Array, mask: Array, cap: float) -> tuple[Array, tuple[Array | None, ...]]:
    found, weights, scores = _attend(query, key, value, mask, cap)
    return found, (query, key, value, weights, found, scores if cap else None)


def _backward(cap: float, saved: tuple, d_found: Array) -> tuple[Array, Array, Array, None]:
    """With w the weights and o = w v: ``ds = w (do v^T - sum(do o))``, half the passes of the rule JAX derives.

    A cap c of the scores, s = c tanh(r / c), makes it ``dr = ds (1 - (s / c)^2)``.
    """
    query, key, value, weights, found, scores = saved
    wide = layers.accumulator(query.dtype)
    slope = jnp.einsum("pjgmc,pjgsc->pjgms", d_found, value, preferred_element_type=wide)
    along = jnp.sum(d_found.astype(wide) * found.astype(wide), axis=-1, keepdims=True)
    d_scores = weights.astype(wide) * (slope - along)
    d_scores = (d_scores * (1 - jnp.square(scores / cap)) if cap else d_scores).astype(query.dtype)
    d_query = jnp.einsum("pjgms,pjgsc->pjgmc", d_scores, key)
    if weights.shape[3] * weights.shape[4] > _SMALL:
        d_key = jnp.einsum("pjgms,pjgmc->pjgsc", d_scores, query)
        return d_query, d_key, jnp.einsum("pjgms,pjgmc->pjgsc", weights, d_found), None
    d_scores, weights = jax.lax.optimization_barrier((d_scores.swapaxes(3, 4), weights.swapaxes(3, 4)))
    d_key = jnp.einsum("pjgsm,pjgmc->pjgsc", d_scores, query)
    return d_query, d_key, jnp.einsum("pjgsm,pjgmc->pjgsc", weights, d_found), None


_fast.defvjp(_forward, _backward)


def _softmax(config: ModelConfig) -> Callable[[Array, Array, Array, Array], Array]:
    chosen = _fast if config.backward == "fast" else _plain
    return lambda query, key, value, mask: chosen(query, key, value, mask, config.attention_cap)


def _causal(width: int) -> Array:
    return jnp.tril(jnp.ones((width, width), bool))


def _repeated(mask: Array, repeats: int) -> Array:
    """A mask [P, T, S] of positions, for the R T queries of a key/value head."""
    return mask if repeats == 1 else jnp.tile(mask, (1, repeats, 1))


def _for_group(seen: Array, repeats: int, group: int) -> Array:
    """What completions see of the prefix, for all G R T queries of a key/value head: broadcasts to [P, J, G R T, S]."""
    if seen.ndim == 2:
        return seen[:, None, None]
    return jnp.tile(seen, (1, group * repeats, 1))[:, None]


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
