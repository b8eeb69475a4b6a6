"""Distances between sampler and old policy, by hand."""

import math

import numpy as np

from grpo_jax import objectives as o


def test_by_hand(by_hand):
    # x = o = -1; row 0 has old / behaviour 2 and 1, row 1 has 1 on its one token, row 2 is empty
    mask = [[True, True], [True, False], [False, False]]
    _, batch = by_hand([[1.0, 1.0]] * 3, mismatch=[[2.0, 1.0], [1.0, 1.0], [1.0, 1.0]], mask=mask)
    got = o.mismatch(batch)
    log2 = math.log(2.0)
    expected = {
        "kl": -log2 / 3,
        "k3_kl": (2 - log2 - 1) / 3,
        "chi2_token": (4 + 1 + 1) / 3 - 1,
        "chi2_seq": (4 + 1 + 1) / 3 - 1,
        "training_ppl": (math.e + math.e + 1) / 3,
        "training_log_ppl": (1 + 1 + 0) / 3,
        "rollout_ppl": (math.exp(1 + log2 / 2) + math.e + 1) / 3,
        "rollout_log_ppl": (1 + log2 / 2 + 1 + 0) / 3,
        "log_ppl_diff": -log2 / 2 / 3,
        "log_ppl_abs_diff": log2 / 2 / 3,
        "log_ppl_diff_max": 0.0,
        "log_ppl_diff_min": -log2 / 2,
        "ppl_ratio": (math.exp(-log2 / 2) + 1 + 1) / 3,
    }
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_broken_sampler_gives_finite_numbers(by_hand):
    _, batch = by_hand([[1.0, 1.0]], mismatch=[[1e15, 1e15]])
    got = o.mismatch(batch)
    assert np.isfinite(got["chi2_token"]) and np.isfinite(got["chi2_seq"])
