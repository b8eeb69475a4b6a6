"""Sets of golden numbers that nobody has seen: every variant of the schema, at random sizes and hyper-parameters.

``write(folder, seed=..., draws=...)`` makes a set of the format of `tests/golden`, with the numbers of
`tests.golden_twins`. Every value that the schema allows for a key is drawn, keys with a default are left out at times,
and arrays come as they may come from elsewhere: float32, masks of booleans or integers, numbers of prompts that are
large, negative and not in order, rows without tokens, groups of one, batches of one row.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden_twins import expected

SCHEMA = json.loads((Path(__file__).resolve().parent / "golden" / "schema.json").read_text())

LOSS = "advantages logp_new logp_old mask"
ROLES = {
    "advantage": "group_ids mask rewards",
    "advantage.discounted_returns": "mask token_rewards",
    "advantage.reinforce_pp": "mask token_rewards",
    "advantage.remax": "mask reward_baseline token_rewards",
    "advantage.lambda_returns": "mask token_rewards values",
    "advantage.gae": "mask token_rewards values",
    "advantage.gae_length_adaptive": "mask rewards token_rewards values",
    "advantage.optimal_token_baseline": "group_ids logp_old mask sum_pi_squared token_rewards",
    "aggregate": "mask per_token_loss",
    "entropy": "logits mask",
    "entropy.top_entropy_mask": "entropy mask",
    "kl": "logp_new logp_old logp_ref logp_rollout mask",
    "kl.kl_in_reward": "logp_old logp_ref mask token_rewards rewards",
    "kl_controller": "kl",
    "logprob": "logits token_ids",
    "policy_loss": f"{LOSS} logp_rollout logp_ref entropy rewards",
    "policy_loss.dppo_binary_tv": "advantages logp_new logp_rollout mask",
    "policy_loss.ipo_symmetric_tv": "advantages logp_new logp_rollout mask",
    "reward_shaping": "lengths",
    "rollout_correction": "logp_new logp_old logp_rollout mask",
    "value_loss": "mask returns values values_old",
}
BY_ROW = {"policy_loss.gmpo", "policy_loss.ppo_clip_sequence_sum"}
"""Variants whose advantage is one of the row."""

FIXED: dict[str, dict[str, tuple]] = {
    # What the formula of a variant is, whatever else its keys could spell.
    **{name: {"aggregation": ("row-mean",)} for name in BY_ROW},
    "policy_loss.gmpo": {"aggregation": ("row-mean",), "ratio": ("token",), "clip_metric": ("binding",)},
    "policy_loss.ppo_clip_sequence_sum": {
        "aggregation": ("row-mean",),
        "ratio": ("sequence_sum", "sequence_mean"),
    },
    "policy_loss.clip_cov": {"cov_fraction": (1.0,)},
    **{
        f"aggregate.{name.split('.')[1]}": {"aggregation": (name.split(".")[1],)}
        for name in SCHEMA["variants"]
        if name.startswith("aggregate.")
    },
    **{
        f"entropy.{name}": {"aggregation": ("none", "token-mean", "position-mean", "token-sum")}
        for name in ("categorical", "entropy_loss")
    },
    **{name: {"correction_kind": ("reject",)} for name in SCHEMA["variants"] if ".reject_" in name},
    **{name: {"missing": ("component", "row")} for name in ("advantage.gdpo", "advantage.multi_reward_weighted_sum")},
}
NUMBERS: dict[str, tuple] = {
    "eps": (1e-6, 1e-4, 0.1),
    "variance_floor": (None, 1e-6, 0.3),
    "renormalize_eps": (1e-4, 0.2),
    "whiten_eps": (1e-8, 0.1),
    "f_norm": (1.0, 2.5),
    "pass_k": (1, 2, 3, 5, 9),
    "gamma": (1.0, 0.99, 0.5, 0.0),
    "lam": (1.0, 0.95, 0.0),
    "lam_value": (1.0, 0.5),
    "length_alpha": (0.05, 0.5, 2.0),
    "bootstrap_value": (0.0, -0.75),
    "kl_clamp_log_ratio": (None, 0.2, 20.0),
    "kl_clamp_output": (None, 0.05, 10.0),
    "kl_coef": (None, 0.04, 1.5),
    "beta_init": (0.2, 1.0),
    "kl_target": (0.05, 6.0),
    "horizon": (1000.0, 10),
    "n_steps": (64, 1.0),
    "error_clip": (0.2, 0.7),
    "clip_low": (0.2, None, 0.05, 3e-4),
    "clip_high": (0.28, None, 0.1, 4e-4, 3.0),
    "clamp_log_ratio": (None, 0.15, 20.0),
    "clamp_seq_log_ratio_min": (None, -0.05, -18.0),
    "clamp_seq_log_ratio_max": (None, 0.03, 10.0),
    "dual_clip_c": (None, 1.05, 3.0),
    "tau_pos": (1.0, 2.0),
    "tau_neg": (1.05, 0.5),
    "k_pos": (2.0, 0.5),
    "k_neg": (3.0, 1.0),
    "lambda_pos": (3.0, 0.0),
    "lambda_neg": (2.0, 1e-6),
    "lambda_min": (1e-4, 0.5),
    "cov_fraction": (0.2, 0.01, 1.0),
    "cov_low": (0.05, -1.0),
    "cov_high": (5.0, 0.3),
    "cov_penalty_coef": (0.5, 1.0),
    "tv_low": (0.2, 0.01),
    "tv_high": (0.2, 0.01),
    "quadratic_coef": (1e-3, 0.0),
    "kl_threshold": (0.01, -0.02),
    "top_entropy_fraction": (0.25, 0.2, 0.9),
    "entropy_coef": (None, 0.01, -0.3),
    "nll_weight": (0.1, 1.0),
    "correction_lower": (None, 0.5, 0.97),
    "correction_upper": (2.0, 1.03, 1.2),
    "correction_clamp": (None, 0.1, 20.0),
    "norm_constant": (12, 7.5),
    "global_denominator": (None, 32, 150.0),
    "dp_size": (1, 4),
    "eps_value": (0.2, 0.05),
    "temperature": (1.0, 0.7, 2.0),
    "max_length": (20, 33.0),
    "buffer_length": (5, 8.0),
    "penalty": (1.0, 0.5),
    "floor": (True, False),
    "metric_sequence_denominator": (None, "all_rows", "nonempty_rows"),
}
REJECTION = {"correction_lower": (None, 0.9, -0.02), "correction_upper": (1.1, 0.02, None)}
EXP_LEVELS = ("token", "sequence_sum", "sequence_mean", "sequence_max")


def choices(name: str, key: str, *, components: int) -> tuple:
    """The values that a case of a variant may have under a key."""
    if key in FIXED.get(name, {}):
        return FIXED[name][key]
    if key == "reward_weights":
        return ([1.0, 0.5, 0.25, -2.0][:components],)
    if ".reject_" in name and key in REJECTION:
        return REJECTION[key]
    if key == "correction_kind":
        return ("truncate", "clip", "mask", "row_mask")
    if key == "correction_level" and ".reject_" not in name:
        return EXP_LEVELS
    if key == "aggregation":
        return tuple(value for value in SCHEMA["keys"][key]["values"] if value != "row-mean")
    if key == "quantity":
        return ("loss", "loss", "keep_mask" if name.endswith("opsm") else "neg_seq_log_ratio")
    return NUMBERS[key] if key in NUMBERS else tuple(SCHEMA["keys"][key]["values"])


def hypers(name: str, rng: np.random.Generator, *, components: int) -> dict[str, Any]:
    """A legal `hyper`: keys whose condition fails are absent, keys with a default at times too."""
    keys, chosen = SCHEMA["variants"][name]["keys"], {}
    for key in keys:
        allowed = choices(name, key, components=components)
        chosen[key] = allowed[int(rng.integers(len(allowed)))]
    if chosen.get("clip_bounds") == "absolute":
        chosen["clip_low"], chosen["clip_high"] = ((0.9, 1.1), (None, 1.3), (0.8, None))[int(rng.integers(3))]
    found, present = {}, set()
    for key in keys:
        entry, holds = SCHEMA["keys"][key], True
        for other, values in entry.get("only_if", {}).items():
            if other in keys:
                met = chosen[other] is not None if values == "not null" else chosen[other] in values
                holds &= met and other in present
        present |= {key} if holds else set()
        left_out = "default" in entry and chosen[key] == entry["default"] and rng.random() < 0.5
        if holds and not left_out:
            found[key] = chosen[key]
    return found


def completed(hyper: Mapping[str, Any]) -> dict[str, Any]:
    return {key: entry["default"] for key, entry in SCHEMA["keys"].items() if "default" in entry} | dict(hyper)


SIZES = ((11, 9, 3, 7), (1, 4, 1, 3), (10, 1, 2, 5))
"""Rows, positions, components of the reward, tokens of the vocabulary."""


def masks(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
    """Holes, rows without tokens where there are enough others, at least one token somewhere."""
    mask = rng.random((rows, width)) < 0.7
    mask[0] = True
    if rows > 3:
        mask[3] = False
    return mask


def batch(rng: np.random.Generator, *, size: int) -> dict[str, np.ndarray]:
    rows, width, components, vocab = SIZES[size]
    shape = (rows, width)
    old = -rng.uniform(0.05, 3.0, shape)
    many = rng.integers(0, 3, (rows, components)) / 2.0
    many[rng.random(many.shape) < 0.25] = np.nan
    labels = rng.choice([7, 7, 7, -3, -3, 2**40, 2**40, 901], rows)
    rewards = rng.integers(0, 3, rows) / 2.0 if size != 1 else np.array([1.0])
    rewards[labels == 7] = 0.35
    mask = masks(rng, rows, width)
    return {
        "mask": mask,
        "group_ids": labels,
        "rewards": rewards,
        "rewards_multi": many,
        "reward_baseline": rng.normal(size=rows),
        "token_rewards": rng.normal(size=shape),
        "advantages": rng.normal(size=shape),
        "advantages_row": rng.normal(size=rows),
        "logp_new": old + rng.normal(0, 0.2, shape),
        "logp_old": old,
        "logp_ref": old + rng.normal(0, 0.3, shape),
        "logp_rollout": old + rng.normal(0, 0.1, shape),
        "entropy": rng.uniform(0.1, 2.0, shape),
        "per_token_loss": rng.normal(size=shape),
        "values": rng.normal(size=shape),
        "values_old": rng.normal(size=shape),
        "returns": rng.normal(size=shape),
        "sum_pi_squared": rng.uniform(0.2, 1.0, shape),
        "logits": rng.normal(size=(*shape, vocab)),
        "token_ids": rng.integers(0, vocab, shape),
        "lengths": rng.integers(0, 45, rows),
        "kl": rng.uniform(0.0, 10.0, rows),
    }


def as_sent(role: str, array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same numbers in a type that another program may write."""
    if role == "mask":
        return array.astype(rng.choice(["bool", "int32", "float32", "float64"]))
    if role == "rewards" and array.ndim == 1 and not np.any(array % 1):
        return array.astype("int64")
    if array.dtype == np.float64 and rng.random() < 0.3:
        return array.astype("float32")
    return array


