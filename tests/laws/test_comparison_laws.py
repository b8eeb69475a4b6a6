"""What is compared before training is what training does: gradients of the updates, and the algebra of variants."""

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from grpo_jax import models, objectives
from grpo_jax.advantages import group_leave_one_out
from grpo_jax.types import Params, Rollouts, TokenStats
from grpo_jax.updates import SGD
from tests.laws import tiny

DESCENT = SGD(learning_rate=1.0, clip_norm=0.0)
KEY = jax.random.key(7)
SUMS = 5.0
COINCIDING = {
    "rloo": objectives.rloo(),
    "dr_grpo": objectives.dr_grpo(constant=SUMS),
    "loo": dataclasses.replace(objectives.dr_grpo(constant=SUMS), advantage=group_leave_one_out),
    "grpo": objectives.grpo(beta=0),
}
"""The algebra of `ablation.coincide`: with every ratio 1, the gradient of the first three is one up to a factor."""


def forward(params: Params, rows: Rollouts) -> TokenStats:
    """The model on rows of any number of prompts."""
    return models.logprobs(params, tiny.MODEL, rows, temperature=1.0, want=("entropy",), group_size=tiny.G)


def applied(function: Any, recipes: dict, rollouts: Rollouts, params: Params, reference: Params) -> Any:
    """`function` of the comparison, of batches made as training makes them."""
    reward = tiny.rewards()
    batches = {n: tiny.batch_of(rollouts, reward, tiny.settings(r), reference) for n, r in recipes.items()}
    key = jax.random.split(jax.random.fold_in(KEY, 1), 1)[0]  # as an update draws it
    return function(recipes, batches, forward, params, key=key, group_size=tiny.G)


def stepped(names: tuple[str, ...]) -> tuple[tuple, dict, tiny.Results]:
    """(rows, policy, reference), recipes, and one step of plain gradient descent at rate 1, which is the gradient."""
    params = tiny.policy()
    given = (tiny.rows(), params, tiny.nearby(params))
    step = tiny.program(names=names, optimizer=DESCENT)
    return given, {n: tiny.RECIPES[n] for n in names}, step(params, given[2], given[0], tiny.rewards())


def hold_gradients(names: tuple[str, ...]) -> None:
    given, recipes, steps = stepped(names)
    pulled = jax.jit(partial(applied, objectives.gradients, recipes), compiler_options=tiny.QUICK)(*given)
    for k, name in enumerate(names):
        new, metrics = steps[name]
        size = float(metrics["grad_norm"])
        for (old, later), gradient in zip(tiny.both_leaves(given[1], new), jax.tree.leaves(pulled), strict=True):
            np.testing.assert_allclose(old - later, gradient[k], atol=2e-5 * size + 2e-7, rtol=1e-3, err_msg=name)


@pytest.mark.slow
def test_gradients_are_those_of_the_updates_for_every_way_through_the_training():
    hold_gradients(tuple(tiny.RECIPES))


@pytest.mark.slow
def test_what_training_measures_too_is_the_same_number():
    names = tuple(tiny.RECIPES)
    given, recipes, steps = stepped(names)
    found = jax.jit(partial(applied, objectives.compare, recipes), compiler_options=tiny.QUICK)(*given)
    for k, name in enumerate(names):
        metrics = steps[name][1]
        clip = [metrics[side] for side in ("clip/low", "clip/high") if side in metrics]
        np.testing.assert_allclose(found.norm[k], metrics["grad_norm"], rtol=1e-4, err_msg=name)
        np.testing.assert_allclose(found.loss[k], metrics["loss"], rtol=1e-4, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(found.ess_ratio[k], metrics["ratio/ess"], rtol=1e-4, err_msg=name)
        np.testing.assert_allclose(found.clipped[k], sum(clip) if clip else np.nan, rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_variants_that_algebra_says_coincide_have_cosine_one_on_what_they_sampled():
    params, rows = tiny.policy(), tiny.rows()

    def on_policy(rollouts: Rollouts, params: Params) -> objectives.Comparison:
        logp = forward(params, rollouts).logp
        return applied(objectives.compare, COINCIDING, rollouts.replace(logp=logp, logp_full=logp), params, params)

    found = jax.jit(on_policy, compiler_options=tiny.QUICK)(rows, params)
    np.testing.assert_allclose(found.cosine[:3, :3], 1.0, atol=1e-5)
    assert found.cosine[3, :3].max() < 0.999  # rewards divided by their deviation, rows by their length: another one
    # leave-one-out advantages are G / (G - 1) times the deviations from the mean; dr_grpo divides by the constant
    np.testing.assert_allclose(found.norm[2] / found.norm[1], tiny.G / (tiny.G - 1), rtol=1e-4)
    np.testing.assert_allclose(found.norm[0] / found.norm[2], SUMS, rtol=1e-4)
    np.testing.assert_allclose(found.snr[:3], found.snr[0], rtol=1e-3)  # a factor is in signal and noise alike
    np.testing.assert_allclose(found.ess_ratio, 1.0, rtol=1e-5)
    assert not found.clipped[1:].any()
