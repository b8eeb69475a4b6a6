"""How rotations change for long sequences."""

import dataclasses

import pytest

from grpo_jax.models import RopeScaling

LINEAR = RopeScaling(kind="linear", factor=2.0)


def test_an_unknown_rule_and_a_factor_that_shortens_are_refused():
    with pytest.raises(ValueError, match="kind is 'ntk'; allowed are linear, llama3, dynamic, yarn, longrope"):
        dataclasses.replace(LINEAR, kind="ntk")
    with pytest.raises(ValueError, match=r"factor is 0\.5; allowed is 1 or more"):
        dataclasses.replace(LINEAR, factor=0.5)
