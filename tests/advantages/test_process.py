"""Process supervision: the worked example by hand, a float64 twin with loops, exact zeros."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import advantages as a
from grpo_jax.testing.rows import tiny_collected, tiny_labels

STEPS = ({2: 0.2, 5: 0.9}, {4: 0.7}, {0: 0.1, 3: 0.4, 6: 1.0})
"""Token that ends a step -> its reward, for three rows of one group."""


def example(steps=STEPS, width: int = 8) -> dict:
    reward, ends = np.full((len(steps), width), np.nan, np.float32), np.zeros((len(steps), width), bool)
    for row, found in enumerate(steps):
        for token, value in found.items():
            reward[row, token], ends[row, token] = value, True
    return {
        "reward": jnp.asarray(reward),
        "ends": jnp.asarray(ends),
        "mask": jnp.ones(ends.shape, bool),
        "group": jnp.zeros(len(steps), jnp.int32),
        "num_groups": len(steps),
        "valid": jnp.ones(len(steps), bool),
    }


@pytest.mark.parametrize(
    ("std", "numbers"),
    [
        # six rewards: mean 3.3 / 6 = 0.55; squares .1225 + .1225 + .0225 + .2025 + .0225 + .2025 = 0.695;
        # sample deviation sqrt(0.695 / 5) = 0.372827, population sqrt(0.695 / 6) = 0.340343.
        # Row 0: (.9 - .55) / s from token 3 on, and (.2 - .55) / s more up to token 2, which is 0.
        ("sample", (0.938773, 0.402331, -0.402331, 0.804663, 1.206994)),
        ("population", (1.028374, 0.440732, -0.440732, 0.881464, 1.322196)),
        ("none", (0.35, 0.15, -0.15, 0.30, 0.45)),
    ],
)
def test_the_worked_example(std: str, numbers: tuple[float, ...]):
    first, second, low, middle, high = numbers
    expected = [
        [0, 0, 0, first, first, first, 0, 0],
        [second] * 5 + [0] * 3,
        [low, middle, middle, middle, high, high, high, 0],
    ]
    np.testing.assert_allclose(a.step_advantages(**example(), std=std, eps=0.0), expected, atol=2e-6)


def test_a_single_step_and_equal_steps():
    np.testing.assert_array_equal(a.step_advantages(**example(({1: 0.7},))), 0.0)
    raw = a.step_advantages(**example(({1: 0.75},)), single_step="raw", eps=0.5)
    np.testing.assert_allclose(raw, [[0.5, 0.5, 0, 0, 0, 0, 0, 0]])
    tied = example(({0: 0.35, 1: 0.35, 4: 0.35}, {2: 0.35, 3: 0.35}, {0: 0.35, 7: 0.35}))
    np.testing.assert_array_equal(a.step_advantages(**tied, eps=0.0), 0.0)


def twin(rows, *, ddof: int, eps: float) -> np.ndarray:
    ends = rows["ends"] & rows["mask"]
    group = np.where(rows["valid"], rows["group"], -1)
    found = np.zeros(ends.shape)
    for g in set(group.tolist()) - {-1}:
        members = np.flatnonzero(group == g)
        q = rows["token"][members][ends[members]]
        if len(q) < 2:
            continue
        for i in members:
            for t in np.flatnonzero(rows["mask"][i]):
                later = [e for e in np.flatnonzero(ends[i]) if e >= t]
                found[i, t] = sum((rows["token"][i, e] - q.mean()) / (q.std(ddof=ddof) + eps) for e in later)
    return found


def test_the_kernel_equals_the_definition_in_float64(rows, doubled, compiled):
    kernel = partial(a.step_advantages, doubled["token"], doubled["ends"], doubled["mask"], doubled["group"])
    kernel = partial(kernel, num_groups=40, valid=doubled["valid"], eps=0.01)
    got = compiled(sample=kernel, population=partial(kernel, std="population"))
    np.testing.assert_allclose(got["sample"], twin(rows, ddof=1, eps=0.01), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(got["population"], twin(rows, ddof=0, eps=0.01), rtol=1e-9, atol=1e-12)


def test_the_strategy_is_its_kernel():
    collected, labels = tiny_collected(), tiny_labels()
    reward = collected.reward
    assert reward.token is not None and reward.step_end is not None
    expected = a.step_advantages(
        reward.token, reward.step_end, collected.rollouts.mask, labels, num_groups=12, valid=reward.valid, eps=0.1
    )
    np.testing.assert_array_equal(a.process_supervision(collected, labels, {}, eps=0.1)[0], expected)
