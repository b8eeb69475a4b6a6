"""Variants that know that another distribution sampled: importance weights, rejection, bounds against the sampler."""

from functools import partial

from grpo_jax.advantages import group_centered, group_standardized
from grpo_jax.groups import by_prompt
from grpo_jax.objectives.aggregation import recorded, restricted, token_mean
from grpo_jax.objectives.algebra import Aggregation, Part, Recipe, Term, add, reweight, scale
from grpo_jax.objectives.corrections import (
    importance,
    kept,
    kept_rows,
    masked_importance,
    mismatch_sum,
    off_policy_mask,
    truncated,
)
from grpo_jax.objectives.ratios import log_ratio_behavior, over_old
from grpo_jax.objectives.recipes.penalized import penalized
from grpo_jax.objectives.surrogates import ppo_clip, reinforce
from grpo_jax.objectives.trust import probability_clip, squared_log_ratio

YAO = "Yao et al. 2025, Your efficient RL framework secretly brings you off-policy RL training"


def _recipe(term: Term, paper: str, aggregation: Aggregation = token_mean) -> Recipe:
    return Recipe(parts=(Part(aggregation, term),), advantage=group_standardized, grouping=by_prompt, paper=paper)


def tis(*, cap: float = 2.0, clip: float = 0.2) -> Recipe:
    """The clipped surrogate times the truncated weight old / behaviour of each token.

    Args:
        cap: largest weight.
        clip: half-width of the clip interval around ratio 1.
    """
    return _recipe(reweight(partial(ppo_clip, low=clip, high=clip), partial(truncated, upper=cap)), YAO)


def tis_sequence(*, cap: float = 2.0, clip: float = 0.2) -> Recipe:
    """The clipped surrogate times the truncated weight of the whole row, the unbiased level.

    Args:
        cap: largest weight.
        clip: half-width of the clip interval around ratio 1.
    """
    weight = partial(truncated, of=mismatch_sum, upper=cap)
    return _recipe(reweight(partial(ppo_clip, low=clip, high=clip), weight), YAO)


def icepop(*, lower: float = 0.5, upper: float = 5.0, clip: float = 0.2) -> Recipe:
    """The clipped surrogate times the weight of each token, tokens outside an interval of weights left out.

    Args:
        lower: smallest weight that counts.
        upper: largest weight that counts.
        clip: half-width of the clip interval around ratio 1.
    """
    weight = partial(masked_importance, lower=lower, upper=upper)
    return _recipe(reweight(partial(ppo_clip, low=clip, high=clip), weight), "Ring-1T (IcePop), arXiv 2510.18855")


def mis_sequence(*, upper: float = 2.0, clip: float = 0.2) -> Recipe:
    """The clipped surrogate times the weight of the whole row, rows above a bound left out.

    Args:
        upper: largest weight that counts.
        clip: half-width of the clip interval around ratio 1.
    """
    weight = partial(masked_importance, of=mismatch_sum, lower=None, upper=upper)
    return _recipe(reweight(partial(ppo_clip, low=clip, high=clip), weight), YAO)


def geometric_mask(*, lower: float = 0.999, upper: float = 1.002, clip: float = 0.2) -> Recipe:
    """The clipped surrogate times the weight of each token, on rows whose mean weight lies in a narrow interval.

    Args:
        lower: smallest geometric mean of a row's weights.
        upper: largest.
        clip: half-width of the clip interval around ratio 1.
    """
    term = reweight(partial(ppo_clip, low=clip, high=clip), importance)
    return _recipe(reweight(term, partial(kept_rows, lower=lower, upper=upper)), YAO)


def rejection(*, upper: float = 0.02, clip: float = 0.2) -> Recipe:
    """The clipped surrogate on rows whose estimated divergence from the sampler is small, denominator included.

    Args:
        upper: largest mean of k3 over the row, nats.
        clip: half-width of the clip interval around ratio 1.
    """
    chosen = partial(recorded, weight=partial(kept, level="mean", upper=upper))
    return _recipe(partial(ppo_clip, low=clip, high=clip), YAO, restricted(token_mean, to=chosen))


def off_policy_masking(*, threshold: float = 0.02, beta: float | str = 0.04, clip: float = 0.2) -> Recipe:
    """The clipped surrogate without bad rows that are off-policy, and the unbiased penalty on all rows.

    Args:
        threshold: nats a token above which a row with a negative advantage is left out; the paper states none.
        beta: coefficient of the penalty, or the name of one.
        clip: half-width of the clip interval around ratio 1.
    """
    term = reweight(partial(ppo_clip, low=clip, high=clip), partial(off_policy_mask, threshold=threshold))
    return _recipe(penalized(term, beta, weight=over_old), "DeepSeek-V3.2, arXiv 2512.02556")


def decoupled_ppo(*, cap: float = 5.0, clip: float = 0.2) -> Recipe:
    """PPO around a proximal policy, corrected for the older behaviour that sampled.

    ``Batch.logp_old`` is the proximal policy: with stale rollouts, the one at the beginning of the step.

    Args:
        cap: tokens whose weight proximal / behaviour is above this are left out.
        clip: half-width of the clip interval around ratio 1.
    """
    weight = partial(masked_importance, lower=None, upper=cap)
    return _recipe(reweight(partial(ppo_clip, low=clip, high=clip), weight), "AReaL, arXiv 2505.24298")


def bypass(*, cap: float = 2.0) -> Recipe:
    """REINFORCE with the truncated weight policy / behaviour: no old policy at all (verl's bypass mode).

    Args:
        cap: largest weight.
    """
    return _recipe(reweight(reinforce, partial(truncated, of=log_ratio_behavior, upper=cap)), YAO)


def dppo(*, tv_low: float = 0.2, tv_high: float = 0.2, pull: float = 1e-3) -> Recipe:
    """Tokens whose probability has moved too far are dropped, and a quadratic pull to the sampler on all of them.

    prime-rl sums the tokens and divides outside the loss; here it is the token mean.

    Args:
        tv_low: how far the probability of a bad token may fall.
        tv_high: how far that of a good one may rise.
        pull: coefficient of the squared log-ratio.
    """
    term = add(partial(probability_clip, tv_low=tv_low, tv_high=tv_high), scale(squared_log_ratio, by=pull))
    return Recipe(
        parts=(Part(token_mean, term),),
        advantage=group_centered,
        grouping=by_prompt,
        paper="DPPO, arXiv 2602.04879",
    )


def dppo_symmetric(*, tv_low: float = 0.2, tv_high: float = 0.2, pull: float = 1e-3) -> Recipe:
    """`dppo` with both bounds on every token whatever its advantage (prime-rl's IPO form).

    Arguments as in `dppo`.
    """
    term = partial(probability_clip, tv_low=tv_low, tv_high=tv_high, symmetric=True)
    return Recipe(
        parts=(Part(token_mean, add(term, scale(squared_log_ratio, by=pull))),),
        advantage=group_centered,
        grouping=by_prompt,
        paper="DPPO, arXiv 2602.04879",
    )
