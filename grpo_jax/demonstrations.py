"""Rows that no policy sampled: a demonstration of every prompt among its completions (LUFFY, arXiv 2504.14945)."""

import jax.numpy as jnp
from jax.sharding import Mesh

from grpo_jax.types import Array, Rollouts

VERSION = -1
"""``Rollouts.version`` of a demonstration."""


def mixed(rollouts: Rollouts, tokens: Array, length: Array, *, mesh: Mesh | None = None) -> Rollouts:
    """`rollouts` with one more row for every prompt, behind its own: a demonstration.

    Its sample number is the next one and its version `VERSION`. Both of its log-probabilities are 0, probability 1: the
    policy that wrote it is not known, and nothing is corrected for it. It is scored like any other row and compared
    with those of its prompt; what the policy itself does (rewards, lengths, divergences) is measured without it.

    Args:
        rollouts: G rows of each of P prompts in order, as `sample_rows` makes them.
        tokens: i32[P, W], demonstrations with their stop token, right-padded; what is beyond T is cut off.
        length: i32[P].
        mesh: every prompt stays where it is.

    Nobody chose experts for a demonstration: a mixture that learns from it chooses for itself.
    """
    del mesh
    count, width = length.shape[0], rollouts.tokens.shape[1]
    group = rollouts.prompt.shape[0] // count
    shown = jnp.pad(tokens, ((0, 0), (0, max(width - tokens.shape[1], 0))))[:, :width].astype(rollouts.tokens.dtype)
    kept = jnp.minimum(length, width).astype(rollouts.length.dtype)
    nothing = jnp.zeros((count, width), rollouts.logp.dtype)
    rows = {
        "prompt": jnp.arange(count, dtype=rollouts.prompt.dtype),
        "sample": jnp.full((count,), group, rollouts.sample.dtype),
        "tokens": shown,
        "length": kept,
        "stopped": length <= width,
        "mask": jnp.arange(width, dtype=kept.dtype)[None, :] < kept[:, None],
        "logp": nothing,
        "logp_full": nothing,
        "version": jnp.full((count,), VERSION, rollouts.version.dtype),
    }

    def behind(name: str) -> Array:
        own = getattr(rollouts, name)
        apart = own.reshape(count, group, *own.shape[1:])
        joined = jnp.concatenate([apart, rows[name][:, None]], axis=1)
        return joined.reshape(count * (group + 1), *own.shape[1:])

    return rollouts.replace(**{name: behind(name) for name in rows}, experts=_choices(rollouts, count))


def _choices(rollouts: Rollouts, count: int) -> Array | None:
    """Choices of experts i32[L, N, T, k] of rows in the order of `count` prompts, with none for one more of each."""
    if rollouts.experts is None:
        return None
    depth, rows, *rest = rollouts.experts.shape
    apart = rollouts.experts.reshape(depth, count, rows // count, *rest)
    nothing = jnp.full((depth, count, 1, *rest), -1, rollouts.experts.dtype)
    return jnp.concatenate([apart, nothing], axis=2).reshape(depth, rows + count, *rest)
