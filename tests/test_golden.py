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
from grpo_jax.types import Array, Batch, Prompts, Reward, Rollouts, TokenStats

HERE = Path(__file__).resolve().parent / "golden"
FOLDER = Path(os.environ.get("GRPO_GOLDEN_DIR") or HERE)

Inputs = Mapping[str, Array]
Hyper = Mapping[str, Any]
Binding = Callable[[Inputs, Hyper], Mapping[str, Array]]

UNBOUND = {
    "advantage": "discounted_returns gae gae_length_adaptive gpg lambda_returns maxrl multi_reward_weighted_sum "
    "optimal_token_baseline passk_analytic reinforce_batch_norm reinforce_pp reinforce_pp_baseline remax",
    "entropy": "categorical entropy_loss",
    "kl": "kl_in_reward",
    "kl_controller": "adaptive_proportional",
    "logprob": "selective_log_softmax",
    "policy_loss": "cispo clip_cov dppo_binary_tv grpo_tis gspo gspo_token ipo_symmetric_tv ppo_clip_icepop "
    "ppo_clip_positive_nll ppo_clip_sequence_sum ppo_clip_tis reinforce_tis sapo",
    "reward_shaping": "soft_overlong soft_overlong_unbounded",
    "rollout_correction": "icepop is_sequence_mask is_sequence_truncate is_token_mask is_token_truncate "
    "offpolicy_metrics reject_seq_max_k2 reject_seq_mean_k1 reject_seq_mean_k3 reject_seq_sum_k1 reject_token_k1 "
    "reject_token_k2 reject_token_k3 tis_sequence tis_token tis_two_sided",
    "value_loss": "ppo_clipped",
}
UNREPORTED = {"dual_clip_fraction"}
"""Outputs of bound cases that the library does not compute."""


class Unbound(Exception):
    """The library has no argument for a convention of the case."""


def take(hyper: Hyper, **allowed: object) -> None:
    """Refuse a case whose `hyper` has, under one of these keys, another value than the allowed one (or ones)."""
    for key, values in allowed.items():
        if key in hyper and hyper[key] not in (values if isinstance(values, tuple) else (values,)):
            raise Unbound(f"{key}={hyper[key]!r}")


# ---------------------------------------------------------------------------------------------------- advantages


def rewards_of(inputs: Inputs) -> tuple[Array, Array, dict]:
    reward = inputs["rewards"]
    return reward, inputs["group_ids"], {"num_groups": reward.shape[0], "valid": jnp.ones(reward.shape, bool)}


def spread_over_tokens(advantage: Array, inputs: Inputs, hyper: Hyper) -> dict[str, Array]:
    if hyper["advantage_shape"] == "row":
        return {"advantages": advantage}
    return {"advantages": jnp.where(inputs["mask"], advantage[:, None], 0.0)}


def row_advantage(inputs: Inputs, hyper: Hyper) -> Mapping[str, Array]:
    """Every (baseline, deviation) that `standardized` and `leave_one_out` cover, and the second normalisation."""
    reward, group, shape = rewards_of(inputs)
    take(hyper, whiten="none", missing="none")
    scope = hyper.get("std_scope", "group")
    guard = {"eps": hyper["eps"], "eps_mode": hyper["eps_mode"]} if hyper["std"] != "none" else {}
    match hyper["baseline"], scope:
        case "group_mean", "group" | "batch":
            floor = {"variance_floor": hyper.get("variance_floor") or 0.0} if guard else {}
            bound = partial(advantages.standardized, scope=scope, **floor)
        case "batch_mean", "batch":
            group, bound = jnp.zeros_like(group), advantages.standardized
        case "leave_one_out", "group" | "leave_one_out" if hyper["std"] == "none" or scope == "leave_one_out":
            if hyper["std"] != "none":
                take(hyper, zero_std="unscaled")
            bound = advantages.leave_one_out
        case baseline, _:
            raise Unbound(f"baseline={baseline!r} with std_scope={scope!r}")
    value = bound(reward, group, **shape, std=hyper["std"], singleton=hyper["singleton"], **guard)
    if hyper["renormalize"] == "batch":
        again = {"std": hyper["renormalize_std"], "eps": hyper["renormalize_eps"]}
        value = advantages.standardized(value, jnp.zeros_like(group), **shape, **again)
    return spread_over_tokens(value, inputs, hyper)


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
        case "seq-mean-token-mean" if empty is not None:
            # Its mean is over all the rows of this batch: rows / given of it is the mean over a given number.
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


