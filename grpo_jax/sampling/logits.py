"""From logits to tokens: truncation, a sampler that spends one uniform a row, and the log-probabilities of the result.

Everything here is row-local: what happens to a row depends neither on the other rows nor on how many there are. Logits
come divided by the temperature already. What chooses a token widens logits that are narrower than float32 first:
bfloat16 cannot hold the sums.
"""

import math

import chex
import jax
import jax.numpy as jnp

from grpo_jax.types import Array

FLOAT32_BITS = 32


def truncate(logits: Array, *, top_k: int = 0, top_p: float | Array = 1.0, min_p: float | Array = 0.0) -> Array:
    """Tokens that may be sampled: bool[N, V] from logits f32[N, V].

    Three cuts in this order, each on what the one before has left:

    1. `top_k` > 0 keeps the `top_k` largest logits; 0, or a number of at least V, keeps all.
    2. `top_p` < 1, with p renormalised over what is left and sorted downwards, keeps token i when
       ``p_0 + ... + p_{i-1} < top_p``: the smallest set of the largest probabilities whose mass reaches `top_p`.
    3. `min_p` > 0 keeps tokens with ``p_i >= min_p * max p``.

    Every cut is a threshold on the logit. Hence tokens that tie with the last one kept are kept too (the set depends on
    the values, never on the numbering of the vocabulary, and may be larger than `top_k`), and the most likely token
    always stays. A token with logit -inf is never kept. `top_k` is static; `top_p` and `min_p` may be traced scalars,
    and a static value that cuts nothing costs nothing.

    Raises ValueError for static values outside ``top_k >= 0``, ``0 < top_p <= 1``, ``0 <= min_p <= 1``.
    """
    chex.assert_rank(logits, 2)
    _check_truncation(top_k, top_p, min_p)
    logits = _widened(logits)
    width = logits.shape[1]
    peak = jnp.max(logits, axis=1, keepdims=True)
    threshold = jnp.full_like(peak, -jnp.inf)
    limit = top_k if 0 < top_k < width else width
    nucleus = not (isinstance(top_p, int | float) and top_p >= 1)
    if limit < width or nucleus:
        # A sort of `limit` values serves both cuts: tokens past it tie with the last one and share its fate.
        largest, _ = jax.lax.top_k(logits, limit)
        threshold = largest[:, -1:]
        if nucleus:
            kept = jnp.where(logits >= threshold, logits, -jnp.inf)
            share = jnp.exp(largest - jax.nn.logsumexp(kept, axis=1, keepdims=True))
            before = jnp.cumsum(share, axis=1) - share
            inside = before < jnp.asarray(top_p, logits.dtype)
            threshold = jnp.min(jnp.where(inside, largest, peak), axis=1, keepdims=True)
    if not (isinstance(min_p, int | float) and min_p <= 0):
        threshold = jnp.maximum(threshold, peak + jnp.log(jnp.asarray(min_p, logits.dtype)))
    return (logits >= threshold) & (logits > -jnp.inf)


