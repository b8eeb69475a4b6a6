"""What an evaluation may claim: pass@1, unbiased pass@k and maj@k, each with an interval over prompts.

Arrays are numpy: ``correct`` is bool[P, n], n samples of each of P prompts. Prompts are what is drawn independently, so
intervals resample prompts, never samples; with one sample a prompt they are Wilson's. A sample that could not be scored
(``valid`` False) is as if it had not been drawn; a prompt with fewer than k others is not counted for that k.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from fractions import Fraction
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
RESAMPLES = 2000
_BLOCK = 1 << 22


class Estimate(NamedTuple):
    """A mean over prompts with the bounds of its confidence interval."""

    value: float
    low: float
    high: float
    n: int  # prompts counted


def pass_at_k(correct: np.ndarray, k: int, *, valid: np.ndarray | None = None) -> np.ndarray:
    """f64[P], the chance that at least one of k of the samples, picked without replacement, is correct.

    ``1 - C(n - c, k) / C(n, k)`` with c correct of n: the unbiased estimator of Chen et al. 2021 (arXiv 2107.03374),
    whereas ``1 - (1 - c/n)^k`` is too low. NaN for a prompt with fewer than k valid samples.
    """
    correct, valid = _checked(correct, k, valid)
    n = valid.sum(axis=1)
    wrong = n - (correct & valid).sum(axis=1)
    missed = np.ones(len(n))
    for j in range(k):
        missed = missed * np.maximum(wrong - j, 0) / np.maximum(n - j, 1)
    return np.where(n >= k, 1.0 - missed, np.nan)


def maj_at_k(
    answers: Sequence[Sequence[Hashable | None]], correct: np.ndarray, k: int, *, valid: np.ndarray | None = None
) -> np.ndarray:
    """f64[P], the chance that the most frequent answer among k of the samples, picked without replacement, is correct.

    Exact over all C(n, k) subsets, therefore unbiased. Answers that tie share the win equally, as if one of them were
    picked at random. ``answers[p][i]`` is any hashable value; None (no readable answer) has no vote, and where nobody
    votes the result is wrong. NaN for a prompt with fewer than k valid samples. Equal answers to one prompt must be
    equally correct, else ValueError.
    """
    correct, valid = _checked(correct, k, valid)
    shape = (len(answers), {len(row) for row in answers})
    if shape != (correct.shape[0], {correct.shape[1]}):
        raise ValueError(
            f"answers: got {shape[0]} rows of lengths {shape[1]}; allowed is one entry per {correct.shape}"
        )
    result = np.full(len(answers), np.nan)
    for p, row in enumerate(answers):
        if valid[p].sum() < k:
            continue
        kept = [(answer, bool(right)) for answer, right, use in zip(row, correct[p], valid[p], strict=True) if use]
        votes = Counter(answer for answer, _ in kept if answer is not None)
        right_answers = {answer for answer, right in kept if right and answer is not None}
        mixed = right_answers & {answer for answer, right in kept if not right}
        if mixed:
            raise ValueError(
                f"answers: prompt {p} has {next(iter(mixed))!r} both correct and wrong; allowed is one verdict an"
                " answer; pass answers in the form that was compared"
            )
        silent = len(kept) - sum(votes.values())
        result[p] = sum(
            _chance_to_win(count, tuple(sorted(c for other, c in votes.items() if other != answer)), silent, k)
            for answer, count in votes.items()
            if answer in right_answers
        )
    return result


def wilson(successes: int, n: int, *, level: float = LEVEL) -> Estimate:
    """A proportion of n independent trials with Wilson's score interval (1927), which is sound near 0 and 1 too.

    ``(p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)``.
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"successes: got {successes} of n = {n}; allowed are 0 to n with n at least 1")
    return _wilson(successes / n, n, level)


def _wilson(p: float, n: int, level: float) -> Estimate:
    z = _quantile(level)
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # Rounding must not push a bound past the value: at p = 0 the lower bound is exactly 0, at p = 1 the upper is 1.
    return Estimate(p, min(p, max(0.0, (centre - half) / scale)), max(p, min(1.0, (centre + half) / scale)), n)


