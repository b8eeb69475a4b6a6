"""Policy terms. A is the advantage, x the log-probability of a token, r its importance ratio, by default exp(x - o).

Which ratio is meant (of tokens or of rows, against the old policy or the behaviour) is an argument of the terms that
clip, a log-ratio of `grpo_jax.objectives.ratios`. Nothing else is differentiated than x: advantages and recorded
log-probabilities are data.
"""

import jax
import jax.numpy as jnp

from grpo_jax.objectives.description import needs
from grpo_jax.objectives.ratios import CAP, LogRatio, interval, log_ratio
from grpo_jax.types import Array, Batch, TokenStats


def reinforce(stats: TokenStats, batch: Batch) -> Array:
    """-A x -> f32[N,T], whose gradient is the score-function estimate of the policy gradient (Williams 1992)."""
    return -batch.advantage * stats.logp


def ppo_clip(
    stats: TokenStats,
    batch: Batch,
    *,
    low: float | None = 0.2,
    high: float | None = 0.2,
    bounds: str = "relative",
    dual: float | None = None,
    dual_form: str = "bound",
    ratio: LogRatio = log_ratio,
    clamp_log_ratio: float | None = CAP,
) -> Array:
    """-min(r A, clip(r, 1 - low, 1 + high) A) -> f32[N,T] (PPO, arXiv 1707.06347, equation 7).

    At r = 1 the value is -A and the gradient that of `reinforce`.

    Args:
        stats: forward pass of the policy.
        batch: with ``advantage`` and what `ratio` reads.
        low: how far below 1 the ratio may fall before the gradient stops; None: no bound.
        high: how far above 1 it may rise (above `low` in DAPO's clip-higher); None: no bound.
        bounds: how `low` and `high` are meant, see `interval`.
        dual: bounds the term where A < 0, `dual` > 1; None: unbounded.
        dual_form: "bound": the term is at most ``-dual * A`` where A < 0 (dual clip, arXiv 1912.09729; verl,
            OpenRLHF, slime, tunix, NeMo-RL); "cap_ratio": the unclipped r is capped at `dual` (two-sided GRPO of
            INTELLECT-2, arXiv 2505.07291; TRL's delta). They differ only where `dual` < 1 + `high`.
        ratio: log-ratio whose exponential is r; `sequence_log_ratio` for GSPO.
        clamp_log_ratio: a token's log-ratio is clipped to +- this first, which keeps r finite in float32 (verl, tunix,
            OpenRLHF 20); None: not at all (TRL, slime, NeMo-RL, rlax). The gradient is 0 where it acts.

    Raises:
        ValueError: `bounds` or `dual_form` is unknown.
    """
    r = jnp.exp(ratio(stats, batch, clamp=clamp_log_ratio))
    lower, upper = interval(low, high, bounds)
    if dual is None or dual_form == "bound":
        # min(r A, clip(r) A) is A times the bounded side of r: one product, and few arrays to keep for the gradient.
        risen = r if upper is None else jnp.minimum(r, upper)
        fallen = r if lower is None else jnp.maximum(r, lower)
        term = -batch.advantage * jnp.where(batch.advantage > 0, risen, fallen)
        if dual is None:
            return term
        return jnp.where(batch.advantage < 0, jnp.minimum(term, -dual * batch.advantage), term)
    if dual_form != "cap_ratio":
        raise ValueError(f"dual_form: got {dual_form!r}, allowed 'bound' and 'cap_ratio': choose how dual enters")
    clipped = -batch.advantage * (r if lower is None and upper is None else jnp.clip(r, lower, upper))
    return jnp.maximum(-batch.advantage * jnp.minimum(r, dual), clipped)


def unclipped(
    stats: TokenStats, batch: Batch, *, ratio: LogRatio = log_ratio, clamp_log_ratio: float | None = CAP
) -> Array:
    """-r A -> f32[N,T]: the surrogate of TRPO (arXiv 1502.05477, equation 14) and of PPO with a penalty.

    Arguments as in `ppo_clip`.
    """
    return -batch.advantage * jnp.exp(ratio(stats, batch, clamp=clamp_log_ratio))


def clipped_weight(
    stats: TokenStats,
    batch: Batch,
    *,
    low: float | None = None,
    high: float | None = 4.0,
    bounds: str = "relative",
    ratio: LogRatio = log_ratio,
    clamp_log_ratio: float | None = CAP,
) -> Array:
    """-stop_gradient(clip(r)) A x -> f32[N,T] (CISPO, MiniMax-M1, arXiv 2506.13585).

    The weight is clipped, the token keeps its gradient. The defaults leave the lower side open and cap r at 5
    (ScaleRL, arXiv 2510.13786). The value says nothing that could be compared with that of `ppo_clip`.

    Args:
        stats: forward pass of the policy.
        batch: as for `ppo_clip`.
        low: lower bound of the weight; the paper, verl, NeMo-RL and slime read it as 1 - low; None: no bound.
        high: upper bound of the weight: 1 + high there, `high` itself in TRL (``bounds="absolute"``, ``low=None``).
        bounds: how `low` and `high` are meant, see `interval`.
        ratio: log-ratio whose exponential is r.
        clamp_log_ratio: as in `ppo_clip` (verl 20; TRL, NeMo-RL, slime None).
    """
    r = jnp.exp(ratio(stats, batch, clamp=clamp_log_ratio))
    lower, upper = interval(low, high, bounds)
    weight = r if lower is None and upper is None else jnp.clip(r, lower, upper)
    return -jax.lax.stop_gradient(weight) * batch.advantage * stats.logp


def negative_log_likelihood(stats: TokenStats, batch: Batch) -> Array:
    """-x -> f32[N,T], nats: supervised learning on the tokens of the batch."""
    del batch
    return -stats.logp


@needs("entropy")
def negative_entropy(stats: TokenStats, batch: Batch) -> Array:
    """-H -> f32[N,T], nats: minimised with a small positive scale it is the entropy bonus."""
    del batch
    if stats.entropy is None:
        raise ValueError('negative_entropy reads TokenStats.entropy, which is None. Remedy: ask for want=("entropy",)')
    return -stats.entropy
