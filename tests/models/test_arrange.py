"""Rows in prompt-major order and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models.arrange import arrange, last_token, prefix, shifted
from grpo_jax.types import Prompts, Rollouts


def test_rows_of_a_prompt_keep_their_order_and_come_back():
    """Prompts 1 0 1 0: prompt 0 has rows 1 and 3, prompt 1 rows 0 and 2."""
    places = arrange(jnp.array([1, 0, 1, 0]), 2)
    np.testing.assert_array_equal(places.row, [[1, 3], [0, 2]])
    np.testing.assert_array_equal(places.slot, [2, 0, 3, 1])
    x = jnp.array([10.0, 11, 12, 13])
    np.testing.assert_array_equal(places.gather(x), [[11, 13], [10, 12]])
    np.testing.assert_array_equal(places.restore(places.gather(x)), x)


def test_a_row_without_a_place_comes_back_as_nan():
    """Two places a prompt: the third row of prompt 0 and the row of prompt 7 have none."""
    places = jax.jit(lambda prompt: arrange(prompt, 3, 2))(jnp.array([0, 0, 7, 0, 2]))
    np.testing.assert_array_equal(places.row, [[0, 1], [5, 5], [4, 5]])
    x = jnp.arange(5.0)
    np.testing.assert_array_equal(places.restore(places.gather(x, fill=-1)), [0, 1, np.nan, np.nan, 4])


def test_sizes_that_cannot_fit_are_refused():
    with pytest.raises(ValueError, match="give the largest number of rows of a prompt as group_size"):
        arrange(jnp.zeros(5, jnp.int32), 2)
    with pytest.raises(ValueError, match=r"5 rows do not fit 2 prompts with group_size=2; .* at least 3"):
        arrange(jnp.zeros(5, jnp.int32), 2, 2)


def test_a_completion_starts_with_the_last_token_of_its_prompt():
    """Prompts 5 6 7 and 8 (padded with 9): rows 1 2 3 and 4 (padded with 9)."""
    one = jnp.zeros(2, jnp.int32)
    prompts = Prompts(tokens=jnp.array([[5, 6, 7], [8, 9, 9]]), length=jnp.array([3, 1]), draw=one, row=one)
    rollouts = Rollouts(
        prompts=prompts,
        prompt=jnp.array([0, 1]),
        sample=one,
        tokens=jnp.array([[1, 2, 3], [4, 9, 9]]),
        length=jnp.array([3, 1]),
        stopped=one == 1,
        mask=jnp.ones((2, 3), bool),
        logp=jnp.zeros((2, 3)),
        logp_full=jnp.zeros((2, 3)),
        version=one,
    )
    tokens, seen = prefix(prompts)
    np.testing.assert_array_equal(tokens, [[5, 6], [0, 0]])
    np.testing.assert_array_equal(seen, [[True, True], [False, False]])
    np.testing.assert_array_equal(last_token(prompts), [7, 8])
    inputs, targets, read = shifted(rollouts, arrange(rollouts.prompt, 2))
    np.testing.assert_array_equal(inputs, [[[7, 1, 2]], [[8, 4, 0]]])
    np.testing.assert_array_equal(targets, [[[1, 2, 3]], [[4, 0, 0]]])
    np.testing.assert_array_equal(read, [[[True, True, True]], [[True, False, False]]])
