"""Variants whose importance ratio belongs to a whole row."""

from functools import partial

from grpo_jax.advantages import group_leave_one_out, group_standardized
from grpo_jax.groups import by_prompt
from grpo_jax.objectives.aggregation import sequence_mean_token_mean, sequence_mean_token_sum, token_mean
from grpo_jax.objectives.algebra import Part, Recipe
from grpo_jax.objectives.gates import geometric_clip, soft_weight
from grpo_jax.objectives.ratios import sequence_log_ratio
from grpo_jax.objectives.surrogates import ppo_clip


def gspo(*, low: float = 3e-4, high: float = 4e-4) -> Recipe:
    """One ratio a row, the geometric mean of those of its tokens, clipped as a whole.

    Args:
        low: the row's gradient stops at 1 - low.
        high: the row's gradient stops at 1 + high.
    """
    return Recipe(
        parts=(Part(sequence_mean_token_mean, partial(ppo_clip, low=low, high=high, ratio=sequence_log_ratio)),),
        advantage=group_standardized,
        grouping=by_prompt,
        paper="GSPO, arXiv 2507.18071",
    )


def gspo_token(*, low: float = 3e-4, high: float = 4e-4, cap: float = 10.0) -> Recipe:
    """GSPO's value with a gradient of every token on its own, for advantages that differ within a row.

    Args:
        low: the row's gradient stops at 1 - low.
        high: the row's gradient stops at 1 + high.
        cap: largest log-ratio of a row (verl).
    """
    ratio = partial(sequence_log_ratio, gradient="token", cap=cap)
    return Recipe(
        parts=(Part(sequence_mean_token_mean, partial(ppo_clip, low=low, high=high, ratio=ratio)),),
        advantage=group_standardized,
        grouping=by_prompt,
        paper="GSPO-token, arXiv 2507.18071",
    )


def luspo(*, low: float = 3e-4, high: float = 4e-4) -> Recipe:
    """GSPO with every row weighted by its length, which undoes the preference for short rows.

    Args:
        low: the row's gradient stops at 1 - low.
        high: the row's gradient stops at 1 + high.
    """
    return Recipe(
        parts=(Part(sequence_mean_token_sum, partial(ppo_clip, low=low, high=high, ratio=sequence_log_ratio)),),
        advantage=group_standardized,
        grouping=by_prompt,
        paper="LUSPO, arXiv 2602.05261",
    )


def rloo_ppo(*, clip: float = 0.2, cap: float | None = 20.0) -> Recipe:
    """RLOO with PPO's clip on the ratio of the completions' probabilities, the mean over rows (TRL's RLOO).

    Args:
        clip: half-width of the clip interval around ratio 1.
        cap: largest log-ratio of a row; None (TRL): none.
    """
    ratio = partial(sequence_log_ratio, reduction="sum", cap=cap)
    return Recipe(
        parts=(Part(sequence_mean_token_mean, partial(ppo_clip, low=clip, high=clip, ratio=ratio)),),
        advantage=group_leave_one_out,
        grouping=by_prompt,
        paper="Back to basics, arXiv 2402.14740; PPO, arXiv 1707.06347",
    )


def gmpo(*, clip: float = 0.4) -> Recipe:
    """The geometric mean of clipped ratios in the place of the arithmetic one, mean over rows.

    Args:
        clip: half-width of the interval of a token's log-ratio around 0.
    """
    return Recipe(
        parts=(Part(sequence_mean_token_mean, partial(geometric_clip, low=clip, high=clip)),),
        advantage=group_standardized,
        grouping=by_prompt,
        paper="GMPO, arXiv 2507.20673",
    )


def vespo() -> Recipe:
    """A weight of the whole row that falls off smoothly on both sides of ratio 1, token mean."""
    return Recipe(
        parts=(Part(token_mean, soft_weight),),
        advantage=group_standardized,
        grouping=by_prompt,
        paper="VESPO, arXiv 2602.10693",
    )
