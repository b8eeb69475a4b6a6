"""Which tokens a bound silences, by hand, with the bounds and the ratio of the recipe."""

from functools import partial

import numpy as np

from grpo_jax import objectives as o

RATIO = [[0.5, 1.0, 2.0], [1.25, 1.0, 1.0]]
ADVANTAGE = [[-1.0, -1.0, 1.0], [1.0, 1.0, -1.0]]


def test_a_bound_silences_the_tokens_that_are_past_it_on_their_side(by_hand):
    stats, batch = by_hand(RATIO, advantage=ADVANTAGE)
    np.testing.assert_array_equal(o.clipped_low(stats, batch, low=0.2), [[1, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(o.clipped_high(stats, batch, high=0.2), [[0, 0, 1], [1, 0, 0]])
    np.testing.assert_array_equal(o.clipped_high(stats, batch, high=1.5, bounds="absolute"), [[0, 0, 1], [0, 0, 0]])


def test_the_terms_of_a_recipe_have_its_bounds_and_only_the_sides_that_it_has(by_hand):
    stats, batch = by_hand(RATIO, advantage=ADVANTAGE)
    terms = o.clip_shares(o.dapo(low=0.6, high=0.28).parts)
    assert list(terms) == ["low", "high"]
    assert terms["low"](stats, batch).sum() == 0 and terms["high"](stats, batch).sum() == 1  # 2.0 alone
    assert list(o.clip_shares((o.Part(o.token_mean, partial(o.ppo_clip, high=None)),))) == ["low"]
    assert o.clip_shares(o.rloo().parts) == {}