def bootstrap(values: np.ndarray, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Mean of one value a prompt (f64[P], NaN entries left out), with a percentile interval over resampled prompts.

    Deterministic in `seed`. With no value left: an Estimate of NaN with n = 0.
    """
    z = np.asarray(values, np.float64)
    if z.ndim != 1 or not 0 < level < 1 or resamples < 1:
        raise ValueError(
            f"bootstrap: got values of shape {z.shape}, level {level}, {resamples} resamples; allowed are one axis, a"
            " level between 0 and 1, at least 1 resample"
        )
    z = z[~np.isnan(z)]
    n = len(z)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK // n)
    means = [
        z[generator.integers(0, n, (min(block, resamples - start), n))].mean(axis=1)
        for start in range(0, resamples, block)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    value = float(z.mean())
    return Estimate(value, min(value, float(low)), max(value, float(high)), n)


def share(values: np.ndarray, *, level: float = LEVEL, seed: int = 0) -> Estimate:
    """Mean of one value in [0, 1] a prompt (f64[P], NaN entries left out) with the interval of `bootstrap`.

    Where all values are equal resampling sees no spread and its interval would be a point, however few the prompts.
    Then it is Wilson's for as many trials as prompts, which is wide enough: no variable in [0, 1] of the same mean
    varies more than a coin.
    """
    found = bootstrap(values, level=level, seed=seed)
    flat = found.n > 0 and found.low == found.high
    return _wilson(found.value, found.n, level) if flat else found


def accuracy(correct: np.ndarray, *, valid: np.ndarray | None = None, level: float = LEVEL, seed: int = 0) -> Estimate:
    """pass@1: mean over prompts of the share of correct samples. Wilson's interval for n = 1, else the bootstrap."""
    correct, valid = _checked(correct, 1, valid)
    counted = int(valid.any(axis=1).sum())
    if correct.shape[1] == 1 and counted:
        return wilson(int((correct & valid).sum()), counted, level=level)
    return share(pass_at_k(correct, 1, valid=valid), level=level, seed=seed)


def summarize(
    correct: np.ndarray,
    ks: Sequence[int],
    *,
    answers: Sequence[Sequence[Hashable | None]] | None = None,
    valid: np.ndarray | None = None,
    level: float = LEVEL,
    seed: int = 0,
) -> dict[str, Estimate]:
    """``pass@1``, and ``pass@k`` (with `answers` also ``maj@k``) for every other k of `ks`, by name."""
    out = {"pass@1": accuracy(correct, valid=valid, level=level, seed=seed)}
    for k in ks:
        if k == 1:
            continue
        out[f"pass@{k}"] = share(pass_at_k(correct, k, valid=valid), level=level, seed=seed)
        if answers is not None:
            out[f"maj@{k}"] = share(maj_at_k(answers, correct, k, valid=valid), level=level, seed=seed)
    return out


@lru_cache(maxsize=1 << 14)
def _chance_to_win(count: int, others: tuple[int, ...], silent: int, k: int) -> float:
    """The chance that an answer with `count` votes wins among k samples, `others` and `silent` being the rest.

    For m votes of it, ``ways[s][t]`` counts the picks of s other samples in which t rivals also have m votes and none
    has more; the win is then shared by t + 1 answers. All counts are exact integers.
    """
    total = Fraction(0)
    for m in range(1, min(count, k) + 1):
        room = k - m
        ways = [[math.comb(silent, s)] for s in range(room + 1)]
        for rival in others:
            ways = _with_rival(ways, rival, m, room)
        share = sum(Fraction(w, ties + 1) for ties, w in enumerate(ways[room]))
        total += math.comb(count, m) * share
    return float(total / math.comb(count + sum(others) + silent, k))


def _with_rival(ways: list[list[int]], rival: int, m: int, room: int) -> list[list[int]]:
    """`ways` after one more rival with `rival` samples was picked from, at most m times; m times is a tie."""
    out = [[0] * (len(ways[0]) + 1) for _ in range(room + 1)]
    for picked in range(min(rival, m, room) + 1):
        factor, tie = math.comb(rival, picked), int(picked == m)
        for s in range(room + 1 - picked):
            for ties, w in enumerate(ways[s]):
                out[s + picked][ties + tie] += factor * w
    return out


def _quantile(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level: got {level}; allowed is a share between 0 and 1, such as 0.95")
    return NormalDist().inv_cdf((1 + level) / 2)


def _checked(correct: np.ndarray, k: int, valid: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    correct = np.asarray(correct)
    valid = np.ones(correct.shape, bool) if valid is None else np.asarray(valid)
    if correct.ndim != 2 or correct.dtype != bool or valid.shape != correct.shape or valid.dtype != bool:
        raise ValueError(
            f"correct: got {correct.dtype}{list(correct.shape)} with valid {valid.dtype}{list(valid.shape)}; allowed"
            " are bool[P, n] and the same for valid; compare the scores with a threshold first"
        )
    if not 1 <= k <= correct.shape[1]:
        raise ValueError(
            f"k: got {k}; allowed are 1 to n = {correct.shape[1]} samples a prompt; sample more or lower k"
        )
    return correct, valid
