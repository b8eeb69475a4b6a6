"""Aggregations as weights: hand numbers, and the rows that count. Their laws are held in `tests/testing`."""

import dataclasses
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import objectives as o

RECIPE = o.RECIPES["ppo_clip"]


@pytest.fixture
def batch(laboratory):
    """Rows of 2, 4, 0 and 3 tokens, prompts 0, 0, 3, 3; a fifth row, of 4 tokens, could not be scored."""
    draw, records, batch_of = laboratory
    arrays = draw(lengths=(2, 4, 0, 3, 4), prompt=(0, 0, 3, 3, 3), width=4)
    arrays["valid"][4] = False
    return batch_of(records(arrays, prompts=4)[1], RECIPE)


# weight of a token of the rows with 2, 4 and 3 tokens
EXPECTED = {
    "tokens": (o.token_mean, [1 / 9, 1 / 9, 1 / 9]),
    "rows": (o.sequence_mean_token_mean, [1 / 2 / 4, 1 / 4 / 4, 1 / 3 / 4]),
    "rows with tokens": (partial(o.sequence_mean_token_mean, empty="skip"), [1 / 2 / 3, 1 / 4 / 3, 1 / 3 / 3]),
    "sums": (o.sequence_mean_token_sum, [1 / 4] * 3),
    "sums of rows with tokens": (partial(o.sequence_mean_token_sum, empty="skip"), [1 / 3] * 3),
    "constant": (partial(o.fixed_length, constant=10.0), [1 / 10 / 4] * 3),
    "constant, rows with tokens": (partial(o.fixed_length, constant=10.0, rows="nonempty"), [1 / 10 / 3] * 3),
    "constant alone": (partial(o.fixed_length, constant=10.0, rows="none"), [1 / 10] * 3),
    # 6 tokens of prompt 0, 3 of prompt 3; the other two prompts have no row
    "prompts": (o.prompt_mean, [1 / 6 / 2, 1 / 6 / 2, 1 / 3 / 2]),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_weights_by_hand(batch, name: str):
    aggregation, (first, second, fourth) = EXPECTED[name]
    expected = np.zeros((5, 4))
    expected[0, :2], expected[1, :4], expected[3, :3] = first, second, fourth
    np.testing.assert_allclose(aggregation(batch), expected, rtol=1e-6)


def test_the_table_names_every_aggregation_by_its_function():
    assert set(o.AGGREGATIONS) == {f.__name__ for f in o.AGGREGATIONS.values()}


def test_a_prompt_whose_rows_are_all_empty_is_counted_unless_skipped(laboratory):
    draw, records, batch_of = laboratory
    batch = batch_of(records(draw(lengths=(2, 2, 0, 0), prompt=(0, 0, 1, 1), width=2), prompts=2)[1], RECIPE)
    np.testing.assert_allclose(o.prompt_mean(batch)[0], 1 / 4 / 2)
    np.testing.assert_allclose(o.prompt_mean(batch, empty="skip")[0], 1 / 4)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_mask_that_forgot_the_rows_that_do_not_count_changes_nothing(batch, name: str):
    aggregation = EXPECTED[name][0]
    forgetful = dataclasses.replace(batch, mask=batch.rollouts.mask)
    np.testing.assert_array_equal(aggregation(forgetful), aggregation(batch))


def test_rows_count_by_score_and_label(batch):
    np.testing.assert_array_equal(o.counted(batch), [True, True, True, True, False])
    labels = jnp.asarray([0, -1, 0, 0, 0])
    np.testing.assert_array_equal(o.counted(dataclasses.replace(batch, group=labels)), [True, False, True, True, False])


def test_a_row_counts_if_every_level_has_a_group_for_it_or_some_token_has(batch):
    levels = jnp.asarray([[0, 0, 1, 1, 1], [0, -1, 0, 0, 0]])
    np.testing.assert_array_equal(o.counted(dataclasses.replace(batch, group=levels)), [True, False, True, True, False])
    tokens = jnp.full((5, 4), -1).at[0, 1].set(2)
    np.testing.assert_array_equal(o.counted(dataclasses.replace(batch, group=tokens)), [True] + [False] * 4)


def test_unknown_conventions_are_refused(batch):
    with pytest.raises(ValueError, match="empty is 'drop'; allowed are 'count'"):
        o.sequence_mean_token_mean(batch, empty="drop")
    with pytest.raises(ValueError, match="rows is 'some'; allowed are 'all'"):
        o.fixed_length(batch, constant=1.0, rows="some")
    with pytest.raises(ValueError, match="constant is 0; it must be positive"):
        o.fixed_length(batch, constant=0)


def test_a_restricted_aggregation_has_the_denominators_of_its_tokens(batch):
    """Rows of 2, 4, 0 and 3 tokens; of these the first and the fourth have a positive reward."""
    reward = dataclasses.replace(batch.reward, outcome=jnp.asarray([1.0, 0.0, 2.0, 0.5, 1.0]))
    batch = dataclasses.replace(batch, reward=reward)
    expected = np.zeros((5, 4))
    expected[0, :2] = expected[3, :3] = 1 / 5
    np.testing.assert_allclose(o.restricted(o.token_mean, to=o.positive)(batch), expected, rtol=1e-6)
    by_rows = o.restricted(partial(o.sequence_mean_token_mean, empty="skip"), to=o.positive)
    expected[0, :2], expected[3, :3] = 1 / 2 / 2, 1 / 3 / 2
    np.testing.assert_allclose(by_rows(batch), expected, rtol=1e-6)
    assert "to=grpo_jax.objectives.aggregation.positive" in o.describe(by_rows)
