"""Several rewards a row: hand numbers, a float64 twin with loops, and what is missing."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import advantages as a
from grpo_jax.testing.rows import tiny_collected, tiny_labels

NAN = float("nan")
TWO = jnp.asarray([[1.0, 10.0], [2.0, NAN], [NAN, NAN], [4.0, 40.0]])


def test_a_missing_component_adds_nothing_and_a_row_of_them_is_out():
    reward, scored = a.weighted_sum(TWO, weights=(1.0, 0.5))
    np.testing.assert_array_equal(reward, [6, 2, 0, 24])
    np.testing.assert_array_equal(scored, [True, True, False, True])
    reward, scored = a.weighted_sum(TWO, weights=(1.0, 0.5), missing="row")
    np.testing.assert_array_equal(reward, [6, 0, 0, 24])
    np.testing.assert_array_equal(scored, [True, False, False, True])


def test_hand_numbers_of_gdpo():
    rows = {"group": jnp.zeros(3, jnp.int32), "num_groups": 3, "valid": jnp.ones(3, bool)}
    # first: 1, 4, 7 -> -1, 0, 1; second: 5, 1, 3 -> 1, -1, 0 (sample deviation 2); sum with weights 1 and 3: 2, -3, 1
    components = jnp.asarray([[1.0, 5.0], [4.0, 1.0], [7.0, 3.0]])
    kernel = partial(a.separately_standardized, components, **rows, weights=(1.0, 3.0), eps=0.0)
    np.testing.assert_allclose(kernel(renormalize_std="none"), [2, -3, 1], rtol=1e-5)
    # squares 4 + 9 + 1 = 14, over 2
    np.testing.assert_allclose(kernel(renormalize_eps=0.0), np.asarray([2, -3, 1]) / 7**0.5, rtol=1e-5)
    population = kernel(renormalize_std="population", renormalize_eps=1.0)
    np.testing.assert_allclose(population, np.asarray([2, -3, 1]) / ((14 / 3) ** 0.5 + 1), rtol=1e-5)


def twin(rows, weights, missing):
    there = ~np.isnan(rows["components"])
    if missing == "row":
        there = np.broadcast_to(there.all(axis=1, keepdims=True), there.shape)
    group = np.where(rows["valid"], rows["group"], -1)
    total, counted = np.zeros(40), (group >= 0) & there.any(axis=1)
    for g in set(group.tolist()) - {-1}:
        for k, weight in enumerate(weights):
            members = np.flatnonzero((group == g) & there[:, k])
            r = rows["components"][members, k]
            if len(members) > 1:
                total[members] += weight * (r - r.mean()) / (r.std(ddof=1) + 0.01)
    chosen = total[counted]
    return np.where(counted, (total - chosen.mean()) / (chosen.std(ddof=1) + 0.1), 0.0)


def test_gdpo_equals_the_definition_in_float64(rows, doubled, compiled):
    weights = (1.0, 0.5, -0.25)
    kernel = partial(a.separately_standardized, doubled["components"], doubled["group"], num_groups=40)
    kernel = partial(kernel, valid=doubled["valid"], weights=weights, eps=0.01, renormalize_eps=0.1)
    got = compiled(**{missing: partial(kernel, missing=missing) for missing in ("component", "row")})
    for missing, value in got.items():
        np.testing.assert_allclose(value, twin(rows, weights, missing), rtol=1e-9, atol=1e-12)


def test_a_group_whose_components_are_all_equal_gets_exactly_zero_beside_others():
    components = jnp.asarray([[0.35, 0.95]] * 7 + [[0.1, 0.2], [0.7, 0.1], [1 / 3, 0.9]])
    group = jnp.asarray([0] * 7 + [1] * 3, jnp.int32)
    shape = {"num_groups": 10, "valid": jnp.ones(10, bool)}
    value = np.asarray(a.separately_standardized(components, group, **shape, weights=(1.0, 0.3)))
    np.testing.assert_array_equal(value[:7], 0.0)
    assert (value[7:] != 0).all()


def test_a_weighted_sum_in_the_place_of_the_outcome():
    collected, labels = tiny_collected(), tiny_labels()  # first = outcome - 0.25, second = 0.25
    plain, _ = a.group_standardized(collected, labels, {}, eps=0.0)
    both, _ = a.weighted_components(
        collected,
        labels,
        {},
        weights=(("first", 3.0), ("second", 9.0)),
        advantage=partial(a.group_standardized, eps=0.0),
    )
    np.testing.assert_allclose(both, plain, atol=1e-5)
    every, _ = a.weighted_components(collected, labels, {}, advantage=a.outcome)
    np.testing.assert_allclose(every, a.outcome(collected, labels, {})[0], rtol=1e-6)
    components = {**collected.reward.components, "first": jnp.full(12, jnp.nan).at[0].set(1.0)}
    some = collected.replace(reward=collected.reward.replace(components=components))
    only, _ = a.weighted_components(some, labels, {}, weights=(("first", 1.0),), advantage=a.outcome)
    np.testing.assert_array_equal(np.asarray(only)[:, 0], [1.0] + [0.0] * 11)


def test_gdpo_is_its_kernel_on_the_named_components():
    collected, labels = tiny_collected(), tiny_labels()
    components = jnp.stack([collected.reward.components[name] for name in ("second", "first")], axis=1)
    row = a.separately_standardized(
        components, labels, num_groups=12, valid=collected.reward.valid, weights=(2.0, 0.5), eps=0.1
    )
    got, _ = a.gdpo(collected, labels, {}, weights=(("second", 2.0), ("first", 0.5)), eps=0.1)
    np.testing.assert_array_equal(got, np.where(collected.rollouts.mask, row[:, None], 0.0))


def test_what_is_not_there_is_an_error_with_what_is():
    collected, labels = tiny_collected(), tiny_labels()
    with pytest.raises(ValueError, match=r"gdpo\.weights: got 'third', allowed 'first', 'second'"):
        a.gdpo(collected, labels, {}, weights=(("third", 1.0),))
    with pytest.raises(ValueError, match=r"weights: got 1 for components of shape \(4, 2\)"):
        a.weighted_sum(TWO, weights=(1.0,))
    with pytest.raises(ValueError, match="missing is 'all'"):
        a.present(TWO, missing="all")
