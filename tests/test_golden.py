"""The numbers of other implementations: a case is matched by binding arguments from its `variant` and `hyper` alone.

``BINDINGS`` maps (family, variant) to a function ``(inputs, hyper) -> outputs`` that calls this library; it has every
variant of the schema. What a case asks for and no function has an argument for raises `Unbound`.

    python tests/test_golden.py      # in float64: a set is judged in a process of its own, and so does the test here

``GRPO_GOLDEN_DIR`` names the folder of another set of the same format. ``GRPO_GOLDEN_REPORT`` names a file that gets
one line of JSON a case: `id`, `status` ("matched", "failed" or "unbound"), `error`, the largest difference of a number
(null where there is none to compare), and `detail`. The last line printed counts; the exit status is 1 unless every
case is matched.
"""

import dataclasses
import json
import os
import subprocess
import sys
import traceback
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
from tests import golden_foreign

HERE = Path(__file__).resolve().parent / "golden"

Inputs = Mapping[str, Array]
Hyper = Mapping[str, Any]
Binding = Callable[[Inputs, Hyper], Mapping[str, Array]]


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
    return reward, group, shape


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
    value = above_baseline(reward, group, shape, inputs, hyper)
    if hyper["whiten"] == "none":
        return as_asked(value, inputs, hyper)
    mask = inputs["mask"]
    tokens = whitened(jnp.broadcast_to(value[:, None], mask.shape), mask, hyper)
    if hyper["advantage_shape"] == "token":
        return {"advantages": tokens}
    return {"advantages": jnp.sum(tokens, axis=1) / jnp.maximum(masked.count(mask, axis=1), 1.0)}  # all of them equal


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
    logp = inputs.get("logp_new", inputs.get("per_token_loss", inputs.get("logp_old", zero)))
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


