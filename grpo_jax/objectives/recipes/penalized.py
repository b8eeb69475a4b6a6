"""Variants of the penalty on the divergence from a reference, of where it is paid, and of the entropy bonus."""

from collections.abc import Callable
from functools import partial

from grpo_jax.advantages import group_leave_one_out, group_standardized
from grpo_jax.groups import by_prompt
from grpo_jax.objectives.aggregation import sequence_mean_token_mean, sequence_mean_token_sum, token_mean
from grpo_jax.objectives.algebra import Part, Recipe, Term, add, scale
from grpo_jax.objectives.control import Coefficient, doubling, following, gated, proportional, stepping
from grpo_jax.objectives.kl import k1, k2, k3, kl_exact, kl_penalty, straight_through
from grpo_jax.objectives.ratios import over_old
from grpo_jax.objectives.reward_penalty import penalized_outcome
from grpo_jax.objectives.surrogates import negative_entropy, ppo_clip, reinforce, unclipped
from grpo_jax.objectives.trust import old_penalty
from grpo_jax.types import Array


def penalized(
    term: Term, beta: float | str, *, estimator: Callable[[Array], Array] = k3, weight: Term | None = None
) -> Term:
    """`term` + beta KL; with beta 0 the penalty is left out, and with it the forward pass of a reference policy."""
    if beta == 0:
        return term
    return add(term, scale(partial(kl_penalty, estimator=estimator, weight=weight), by=beta))


def _grpo(term: Term, paper: str, coefficients: tuple[Coefficient, ...] = ()) -> Recipe:
    return Recipe(
        parts=(Part(sequence_mean_token_mean, term),),
        advantage=group_standardized,
        grouping=by_prompt,
        coefficients=coefficients,
        paper=paper,
    )


def grpo_k1(*, beta: float | str = 0.04, clip: float = 0.2) -> Recipe:
    """GRPO with k1 in the loss, whose gradient has mean zero on-policy: a penalty that does not pull (tunix's default).

    Args:
        beta: coefficient of the penalty, or the name of one.
        clip: half-width of the clip interval around ratio 1.
    """
    term = penalized(partial(ppo_clip, low=clip, high=clip), beta, estimator=k1)
    return _grpo(term, "Schulman, Approximating KL divergence; arXiv 2506.09477")


def grpo_k2(*, beta: float | str = 0.04, clip: float = 0.2) -> Recipe:
    """GRPO with k2 in the loss, whose gradient is that of KL(policy || reference) on-policy.

    Arguments as in `grpo_k1`.
    """
    term = penalized(partial(ppo_clip, low=clip, high=clip), beta, estimator=k2)
    return _grpo(term, "Schulman, Approximating KL divergence; arXiv 2506.09477")


def grpo_straight_through(*, beta: float | str = 0.04, clip: float = 0.2) -> Recipe:
    """GRPO with the value of k3 and the gradient of k2 in the loss: both unbiased on-policy.

    Arguments as in `grpo_k1`.
    """
    term = penalized(partial(ppo_clip, low=clip, high=clip), beta, estimator=straight_through)
    return _grpo(term, "arXiv 2506.09477")


def grpo_unbiased_kl(*, beta: float | str = 0.04, clip: float = 0.2) -> Recipe:
    """GRPO with k3 times pi_new / pi_old, both differentiated: the gradient of the divergence off-policy too.

    Arguments as in `grpo_k1`.
    """
    term = penalized(partial(ppo_clip, low=clip, high=clip), beta, weight=over_old)
    return _grpo(term, "DeepSeek-V3.2, arXiv 2512.02556")


def grpo_exact_kl(*, beta: float | str = 0.04, clip: float = 0.2) -> Recipe:
    """GRPO with the exact divergence over the vocabulary in the loss: no estimate, one more forward pass an update.

    Arguments as in `grpo_k1`.
    """
    return _grpo(
        add(partial(ppo_clip, low=clip, high=clip), scale(kl_exact, by=beta)), "DeepSeekMath, arXiv 2402.03300"
    )


