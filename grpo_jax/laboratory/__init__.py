"""A laboratory of truth: policies so small that every completion can be listed.

Their true expected reward, divergence and gradient are finite sums, and so are the mean and the variance of what an
estimator makes of a batch: a sum over all batches there are. `exact` computes it with the recipes of the library, by
the path that a run takes: grouping, advantage, batch, loss and its gradient. docs/estimators.md shows what that says.
"""

from grpo_jax.laboratory.bandit import arms, coins
from grpo_jax.laboratory.estimate import Moments, Parallel, every_batch, exact, gradient, parallel, sampled
from grpo_jax.laboratory.markov import sentences
from grpo_jax.laboratory.truth import (
    Completions,
    World,
    divergence,
    expected,
    expected_reward,
    local_divergence,
    log_probs,
    policy_gradient,
    probability,
    state_values,
    truncated,
)

__all__ = [
    "Completions",
    "Moments",
    "Parallel",
    "World",
    "arms",
    "coins",
    "divergence",
    "every_batch",
    "exact",
    "expected",
    "expected_reward",
    "gradient",
    "local_divergence",
    "log_probs",
    "parallel",
    "policy_gradient",
    "probability",
    "sampled",
    "sentences",
    "state_values",
    "truncated",
]