def aggregation(hyper: Hyper, mask: Array, rows: str | None = None) -> tuple[Callable[[Batch], Array], float]:
    """Aggregation of the library for a case, and the number its loss is multiplied by.

    `rows` takes the place of the case's `sequence_denominator`. A variant that has an aggregation and no key for its
    denominator (entropy) has the ones of verl: rows with a token, and the width of the array for a constant.
    """
    name, scale, batch_rows = hyper["aggregation"], float(hyper.get("dp_size", 1)), mask.shape[0]
    given = hyper.get("global_denominator")
    constant = float(hyper.get("norm_constant", mask.shape[1]))
    own = "none" if name.endswith("-norm") else "nonempty_rows"
    rows = str(rows or hyper.get("sequence_denominator") or own)
    whole = {"all_rows": "all", "given": "all", "nonempty_rows": "nonempty", "none": "none"}[rows]
    if given is not None and name in ("token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"):
        length = constant if name.endswith("-norm") else 1.0
        return partial(o.fixed_length, constant=float(given) * length, rows="none"), scale
    match name:
        case "token-mean":
            return o.token_mean, scale
        case "seq-mean-token-mean" | "row-mean":
            # For row-mean: a row's loss stands on each of its tokens, and the mean over them is the loss itself.
            if given is None and whole != "none":
                empty = "count" if whole == "all" else "skip"
                return partial(o.sequence_mean_token_mean, empty=empty), scale
            # The mean is over all the rows of this batch: rows / D of it is the mean over D of them.
            return partial(o.sequence_mean_token_mean, empty="count"), scale * batch_rows / float(given or 1)
        case "seq-mean-token-sum":
            return partial(o.fixed_length, constant=1.0, rows=whole), scale
        case "seq-mean-token-sum-norm":
            return partial(o.fixed_length, constant=constant, rows=whole), scale
        case "token-sum-norm":
            return partial(o.fixed_length, constant=constant, rows="none"), scale
        case "token-sum" | "none":
            return partial(o.fixed_length, constant=1.0, rows="none"), scale
        case "position-mean":
            return partial(o.fixed_length, constant=float(mask.size), rows="none"), scale
    raise Unbound(f"aggregation={name!r}")


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
    keywords = clip_of(hyper)
    del keywords["ratio"]  # its ratios are those of tokens; the row's is what the clip fractions may count
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
    clip = clip_of(hyper)
    prepare = partial(
        o.clip_cov_tokens,
        fraction=hyper["cov_fraction"],
        cov_low=hyper["cov_low"],
        cov_high=hyper["cov_high"],
        clip_low=clip["low"],
        clip_high=clip["high"],
        clip_bounds=clip["bounds"],
        ratio=clip["ratio"],
        clamp_log_ratio=clip["clamp_log_ratio"],
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
        return {"keep_mask": batch.mask.astype(stats.logp.dtype)}
    keep = jnp.where(batch.mask, built.keep(*o.clean(stats, batch)), 0.0)
    return {"keep_mask": keep, "mask": keep, "masked_fraction": masked.mean(1.0 - keep, batch.mask)}


def surrogate_of_empty_rows(batch: Batch, hyper: Hyper) -> Array:
    """What TRL adds for a row without tokens: -A_i / D, a constant, which no weight of this library can express."""
    empty = ~jnp.any(batch.mask, axis=1)
    number = empty.shape[0]
    rows = {"all_rows": number, "given": number, "none": 1, "nonempty_rows": jnp.maximum(jnp.sum(~empty), 1)}
    return -jnp.sum(jnp.where(empty, batch.advantage[:, 0], 0.0)) / rows[str(hyper["sequence_denominator"])]


def clip_report(stats: TokenStats, batch: Batch, hyper: Hyper, extra: Mapping[str, Array]) -> dict[str, Array]:
    """Shares of clipped tokens, or of rows that each weigh 1, as `clip_metric` counts them."""
    if "clip_low" not in hyper:
        return {}
    clip = clip_of(hyper)
    clamp = clip.pop("clamp_log_ratio")
    low, high = clip.pop("low"), clip.pop("high")
    within = {**clip, "clamp_log_ratio": clamp}
    stats, batch = o.clean(stats, batch)
    r, (lower, upper) = jnp.exp(clip["ratio"](stats, batch, clamp=clamp)), o.interval(low, high, clip["bounds"])
    outside = (~o.within(r, lower, upper)).astype(r.dtype)
    nothing = jnp.zeros_like(r)
    below = nothing if low is None else metrics.clipped_low(stats, batch, low=low, **within)
    above = nothing if high is None else metrics.clipped_high(stats, batch, high=high, **within)
    dual, c = nothing, hyper["dual_clip_c"]
    if c is not None:
        surrogate = o.ppo_clip(stats, batch, low=low, high=high, **within)
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
    if hyper["kl_coef"] is None:
        return {"token_rewards": reward}
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


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of a case, as it stands in the report."""

    id: str
    status: str
    error: float | None = None
    detail: str = ""


def with_defaults(hyper: Hyper, schema: Mapping[str, Mapping]) -> dict:
    return {key: entry["default"] for key, entry in schema.items() if "default" in entry} | dict(hyper)


INTEGERS = ("group_ids", "token_ids", "lengths")


def inputs_of(case: Mapping, arrays: Mapping[str, np.ndarray]) -> Inputs:
    """The arrays of a case by their role, in the dtype that the role has, whatever a file holds them in."""
    inputs = {}
    for role, key in case["inputs"].items():
        array = arrays[key]
        if role == "group_ids":  # labels are below N; a prompt's number may be any
            array = np.unique(array, return_inverse=True)[1].reshape(array.shape)
        dtype = jnp.bool_ if role == "mask" else jnp.int32 if role in INTEGERS else jnp.float64
        inputs[role] = jnp.asarray(array, dtype)
    return inputs


def differences(case: Mapping, got: Mapping, arrays: Mapping, inputs: Inputs, outputs: Mapping) -> Iterator[tuple]:
    """(largest difference, or None; what is wrong, or nothing) of every output of a case."""
    expected = {name: arrays[key] for name, key in case["outputs"].items()} | case["scalars"]
    for name, wanted in expected.items():
        if name not in got:
            yield None, f"{name} is not computed"
            continue
        actual, wanted = np.asarray(got[name], np.float64), np.asarray(wanted, np.float64)
        if wanted.ndim == 2 and wanted.shape[1] == 1:
            actual = actual[:, :1]  # one number a row, where the library has it on all of the row's positions
        if actual.shape != wanted.shape:
            yield None, f"{name} has shape {actual.shape}, expected {wanted.shape}"
            continue
        if outputs[name]["compare"] != "all" and "mask" in inputs and wanted.shape == inputs["mask"].shape:
            scored = np.asarray(inputs["mask"])
            actual, wanted = actual[scored], wanted[scored]
        error = float(np.max(np.abs(actual - wanted), initial=0.0))
        same = np.allclose(actual, wanted, rtol=case["rtol"], atol=case["atol"], equal_nan=False)
        yield error, "" if same else f"{name} differs by {error:.3g}"


def judge(case: Mapping, arrays: Mapping[str, np.ndarray], schema: Mapping[str, Mapping]) -> Verdict:
    key = (case["family"], case["variant"])
    try:
        if key not in BINDINGS:
            raise Unbound("variant")
        inputs = inputs_of(case, arrays)
        got = BINDINGS[key](inputs, with_defaults(case["hyper"], schema["keys"]))
        found = list(differences(case, got, arrays, inputs, schema["outputs"]))
    except Unbound as reason:
        return Verdict(case["id"], "unbound", detail=str(reason))
    except Exception as error:  # one case that breaks must not hide what became of the others
        place = traceback.extract_tb(error.__traceback__)[-1]
        detail = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {error}".splitlines()[0]
        return Verdict(case["id"], "failed", detail=detail)
    wrong = "; ".join(text for _, text in found if text)
    errors = [error for error, _ in found if error is not None]
    return Verdict(case["id"], "failed" if wrong else "matched", max(errors, default=None), wrong)


def verdicts(folder: Path) -> Iterator[Verdict]:
    """Every case of a folder, in order; to be called in float64."""
    index = json.loads((folder / "index.json").read_text())
    schema = json.loads((folder / index.get("schema_file", "schema.json")).read_text())
    with np.load(folder / index.get("arrays_file", "arrays.npz"), allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    for case in index["cases"]:
        yield judge(case, arrays, schema)


def main() -> int:
    """Judge the set that the environment names."""
    jax.config.update("jax_enable_x64", True)
    counts: dict[str, int] = {"matched": 0, "failed": 0, "unbound": 0}
    report = os.environ.get("GRPO_GOLDEN_REPORT")
    with open(report or os.devnull, "w", encoding="utf-8") as lines:
        for verdict in verdicts(Path(os.environ.get("GRPO_GOLDEN_DIR") or HERE)):
            counts[verdict.status] += 1
            print(json.dumps(dataclasses.asdict(verdict)), file=lines, flush=True)
            if verdict.status != "matched":
                print(f"{verdict.status}: {verdict.id}: {verdict.detail}")
    print("golden: " + " ".join(f"{status}={number}" for status, number in counts.items()))
    return 0 if counts["matched"] == sum(counts.values()) > 0 else 1


def judged(**environment: str) -> subprocess.CompletedProcess[str]:
    """`main` in a process of its own, with these variables changed."""
    path = os.pathsep.join([str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    environment = {**os.environ, "PYTHONPATH": path, "XLA_FLAGS": "", **environment}
    command = [sys.executable, __file__]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800, check=False)


def test_every_case_of_the_set_matches(record_property):
    found = judged()
    record_property("summary", (found.stdout.splitlines() or ["golden: no outcome"])[-1])
    assert found.returncode == 0, found.stdout + found.stderr
    assert not jax.config.read("jax_enable_x64")


def test_a_wrong_number_is_found():
    case = {"outputs": {}, "scalars": {"loss": 1.0}, "rtol": 1e-6, "atol": 1e-8}
    compare = {"loss": {"compare": "all"}}
    assert list(differences(case, {"loss": 1.0}, {}, {}, compare)) == [(0.0, "")]
    assert [text for _, text in differences(case, {"loss": 1.01}, {}, {}, compare)] == ["loss differs by 0.01"]
    assert list(differences(case, {}, {}, {}, compare)) == [(None, "loss is not computed")]


def test_a_convention_without_an_argument_leaves_the_case_unbound_and_one_that_breaks_hides_no_other():
    case = {"id": "x", "family": "aggregate", "variant": "token-mean", "inputs": {"mask": "m", "per_token_loss": "m"}}
    case |= {"outputs": {}, "scalars": {}, "hyper": {"aggregation": "token-median"}}
    schema, arrays = {"keys": {}, "outputs": {}}, {"m": np.ones((2, 3), np.float32)}
    with jax.enable_x64(True):
        verdict = judge(case, arrays, schema)
        assert verdict == Verdict("x", "unbound", None, "aggregation='token-median'")
        verdict = judge({**case, "variant": "token-median"}, arrays, schema)
        assert verdict == Verdict("x", "unbound", None, "variant")
        verdict = judge({**case, "hyper": {}}, arrays, schema)
        assert verdict.status == "failed" and "KeyError" in verdict.detail


# ------------------------------------------------------------------------------------------------- sets of others


def outcomes(folder: Path) -> list[Verdict]:
    """What becomes of a set here, without a process of its own."""
    with jax.enable_x64(True):
        return list(verdicts(folder))


def variants_without_a_case() -> set[str]:
    schema, index = (json.loads((HERE / name).read_text()) for name in ("schema.json", "index.json"))
    return set(schema["variants"]) - {f"{case['family']}.{case['variant']}" for case in index["cases"]}


@pytest.mark.slow
def test_variants_without_a_case_compute_what_the_schema_says(tmp_path: Path):
    names = variants_without_a_case()
    assert len(names) > 5
    with jax.enable_x64(True):
        number = golden_foreign.write(tmp_path, seed=5, draws=1, only=names)
    found = outcomes(tmp_path)
    assert len(found) == number == len(names)
    assert [verdict for verdict in found if verdict.status != "matched"] == []
    assert all(verdict.error is not None for verdict in found)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_set_of_other_sizes_and_hyper_parameters_matches(tmp_path: Path, seed: int):
    """Every variant, every value that the schema allows, arrays in the types of other programs."""
    with jax.enable_x64(True):
        number = golden_foreign.write(tmp_path, seed=seed, draws=4)
    assert number == 4 * len(BINDINGS)
    found = judged(GRPO_GOLDEN_DIR=str(tmp_path), GRPO_GOLDEN_REPORT=str(tmp_path / "report"))
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.splitlines()[-1] == f"golden: matched={number} failed=0 unbound=0"
    lines = [json.loads(line) for line in (tmp_path / "report").read_text().splitlines()]
    assert len(lines) == number and {line["status"] for line in lines} == {"matched"}


@pytest.mark.slow
def test_a_set_with_a_wrong_and_an_unknown_case_fails_and_says_which(tmp_path: Path):
    names = {"kl.k1", "kl.k2", "kl.k3"}
    with jax.enable_x64(True):
        golden_foreign.write(tmp_path, seed=1, draws=1, only=names)
    index = json.loads((tmp_path / "index.json").read_text())
    first, second, third = index["cases"]
    first["variant"], second["hyper"]["kl_estimator"] = "k9", "k3"
    (tmp_path / "index.json").write_text(json.dumps(index))
    found = judged(GRPO_GOLDEN_DIR=str(tmp_path), GRPO_GOLDEN_REPORT=str(tmp_path / "report"))
    assert found.returncode == 1
    assert found.stdout.splitlines()[-1] == "golden: matched=1 failed=1 unbound=1"
    lines = [json.loads(line) for line in (tmp_path / "report").read_text().splitlines()]
    expected = [(first["id"], "unbound"), (second["id"], "failed"), (third["id"], "matched")]
    assert [(line["id"], line["status"]) for line in lines] == expected


def test_every_variant_of_the_schema_is_bound():
    schema = json.loads((HERE / "schema.json").read_text())
    assert {tuple(name.split(".")) for name in schema["variants"]} == BINDINGS.keys()


if __name__ == "__main__":
    sys.exit(main())
