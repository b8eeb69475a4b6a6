"""How rotations change for long sequences: frequencies by hand, and what is refused."""

import dataclasses
import math

import numpy as np
import pytest

from grpo_jax.models import RopeScaling
from grpo_jax.models.rope import frequencies

LINEAR = RopeScaling(kind="linear", factor=2.0)
LLAMA3 = RopeScaling(kind="llama3", factor=8.0, original_positions=63, low_frequency=0.5, high_frequency=4.0)
YARN = RopeScaling(kind="yarn", factor=4.0, original_positions=63, beta_fast=20.0, beta_slow=0.2)
DYNAMIC = RopeScaling(kind="dynamic", factor=2.0, original_positions=8)
LONGROPE = RopeScaling(
    kind="longrope", factor=4.0, original_positions=16, short_factor=(1.0, 2.0), long_factor=(4.0, 5.0)
)
# Of width 4 with base 100: frequencies 1 and 100^(-1/2). Of width 6 with base 1000: 1, 1000^(-1/3), 1000^(-2/3).
TWO, THREE = (100.0, 4), (1000.0, 6)
TURNS = 63 / (2 * math.pi)  # of the first pair in 63 positions: 10.03; of the others 1.003 and 0.1003
SHARE = (0.1 * TURNS - 0.5) / (4 - 0.5)  # llama3: how far the second one is from being scaled
SLOW = 6 * math.log(TURNS / 0.2) / (2 * math.log(1000))  # yarn: the pair that turns 0.2 times, 1.70

CASES = {
    "none": (TWO, None, [1, 0.1], 1),
    "linear": (TWO, LINEAR, [1 / 2, 0.1 / 2], 1),
    "llama3": (THREE, LLAMA3, [1, (1 - SHARE) * 0.1 / 8 + SHARE * 0.1, 0.01 / 8], 1),
    "dynamic, as trained": (TWO, DYNAMIC, [1, 0.1], 1),
    # base 100 (2 * 16 / 8 - 1)^(4 / 2) = 900
    "dynamic, twice as long": (TWO, dataclasses.replace(DYNAMIC, length=16), [1, 1 / 30], 1),
    # from pair floor(6 ln(10.03 / 20) / (2 ln 1000)) = floor(-0.30), so 0, to ceil(1.70) = 2; between them half each
    "yarn": (THREE, YARN, [1, (0.1 + 0.1 / 4) / 2, 0.01 / 4], 1 + 0.1 * math.log(4)),
    "yarn, not truncated": (
        THREE,
        dataclasses.replace(YARN, truncate=False, attention_factor=1.5),
        [1, 0.1 * (1 - 1 / SLOW) + 0.1 / 4 / SLOW, 0.01 / 4],
        1.5,
    ),
    "yarn, two scales": (
        THREE,
        dataclasses.replace(YARN, mscale=2.0, mscale_all_dim=1.0),
        [1, (0.1 + 0.1 / 4) / 2, 0.01 / 4],
        (1 + 0.2 * math.log(4)) / (1 + 0.1 * math.log(4)),
    ),
    # sqrt(1 + ln 4 / ln 16) = sqrt(1 + 1/2)
    "longrope, short": (TWO, LONGROPE, [1, 0.1 / 2], math.sqrt(1.5)),
    "longrope, long": (TWO, dataclasses.replace(LONGROPE, length=17), [1 / 4, 0.1 / 5], math.sqrt(1.5)),
}


@pytest.mark.parametrize("name", CASES)
def test_frequencies_are_those_worked_out_by_hand(name):
    (theta, size), scaling, expected, factor = CASES[name]
    found, found_factor = frequencies(theta, size, scaling)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found_factor == pytest.approx(factor, rel=1e-12)


def test_an_unknown_rule_and_a_factor_that_shortens_are_refused():
    with pytest.raises(ValueError, match="kind is 'ntk'; allowed are linear, llama3, dynamic, yarn, longrope"):
        dataclasses.replace(LINEAR, kind="ntk")
    with pytest.raises(ValueError, match=r"factor is 0\.5; allowed is 1 or more"):
        dataclasses.replace(LINEAR, factor=0.5)


def test_numbers_that_the_rule_does_not_read_or_cannot_use_are_refused():
    cases = {
        r"beta_fast is 8\.0, which the rule linear does not read": (LINEAR, {"beta_fast": 8.0}),
        "length is 9, which the rule llama3 does not read": (LLAMA3, {"length": 9}),
        "original_positions is 0; allowed for yarn are 2 or more": (YARN, {"original_positions": 0}),
        r"low_frequency is 5\.0 and high_frequency 4\.0": (LLAMA3, {"low_frequency": 5.0}),
        r"beta_slow is 30\.0 and beta_fast 20\.0": (YARN, {"beta_slow": 30.0}),
        r"mscale is -1\.0; allowed is 0 or more": (YARN, {"mscale": -1.0}),
        r"long_factor \(4\.0, 0\.0\); allowed are positive": (LONGROPE, {"long_factor": (4.0, 0.0)}),
    }
    for message, (scaling, change) in cases.items():
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(scaling, **change)


def test_heads_that_a_rule_has_no_frequencies_for_are_refused():
    with pytest.raises(ValueError, match="short_factor has 2 numbers; allowed are 4"):
        LONGROPE.check_width(8)
    with pytest.raises(ValueError, match="head_width is 2; allowed with dynamic scaling are 4 or more"):
        DYNAMIC.check_width(2)


def test_sequences_longer_than_those_that_the_frequencies_are_for_are_refused():
    DYNAMIC.check_length(8)
    dataclasses.replace(DYNAMIC, length=20).check_length(20)
    YARN.check_length(1000)
    with pytest.raises(ValueError, match=r"9 tokens is too long .* at most 8 tokens: set RopeScaling.length"):
        DYNAMIC.check_length(9)
