"""Variants in which some tokens of the batch are treated differently from others."""

from functools import partial

from grpo_jax.advantages import group_standardized
from grpo_jax.groups import by_prompt
from grpo_jax.objectives.aggregation import positive, restricted, token_mean
from grpo_jax.objectives.algebra import Part, Prepare, Recipe, Term, add, reweight, scale, where
from grpo_jax.objectives.gates import shaped_probability
from grpo_jax.objectives.kl import absolute
from grpo_jax.objectives.selection import (
    chosen,
    clip_cov_tokens,
    demonstrations,
    kl_cov_tokens,
    top_entropy_tokens,
)
from grpo_jax.objectives.surrogates import negative_log_likelihood, ppo_clip, unclipped
from grpo_jax.objectives.trust import old_penalty


def _recipe(term: Term, paper: str, prepare: Prepare) -> Recipe:
    return Recipe(
        parts=(Part(token_mean, term),),
        advantage=group_standardized,
        grouping=by_prompt,
        prepare=(prepare,),
        paper=paper,
    )


def kl_cov(*, fraction: float = 2e-3, coef: float = 1.0) -> Recipe:
    """The unclipped surrogate, with a penalty on the few tokens that would cost the most entropy.

    Args:
        fraction: share of the tokens that are penalised; 2e-4 in the paper for a 32B model.
        coef: coefficient of |log-ratio| there.
    """
    penalty = reweight(partial(old_penalty, estimator=absolute), partial(chosen, name="kl_cov"))
    term = add(unclipped, scale(penalty, by=coef))
    return _recipe(term, "The entropy mechanism, arXiv 2505.22617", partial(kl_cov_tokens, fraction=fraction))


def clip_cov(*, fraction: float = 2e-4, cov_low: float = 1.0, cov_high: float = 5.0, clip: float = 0.2) -> Recipe:
    """The clipped surrogate without a few tokens drawn among those that would cost the most entropy.

    Args:
        fraction: share of the tokens that are dropped.
        cov_low: lower bound of the covariance of such a token.
        cov_high: upper bound.
        clip: half-width of the clip interval around ratio 1.
    """
    draw = partial(
        clip_cov_tokens, fraction=fraction, cov_low=cov_low, cov_high=cov_high, clip_low=clip, clip_high=clip
    )
    term = reweight(partial(ppo_clip, low=clip, high=clip), partial(chosen, name="clip_cov"))
    return _recipe(term, "The entropy mechanism, arXiv 2505.22617", draw)


def top_entropy(*, fraction: float = 0.2, low: float = 0.2, high: float = 0.28) -> Recipe:
    """The clipped surrogate on the tokens of highest entropy alone; the denominator stays that of all tokens.

    Args:
        fraction: share of the tokens that are kept.
        low: the ratio's gradient stops at 1 - low.
        high: the ratio's gradient stops at 1 + high.
    """
    term = reweight(partial(ppo_clip, low=low, high=high), partial(chosen, name="top_entropy"))
    return _recipe(term, "Beyond the 80/20 rule, arXiv 2506.01939", partial(top_entropy_tokens, fraction=fraction))


def luffy(*, gamma: float = 0.1, clip: float = 0.2) -> Recipe:
    """The clipped surrogate on sampled rows, a shaped probability on rows that another policy wrote.

    Rows of another policy are those with a negative ``rollouts.version``; without any it is `ppo_clip`.

    Args:
        gamma: probability at which a token of another policy is learned fastest.
        clip: half-width of the clip interval around ratio 1.
    """
    term = where("off_policy", partial(shaped_probability, gamma=gamma), partial(ppo_clip, low=clip, high=clip))
    return _recipe(term, "LUFFY, arXiv 2504.14945", demonstrations)


def positive_likelihood(*, weight: float = 0.1, low: float = 0.2, high: float = 0.28) -> Recipe:
    """The clipped surrogate, and the likelihood of the rows with a reward above 0.

    Args:
        weight: coefficient of the likelihood.
        low: the ratio's gradient stops at 1 - low.
        high: the ratio's gradient stops at 1 + high.
    """
    return Recipe(
        parts=(
            Part(token_mean, partial(ppo_clip, low=low, high=high)),
            Part(restricted(token_mean, to=positive), scale(negative_log_likelihood, by=weight)),
        ),
        advantage=group_standardized,
        grouping=by_prompt,
        paper="VAPO, arXiv 2504.05118",
    )
