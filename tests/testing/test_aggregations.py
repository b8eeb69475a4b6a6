"""`check_aggregation` accepts every aggregation of the library, and names the law that a bad one breaks."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.core import Tracer

from grpo_jax.objectives import (
    AGGREGATIONS,
    RECIPES,
    counted,
    fixed_length,
    prompt_mean,
    sequence_mean_token_mean,
    sequence_mean_token_sum,
    token_mean,
)
from grpo_jax.testing import check_aggregation
from grpo_jax.types import Array, Batch

SETTINGS: dict[str, dict[str, Any]] = {"fixed_length": {"constant": 8.0}}
TOTALS = {"token_mean": 1.0, "sequence_mean_token_mean": 1.0, "prompt_mean": 1.0}
OTHERS = {
    "rows with tokens": (partial(sequence_mean_token_mean, empty="skip"), 1.0),
    "sums of rows with tokens": (partial(sequence_mean_token_sum, empty="skip"), None),
    "constant, rows with tokens": (partial(fixed_length, constant=3.0, rows="nonempty"), None),
    "constant alone": (partial(fixed_length, constant=3.0, rows="none"), None),
    "prompts with tokens": (partial(prompt_mean, empty="skip"), 1.0),
}


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_the_aggregations_of_the_library_obey_the_laws(name: str):
    check_aggregation(partial(AGGREGATIONS[name], **SETTINGS.get(name, {})), total=TOTALS.get(name))


@pytest.mark.parametrize("name", OTHERS)
def test_their_other_conventions_obey_the_laws(name: str):
    aggregation, total = OTHERS[name]
    check_aggregation(aggregation, total=total)


def test_those_of_the_recipes_obey_the_laws():
    for aggregation in {part.aggregation for recipe in RECIPES.values() for part in recipe.parts}:
        check_aggregation(aggregation)


def flat(batch: Batch) -> Array:
    return token_mean(batch).sum(axis=1)


def bools(batch: Batch) -> Array:
    return batch.mask


def single(batch: Batch) -> Array:
    return token_mean(batch).astype(jnp.float32)


def signed(batch: Batch) -> Array:
    return token_mean(batch) * jnp.where(batch.group == 1, -1.0, 1.0).astype(batch.advantage.dtype)[:, None]


def everywhere(batch: Batch) -> Array:
    return jnp.ones_like(batch.advantage) / batch.mask.size


def nothing(batch: Batch) -> Array:
    return jnp.zeros_like(batch.advantage)


def knows_whether_it_is_compiled(batch: Batch) -> Array:
    return token_mean(batch) * (2.0 if isinstance(batch.mask, Tracer) else 1.0)


def branches(batch: Batch) -> Array:
    return token_mean(batch) if batch.mask.any() else jnp.zeros_like(batch.advantage)


def surprise(batch: Batch) -> Array:
    """Weighs by the log-probability, which moves with the policy."""
    return token_mean(batch) * jnp.where(batch.mask, jnp.exp(batch.logp_old), 0.0)


def straight_through(batch: Batch) -> Array:
    """The value of a mean with the gradient of another function."""
    logp = jnp.where(batch.mask, batch.rollouts.logp, 0.0)
    return token_mean(batch) + jnp.where(batch.mask, logp - jax.lax.stop_gradient(logp), 0.0)


def by_place(batch: Batch) -> Array:
    weight = token_mean(batch)
    return weight * jnp.arange(weight.shape[0], dtype=weight.dtype)[:, None]


def multiplied(batch: Batch) -> Array:
    return token_mean(batch) * (1.0 + jnp.abs(batch.advantage))


def by_width(batch: Batch) -> Array:
    return batch.mask.astype(batch.advantage.dtype) / batch.mask.shape[1]


def by_rows(batch: Batch) -> Array:
    return batch.mask.astype(batch.advantage.dtype) / batch.mask.shape[0]


def nan_without_tokens(batch: Batch) -> Array:
    scored = (batch.mask & counted(batch)[:, None]).astype(batch.advantage.dtype)
    return scored / scored.sum()


BROKEN: dict[str, tuple[Any, str]] = {
    "row": (flat, r"flat returns shape \(12,\) for rows and tokens \(12, 5\)"),
    "bool": (bools, "bools returns bool for a batch in float32"),
    "float32": (single, "single returns float32 for a batch in float64"),
    "negative": (signed, "signed gives a weight that is negative or not finite"),
    "outside the mask": (everywhere, r"everywhere gives weight outside Batch\.mask"),
    "nothing": (nothing, "nothing gives no token a weight"),
    "not the same compiled": (knows_whether_it_is_compiled, "gives other weights when it is compiled"),
    "cannot be compiled": (branches, "branches cannot be compiled"),
    "policy": (surprise, "surprise changes with log-probabilities"),
    "gradient": (straight_through, "straight_through changes with log-probabilities"),
    "order": (by_place, "by_place depends on the order of the rows"),
    "garbage": (multiplied, r"multiplied changes with nan outside Batch\.mask"),
    "width": (by_width, "by_width depends on the width of the padding"),
    "more rows": (by_rows, "by_rows changes with further rows that could not be scored"),
    "no tokens": (nan_without_tokens, "nan_without_tokens does not give zeros for a batch without tokens"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_aggregation_that_breaks_a_law_is_told_which(name: str):
    aggregation, law = BROKEN[name]
    with pytest.raises(AssertionError, match=law):
        check_aggregation(aggregation)


def test_a_sum_that_is_not_the_declared_one_is_told():
    # 5 prompts with a group of 10 counted rows: every row weighs its tokens / 10
    with pytest.raises(AssertionError, match=r"sequence_mean_token_sum sums to .* where 1 was declared"):
        check_aggregation(sequence_mean_token_sum, total=1.0)
