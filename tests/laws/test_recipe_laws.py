"""What holds for every recipe of `RECIPES` through a model: one forward pass, and from it K gradients of parameters.

A recipe meets the parameters in the statistics of a forward pass and nowhere else. So the model is differentiated once,
and the slopes of all the losses in its statistics are pulled back together: every recipe in one small program. Laws
are the same program with other arrays, as in `test_update_laws`, which holds a few recipes through the update itself.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from grpo_jax import advantages, models, objectives, train
from grpo_jax.objectives import RECIPES
from grpo_jax.sharding import make_mesh, place, place_rows
from grpo_jax.types import Array, Params, Reward, Rollouts, TokenStats
from grpo_jax.updates.gradient import OF_THE_RECORD
from tests.laws import tiny
from tests.laws.test_update_laws import MORE, ROOMY, in_a_larger_array, shuffled
from tests.laws.tiny import G, P

pytestmark = pytest.mark.slow
"""A minute of compilation: what changes with every change is held by the statistics alone, see tiny.SPINE."""

WANTED = {name for recipe in RECIPES.values() for name in objectives.wants(recipe)} - {*OF_THE_RECORD}
ASKED = tuple(sorted({*WANTED, "entropy"}))
LOOKED = tuple(sorted({name for recipe in RECIPES.values() for name in train.looks(recipe)}))
MODEL = dataclasses.replace(tiny.MODEL, **({"critic": "head"} if "value" in WANTED else {}))
PARAMS = models.init(jax.random.key(0), MODEL)
REFERENCE = tiny.nearby(PARAMS)
ROWS = (tiny.rows(), tiny.rewards())

Slopes = dict[str, tuple[Array, Params]]
"""Recipe -> loss, and its gradient in the parameters."""

PULLED = {
    "grpo": "the divergence from the reference",
    "grpo_k1": "the divergence from the reference",
    "grpo_k2": "the divergence from the reference",
    "grpo_straight_through": "the divergence from the reference",
    "grpo_unbiased_kl": "the divergence from the reference",
    "grpo_adaptive_kl": "the divergence from the reference",
    "grpo_exact_kl": "the divergence from the reference",
    "rloo_kl": "the divergence from the reference is paid out of the reward",
    "off_policy_masking": "the divergence from the reference",
    "ppo_adaptive_kl": "the divergence from the old policy",
    "ppo_critic": "the values of the critic",
    "entropy_bonus": "a bonus for entropy",
    "dppo": "a pull to the sampler",
    "dppo_symmetric": "a pull to the sampler",
    "kl_cov": "the divergence from the old policy",
    "positive_likelihood": "the likelihood of rows with a positive reward",
}
"""Recipes that move the parameters also where all rewards are equal, and what moves them."""


def slopes(
    params: Params,
    reference: Params,
    rollouts: Rollouts,
    reward: Reward,
    *,
    group_size: int = G,
    mesh: Mesh | None = None,
) -> Slopes:
    """Loss and gradient of every recipe at `params`; the rows were sampled by another policy."""
    given: dict[str, Any] = {"temperature": 1.0, "group_size": group_size, "mesh": mesh}

    def forward(params: Params) -> TokenStats:
        other = reference if "kl_full" in WANTED else None
        return models.logprobs(params, MODEL, rollouts, want=ASKED, reference=other, **given)

    stats, back = jax.vjp(forward, params)
    seen = train.look_rows(reference, reference, rollouts, model=MODEL, want=LOOKED, **given)
    if seen.logp_old is not None:  # the sampler is near the old policy: corrections keep some rows
        rollouts = rollouts.replace(logp=seen.logp_old + 1e-3 * rollouts.logp)
    losses, found = [], []
    for recipe in RECIPES.values():
        collected = train.collect(rollouts, reward, seen, recipe=recipe)
        labels, memory = train.label(collected, advantages.initial_memory(recipe.advantage), recipe)
        values, _ = train.advantage(collected, labels, memory, recipe)
        coef = objectives.initial_values(recipe.coefficients)
        batch = train.make_batch(collected, labels, values, recipe, coef)
        for number, prepare in enumerate(recipe.prepare):
            batch = prepare(jax.lax.stop_gradient(stats), batch, jax.random.key(number))
        loss, slope = jax.value_and_grad(objectives.loss, argnums=1)(recipe.parts, stats, batch)
        losses.append(loss)
        found.append(slope)
    # One after the other: a `vmap` over so many is a larger program, not a faster one.
    pulled = jax.lax.map(back, jax.tree.map(lambda *x: jnp.stack(x), *found))[0]
    return {name: (losses[k], jax.tree.map(lambda x, k=k: x[k], pulled)) for k, name in enumerate(RECIPES)}


@pytest.fixture(scope="module", name="exact")
def program_for_arrays_of_the_size_needed():
    return jax.jit(slopes, compiler_options=tiny.QUICK)


@pytest.fixture(scope="module", name="usual")
def slopes_of_the_usual_rows(exact) -> Slopes:
    return jax.device_get(exact(PARAMS, REFERENCE, *ROWS))


@pytest.fixture(scope="module", name="roomy")
def program_for_arrays_with_room():
    return jax.jit(partial(slopes, group_size=MORE["group"]), compiler_options=tiny.QUICK)


def size(gradient: Params) -> float:
    return max(float(np.abs(x).max()) for x in jax.tree.leaves(gradient))


def assert_same(a: Slopes, b: Slopes, *, rtol: float = 2e-5) -> None:
    assert a.keys() == b.keys()
    for name, (loss, gradient) in a.items():
        np.testing.assert_allclose(loss, b[name][0], rtol=rtol, atol=1e-6, err_msg=name)
        for x, y in tiny.both_leaves(gradient, b[name][1]):
            np.testing.assert_allclose(x, y, rtol=0, atol=rtol * size(gradient) + 1e-9, err_msg=name)


def test_every_recipe_moves_the_parameters(usual):
    for name, (loss, gradient) in usual.items():
        assert np.isfinite(loss) and np.isfinite(size(gradient)), name
        assert size(gradient) > 1e-5, name


@pytest.mark.parametrize("case", ROOMY)
def test_what_was_never_sampled_counts_nowhere(roomy, usual, case):
    assert_same(usual, jax.device_get(roomy(PARAMS, REFERENCE, *ROOMY[case])))


def test_the_comparison_sees_a_row_that_counts(roomy, usual):
    rollouts, reward = in_a_larger_array(garbage=False)
    reward.valid[G] = True  # a fifth row of the first prompt, with reward 0
    results = jax.device_get(roomy(PARAMS, REFERENCE, rollouts, reward))
    for name in RECIPES:
        with pytest.raises(AssertionError):
            assert_same({name: usual[name]}, {name: results[name]})


def test_rows_in_another_order_give_the_same_gradient(exact, usual):
    assert_same(usual, jax.device_get(exact(PARAMS, REFERENCE, *shuffled(*ROWS, prompts=True))))


@pytest.mark.parametrize("value", [0.35, 0.95])
def test_equal_rewards_pull_no_parameter(exact, value: float):
    rollouts, reward = ROWS
    flat = reward.replace(outcome=np.full(P * G, value, np.float32))
    still = {name: size(g) for name, (_, g) in jax.device_get(exact(PARAMS, REFERENCE, rollouts, flat)).items()}
    assert {name for name, largest in still.items() if largest} == PULLED.keys() & RECIPES.keys()


@pytest.mark.parametrize("nats", [-200.0, 200.0])
def test_extreme_ratios_stay_finite(exact, nats: float):
    rollouts, reward = ROWS
    far = rollouts.replace(logp_full=rollouts.logp_full + np.float32(nats))
    for name, (loss, gradient) in jax.device_get(exact(PARAMS, REFERENCE, far, reward)).items():
        assert np.isfinite(loss) and np.isfinite(size(gradient)), name


def test_nothing_that_could_be_scored_pulls_no_parameter(exact):
    rollouts, reward = ROWS
    nothing = reward.replace(outcome=np.full(P * G, np.nan, np.float32), valid=np.zeros(P * G, bool))
    for name, (loss, gradient) in jax.device_get(exact(PARAMS, REFERENCE, rollouts, nothing)).items():
        assert loss == 0.0 and size(gradient) == 0.0, name


def test_eight_devices_give_the_gradients_of_one(usual):
    mesh = make_mesh({"data": 2, "fsdp": 4})
    policies = place((PARAMS, REFERENCE), mesh, (models.axes(MODEL),) * 2)
    program = jax.jit(partial(slopes, mesh=mesh), compiler_options=tiny.QUICK)
    assert_same(usual, jax.device_get(program(*policies, *place_rows(ROWS, mesh))))
