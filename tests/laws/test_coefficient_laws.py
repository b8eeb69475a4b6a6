"""Coefficients are part of the state: a step reads them, moves them once, and nothing else does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import objectives, train
from grpo_jax.types import Seen
from tests.laws import tiny

RECIPE = objectives.grpo_adaptive_kl(target=0.1, initial=0.5, horizon=10.0, steps=2.0)


@pytest.fixture(scope="module", name="step")
def one_step():
    """``step(coef)``: parameters and coefficients after a step from these coefficients, and the metrics."""
    settings, params = tiny.settings(RECIPE), tiny.policy()
    rollouts, reward = jax.tree.map(jnp.asarray, (tiny.rows(), tiny.rewards()))

    def learn(coef):
        state = train.start(params, settings).replace(coef=coef)
        seen = Seen(logp_ref=rollouts.logp - 0.5)
        state, metrics, batch = train.learn_rows(state, rollouts, reward, jax.random.key(0), seen, settings=settings)
        return state.params, state.coef, batch.coef, metrics["kl/ref"]

    return jax.jit(learn, compiler_options=tiny.QUICK)


def test_a_run_begins_with_the_coefficients_of_its_recipe():
    state = train.start(tiny.policy(), tiny.settings(RECIPE))
    assert {name: float(x) for name, x in state.coef.items()} == {"beta": 0.5}
    assert train.start(tiny.policy(), tiny.settings(objectives.grpo())).coef == {}


def test_a_step_uses_the_present_value_and_leaves_the_next(step):
    params, after, used, measured = jax.device_get(step({"beta": jnp.float32(0.5)}))
    assert used["beta"] == np.float32(0.5)
    error = np.clip(measured / 0.1 - 1, -0.2, 0.2)  # the rule by hand: 2 of 10 samples
    assert abs(error) > 0
    np.testing.assert_allclose(after["beta"], 0.5 * (1 + error * 0.2), rtol=1e-6)
    other, *_ = jax.device_get(step({"beta": jnp.float32(5.0)}))
    assert max(np.abs(a - b).max() for a, b in tiny.both_leaves(params, other)) > 1e-4
