"""Attention of completions that share a prompt is attention of each of them alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models import ModelConfig, attention
from tests.laws import tiny

P, G, J, R, C = 2, 3, 2, 2, 4
CONFIG = ModelConfig(vocab=2, width=2, layers=1, heads=J * R, kv_heads=J, head_width=C, hidden=2)
SHAPES = {"short prefix": (4, 3), "long prefix": (9, 3), "long prefix, wide scores": (90, 40), "wide scores": (40, 40)}


def arrays(size, width):
    keys = jax.random.split(jax.random.key(0), 5)
    query = jax.random.normal(keys[0], (P, G, width, J * R, C))
    prefix = [jax.random.normal(key, (P, size, J, C)) for key in keys[1:3]]
    own = [jax.random.normal(key, (P, G, width, J, C)) for key in keys[3:]]
    return query, (prefix[0], prefix[1]), (own[0], own[1])


def alone(query, prefix, own, seen, config=CONFIG, window=0):
    """Every completion with its own copy of the prefix and the keys it may see written out, by jnp.einsum on heads."""
    key, value = (
        jnp.repeat(jnp.concatenate([jnp.repeat(a[:, None], G, axis=1), b], axis=2), R, axis=3)
        for a, b in zip(prefix, own, strict=True)
    )
    width = query.shape[2]
    before = jnp.broadcast_to(seen[:, None, None, None, :], (P, 1, 1, width, seen.shape[1]))
    after = jnp.broadcast_to(jnp.tril(jnp.ones((width, width), bool)), (P, 1, 1, width, width))
    scores = jnp.einsum("pgthc,pgshc->pghts", query, key)
    if config.attention_cap:
        scores = config.attention_cap * jnp.tanh(scores / config.attention_cap)
    mask = jnp.concatenate([before, after], axis=4)
    if window:
        start = jnp.sum(seen, axis=1, dtype=jnp.int32)[:, None]
        asking = start + jnp.arange(width, dtype=jnp.int32)[None]
        place = jnp.broadcast_to(jnp.arange(seen.shape[1], dtype=jnp.int32), seen.shape)
        ago = asking[:, :, None] - jnp.concatenate([place, asking], axis=1)[:, None]
        mask = mask & (ago < window)[:, None, None]
    scores = jnp.where(mask, scores, -jnp.inf)
    return jnp.einsum("pghts,pgshc->pgthc", jax.nn.softmax(scores, axis=-1), value)


@pytest.mark.slow
def test_sharing_a_prompt_changes_neither_value_nor_gradient():
    """One compilation for short and long prefixes, small and large scores, and both backward passes."""

    def both(name, backward):
        size, width = SHAPES[name]
        inputs = arrays(size, width)
        seen = jnp.arange(size)[None] < jnp.array([size, size // 2])[:, None]
        config = dataclasses.replace(CONFIG, backward=backward)

        def value(inputs, shared):
            query, prefix, own = inputs
            if shared:
                found = attention.attend_group(query, prefix, own, seen, config)
            else:
                found = alone(query, prefix, own, seen)
            return jnp.sum(jnp.sin(found)), found

        return [jax.grad(value, has_aux=True)(inputs, shared) for shared in (True, False)]

    found = jax.jit(lambda: {(name, b): both(name, b) for name in SHAPES for b in ("fast", "plain")})()
    for name, (shared, repeated) in found.items():
        jax.tree.map(
            lambda a, b, name=name: np.testing.assert_allclose(a, b, atol=1e-5, err_msg=str(name)), shared, repeated
        )


def test_caps_and_windows_are_those_of_each_completion_alone():
    """A prefix that is joined, and one that is shared by a window that is data, and by both passes back.

    Windows end in the prefix; the half of it that is padding is not counted by them.
    """
    capped = dataclasses.replace(CONFIG, attention_cap=1.5)
    cases = {
        "joined": (capped, (4, 3), 4, 4),
        "shared": (capped, (9, 3), 4, jnp.int32(4)),
        "plain, no cap": (dataclasses.replace(CONFIG, backward="plain"), (9, 3), 5, 5),
    }

    def both(config, shape, window, given):
        inputs, size = arrays(*shape), shape[0]
        seen = jnp.arange(size)[None] < jnp.array([size, size // 2])[:, None]

        def value(inputs, shared):
            query, prefix, own = inputs
            if shared:
                found = attention.attend_group(query, prefix, own, seen, config, given)
            else:
                found = alone(query, prefix, own, seen, config, window)
            return jnp.sum(jnp.sin(found)), found

        return [jax.grad(value, has_aux=True)(inputs, shared) for shared in (True, False)]

    found = jax.jit(lambda: {name: both(*case) for name, case in cases.items()}, compiler_options=tiny.QUICK)()
    for name, (shared, repeated) in found.items():
        jax.tree.map(
            lambda a, b, name=name: np.testing.assert_allclose(a, b, atol=1e-5, err_msg=name), shared, repeated
        )


def test_within_a_prefix_a_window_lets_the_last_tokens_through():
    """Keys 0, so that all that are seen weigh the same; values 0 1 2 3: means of the last two."""
    nothing, value = jnp.zeros((1, 4, 4, 4)), jnp.broadcast_to(jnp.arange(4.0)[None, :, None, None], (1, 4, 2, 4))
    seen = jnp.ones((1, 4), bool)
    found = jax.jit(lambda: attention.attend_prefix(nothing, nothing[:, :, :2], value, seen, CONFIG, 2))()
    np.testing.assert_allclose(found[0, :, 0, 0], [0, 0.5, 1.5, 2.5])


def test_a_query_without_any_key_gives_a_number():
    query, (key, value), _ = arrays(3, 3)
    found = attention.attend_prefix(query[:, 0], key, value, jnp.zeros((P, 3), bool), CONFIG)
    assert np.isfinite(np.asarray(found)).all()
