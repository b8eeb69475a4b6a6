"""The loss of corrected recipes by hand: one good token at ratio 1 and one bad one, with old / behaviour as given."""

import numpy as np
import pytest

from grpo_jax import objectives as o

A = 1 / np.sqrt(2.0)  # rewards 1 and -1: mean 0, sample deviation sqrt 2


@pytest.mark.parametrize(
    ("recipe", "weight"),
    [
        (o.tis(cap=2.0), 2.0),
        (o.tis_sequence(cap=2.5), 2.5),
        (o.icepop(upper=5.0), 3.0),
        (o.icepop(upper=2.0), 0.0),
        (o.mis_sequence(upper=2.0), 0.0),
        (o.mis_sequence(upper=4.0), 3.0),
        (o.geometric_mask(), 0.0),
        (o.geometric_mask(upper=4.0), 3.0),
        (o.decoupled_ppo(), 3.0),
        (o.decoupled_ppo(cap=2.0), 0.0),
        (o.rejection(), 0.0),  # k3 of log 3 is 3 - log 3 - 1 = 0.90
        (o.rejection(upper=1.0), 1.0),
    ],
)
def test_the_weight_of_tokens_that_the_sampler_found_three_times_less_likely(value, recipe: o.Recipe, weight: float):
    # -A r for the good token at 1.1, A r for the bad one at 1.3, times the weight, the mean of two
    expected = weight * (-1.1 * A + 1.3 * A) / 2
    got = value(recipe, [1.1, 1.3], [1.0, -1.0], old_over_behavior=3.0)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-7)


def test_without_an_old_policy(value):
    # x = -1; new / behaviour = 1.1 * 1.5 = 1.65 and 1.3 * 1.5, capped at 1.8
    got = value(o.bypass(cap=1.8), [1.1, 1.3], [1.0, -1.0], old_over_behavior=1.5)
    np.testing.assert_allclose(got, (1.65 * A - 1.8 * A) / 2, rtol=1e-4)


def test_off_policy_masking_drops_the_bad_row_only(value):
    # behaviour / new = 1 / (r * 1): mean log 1/0.5 = 0.69 above the threshold for both rows
    got = value(o.off_policy_masking(beta=0.0, threshold=0.5), [0.5, 0.5], [1.0, -1.0])
    np.testing.assert_allclose(got, -0.5 * A / 2, rtol=1e-4)
    kept = value(o.off_policy_masking(beta=0.0, threshold=0.7), [0.5, 0.5], [1.0, -1.0])
    np.testing.assert_allclose(kept, (-0.5 * A + 0.8 * A) / 2, rtol=1e-4)


def test_bounds_on_the_probability(value):
    # p = e^-1 = 0.37; q = p / r: moved by 0.37 (1 - 1/r) = 0.18 and -0.37; advantages +-1 (not divided)
    pull = 0.1 * (np.log(2.0) ** 2 + np.log(0.5) ** 2) / 2
    both = value(o.dppo(tv_low=0.4, tv_high=0.2, pull=0.1), [2.0, 0.5], [1.0, -1.0])
    np.testing.assert_allclose(both, (-2.0 + 0.5) / 2 + pull, rtol=1e-4)
    good = value(o.dppo(tv_low=0.2, tv_high=0.2, pull=0.1), [2.0, 0.5], [1.0, -1.0])
    np.testing.assert_allclose(good, -2.0 / 2 + pull, rtol=1e-4)
    none = value(o.dppo_symmetric(tv_low=0.2, tv_high=0.1, pull=0.1), [2.0, 0.5], [-1.0, 1.0])
    np.testing.assert_allclose(none, pull, rtol=1e-4)
