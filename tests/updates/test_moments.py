"""Fewer bytes: what is kept is rounded or factored, and what is computed is what the equations say."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grpo_jax.updates import SGD, Optimizer, build
from grpo_jax.updates.moments import Mastered

BARE = Optimizer(learning_rate=1.0, b1=0.5, b2=0.75, eps=1.0, clip_norm=0.0)
BF16 = jnp.bfloat16


def steps(settings: Any, gradients: list[Any], params: Any) -> tuple[list[np.ndarray], Any]:
    """The steps on the parameter "w" under one gradient after the other, and what is kept at the end."""
    optimizer, found = build(settings, 10), []
    params = {"w": jnp.asarray(params)}
    state = optimizer.init(params)
    for gradient in gradients:
        step, state = optimizer.update({"w": jnp.asarray(gradient, params["w"].dtype)}, state, params)
        found.append(np.asarray(jax.tree.leaves(step)[0], np.float64))
    return found, state


def moved(params: Any, step: Any) -> Any:
    return optax.apply_updates(params, step)


def kept(state: Any) -> dict[tuple[int, ...], Any]:
    """Shape -> dtype of the arrays that are kept."""
    return {leaf.shape: leaf.dtype for leaf in jax.tree.leaves(state) if leaf.ndim}


def test_moments_in_bfloat16_are_rounded_between_steps_and_nowhere_else():
    found, state = steps(dataclasses.replace(BARE, moments="bfloat16"), [[1.1], [2.3]], [0.0])
    assert kept(state) == {(1,): BF16}
    g1, g2 = (float(np.float32(g)) for g in (1.1, 2.3))
    m1, v1 = (float(BF16(x)) for x in (0.5 * g1, 0.25 * g1 * g1))
    # The first step is made of what was not rounded yet: -g / (|g| + 1).
    assert found[0][0] == pytest.approx(-g1 / (g1 + 1), rel=1e-6)
    m2, v2 = 0.5 * m1 + 0.5 * g2, 0.75 * v1 + 0.25 * g2 * g2
    expected = -(m2 / 0.75) / (np.sqrt(v2 / 0.4375) + 1)
    assert found[1][0] == pytest.approx(expected, rel=1e-6)
    exact = -((0.25 * g1 + 0.5 * g2) / 0.75) / (np.sqrt((0.1875 * g1 * g1 + 0.25 * g2 * g2) / 0.4375) + 1)
    assert abs(expected - exact) > 1e-5 * abs(exact)


def test_moments_in_float32_are_so_whatever_the_parameters_are():
    found, state = steps(BARE, [[1.0]], jnp.zeros(1, BF16))
    assert kept(state) == {(1,): jnp.float32} and found[0][0] == pytest.approx(-0.5)


def test_factored_moments_are_those_of_adam_where_squares_are_a_product():
    rng = np.random.default_rng(0)
    outer = np.outer(rng.normal(size=16), rng.normal(size=24)).astype(np.float32)
    # Of falling size, so that no step has a root mean square above 1 and is cut.
    gradients = [outer, 0.5 * outer, 0.25 * outer]
    plain = dataclasses.replace(BARE, b1=0.0, eps=1e-8)
    found, state = steps(dataclasses.replace(plain, moments="factored"), gradients, np.zeros_like(outer))
    expected, whole = steps(plain, gradients, np.zeros_like(outer))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert set(kept(state)) == {(16,), (24,), (1,)} and (16, 24) in kept(whole)


def test_a_factored_step_by_hand():
    gradient = np.ones((16, 16), np.float32)
    gradient[0, 0] = 3.0
    found, _ = steps(dataclasses.replace(BARE, b1=0.0, eps=1e-8, moments="factored"), [gradient], gradient * 0)
    row = 1 + 8 / 16  # mean of the squares of the first row, and of the first column: (9 + 15) / 16
    mean = 1 + 8 / 256
    expected = gradient / np.sqrt(np.outer([row, *[1.0] * 15], [row, *[1.0] * 15]) / mean)
    expected = expected / max(1.0, float(np.sqrt(np.mean(expected**2))))
    np.testing.assert_allclose(found[0], -expected, rtol=1e-5)


def test_a_factored_first_moment_is_the_average_of_what_was_divided():
    settings = dataclasses.replace(BARE, eps=1e-8, moments="factored")
    found, state = steps(settings, [[2.0], [-1.0]], [0.0])
    # Divided: 1, then -1 / sqrt(v) with v = (0.1875 * 4 + 0.25) / 0.4375; averages 1 and (0.25 + 0.5 x) / 0.75
    divided = -1 / np.sqrt((0.1875 * 4 + 0.25) / 0.4375)
    np.testing.assert_allclose([x[0] for x in found], [-1.0, -(0.25 + 0.5 * divided) / 0.75], rtol=1e-5)
    assert len([x for x in jax.tree.leaves(state) if x.ndim]) == 4


def test_parameters_are_the_rounding_of_their_master():
    settings = dataclasses.replace(BARE, learning_rate=2.0**-10, master=True)
    wide: Any = {"w": jnp.asarray([1.0, -3.0, 0.0])}
    params: Any = jax.tree.map(lambda x: x.astype(BF16), wide)
    lost = params
    with_master, without = build(settings, 99), build(dataclasses.replace(settings, master=False), 99)
    states = [with_master.init(params), without.init(wide), without.init(lost)]
    gradient = {"w": jnp.asarray([1.0, -1.0, 0.5])}
    narrow = jax.tree.map(lambda x: x.astype(BF16), gradient)
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(20):
            step, states[0] = with_master.update(narrow, states[0], params)
            params = moved(params, step)
            step, states[1] = without.update(gradient, states[1], wide)
            wide = moved(wide, step)
            step, states[2] = without.update(narrow, states[2], lost)
            lost = moved(lost, step)
    assert isinstance(states[0], Mastered) and states[0].master["w"].dtype == jnp.float32
    np.testing.assert_array_equal(states[0].master["w"], wide["w"])
    np.testing.assert_array_equal(params["w"], wide["w"].astype(BF16))
    # Twenty steps of 2^-11, each an eighth of the spacing of numbers below 1: alone each is rounded away.
    assert float(params["w"][0]) == pytest.approx(1 - 20 / 2048, abs=2e-3) and float(lost["w"][0]) == 1.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"moments": "float16"}, "optimizer.moments: got 'float16', allowed float32, bfloat16, factored"),
        ({"moments": "bfloat16", "b2": 0.999}, "optimizer.b2: got 0.999 with moments in bfloat16, allowed 0 <= b2"),
    ],
    ids=["kind", "slow"],
)
def test_settings_that_would_stand_still_are_refused(change: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        Optimizer(**change)


def test_gradient_descent_keeps_its_momentum_as_it_was():
    _, state = steps(SGD(momentum=0.5), [[1.0]], [0.0])
    assert kept(state) == {(1,): jnp.float32}
