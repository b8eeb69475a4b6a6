"""What a step reports, as pure functions: diagnostics of the policy, rewards, lengths and groups.

A diagnostic has the type of a term. Its metric is the mean over scored tokens, computed as a sum so that micro-batches
and shards add up: `diagnostic_sums` over each piece, times `diagnostic_weight` of the whole batch, and `finalise` at
the end for what is not linear (the effective sample size). A diagnostic whose input is absent is left out statically.
"""

import math
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp

from grpo_jax import masked
from grpo_jax.groups import tied
from grpo_jax.objectives import (
    Recipe,
    Term,
    clean,
    clip_shares,
    clipped_high,
    clipped_low,
    difference,
    functions,
    k3,
    kl_exact,
    kl_penalty,
    log_ratio,
    mismatch,
    needs,
    over_old,
    value_clip,
    wants,
)
from grpo_jax.objectives.clipping import CLAMP
from grpo_jax.types import Array, Batch, Metrics, Reward, Rollouts, TokenStats

AFTER = "kl/old_after"
"""Measured where the control of a coefficient follows it: it costs a forward pass."""


@needs("entropy")
def entropy(stats: TokenStats, batch: Batch) -> Array:
    """Entropy of the policy at every token, nats -> f32[N,T]."""
    del batch
    if stats.entropy is None:
        raise ValueError('entropy reads TokenStats.entropy, which is None. Remedy: ask for want=("entropy",)')
    return stats.entropy


def kl_old(stats: TokenStats, batch: Batch) -> Array:
    """Estimate of KL(old || new), nats -> f32[N,T]: k3 of the log-ratio, the tokens being drawn from the old policy.

    Unlike the plain mean of logp_old - logp it is never negative, and it is exactly 0 on the first update of a batch.
    """
    return k3(log_ratio(stats, batch, clamp=CLAMP))


def ratio_moment(stats: TokenStats, batch: Batch, *, power: int) -> Array:
    """r^power with r = pi_new / pi_old -> f32[N,T]."""
    return jnp.power(over_old(stats, batch, clamp=CLAMP), power)


DIAGNOSTICS: dict[str, Term] = {
    "entropy": entropy,
    "kl/ref": partial(kl_penalty, estimator=k3, clamp_log_ratio=CLAMP),
    "kl/old": kl_old,
    "clip/low": clipped_low,
    "clip/high": clipped_high,
    "ratio/first": partial(ratio_moment, power=1),
    "ratio/second": partial(ratio_moment, power=2),
}


def diagnostics(recipe: Recipe) -> dict[str, Term]:
    """`DIAGNOSTICS` with the clip bounds of the recipe's surrogate: of its first function with keywords low and high.

    A recipe that clips nothing, or not on that side, has no share of clipped tokens. Whose ratio is clipped, and how
    the bounds are meant, is read off the same function. A recipe that teaches a critic has ``value/loss``, with its
    own clip and without its coefficient.
    """
    table = {name: term for name, term in DIAGNOSTICS.items() if not name.startswith("clip/")}
    table |= {f"clip/{side}": term for side, term in clip_shares(recipe.parts).items()}
    for function, keywords in functions(recipe.parts):
        if function is value_clip:
            table["value/loss"] = partial(value_clip, clip=keywords["clip"])
    return table


def diagnostic_sums(recipe: Recipe, stats: TokenStats, batch: Batch) -> dict[str, Array]:
    """Sum of every diagnostic over the tokens that a policy sampled and that were scored -> name -> f32[].

    What lacks its input is left out. ``experts/replaced`` is the share of the choices of experts that the trainer would
    have made otherwise than the sampler, whether it is made to repeat them or not.
    """
    batch = batch.replace(mask=_sampled(batch))
    stats, batch = clean(jax.lax.stop_gradient(stats), batch)
    there = {name for name, value in {**vars(stats), "logp_ref": batch.logp_ref}.items() if value is not None}
    table = diagnostics(recipe)
    if "kl_full" in there:
        table["kl/ref"] = kl_exact  # what the estimate estimates
    terms = {name: term for name, term in table.items() if there.issuperset(wants(term))}
    sums = {name: masked.total(term(stats, batch), batch.mask) for name, term in terms.items()}
    return sums if stats.replaced is None else sums | {"experts/replaced": masked.total(stats.replaced, batch.mask)}


def diagnostic_weight(batch: Batch) -> Array:
    """1 / (sampled and scored tokens of the whole batch) -> f32[], what turns sums into means."""
    return 1.0 / jnp.maximum(masked.count(_sampled(batch), dtype=batch.advantage.dtype), 1.0)


def _sampled(batch: Batch) -> Array:
    """bool[N,T], the scored tokens of rows that are no demonstrations."""
    return batch.mask & (batch.rollouts.version >= 0)[:, None]


def finalise(means: Mapping[str, Array]) -> dict[str, Array]:
    """Means of diagnostics -> metrics: the moments of the ratio become ``ratio/ess``, the rest stays.

    ratio/ess = (sum r)^2 / (n sum r^2), in [1/n, 1]: the share of the tokens that the update is in effect made of; 0
    where there is no token.
    """
    metrics = dict(means)
    if {"ratio/first", "ratio/second"} <= metrics.keys():
        first, second = metrics.pop("ratio/first"), metrics.pop("ratio/second")
        metrics["ratio/ess"] = jnp.square(first) / jnp.where(second > 0, second, jnp.ones_like(second))
    return metrics


