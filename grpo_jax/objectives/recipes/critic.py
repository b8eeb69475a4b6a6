"""PPO with a critic: what a token is worth is the reward less what the critic expected, token by token."""

from functools import partial

from grpo_jax.advantages import Advantage, gae, gae_length_adaptive, penalized_tokens, whitened
from grpo_jax.groups import by_prompt
from grpo_jax.objectives.aggregation import token_mean
from grpo_jax.objectives.algebra import Part, Recipe, scale
from grpo_jax.objectives.critic import value_clip
from grpo_jax.objectives.surrogates import ppo_clip


def ppo_critic(
    *,
    clip: float = 0.2,
    clip_value: float | None = 0.2,
    value_coef: float = 0.5,
    gamma: float = 1.0,
    lam: float = 0.95,
    alpha: float | None = None,
    beta: float = 0.0,
    bootstrap: float = 0.0,
    whiten: bool = True,
) -> Recipe:
    """PPO as it was written: clipped ratio, generalised advantages, a critic with a clipped loss; no groups.

    The model needs a critic, ``ModelConfig.critic``; `docs/critic.md` says who plays which of the four roles.

    Args:
        clip: half-width of the clip interval around ratio 1.
        clip_value: half-width of the one around the value at collection, in units of the reward; None: no clip.
        value_coef: what the loss of the critic counts beside that of the policy. Its size matters only where both
            share layers: an optimiser such as Adam does not see it.
        gamma: discount of a token.
        lam: of the generalised advantages, and of the targets of the critic.
        alpha: not None: lambda depends on the length of the row, 1 - 1 / (alpha n), and targets have lambda 1 (VAPO).
        beta: what a nat of divergence from the reference costs, taken from the reward of its token as an estimate
            k1; 0: there is no reference.
        bootstrap: value of what follows the last token, of rows that were cut off too: 0 says that a completion
            without an end is worth nothing more, whatever the critic expects.
        whiten: advantages have mean 0 and deviation 1 over the tokens of the batch (verl, OpenRLHF).
    """
    rewards = "token" if beta else "outcome"
    shared = {"gamma": gamma, "bootstrap": bootstrap, "rewards": rewards}
    advantage: Advantage = partial(gae, lam=lam, **shared)
    if alpha is not None:
        advantage = partial(gae_length_adaptive, alpha=alpha, **shared)
    if beta:
        advantage = partial(penalized_tokens, advantage=advantage, coef=beta)
    if whiten:
        advantage = partial(whitened, advantage=advantage)
    values = scale(partial(value_clip, clip=clip_value), by=value_coef)
    return Recipe(
        parts=(Part(token_mean, partial(ppo_clip, low=clip, high=clip)), Part(token_mean, values)),
        advantage=advantage,
        grouping=by_prompt,
        paper="PPO, arXiv 1707.06347; GAE, arXiv 1506.02438",
    )