def sample(logits: Array, u: Array, keep: Array | None = None) -> Array:
    """The token i32[N] at quantile `u` of each row's distribution: logits f32[N, V], u f32[N] in [0, 1).

    ``token = min {v : p_0 + ... + p_v > u}``, p being the softmax over the tokens that `keep` bool[N, V] allows (all
    when None). The sums have two levels, blocks of about sqrt(V) and tokens of one block, so the cumulative sum runs
    over 2 sqrt(V) numbers instead of V and no noise of size V is drawn.

    The token has a weight ``exp(logit - max)`` above 0 in the arithmetic used, at any `u`, 0 and 1 included; its
    probability is right to about 1e-7 absolute, the resolution of a float32 uniform. A row without a single finite
    allowed logit yields some token in [0, V).
    """
    chex.assert_rank([logits, u], [2, 1])
    chex.assert_equal_shape_prefix([logits, u], 1)
    logits = _allowed(logits, keep)
    rows, width = logits.shape
    block = 1 << math.ceil(math.log2(width) / 2)
    blocks = -(-width // block)
    peak = jnp.max(logits, axis=1, keepdims=True)
    padded = jnp.pad(logits, ((0, 0), (0, blocks * block - width)), constant_values=-jnp.inf)
    sums = jnp.sum(jnp.exp(padded - peak).reshape(rows, blocks, block), axis=2)
    reached = jnp.cumsum(sums, axis=1)
    target = u.astype(logits.dtype)[:, None] * reached[:, -1:]
    chosen = _first_past(sums, reached, target)
    # Weights of the chosen block are computed again from its logits: cheaper than keeping the weights of all of them.
    # Columns past the end repeat the last token, come after it and, below, count as it.
    column = jnp.minimum(chosen * block + jnp.arange(block, dtype=jnp.int32)[None, :], width - 1)
    weights = jnp.exp(jnp.take_along_axis(logits, column, axis=1) - peak)
    before = jnp.take_along_axis(reached - sums, chosen, axis=1)
    within = _first_past(weights, jnp.cumsum(weights, axis=1), target - before)
    return jnp.minimum(chosen * block + within, width - 1)[:, 0]


def log_probs(logits: Array, tokens: Array, keep: Array | None = None) -> tuple[Array, Array]:
    """``(logp, logp_full)``, f32[N] each: log-probabilities of tokens i32[N] under logits f32[N, V].

    `logp_full` is under the whole vocabulary; `logp` under the distribution renormalised over `keep` bool[N, V], -inf
    for a token outside it, and the same array as `logp_full` when `keep` is None. ``exp(logp_full - logp)`` is the
    probability mass that the truncation kept. Both are computed in the dtype of the logits, which the config of a model
    chooses and its trainer uses too, and come out in float32 at least.
    """
    chex.assert_rank([logits, tokens], [2, 1])
    chex.assert_equal_shape_prefix([logits, tokens], 1)
    full = _log_prob(logits, tokens)
    if keep is None:
        return full, full
    chex.assert_equal_shape([logits, keep])
    return _log_prob(jnp.where(keep, logits, -jnp.inf), tokens), full


def _log_prob(logits: Array, tokens: Array) -> Array:
    """Log softmax of `logits` [N, V] at `tokens` [N]."""
    found = jnp.take_along_axis(logits, tokens[:, None], axis=1)[:, 0] - jax.nn.logsumexp(logits, axis=1)
    return _widened(found)


def _first_past(weights: Array, cumulative: Array, target: Array) -> Array:
    """First column of [N, W] with positive weight whose cumulative sum exceeds `target` [N, 1]: i32[N, 1].

    Rounding can leave the last cumulative sum at or below the target, and a parallel cumulative sum need not be
    monotone. So the weight is tested by itself, and the last positive column answers when no sum exceeds the target.
    """
    positive = weights > 0
    past = positive & (cumulative > target)
    first = jnp.argmax(past, axis=1, keepdims=True)
    last = weights.shape[1] - 1 - jnp.argmax(positive[:, ::-1], axis=1, keepdims=True)
    return jnp.where(jnp.any(past, axis=1, keepdims=True), first, last).astype(jnp.int32)


def _allowed(logits: Array, keep: Array | None) -> Array:
    """Widened logits [N, V], -inf where `keep` is False."""
    logits = _widened(logits)
    if keep is None:
        return logits
    chex.assert_equal_shape([logits, keep])
    return jnp.where(keep, logits, -jnp.inf)


def _widened(logits: Array) -> Array:
    """`logits` in float32, or as they are when wider."""
    return logits if jnp.finfo(logits.dtype).bits >= FLOAT32_BITS else logits.astype(jnp.float32)


def _check_truncation(top_k: int, top_p: float | Array, min_p: float | Array) -> None:
    """ValueError for a static value out of range; traced values cannot be read."""
    if top_k < 0:
        raise ValueError(f"top_k is {top_k}; allowed are 0 (no limit) and positive whole numbers")
    if isinstance(top_p, int | float) and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; allowed is 0 < top_p <= 1, where 1 cuts nothing")
    if isinstance(min_p, int | float) and not 0 <= min_p <= 1:
        raise ValueError(f"min_p is {min_p}; allowed is 0 <= min_p <= 1, where 0 cuts nothing")