def ppo_term(hyper: Hyper) -> o.Term:
    take(hyper, quantity="loss", ratio="token", clip_bounds="relative")
    low, high, dual = hyper["clip_low"], hyper["clip_high"], hyper.get("dual_clip_c")
    if dual is not None and hyper["dual_clip_form"] == "cap_ratio" and dual < 1.0 + (high or 0.0):
        raise Unbound("a ratio capped inside the clip interval")
    return partial(o.ppo_clip, low=low, high=high, dual=dual, clamp_log_ratio=hyper["clamp_log_ratio"])


def ppo(inputs: Inputs, hyper: Hyper) -> Mapping[str, Array]:
    """The clipped surrogate with an optional penalty inside its aggregation and an entropy bonus beside it."""
    take(hyper, clip_metric="binding", metric_level="token", entropy_aggregation="token-mean")
    stats, batch = record(inputs)
    reduce, scale = aggregation(hyper, batch.mask)
    term, extra = ppo_term(hyper), {}
    if hyper.get("kl_coef") is not None:
        term = o.add(term, o.scale(kl_term(hyper), by=hyper["kl_coef"]))
        extra["mean_kl"] = masked.mean(kl_term(hyper)(*o.clean(stats, batch)), batch.mask)
    parts = (o.Part(reduce, o.scale(term, by=scale)),)
    if hyper.get("entropy_coef") is not None:
        parts += (o.Part(o.token_mean, o.scale(o.negative_entropy, by=hyper["entropy_coef"])),)
    loss, gradient = evaluate(parts, stats, batch)
    low = metrics.clipped_low(stats, batch, low=hyper["clip_low"])
    high = metrics.clipped_high(stats, batch, high=hyper["clip_high"])
    log_ratio = o.log_ratio(stats, batch, clamp=hyper["clamp_log_ratio"] if clamped_metric(hyper) else None)
    return extra | {
        "loss": loss,
        "grad_logp_new": gradient.logp,
        "grad_entropy": gradient.entropy,
        "per_token_loss": term(*o.clean(stats, batch)),
        "clipped": low + high,
        "clip_fraction": masked.mean(low + high, batch.mask),
        "clip_fraction_low": masked.mean(low, batch.mask),
        "clip_fraction_high": masked.mean(high, batch.mask),
        "mean_k1_old_new": masked.mean(-log_ratio, batch.mask),
    }


def clamped_metric(hyper: Hyper) -> bool:
    return hyper.get("metric_log_ratio", "raw") == "clamped"


def reinforce(inputs: Inputs, hyper: Hyper) -> Mapping[str, Array]:
    if "logits" in inputs:
        return reinforce_from_logits(inputs, hyper)
    stats, batch = record(inputs)
    reduce, scale = aggregation(hyper, batch.mask)
    loss, gradient = evaluate((o.Part(reduce, o.scale(o.reinforce, by=scale)),), stats, batch)
    gap = masked.mean(-o.log_ratio(stats, batch), batch.mask)
    return {"loss": loss, "grad_logp_new": gradient.logp, "mean_k1_old_new": gap}


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
        "batch_normalized",
    ),
    aggregate=(aggregate, "token-mean seq-mean-token-mean seq-mean-token-sum seq-mean-token-sum-norm token-sum-norm"),
    kl=(kl, "k1 k2 k3 abs low_var_kl unbiased_k1 unbiased_k2 unbiased_k3 unbiased_low_var_kl"),
    policy_loss__ppo=(ppo, "grpo ppo_clip ppo_clip_dual grpo_kl_unbiased grpo_kl_unbiased_on_policy"),
    policy_loss__reinforce=(reinforce, "reinforce gpg"),
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
        if name in UNREPORTED:
            continue
        if name not in got:
            yield f"{name} is not computed"
            continue
        actual, wanted = np.asarray(got[name], np.float64), np.asarray(wanted, np.float64)
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
    hyper = {"clip_low": 0.2, "clip_high": 0.2, "clamp_log_ratio": None, "ratio": "sequence_mean"}
    with pytest.raises(Unbound, match="ratio='sequence_mean'"):
        ppo_term(hyper)
