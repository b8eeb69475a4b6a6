"""The twelve rows have what their module says, and moving them moves nothing else."""

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.testing import rows
from grpo_jax.testing.rows import PROMPTS, ROWS, WIDTH


def test_the_rows_are_of_every_kind():
    given = rows.tiny_collected()
    length = np.asarray(given.rollouts.mask).sum(axis=1)
    np.testing.assert_array_equal(length, [1, 2, 3, 4, 0, 4, 3, 4, 1, 2, 5, 3])  # row 5 has 5 tokens, one not trained
    np.testing.assert_array_equal(given.reward.valid, np.arange(ROWS) != 6)
    sizes = [int(((np.asarray(rows.LABELS) == g) & ~np.asarray(rows.NOWHERE)).sum()) for g in range(4)]
    assert sizes == [4, 3, 1, 2] and set(np.asarray(given.rollouts.prompt).tolist()) == {0, 1, 2, 3, 4}
    assert len({ROWS, PROMPTS, WIDTH}) == 3  # shapes tell what an array is about


def test_a_batch_leaves_out_what_counts_nowhere_and_may_give_every_row_a_token():
    assert not np.asarray(rows.tiny_batch().mask)[list(rows.NOWHERE)].any()
    counted = ~np.asarray(rows.NOWHERE)
    assert np.asarray(rows.tiny_batch().mask).any(axis=1).sum() == counted.sum() - 1
    assert np.asarray(rows.tiny_batch(every_row=True).mask).any(axis=1).sum() == counted.sum()


def test_floats_come_in_the_dtype_that_was_asked_for():
    with jax.enable_x64(True):
        floats = [x for x in jax.tree.leaves(rows.tiny_batch(dtype="float64")) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {x.dtype for x in floats} == {np.dtype("float64")} and len(floats) > 8


def test_another_order_moves_rows_and_leaves_prompts():
    given, order = rows.tiny_collected(), np.roll(np.arange(ROWS), 1)
    moved = rows.in_order(given, order)
    np.testing.assert_array_equal(moved.reward.outcome, np.roll(given.reward.outcome, 1))
    np.testing.assert_array_equal(moved.rollouts.prompts.draw, given.rollouts.prompts.draw)


def test_more_room_is_filled_with_what_counts_nowhere():
    given = rows.tiny_collected()
    wide, more = rows.widened(given), rows.grown(given)
    assert wide.logp_old.shape == (ROWS, WIDTH + 3) and wide.reward.outcome.shape == (ROWS,)
    assert not wide.rollouts.mask[:, WIDTH:].any() and (wide.logp_old[:, WIDTH:] == 1).all()
    assert more.logp_old.shape == (ROWS + 2, WIDTH) and more.rollouts.prompts.draw.shape == (PROMPTS + 1,)


def test_garbage_comes_where_nothing_counts_and_nowhere_else():
    given = rows.tiny_collected()
    bad = rows.spoiled(given)
    np.testing.assert_array_equal(np.isnan(bad.reward.outcome), rows.NOWHERE)
    outside = ~np.asarray(given.rollouts.mask) | np.asarray(rows.NOWHERE)[:, None]
    np.testing.assert_array_equal(np.isnan(bad.logp_old), outside)
    batch = rows.spoiled_batch(rows.tiny_batch())
    np.testing.assert_array_equal(np.isnan(batch.advantage), ~np.asarray(batch.mask))
    assert np.isnan(batch.reward.outcome)[6] and not np.isnan(batch.reward.outcome)[0]
    np.testing.assert_array_equal(np.isfinite(rows.unscored(bad, np.arange(ROWS) < 3).reward.outcome)[:3], True)
    np.testing.assert_array_equal(rows.unscored(given, np.arange(ROWS) < 3).reward.valid[:4], [0, 0, 0, 1])
    np.testing.assert_array_equal(rows.nowhere(ROWS + 1), [*rows.NOWHERE, True])


def test_new_rewards_are_new_in_every_component():
    doubled = rows.rescored(rows.tiny_collected(), lambda x: 2 * x)
    np.testing.assert_allclose(doubled.reward.outcome[:3], [0.2, 1.5, 0.8], rtol=1e-6)
    np.testing.assert_allclose(doubled.reward.components["second"], 0.5)


def test_pairs_of_rows_of_one_group():
    labels, all_three = jnp.asarray([4, -1, 4]), np.ones(3, bool)
    np.testing.assert_array_equal(rows.together(labels, all_three), [[1, 0, 1], [0, 0, 0], [1, 0, 1]])
    np.testing.assert_array_equal(rows.together(labels, np.asarray([True, True, False])), [[1, 0], [0, 0]])
