"""One query over a prefix and a growing cache is attention over all that was written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.sampling import cache as caches

P, G, J, R, C, S = 2, 3, 2, 2, 4, 5


@pytest.mark.parametrize(("cap", "window"), [(0.0, 0), (1.5, 3)], ids=["all", "capped, the last three"])
def test_decoding_attends_to_the_prefix_and_to_what_was_written(cap, window):
    """Token by token through a cache that grows from 2 to 4, against softmax attention written out a row at a time."""
    rng = np.random.default_rng(0)
    prefix_key, prefix_value = rng.normal(size=(2, P, S, J, C)).astype(np.float32)
    key, value = rng.normal(size=(2, 4, P, G, J, C)).astype(np.float32)
    query = rng.normal(size=(P, G, J * R, C)).astype(np.float32)
    length = [5, 0]
    seen = jnp.arange(S)[None] < jnp.array(length)[:, None]
    prefix = caches.prefix(jnp.asarray(prefix_key), jnp.asarray(prefix_value))
    cache = caches.empty(prefix, G, 2)
    for t in range(4):
        cache = caches.grow(cache, 4) if t == 2 else cache
        cache = caches.write(cache, jnp.asarray(key[t]), jnp.asarray(value[t]), jnp.int32(t))
        found = caches.attend(jnp.asarray(query), prefix, seen, cache, jnp.int32(t), cap=cap, window=window)
        for p, g, head in np.ndindex(P, G, J * R):
            j = head // R
            keys = np.concatenate([prefix_key[p, : length[p], j], key[: t + 1, p, g, j]])
            values = np.concatenate([prefix_value[p, : length[p], j], value[: t + 1, p, g, j]])
            keys, values = keys[-window:], values[-window:]
            scores = keys @ query[p, g, head]
            weight = np.exp(cap * np.tanh(scores / cap) if cap else scores)
            np.testing.assert_allclose(found[p, g, head], weight @ values / weight.sum(), atol=1e-5)


def test_what_a_larger_cache_has_past_the_token_is_not_read():
    prefix = caches.prefix(jnp.ones((P, S, J, C)), jnp.ones((P, S, J, C)))
    ones = jnp.ones((P, G, J, C))
    cache = caches.write(caches.empty(prefix, G, 3), ones, 2 * ones, jnp.int32(0))
    full = caches.write(cache, 100 * ones, 100 * ones, jnp.int32(2))
    query, seen = jax.random.normal(jax.random.key(0), (P, G, J * R, C)), jnp.ones((P, S), bool)
    first = caches.attend(query, prefix, seen, cache, jnp.int32(1))
    np.testing.assert_array_equal(caches.attend(query, prefix, seen, full, jnp.int32(1)), first)