def reward_metrics(reward: Reward) -> Metrics:
    """Mean and population deviation of the outcome over the rows that were scored, and the mean of each component.

    A component is averaged over the rows that have it: where it is nan there is none. ``reward/greedy`` is the mean
    outcome of the greedy completions, where they are sampled.
    """
    metrics = {
        "reward/mean": masked.mean(reward.outcome, reward.valid),
        "reward/std": jnp.sqrt(masked.variance(reward.outcome, reward.valid)),
    }
    for name, values in reward.components.items():
        metrics[f"reward/{name}"] = masked.mean(values, reward.valid & ~jnp.isnan(values))
    return metrics if reward.greedy is None else metrics | {"reward/greedy": masked.mean(reward.greedy, reward.valid)}


def kl_after(logp: Array, batch: Batch) -> Metrics:
    """``kl/old_after``: mean of k3 over scored tokens, of the policy behind the updates of a step, nats.

    `logp` f32[N,T] is what that policy says of the rows. The estimate of KL(old || new) that an adaptive penalty
    follows (arXiv 1707.06347, section 4): ``kl/old`` is the mean over the passes before each update.
    """
    delta = difference(jax.lax.stop_gradient(logp), batch.logp_old, batch.mask, clamp=CLAMP)
    return {AFTER: masked.mean(k3(delta), batch.mask)}


def mismatch_metrics(batch: Batch) -> Metrics:
    """How far the sampler is from the old policy that the trainer recomputed, see `objectives.mismatch`, nats."""
    found = mismatch(batch)
    return {f"mismatch/{name}": found[name] for name in ("kl", "k3_kl", "chi2_token")}


def length_metrics(rollouts: Rollouts) -> Metrics:
    """Mean number of tokens a completion, and the share of completions that ended by themselves."""
    return {
        "length/mean": masked.mean(rollouts.length.astype(rollouts.logp.dtype), rollouts.version >= 0),
        "length/stopped": masked.mean(rollouts.stopped.astype(rollouts.logp.dtype), rollouts.version >= 0),
    }


def expert_load(choices: Array, mask: Array, *, experts: int) -> Array:
    """f32[L, E], the share of the choices i32[L, N, T, k] of every layer that fell on an expert, where mask bool[N, T].

    A choice of -1 is none. The shares of a layer sum to 1; those of a layer without a choice are 0.
    """
    number = jax.lax.broadcasted_iota(choices.dtype, (*choices.shape, experts), 4)
    fell = (choices[..., None] == number) & mask[None, :, :, None, None]
    count = jnp.sum(fell, axis=(1, 2, 3), dtype=jnp.float32)
    return count / jnp.maximum(jnp.sum(count, axis=1, keepdims=True), 1.0)


def expert_metrics(rollouts: Rollouts, *, experts: int) -> Metrics:
    """How evenly a mixture of `experts` uses them, over what it sampled; {} where no choice is recorded.

    ``experts/load_max``: the largest share of a layer times E, the mean over the layers: 1 where all are used alike, E
    where a single one is. ``experts/load_entropy``: the entropy of the shares of a layer over log E, the mean over the
    layers: 1 and 0. ``experts/unused``: the share of the experts that no token went through.
    """
    if rollouts.experts is None:
        return {}
    load = expert_load(rollouts.experts, rollouts.mask & (rollouts.version >= 0)[:, None], experts=experts)
    there = jnp.sum(load, axis=1) > 0
    logs = jnp.log(jnp.where(load > 0, load, jnp.ones_like(load)))
    return {
        "experts/load_max": masked.mean(jnp.max(load, axis=1) * experts, there),
        "experts/load_entropy": masked.mean(-jnp.sum(load * logs, axis=1) / math.log(max(experts, 2)), there),
        "experts/unused": masked.mean(jnp.mean((load == 0).astype(load.dtype), axis=1), there),
    }


def group_metrics(reward: Reward, labels: Array) -> Metrics:
    """Number of groups, share of them whose rewards are all equal, mean number of their rows that were scored.

    Groups without a scored row are not counted. Labels i32[L,N] are read at level 0; labels of tokens, i32[N,T], have
    no metrics.
    """
    group = labels[0] if labels.ndim == 2 and labels.shape[1] == reward.valid.shape[0] else labels
    if group.ndim != 1:
        return {}
    rows = group.shape[0]
    size = masked.segment_count(group, rows, reward.valid, reward.outcome.dtype)
    flat = tied(reward.outcome, group, num_groups=rows, valid=reward.valid)
    return {
        "groups/count": masked.count(size > 0, dtype=size.dtype),
        "groups/tied": masked.mean(flat.astype(size.dtype), size > 0),
        "groups/size": masked.mean(size, size > 0),
    }


def value_metrics(batch: Batch) -> Metrics:
    """What the critic expected at collection and what it is taught, over scored tokens; {} without a critic.

    ``value/explained_variance`` is 1 - Var(R - V) / Var(R), with V the values at collection and R their targets: 1 for
    a critic that knows, 0 for one that says the same everywhere, below 0 for one that misleads; 0 where all targets
    are equal. Targets with lambda < 1 are partly made of V, which flatters it.
    """
    if batch.returns is None or batch.value_old is None:
        return {}
    left, spread = (masked.variance(x, batch.mask) for x in (batch.returns - batch.value_old, batch.returns))
    known = jnp.where(spread > 0, 1.0 - left / jnp.where(spread > 0, spread, jnp.ones_like(spread)), 0.0)
    return {
        "value/mean": masked.mean(batch.value_old, batch.mask),
        "returns/mean": masked.mean(batch.returns, batch.mask),
        "value/explained_variance": known,
    }


def logp_gap(gap: Array, mask: Array) -> Metrics:
    """Mean, 99th percentile and maximum over scored tokens of `gap` = |logp_full of the sampler - logp|, nats."""
    return {
        "logp_gap/mean": masked.mean(gap, mask),
        "logp_gap/p99": masked.quantile(gap, mask, 0.99),
        "logp_gap/max": jnp.max(masked.select(mask, gap)),
    }
