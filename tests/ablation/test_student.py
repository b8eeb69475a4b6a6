"""Quantiles of Student's t against printed tables and closed forms; intervals by hand."""

import math

import pytest

from grpo_jax.ablation.student import Interval, cumulative, interval, quantile

PRINTED = {
    1: 12.7062,
    2: 4.30265,
    3: 3.18245,
    4: 2.77645,
    5: 2.57058,
    9: 2.26216,
    10: 2.22814,
    19: 2.09302,
    30: 2.04227,
}
"""Two-sided 95 % points as every table of statistics prints them."""


@pytest.mark.parametrize("freedom", sorted(PRINTED))
def test_the_points_of_95_percent_are_those_of_printed_tables(freedom: int):
    assert quantile(0.975, freedom=freedom) == pytest.approx(PRINTED[freedom], rel=3e-6)


@pytest.mark.parametrize("share", [0.5001, 0.6, 0.9, 0.95, 0.995, 0.9999])
def test_one_and_two_degrees_of_freedom_have_closed_forms(share: float):
    assert quantile(share, freedom=1) == pytest.approx(math.tan(math.pi * (share - 0.5)), rel=1e-8)
    centred = 2 * share - 1
    assert quantile(share, freedom=2) == pytest.approx(centred * math.sqrt(2 / (1 - centred**2)), rel=1e-8)


def test_many_degrees_of_freedom_are_nearly_normal_and_the_lower_half_mirrors_the_upper():
    # Phi^-1(0.975) = 1.959964; t is larger by about (z^3 + z) / (4 n) = 2.37e-6 at a million degrees
    assert quantile(0.975, freedom=1_000_000) == pytest.approx(1.959964 + 2.4e-6, abs=1e-6)
    assert quantile(0.025, freedom=4) == -quantile(0.975, freedom=4)
    assert cumulative(0.0, freedom=7) == 0.5


@pytest.mark.parametrize(("share", "freedom"), [(0.0, 3), (1.0, 3), (0.9, 0)])
def test_what_has_no_quantile_is_refused(share: float, freedom: int):
    with pytest.raises(ValueError, match="allowed are 0 < share < 1"):
        quantile(share, freedom=freedom)


def test_an_interval_by_hand():
    # mean 2, deviation 1, so 4.30265 / sqrt(3)
    found = interval([1.0, 2.0, 3.0])
    assert found is not None and found.mean == 2.0 and found.count == 3
    assert found.half == pytest.approx(4.30265 / math.sqrt(3), rel=1e-6)


def test_one_value_has_no_spread_and_none_no_mean():
    assert interval([0.25]) == Interval(0.25, None, 1)
    assert interval([math.nan, 0.25]) == Interval(0.25, None, 1)
    assert interval([]) is None and interval([math.nan]) is None
