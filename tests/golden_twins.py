"""What a set of golden numbers has to say, computed a second time: the formulas of its schema, written down plainly.

``expected(family, variant, inputs, hyper)`` gives every output of a case. Nothing here comes from the library: groups
are loops, rows are sums, and gradients are those of the formula. It is read by the test that sends sets of other
sizes, seeds and hyper-parameters through the bindings.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

Hyper = Mapping[str, Any]
Inputs = Mapping[str, Any]
Numbers = NDArray[np.float64]
Outputs = dict[str, Any]


# -------------------------------------------------------------------------------------------------------- advantages


def groups_of(x: Inputs) -> list[NDArray]:
    return [np.flatnonzero(x["group_ids"] == label) for label in np.unique(x["group_ids"])]


def guarded(s: Any, h: Hyper) -> Any:
    return s + h["eps"] if h["eps_mode"] == "add" else np.maximum(s, h["eps"])


def spread_of(values: Numbers, h: Hyper) -> float:
    """Standard deviation of some rewards; of fewer than the divisor needs, or of equal ones, 0."""
    ddof = 1 if h["std"] == "sample" else 0
    return 0.0 if np.ptp(values) == 0 or len(values) <= ddof else float(values.std(ddof=ddof))


def divisor(reward: Numbers, g: NDArray, i: int, h: Hyper, scored: NDArray | None = None) -> float:
    """What row `i` of the group `g` is divided by; `scored` are the rows of the batch that have a reward."""
    if h["std"] == "none":
        return 1.0
    whole = np.arange(len(reward)) if scored is None else scored
    over = {"group": g, "leave_one_out": g[g != i], "batch": whole}[h["std_scope"]]
    plain = spread_of(reward[over], h) if len(over) else 0.0
    if h["zero_std"] == "unscaled" and plain == 0:
        return 1.0
    return guarded(math.sqrt(max(plain**2, h["variance_floor"] or 0.0)), h)


def baseline(reward: Numbers, g: NDArray, i: int, length: Numbers, h: Hyper, scored: NDArray) -> float:
    """What is subtracted from the reward of row `i` of the group `g`."""
    match h["baseline"]:
        case "group_mean":
            return reward[g].mean()
        case "leave_one_out":
            return reward[g[g != i]].mean() if len(g) > 1 else 0.0
        case "length_weighted":
            return float(np.average(reward[g], weights=length[g])) if length[g].sum() else reward[i]
        case "batch_mean":
            return reward[scored].mean()
    return 0.0


def above(reward: Numbers, rows: list[NDArray], length: Numbers, h: Hyper) -> Numbers:
    """(R - baseline) / std of the rows of `rows`, which are those that have a reward; 0 for all others."""
    found, scored = np.zeros(len(reward)), np.concatenate([*rows, np.zeros(0, int)]).astype(int)
    for g in rows:
        for i in g:
            base = baseline(reward, g, i, length, h, scored)
            grouped = h["baseline"] in ("group_mean", "leave_one_out", "length_weighted")
            if grouped and len(g) == 1:
                unit = 1.0 if h["std"] == "none" else guarded(1.0, h)
                found[i] = reward[i] / unit if h["singleton"] == "raw" else 0.0
            else:
                found[i] = (reward[i] - base) / divisor(reward, g, i, h, scored)
    return found


def again(value: Numbers, rows: list[NDArray], h: Hyper) -> Numbers:
    if h["renormalize"] == "none":
        return value
    scored = np.concatenate(rows)
    s = spread_of(value[scored], {"std": h["renormalize_std"]})
    found = np.zeros(len(value))
    if np.ptp(value[scored]) > 0:
        found[scored] = (value[scored] - value[scored].mean()) / (s + h["renormalize_eps"])
    return found


def shaped(value: Numbers, x: Inputs, h: Hyper) -> Outputs:
    return {"advantages": value if h["advantage_shape"] == "row" else value[:, None] * x["mask"]}


def whitened(value: Numbers, mask: Numbers, h: Hyper) -> Numbers:
    if h["whiten"] == "none":
        return value
    tokens = value[mask > 0]
    v = tokens.var(ddof=1 if h["whiten_std"] == "sample" and len(tokens) > 1 else 0)
    s = math.sqrt(v + h["whiten_eps"] if h["whiten_eps_mode"] == "add" else max(v, h["whiten_eps"]))
    return np.where(mask > 0, (value - tokens.mean()) / s, 0.0)


def advantage_of_rows(variant: str, x: Inputs, h: Hyper) -> Outputs:
    rows, reward = groups_of(x), x["rewards"]
    length = x["mask"].sum(1) if "mask" in x else np.ones(len(reward))
    match variant:
        case "multi_reward_weighted_sum" | "gdpo":
            there = ~np.isnan(reward)
            if h["missing"] == "row":
                there &= there.all(1, keepdims=True)
            kept = [g[there[g].any(1)] for g in rows]
            kept = [g for g in kept if len(g)]
            weights = np.asarray(h["reward_weights"])
            if variant == "gdpo":
                value = np.zeros(len(reward))
                for k, weight in enumerate(weights):
                    part = [g[there[g, k]] for g in rows]
                    part = [g for g in part if len(g)]
                    value += weight * above(np.nan_to_num(reward[:, k]), part, length, {"singleton": "zero", **h})
            else:
                summed = np.where(there, np.nan_to_num(reward), 0.0) @ weights
                value = above(summed, kept, length, {"singleton": "zero", **h})
            return shaped(again(value, kept, h) if kept else value, x, h)
        case "gpg":
            value = above(reward, rows, length, {"std": "none", **h})
            varied = sum(len(g) for g in rows if np.ptp(reward[g]) > 0)
            b = len(reward)
            alpha = {
                "rows_over_nonzero_rewards": b / max(np.count_nonzero(reward), 1),
                "rows_over_varied_rows": b / max(varied, 1),
                "none": 1.0,
            }[h["gpg_alpha"]]
            return shaped(alpha * value / h["f_norm"], x, h)
        case "maxrl":
            value = np.zeros(len(reward))
            for g in rows:
                mean = reward[g].mean()
                if np.ptp(reward[g]) > 0:
                    value[g] = (reward[g] - mean) / guarded(mean, h)
            return shaped(value, x, h)
        case "passk_analytic":
            return shaped(passk(reward, rows, h), x, h)
        case "passk_max_minus_second":
            value = np.zeros(len(reward))
            for g in rows:
                best = g[np.argmax(reward[g])]
                if len(g) > 1:
                    value[best] = (reward[best] - np.sort(reward[g])[-2]) / divisor(reward, g, best, h)
            return shaped(value, x, h)
    value = again(above(reward, rows, length, {"singleton": "zero", **h}), rows, {"renormalize": "none", **h})
    if h.get("whiten", "none") == "none" or variant not in ("reinforce_batch_norm", "reinforce_pp_baseline"):
        return shaped(value, x, h)
    tokens = whitened(value[:, None] * x["mask"], x["mask"], h)
    return {"advantages": tokens if h["advantage_shape"] == "token" else tokens.sum(1) / np.maximum(length, 1)}


def passk(reward: Numbers, rows: list[NDArray], h: Hyper) -> Numbers:
    found = np.zeros(len(reward))
    for g in rows:
        n, c = len(g), int((reward[g] > 0.5).sum())
        k = min(h["pass_k"], n)
        rho = 1 - math.comb(n - c, k) / math.comb(n, k)
        s = math.sqrt(max(rho * (1 - rho), 0.0))
        if c in (0, n):
            continue
        for i in g:
            right = reward[i] > 0.5
            lost = 0.0 if right else math.comb(n - c - 1, k - 1) / math.comb(n - 1, k - 1)
            found[i] = (1 - rho - lost) / guarded(s, h)
    return found


def last_token(reward: Numbers, mask: Numbers) -> Numbers:
    found = np.zeros_like(mask)
    for i, row in enumerate(mask):
        if row.any():
            found[i, np.flatnonzero(row)[-1]] = reward[i]
    return found


def gae(r: Numbers, v: Numbers, mask: Numbers, lam: Numbers, h: Hyper) -> Numbers:
    found = np.zeros_like(mask)
    for i in range(len(mask)):
        following, running = h["bootstrap_value"], 0.0
        for t in reversed(range(mask.shape[1])):
            scored = mask[i, t] > 0
            if scored or h["holes"] == "zero":
                paid, worth = (r[i, t], v[i, t]) if scored else (0.0, 0.0)
                running = paid + h["gamma"] * following - worth + h["gamma"] * lam[i] * running
                following = worth
            elif h["holes"] == "reset":
                following, running = 0.0, 0.0
            found[i, t] = running if scored else 0.0
    return found


def discounted(r: Numbers, mask: Numbers, h: Hyper) -> Numbers:
    found = np.zeros_like(mask)
    for i in range(len(mask)):
        running = 0.0
        for t in reversed(range(mask.shape[1])):
            scored = mask[i, t] > 0
            if scored or h["holes"] == "zero":
                running = (r[i, t] if scored else 0.0) + h["gamma"] * running
            elif h["holes"] == "reset":
                running = 0.0
            found[i, t] = running if scored else 0.0
    return found


def advantage_of_tokens(variant: str, x: Inputs, h: Hyper) -> Outputs:
    m = x["mask"]
    r = x["token_rewards"] if "token_rewards" in x else last_token(x["rewards"], m)
    if variant in ("gae", "lambda_returns", "gae_length_adaptive"):
        v = np.where(m > 0, x["values"], 0.0)
        if variant == "gae_length_adaptive":
            lam = np.clip(1 - 1 / np.maximum(h["length_alpha"] * m.sum(1), 1), 0, 1)
            wide = np.full(len(m), h["lam_value"])
            return {"advantages": gae(r, v, m, lam, h), "returns": (gae(r, v, m, wide, h) + v) * m}
        a = gae(r, v, m, np.full(len(m), h["lam"]), h)
        found = {"advantages": a, "returns": (a + v) * m}
        return found | ({"advantages_whitened": whitened(a, m, h)} if variant == "gae" else {})
    g = discounted(r, m, {"holes": "zero", **h} if variant != "optimal_token_baseline" else {**h, "holes": "zero"})
    if variant == "discounted_returns":
        return {"returns": g}
    if variant == "reinforce_pp":
        return {"returns": g, "advantages": whitened(g, m, h)}
    if variant == "remax":
        return {"returns": g, "advantages": (g - x["reward_baseline"][:, None]) * m}
    w = np.cumsum(m * (1 - 2 * np.exp(x["logp_old"]) + x["sum_pi_squared"]), axis=1)
    found = np.zeros_like(m)
    for rows in groups_of(x):
        total = (m[rows] * w[rows]).sum(0)
        base = (m[rows] * g[rows] * w[rows]).sum(0) / guarded(total, h)
        if len(rows) == 1:
            base = 0.0 if h["singleton"] == "raw" else g[rows[0]]
        found[rows] = (g[rows] - base) * m[rows]
    return {"advantages": found, "returns": g}


# ------------------------------------------------------------------------------------------------------------ losses


def denominator(rows: str, m: Any, h: Hyper) -> Any:
    if h.get("global_denominator") is not None:
        return float(h["global_denominator"])
    return {
        "all_rows": float(m.shape[0]),
        "given": float(m.shape[0]),
        "nonempty_rows": max(float((m.sum(1) > 0).sum()), 1.0),
        "none": 1.0,
    }[rows]


def reduced(loss: Any, m: Any, h: Hyper, rows: str | None = None) -> Any:
    """(B,T) losses to a number."""
    n = np.maximum(m.sum(1), 1)
    rows = str(rows or h.get("sequence_denominator") or "all_rows")
    kept = jnp.where(m > 0, loss, 0.0)
    match h["aggregation"]:
        case "token-mean":
            found = kept.sum() / (h.get("global_denominator") or max(m.sum(), 1.0))
        case "seq-mean-token-mean" | "row-mean":
            found = (kept.sum(1) / n).sum() / denominator(rows, m, h)
        case "seq-mean-token-sum":
            found = kept.sum() / denominator(rows, m, h)
        case "seq-mean-token-sum-norm":
            found = kept.sum() / (denominator(rows, m, h) * h["norm_constant"])
        case "token-sum-norm":
            found = kept.sum() / h["norm_constant"]
        case "position-mean":
            found = kept.sum() / m.size
        case _:
            found = kept.sum()
    return found * h.get("dp_size", 1)


def bounds(h: Hyper) -> tuple[float, float]:
    low, high = h["clip_low"], h["clip_high"]
    kind = h["clip_bounds"]
    if kind == "relative":
        return -np.inf if low is None else 1 - low, np.inf if high is None else 1 + high
    if kind == "absolute":
        return -np.inf if low is None else low, np.inf if high is None else high
    return 0.0 if low is None else math.exp(-low), np.inf if high is None else math.exp(high)


def clamped(d: Any, c: float | None) -> Any:
    return d if c is None else jnp.clip(d, -c, c)


def estimate(kind: str, delta: Any) -> Any:
    return {"k1": -delta, "k2": delta**2 / 2, "k3": jnp.exp(delta) - delta - 1, "abs": jnp.abs(delta)}[kind]


def penalty(lp: Any, x: Inputs, h: Hyper) -> Any:
    value = estimate(h["kl_estimator"], clamped(x["logp_ref"] - lp, h["kl_clamp_log_ratio"]))
    match h["kl_weight"]:
        case "new_over_old":
            value = value * jnp.exp(lp - x["logp_old"])
        case "new_over_rollout":
            value = value * jnp.exp(lp - x["logp_rollout"])
        case "new_over_new":
            value = value * jnp.exp(lp - jax.lax.stop_gradient(lp))
    return clamped(value, h["kl_clamp_output"])


class Loss:
    """One policy loss: `tokens(logp_new)` are its (B,T) losses, what is kept and clipped stands beside."""

    def __init__(self, variant: str, x: Inputs, h: Hyper):
        self.variant, self.x, self.h, self.m = variant, x, h, x["mask"]
        a = x["advantages"] if "advantages" in x else np.zeros_like(self.m)
        self.a = a if a.ndim == 2 else np.repeat(a[:, None], self.m.shape[1], 1)
        self.n = np.maximum(self.m.sum(1, keepdims=True), 1)
        self.keep = self.selected()

    def row(self, z: Any) -> Any:
        return jnp.where(self.m > 0, z, 0.0).sum(1, keepdims=True) * np.ones_like(self.m)

    def ratio(self, lp: Any) -> Any:
        h, raw = self.h, lp - self.x["logp_old"]
        d = clamped(raw, h["clamp_log_ratio"])
        kind, stop = h["ratio"], jax.lax.stop_gradient
        if kind == "token":
            return jnp.exp(d)
        s = self.row(d) / (1.0 if kind == "sequence_sum" else self.n)
        if kind == "sequence_mean_token_grad":
            s = stop(s) + d - stop(d)
        return jnp.exp(jnp.clip(s, h.get("clamp_seq_log_ratio_min"), h.get("clamp_seq_log_ratio_max")))

    def clipped(self, lp: Any) -> Any:
        h, a, r = self.h, self.a, self.ratio(lp)
        c = h.get("dual_clip_c")
        lo, hi = bounds(h)
        if c is not None and h["dual_clip_form"] == "cap_ratio":
            return -jnp.minimum(jnp.minimum(r, c) * a, jnp.clip(r, lo, hi) * a)
        loss = -jnp.minimum(r * a, jnp.clip(r, lo, hi) * a)
        return loss if c is None else jnp.where(a < 0, jnp.minimum(loss, -c * a), loss)

    def covariance(self) -> Numbers:
        scored, lp = self.m > 0, self.x["logp_new"]
        return (self.a - self.a[scored].mean()) * (lp - lp[scored].mean())

    def selected(self) -> Numbers | None:
        h, x, m = self.h, self.x, self.m
        match self.variant:
            case "clip_cov":
                r, (lo, hi), cov = np.asarray(self.ratio(x["logp_new"])), bounds(h), self.covariance()
                stopped = ((r < lo) & (self.a < 0)) | ((r > hi) & (self.a > 0))
                return m * ~(~stopped & (cov > h["cov_low"]) & (cov < h["cov_high"]))
            case "opsm":
                behaviour = x["logp_rollout"] if h["behaviour_logp"] == "rollout" else x["logp_old"]
                kl = np.asarray(self.row(behaviour - x["logp_new"]) / self.n)
                return m * ~((self.a < 0) & (kl > h["kl_threshold"]))
            case "top_entropy_mask":
                bar = np.quantile(x["entropy"][m > 0], 1 - h["top_entropy_fraction"])
                return m * (x["entropy"] >= bar)
            case "dppo_binary_tv" | "ipo_symmetric_tv":
                p, q = np.exp(x["logp_new"]), np.exp(x["logp_rollout"])
                up, down = p - q > h["tv_high"], p - q < -h["tv_low"]
                if self.variant == "dppo_binary_tv":
                    up, down = up & (self.a > 0), down & (self.a <= 0)
                return m * ~(up | down)
        return None

    def tokens(self, lp: Any) -> Any:
        h, x, a, stop = self.h, self.x, self.a, jax.lax.stop_gradient
        match self.variant:
            case "cispo":
                loss = -stop(jnp.clip(self.ratio(lp), *bounds(h))) * a * lp
            case "gmpo":
                d, (lo, hi) = clamped(lp - x["logp_old"], h["clamp_log_ratio"]), bounds(h)
                with np.errstate(divide="ignore"):
                    c = jnp.clip(d, np.log(lo) if lo > 0 else -np.inf, np.log(hi))
                z = jnp.where(a > 0, jnp.minimum(d, c), jnp.where(a < 0, jnp.maximum(d, c), d))
                loss = -a * jnp.exp(self.row(z) / self.n)
            case "sapo":
                r = jnp.exp(clamped(lp - x["logp_old"], h["clamp_log_ratio"]))
                tau = np.where(a > 0, h["tau_pos"], h["tau_neg"])
                loss = -a * (4 / tau) * jax.nn.sigmoid(tau * (r - 1))
            case "vespo":
                s = self.row(clamped(lp - x["logp_old"], h["clamp_log_ratio"]))
                s = jnp.clip(s, h["clamp_seq_log_ratio_min"], h["clamp_seq_log_ratio_max"])
                k = np.where(a >= 0, h["k_pos"], h["k_neg"])
                rate = np.maximum(np.where(a >= 0, h["lambda_pos"], h["lambda_neg"]), h["lambda_min"])
                loss = -stop(jnp.exp(rate + k * s - rate * jnp.exp(s))) * a * lp
            case "kl_cov":
                d = clamped(lp - x["logp_old"], h["clamp_log_ratio"])
                cov = np.where(self.m > 0, self.covariance(), -np.inf)
                bar = np.sort(cov, axis=None)[::-1][max(1, int(h["cov_fraction"] * self.m.sum())) - 1]
                kl = {"abs": jnp.abs(d), "k1": -d, "k2": d**2 / 2, "k3": jnp.exp(-d) + d - 1}[h["cov_penalty"]]
                loss = -jnp.exp(d) * a + h["cov_penalty_coef"] * (cov >= bar) * kl
            case "dppo_binary_tv" | "ipo_symmetric_tv":
                d = lp - x["logp_rollout"]
                loss = -a * jnp.exp(d) * self.keep + h["quadratic_coef"] * d**2
            case "reinforce" | "gpg" | "reinforce_tis":
                loss = -a * lp
            case _:
                loss = self.clipped(lp)
                loss = loss if self.keep is None else loss * self.keep
        if "correction_kind" in h:
            loss = loss * self.weight(lp)
        return loss if h.get("kl_coef") is None else loss + h["kl_coef"] * penalty(lp, x, h)

    def raw_weight(self, lp: Any) -> Any:
        """w of a correction, and the token weight, before it is treated."""
        h, x = self.h, self.x
        top = x["logp_old"] if h["correction_log_ratio"] == "old_minus_rollout" else lp
        tokens = jax.lax.stop_gradient(top) - x["logp_rollout"]
        level = h["correction_level"]
        if level == "sequence_max":
            level_value = jnp.max(jnp.where(self.m > 0, tokens, -jnp.inf), axis=1, keepdims=True)
            log = jnp.where(self.m.any(1, keepdims=True), level_value, 0.0) * np.ones_like(self.m)
        else:
            log = {"token": tokens, "sequence_sum": self.row(tokens), "sequence_mean": self.row(tokens) / self.n}[level]
        return jnp.exp(clamped(log, h["correction_clamp"])), jnp.exp(tokens)

    def weight(self, lp: Any) -> Any:
        h = self.h
        w, tokens = self.raw_weight(lp)
        lower = -np.inf if h["correction_lower"] is None else h["correction_lower"]
        upper = np.inf if h["correction_upper"] is None else h["correction_upper"]
        within = (w >= lower) & (w <= upper)
        return {
            "truncate": jnp.minimum(w, upper),
            "clip": jnp.clip(w, lower, upper),
            "mask": jnp.where(within, w, 0.0),
            "row_mask": jnp.where(within, tokens, 0.0),
        }[h["correction_kind"]]

    def outside(self, lp: Any) -> float:
        h, (w, _) = self.h, self.raw_weight(lp)
        lower = (
            -np.inf if h["correction_lower"] is None or h["correction_kind"] == "truncate" else h["correction_lower"]
        )
        upper = np.inf if h["correction_upper"] is None else h["correction_upper"]
        out = ~((w >= lower) & (w <= upper))
        return mean(out, self.m) if h["correction_level"] == "token" else float(np.mean(out[:, 0]))


def mean(z: Any, m: Numbers) -> float:
    return float(np.sum(np.where(m > 0, z, 0.0)) / max(m.sum(), 1))


def policy(variant: str, x: Inputs, h: Hyper) -> Outputs:
    if "logits" in x:
        return from_logits(x, h)
    made, lp, m = Loss(variant, x, h), x["logp_new"], x["mask"]
    if h.get("quantity", "loss") == "neg_seq_log_ratio":
        return {"neg_seq_log_ratio": -np.asarray(made.row(lp - x["logp_old"]) / made.n)[:, 0]}
    if h.get("quantity", "loss") == "keep_mask":
        return {"keep_mask": np.asarray(m if made.keep is None else made.keep, float)}

    def objective(lp: Any, entropy: Any) -> Any:
        found = reduced(made.tokens(lp), m, h)
        if h.get("empty_row") == "surrogate":
            empty = m.sum(1) == 0
            found += -(made.a[empty, 0]).sum() / denominator(h["sequence_denominator"], m, h)
        if h.get("entropy_coef") is not None:
            found -= h["entropy_coef"] * jnp.where(m > 0, entropy, 0.0).sum() / max(m.sum(), 1)
        if variant == "ppo_clip_positive_nll":
            good = m * (x["rewards"] > 0)[:, None]
            found += h["nll_weight"] * (good * -lp).sum() / max(good.sum(), 1)
        return found

    entropy = x.get("entropy", np.zeros_like(m))
    loss, (slope, of_entropy) = jax.value_and_grad(objective, argnums=(0, 1))(jnp.asarray(lp), jnp.asarray(entropy))
    found = {"loss": loss, "grad_logp_new": slope, "per_token_loss": made.tokens(lp)}
    found |= {"grad_entropy": of_entropy} if h.get("entropy_coef") is not None else {}
    found |= {"mean_kl": mean(penalty(lp, x, h), m)} if h.get("kl_coef") is not None else {}
    if made.keep is not None:
        found |= {"masked_fraction": mean(1 - made.keep, m), "keep_mask": np.asarray(made.keep, float)}
    if "correction_kind" in h:
        found |= {"out_of_bounds_fraction": made.outside(lp)}
        found |= {"mean_k1_rollout_old": mean(x["logp_rollout"] - x["logp_old"], m)}
    if "logp_old" in x:
        d = clamped(lp - x["logp_old"], h.get("clamp_log_ratio") if h.get("metric_log_ratio") == "clamped" else None)
        found |= {"mean_k1_old_new": mean(-d, m), "mean_abs_log_ratio": mean(jnp.abs(d), m)}
    return found | (shares(made, lp) if "clip_low" in h and variant != "gmpo" else {})


def shares(made: Loss, lp: Any) -> Outputs:
    h, m, a = made.h, made.m, made.a
    r, (lo, hi) = np.asarray(made.ratio(lp)), bounds(h)
    below, above_ = (r < lo) & (a < 0), (r > hi) & (a > 0)
    outside, c = (r < lo) | (r > hi), h.get("dual_clip_c")
    dual = np.zeros_like(outside) if c is None else (a < 0) & (-np.minimum(r * a, np.clip(r, lo, hi) * a) > -c * a)
    clipped = {
        "binding": below | above_,
        "outside": outside,
        "outside_by_sign": outside & (a > 0),
        "dropped": np.zeros_like(outside) if made.keep is None else made.keep == 0,
    }[h["clip_metric"]]
    dual = outside & (a < 0) if h["clip_metric"] == "outside_by_sign" else dual

    def share(z: Any) -> float:
        return mean(z, m) if h["metric_level"] == "token" else float(np.mean(np.any((m > 0) & z, axis=1)))

    found = {"clip_fraction": clipped, "clip_fraction_low": below, "clip_fraction_high": above_}
    return {name: share(z) for name, z in (found | {"dual_clip_fraction": dual}).items()} | {"clipped": clipped * 1.0}


def from_logits(x: Inputs, h: Hyper) -> Outputs:
    def objective(logits: Any) -> Any:
        logp = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(x["token_ids"])[..., None], -1)[..., 0]
        a = x["advantages"] if x["advantages"].ndim == 2 else x["advantages"][:, None]
        return reduced(-a * logp, x["mask"], h)

    loss, slope = jax.value_and_grad(objective)(jnp.asarray(x["logits"]))
    return {"loss": loss, "grad_logits": slope}


# ---------------------------------------------------------------------------------------------------- other families


def corrections(variant: str, x: Inputs, h: Hyper) -> Outputs:
    m = x["mask"]
    if variant == "offpolicy_metrics":
        return mismatch(x, h)
    made, new = Loss("", x, h), x["logp_new"]
    if h["correction_kind"] == "reject":
        d = x["logp_old"] - x["logp_rollout"]
        z = np.asarray(estimate(h["correction_statistic"], d))
        z = {
            "token": z,
            "sequence_sum": np.asarray(made.row(z)),
            "sequence_mean": np.asarray(made.row(z) / made.n),
            "sequence_max": np.max(np.where(m > 0, z, -np.inf), 1, keepdims=True) * np.ones_like(m),
        }[h["correction_level"]]
        z = np.exp(z) if h["correction_bounds_on"] == "exp_statistic" else z
        lower = -np.inf if h["correction_lower"] is None else h["correction_lower"]
        upper = np.inf if h["correction_upper"] is None else h["correction_upper"]
        keep = m * ((z >= lower) & (z <= upper))
        return {"mask": keep, "masked_fraction": mean(1 - keep, m)}
    w, weight = np.asarray(made.raw_weight(new)[0]), np.asarray(made.weight(new))
    found = {"clipped": (weight != w) * 1.0, "mean": mean(w, m), "out_of_bounds_fraction": made.outside(new)}
    if h["correction_upper"] is not None:
        u = np.clip(w, 1 / h["correction_upper"], h["correction_upper"])
        found["eff_sample_size"] = mean(u, m) ** 2 / mean(u**2, m)
    if h.get("correction_normalize", "none") == "batch_mean":
        rows = m.sum(1) > 0
        scale = mean(weight, m) if h["correction_level"] == "token" else weight[rows, 0].mean()
        weight = weight / (scale or 1.0)
    return found | {"weights": weight}


def mismatch(x: Inputs, h: Hyper) -> Outputs:
    m, c = x["mask"], h["correction_clamp"]
    n = np.maximum(m.sum(1), 1)
    log = x["logp_old"] - x["logp_rollout"]
    a, b = (np.sum(m * x[name], 1) / n for name in ("logp_old", "logp_rollout"))
    whole = np.asarray(clamped(np.sum(m * log, 1), c))
    return {
        "kl": mean(-log, m),
        "k3_kl": mean(np.exp(log) - log - 1, m),
        "training_ppl": np.exp(-a).mean(),
        "rollout_ppl": np.exp(-b).mean(),
        "training_log_ppl": -a.mean(),
        "rollout_log_ppl": -b.mean(),
        "log_ppl_diff": (b - a).mean(),
        "log_ppl_abs_diff": np.abs(b - a).mean(),
        "log_ppl_diff_max": (b - a).max(),
        "log_ppl_diff_min": (b - a).min(),
        "ppl_ratio": np.exp(b - a).mean(),
        "chi2_token": mean(np.exp(2 * np.asarray(clamped(log, c))), m) - 1,
        "chi2_seq": np.exp(2 * whole).mean() - 1,
    }


def value_loss(x: Inputs, h: Hyper) -> Outputs:
    m, eps = x["mask"], h["eps_value"]

    def squares(v: Any) -> tuple[Any, Any]:
        moved = x["values_old"] + jnp.clip(v - x["values_old"], -eps, eps)
        return (v - x["returns"]) ** 2, (moved - x["returns"]) ** 2

    def objective(v: Any) -> Any:
        return reduced(0.5 * jnp.maximum(*squares(v)), m, h)

    loss, slope = jax.value_and_grad(objective)(jnp.asarray(x["values"]))
    plain, other = squares(x["values"])
    return {"loss": loss, "grad_values": slope, "clip_fraction": mean(other > plain, m)}


def kl(variant: str, x: Inputs, h: Hyper) -> Outputs:
    m = x["mask"]
    if variant == "kl_in_reward":
        reward = x["token_rewards"] if h["reward_placement"] == "per_token" else last_token(x["rewards"], m)
        if h["kl_coef"] is None:
            return {"token_rewards": reward}
        return {"token_rewards": reward - h["kl_coef"] * estimate(h["kl_estimator"], x["logp_ref"] - x["logp_old"])}

    def total(lp: Any) -> Any:
        return jnp.where(m > 0, penalty(lp, x, h), 0.0).sum()

    return {"kl": penalty(x["logp_new"], x, h), "grad_masked_sum": jax.grad(total)(jnp.asarray(x["logp_new"]))}


def entropy(variant: str, x: Inputs, h: Hyper) -> Outputs:
    if variant == "top_entropy_mask":
        keep = Loss(variant, {**x, "logp_new": x["mask"]}, h).keep
        assert keep is not None
        return {"mask": keep, "masked_fraction": mean(1 - keep, x["mask"])}

    def each(logits: Any) -> Any:
        logp = jax.nn.log_softmax(logits)
        return -(jnp.exp(logp) * logp).sum(-1)

    found: Outputs = {"entropy": each(x["logits"])}
    if h["aggregation"] != "none" and "mask" in x:
        sign = -1.0 if variant == "entropy_loss" else 1.0

        def whole(logits: Any) -> Any:
            return sign * reduced(each(logits), x["mask"], h)

        value, slope = jax.value_and_grad(whole)(jnp.asarray(x["logits"]))
        found |= {"loss" if variant == "entropy_loss" else "mean_entropy": value, "grad_logits": slope}
    return found


def controller(x: Inputs, h: Hyper) -> Outputs:
    beta, found = h["beta_init"], []
    for measured in x["kl"]:
        error = np.clip(measured / h["kl_target"] - 1, -h["error_clip"], h["error_clip"])
        beta *= 1 + error * h["n_steps"] / h["horizon"]
        found.append(beta)
    return {"beta": np.array(found)}


def overlong(x: Inputs, h: Hyper) -> Outputs:
    over = (h["max_length"] - h["buffer_length"] - x["lengths"]) / h["buffer_length"]
    found = h["penalty"] * np.minimum(over, 0.0)
    return {"reward": np.maximum(found, -h["penalty"]) if h["floor"] else found}


def aggregate(x: Inputs, h: Hyper) -> Outputs:
    def whole(z: Any) -> Any:
        return reduced(z, x["mask"], h)

    loss, slope = jax.value_and_grad(whole)(jnp.asarray(x["per_token_loss"]))
    rows = h.get("metric_sequence_denominator")
    return {"loss": loss, "grad": slope, "loss_eager_metric": reduced(x["per_token_loss"], x["mask"], h, rows)}


def logp(x: Inputs, h: Hyper) -> Outputs:
    z = x["logits"] / h["temperature"]
    z = z - np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True)) - z.max(-1, keepdims=True)
    return {"logp": np.take_along_axis(z, x["token_ids"][..., None], -1)[..., 0]}


TOKENS = ("discounted_returns", "reinforce_pp", "remax", "lambda_returns", "gae", "gae_length_adaptive")
FAMILIES: dict[str, Callable[[str, Inputs, Hyper], Outputs]] = {
    "policy_loss": policy,
    "rollout_correction": corrections,
    "kl": kl,
    "entropy": entropy,
    "value_loss": lambda _, x, h: value_loss(x, h),
    "kl_controller": lambda _, x, h: controller(x, h),
    "reward_shaping": lambda _, x, h: overlong(x, h),
    "aggregate": lambda _, x, h: aggregate(x, h),
    "logprob": lambda _, x, h: logp(x, h),
}


def expected(family: str, variant: str, x: Inputs, h: Hyper) -> Outputs:
    """Every output of a case, `h` complete with its defaults, `x` in float64 with a mask of 0 and 1."""
    if family == "advantage":
        tokens = variant in (*TOKENS, "optimal_token_baseline")
        found = (advantage_of_tokens if tokens else advantage_of_rows)(variant, x, h)
    else:
        found = FAMILIES[family](variant, x, h)
    return {name: np.asarray(value, np.float64) for name, value in found.items()}
