"""What a completion pays for its length: by hand."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.rewards.lengths import overlong_penalty, soft_overlong
from grpo_jax.rewards.tokens import combine
from grpo_jax.testing.rows import tiny_collected

LENGTH = jnp.asarray([0, 15, 16, 18, 20, 25], jnp.int32)


def test_a_fifth_of_the_penalty_for_every_token_of_a_buffer_of_five():
    got = overlong_penalty(LENGTH, max_length=20, buffer_length=5)
    np.testing.assert_allclose(got, [0, 0, -0.2, -0.6, -1, -1], atol=1e-6)
    got = overlong_penalty(LENGTH, max_length=20, buffer_length=5, penalty=3.0, floor=False)
    np.testing.assert_allclose(got, [0, 0, -0.6, -1.8, -3, -6], atol=1e-6)
    assert got.dtype == jnp.float32


def test_it_is_a_scorer_of_token_rewards():
    rollouts = tiny_collected().rollouts  # lengths 1, 2, 3, 4, 0, 5, 3, 4, 1, 2, 5, 3
    scorer = partial(soft_overlong, max_length=4, buffer_length=2)
    reward = combine(rollouts, rewards=(("overlong", scorer, 2.0),))
    np.testing.assert_allclose(reward.outcome, [0, 0, -1, -2, 0, -2, -1, -2, 0, 0, -2, -1])


def test_a_buffer_longer_than_a_completion_may_be_is_refused():
    with pytest.raises(ValueError, match="buffer_length: got 6, allowed 1 to max_length = 5"):
        overlong_penalty(LENGTH, max_length=5, buffer_length=6)
