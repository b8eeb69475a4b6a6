"""Importing the package does nothing but set an option without which one version of the compiler adds up wrongly."""

import os
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grpo_jax
from grpo_jax import WRONG_REDUCTIONS, _compile_reductions_rightly

OPTION = "--xla_cpu_experimental_ynn_fusion_type"


@pytest.mark.parametrize(
    ("before", "jaxlib", "after"),
    [
        ({}, "0.10.2", {"XLA_FLAGS": f"{OPTION}=-reduce"}),
        ({"XLA_FLAGS": "--a=1"}, "0.10.2", {"XLA_FLAGS": f"--a=1 {OPTION}=-reduce"}),
        ({"XLA_FLAGS": f"{OPTION}=individual_dot"}, "0.10.2", {"XLA_FLAGS": f"{OPTION}=individual_dot"}),
        ({"XLA_FLAGS": "--a=1"}, "0.11.2", {"XLA_FLAGS": "--a=1"}),
    ],
    ids=["alone", "beside others", "set by hand", "another version"],
)
def test_the_option_is_added_where_it_is_needed_and_known(before: dict, jaxlib: str, after: dict):
    environment = dict(before)
    _compile_reductions_rightly(environment, jaxlib)
    assert environment == after


def test_reductions_of_large_arrays_are_right():
    """The squared norm of row i is i^2, also in the last row; without the option it was 1071645696."""
    assert grpo_jax.STARTED and (version("jaxlib") not in WRONG_REDUCTIONS or OPTION in os.environ["XLA_FLAGS"])
    count = 32_769
    rows = np.zeros((count, 3), np.float32)
    rows[:, 0] = np.arange(count)
    norms = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(rows)
    np.testing.assert_array_equal(norms, np.arange(count, dtype=np.float32) ** 2)
