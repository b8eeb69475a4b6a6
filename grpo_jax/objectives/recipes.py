"""Published variants as compositions: functions of hyper-parameters, and `RECIPES` with the papers' values."""

from functools import partial

from grpo_jax.advantages import batch_centered, group_centered, group_leave_one_out, group_standardized
from grpo_jax.groups import by_prompt, drop_tied
from grpo_jax.objectives.aggregation import fixed_length, sequence_mean_token_mean, sequence_mean_token_sum, token_mean
from grpo_jax.objectives.algebra import Part, Recipe, Term, add, scale
from grpo_jax.objectives.kl import k3, kl_penalty
from grpo_jax.objectives.surrogates import ppo_clip, reinforce


def _penalised(term: Term, beta: float | str) -> Term:
    """`term` + beta k3; with beta 0 the penalty is left out, and with it the forward pass of a reference policy."""
    if beta == 0:
        return term
    return add(term, scale(partial(kl_penalty, estimator=k3), by=beta))


def grpo(*, beta: float | str = 0.04, clip: float = 0.2) -> Recipe:
    """Group relative policy optimisation: standardised rewards, clipped ratio, k3 penalty, every row weighs the same.

    Args:
        beta: coefficient of the penalty, or the name of one in ``TrainState.coef``.
        clip: half-width of the clip interval around ratio 1.
    """
    term = _penalised(partial(ppo_clip, low=clip, high=clip), beta)
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


RECIPES: dict[str, Recipe] = {
    "grpo": grpo(),
    "dr_grpo": dr_grpo(),
    "dapo": dapo(),
    "rloo": rloo(),
    "reinforce": reinforce_baseline(),
    "ppo_clip": ppo_group(),
}
