"""Coefficients that follow a measurement, by hand."""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import objectives as o

LEVEL = partial(o.following, name="level", measure="entropy", rule=partial(o.stepping, target=0.2, step=0.005))
BONUS = partial(o.gated, control=LEVEL, measure="entropy", target=0.2)
BETA = partial(o.following, name="beta", measure="kl/ref", rule=partial(o.doubling, target=0.01))


def number(x: float):
    return jnp.asarray(x, jnp.float32)


def test_the_proportional_rule_moves_by_the_clipped_relative_error():
    rule = partial(o.proportional, target=0.1, horizon=1000.0, steps=50.0)
    # error 0.1, clipped at +-0.2; times 50 / 1000
    for measured, factor in ((0.11, 1 + 0.1 * 0.05), (0.1, 1.0), (5.0, 1 + 0.2 * 0.05), (0.0, 1 - 0.2 * 0.05)):
        np.testing.assert_allclose(rule(number(0.04), number(measured)), 0.04 * factor, rtol=1e-6)
    np.testing.assert_allclose(
        o.proportional(number(1.0), number(1.0), target=0.1, horizon=10.0, steps=1.0, clip=9.0), 1.9
    )


def test_the_doubling_rule_has_a_band_in_which_nothing_moves():
    rule = partial(o.doubling, target=0.03)
    for measured, expected in ((0.019, 0.5), (0.021, 1.0), (0.044, 1.0), (0.046, 2.0)):  # 0.03 / 1.5 and 0.03 * 1.5
        assert rule(number(1.0), number(measured)) == expected


def test_the_stepping_rule_goes_up_at_the_target_and_down_above_it():
    rule = partial(o.stepping, target=0.2, step=0.005)
    np.testing.assert_allclose(rule(number(0.01), number(0.2)), 0.015, rtol=1e-6)
    np.testing.assert_allclose(rule(number(0.01), number(0.3)), 0.005, rtol=1e-6)
    np.testing.assert_allclose(rule(number(0.0), number(0.3)), -0.005, rtol=1e-6)
    assert rule(number(0.0), number(0.3), floor=0.0) == 0.0


def test_a_gated_coefficient_acts_only_at_the_target_while_its_level_moves_on():
    coefficients = (o.Coefficient("level", 0.01, LEVEL), o.Coefficient("bonus", 0.01, BONUS))
    coef = o.initial_values(coefficients)
    assert {name: x.dtype for name, x in coef.items()} == {"level": jnp.float32, "bonus": jnp.float32}
    for entropy, level, bonus in ((0.5, 0.005, 0.0), (0.1, 0.010, 0.010), (0.2, 0.015, 0.015), (0.3, 0.010, 0.0)):
        coef = o.controlled(coefficients, coef, {"entropy": number(entropy)})
        np.testing.assert_allclose([coef["level"], coef["bonus"]], [level, bonus], rtol=1e-5)


def test_all_controls_read_the_values_of_the_step_that_ended():
    copy = partial(o.following, name="beta", measure="kl/ref", rule=partial(o.doubling, target=0.01))
    coefficients = (o.Coefficient("beta", 1.0, BETA), o.Coefficient("other", 5.0, copy))
    coef = o.controlled(coefficients, o.initial_values(coefficients), {"kl/ref": number(1.0)})
    assert (coef["beta"], coef["other"]) == (2.0, 2.0)  # and not 4


def test_a_measurement_that_is_not_finite_moves_nothing():
    for broken in (np.nan, np.inf, -np.inf):
        rule = partial(o.proportional, target=0.1, horizon=10.0, steps=1.0)
        control = partial(o.following, name="beta", measure="kl/ref", rule=rule)
        got = control({"beta": number(0.5)}, {"kl/ref": number(broken)})
        assert np.isfinite(got) and (got == 0.5 or np.isinf(broken))


def test_names_without_a_control_stay_and_unknown_ones_are_refused():
    coef = {"mine": number(3.0), "beta": number(1.0)}
    assert o.controlled((), coef, {}) == coef
    with pytest.raises(ValueError, match="metrics: got no 'kl/ref', there are: entropy: name one of them"):
        BETA(coef, {"entropy": number(1.0)})
    with pytest.raises(ValueError, match="coefficients: got no 'beta', there are: none"):
        BETA({}, {"kl/ref": number(1.0)})


def test_a_recipe_refuses_coefficients_that_are_none_or_twice_there():
    parts = o.RECIPES["grpo"].parts
    rest = {"advantage": o.RECIPES["grpo"].advantage, "grouping": o.RECIPES["grpo"].grouping}
    with pytest.raises(ValueError, match="every name is there once"):
        o.Recipe(parts, coefficients=(o.Coefficient("beta", 1.0, BETA),) * 2, **rest)
    wrong: Any = ("beta",)
    with pytest.raises(ValueError, match=r"it must be a tuple of Coefficient\(...\)"):
        o.Recipe(parts, coefficients=wrong, **rest)


def test_every_coefficient_that_a_recipe_names_is_there():
    for name, recipe in o.RECIPES.items():
        read = {keywords["by"] for _, keywords in o.functions(recipe.parts) if isinstance(keywords.get("by"), str)}
        assert read <= {one.name for one in recipe.coefficients}, name
