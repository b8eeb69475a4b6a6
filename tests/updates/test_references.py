"""A reference that moves, against numbers worked out by hand."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import train, updates
from grpo_jax.objectives import grpo
from grpo_jax.updates import Averaged, Fixed, Replaced
from tests.laws import tiny

NO_RULE: Any = "x"
POLICIES = [1.0, 3.0, 4.0, 8.0, 2.0]
"""A parameter at the beginning and behind steps 1 to 4."""


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (Replaced(every=1), [1.0, 3.0, 4.0, 8.0, 2.0]),
        (Replaced(every=2), [1.0, 1.0, 4.0, 4.0, 2.0]),
        # 3/4 of the old and 1/4 of the new: 0.75 + 0.75, then 1.125 + 1, 1.59375 + 2, 2.6953125 + 0.5
        (Averaged(decay=0.75), [1.0, 1.5, 2.125, 3.59375, 3.1953125]),
    ],
    ids=["every step", "every other step", "average"],
)
def test_the_reference_behind_each_step(settings: Any, expected: list[float]):
    reference: Any = updates.begin_reference(settings, {"w": jnp.float32(POLICIES[0])})
    found = []
    for step, value in enumerate(POLICIES):
        if step:
            reference = updates.advance(settings, reference, {"w": jnp.float32(value)}, jnp.int32(step))
        found.append(float(reference["w"]))
    assert found == expected


def test_a_fixed_reference_is_no_part_of_the_state():
    assert updates.begin_reference(Fixed(), {"w": jnp.ones(2)}) is None and not updates.moves(Fixed())
    change = dataclasses.replace(tiny.settings(grpo(beta=0.04)), reference=Replaced(every=2))
    assert train.start(tiny.policy(), tiny.settings(grpo(beta=0.04))).reference is None
    kept = train.start(tiny.policy(), change).reference
    jax.tree.map(np.testing.assert_array_equal, kept, tiny.policy())


def test_what_the_state_keeps_is_a_copy_which_a_step_may_use_up():
    params = {"w": jnp.ones(2)}
    for settings in (Replaced(every=1), Averaged(decay=0.5)):
        kept = updates.begin_reference(settings, params)
        assert kept is not None and kept["w"].unsafe_buffer_pointer() != params["w"].unsafe_buffer_pointer()


def test_an_average_of_few_digits_is_kept_in_float32():
    # In bfloat16 1 + 2^-9 is 1 again, so that a hundredth of a small step would be lost for ever.
    reference = updates.begin_reference(Averaged(decay=0.99), {"w": jnp.ones((), jnp.bfloat16)})
    policy = {"w": jnp.asarray(1.125, jnp.bfloat16)}
    assert reference is not None
    moved = updates.advance(Averaged(decay=0.99), reference, policy, jnp.int32(1))
    assert moved["w"].dtype == jnp.float32 and float(moved["w"]) == pytest.approx(1.00125, abs=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Replaced(every=0), "train.reference.every: got 0, allowed >= 1"),
        (lambda: Averaged(decay=1.0), "train.reference.decay: got 1.0, allowed 0 < decay < 1"),
        (lambda: updates.begin_reference(NO_RULE, {}), "train.reference: got 'x', allowed"),
    ],
    ids=["every", "decay", "kind"],
)
def test_settings_that_are_none_are_refused(make: Any, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
