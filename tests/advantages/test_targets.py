"""What a critic learns: found inside a composition, of the rewards that its strategy is handed."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import advantages as a
from grpo_jax.groups import Memory
from grpo_jax.testing.rows import tiny_collected, tiny_labels
from grpo_jax.types import Array, Collected

COLLECTED, LABELS = tiny_collected(), tiny_labels()


def test_a_strategy_without_a_critic_has_no_targets():
    assert a.critic_targets(a.group_standardized, COLLECTED, LABELS) is None
    assert a.critic_targets(partial(a.whitened, advantage=a.remax), COLLECTED, LABELS) is None


def test_targets_have_the_keywords_that_are_bound_to_their_strategy():
    got = a.critic_targets(partial(a.gae, gamma=0.9, lam=0.5), COLLECTED, LABELS)
    np.testing.assert_array_equal(got, a.value_targets(COLLECTED, LABELS, gamma=0.9, lam=0.5))
    other = a.value_targets(COLLECTED, LABELS, gamma=0.9)
    assert np.abs(np.asarray(got) - np.asarray(other)).max() > 1e-3


def test_what_is_done_to_advantages_does_not_reach_the_targets():
    whitened = partial(a.whitened, advantage=partial(partial(a.gae, lam=0.5), gamma=0.9))
    got = a.critic_targets(whitened, COLLECTED, LABELS)
    np.testing.assert_array_equal(got, a.value_targets(COLLECTED, LABELS, gamma=0.9, lam=0.5))


def test_what_is_done_to_rewards_does():
    # A nat costs 0.5, the reference is 0.1 nats below the policy on every token: what follows a token of a row of n
    # tokens costs 0.05 times the tokens from it on; with gamma = lam = 1 targets are the returns themselves.
    inner = partial(a.gae, lam=1.0, rewards="token")
    got = a.critic_targets(partial(a.penalized_tokens, advantage=inner, coef=0.5), COLLECTED, LABELS)
    mask = np.asarray(a.value_targets(COLLECTED, LABELS, lam=1.0)) != 0
    left = np.cumsum(mask[:, ::-1], axis=1)[:, ::-1]
    free = np.asarray(COLLECTED.reward.outcome)[:, None] - 0.05 * left
    np.testing.assert_allclose(np.asarray(got)[mask], free[mask], atol=1e-5)


def test_the_critic_of_a_length_adaptive_strategy_learns_undiscounted_returns():
    # lam = 1: A + V telescopes to the reward of the row on every token that counts.
    got = np.asarray(a.critic_targets(a.gae_length_adaptive, COLLECTED, LABELS))
    outcome = np.broadcast_to(np.asarray(COLLECTED.reward.outcome)[:, None], got.shape)
    counts = np.asarray(a.gae_length_adaptive(COLLECTED, LABELS, {})[0]) != 0
    np.testing.assert_allclose(got[counts], outcome[counts], atol=1e-5)


def both(collected: Collected, labels: Array, memory: Memory, *, one, two) -> tuple[Array, Memory]:
    """The mean of two strategies."""
    return (one(collected, labels, memory)[0] + two(collected, labels, memory)[0]) / 2, memory


def test_of_two_critics_neither_is_chosen():
    mixed = partial(both, one=a.group_centered, two=a.gae)
    np.testing.assert_array_equal(
        a.critic_targets(mixed, COLLECTED, LABELS), jnp.asarray(a.value_targets(COLLECTED, LABELS))
    )
    with pytest.raises(ValueError, match="got 2 strategies with a critic, allowed is one"):
        a.critic_targets(partial(both, one=a.gae, two=a.gae_length_adaptive), COLLECTED, LABELS)
