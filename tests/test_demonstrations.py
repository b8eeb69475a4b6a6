"""A demonstration stands behind the completions of its prompt and is known as one."""

import jax.numpy as jnp
import numpy as np

from grpo_jax.demonstrations import mixed
from tests.laws import tiny
from tests.laws.tiny import G, P, T


def test_every_prompt_has_one_more_row():
    rollouts = tiny.rows()
    tokens = np.full((P, T + 1), 9, np.int32)
    length = np.array([T + 1, T, 1, 2, 3, 1, 1, 1], np.int32)  # the first does not fit
    found = mixed(rollouts, jnp.asarray(tokens), jnp.asarray(length))
    last = np.arange(P * (G + 1)) % (G + 1) == G
    for name in ("tokens", "length", "stopped", "mask", "logp", "logp_full", "version", "prompt", "sample"):
        np.testing.assert_array_equal(np.asarray(getattr(found, name))[~last], getattr(rollouts, name))
    shown = {name: np.asarray(getattr(found, name))[last] for name in ("tokens", "length", "stopped", "version")}
    assert shown["version"].tolist() == [-1] * P and (shown["tokens"] == 9).all()
    assert shown["length"].tolist() == [T, T, 1, 2, 3, 1, 1, 1] and shown["stopped"].tolist() == [False] + [True] * 7
    np.testing.assert_array_equal(np.asarray(found.mask)[last], np.arange(T)[None] < shown["length"][:, None])
    assert np.asarray(found.prompt)[last].tolist() == list(range(P)) and set(np.asarray(found.sample)[last]) == {G}
    assert not np.asarray(found.logp)[last].any() and not np.asarray(found.logp_full)[last].any()


def test_a_narrower_demonstration_is_padded():
    found = mixed(tiny.rows(), jnp.full((P, 2), 3, jnp.int32), jnp.full((P,), 2, jnp.int32))
    assert np.asarray(found.tokens)[G].tolist() == [3, 3, *[0] * (T - 2)]


def test_nobody_chose_experts_for_a_demonstration():
    chosen = np.arange(2 * P * G * T, dtype=np.int32).reshape(2, P * G, T, 1)
    rollouts = tiny.rows().replace(experts=jnp.asarray(chosen))
    found = mixed(rollouts, jnp.zeros((P, T), jnp.int32), jnp.ones(P, jnp.int32)).experts
    assert found is not None and found.shape == (2, P * (G + 1), T, 1)
    shown = np.arange(P * (G + 1)) % (G + 1) == G
    np.testing.assert_array_equal(np.asarray(found)[:, ~shown], chosen)
    assert (np.asarray(found)[:, shown] == -1).all()
