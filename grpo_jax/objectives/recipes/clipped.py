"""The clipped surrogate and its relatives on the ratios of tokens, and plain policy gradients."""

from functools import partial

from grpo_jax.advantages import batch_centered, group_centered, group_leave_one_out, group_standardized
from grpo_jax.groups import by_prompt, drop_tied
from grpo_jax.objectives.aggregation import (
    fixed_length,
    prompt_mean,
    sequence_mean_token_mean,
    sequence_mean_token_sum,
    token_mean,
)
from grpo_jax.objectives.algebra import Part, Recipe
from grpo_jax.objectives.gates import soft_gate
from grpo_jax.objectives.recipes.penalized import penalized
from grpo_jax.objectives.surrogates import clipped_weight, ppo_clip, reinforce


def grpo(*, beta: float | str = 0.04, clip: float = 0.2) -> Recipe:
    """Group relative policy optimisation: standardised rewards, clipped ratio, k3 penalty, every row weighs the same.

    Args:
        beta: coefficient of the penalty, or the name of one in ``TrainState.coef``.
        clip: half-width of the clip interval around ratio 1.
    """
    term = penalized(partial(ppo_clip, low=clip, high=clip), beta)
    return Recipe(
        parts=(Part(sequence_mean_token_mean, term),),
        advantage=group_standardized,
        grouping=by_prompt,
        paper="DeepSeekMath, arXiv 2402.03300",
    )


def dr_grpo(*, constant: float = 1024.0, clip: float = 0.2) -> Recipe:
    """GRPO without its two biases: rewards are not divided by their deviation, rows not by their length.

    Args:
        constant: the length every row is divided by; set it to the maximal number of sampled tokens.
        clip: half-width of the clip interval around ratio 1.
    """
    return Recipe(
        parts=(Part(partial(fixed_length, constant=constant), partial(ppo_clip, low=clip, high=clip)),),
        advantage=group_centered,
        grouping=by_prompt,
        paper="Understanding R1-Zero-like training, arXiv 2503.20783",
    )


def dapo(*, low: float = 0.2, high: float = 0.28) -> Recipe:
    """Clip-higher, every token weighs the same, groups that teach nothing are dropped, no penalty.

    The mean is over all tokens of the batch, as implementations do; the paper's own form, an equal weight for every
    prompt, is the aggregation `prompt_mean`.

    Args:
        low: the ratio's gradient stops at 1 - low.
        high: the ratio's gradient stops at 1 + high.
    """
    return Recipe(
        parts=(Part(token_mean, partial(ppo_clip, low=low, high=high)),),
        advantage=group_standardized,
        grouping=drop_tied,
        paper="DAPO, arXiv 2503.14476",
    )


def dapo_by_prompt(*, low: float = 0.2, high: float = 0.28) -> Recipe:
    """DAPO with the mean of its paper: over the tokens of a prompt's rows, then over prompts.

    Arguments as in `dapo`.
    """
    return Recipe(
        parts=(Part(prompt_mean, partial(ppo_clip, low=low, high=high)),),
        advantage=group_standardized,
        grouping=drop_tied,
        paper="DAPO, arXiv 2503.14476, equation 8",
    )


def rloo() -> Recipe:
    """REINFORCE on whole completions with the mean reward of the prompt's other completions as baseline."""
    return Recipe(
        parts=(Part(sequence_mean_token_sum, reinforce),),
        advantage=group_leave_one_out,
        grouping=by_prompt,
        paper="Back to basics, arXiv 2402.14740",
    )


def reinforce_baseline() -> Recipe:
    """REINFORCE on whole completions with the batch's mean reward as baseline."""
    return Recipe(
        parts=(Part(sequence_mean_token_sum, reinforce),),
        advantage=batch_centered,
        grouping=by_prompt,
        paper="Williams 1992",
    )


def ppo_group(*, clip: float = 0.2) -> Recipe:
    """PPO's clipped objective, token mean, with group advantages in the place of a critic.

    Args:
        clip: half-width of the clip interval around ratio 1.
    """
    return Recipe(
        parts=(Part(token_mean, partial(ppo_clip, low=clip, high=clip)),),
        advantage=group_standardized,
        grouping=by_prompt,
        paper="PPO, arXiv 1707.06347",
    )


def ppo_dual_clip(*, clip: float = 0.2, dual: float = 3.0) -> Recipe:
    """PPO whose loss is bounded where the advantage is negative.

    Args:
        clip: half-width of the clip interval around ratio 1.
        dual: bound of the ratio in the loss of bad tokens, above 1.
    """
    return Recipe(
        parts=(Part(token_mean, partial(ppo_clip, low=clip, high=clip, dual=dual)),),
        advantage=group_standardized,
        grouping=by_prompt,
        paper="Dual-clip PPO, arXiv 1912.09729",
    )


def grpo_two_sided(*, clip: float = 0.2, dual: float = 4.0) -> Recipe:
    """GRPO with the ratio of bad tokens capped, so that none of them takes over the gradient.

    Args:
        clip: half-width of the clip interval around ratio 1.
        dual: cap of the ratio, above 1 + `clip`.
    """
    return Recipe(
        parts=(Part(token_mean, partial(ppo_clip, low=clip, high=clip, dual=dual, dual_form="cap_ratio")),),
        advantage=group_standardized,
        grouping=by_prompt,
        paper="INTELLECT-2, arXiv 2505.07291",
    )


def cispo(*, low: float | None = None, high: float = 4.0) -> Recipe:
    """Every token keeps its gradient, its importance weight is clipped.

    Args:
        low: the weight is at least 1 - low; None: no bound, as the paper's large one.
        high: the weight is at most 1 + high.
    """
    return Recipe(
        parts=(Part(token_mean, partial(clipped_weight, low=low, high=high)),),
        advantage=group_standardized,
        grouping=by_prompt,
        paper="MiniMax-M1, arXiv 2506.13585",
    )


def cispo_capped(*, cap: float = 5.0) -> Recipe:
    """CISPO as ScaleRL uses it: the weight capped from above, every prompt weighs the same, tied groups dropped.

    Args:
        cap: the largest weight, an absolute number.
    """
    return Recipe(
        parts=(Part(prompt_mean, partial(clipped_weight, low=None, high=cap, bounds="absolute")),),
        advantage=partial(group_standardized, scope="batch"),
        grouping=drop_tied,
        paper="ScaleRL, arXiv 2510.13786",
    )


def sapo(*, tau_positive: float = 1.0, tau_negative: float = 1.05) -> Recipe:
    """A smooth gate in the place of the clip, every row weighs the same.

    Args:
        tau_positive: temperature of the gate where the advantage is positive.
        tau_negative: the same elsewhere.
    """
    gate = partial(soft_gate, tau_positive=tau_positive, tau_negative=tau_negative)
    return Recipe(
        parts=(Part(sequence_mean_token_mean, gate),),
        advantage=group_standardized,
        grouping=by_prompt,
        paper="SAPO, arXiv 2511.20347",
    )