def grpo_adaptive_kl(
    *, target: float = 0.1, initial: float = 0.04, horizon: float = 10_000.0, steps: float = 256.0, clip: float = 0.2
) -> Recipe:
    """GRPO whose penalty follows the measured divergence in proportion to its error.

    Args:
        target: the divergence to hold, nats a token.
        initial: coefficient at the beginning.
        horizon: samples over which the relative error acts in full.
        steps: samples of a step.
        clip: half-width of the clip interval around ratio 1.
    """
    rule = partial(proportional, target=target, horizon=horizon, steps=steps)
    control = partial(following, name="beta", measure="kl/ref", rule=rule)
    term = penalized(partial(ppo_clip, low=clip, high=clip), "beta")
    return _grpo(term, "Fine-tuning from human preferences, arXiv 1909.08593", (Coefficient("beta", initial, control),))


def ppo_adaptive_kl(*, target: float = 0.01, initial: float = 1.0) -> Recipe:
    """PPO without a clip: -r A + beta KL(old || new), beta doubled or halved as the divergence leaves its band.

    The divergence is the metric ``kl/old_after``, measured behind the updates of the step by one more forward pass.

    Args:
        target: divergence from the old policy to hold, nats a token.
        initial: coefficient at the beginning.
    """
    penalty = partial(old_penalty, estimator=k3, direction="forward")
    control = partial(following, name="beta_old", measure="kl/old_after", rule=partial(doubling, target=target))
    return Recipe(
        parts=(Part(token_mean, add(unclipped, scale(penalty, by="beta_old"))),),
        advantage=group_standardized,
        grouping=by_prompt,
        coefficients=(Coefficient("beta_old", initial, control),),
        paper="PPO, arXiv 1707.06347, section 4",
    )


def trpo() -> Recipe:
    """The surrogate of TRPO, -r A without clip or penalty: the loss alone, which bounds nothing.

    What makes it TRPO is the update that is taken on it, a natural gradient within a bound on the divergence. The
    settings of the run name that one: ``optimizer=updates.TrustRegion(delta=0.01)``. Under a gradient method this is a
    policy gradient with an importance ratio, safe for a single update on every batch.
    """
    return Recipe(
        parts=(Part(token_mean, unclipped),),
        advantage=group_standardized,
        grouping=by_prompt,
        paper="TRPO, arXiv 1502.05477",
    )


def rloo_kl(*, beta: float = 0.05) -> Recipe:
    """RLOO with the divergence paid out of the reward: k1, which is the unbiased place for it.

    Args:
        beta: what a nat of a whole completion costs.
    """
    return Recipe(
        parts=(Part(sequence_mean_token_sum, reinforce),),
        advantage=partial(penalized_outcome, advantage=group_leave_one_out, coef=beta),
        grouping=by_prompt,
        paper="Back to basics, arXiv 2402.14740",
    )


def entropy_bonus(*, coef: float = 0.001, clip: float = 0.2) -> Recipe:
    """The clipped surrogate with a bonus for entropy, token mean.

    Args:
        coef: what a nat of entropy is worth; 0.001 to 0.01 are usual.
        clip: half-width of the clip interval around ratio 1.
    """
    return Recipe(
        parts=(
            Part(token_mean, partial(ppo_clip, low=clip, high=clip)),
            Part(token_mean, scale(negative_entropy, by=coef)),
        ),
        advantage=group_standardized,
        grouping=by_prompt,
        paper="PPO, arXiv 1707.06347, equation 9",
    )


def entropy_target(*, target: float = 0.2, step: float = 0.005, initial: float = 0.0, clip: float = 0.2) -> Recipe:
    """An entropy bonus that grows while the entropy is below a target, and acts only there.

    The entropy is that of the step before.

    Args:
        target: nats a token.
        step: what the coefficient moves by in a step.
        initial: coefficient at the beginning.
        clip: half-width of the clip interval around ratio 1.
    """
    level = partial(
        following, name="entropy_level", measure="entropy", rule=partial(stepping, target=target, step=step)
    )
    acting = partial(gated, control=level, measure="entropy", target=target)
    return Recipe(
        parts=(
            Part(token_mean, partial(ppo_clip, low=clip, high=clip)),
            Part(token_mean, scale(negative_entropy, by="entropy_bonus")),
        ),
        advantage=group_standardized,
        grouping=by_prompt,
        coefficients=(Coefficient("entropy_level", initial, level), Coefficient("entropy_bonus", initial, acting)),
        paper="Skywork-OR1, arXiv 2505.22312",
    )
