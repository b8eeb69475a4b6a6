"""Keys and values while decoding: one prefix a prompt, read by all of its samples, and one cache a row that grows.

The key cache has its positions last, ``[..., C, K]``: a step reads it as ``q [R, C] x [C, K]`` and never transposes it.
"""

import jax
import jax.numpy as jnp
from flax import struct

from grpo_jax.models import attention, layers
from grpo_jax.types import Array


class Prefix(struct.PyTreeNode):
    """Keys and values of the prompts of one layer, all but the last token of each."""

    key: Array  # [P, J, C, S]
    value: Array  # [P, J, S, C]


class Cache(struct.PyTreeNode):
    """Keys and values of the completions of one layer."""

    key: Array  # [P, J, G, C, K]
    value: Array  # [P, J, G, K, C]


def prefix(key: Array, value: Array) -> Prefix:
    """From keys and values [P, S, J, C] as a layer computes them."""
    return Prefix(key=key.transpose(0, 2, 3, 1), value=value.transpose(0, 2, 1, 3))


def empty(prefix: Prefix, group: int, width: int) -> Cache:
    """Room for `width` tokens of `group` samples of every prompt."""
    prompts, heads, size, _ = prefix.key.shape
    shape = (prompts, heads, group)
    dtype = prefix.key.dtype
    return Cache(key=jnp.zeros((*shape, size, width), dtype), value=jnp.zeros((*shape, width, size), dtype))


def grow(cache: Cache, width: int) -> Cache:
    """The cache with room for `width` tokens."""
    more = width - cache.key.shape[4]
    key = jnp.pad(cache.key, ((0, 0), (0, 0), (0, 0), (0, 0), (0, more)))
    return Cache(key=key, value=jnp.pad(cache.value, ((0, 0), (0, 0), (0, 0), (0, more), (0, 0))))


def write(cache: Cache, key: Array, value: Array, t: Array) -> Cache:
    """The cache with keys and values [P, G, J, C] of token t i32[]."""
    key, value = (x.transpose(0, 2, 1, 3) for x in (key, value))
    return Cache(
        key=jax.lax.dynamic_update_slice_in_dim(cache.key, key[..., None], t, axis=4),
        value=jax.lax.dynamic_update_slice_in_dim(cache.value, value[:, :, :, None], t, axis=3),
    )


def attend(
    query: Array, prefix: Prefix, seen: Array, cache: Cache, t: Array, *, cap: float = 0.0, window: int = 0
) -> Array:
    """One query a row over the prompt's prefix and tokens 0..t of the row: [P, G, H, C] -> [P, G, H, C].

    `seen` bool[P, S] is False for the padding behind the prefix. Queries come scaled. Scores are capped by `cap` and
    keys are the last `window` ones, where these are not 0.
    """
    prompts, group, heads, size = query.shape
    kv_heads = prefix.key.shape[1]
    wide = layers.accumulator(query.dtype)
    rows = query.reshape(prompts, group, kv_heads, heads // kv_heads, size).transpose(0, 2, 1, 3, 4)  # [P, J, G, R, C]
    flat = rows.reshape(prompts, kv_heads, -1, size)

    shared = jnp.einsum("pjmc,pjcs->pjms", flat, prefix.key, preferred_element_type=wide)
    shared = layers.capped(shared, cap)
    shared = jnp.where(_near(seen, t, window)[:, None, None], shared, attention.MASKED).reshape(*rows.shape[:4], -1)
    own = jnp.einsum("pjgrc,pjgck->pjgrk", rows, cache.key, preferred_element_type=wide)
    own = layers.capped(own, cap)
    place = jnp.arange(cache.key.shape[4])
    own = jnp.where((place <= t) & (place > t - window) if window else place <= t, own, attention.MASKED)

    peak = jnp.maximum(jnp.max(shared, axis=-1, keepdims=True), jnp.max(own, axis=-1, keepdims=True))
    shared, own = jnp.exp(shared - peak), jnp.exp(own - peak)
    total = jnp.sum(shared, axis=-1, keepdims=True) + jnp.sum(own, axis=-1, keepdims=True)
    flat = shared.reshape(*flat.shape[:3], -1).astype(query.dtype)
    found = jnp.einsum("pjms,pjsc->pjmc", flat, prefix.value, preferred_element_type=wide).reshape(rows.shape)
    found += jnp.einsum("pjgrk,pjgkc->pjgrc", own.astype(query.dtype), cache.value, preferred_element_type=wide)
    return (found / total).astype(query.dtype).transpose(0, 2, 1, 3, 4).reshape(query.shape)


def _near(seen: Array, t: Array, window: int) -> Array:
    """What token t of a row sees of the prefix, bool[P, S]: the tokens less than `window` before it, or all for 0."""
    if not window:
        return seen
    length = jnp.sum(seen, axis=1, keepdims=True, dtype=jnp.int32)
    return seen & (length + t - jnp.arange(seen.shape[1], dtype=jnp.int32)[None] < window)
