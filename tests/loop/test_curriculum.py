"""A curriculum draws by the rates of a state and moves them by what was sampled."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from grpo_jax import dynamic
from grpo_jax.data import Difficulty
from grpo_jax.data.difficulty import chosen
from grpo_jax.loop.curriculum import Curriculum, first_rates
from grpo_jax.loop.phases import Scored
from grpo_jax.types import Reward
from tests.system.small_run import PARTS, VARIANTS

RUN = VARIANTS["difficulty"]
SETTINGS = Difficulty(decay=0.5)


def memory(*rates: float) -> dict[str, Any]:
    return {
        "difficulty.rate": jnp.asarray(rates, jnp.float32),
        "difficulty.seen": jnp.ones(len(rates), jnp.int32),
        "another": jnp.zeros(3),
    }


def scored(draws: range, accuracy: list[float]) -> Scored:
    """Two completions of each prompt; one whose accuracy is below 0 could not be scored."""
    prompts = PARTS.draw(RUN.seed, np.asarray(draws))
    rollouts = dynamic.blank(prompts, group_size=2, width=3).replace(prompts=prompts)
    values = jnp.asarray(accuracy, jnp.float32)
    return Scored(rollouts, Reward(outcome=values, valid=values >= 0, components={"accuracy": values}))


def test_a_run_begins_with_the_shares_of_the_mixture():
    begun = first_rates(RUN)
    assert begun["difficulty.rate"].tolist() == [0.5, 0.5] and first_rates(VARIANTS["plain"]) == {}
    prompts = Curriculum(RUN, SETTINGS, {name: jnp.asarray(x) for name, x in begun.items()}).draw(np.arange(400))
    assert prompts.draw.tolist() == list(range(400))
    # Parts "short" and "sums" have shares of 0.75 and 0.25: five deviations of sqrt(0.1875 / 400) = 0.0217.
    np.testing.assert_allclose(np.mean(prompts.label["category"]), 0.25, atol=5 * 0.0217)


def test_prompts_follow_the_rates_and_the_rates_what_was_sampled():
    curriculum = Curriculum(RUN, SETTINGS, memory(0.5, 1.0))
    # 0.75 * (0.25 + 0.05) = 0.225 against 0.25 * 0.05 = 0.0125.
    weight = np.array([0.225, 0.0125])
    drawn = curriculum.draw(np.arange(100))
    assert drawn.label["category"].tolist() == chosen(RUN.seed, np.arange(100), weight / weight.sum()).tolist()
    one, other = scored(range(4), [1, 0, 1, 1, 0, 0, -1, 1]), scored(range(4, 6), [1, 1, 0, 0])
    rates, told = curriculum.after([one, other])
    part = np.repeat(np.asarray(PARTS.draw(RUN.seed, np.arange(6)).label["category"]), 2)
    values = np.array([1, 0, 1, 1, 0, 0, -1, 1, 1, 1, 0, 0])
    mean = [values[(part == number) & (values >= 0)].mean() for number in (0, 1)]
    expected = np.array([0.5 * 0.5 + 0.5 * mean[0], 0.5 * 1.0 + 0.5 * mean[1]], np.float32)
    np.testing.assert_array_equal(rates["difficulty.rate"], expected)
    assert rates["difficulty.seen"].tolist() == [2, 2] and told["difficulty/classes"] == 2.0
    # The next step draws with the new rates; what was told is about the old ones.
    again = Curriculum(RUN, SETTINGS, {name: jnp.asarray(x) for name, x in rates.items()})
    np.testing.assert_array_equal(curriculum.draw(np.arange(200)).row, again.draw(np.arange(200)).row)
    entropy = -(weight / weight.sum() * np.log(weight / weight.sum())).sum()
    np.testing.assert_allclose(told["difficulty/entropy"], entropy, rtol=1e-12)


def test_what_counts_as_a_success_is_a_setting():
    half = Curriculum(RUN, dataclasses.replace(SETTINGS, success=0.5, decay=0.0), memory(0.5, 0.5))
    rates, _ = half.after([scored(range(3), [0.5, 0.4, 0.5, 0.4, 0.5, 0.4])])
    seen = np.unique(PARTS.draw(RUN.seed, np.arange(3)).label["category"])
    assert rates["difficulty.rate"][seen].tolist() == [0.5] * len(seen)
