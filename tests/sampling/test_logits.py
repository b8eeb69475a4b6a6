"""Truncation against sets worked out by hand, the sampler against a float64 inverse distribution function."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.sampling import logits as lg

WIDTHS = (1, 3, 25, 257, 1000)
BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))
EDGES = (0, 1e-45, 1e-38, 1e-7, 0.5, 1 - 1e-6, BELOW_ONE, 1)
# Exact in float32, so that sums of them are too: thresholds fall where the arithmetic on paper says.
HALVES = np.array([1 / 8, 1 / 2, 1 / 16, 1 / 4, 1 / 16])

sample = jax.jit(lg.sample)
log_probs = jax.jit(lg.log_probs)


def kept(probabilities, **limits):
    """Ids that survive truncation of one row given by its probabilities."""
    row = jnp.log(jnp.asarray(probabilities, jnp.float32))[None, :]
    return set(np.flatnonzero(np.asarray(lg.truncate(row, **limits))[0]).tolist())


def some_logits(rows, width, *, scale=2.0, seed=0):
    return np.random.default_rng(seed).normal(scale=scale, size=(rows, width)).astype(np.float32)


def distribution(row, keep=None):
    """Softmax of one row in float64 over the tokens allowed."""
    row = np.asarray(row, np.float64)
    weights = np.exp(row - row.max())
    if keep is not None:
        weights = np.where(keep, weights, 0.0)
    return weights / weights.sum()


def assert_inverse_cdf(row, keep=None, points=2048):
    """On a grid of u every token is the one float64 gives, but for u closer to a step than float32 resolves."""
    u = ((np.arange(points) + 0.5) / points).astype(np.float32)
    rows = np.broadcast_to(row, (points, row.size))
    keep_rows = None if keep is None else np.broadcast_to(keep, rows.shape)
    tokens = np.asarray(sample(rows, u, keep_rows))
    steps = np.cumsum(distribution(row, keep))
    expected = np.minimum(np.searchsorted(steps, u.astype(np.float64), side="right"), row.size - 1)
    inner = steps[:-1] if row.size > 1 else np.array([2.0])
    near = np.min(np.abs(u[:, None].astype(np.float64) - inner[None, :]), axis=1) < 1e-6
    assert near.mean() < 0.01
    np.testing.assert_array_equal(tokens[~near], expected[~near])
    assert (distribution(row, keep)[tokens] > 0).all()


def test_nothing_is_cut_by_default():
    assert kept(HALVES) == {0, 1, 2, 3, 4}


def test_top_k_keeps_the_largest():
    assert kept(HALVES, top_k=1) == {1}
    assert kept(HALVES, top_k=3) == {0, 1, 3}
    assert kept(HALVES, top_k=5) == kept(HALVES, top_k=50) == {0, 1, 2, 3, 4}


def test_top_k_keeps_all_that_tie_with_the_last():
    # Four tokens asked for; the two of 1/16 tie for the fourth place.
    assert kept(HALVES, top_k=4) == {0, 1, 2, 3, 4}


def test_top_p_keeps_the_smallest_set_that_reaches_the_mass():
    # Downwards: 1/2, 1/4, 1/8, 1/16, 1/16; mass before each: 0, 1/2, 3/4, 7/8, 15/16.
    assert kept(HALVES, top_p=0.4) == {1}
    assert kept(HALVES, top_p=0.6) == {1, 3}
    assert kept(HALVES, top_p=0.8) == {1, 3, 0}
    assert kept(HALVES, top_p=0.9) == {1, 3, 0, 2, 4}  # 2 enters (7/8 < 0.9) and 4 ties with it


def test_top_p_works_on_what_top_k_has_left_renormalised():
    # top-2 leaves 1/2 and 1/4, renormalised 2/3 and 1/3. Of the whole, 0.6 needs both; of the rest, one.
    assert kept(HALVES, top_p=0.6) == {1, 3}
    assert kept(HALVES, top_k=2, top_p=0.6) == {1}
    assert kept(HALVES, top_k=2, top_p=0.7) == {1, 3}


def test_top_p_counts_the_mass_of_all_that_tie_at_top_k():
    # top-2 of (4, 3, 3)/10 leaves all three: before the threes stands 0.4 of the mass, not 4/7.
    assert kept([0.4, 0.3, 0.3], top_k=2, top_p=0.5) == {0, 1, 2}
    assert kept([0.4, 0.3, 0.3], top_k=2, top_p=0.39) == {0}


def test_min_p_is_relative_to_the_largest():
    # Thresholds 0.3 * 1/2 = 0.15 and 0.2 * 1/2 = 0.1.
    assert kept(HALVES, min_p=0.3) == {1, 3}
    assert kept(HALVES, min_p=0.2) == {0, 1, 3}
    assert kept(HALVES, top_k=2, min_p=0.2) == {1, 3}
    assert kept(HALVES, top_p=0.6, min_p=0.9) == {1}


@pytest.mark.parametrize("limits", [{"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}])
def test_the_most_likely_token_is_always_kept(limits):
    rows = some_logits(64, 257, scale=5.0)
    keep = np.asarray(lg.truncate(jnp.asarray(rows), **limits))
    np.testing.assert_array_equal(keep.sum(axis=1), np.ones(64))
    assert keep[np.arange(64), rows.argmax(axis=1)].all()


def test_impossible_tokens_are_never_kept():
    row = jnp.asarray([[-jnp.inf, 0.0, -jnp.inf, 1.0]], jnp.float32)
    cuts = (partial(lg.truncate, top_k=3), partial(lg.truncate, top_p=0.999), partial(lg.truncate, min_p=0.0))
    for cut in (lg.truncate, *cuts, partial(lg.truncate, top_k=3, top_p=0.999, min_p=1e-6)):
        assert np.asarray(cut(row)).tolist() == [[False, True, False, True]]


def test_limits_may_be_traced():
    rows = jnp.asarray(some_logits(8, 100))
    traced = jax.jit(lambda p, m: lg.truncate(rows, top_k=20, top_p=p, min_p=m))
    for top_p, min_p in ((1.0, 0.0), (0.7, 0.0), (0.95, 0.1)):
        expected = lg.truncate(rows, top_k=20, top_p=top_p, min_p=min_p)
        np.testing.assert_array_equal(traced(jnp.float32(top_p), jnp.float32(min_p)), expected)


def test_truncation_does_not_depend_on_the_numbering_of_the_vocabulary():
    rng = np.random.default_rng(3)
    rows = rng.integers(-3, 4, size=(32, 40)).astype(np.float32)  # many ties
    order = rng.permutation(40)
    cut = partial(lg.truncate, top_k=12, top_p=0.8, min_p=0.05)
    np.testing.assert_array_equal(np.asarray(cut(jnp.asarray(rows)))[:, order], cut(jnp.asarray(rows[:, order])))


@pytest.mark.parametrize(
    ("limits", "word"),
    [({"top_k": -1}, "top_k"), ({"top_p": 0.0}, "top_p"), ({"top_p": 1.5}, "top_p"), ({"min_p": -0.1}, "min_p")],
)
def test_limits_out_of_range_are_refused(limits, word):
    with pytest.raises(ValueError, match=f"{word} is .*allowed"):
        lg.truncate(jnp.zeros((1, 3), jnp.float32), **limits)


def test_sample_by_hand():
    # Probabilities 1/8, 1/2, 1/16, 1/4, 1/16: steps at 0.125, 0.625, 0.6875, 0.9375, 1.
    u = np.array([0.0, 0.12, 0.13, 0.62, 0.63, 0.68, 0.69, 0.93, 0.94, 0.99], np.float32)
    rows = np.broadcast_to(np.log(HALVES).astype(np.float32), (10, 5))
    assert np.asarray(sample(rows, u)).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_a_step_belongs_to_the_token_after_it():
    # Equal weights, exact sums: at u = k / 8 exactly k tokens have been passed.
    tokens = sample(np.zeros((8, 8), np.float32), np.arange(8, dtype=np.float32) / 8)
    assert np.asarray(tokens).tolist() == list(range(8))


@pytest.mark.parametrize("width", WIDTHS)
def test_sample_inverts_the_distribution_function(width):
    assert_inverse_cdf(some_logits(1, width, seed=width)[0])


@pytest.mark.parametrize("width", WIDTHS)
def test_sample_inverts_the_truncated_distribution_function(width):
    row = some_logits(1, width, seed=width + 1)[0]
    keep = np.asarray(lg.truncate(jnp.asarray(row)[None, :], top_k=200, top_p=0.9, min_p=0.01))[0]
    assert keep.sum() < width or width == 1
    assert_inverse_cdf(row, keep)


@pytest.mark.parametrize("width", WIDTHS)
def test_no_token_of_probability_zero_at_any_u(width):
    rng = np.random.default_rng(width)
    u = np.concatenate([np.array(EDGES, np.float32), rng.random(248, np.float32)])
    rows = some_logits(256, width, scale=8.0, seed=width)
    dead = rng.random((256, width)) < 0.9
    dead[:, 0] = width > 1  # the first token too, which u = 0 would like to have
    dead[:, -1] = width > 1  # and the last, where rounding at u near 1 ends up
    dead[np.arange(256), rng.integers(1, width - 1, 256) if width > 1 else 0] = False
    rows[dead] = -np.inf
    for u_row in (u, np.zeros_like(u), np.full_like(u, BELOW_ONE), np.ones_like(u)):
        tokens = np.asarray(sample(rows, u_row))
        assert tokens.min() >= 0
        assert tokens.max() < width
        assert not dead[np.arange(256), tokens].any()
    allowed = ~dead
    finite = np.where(np.isfinite(rows), rows, 3.0).astype(np.float32)
    assert allowed[np.arange(256), np.asarray(sample(finite, u, allowed))].all()


def test_rounded_sums_reach_the_last_token_and_not_past_it():
    # 1000 equal weights: block sums are exact, yet u just below 1 times their total rounds to the total.
    rows = np.zeros((2, 1000), np.float32)
    assert np.asarray(sample(rows, np.array([0.0, BELOW_ONE], np.float32))).tolist() == [0, 999]


def test_a_certain_token_is_always_sampled():
    rows = np.full((3, 257), -1e30, np.float32)
    rows[[0, 1, 2], [0, 100, 256]] = 50.0
    for u in (0.0, 0.5, BELOW_ONE):
        assert np.asarray(sample(rows, np.full(3, u, np.float32))).tolist() == [0, 100, 256]


def test_a_row_depends_neither_on_the_others_nor_on_their_number():
    rows, rng = some_logits(16, 257), np.random.default_rng(5)
    u = rng.random(16).astype(np.float32)
    together = np.asarray(sample(rows, u))
    poisoned = rows.copy()
    poisoned[1:] = np.nan
    assert np.asarray(sample(poisoned, u))[0] == together[0]
    for size in (1, 3, 8):
        np.testing.assert_array_equal(sample(rows[:size], u[:size]), together[:size])
    order = rng.permutation(16)
    np.testing.assert_array_equal(sample(rows[order], u[order]), together[order])


@pytest.mark.parametrize("width", WIDTHS)
def test_log_probs_equal_float64(width):
    rows = some_logits(12, width, scale=4.0, seed=width + 2)
    keep = np.asarray(lg.truncate(jnp.asarray(rows), top_p=0.9))
    tokens = np.asarray(sample(rows, np.linspace(0, BELOW_ONE, 12).astype(np.float32), keep))
    logp, full = log_probs(rows, tokens, keep)
    at = [(n, token) for n, token in enumerate(tokens)]
    np.testing.assert_allclose(full, np.log([distribution(rows[n])[t] for n, t in at]), atol=2e-6)
    np.testing.assert_allclose(logp, np.log([distribution(rows[n], keep[n])[t] for n, t in at]), atol=2e-6)
    mass = [distribution(rows[n])[keep[n]].sum() for n in range(12)]
    np.testing.assert_allclose(np.exp(np.asarray(full) - np.asarray(logp)), mass, rtol=1e-5)


def test_log_probs_by_hand():
    rows = np.log(np.broadcast_to(HALVES, (3, 5))).astype(np.float32)
    keep = np.broadcast_to([False, True, False, True, False], (3, 5))  # mass 3/4
    logp, full = log_probs(rows, np.array([1, 3, 0], np.int32), keep)
    np.testing.assert_allclose(full, np.log([1 / 2, 1 / 4, 1 / 8]), rtol=1e-6)
    np.testing.assert_allclose(logp, [np.log(2 / 3), np.log(1 / 3), -np.inf], rtol=1e-6)


def test_without_truncation_both_log_probs_are_one():
    rows = some_logits(4, 25)
    logp, full = log_probs(rows, np.array([0, 5, 24, 7], np.int32))
    np.testing.assert_array_equal(logp, full)


def test_log_probs_survive_impossible_tokens():
    rows = np.array([[-np.inf, 0.0, 0.0]], np.float32)
    logp, full = log_probs(rows, np.array([1], np.int32), np.array([[False, True, False]]))
    assert (float(logp[0]), float(full[0])) == (0.0, pytest.approx(np.log(0.5)))


def test_a_token_is_chosen_by_widened_logits_and_weighed_in_their_own_dtype():
    rows = jnp.asarray(some_logits(64, 300)).astype(jnp.bfloat16)
    wide, u = rows.astype(jnp.float32), jnp.linspace(0, BELOW_ONE, 64)
    tokens = lg.sample(rows, u)
    np.testing.assert_array_equal(tokens, lg.sample(wide, u))
    np.testing.assert_array_equal(lg.truncate(rows, top_p=0.7), lg.truncate(wide, top_p=0.7))
    full = lg.log_probs(rows, tokens)[1]
    assert full.dtype == jnp.float32
    np.testing.assert_allclose(full, lg.log_probs(wide, tokens)[1], rtol=0.02)
