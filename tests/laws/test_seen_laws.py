"""What a recipe reads beyond rewards reaches it: through the look at the rows, through the update, and behind it."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import advantages, models, objectives, train
from grpo_jax.sharding import make_mesh, place
from grpo_jax.types import Seen
from tests.laws import tiny
from tests.laws.tiny import MODEL, G, P

PARAMS = tiny.policy()
OTHER = tiny.nearby(PARAMS, distance=0.3)
ROLLOUTS, REWARD = jax.tree.map(jnp.asarray, (tiny.rows(), tiny.rewards()))
MASK = np.asarray(ROLLOUTS.mask)
HOW = {"model": MODEL, "temperature": 1.0, "group_size": G}


def mean(x) -> float:
    return float(np.asarray(x, np.float64)[MASK].mean())


def test_rows_are_looked_at_by_the_policy_that_each_field_is_about():
    want = ("logp_old", "logp_ref", "sum_pi_squared")

    def look(params, reference):
        seen = train.look_rows(params, reference, ROLLOUTS, want=want, **HOW)
        mine = models.logprobs(params, MODEL, ROLLOUTS, temperature=1.0, want=("sum_pi_squared",))
        return seen, mine, models.logprobs(reference, MODEL, ROLLOUTS, temperature=1.0).logp

    seen, mine, other = jax.device_get(jax.jit(look, compiler_options=tiny.QUICK)(PARAMS, OTHER))
    assert seen.value_old is None
    for got, expected in (
        (seen.logp_old, mine.logp),
        (seen.logp_ref, other),
        (seen.sum_pi_squared, mine.sum_pi_squared),
    ):
        np.testing.assert_allclose(got, expected, atol=1e-5)
    assert np.abs(seen.logp_ref - seen.logp_old).max() > 0.01
    # A sum of squares of probabilities of V tokens is between 1 / V and 1, and at least that of the sampled token.
    squares = seen.sum_pi_squared[MASK]
    assert np.all(squares >= np.exp(2 * seen.logp_old[MASK]) - 1e-6) and squares.min() > 1 / tiny.V - 1e-6


def test_a_field_without_its_policy_is_an_error():
    with pytest.raises(ValueError, match="want: got logp_old, logp_ref without the parameters"):
        train.look_rows(None, None, ROLLOUTS, want=("logp_old", "logp_ref"), **HOW)


def test_each_recipe_says_what_it_wants_to_see():
    recipe = objectives.RECIPES["ppo_clip"]
    assert train.looks(recipe) == () and not train.refers(recipe)
    assert train.looks(objectives.grpo()) == ("logp_ref",) and train.refers(objectives.grpo())
    assert train.looks(objectives.decoupled_ppo()) == ("logp_old",)
    assert train.looks(objectives.grpo_exact_kl()) == () and train.refers(objectives.grpo_exact_kl())
    both = partial(advantages.penalized_tokens, advantage=partial(advantages.gae, rewards="token"))
    assert train.looks(dataclasses.replace(recipe, advantage=both)) == ("logp_ref", "value_old")
    baseline = dataclasses.replace(objectives.tis(), advantage=advantages.optimal_token_baseline)
    assert train.looks(baseline) == ("logp_old", "sum_pi_squared")


def test_a_state_begins_with_what_its_advantage_remembers():
    roles = partial(advantages.role_baseline, name="category", roles=3)
    recipe = dataclasses.replace(objectives.RECIPES["ppo_clip"], advantage=roles)
    memory = train.start(PARAMS, tiny.settings(recipe)).memory
    assert {name: x.tolist() for name, x in memory.items()} == {"role_baseline": [0.0, 0.0, 0.0]}


def learn(params, seen, reference, *, recipe, mesh=None, **changes):
    """Parameters, metrics and coefficients behind a step, and what the new policy says of the rows."""
    settings = tiny.settings(recipe, **changes)
    state = train.start(params, settings)
    given = (ROLLOUTS, REWARD, jax.random.key(7), seen, reference)
    state, metrics, _ = train.learn_rows(state, *given, settings=settings, mesh=mesh)
    return state.params, metrics, state.coef


def compiled(recipe, **changes):
    return jax.jit(partial(learn, recipe=recipe, **changes), compiler_options=tiny.QUICK)


def largest(a, b) -> float:
    return max(float(np.abs(x - y).max()) for x, y in tiny.both_leaves(a, b))


@pytest.mark.slow
def test_the_exact_divergence_is_that_from_the_reference():
    step = compiled(objectives.grpo_exact_kl(beta=0.5))

    def measure(params, reference):
        return models.logprobs(params, MODEL, ROLLOUTS, temperature=1.0, want=("kl_full",), reference=reference).kl_full

    params, metrics, _ = step(PARAMS, None, OTHER)
    exact = jax.jit(measure, compiler_options=tiny.QUICK)(PARAMS, OTHER)
    assert mean(exact) > 1e-3
    np.testing.assert_allclose(metrics["kl/ref"], mean(exact), rtol=1e-4)
    alone, nothing, _ = step(PARAMS, None, PARAMS)
    assert abs(float(nothing["kl/ref"])) < 1e-6
    assert largest(params, alone) > 1e-3  # the penalty pulls


@pytest.mark.slow
def test_the_exact_divergence_is_the_same_in_every_split_and_on_a_mesh():
    recipe = objectives.grpo_exact_kl(beta=0.5)
    whole, metrics, _ = compiled(recipe)(PARAMS, None, OTHER)
    split, also, _ = compiled(recipe, microbatches=4)(PARAMS, None, OTHER)
    size = largest(whole, PARAMS)
    assert largest(whole, split) < 2e-5 * size + 2.4e-7
    np.testing.assert_allclose(also["kl/ref"], metrics["kl/ref"], rtol=1e-4)
    mesh = make_mesh({"data": 2, "fsdp": 4})
    laid = [place(tree, mesh, models.axes(MODEL)) for tree in (PARAMS, OTHER)]
    spread, there, _ = compiled(recipe, mesh=mesh, microbatches=2)(laid[0], None, laid[1])
    assert largest(whole, spread) < 2e-5 * size + 2.4e-7
    np.testing.assert_allclose(there["kl/ref"], metrics["kl/ref"], rtol=1e-4)


@pytest.mark.slow
def test_an_adaptive_penalty_follows_the_divergence_behind_the_updates():
    recipe = objectives.ppo_adaptive_kl(target=1e-6, initial=1.0)
    rollouts = jax.jit(partial(train.look_rows, want=("logp_old",), **HOW), compiler_options=tiny.QUICK)
    old = rollouts(PARAMS, None, ROLLOUTS).logp_old
    settings = tiny.settings(recipe)

    def step(params, rows):
        state = train.start(params, settings)
        state, metrics, _ = train.learn_rows(state, rows, REWARD, jax.random.key(0), settings=settings)
        return state, metrics

    state, metrics = jax.jit(step, compiler_options=tiny.QUICK)(PARAMS, ROLLOUTS.replace(logp_full=old))
    delta = np.asarray(rollouts(state.params, None, ROLLOUTS).logp_old - old, np.float64)
    expected = mean(np.exp(delta) - delta - 1)
    assert expected > 1.5e-6
    np.testing.assert_allclose(metrics["kl/old_after"], expected, rtol=1e-2)
    assert abs(float(metrics["kl/old"])) < 1e-6  # before the only update of the step the policy is the old one
    assert float(state.coef["beta_old"]) == 2.0


def test_a_correction_weighs_by_the_trainer_over_the_sampler():
    recipe = objectives.decoupled_ppo(cap=5.0)
    step = compiled(recipe)
    behind = ROLLOUTS.logp
    # The trainer says 0.7 nats more of every token than the sampler did: a weight of e^0.7 = 2.01, below the cap.
    shifted, metrics, _ = step(PARAMS, Seen(logp_old=behind + 0.7), None)
    np.testing.assert_allclose(metrics["mismatch/kl"], -0.7, rtol=1e-5)
    np.testing.assert_allclose(metrics["mismatch/k3_kl"], np.exp(0.7) - 0.7 - 1, rtol=1e-4)
    np.testing.assert_allclose(metrics["mismatch/chi2_token"], np.exp(1.4) - 1, rtol=1e-4)
    # 2 nats more: e^2 = 7.4 is above the cap, no token is left and nothing is learned.
    nothing, _, _ = step(PARAMS, Seen(logp_old=behind + 2.0), None)
    assert largest(nothing, PARAMS) < 1e-6 < largest(shifted, PARAMS)
    with pytest.raises(ValueError, match="logp_old: got None, but the recipe reads it"):
        train.collect(ROLLOUTS, REWARD, recipe=recipe)


def test_the_targets_of_a_critic_stand_in_the_batch():
    recipe = dataclasses.replace(objectives.RECIPES["ppo_clip"], advantage=partial(advantages.gae, lam=1.0))
    values = jnp.full(MASK.shape, 0.25)
    collected = train.collect(ROLLOUTS, REWARD, Seen(value_old=values), recipe=recipe)
    batch = train.make_batch(collected, ROLLOUTS.prompt, jnp.zeros(MASK.shape), recipe)
    # lam = gamma = 1: the target of every token is the reward of its row.
    outcome = np.broadcast_to(np.asarray(REWARD.outcome)[:, None], MASK.shape)
    returns = np.asarray(batch.returns)
    np.testing.assert_allclose(returns[MASK], outcome[MASK], atol=1e-6)
    np.testing.assert_array_equal(batch.value_old, values)
    assert returns.shape == (P * G, tiny.T)
