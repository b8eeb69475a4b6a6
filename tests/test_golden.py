"""The numbers of other implementations: a case is matched by binding arguments from its `variant` and `hyper` alone.

``BINDINGS`` maps (family, variant) to a function ``(inputs, hyper) -> outputs`` that calls this library. What a case
asks for and the library has no function for yet raises `Unbound`; the variants for which that is so are pinned in
``UNBOUND``, so that a bound case cannot silently become unbound. ``GRPO_GOLDEN_DIR`` names another folder of the same
format.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import advantages, masked, metrics
from grpo_jax import objectives as o
from grpo_jax.models.logprobs import token_statistics
from grpo_jax.rewards import lengths
from grpo_jax.types import Array, Batch, Prompts, Reward, Rollouts, TokenStats

HERE = Path(__file__).resolve().parent / "golden"
FOLDER = Path(os.environ.get("GRPO_GOLDEN_DIR") or HERE)

Inputs = Mapping[str, Array]
Hyper = Mapping[str, Any]
Binding = Callable[[Inputs, Hyper], Mapping[str, Array]]

UNBOUND: dict[str, str] = {}
"""Family -> variants of which a case has no binding."""


class Unbound(Exception):
    """The library has no argument for a convention of the case."""


def take(hyper: Hyper, **allowed: object) -> None:
    """Refuse a case whose `hyper` has, under one of these keys, another value than the allowed one (or ones)."""
    for key, values in allowed.items():
        if key in hyper and hyper[key] not in (values if isinstance(values, tuple) else (values,)):
            raise Unbound(f"{key}={hyper[key]!r}")


# ---------------------------------------------------------------------------------------------------- advantages


Rows = Mapping[str, Any]
"""Number of groups, and the rows that count."""

SCOPES = {"group": "group", "leave_one_out": "others", "batch": "batch"}
GPG_ALPHA = {"rows_over_nonzero_rewards": "nonzero_rewards", "rows_over_varied_rows": "varied_rows", "none": "none"}


def rewards_of(inputs: Inputs) -> tuple[Array, Array, Rows]:
    reward, group = inputs["rewards"], inputs["group_ids"]
    shape = {"num_groups": group.shape[0], "valid": jnp.ones(group.shape, bool)}
    # Labels lie below N; a prompt's number may be any.
    return reward, jnp.unique(group, return_inverse=True, size=group.shape[0])[1].astype(jnp.int32), shape


def as_asked(advantage: Array, inputs: Inputs, hyper: Hyper) -> dict[str, Array]:
    if hyper["advantage_shape"] == "row":
        return {"advantages": advantage}
    return {"advantages": jnp.where(inputs["mask"], advantage[:, None], 0.0)}


def scale_of(hyper: Hyper) -> dict[str, Any]:
    """The keywords of a division by a deviation."""
    if hyper["std"] == "none":
        return {"std": "none"}
    keywords = {"scope": SCOPES[hyper["std_scope"]], "variance_floor": hyper["variance_floor"] or 0.0}
    return keywords | {name: hyper[name] for name in ("std", "eps", "eps_mode", "zero_std")}


def above_baseline(reward: Array, group: Array, shape: Rows, inputs: Inputs, hyper: Hyper) -> Array:
    """(R - baseline) / std of one reward a row."""
    keywords = {**shape, **scale_of(hyper)}
    single = {"singleton": hyper["singleton"]}
    match hyper["baseline"]:
        case "group_mean":
            return advantages.standardized(reward, group, **keywords, **single)
        case "leave_one_out":
            return advantages.leave_one_out(reward, group, **keywords, **single)
        case "length_weighted":
            length = inputs["lengths"] if "lengths" in inputs else jnp.sum(inputs["mask"], axis=1)
            return advantages.length_weighted(reward, group, length.astype(reward.dtype), **keywords, **single)
        case "batch_mean":
            return advantages.batch_standardized(reward, group, **keywords)
        case "none":
            return advantages.uncentered(reward, group, **keywords)
    raise Unbound(f"baseline={hyper['baseline']!r}")


def normalized_again(advantage: Array, shape: Rows, hyper: Hyper) -> Array:
    """The second normalisation, over the advantages of all rows of the batch."""
    if hyper["renormalize"] == "none":
        return advantage
    again = {"std": hyper["renormalize_std"], "eps": hyper["renormalize_eps"], "eps_mode": "add"}
    return advantages.batch_standardized(advantage, jnp.zeros(advantage.shape, jnp.int32), **shape, **again)


def whitened(value: Array, mask: Array | None, hyper: Hyper) -> Array:
    if mask is None or hyper["whiten"] == "none":
        return value
    keywords = {"std": hyper["whiten_std"], "eps": hyper["whiten_eps"], "eps_mode": hyper["whiten_eps_mode"]}
    return advantages.whiten(value, mask, **keywords)


def row_advantage(inputs: Inputs, hyper: Hyper) -> Mapping[str, Array]:
    reward, group, shape = rewards_of(inputs)
    value = above_baseline(reward, group, shape, inputs, hyper)
    return as_asked(normalized_again(value, shape, hyper), inputs, hyper)


def whitened_advantage(inputs: Inputs, hyper: Hyper) -> Mapping[str, Array]:
    reward, group, shape = rewards_of(inputs)
    if hyper["whiten"] != "none":
        take(hyper, advantage_shape="token")
    value = as_asked(above_baseline(reward, group, shape, inputs, hyper), inputs, hyper)["advantages"]
    return {"advantages": whitened(value, inputs.get("mask"), hyper)}


def gpg_advantage(inputs: Inputs, hyper: Hyper) -> Mapping[str, Array]:
    reward, group, shape = rewards_of(inputs)
    alpha = GPG_ALPHA[hyper["gpg_alpha"]]
    if hyper["baseline"] == "group_mean":
        keywords = {"alpha": alpha, "f_norm": hyper["f_norm"], "singleton": hyper["singleton"]}
        return as_asked(advantages.gpg_centered(reward, group, **shape, **keywords), inputs, hyper)
    value = above_baseline(reward, group, shape, inputs, {"std": "none", **hyper})
    return as_asked(advantages.gpg_factor(reward, group, **shape, alpha=alpha) * value / hyper["f_norm"], inputs, hyper)


def component_keywords(hyper: Hyper) -> dict[str, Any]:
    missing = "component" if hyper["missing"] == "none" else hyper["missing"]
    return {"weights": tuple(hyper["reward_weights"]), "missing": missing}


def weighted_advantage(inputs: Inputs, hyper: Hyper) -> Mapping[str, Array]:
    components, group, shape = rewards_of(inputs)
    reward, scored = advantages.weighted_sum(components, **component_keywords(hyper))
    shape = {**shape, "valid": scored}
    value = above_baseline(reward, group, shape, inputs, hyper)
    return as_asked(normalized_again(value, shape, hyper), inputs, hyper)


def gdpo_advantage(inputs: Inputs, hyper: Hyper) -> Mapping[str, Array]:
    components, group, shape = rewards_of(inputs)
    keywords = component_keywords(hyper)
    usual = {"baseline": "group_mean", "std_scope": "group", "variance_floor": None, "zero_std": "divide"}
    if hyper["std"] != "none" and all(hyper[key] == value for key, value in usual.items()):
        keywords |= {name: hyper[name] for name in ("std", "eps", "eps_mode")}
        again = hyper["renormalize"] == "batch"
        keywords |= {"renormalize_std": hyper["renormalize_std"] if again else "none"}
        keywords |= {"renormalize_eps": hyper["renormalize_eps"]} if again else {}
        return as_asked(advantages.separately_standardized(components, group, **shape, **keywords), inputs, hyper)
    there, scored = advantages.present(components, missing=keywords["missing"])
    total = jnp.zeros(group.shape)
    for k, weight in enumerate(hyper["reward_weights"]):
        known = {**shape, "valid": there[:, k]}
        total += weight * above_baseline(components[:, k], group, known, inputs, hyper)
    return as_asked(normalized_again(total, {**shape, "valid": scored}, hyper), inputs, hyper)


def maxrl_advantage(inputs: Inputs, hyper: Hyper) -> Mapping[str, Array]:
    reward, group, shape = rewards_of(inputs)
    guard = {"eps": hyper["eps"], "eps_mode": hyper["eps_mode"]}
    return as_asked(advantages.relative_to_mean(reward, group, **shape, **guard), inputs, hyper)


def passk_advantage(inputs: Inputs, hyper: Hyper) -> Mapping[str, Array]:
    reward, group, shape = rewards_of(inputs)
    keywords = {"k": hyper["pass_k"], "eps": hyper["eps"], "eps_mode": hyper["eps_mode"]}
    return as_asked(advantages.passk_analytic(reward, group, **shape, **keywords), inputs, hyper)


def max_minus_second(inputs: Inputs, hyper: Hyper) -> Mapping[str, Array]:
    reward, group, shape = rewards_of(inputs)
    return as_asked(advantages.max_minus_second(reward, group, **shape, **scale_of(hyper)), inputs, hyper)


def token_rewards_of(inputs: Inputs) -> Array:
    if "token_rewards" in inputs:
        return inputs["token_rewards"]
    return advantages.at_last_token(inputs["rewards"], inputs["mask"])


def discounted(inputs: Inputs, hyper: Hyper) -> Mapping[str, Array]:
    mask = inputs["mask"]
    keywords = {"gamma": hyper["gamma"], "holes": hyper["holes"]}
    returns = advantages.discounted_returns(token_rewards_of(inputs), mask, **keywords)
    if "whiten" not in hyper:
        return {"returns": returns}
    return {"returns": returns, "advantages": whitened(returns, mask, hyper)}


def remax_advantage(inputs: Inputs, hyper: Hyper) -> Mapping[str, Array]:
    keywords = {"gamma": hyper["gamma"], "holes": hyper["holes"]}
    reward, greedy = token_rewards_of(inputs), inputs["reward_baseline"]
    advantage, returns = advantages.above_greedy(reward, greedy, inputs["mask"], **keywords)
    return {"advantages": advantage, "returns": returns}


def critic_advantage(inputs: Inputs, hyper: Hyper) -> Mapping[str, Array]:
    recursion = {"gamma": hyper["gamma"], "holes": hyper["holes"], "bootstrap": hyper["bootstrap_value"]}
    arrays = token_rewards_of(inputs), inputs["values"], inputs["mask"]
    if "length_alpha" in hyper:
        kernel = partial(
            advantages.length_adaptive_advantages, alpha=hyper["length_alpha"], lam_value=hyper["lam_value"]
        )
    else:
        kernel = partial(advantages.generalized_advantages, lam=hyper["lam"])
    advantage, returns = kernel(*arrays, **recursion)
    return {
        "advantages": advantage,
        "returns": returns,
        "advantages_whitened": whitened(advantage, inputs["mask"], hyper),
    }


def token_baseline(inputs: Inputs, hyper: Hyper) -> Mapping[str, Array]:
    mask = inputs["mask"]
    shape = {"num_groups": mask.shape[0], "valid": jnp.ones(mask.shape[0], bool)}
    group = rewards_of({"rewards": mask, **inputs})[1]
    returns = advantages.discounted_returns(token_rewards_of(inputs), mask, gamma=hyper["gamma"], holes="zero")
    energy = advantages.score_energy(inputs["logp_old"], inputs["sum_pi_squared"], mask)
    keywords = {name: hyper[name] for name in ("eps", "eps_mode", "singleton")}
    advantage = advantages.above_token_baseline(returns, energy, mask, group, **shape, **keywords)
    return {"advantages": advantage, "returns": returns}


def overlong(inputs: Inputs, hyper: Hyper) -> Mapping[str, Array]:
    keywords = {name: hyper[name] for name in ("max_length", "buffer_length", "penalty", "floor")}
    return {"reward": lengths.overlong_penalty(inputs["lengths"], **keywords)}


# ---------------------------------------------------------------------------------------------- records and losses


def record(inputs: Inputs) -> tuple[TokenStats, Batch]:
    """The inputs of a case as the records of the library; what the case lacks and no formula reads is zero."""
    mask = inputs["mask"]
    rows = mask.shape[0]
    zero = jnp.zeros(mask.shape)
    logp = inputs.get("logp_new", inputs.get("per_token_loss", zero))
    index = jnp.arange(rows, dtype=jnp.int32)
    advantage = inputs.get("advantages", zero)
    behavior = inputs.get("logp_rollout", zero)
    prompts = Prompts(tokens=index[:, None], length=jnp.ones_like(index), draw=index, row=index)
    rollouts = Rollouts(
        prompts=prompts,
        prompt=index,
        sample=index,
        tokens=jnp.zeros(mask.shape, jnp.int32),
        length=jnp.sum(mask, axis=1, dtype=jnp.int32),
        stopped=jnp.ones(rows, bool),
        mask=mask,
        logp=behavior,
        logp_full=behavior,
        version=index,
    )
    batch = Batch(
        rollouts=rollouts,
        mask=mask,
        weight={},
        advantage=advantage if advantage.ndim == 2 else jnp.broadcast_to(advantage[:, None], mask.shape),
        logp_old=inputs.get("logp_old", logp),
        logp_behavior=behavior,
        group=jnp.zeros(rows, jnp.int32),
        reward=Reward(outcome=inputs.get("rewards", jnp.zeros(rows)), valid=jnp.ones(rows, bool)),
        logp_ref=inputs.get("logp_ref"),
    )
    return TokenStats(logp=logp, entropy=inputs.get("entropy")), batch


def aggregation(hyper: Hyper, mask: Array, denominator: str | None = None) -> tuple[Callable[[Batch], Array], float]:
    """Aggregation of the library for a case, and the number its loss is multiplied by."""
    name, scale = hyper["aggregation"], float(hyper.get("dp_size", 1))
    rows = denominator or hyper.get("sequence_denominator")
    given = hyper.get("global_denominator")
    empty = {"all_rows": "count", "nonempty_rows": "skip", "given": "count"}.get(str(rows))
    whole = {"all_rows": "all", "nonempty_rows": "nonempty", "none": "none"}.get(str(rows))
    match name:
        case "token-mean" | "seq-mean-token-sum" if given is not None:
            return partial(o.fixed_length, constant=float(given), rows="none"), scale
        case "token-mean":
            return o.token_mean, scale
        case "seq-mean-token-mean" | "row-mean" if empty is not None:
            # For row-mean: a row's loss stands on each of its tokens, and the mean over them is the loss itself. The
            # mean is over all the rows of this batch: rows / given of it is the mean over a given number.
            return partial(o.sequence_mean_token_mean, empty=empty), scale * (mask.shape[0] / given if given else 1.0)
        case "seq-mean-token-sum" if rows == "none":
            return partial(o.fixed_length, constant=1.0, rows="none"), scale
        case "seq-mean-token-sum" if empty is not None:
            return partial(o.sequence_mean_token_sum, empty=empty), scale
        case "seq-mean-token-sum-norm" if whole is not None:
            return partial(o.fixed_length, constant=float(hyper["norm_constant"]), rows=whole), scale
        case "token-sum-norm":
            return partial(o.fixed_length, constant=float(hyper["norm_constant"]), rows="none"), scale
        case "token-sum" | "none":
            return partial(o.fixed_length, constant=1.0, rows="none"), scale
        case "position-mean":
            return partial(o.fixed_length, constant=float(mask.size), rows="none"), scale
    raise Unbound(f"aggregation={name!r} with sequence_denominator={rows!r}")


def evaluate(parts: tuple[o.Part, ...], stats: TokenStats, batch: Batch) -> tuple[Array, TokenStats]:
    batch = dataclasses.replace(batch, weight=o.weights(parts, batch))

    def objective(stats: TokenStats) -> Array:
        return o.loss(parts, stats, batch)

    return jax.value_and_grad(objective)(stats)


def value_itself(stats: TokenStats, batch: Batch) -> Array:
    """A term that hands a given loss through, so that aggregations can be tested on any numbers."""
    del batch
    return stats.logp


def aggregate(inputs: Inputs, hyper: Hyper) -> Mapping[str, Array]:
    stats, batch = record(inputs)
    reduce, scale = aggregation(hyper, batch.mask)
    loss, gradient = evaluate((o.Part(reduce, o.scale(value_itself, by=scale)),), stats, batch)
    reduce, scale = aggregation(hyper, batch.mask, hyper.get("metric_sequence_denominator"))
    other, _ = evaluate((o.Part(reduce, o.scale(value_itself, by=scale)),), stats, batch)
    return {"loss": loss, "grad": gradient.logp, "loss_eager_metric": other}


KL_WEIGHTS = {
    "none": None,
    "new_over_old": partial(o.over_old, clamp=None),
    "new_over_rollout": partial(o.over_behavior, clamp=None),
    "new_over_new": o.over_itself,
}


def kl_term(hyper: Hyper) -> o.Term:
    return partial(
        o.kl_penalty,
        estimator=o.ESTIMATORS[str(hyper["kl_estimator"])],
        weight=KL_WEIGHTS[str(hyper.get("kl_weight", "none"))],
        clamp_log_ratio=hyper.get("kl_clamp_log_ratio"),
        clamp_output=hyper.get("kl_clamp_output"),
    )


def kl(inputs: Inputs, hyper: Hyper) -> Mapping[str, Array]:
    stats, batch = record(inputs)
    total = partial(o.fixed_length, constant=1.0, rows="none")
    _, gradient = evaluate((o.Part(total, kl_term(hyper)),), stats, batch)
    return {"kl": kl_term(hyper)(*o.clean(stats, batch)), "grad_masked_sum": gradient.logp}


def ratio_of(hyper: Hyper) -> o.LogRatio:
    kind = str(hyper["ratio"])
    if kind == "token":
        return o.log_ratio
    return partial(
        o.sequence_log_ratio,
        reduction="sum" if kind == "sequence_sum" else "mean",
        gradient="token" if kind == "sequence_mean_token_grad" else "row",
        floor=hyper.get("clamp_seq_log_ratio_min"),
        cap=hyper.get("clamp_seq_log_ratio_max"),
    )


def clip_of(hyper: Hyper) -> dict[str, Any]:
    """The keywords of everything that clips."""
    clip = {"low": hyper["clip_low"], "high": hyper["clip_high"], "bounds": hyper["clip_bounds"]}
    return clip | {"ratio": ratio_of(hyper), "clamp_log_ratio": hyper["clamp_log_ratio"]}


@dataclasses.dataclass(frozen=True)
class Policy:
    """A policy loss as the library composes it for a case."""

    term: o.Term
    parts: tuple[o.Part, ...] = ()  # beside the term
    prepare: tuple[o.Prepare, ...] = ()
    keep: o.Term | None = None  # 1 on the tokens that the variant does not remove


def ppo(hyper: Hyper) -> Policy:
    dual = {"dual": hyper["dual_clip_c"], "dual_form": hyper["dual_clip_form"]}
    return Policy(partial(o.ppo_clip, **clip_of(hyper), **dual))


def cispo(hyper: Hyper) -> Policy:
    return Policy(partial(o.clipped_weight, **clip_of(hyper)))


def gmpo(hyper: Hyper) -> Policy:
    take(hyper, ratio="token")
    keywords = clip_of(hyper)
    del keywords["ratio"]
    return Policy(partial(o.geometric_clip, **keywords))


def sapo(hyper: Hyper) -> Policy:
    tau = {"tau_positive": hyper["tau_pos"], "tau_negative": hyper["tau_neg"]}
    return Policy(partial(o.soft_gate, **tau, clamp_log_ratio=hyper["clamp_log_ratio"]))


def vespo(hyper: Hyper) -> Policy:
    rates = {"k_positive": "k_pos", "k_negative": "k_neg", "lambda_positive": "lambda_pos"}
    rates |= {"lambda_negative": "lambda_neg", "lambda_min": "lambda_min", "clamp_log_ratio": "clamp_log_ratio"}
    rates |= {"floor": "clamp_seq_log_ratio_min", "cap": "clamp_seq_log_ratio_max"}
    return Policy(partial(o.soft_weight, **{name: hyper[key] for name, key in rates.items()}))


def kl_cov(hyper: Hyper) -> Policy:
    kind = str(hyper["cov_penalty"])
    penalty = partial(
        o.old_penalty,
        estimator=o.ESTIMATORS[kind],
        direction="reverse" if kind == "k3" else "forward",
        clamp_log_ratio=hyper["clamp_log_ratio"],
    )
    penalty = o.scale(o.reweight(penalty, partial(o.chosen, name="kl_cov")), by=hyper["cov_penalty_coef"])
    surrogate = partial(o.unclipped, clamp_log_ratio=hyper["clamp_log_ratio"])
    return Policy(o.add(surrogate, penalty), prepare=(partial(o.kl_cov_tokens, fraction=hyper["cov_fraction"]),))


def clip_cov(hyper: Hyper) -> Policy:
    take(hyper, clip_bounds="relative")
    clip = clip_of(hyper)
    prepare = partial(
        o.clip_cov_tokens,
        fraction=hyper["cov_fraction"],
        cov_low=hyper["cov_low"],
        cov_high=hyper["cov_high"],
        clip_low=clip["low"],
        clip_high=clip["high"],
        ratio=clip["ratio"],
    )
    keep = partial(o.chosen, name="clip_cov")
    return Policy(o.reweight(partial(o.ppo_clip, **clip), keep), prepare=(prepare,), keep=keep)


def top_entropy(hyper: Hyper) -> Policy:
    prepare, keep = top_entropy_step(hyper), partial(o.chosen, name="top_entropy")
    return Policy(o.reweight(partial(o.ppo_clip, **clip_of(hyper)), keep), prepare=(prepare,), keep=keep)


def top_entropy_step(hyper: Hyper) -> o.Prepare:
    return partial(o.top_entropy_tokens, fraction=hyper["top_entropy_fraction"])


def opsm(hyper: Hyper) -> Policy:
    behavior = {"rollout": o.log_ratio_behavior, "old": o.log_ratio}[str(hyper["behaviour_logp"])]
    keep = partial(o.off_policy_mask, threshold=hyper["kl_threshold"], of=behavior)
    if hyper["quantity"] != "loss":
        return Policy(o.reinforce, keep=keep)
    return Policy(o.reweight(partial(o.ppo_clip, **clip_of(hyper)), keep), keep=keep)


def dppo(hyper: Hyper, *, symmetric: bool) -> Policy:
    bounds = {"tv_low": hyper["tv_low"], "tv_high": hyper["tv_high"], "symmetric": symmetric}
    term = partial(o.probability_clip, **bounds, clamp_log_ratio=None)
    pull = o.scale(o.squared_log_ratio, by=hyper["quadratic_coef"])
    return Policy(o.add(term, pull), keep=partial(kept_probability, **bounds))


def kept_probability(stats: TokenStats, batch: Batch, **bounds: Any) -> Array:
    return o.probability_kept(stats, batch, **bounds).astype(stats.logp.dtype)


def positive_nll(hyper: Hyper) -> Policy:
    likelihood = o.scale(o.negative_log_likelihood, by=hyper["nll_weight"])
    return Policy(ppo(hyper).term, parts=(o.Part(o.restricted(o.token_mean, to=o.positive), likelihood),))


def corrected_ppo(hyper: Hyper) -> Policy:
    return Policy(corrected(ppo(hyper).term, hyper))


def corrected_reinforce(hyper: Hyper) -> Policy:
    return Policy(corrected(o.reinforce, hyper))


def correction_ratio(hyper: Hyper) -> tuple[o.LogRatio, o.LogRatio]:
    """The log-ratio of tokens, and that from which the weight is formed."""
    tokens = {"old_minus_rollout": o.log_mismatch, "new_minus_rollout": o.log_ratio_behavior}
    token, level = tokens[str(hyper["correction_log_ratio"])], str(hyper["correction_level"])
    if level == "token":
        return token, token
    if level not in ("sequence_sum", "sequence_mean"):
        raise Unbound(f"a weight of level {level!r}")
    return token, partial(o.sequence_log_ratio, of=token, reduction=level.removeprefix("sequence_"), cap=None)


def correction(hyper: Hyper) -> o.Term:
    """The importance weight of a case, as a term."""
    token, of = correction_ratio(hyper)
    keywords = {"of": of, "clamp": hyper["correction_clamp"]}
    lower, upper = hyper["correction_lower"], hyper["correction_upper"]
    match hyper["correction_kind"]:
        case "truncate":
            return partial(o.truncated, **keywords, lower=None, upper=upper)
        case "clip":
            return partial(o.truncated, **keywords, lower=lower, upper=upper)
        case "mask":
            return partial(o.masked_importance, **keywords, lower=lower, upper=upper)
        case "row_mask":
            untouched = partial(o.importance, of=token, clamp=None)
            return o.reweight(untouched, partial(o.kept_rows, **keywords, lower=lower, upper=upper))
    raise Unbound(f"correction_kind={hyper['correction_kind']!r}")


def corrected(term: o.Term, hyper: Hyper) -> o.Term:
    return o.reweight(term, correction(hyper))


def policy(inputs: Inputs, hyper: Hyper, *, build: Callable[[Hyper], Policy]) -> Mapping[str, Array]:
    """A policy loss: an optional penalty inside its aggregation, an entropy bonus beside it, and what is reported."""
    take(hyper, entropy_aggregation="token-mean")
    stats, batch = record(inputs)
    if hyper.get("quantity", "loss") == "neg_seq_log_ratio":
        row = partial(o.sequence_log_ratio, reduction="mean", cap=None)
        return {"neg_seq_log_ratio": -row(*o.clean(stats, batch))[:, 0]}
    built = build(hyper)
    for prepare in built.prepare:
        batch = prepare(stats, batch, jax.random.key(0))
    extra = removed(built, stats, batch)
    if hyper.get("quantity", "loss") == "keep_mask":
        return extra
    reduce, scale = aggregation(hyper, batch.mask)
    term = built.term
    if hyper.get("kl_coef") is not None:
        term = o.add(term, o.scale(kl_term(hyper), by=hyper["kl_coef"]))
        extra["mean_kl"] = masked.mean(kl_term(hyper)(*o.clean(stats, batch)), batch.mask)
    parts = (o.Part(reduce, o.scale(term, by=scale)), *built.parts)
    if hyper.get("entropy_coef") is not None:
        parts += (o.Part(o.token_mean, o.scale(o.negative_entropy, by=hyper["entropy_coef"])),)
    loss, gradient = evaluate(parts, stats, batch)
    if hyper.get("empty_row") == "surrogate":
        loss += surrogate_of_empty_rows(batch, hyper)
    result = {"loss": loss, "grad_logp_new": gradient.logp, "grad_entropy": gradient.entropy}
    result["per_token_loss"] = term(*o.clean(stats, batch))
    return result | extra | clip_report(stats, batch, hyper, extra) | distances(stats, batch, hyper)


def removed(built: Policy, stats: TokenStats, batch: Batch) -> dict[str, Array]:
    if built.keep is None:
        return {}
    keep = jnp.where(batch.mask, built.keep(*o.clean(stats, batch)), 0.0)
    return {"keep_mask": keep, "mask": keep, "masked_fraction": masked.mean(1.0 - keep, batch.mask)}


def surrogate_of_empty_rows(batch: Batch, hyper: Hyper) -> Array:
    """What TRL adds for a row without tokens: -A_i / D, a constant, which no weight of this library can express."""
    empty = ~jnp.any(batch.mask, axis=1)
    rows = {"all_rows": empty.shape[0], "none": 1, "nonempty_rows": jnp.maximum(jnp.sum(~empty), 1)}
    return -jnp.sum(jnp.where(empty, batch.advantage[:, 0], 0.0)) / rows[str(hyper["sequence_denominator"])]


def clip_report(stats: TokenStats, batch: Batch, hyper: Hyper, extra: Mapping[str, Array]) -> dict[str, Array]:
    """Shares of clipped tokens, or of rows that each weigh 1, as `clip_metric` counts them."""
    if "clip_low" not in hyper:
        return {}
    clip = clip_of(hyper)
    clamp = clip.pop("clamp_log_ratio")
    low, high = clip.pop("low"), clip.pop("high")
    stats, batch = o.clean(stats, batch)
    r, (lower, upper) = jnp.exp(clip["ratio"](stats, batch, clamp=clamp)), o.interval(low, high, clip["bounds"])
    outside = (~o.within(r, lower, upper)).astype(r.dtype)
    nothing = jnp.zeros_like(r)
    below = nothing if low is None else metrics.clipped_low(stats, batch, low=low, **clip)
    above = nothing if high is None else metrics.clipped_high(stats, batch, high=high, **clip)
    dual, c = nothing, hyper["dual_clip_c"]
    if c is not None:
        surrogate = o.ppo_clip(stats, batch, low=low, high=high, clamp_log_ratio=clamp, **clip)
        dual = ((batch.advantage < 0) & (surrogate > -c * batch.advantage)).astype(r.dtype)
    counted = {
        "binding": (below + above, dual),
        "outside": (outside, dual),
        "outside_by_sign": tuple(jnp.where(sign, outside, 0.0) for sign in (batch.advantage > 0, batch.advantage < 0)),
        "dropped": (1.0 - extra.get("keep_mask", jnp.ones_like(r)), dual),
    }
    clipped, dual = counted[str(hyper["clip_metric"])]

    def share(found: Array) -> Array:
        if hyper["metric_level"] == "token":
            return masked.mean(found, batch.mask)
        return jnp.mean(jnp.max(jnp.where(batch.mask, found, 0.0), axis=1))

    shares = {"fraction": clipped, "fraction_low": below, "fraction_high": above}
    report = {f"clip_{name}": share(found) for name, found in shares.items()}
    return report | {"clipped": clipped, "dual_clip_fraction": share(dual)}


def distances(stats: TokenStats, batch: Batch, hyper: Hyper) -> dict[str, Array]:
    clamp = hyper.get("clamp_log_ratio") if hyper.get("metric_log_ratio", "raw") == "clamped" else None
    stats, batch = o.clean(stats, batch)
    log_ratio = o.log_ratio(stats, batch, clamp=clamp)
    found = {
        "mean_k1_old_new": masked.mean(-log_ratio, batch.mask),
        "mean_abs_log_ratio": masked.mean(jnp.abs(log_ratio), batch.mask),
        "mean_k1_rollout_old": masked.mean(-o.log_mismatch(stats, batch), batch.mask),
    }
    if "correction_kind" in hyper:
        found["out_of_bounds_fraction"] = out_of_bounds(stats, batch, hyper)
    return found


def out_of_bounds(stats: TokenStats, batch: Batch, hyper: Hyper) -> Array:
    _, of = correction_ratio(hyper)
    w = o.importance(stats, batch, of=of, clamp=hyper["correction_clamp"])
    lower = None if hyper["correction_kind"] == "truncate" else hyper["correction_lower"]
    outside = ~o.within(w, lower, hyper["correction_upper"])
    if hyper["correction_level"] == "token":
        return masked.mean(outside.astype(w.dtype), batch.mask)
    return jnp.mean(outside[:, 0].astype(w.dtype))


def rollout_weights(inputs: Inputs, hyper: Hyper) -> Mapping[str, Array]:
    stats, batch = record(inputs)
    stats, batch = o.clean(stats, batch)
    weight = correction(hyper)(stats, batch)
    _, of = correction_ratio(hyper)
    raw = partial(o.importance, of=of, clamp=hyper["correction_clamp"])
    result = {"clipped": (weight != raw(stats, batch)).astype(weight.dtype)}
    if hyper.get("correction_normalize", "none") == "batch_mean":
        level = "token" if hyper["correction_level"] == "token" else "row"
        step = partial(o.normalized_weight, weight=correction(hyper), level=level)
        weight = step(stats, batch, jax.random.key(0)).select["weight"]
    result |= {"weights": weight, "mean": masked.mean(raw(stats, batch), batch.mask)}
    upper = hyper["correction_upper"]
    if upper is not None:
        u = partial(o.truncated, of=of, clamp=hyper["correction_clamp"], lower=1.0 / upper, upper=upper)(stats, batch)
        result["eff_sample_size"] = masked.mean(u, batch.mask) ** 2 / masked.mean(u**2, batch.mask)
    return result | {"out_of_bounds_fraction": out_of_bounds(stats, batch, hyper)}


def rejection(inputs: Inputs, hyper: Hyper) -> Mapping[str, Array]:
    keep = partial(
        o.kept,
        estimator=o.ESTIMATORS[str(hyper["correction_statistic"])],
        level=str(hyper["correction_level"]).removeprefix("sequence_"),
        lower=hyper["correction_lower"],
        upper=hyper["correction_upper"],
        exponential=hyper["correction_bounds_on"] == "exp_statistic",
    )
    return removed(Policy(o.reinforce, keep=keep), *record(inputs))


def off_policy_metrics(inputs: Inputs, hyper: Hyper) -> Mapping[str, Array]:
    _, batch = record(inputs)
    return o.mismatch(batch, clamp=hyper["correction_clamp"])


def kl_in_reward(inputs: Inputs, hyper: Hyper) -> Mapping[str, Array]:
    mask = inputs["mask"]
    if hyper["reward_placement"] == "per_token":
        reward = inputs["token_rewards"]
    else:
        reward = o.at_last_token(inputs["rewards"], mask)
    kernel = {"coef": hyper["kl_coef"], "estimator": o.ESTIMATORS[str(hyper["kl_estimator"])]}
    return {"token_rewards": o.kl_in_reward(reward, inputs["logp_old"], inputs["logp_ref"], mask, **kernel)}


def kl_controller(inputs: Inputs, hyper: Hyper) -> Mapping[str, Array]:
    keywords = {"target": hyper["kl_target"], "horizon": hyper["horizon"], "steps": float(hyper["n_steps"])}
    beta, found = jnp.asarray(hyper["beta_init"], jnp.float64), []
    for measured in inputs["kl"]:
        beta = o.proportional(beta, measured, **keywords, clip=hyper["error_clip"])
        found.append(beta)
    return {"beta": jnp.stack(found)}


def value_loss(inputs: Inputs, hyper: Hyper) -> Mapping[str, Array]:
    stats, batch = record(inputs)
    stats = dataclasses.replace(stats, value=inputs["values"])
    batch = dataclasses.replace(batch, returns=inputs["returns"], value_old=inputs["values_old"])
    reduce, scale = aggregation(hyper, batch.mask)
    clip = hyper["eps_value"]
    loss, gradient = evaluate((o.Part(reduce, o.scale(partial(o.value_clip, clip=clip), by=scale)),), stats, batch)
    stats, batch = o.clean(stats, batch)
    plain = o.value_clip(stats, batch, clip=None)
    clipped = jnp.square(o.clipped_value(stats, batch, clip=clip) - jnp.where(batch.mask, inputs["returns"], 0.0)) / 2
    share = masked.mean((clipped > plain).astype(plain.dtype), batch.mask)
    slope = {} if gradient.value is None else {"grad_values": gradient.value}
    return {"loss": loss, "clip_fraction": share} | slope


def top_entropy_mask(inputs: Inputs, hyper: Hyper) -> Mapping[str, Array]:
    stats, batch = record(inputs)
    batch = top_entropy_step(hyper)(stats, batch, jax.random.key(0))
    return removed(Policy(o.reinforce, keep=partial(o.chosen, name="top_entropy")), stats, batch)


def token_logp(inputs: Inputs, hyper: Hyper) -> Mapping[str, Array]:
    return token_statistics(inputs["logits"], inputs["token_ids"], temperature=hyper["temperature"])


def entropy(inputs: Inputs, hyper: Hyper, *, sign: float = 1.0) -> Mapping[str, Array]:
    """The entropy at every position, its mean, and the loss that is minus this mean."""

    def per_position(logits: Array) -> Array:
        nothing = jnp.zeros(logits.shape[:2], jnp.int32)
        return token_statistics(logits, nothing, want=("entropy",))["entropy"]

    logits = inputs["logits"]
    if hyper["aggregation"] == "none":
        return {"entropy": per_position(logits)}

    def objective(logits: Array) -> Array:
        stats, batch = record({"mask": inputs["mask"], "entropy": per_position(logits)})
        part = o.Part(aggregation(hyper, batch.mask)[0], o.negative_entropy)
        return -o.loss((part,), stats, dataclasses.replace(batch, weight=o.weights((part,), batch)))

    mean, gradient = jax.value_and_grad(objective)(logits)
    result = {"entropy": per_position(logits), "mean_entropy": mean, "loss": -mean}
    return result | {"grad_logits": sign * gradient}


def reinforce(inputs: Inputs, hyper: Hyper) -> Mapping[str, Array]:
    if "logits" in inputs:
        return reinforce_from_logits(inputs, hyper)
    return policy(inputs, hyper, build=plain_reinforce)


def plain_reinforce(hyper: Hyper) -> Policy:
    del hyper
    return Policy(o.reinforce)


def reinforce_from_logits(inputs: Inputs, hyper: Hyper) -> Mapping[str, Array]:
    def objective(logits: Array) -> Array:
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), inputs["token_ids"][..., None], axis=-1)[..., 0]
        stats, batch = record({**inputs, "logp_new": chosen})
        parts = (o.Part(aggregation(hyper, batch.mask)[0], o.reinforce),)
        return o.loss(parts, stats, dataclasses.replace(batch, weight=o.weights(parts, batch)))

    loss, gradient = jax.value_and_grad(objective)(inputs["logits"])
    return {"loss": loss, "grad_logits": gradient}


def table(**families: tuple[Binding, str]) -> dict[tuple[str, str], Binding]:
    return {
        (family.split("__")[0], variant): binding
        for family, (binding, variants) in families.items()
        for variant in variants.split()
    }


BINDINGS = table(
    advantage=(
        row_advantage,
        "grpo grpo_population_std grpo_vectorized grpo_batch_std grpo_leave_one_out_std dr_grpo rloo rloo_vectorized "
        "batch_normalized opo",
    ),
    advantage__whitened=(whitened_advantage, "reinforce_batch_norm reinforce_pp_baseline"),
    advantage__gpg=(gpg_advantage, "gpg"),
    advantage__weighted=(weighted_advantage, "multi_reward_weighted_sum"),
    advantage__gdpo=(gdpo_advantage, "gdpo"),
    advantage__maxrl=(maxrl_advantage, "maxrl"),
    advantage__passk=(passk_advantage, "passk_analytic"),
    advantage__best=(max_minus_second, "passk_max_minus_second"),
    advantage__returns=(discounted, "discounted_returns reinforce_pp"),
    advantage__remax=(remax_advantage, "remax"),
    advantage__critic=(critic_advantage, "lambda_returns gae gae_length_adaptive"),
    advantage__token=(token_baseline, "optimal_token_baseline"),
    reward_shaping=(overlong, "soft_overlong soft_overlong_unbounded"),
    aggregate=(aggregate, "token-mean seq-mean-token-mean seq-mean-token-sum seq-mean-token-sum-norm token-sum-norm"),
    kl=(kl, "k1 k2 k3 abs low_var_kl unbiased_k1 unbiased_k2 unbiased_k3 unbiased_low_var_kl"),
    kl__reward=(kl_in_reward, "kl_in_reward"),
    kl_controller=(kl_controller, "adaptive_proportional"),
    entropy=(entropy, "categorical"),
    entropy__loss=(partial(entropy, sign=-1.0), "entropy_loss"),
    entropy__mask=(top_entropy_mask, "top_entropy_mask"),
    logprob=(token_logp, "selective_log_softmax"),
    policy_loss__ppo=(
        partial(policy, build=ppo),
        "grpo ppo_clip ppo_clip_dual grpo_kl_unbiased grpo_kl_unbiased_on_policy gspo gspo_token luspo "
        "ppo_clip_sequence_sum",
    ),
    policy_loss__corrected=(
        partial(policy, build=corrected_ppo),
        "ppo_clip_tis grpo_tis ppo_clip_icepop seq_mask_tis",
    ),
    policy_loss__reinforce_tis=(partial(policy, build=corrected_reinforce), "reinforce_tis"),
    policy_loss__positive=(partial(policy, build=positive_nll), "ppo_clip_positive_nll"),
    policy_loss__cispo=(partial(policy, build=cispo), "cispo"),
    policy_loss__gmpo=(partial(policy, build=gmpo), "gmpo"),
    policy_loss__sapo=(partial(policy, build=sapo), "sapo"),
    policy_loss__vespo=(partial(policy, build=vespo), "vespo"),
    policy_loss__kl_cov=(partial(policy, build=kl_cov), "kl_cov"),
    policy_loss__clip_cov=(partial(policy, build=clip_cov), "clip_cov"),
    policy_loss__opsm=(partial(policy, build=opsm), "opsm"),
    policy_loss__top_entropy=(partial(policy, build=top_entropy), "top_entropy_mask"),
    policy_loss__dppo=(partial(policy, build=partial(dppo, symmetric=False)), "dppo_binary_tv"),
    policy_loss__ipo=(partial(policy, build=partial(dppo, symmetric=True)), "ipo_symmetric_tv"),
    policy_loss__reinforce=(reinforce, "reinforce gpg"),
    rollout_correction__weights=(
        rollout_weights,
        "icepop tis_two_sided is_token_mask is_token_truncate is_sequence_mask is_sequence_truncate tis_token "
        "tis_sequence",
    ),
    rollout_correction__rejection=(
        rejection,
        "reject_token_k1 reject_token_k2 reject_token_k3 reject_seq_sum_k1 reject_seq_mean_k1 reject_seq_mean_k3 "
        "reject_seq_max_k2",
    ),
    rollout_correction__metrics=(off_policy_metrics, "offpolicy_metrics"),
    value_loss=(value_loss, "ppo_clipped"),
)


# --------------------------------------------------------------------------------------------------------- the test


@dataclasses.dataclass
class Tally:
    """Outcome of a set."""

    matched: list[str] = dataclasses.field(default_factory=list)
    failed: list[str] = dataclasses.field(default_factory=list)
    unbound: dict[str, str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return f"golden: matched={len(self.matched)} failed={len(self.failed)} unbound={len(self.unbound)}"


def with_defaults(hyper: Hyper, schema: Mapping[str, Mapping]) -> dict:
    return {key: entry["default"] for key, entry in schema.items() if "default" in entry} | dict(hyper)


def inputs_of(case: Mapping, arrays: Mapping[str, np.ndarray]) -> Inputs:
    inputs = {}
    for role, key in case["inputs"].items():
        array = arrays[key]
        if np.issubdtype(array.dtype, np.floating):
            inputs[role] = jnp.asarray(array, bool if role == "mask" else jnp.float64)
        else:
            inputs[role] = jnp.asarray(array, jnp.int32)
    return inputs


def differences(case: Mapping, got: Mapping, arrays: Mapping, inputs: Inputs, outputs: Mapping) -> Iterator[str]:
    """Outputs of a case that the library computes differently, or not at all."""
    expected = {name: arrays[key] for name, key in case["outputs"].items()} | case["scalars"]
    for name, wanted in expected.items():
        if name not in got:
            yield f"{name} is not computed"
            continue
        actual, wanted = np.asarray(got[name], np.float64), np.asarray(wanted, np.float64)
        if wanted.ndim == 2 and wanted.shape[1] == 1:
            actual = actual[:, :1]  # one number a row, where the library has it on all of the row's positions
        if actual.shape != wanted.shape:
            yield f"{name} has shape {actual.shape}, expected {wanted.shape}"
            continue
        if outputs[name]["compare"] != "all" and "mask" in inputs and wanted.shape == inputs["mask"].shape:
            scored = np.asarray(inputs["mask"])
            actual, wanted = actual[scored], wanted[scored]
        if not np.allclose(actual, wanted, rtol=case["rtol"], atol=case["atol"], equal_nan=False):
            yield f"{name} differs by {np.max(np.abs(actual - wanted)):.3g}"


def tally(folder: Path) -> tuple[Tally, set[tuple[str, str]]]:
    """Outcome of every case of a folder, and the (family, variant) of those left unbound."""
    index = json.loads((folder / "index.json").read_text())
    schema = json.loads((folder / index.get("schema_file", "schema.json")).read_text())
    result, variants = Tally(), set()
    with np.load(folder / index["arrays_file"], allow_pickle=False) as arrays, jax.enable_x64(True):
        for case in index["cases"]:
            key = (case["family"], case["variant"])
            inputs = inputs_of(case, arrays) if key in BINDINGS else {}
            try:
                if key not in BINDINGS:
                    raise Unbound("variant")
                got = BINDINGS[key](inputs, with_defaults(case["hyper"], schema["keys"]))
            except Unbound as reason:
                result.unbound[case["id"]] = str(reason)
                variants.add(key)
                continue
            wrong = list(differences(case, got, arrays, inputs, schema["outputs"]))
            if wrong:
                result.failed.append(f"{case['id']}: {'; '.join(wrong)}")
            else:
                result.matched.append(case["id"])
    return result, variants


@pytest.fixture(scope="module")
def outcome() -> tuple[Tally, set[tuple[str, str]]]:
    return tally(FOLDER)


def test_bound_cases_match_the_other_implementations(outcome, capsys: pytest.CaptureFixture[str]):
    with capsys.disabled():
        print(f"\n{outcome[0]}")
    assert not outcome[0].failed, "\n".join(outcome[0].failed)
    assert outcome[0].matched


def test_the_unbound_variants_are_exactly_the_pinned_ones(outcome):
    pinned = {(family, variant) for family, variants in UNBOUND.items() for variant in variants.split()}
    assert not pinned & BINDINGS.keys()
    if FOLDER == HERE:
        assert outcome[1] == pinned, outcome[0].unbound


def test_a_wrong_number_is_found():
    case = {"outputs": {}, "scalars": {"loss": 1.0}, "rtol": 1e-6, "atol": 1e-8}
    compare = {"loss": {"compare": "all"}}
    assert list(differences(case, {"loss": jnp.asarray(1.0)}, {}, {}, compare)) == []
    assert list(differences(case, {"loss": jnp.asarray(1.01)}, {}, {}, compare)) == ["loss differs by 0.01"]
    assert list(differences(case, {}, {}, {}, compare)) == ["loss is not computed"]


def test_a_convention_without_an_argument_leaves_the_case_unbound():
    hyper = {
        "clip_low": 0.2,
        "clip_high": 0.2,
        "clip_bounds": "relative",
        "clamp_log_ratio": None,
        "ratio": "sequence_sum",
    }
    with pytest.raises(Unbound, match="ratio='sequence_sum'"):
        gmpo(hyper)


# ------------------------------------------------------------------- variants of the schema that no case here computes

CLIPPED = {"clip_low": 0.2, "clip_high": 0.28, "clip_bounds": "relative", "clamp_log_ratio": None}
TOKENS = {"aggregation": "token-mean", "ratio": "token", **CLIPPED}
ROWS = {"sequence_denominator": "all_rows", "ratio": "sequence_mean", **CLIPPED}
SPECIFIED: dict[str, dict[str, Any]] = {
    "luspo": {"aggregation": "seq-mean-token-sum", **ROWS},
    "gmpo": {"aggregation": "row-mean", "empty_row": "surrogate", **ROWS, "ratio": "token", "clip_bounds": "log"},
    "vespo": {"aggregation": "token-mean", "k_pos": 2.0, "k_neg": 3.0, "lambda_pos": 3.0, "lambda_neg": 2.0}
    | {"clamp_log_ratio": 20.0, "clamp_seq_log_ratio_min": -18.0, "clamp_seq_log_ratio_max": 20.0},
    "kl_cov": {"aggregation": "token-mean", "cov_fraction": 0.2, "cov_penalty": "k3", "cov_penalty_coef": 0.5},
    "opsm": {**TOKENS, "kl_threshold": 0.01, "behaviour_logp": "rollout"},
    "top_entropy_mask": {**TOKENS, "top_entropy_fraction": 0.25},
    "seq_mask_tis": {**TOKENS, "correction_kind": "row_mask", "correction_level": "sequence_mean"}
    | {"correction_lower": 0.95, "correction_upper": 1.05},
}


def specified(variant: str, x: Mapping[str, np.ndarray], hyper: Hyper) -> float:
    """The loss of a variant as the schema states it, in numpy."""
    m, a = x["mask"], x["advantages"]
    d, n = x["logp_new"] - x["logp_old"], np.maximum(x["mask"].sum(1, keepdims=True), 1)

    def clipped(r: np.ndarray) -> np.ndarray:
        return -np.minimum(r * a, np.clip(r, 0.8, 1.28) * a)

    def token_mean(loss: np.ndarray) -> float:
        return float(np.sum(m * loss) / m.sum())

    def row(z: np.ndarray) -> np.ndarray:
        return np.sum(m * z, axis=1, keepdims=True)

    match variant:
        case "luspo":
            return float(np.sum(m * clipped(np.exp(row(d) / n))) / len(m))
        case "gmpo":
            z = np.where(a > 0, np.minimum(d, 0.28), np.where(a < 0, np.maximum(d, -0.2), 0))
            return float(np.mean(-a[:, :1] * np.exp(row(z) / n)))
        case "vespo":
            s = np.clip(row(np.clip(d, -20, 20)), -18, 20)
            k, rate = np.where(a >= 0, 2.0, 3.0), np.where(a >= 0, 3.0, 2.0)
            return token_mean(-np.exp(rate + k * s - rate * np.exp(s)) * a * x["logp_new"])
        case "kl_cov":
            scored = m > 0
            cov = (a - a[scored].mean()) * (x["logp_new"] - x["logp_new"][scored].mean())
            bar = np.sort(cov[scored])[-max(1, int(0.2 * scored.sum()))]
            return token_mean(-np.exp(d) * a + 0.5 * (cov >= bar) * (np.exp(-d) + d - 1))
        case "opsm":
            drop = (a < 0) & (row(x["logp_rollout"] - x["logp_new"]) / n > 0.01)
            return token_mean(np.where(drop, 0, clipped(np.exp(d))))
        case "top_entropy_mask":
            bar = np.quantile(x["entropy"][m > 0], 0.75)
            return token_mean(np.where(x["entropy"] >= bar, clipped(np.exp(d)), 0))
        case "seq_mask_tis":
            w = x["logp_old"] - x["logp_rollout"]
            mean = np.exp(row(w) / n)
            return token_mean(clipped(np.exp(d)) * np.exp(w) * ((mean >= 0.95) & (mean <= 1.05)))
    raise AssertionError(variant)


@pytest.mark.parametrize("variant", SPECIFIED)
def test_a_variant_without_a_case_is_bound_to_what_the_schema_says(variant: str):
    schema = json.loads((HERE / "schema.json").read_text())["keys"]
    with np.load(HERE / "arrays.npz", allow_pickle=False) as arrays, jax.enable_x64(True):
        names = "logp_new logp_old logp_rollout mask"
        x = {name: arrays[f"holes/{name}"] for name in names.split()} | {"advantages": arrays["holes/advantages"]}
        x["entropy"] = np.random.default_rng(0).uniform(0.1, 2.0, x["mask"].shape)
        inputs = {name: jnp.asarray(value, bool if name == "mask" else jnp.float64) for name, value in x.items()}
        hyper = with_defaults(SPECIFIED[variant], schema)
        got = BINDINGS["policy_loss", variant](inputs, hyper)
        np.testing.assert_allclose(got["loss"], specified(variant, x, hyper), rtol=1e-9)
        assert np.all(np.isfinite(got["grad_logp_new"])) and np.any(got["grad_logp_new"])


SPREAD = {"std": "sample", "eps": 0.01, "advantage_shape": "row"}
ESTIMATED: dict[str, dict[str, Any]] = {
    "opo": {"baseline": "length_weighted", "std": "none", "singleton": "raw", "advantage_shape": "token"},
    "gdpo": {"baseline": "group_mean", "reward_weights": [1.0, 0.5, 0.25], "missing": "component", **SPREAD}
    | {"renormalize": "batch", "renormalize_eps": 0.1},
    "gdpo leave_one_out": {"baseline": "leave_one_out", "reward_weights": [1.0, 0.5, 0.25], "missing": "row", **SPREAD},
    "passk_max_minus_second": SPREAD,
}


def estimated(name: str, x: Mapping[str, np.ndarray]) -> np.ndarray:
    """The advantage of a variant as the schema states it, group by group in numpy."""
    groups = [np.flatnonzero(x["group_ids"] == g) for g in np.unique(x["group_ids"])]
    reward, found = x["rewards"], np.zeros(x["rewards"].shape[0])
    if name == "opo":
        n = x["mask"].sum(1)
        for g in groups:
            found[g] = reward[g] - (np.average(reward[g], weights=n[g]) if len(g) > 1 else 0.0)
        return found[:, None] * x["mask"]
    if name == "passk_max_minus_second":
        for g in groups:
            if len(g) > 1:
                second, first = np.sort(reward[g])[-2:]
                found[g[np.argmax(reward[g])]] = (first - second) / (reward[g].std(ddof=1) + 0.01)
        return found
    there = ~np.isnan(reward)
    if name == "gdpo leave_one_out":
        there &= there.all(1, keepdims=True)
    for g in groups:
        for k, weight in enumerate((1.0, 0.5, 0.25)):
            rows = g[there[g, k]]
            if len(rows) > 1:
                r = reward[rows, k]
                centred = (r - r.mean()) * (len(r) / (len(r) - 1) if name == "gdpo leave_one_out" else 1.0)
                found[rows] += weight * centred / (r.std(ddof=1) + 0.01)
    some = there.any(1)
    return (
        np.where(some, (found - found[some].mean()) / (found[some].std(ddof=1) + 0.1), 0) if name == "gdpo" else found
    )


@pytest.mark.parametrize("name", ESTIMATED)
def test_an_advantage_without_a_case_is_bound_to_what_the_schema_says(name: str):
    schema = json.loads((HERE / "schema.json").read_text())["keys"]
    with np.load(HERE / "arrays.npz", allow_pickle=False) as arrays, jax.enable_x64(True):
        batch = "multi" if name.startswith("gdpo") else "unequal"
        x = {"group_ids": arrays[f"{batch}/group_ids"]}
        if name.startswith("gdpo"):
            x["rewards"] = arrays["multi/rewards_multi_nan"]
        else:
            x |= {"rewards": arrays["unequal/rewards"], "mask": arrays["unequal/mask"]}
        inputs = {key: jnp.asarray(value) for key, value in x.items() if key != "mask"}
        inputs |= {"mask": jnp.asarray(x["mask"], bool)} if "mask" in x else {}
        hyper = with_defaults(ESTIMATED[name], schema)
        got = BINDINGS["advantage", name.split(maxsplit=1)[0]](inputs, hyper)["advantages"]
        assert np.any(got)
        np.testing.assert_allclose(got, estimated(name, x), rtol=1e-9, atol=1e-12)


def test_every_variant_of_the_schema_is_bound():
    schema = json.loads((HERE / "schema.json").read_text())
    assert {tuple(name.split(".")) for name in schema["variants"]} == BINDINGS.keys()
