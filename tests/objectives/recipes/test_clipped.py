"""What a hyper-parameter of a recipe reaches, and the loss of whole recipes by hand."""

import numpy as np
import pytest

from grpo_jax import objectives as o

# Rewards 1 and -1 of one prompt: mean 0, sample deviation sqrt 2, advantages +-1/sqrt 2.
A = 1 / np.sqrt(2.0)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (o.ppo_group(), (-1.2 * A + 4.0 * A) / 2),  # min(2, 1.2) for the good token, 4 for the bad one
        (o.ppo_dual_clip(dual=3.0), (-1.2 * A + 3.0 * A) / 2),
        (o.grpo_two_sided(dual=3.5), (-1.2 * A + 3.5 * A) / 2),
        (o.dapo(), (-1.28 * A + 4.0 * A) / 2),
        (o.dapo_by_prompt(), (-1.28 * A + 4.0 * A) / 2),
        (o.cispo(high=2.0), (-2.0 * A * -1.0 + 3.0 * A * -1.0) / 2),  # -min(r, 3) A x with x = -1
        (o.cispo_capped(cap=2.5), (-2.0 * A * -1.0 + 2.5 * A * -1.0) / 2),
        (o.grpo(beta=0), (-1.2 * A + 4.0 * A) / 2),
        (o.dr_grpo(constant=4.0), (-1.2 + 4.0) / 4 / 2),  # advantages +-1, a constant of 4 for one token
        (o.rloo(), (2.0 - 2.0) / 2),  # -A x with A = +-2, the reward minus that of the other row
    ],
)
def test_two_tokens_at_ratios_two_and_four(value, recipe: o.Recipe, expected: float):
    np.testing.assert_allclose(value(recipe, [2.0, 4.0], [1.0, -1.0]), expected, rtol=1e-4, atol=1e-6)


def test_a_hyper_parameter_reaches_its_place():
    assert "dual=2.5" in o.describe(o.ppo_dual_clip(dual=2.5)) and "dual_form='bound'" in o.describe(o.ppo_dual_clip())
    assert "dual_form='cap_ratio'" in o.describe(o.grpo_two_sided())
    assert "bounds='absolute'" in o.describe(o.cispo_capped()) and "scope='batch'" in o.describe(o.cispo_capped())
    assert "tau_negative=2.0" in o.describe(o.sapo(tau_negative=2.0))


def test_the_mean_by_prompt_differs_from_the_pooled_one_where_prompts_have_different_lengths(laboratory):
    draw, records, batch_of = laboratory
    stats, collected = records(draw())
    losses = [o.loss(recipe.parts, stats, batch_of(collected, recipe)) for recipe in (o.dapo(), o.dapo_by_prompt())]
    assert abs(float(losses[0] - losses[1])) > 1e-3
