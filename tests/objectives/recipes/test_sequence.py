"""Recipes with one ratio a row, by hand."""

import math

import numpy as np
import pytest

from grpo_jax import objectives as o

A = 1 / math.sqrt(2.0)  # rewards 1 and -1: mean 0, sample deviation sqrt 2


def loss(laboratory, recipe: o.Recipe) -> float:
    """Rows of ratios (2, 8) and (0.5, 0.5) with rewards 1 and -1: geometric means 4 and 0.5, products 16 and 0.25."""
    draw, records, batch_of = laboratory
    arrays = draw(lengths=(2, 2), prompt=(0, 0), width=2)
    arrays["logp"] = np.full((2, 2), -1.0, np.float32)
    arrays["logp_old"] = arrays["logp"] - np.log(np.asarray([[2.0, 8.0], [0.5, 0.5]], np.float32))
    arrays["reward"] = np.asarray([1.0, -1.0], np.float32)
    stats, collected = records(arrays, prompts=1)
    return float(o.loss(recipe.parts, stats, batch_of(collected, recipe)))


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (o.gspo(low=0.6, high=2.0), (-3.0 * A + 0.5 * A) / 2),
        (o.gspo(low=0.4, high=9.0), (-4.0 * A + 0.6 * A) / 2),
        (o.gspo_token(low=0.6, high=2.0), (-3.0 * A + 0.5 * A) / 2),
        (o.gspo_token(low=0.6, high=9.0, cap=math.log(3.5)), (-3.5 * A + 0.5 * A) / 2),
        (o.luspo(low=0.6, high=2.0), (-3.0 * A + 0.5 * A) / 2 * 2),  # the sum over two tokens
        (o.rloo_ppo(clip=0.9), (-1.9 * 2 + 0.25 * 2) / 2),  # A = +-2, the reward minus that of the other row
        # logs log 2 and log 8, and log 0.5 twice, clipped at 0.4 on the side of the advantage
        (o.gmpo(clip=0.4), (-A * math.exp(0.4) + A * math.exp(-0.4)) / 2),
        (o.gmpo(clip=1.0), (-A * math.exp((math.log(2.0) + 1.0) / 2) + A * 0.5) / 2),
        # -phi A x with x = -1: phi = e^3 16^2 e^(-48) for the good row, e^2 0.25^3 e^(-0.5) for the bad one
        (o.vespo(), (math.exp(3 - 48) * 256 * A - math.exp(1.5) / 64 * A) / 2),
    ],
)
def test_two_rows(laboratory, recipe: o.Recipe, expected: float):
    np.testing.assert_allclose(loss(laboratory, recipe), expected, rtol=1e-4)
