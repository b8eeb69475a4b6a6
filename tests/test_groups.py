"""Groupings: which rows are compared. Their laws are held in `tests/testing`."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import groups
from grpo_jax.types import Collected, Prompts, Reward, Rollouts


def collected(
    prompt: list[int], outcome: list[float], valid: list[bool] | None = None, category: list[int] | None = None
) -> Collected:
    rows = len(prompt)
    index = jnp.arange(rows, dtype=jnp.int32)
    zero = jnp.zeros((rows, 2))
    rollouts = Rollouts(
        prompts=Prompts(
            tokens=index[:, None],
            length=jnp.ones_like(index),
            draw=index,
            row=index,
            label={"category": jnp.asarray(category or [7] * rows, jnp.int32)},
        ),
        prompt=jnp.asarray(prompt, jnp.int32),
        sample=index,
        tokens=jnp.zeros((rows, 2), jnp.int32),
        length=jnp.full_like(index, 2),
        stopped=jnp.ones(rows, bool),
        mask=jnp.ones((rows, 2), bool),
        logp=zero,
        logp_full=zero,
        version=index,
    )
    ok = jnp.ones(rows, bool) if valid is None else jnp.asarray(valid)
    return Collected(rollouts=rollouts, reward=Reward(outcome=jnp.asarray(outcome), valid=ok), logp_old=zero)


def in_pairs(collected: Collected, memory):
    return jnp.arange(collected.rollouts.prompt.shape[0], dtype=jnp.int32) // 2, {**memory, "seen": jnp.ones(())}


def test_rows_of_a_prompt_form_a_group():
    labels, memory = groups.by_prompt(collected([3, 0, 3, 1], [0.0] * 4), {"kept": jnp.ones(())})
    np.testing.assert_array_equal(labels, [3, 0, 3, 1])
    assert set(memory) == {"kept"}


@pytest.mark.parametrize("reward", [0.35, 0.95, 1.0, 2e-3, -0.1])
def test_a_group_of_equal_rewards_is_tied_whatever_the_rounding_of_its_mean(reward: float):
    outcome = jnp.full(7, reward, jnp.float32)
    label = jnp.zeros(7, jnp.int32)
    assert groups.tied(outcome, label, num_groups=1, valid=jnp.ones(7, bool)).tolist() == [True]
    nearly = outcome.at[3].set(np.nextafter(np.float32(reward), np.float32(2.0)))
    assert groups.tied(nearly, label, num_groups=1, valid=jnp.ones(7, bool)).tolist() == [False]


def test_rows_of_tied_groups_are_dropped():
    given = collected([0, 1, 0, 1, 2, 0], [0.95, 1.0, 0.95, 0.0, 1.0, 0.95])
    labels, _ = groups.drop_tied(given, {})
    np.testing.assert_array_equal(labels, [-1, 1, -1, 1, -1, -1])


def test_a_row_that_could_not_be_scored_neither_ties_nor_unties():
    # Without row 1 the group of prompt 0 is tied; without row 3 that of prompt 1 still has two different rewards.
    given = collected([0, 0, 0, 1, 1, 1], [1.0, 0.0, 1.0, 1.0, 0.0, 1.0], [True, False, True, False, True, True])
    np.testing.assert_array_equal(groups.drop_tied(given, {})[0], [-1, -1, -1, 1, 1, 1])


def test_dropping_composes_with_any_grouping_and_passes_its_memory_on():
    given = collected([0, 0, 0, 0], [1.0, 1.0, 1.0, 0.0])
    labels, memory = groups.drop_tied(given, {}, grouping=in_pairs)
    np.testing.assert_array_equal(labels, [-1, -1, 1, 1])
    assert set(memory) == {"seen"}
    again, _ = groups.drop_tied(given, {}, grouping=partial(groups.drop_tied, grouping=in_pairs))
    np.testing.assert_array_equal(again, labels)


def test_tied_groups_of_a_component_can_be_dropped_too():
    given = collected([0, 0, 1, 1], [1.0, 2.0, 1.0, 1.0])
    scored = given.replace(reward=given.reward.replace(components={"format": jnp.asarray([1.0, 1.0, 0.0, 1.0])}))
    np.testing.assert_array_equal(groups.drop_tied(scored, {}, component="format")[0], [-1, -1, 1, 1])
    with pytest.raises(ValueError, match=r"drop_tied\.component: got 'length', allowed None and 'format'"):
        groups.drop_tied(scored, {}, component="length")


def test_groups_by_their_mean_reward():
    # means 0, 1/2, 1 and 1/4 of 0.2 and 0.3
    given = collected([0, 0, 1, 1, 2, 2, 3, 3], [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.2, 0.3])
    np.testing.assert_array_equal(groups.drop_outside(given, {})[0], [-1, -1, 1, 1, -1, -1, 3, 3])
    np.testing.assert_array_equal(groups.drop_outside(given, {}, low=0.3)[0], [-1, -1, 1, 1, -1, -1, -1, -1])
    # The float32 mean of three times 0.85 is above 0.85: the bound is exclusive all the same.
    flat = collected([0, 0, 0], [0.85] * 3)
    np.testing.assert_array_equal(groups.drop_outside(flat, {}, low=0.85)[0], [-1, -1, -1])
    with pytest.raises(ValueError, match="got low=1, high=1, allowed low < high"):
        groups.drop_outside(given, {}, low=1, high=1)


def test_rows_that_were_cut_off_are_compared_with_nothing():
    given = collected([0, 0, 1], [0.0] * 3)
    cut = given.replace(rollouts=given.rollouts.replace(stopped=jnp.asarray([True, False, True])))
    np.testing.assert_array_equal(groups.drop_truncated(cut, {})[0], [0, -1, 1])


def test_rows_whose_prompts_share_a_label_form_a_group_whatever_their_prompt():
    # Prompts 0 and 2 have label 900, 1 and 3 have 5, 4 has 0: the groups go by their first prompts 0, 1 and 4.
    given = collected([4, 3, 2, 1, 0, 0], [0.0] * 6, category=[900, 5, 900, 5, 0, 0])
    labels, memory = groups.by_label(given, {"kept": jnp.ones(())}, name="category")
    np.testing.assert_array_equal(labels, [4, 1, 0, 1, 0, 0])
    assert labels.dtype == jnp.int32 and set(memory) == {"kept"}


def test_a_row_without_a_prompt_or_a_label_is_compared_with_nothing():
    given = collected([0, 1, -1, 2, 99], [0.0] * 5, category=[3, -1, 3, 3, 3])
    np.testing.assert_array_equal(groups.by_label(given, {}, name="category")[0], [0, -1, -1, 0, -1])


def test_a_label_that_is_not_there_is_an_error_with_those_that_are():
    with pytest.raises(
        ValueError, match=r"by_label.name: got 'level', allowed category, .*Jsonl\(labels=\('level',\)\)"
    ):
        groups.by_label(collected([0], [0.0]), {}, name="level")
    given = collected([0], [0.0])
    bare = given.rollouts.prompts.replace(label={})
    with pytest.raises(ValueError, match="got 'category', allowed none"):
        groups.by_label(given.replace(rollouts=given.rollouts.replace(prompts=bare)), {}, name="category")


def test_tied_groups_of_a_label_can_be_dropped_too():
    given = collected([0, 1, 2, 3], [1.0, 1.0, 0.0, 1.0], category=[2, 2, 1, 1])
    grouping = partial(groups.by_label, name="category")
    np.testing.assert_array_equal(groups.drop_tied(given, {}, grouping=grouping)[0], [-1, -1, 2, 2])
