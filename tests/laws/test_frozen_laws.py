"""What is frozen stays, and the rest learns as if all did: a gradient has no opinion of what else is trained."""

from typing import Any

import jax
import numpy as np
import pytest

from grpo_jax import models, train
from grpo_jax.types import Array, Params, Reward, Rollouts
from tests.laws import tiny
from tests.laws.tiny import MODEL, QUICK, G

PARAMS = tiny.policy()
REFERENCE = tiny.nearby(PARAMS)
FROZEN = ("embed", "layers/0/*", "layers/1/key")
ROLLOUTS, REWARD = tiny.rows(), tiny.rewards()


def learned(params: Params, reference: Params, rollouts: Rollouts, reward: Reward, frozen: Params | None) -> Any:
    """Two updates of GRPO with a penalty, through all phases that have policies."""
    change = tiny.settings(tiny.RECIPES["grpo"], updates=2, epochs=2, microbatches=2)
    given: dict[str, Any] = {"model": MODEL, "temperature": 1.0, "group_size": G, "frozen": frozen}
    seen = train.look_rows(None, reference, rollouts, want=train.looks(change.recipe), **given)
    state, key = train.start(params, change), jax.random.key(3)
    return train.learn_rows(state, rollouts, reward, key, seen, reference, settings=change, frozen=frozen)[:2]


def parts_of_both() -> tuple[Params, Params, Params]:
    """The trained part of the policy, that of the reference, and what both share."""
    trained = models.trained(MODEL, FROZEN)
    own, frozen = models.divide(PARAMS, trained)
    return own, models.divide(REFERENCE, trained)[0], frozen


def test_the_state_and_its_optimiser_know_the_trained_part_alone():
    own, other, frozen = parts_of_both()
    state, _ = jax.eval_shape(learned, own, other, ROLLOUTS, REWARD, frozen)
    assert jax.tree.structure(state.params) == jax.tree.structure(own)
    size = sum(x.size for x in jax.tree.leaves(own))
    assert sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim) == 2 * size
    assert size + sum(x.size for x in jax.tree.leaves(frozen)) == sum(x.size for x in jax.tree.leaves(PARAMS))


@pytest.mark.slow
def test_a_step_sees_the_policy_that_is_joined_and_learns_its_part():
    own, other, frozen = parts_of_both()
    call = jax.jit(learned, compiler_options=QUICK)
    state, part = call(own, other, ROLLOUTS, REWARD, frozen)
    _, whole = call(PARAMS, models.join(other, frozen), ROLLOUTS, REWARD, None)
    for name in ("logp_gap/mean", "reward/mean"):
        np.testing.assert_allclose(part[name], whole[name], rtol=1e-6)
    assert 0 < part["grad_norm"] < whole["grad_norm"] and part["kl/ref"] > 0
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), state.params, own)
    assert min(jax.tree.leaves(moved)) > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("of", ["gradient", "curvature"])
def test_what_is_found_of_a_part_is_that_part_of_what_is_found_of_all(of: str):
    own, frozen = models.divide(PARAMS, models.trained(MODEL, FROZEN))
    weight = np.where(ROLLOUTS.mask, np.float32(0.01), np.float32(0))
    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), own)

    def slope(own: Params, frozen: Params | None, direction: Params, rollouts: Rollouts, weight: Array) -> Params:
        def value(own: Params) -> Array:
            stats = models.logprobs(models.join(own, frozen), MODEL, rollouts, temperature=1.0, group_size=G)
            return (weight * stats.logp).sum()

        del direction
        return jax.grad(value)(own)

    def curved(own: Params, frozen: Params | None, direction: Params, rollouts: Rollouts, weight: Array) -> Params:
        given: dict[str, Any] = {"temperature": 1.0, "group_size": G, "frozen": frozen}
        return models.fisher(own, MODEL, rollouts, weight, **given)(direction)

    call = jax.jit({"gradient": slope, "curvature": curved}[of], compiler_options=QUICK)
    part = call(own, frozen, direction, ROLLOUTS, weight)
    whole = call(PARAMS, None, models.join(direction, jax.tree.map(np.zeros_like, frozen)), ROLLOUTS, weight)
    expected, _ = models.divide(whole, models.trained(MODEL, FROZEN))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), part, expected)
    assert min(float(np.abs(x).max()) for x in jax.tree.leaves(part)) > 1e-4
