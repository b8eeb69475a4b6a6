"""The loss of a whole recipe on tokens whose ratios are given."""

from collections.abc import Callable

import numpy as np
import pytest

from grpo_jax import objectives as o


@pytest.fixture
def value(laboratory) -> Callable[..., float]:
    """``value(recipe, ratio, reward=)``: loss of rows of one token of one prompt at these ratios, all else equal."""
    draw, records, batch_of = laboratory

    def evaluate(recipe: o.Recipe, ratio: list[float], reward: list[float], *, old_over_behavior: float = 1.0) -> float:
        rows = len(ratio)
        arrays = draw(lengths=(1,) * rows, prompt=(0,) * rows, width=1)
        arrays["logp"] = np.full((rows, 1), -1.0, np.float32)
        arrays["logp_old"] = arrays["logp"] - np.log(np.asarray(ratio, np.float32))[:, None]
        arrays["logp_ref"] = arrays["logp"]
        arrays["behavior"] = arrays["logp_old"] - np.float32(np.log(old_over_behavior))
        arrays["reward"] = np.asarray(reward, np.float32)
        stats, collected = records(arrays, prompts=1)
        return float(o.loss(recipe.parts, stats, batch_of(collected, recipe, stats)))

    return evaluate
