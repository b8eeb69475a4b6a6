"""Standard deviations of a group, of the others, of the batch: hand numbers, a float64 twin, exact zeros."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.advantages import deviations
from grpo_jax.advantages.deviations import deviation, guarded, scaled


def given(reward: list[float], group: list[int]) -> dict:
    return {
        "reward": jnp.asarray(reward, jnp.float32),
        "group": jnp.asarray(group, jnp.int32),
        "num_groups": len(reward),
        "valid": jnp.ones(len(reward), bool),
    }


def test_hand_numbers():
    rows = given([1.0, 4.0, 7.0, 3.0], [0, 0, 0, 1])
    # 1, 4, 7: squares 9 + 0 + 9: sample sqrt(18 / 2) = 3, population sqrt(18 / 3); a group of one: 0
    np.testing.assert_allclose(deviation(**rows), [3, 3, 3, 0], rtol=1e-6)
    np.testing.assert_allclose(deviation(**rows, std="population"), [6**0.5] * 3 + [0], rtol=1e-6)
    # the others of 1: 4 and 7, mean 5.5, squares 2.25 + 2.25: sqrt 4.5; of 4: 1 and 7: sqrt 18
    np.testing.assert_allclose(deviation(**rows, scope="others"), [4.5**0.5, 18**0.5, 4.5**0.5, 0], rtol=1e-6)
    # all: mean 15 / 4, squares 7.5625 + 0.0625 + 10.5625 + 0.5625 = 18.75, over 3
    np.testing.assert_allclose(deviation(**rows, scope="batch"), [2.5] * 4, rtol=1e-6)


def test_deviations_equal_the_definitions_in_float64(rows, doubled, members, compiled):
    shape = {"num_groups": 40, "valid": doubled["valid"]}
    names = [(std, scope) for std in ("sample", "population") for scope in ("group", "others", "batch")]
    got = compiled(
        **{
            f"{std} {scope}": partial(deviation, doubled["reward"], doubled["group"], **shape, std=std, scope=scope)
            for std, scope in names
        }
    )
    everybody = rows["reward"][np.concatenate(members)]
    for std, scope in names:
        ddof = {"sample": 1, "population": 0}[std]
        for group in members:
            for i in group:
                chosen = {"group": rows["reward"][group], "batch": everybody}.get(scope)
                if chosen is None:
                    chosen = rows["reward"][group[group != i]]
                expected = chosen.std(ddof=ddof) if len(chosen) > ddof and np.ptp(chosen) > 0 else 0.0
                np.testing.assert_allclose(got[f"{std} {scope}"][i], expected, rtol=1e-9, err_msg=f"{std} {scope}")


def test_the_deviation_of_the_others_is_not_the_difference_of_two_large_numbers():
    # Row 0 is 1e4 away from others that differ by 0.01: sum c^2 - c_0^2 n / (n - 1) has no digit left in float32.
    rows = given([1e4, 0.34, 0.35, 0.36], [0] * 4)
    np.testing.assert_allclose(deviation(**rows, scope="others")[0], 0.01, rtol=1e-4)


@pytest.mark.parametrize("scope", ["group", "others", "batch"])
@pytest.mark.parametrize("reward", [0.35, 0.95, 1 / 3])
def test_equal_rewards_deviate_by_exactly_zero(scope: str, reward: float):
    np.testing.assert_array_equal(deviation(**given([reward] * 7, [0] * 7), scope=scope), 0.0)


def test_where_the_guard_goes_and_what_is_left_undivided():
    np.testing.assert_allclose(guarded(jnp.asarray([0.0, 2.0]), eps=0.5, eps_mode="add"), [0.5, 2.5])
    np.testing.assert_allclose(guarded(jnp.asarray([0.0, 2.0]), eps=0.5, eps_mode="max"), [0.5, 2.0])
    np.testing.assert_allclose(guarded(jnp.asarray([0.0, 2.0]), eps=0.0, eps_mode="add"), [1.0, 2.0])
    rows = given([5.0, 5.0, 1.0, 3.0], [0, 0, 1, 1])
    usual = {"std": "population", "scope": "group", "eps": 0.5, "eps_mode": "add", "variance_floor": 0.0}
    value = jnp.asarray([1.0, -1.0, 3.0, 6.0])
    # deviations 0, 0, 1, 1
    np.testing.assert_allclose(scaled(value, **rows, **usual, zero_std="divide"), [2, -2, 2, 4])
    np.testing.assert_allclose(scaled(value, **rows, **usual, zero_std="unscaled"), [1, -1, 2, 4])
    floored = {**usual, "variance_floor": 2.25}
    np.testing.assert_allclose(scaled(value, **rows, **floored, zero_std="divide"), [0.5, -0.5, 1.5, 3])
    np.testing.assert_array_equal(scaled(value, **rows, **{**usual, "std": "none"}, zero_std="divide"), value)


def test_a_convention_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(ValueError, match="holes is 'skip'; allowed are 'carry', 'zero', 'reset'"):
        deviations.check(holes="skip")