def inputs(name: str, rng: np.random.Generator, whole: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    family = name.split(".", maxsplit=1)[0]
    found = {}
    for role in ROLES.get(name, ROLES[family]).split():
        key = role
        if role == "rewards" and name.endswith(("gdpo", "multi_reward_weighted_sum")):
            key = "rewards_multi"
        if role == "advantages" and (name in BY_ROW or rng.random() < 0.4):
            key = "advantages_row"
        found[role] = as_sent(role, whole[key], rng)
    if name == "policy_loss.reinforce" and rng.random() < 0.5:
        found = {role: found[role] for role in ("advantages", "mask")}
        found |= {role: whole[role] for role in ("logits", "token_ids")}
    return found


def wide(role: str, array: np.ndarray) -> np.ndarray:
    return array if role in ("group_ids", "token_ids", "lengths") else array.astype(np.float64)


def write(folder: Path, *, seed: int, draws: int, only: Collection[str] = ()) -> int:
    """Write a set with `draws` cases of every variant, or of those in `only`, and return how many there are."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    cases: list[dict[str, Any]] = []
    batches = [batch(rng, size=size) for size in range(len(SIZES))]
    for name in SCHEMA["variants"]:
        family, variant = name.split(".")
        for draw in range(draws if name in (only or SCHEMA["variants"]) else 0):
            size = (0, 0, 1, 2)[draw % 4]
            given = inputs(name, rng, batches[size])
            hyper = hypers(name, rng, components=SIZES[size][2])
            found = expected(family, variant, {r: wide(r, x) for r, x in given.items()}, completed(hyper))
            case = {"id": f"{name}.{seed}_{draw}.twin", "family": family, "variant": variant, "peer": "twin"}
            case |= {"hyper": hyper, "rtol": 1e-6, "atol": 1e-9, "outputs": {}, "scalars": {}}
            case["inputs"] = {role: f"{case['id']}/in/{role}" for role in given}
            arrays |= {case["inputs"][role]: x for role, x in given.items()}
            for output, value in found.items():
                if value.ndim == 0:
                    case["scalars"][output] = float(value)
                else:
                    case["outputs"][output] = f"{case['id']}/{output}"
                    arrays[case["outputs"][output]] = value
            cases.append(case)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "arrays.npz", allow_pickle=False, **arrays)
    (folder / "schema.json").write_text(json.dumps(SCHEMA))
    (folder / "index.json").write_text(
        json.dumps({"arrays_file": "arrays.npz", "schema_file": "schema.json", "cases": cases})
    )
    return len(cases)
