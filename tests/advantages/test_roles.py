"""Baselines of roles: hand numbers of both ways of moving, a float64 twin with a loop, what a step hands on."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import advantages as a
from grpo_jax.testing import check_advantage
from grpo_jax.testing.rows import tiny_collected, tiny_labels

REWARD = jnp.asarray([1.0, -1.0, 3.0, jnp.nan])
ROLE = jnp.asarray([0, 1, 0, 0], jnp.int32)
VALID = jnp.asarray([True, True, True, False])


def test_rows_are_scored_by_the_baseline_of_the_step_before():
    baseline = jnp.asarray([0.5, 2.0, 7.0])
    value, after = a.above_role(REWARD, ROLE, baseline, valid=VALID, decay=0.75)
    np.testing.assert_allclose(value, [0.5, -3, 2.5, 0])
    # 3/4 * 1/2 + 1/4 * (1 + 3) / 2 = 0.875; 3/4 * 2 - 1/4 = 1.25; role 2 did not play
    np.testing.assert_allclose(after, [0.875, 1.25, 7.0])


def test_row_by_row_the_baseline_moves_between_rows():
    value, after = a.above_role_row_by_row(REWARD, ROLE, jnp.asarray([0.5, 2.0]), valid=VALID, decay=0.5)
    # role 0: 1 - 0.5, then 0.5 * 0.5 + 0.5 = 0.75, 3 - 0.75, then 0.375 + 1.5; role 1: -1 - 2, then 1 - 0.5
    np.testing.assert_allclose(value, [0.5, -3, 2.25, 0])
    np.testing.assert_allclose(after, [1.875, 0.5])


def test_row_by_row_equals_a_loop_in_float64(rows, doubled, compiled):
    role = rows["group"] % 3
    baseline = np.asarray([0.3, -0.2, 0.1])
    kernel = partial(a.above_role_row_by_row, doubled["reward"], jnp.asarray(role, jnp.int32), jnp.asarray(baseline))
    member = rows["valid"] & (rows["group"] >= 0)
    value, after = compiled(both=partial(kernel, valid=jnp.asarray(member), decay=0.9))["both"]
    moving, expected = baseline.copy(), np.zeros(40)
    for i in np.flatnonzero(member):
        expected[i] = rows["reward"][i] - moving[role[i]]
        moving[role[i]] = 0.9 * moving[role[i]] + 0.1 * rows["reward"][i]
    np.testing.assert_allclose(value, expected, atol=1e-12)
    np.testing.assert_allclose(after, moving, atol=1e-12)


def test_a_step_hands_its_baselines_to_the_next():
    collected, labels = tiny_collected(labels=("category", "role")), tiny_labels()
    strategy = partial(a.role_baseline, roles=8, decay=0.5)
    memory = {**a.initial_memory(strategy), "kept": jnp.ones(())}
    first, memory = strategy(collected, labels, memory)
    second, later = strategy(collected, labels, memory)
    assert set(later) == {"kept", "role_baseline"}
    # Roles of the prompts: 7, 3, 7, none, 5, 3. Prompts 0 and 2 play role 7: 0.1, 2.0, 0.4, 1.0 and -0.5, mean 0.6;
    # prompt 1 plays role 3: 0.75, -3.0 and 0.25, mean -2 / 3. The baselines of step 2 are half of these.
    prompt, mask = np.asarray(collected.rollouts.prompt), np.asarray(collected.rollouts.mask)
    moved = np.select([np.isin(prompt, (0, 2)), prompt == 1], [0.3, -1 / 3], 0.0)
    moved[[6, 7]] = 0.0  # not scored; in no group
    np.testing.assert_allclose(first - second, np.where(mask, moved[:, None], 0.0), atol=1e-6)
    np.testing.assert_allclose(memory["role_baseline"], [0, 0, 0, -1 / 3, 0, 0, 0, 0.3], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("decay", [0.95, 0.5])
def test_moving_row_by_row_goes_by_draws_and_samples_and_obeys_the_laws(decay: float):
    strategy = partial(a.role_baseline, update="row", roles=8, decay=decay)
    given = {"memory": a.initial_memory(strategy), "labels": ("role",)}
    check_advantage(strategy, local=False, ties=False, shifts=False, **given)


def test_a_role_that_does_not_exist_counts_nowhere():
    value, after = a.above_role(REWARD, jnp.asarray([0, 5, -1, 0], jnp.int32), jnp.zeros(1), valid=VALID)
    np.testing.assert_allclose(value, [1, 0, 0, 0])
    np.testing.assert_allclose(after, [0.05], rtol=1e-5)


def test_a_missing_label_or_memory_is_refused_with_what_to_do():
    collected, labels = tiny_collected(labels=("category", "role")), tiny_labels()
    with pytest.raises(ValueError, match=r"role_baseline\.name: got 'seat', allowed category, role"):
        a.role_baseline(collected, labels, a.role_memory(), name="seat")
    with pytest.raises(ValueError, match=r"got nothing, allowed f32\[2\]: begin a run with advantages\.initial_memory"):
        a.role_baseline(collected, labels, {})
    with pytest.raises(ValueError, match=r"got shape \(2,\), allowed f32\[3\]"):
        a.role_baseline(collected, labels, a.role_memory(), roles=3)
    with pytest.raises(ValueError, match="roles: got 0"):
        a.role_memory(roles=0)
    with pytest.raises(ValueError, match="update is 'never'"):
        a.role_baseline(collected, labels, a.role_memory(), update="never")
