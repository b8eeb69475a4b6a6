"""Variants compared before anything is trained: their gradients on one batch of rollouts, in one compiled call.

With g_k the gradient of the loss of variant k by the parameters and c_k f32[N,T] the one by the statistics of the
tokens, g_k is the vector-Jacobian product of c_k with the forward pass, which all variants share. A row reaches the
parameters only through its own statistics, so the gradient of a batch is the sum of those of its prompts,
g_k = sum_m g_k,m, and all K * M of them cost what the K do: the forward pass is linearised prompt by prompt, and each
is pulled back K times. In all: two forward passes over the batch (one for the statistics, one that is differentiated)
and K backward passes, in memory for 2 K gradients. No tree of parameters is made a vector: inner products are sums over
its leaves, so that these may be sharded.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from grpo_jax import masked
from grpo_jax.objectives.algebra import Recipe, clean, loss, prepared
from grpo_jax.objectives.clipping import CLAMP, clip_shares
from grpo_jax.objectives.description import wants
from grpo_jax.objectives.pullback import Forward, Walk, products, walked
from grpo_jax.objectives.ratios import over_old
from grpo_jax.types import Array, Batch, Params, Rollouts, TokenStats

_STATS = frozenset({"entropy", "hidden", "kl_full", "sum_pi_squared", "value"})


class Comparison(struct.PyTreeNode):
    """Numbers of K variants on one batch. M is the number of prompts with a scored row, g_m what prompt m adds to g.

    The variance is an unbiased estimate of tr Cov(g), prompts being independent draws:

        variance = M / (M - 1) * (sum_m |g_m|^2 - |g|^2 / M)

    to first order where prompts meet in a denominator or in a baseline over the batch. Of the expected gradient G,
    ``|g|^2 - variance`` is an unbiased estimate of |G|^2 (McCandlish et al. 2018, arXiv 1812.06162, appendix A), hence

        snr = (|g|^2 - variance) / variance,

    which is about 0 or negative where the batch is too small to tell the gradient from noise. ``M / snr`` prompts are
    the gradient noise scale of that paper. An effective size is that of Kish, ``(sum w)^2 / (n sum w^2)`` in [1/n, 1].
    """

    loss: Array  # f32[K]
    cosine: Array  # f32[K, K], of gradients; 0 where one of them is 0
    norm: Array  # f32[K], |g|
    variance: Array  # f32[K], nan for fewer than two prompts
    snr: Array  # f32[K], nan likewise
    ess_ratio: Array  # f32[K], effective share of scored tokens, w = pi_new / pi_old
    ess_advantage: Array  # f32[K], effective share of sampled rows, w = |mean advantage of the row|
    ess_gradient: Array  # f32[K], effective share of sampled tokens, w = |d loss / d logp|
    clipped: Array  # f32[K], share of scored tokens whose gradient a clip bound stops; nan where there is none
    silent: Array  # f32[K], share of sampled tokens whose statistics have no gradient at all
    names: tuple[str, ...] = struct.field(pytree_node=False, default=())


class Conflict(struct.PyTreeNode):
    """How the C categories of a batch pull under one variant; g_i is what the prompts of category i add to g."""

    cosine: Array  # f32[C, C], of g_i and g_j; 0 where one of them is 0
    opposed: Array  # f32[C, C], share of pairs of prompts, one of each, whose gradients have a negative inner product
    negative: Array  # f32[], share of pairs of categories with a negative cosine
    norm: Array  # f32[C], |g_i|
    share: Array  # f32[C], <g_i, g> / |g|^2: sums to 1; negative for a category that the others overrule
    prompts: Array  # f32[C], prompts with a scored row
    telling: Array  # f32[C], those of them with a gradient
    names: tuple[str, ...] = struct.field(pytree_node=False, default=())


def wanted(recipes: Mapping[str, Recipe]) -> tuple[str, ...]:
    """Sorted names of the fields of `TokenStats` that some recipe reads, beside ``logp``: what `forward` must give."""
    return tuple(sorted({name for recipe in recipes.values() for name in wants(recipe)} & _STATS))


def compare(
    recipes: Mapping[str, Recipe],
    batches: Mapping[str, Batch],
    forward: Forward,
    params: Params,
    *,
    key: Array | None = None,
    group_size: int | None = None,
    block: int = 1,
) -> Comparison:
    """The gradients of K variants at `params`, compared. Compile it: ``jax.jit(partial(compare, recipes, ...))``.

    Everything is as in an update on the whole batch: `batches` holds for every recipe the batch of the same rollouts
    with its labels, advantages and weights (`train.make_batch`), prepare steps run here. Where `params` are those that
    sampled, all ratios are 1 and nothing is clipped; take others to see what clipping does.

    Args:
        recipes: by name; the order is that of the result.
        batches: by the same names.
        forward: the policy, with all that `wanted` names. It is traced twice.
        params: where the gradients are taken.
        key: what prepare steps draw from; None: key 0.
        group_size: the largest number of rows of a prompt; None: N / P.
        block: prompts pulled back side by side; changes speed and memory (of ``K (1 + block)`` gradients), no number.

    Raises:
        ValueError: names differ, batches are not of one size, or a recipe reads what is not there.
    """
    pulls = _pulls(recipes, batches, forward, params, key)
    walk = Walk(forward, params, pulls.rollouts, group_size, block)
    total, squares, _ = walked(walk, pulls.cotangents, keep=False)
    inner = products(total, total)
    square = jnp.diagonal(inner)
    first = next(iter(batches.values()))
    variance = _variance(square, squares, _prompts(first))
    return Comparison(
        cosine=_cosine(inner),
        norm=jnp.sqrt(square),
        variance=variance,
        snr=(square - variance) / jnp.where(variance > 0, variance, jnp.nan),
        names=tuple(recipes),
        loss=pulls.loss,
        **{name: jnp.stack([shares[name] for shares in pulls.shares]) for name in pulls.shares[0]},
    )


def gradients(
    recipes: Mapping[str, Recipe],
    batches: Mapping[str, Batch],
    forward: Forward,
    params: Params,
    *,
    key: Array | None = None,
    group_size: int | None = None,
    block: int = 1,
) -> Params:
    """The gradients that `compare` compares: parameters with a leading axis of K. Arguments and errors as there."""
    pulls = _pulls(recipes, batches, forward, params, key)
    walk = Walk(forward, params, pulls.rollouts, group_size, block)
    return walked(walk, pulls.cotangents, keep=False)[0]


def conflicts(
    recipe: Recipe,
    batch: Batch,
    forward: Forward,
    params: Params,
    *,
    category: Array,
    names: Sequence[str],
    key: Array | None = None,
    group_size: int | None = None,
    block: int = 1,
) -> Conflict:
    """How the categories of a batch pull against each other under one recipe. Memory for the gradients of all prompts.

    Args:
        recipe: the variant.
        batch: with its labels, advantages and weights, as in `compare`.
        forward: the policy, with all that `wanted` names.
        params: where the gradients are taken.
        category: i32[P], number of the category of each prompt; prompts of no category, below 0 or from C up, count in
            g alone.
        names: of the C categories.
        key: what prepare steps draw from; None: key 0.
        group_size: the largest number of rows of a prompt; None: N / P.
        block: prompts pulled back side by side.

    Raises:
        ValueError: there is no category, or the recipe reads what is not there.
    """
    if not names:
        raise ValueError("names: got none, allowed are the names of at least one category: name those of `category`")
    pulls = _pulls({"recipe": recipe}, {"recipe": batch}, forward, params, key)
    walk = Walk(forward, params, pulls.rollouts, group_size, block)
    _, _, kept = walked(walk, pulls.cotangents, keep=True)
    single = jax.tree.map(lambda x: x[:, 0], kept)
    inner = products(single, single)  # [P, P]
    belongs = (category[None, :] == jnp.arange(len(names), dtype=category.dtype)[:, None]).astype(inner.dtype)
    between = _product(_product(belongs, inner), belongs.T)
    telling = (jnp.diagonal(inner) > 0).astype(inner.dtype)
    told = belongs * telling[None, :]
    apart = 1.0 - jnp.eye(inner.shape[0], dtype=inner.dtype)
    pairs = _product(_product(told, apart), told.T)
    against = _product(_product(told, (inner < 0).astype(inner.dtype)), told.T)
    cosine, norm = _cosine(between), jnp.sqrt(jnp.maximum(jnp.diagonal(between), 0.0))
    upper = jnp.triu(jnp.outer(norm > 0, norm > 0), 1).astype(inner.dtype)
    whole = jnp.sum(inner)
    return Conflict(
        cosine=cosine,
        opposed=against / jnp.maximum(pairs, 1.0),
        negative=jnp.sum(upper * (cosine < 0).astype(inner.dtype)) / jnp.maximum(jnp.sum(upper), 1.0),
        norm=norm,
        share=jnp.sum(_product(belongs, inner), axis=1) / jnp.where(whole > 0, whole, jnp.nan),
        prompts=jnp.sum(belongs * _counted_prompts(batch).astype(inner.dtype)[None, :], axis=1),
        telling=jnp.sum(told, axis=1),
        names=tuple(names),
    )


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")


def _cosine(inner: Array) -> Array:
    """f32[A, A] of inner products; exactly 1 on the diagonal, and 0 where a norm is 0."""
    norm = jnp.sqrt(jnp.maximum(jnp.diagonal(inner), 0.0))
    both = jnp.outer(norm, norm)
    cosine = jnp.clip(inner / jnp.where(both > 0, both, jnp.ones_like(both)), -1.0, 1.0)
    same = jnp.eye(inner.shape[0], dtype=bool) & jnp.isfinite(inner)
    return jnp.where(same, (both > 0).astype(inner.dtype), jnp.where(both == 0, jnp.zeros_like(cosine), cosine))


def _variance(square: Array, squares: Array, count: Array) -> Array:
    """M / (M - 1) (sum |g_m|^2 - |g|^2 / M), never below 0."""
    count = count.astype(square.dtype)
    spread = jnp.maximum(squares - square / jnp.maximum(count, 1.0), 0.0)
    return jnp.where(count > 1, spread * count / jnp.maximum(count - 1.0, 1.0), jnp.nan)


class _Pulls(NamedTuple):
    """What K recipes say of the statistics of one batch."""

    rollouts: Rollouts
    loss: Array  # f32[K]
    cotangents: TokenStats  # [K, N, ...]
    shares: list[dict[str, Array]]  # K times name -> f32[]


def _pulls(
    recipes: Mapping[str, Recipe], batches: Mapping[str, Batch], forward: Forward, params: Params, key: Array | None
) -> _Pulls:
    _check(recipes, batches)
    rollouts = next(iter(batches.values())).rollouts
    stats = jax.lax.stop_gradient(forward(params, rollouts))
    values, slopes, shares = [], [], []
    for name, recipe in recipes.items():
        _check_fields(name, recipe, stats, batches[name])
        batch = prepared(recipe, stats, batches[name], jax.random.key(0) if key is None else key)
        value, slope = jax.value_and_grad(functools.partial(_loss, recipe, batch))(stats)
        values.append(value)
        slopes.append(slope)
        shares.append(_shares(recipe, stats, batch, slope))
    return _Pulls(rollouts, jnp.stack(values), jax.tree.map(_stacked, *slopes), shares)


def _loss(recipe: Recipe, batch: Batch, stats: TokenStats) -> Array:
    return loss(recipe.parts, stats, batch)


def _stacked(*leaves: Array) -> Array:
    return jnp.stack(leaves)


def _shares(recipe: Recipe, stats: TokenStats, batch: Batch, slope: TokenStats) -> dict[str, Array]:
    """The shares of tokens and rows in a `Comparison`. Sampled is what has a valid reward, whatever the grouping."""
    sampled = batch.rollouts.mask & batch.reward.valid[:, None]
    stats, batch = clean(stats, batch)
    scored, dtype = batch.mask, stats.logp.dtype
    rows = jnp.any(sampled, axis=1)
    tokens = jnp.maximum(masked.count(scored, axis=1, dtype=dtype), 1.0)
    row = jnp.abs(jnp.sum(masked.select(scored, batch.advantage), axis=1)) / tokens
    speaking = jnp.zeros(scored.shape, bool)
    for leaf in jax.tree.leaves(slope):
        if leaf.shape == scored.shape:
            speaking |= leaf != 0
        else:  # of the whole row
            speaking |= jnp.any(leaf != 0, axis=tuple(range(1, leaf.ndim)))[:, None]
    terms = clip_shares(recipe.parts).values()
    stopped = sum((term(stats, batch) for term in terms), start=jnp.zeros_like(stats.logp))
    return {
        "ess_ratio": _effective(over_old(stats, batch, clamp=CLAMP), scored),
        "ess_advantage": _effective(row, rows),
        "ess_gradient": _effective(jnp.abs(slope.logp), sampled),
        "clipped": masked.mean(stopped, scored) if terms else jnp.asarray(jnp.nan, dtype),
        "silent": masked.mean((~speaking).astype(dtype), sampled),
    }


def _effective(weight: Array, among: Array) -> Array:
    """(sum w)^2 / (n sum w^2) over the entries of `among`, 0 where all weights are 0."""
    weight = masked.select(among, weight)
    largest = jnp.max(weight)
    weight = weight / jnp.where(largest > 0, largest, jnp.ones_like(largest))  # squares of tiny numbers would vanish
    first, second = jnp.sum(weight), jnp.sum(jnp.square(weight)) * masked.count(among, dtype=weight.dtype)
    return jnp.square(first) / jnp.where(second > 0, second, jnp.ones_like(second))


def _counted_prompts(batch: Batch) -> Array:
    """bool[P], prompts with a sampled row of valid reward."""
    rollouts = batch.rollouts
    prompts = rollouts.prompts.length.shape[0]
    rows = batch.reward.valid & jnp.any(rollouts.mask, axis=1)
    return masked.segment_count(rollouts.prompt, prompts, rows) > 0


def _prompts(batch: Batch) -> Array:
    return jnp.sum(_counted_prompts(batch), dtype=jnp.float32)


def _check(recipes: Mapping[str, Recipe], batches: Mapping[str, Batch]) -> None:
    if not recipes or set(recipes) != set(batches):
        raise ValueError(
            f"batches: got {', '.join(batches) or 'none'}, allowed is one for every recipe, of which there are"
            f" {', '.join(recipes) or 'none'}: make each with train.make_batch"
        )
    shapes = {name: batch.mask.shape for name, batch in batches.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(
            f"batches: got sizes {shapes}, allowed is one: make all of the same rollouts, or compare them one by one"
        )


def _check_fields(name: str, recipe: Recipe, stats: TokenStats, batch: Batch) -> None:
    there = {field for field, value in {**vars(batch), **vars(stats)}.items() if value is not None}
    missing = sorted(set(wants(recipe)) - there)
    if missing:
        remedy = {"logp_ref": "collect the rows with log-probabilities of a reference"}
        told = "; ".join(remedy.get(field, f"let forward ask for {field}") for field in missing)
        raise ValueError(
            f"recipes: got {name!r}, which reads {', '.join(missing)}, absent here; allowed are recipes whose fields"
            f" are there: {told}, or leave {name!r} out"
        )
