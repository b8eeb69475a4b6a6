"""MaxRL, pass@k both ways and GPG: hand numbers, float64 twins with loops over groups and subsets, exact zeros."""

import itertools
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import advantages as a


def given(reward: list[float], group: list[int]) -> dict:
    return {
        "reward": jnp.asarray(reward, jnp.float32),
        "group": jnp.asarray(group, jnp.int32),
        "num_groups": len(reward),
        "valid": jnp.ones(len(reward), bool),
    }


def test_hand_numbers_of_maxrl():
    # one success of four: mean 1/4; (1 - 1/4) / (1/4) = 3, (0 - 1/4) / (1/4) = -1
    np.testing.assert_allclose(a.relative_to_mean(**given([1, 0, 0, 0], [0] * 4), eps=0.0), [3, -1, -1, -1])
    np.testing.assert_allclose(a.relative_to_mean(**given([1, 0], [0] * 2), eps=0.5), [0.5, -0.5])
    np.testing.assert_allclose(a.relative_to_mean(**given([1, 0], [0] * 2), eps=1.0, eps_mode="max"), [0.5, -0.5])
    np.testing.assert_array_equal(a.relative_to_mean(**given([1, -3], [0] * 2)), 0.0)  # mean -1
    np.testing.assert_array_equal(a.relative_to_mean(**given([0, 0], [0] * 2), eps=0.0), 0.0)


def test_hand_numbers_of_passk():
    # n = 4, c = 1, k = 2: C(3, 2) / C(4, 2) = 1/2, rho = 1/2, s = 1/2; right: 1/2 / s = 1;
    # wrong: (1/2 - C(2, 1) / C(3, 1)) / s = (1/2 - 2/3) * 2 = -1/3
    rows = given([1, 0, 0, 0], [0] * 4)
    np.testing.assert_allclose(a.passk_analytic(**rows, k=2, eps=0.0), [1, -1 / 3, -1 / 3, -1 / 3], rtol=1e-6)
    # k = 1: rho = 1/4, s = sqrt(3)/4: right (3/4) / s = sqrt 3, wrong (3/4 - 1) / s = -1 / sqrt 3
    expected = [3**0.5, *[-(3**-0.5)] * 3]
    np.testing.assert_allclose(a.passk_analytic(**rows, k=1, eps=0.0), expected, rtol=1e-6)
    np.testing.assert_array_equal(a.passk_analytic(**rows, k=4), 0.0)  # every subset of four has the right one
    np.testing.assert_array_equal(a.passk_analytic(**rows, k=9), 0.0)  # taken at k = n
    np.testing.assert_array_equal(a.passk_analytic(**rows, k=2, threshold=1.0), 0.0)  # none is right
    with pytest.raises(ValueError, match="k: got 0, allowed 1 and more"):
        a.passk_analytic(**rows, k=0)


def test_passk_is_the_mean_over_all_subsets():
    """A row's advantage is the mean over the k-subsets with it of their standardised reward, the best of k."""
    n, c, k = 7, 2, 3
    reward = np.asarray([1.0] * c + [0.0] * (n - c))
    subsets = list(itertools.combinations(range(n), k))
    best = np.asarray([max(reward[list(s)]) for s in subsets])
    standard = (best - best.mean()) / best.std()
    expected = [np.mean([z for z, s in zip(standard, subsets, strict=True) if i in s]) for i in range(n)]
    got = a.passk_analytic(**given(reward.tolist(), [0] * n), k=k, eps=0.0)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_hand_numbers_of_the_best_over_the_second():
    # 1, 4, 7: 7 - 4 = 3, sample deviation 3; several best ones, and one alone, get 0
    rows = given([1, 4, 7, 5, 5, 2, 9], [0, 0, 0, 1, 1, 1, 2])
    np.testing.assert_allclose(a.max_minus_second(**rows, eps=0.0), [0, 0, 1, 0, 0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(a.max_minus_second(**rows, std="none"), [0, 0, 3, 0, 0, 0, 0])


def test_hand_numbers_of_gpg():
    rows = given([1, 0, 1, 1, 0, 0], [0, 0, 1, 1, 2, 2])
    # rows: 6; in groups that vary: 2; rewards that are not 0: 3
    np.testing.assert_allclose(a.gpg_centered(**rows), [6 / 2 * 0.5, -6 / 2 * 0.5, 0, 0, 0, 0])
    np.testing.assert_allclose(a.gpg_centered(**rows, alpha="nonzero_rewards"), [6 / 3 * 0.5, -6 / 3 * 0.5, 0, 0, 0, 0])
    np.testing.assert_allclose(a.gpg_centered(**rows, alpha="none", f_norm=2.0), [0.25, -0.25, 0, 0, 0, 0])
    np.testing.assert_array_equal(a.gpg_centered(**given([1.0, 1.0], [0, 0])), 0.0)
    raw = a.gpg_centered(**given([3.0, 1.0, 1.0], [0, 1, 1]), alpha="none", singleton="raw")
    np.testing.assert_allclose(raw, [3, 0, 0])


def twins(rows, members) -> dict[str, np.ndarray]:
    """Group by group."""
    reward, n = rows["reward"], 40
    found = {name: np.zeros(n) for name in ("maxrl", "best", "varied", "nonzero")}
    everybody = np.concatenate(members)
    varied = sum(len(g) for g in members if np.ptp(reward[g]) > 0)
    factor = {"varied": len(everybody) / varied, "nonzero": len(everybody) / np.sum(reward[everybody] != 0)}
    for g in members:
        r = reward[g]
        if np.ptp(r) == 0:
            continue
        mean = r.mean()
        found["maxrl"][g] = (r - mean) / (mean + 0.01) if mean > 0 else 0.0
        for name, alpha in factor.items():
            found[name][g] = alpha * (r - mean) / 2.0
        second, first = np.sort(r)[-2:]
        found["best"][g[np.argmax(r)]] = (first - second) / (r.std(ddof=1) + 0.01)
    return found


def test_kernels_equal_the_definitions_in_float64(rows, doubled, members, compiled):
    shape = {"num_groups": 40, "valid": doubled["valid"]}
    reward, group = doubled["reward"], doubled["group"]
    got = compiled(
        maxrl=partial(a.relative_to_mean, reward, group, **shape, eps=0.01),
        best=partial(a.max_minus_second, reward, group, **shape, eps=0.01),
        varied=partial(a.gpg_centered, reward, group, **shape, f_norm=2.0),
        nonzero=partial(a.gpg_centered, reward, group, **shape, f_norm=2.0, alpha="nonzero_rewards"),
    )
    for name, expected in twins(rows, members).items():
        np.testing.assert_allclose(got[name], expected, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("reward", [0.35, 0.95, 1 / 3])
def test_equal_rewards_give_exactly_zero(reward: float):
    rows = given([reward] * 7 + [1.0, 0.0, 0.0], [0] * 7 + [1] * 3)
    for kernel in (a.relative_to_mean, a.passk_analytic, a.max_minus_second, a.gpg_centered):
        value = np.asarray(kernel(**rows))
        np.testing.assert_array_equal(value[:7], 0.0)
        assert value[7] > 0
