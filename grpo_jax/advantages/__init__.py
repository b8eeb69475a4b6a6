"""Advantages: how much better a completion is than the others it is compared with.

Kernels work on arrays, ``(reward f[N], group i32[N]) -> f[N]``; groups may be interleaved and of unequal size. Rows
with ``valid`` False or a negative label are in no statistic and get 0. A group whose rewards are all exactly equal gets
exactly 0, whatever the rounding of its mean. Strategies ``(Collected, labels, memory) -> (f32[N,T], memory)`` apply a
kernel and give every trained token its number; an experiment holds a strategy. What a strategy reads beyond outcomes
says `fields_read`; what it remembers begins as `initial_memory`.

Conventions differ between published implementations; they are keywords with these meanings everywhere:

=================  ====================================================================================
``std``            "sample" (divisor n - 1), "population" (divisor n) or "none" (no division)
``scope``          the deviation of the "group", of the "others" in it, or of the raw rewards of the "batch"
``eps_mode``       "add": x / (s + eps); "max": x / max(s, eps)
``variance_floor`` the variance is at least this before its root is taken
``zero_std``       where rewards are all equal, "divide" as ever, or leave "unscaled"
``singleton``      a group of one gets "zero", or "raw": its reward, as if mean 0 and deviation 1
``holes``          tokens inside a row that do not train: see `grpo_jax.advantages.returns`
``missing``        components that are nan: see `grpo_jax.advantages.components`
=================  ====================================================================================
"""

from grpo_jax.advantages.alone import learns_alone
from grpo_jax.advantages.components import (
    gdpo,
    present,
    separately_standardized,
    weighted_components,
    weighted_sum,
)
from grpo_jax.advantages.deviations import deviation, scaled
from grpo_jax.advantages.outcome import (
    batch_centered,
    batch_standardized,
    centered,
    group_centered,
    group_leave_one_out,
    group_standardized,
    leave_one_out,
    length_weighted,
    opo,
    outcome,
    standardized,
    uncentered,
)
from grpo_jax.advantages.process import process_supervision, step_advantages
from grpo_jax.advantages.returns import (
    above_greedy,
    at_last_token,
    discounted_returns,
    gae,
    gae_length_adaptive,
    generalized_advantages,
    length_adaptive_advantages,
    length_adaptive_lambda,
    penalized_tokens,
    reinforce_pp,
    remax,
    token_returns,
    token_rewards,
    value_targets,
)
from grpo_jax.advantages.roles import above_role, above_role_row_by_row, role_baseline, role_memory
from grpo_jax.advantages.strategy import Advantage, begins, fields_read, initial_memory, reads, teaches
from grpo_jax.advantages.success import (
    gpg,
    gpg_centered,
    gpg_factor,
    max_minus_second,
    maxrl,
    passk,
    passk_analytic,
    passk_max_minus_second,
    relative_to_mean,
)
from grpo_jax.advantages.targets import critic_targets
from grpo_jax.advantages.token_baseline import above_token_baseline, optimal_token_baseline, score_energy
from grpo_jax.advantages.whitening import (
    reinforce_batch_norm,
    reinforce_pp_baseline,
    renormalized,
    whiten,
    whitened,
)

ADVANTAGES: dict[str, Advantage] = {
    "group_standardized": group_standardized,
    "group_centered": group_centered,
    "group_leave_one_out": group_leave_one_out,
    "batch_centered": batch_centered,
    "outcome": outcome,
    "opo": opo,
    "gpg": gpg,
    "maxrl": maxrl,
    "passk": passk,
    "passk_max_minus_second": passk_max_minus_second,
    "weighted_components": weighted_components,
    "gdpo": gdpo,
    "process_supervision": process_supervision,
    "reinforce_batch_norm": reinforce_batch_norm,
    "reinforce_pp": reinforce_pp,
    "reinforce_pp_baseline": reinforce_pp_baseline,
    "remax": remax,
    "gae": gae,
    "gae_length_adaptive": gae_length_adaptive,
    "optimal_token_baseline": optimal_token_baseline,
    "role_baseline": role_baseline,
}

__all__ = [
    "ADVANTAGES",
    "Advantage",
    "above_greedy",
    "above_role",
    "above_role_row_by_row",
    "above_token_baseline",
    "at_last_token",
    "batch_centered",
    "batch_standardized",
    "begins",
    "centered",
    "critic_targets",
    "deviation",
    "discounted_returns",
    "fields_read",
    "gae",
    "gae_length_adaptive",
    "gdpo",
    "generalized_advantages",
    "gpg",
    "gpg_centered",
    "gpg_factor",
    "group_centered",
    "group_leave_one_out",
    "group_standardized",
    "initial_memory",
    "learns_alone",
    "leave_one_out",
    "length_adaptive_advantages",
    "length_adaptive_lambda",
    "length_weighted",
    "max_minus_second",
    "maxrl",
    "opo",
    "optimal_token_baseline",
    "outcome",
    "passk",
    "passk_analytic",
    "passk_max_minus_second",
    "penalized_tokens",
    "present",
    "process_supervision",
    "reads",
    "reinforce_batch_norm",
    "reinforce_pp",
    "reinforce_pp_baseline",
    "relative_to_mean",
    "remax",
    "renormalized",
    "role_baseline",
    "role_memory",
    "scaled",
    "score_energy",
    "separately_standardized",
    "standardized",
    "step_advantages",
    "teaches",
    "token_returns",
    "token_rewards",
    "uncentered",
    "value_targets",
    "weighted_components",
    "weighted_sum",
    "whiten",
    "whitened",
]
