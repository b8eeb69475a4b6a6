"""Settings that mean nothing are refused."""

import jax
import jax.numpy as jnp
import pytest

from grpo_jax.sampling import Sampling

BAD = {
    "max_tokens is 0": {"max_tokens": 0},
    "cache_chunk is 0": {"cache_chunk": 0},
    "a tuple of token ids": {"stop": [2]},
    "temperature is -1": {"temperature": -1.0},
    "top_k is -2": {"top_k": -2},
    "top_p is 0": {"top_p": 0},
    "min_p is 1.5": {"min_p": 1.5},
}


@pytest.mark.parametrize("message", BAD)
def test_settings_that_mean_nothing_are_refused(message):
    with pytest.raises(ValueError, match=message):
        Sampling(**{"max_tokens": 4, "stop": (), **BAD[message]})


def test_the_temperature_alone_may_be_traced():
    assert jax.tree.leaves(Sampling(max_tokens=4, stop=(1, 2), temperature=0.5, top_k=3)) == [0.5]
    assert jax.jit(lambda s: s.temperature * 2)(Sampling(max_tokens=4, stop=(), temperature=jnp.float32(0.5))) == 1
