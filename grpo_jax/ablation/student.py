"""Means over a few seeds with the interval of Student's t: quantiles worked out, no tables."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over `count` values; the true one lies within `half` of it in 95 of 100 such samples, if they are normal.

    One value says nothing of its spread: `half` is None.
    """

    mean: float
    half: float | None
    count: int


def interval(values: Sequence[float], *, confidence: float = CONFIDENCE) -> Interval | None:
    """Mean and half width t s / sqrt(n) of the finite `values`, s with divisor n - 1; None where there is none."""
    finite = [value for value in values if math.isfinite(value)]
    count = len(finite)
    if not count:
        return None
    mean = math.fsum(finite) / count
    if count == 1:
        return Interval(mean, None, 1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in finite) / (count - 1))
    half = quantile(0.5 + confidence / 2, freedom=count - 1) * deviation / math.sqrt(count)
    return Interval(mean, half, count)


def quantile(share: float, *, freedom: int) -> float:
    """The number below which a variable of Student's t with `freedom` >= 1 degrees lies with probability `share`.

    Found by bisection on its distribution. Raises ValueError outside 0 < share < 1.
    """
    if not 0 < share < 1 or freedom < 1:
        raise ValueError(f"share is {share} and freedom {freedom}; allowed are 0 < share < 1 and freedom >= 1")
    if share < 0.5:
        return -quantile(1 - share, freedom=freedom)
    low, high = 0.0, 1.0
    while cumulative(high, freedom=freedom) < share:
        low, high = high, 2 * high
    while True:
        middle = (low + high) / 2
        if not low < middle < high:
            return middle
        low, high = (middle, high) if cumulative(middle, freedom=freedom) < share else (low, middle)


def cumulative(t: float, *, freedom: int) -> float:
    """Probability that a variable of Student's t lies below `t` >= 0: 1 - I(n / (n + t^2); n / 2, 1 / 2) / 2."""
    return 1 - _beta(freedom / (freedom + t * t), freedom / 2, 0.5) / 2


def _beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I(x; a, b)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(x, a, b) / a
    return 1 - front * _fraction(1 - x, b, a) / b


def _fraction(x: float, a: float, b: float) -> float:
    """The continued fraction of the incomplete beta function, by Lentz's method (Numerical Recipes, section 6.4)."""
    tiny = 1e-300
    c, d = 1.0, 1 / (_apart(1 - (a + b) * x / (a + 1), tiny))
    value = d
    for m in range(1, 1000):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _apart(1 + numerator * d, tiny)
            c = _apart(1 + numerator / c, tiny)
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value


def _apart(x: float, tiny: float) -> float:
    return x if abs(x) > tiny else tiny
