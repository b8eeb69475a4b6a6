"""How far the sampler's distribution b is from the old policy o on the tokens that were sampled, as metrics."""

import jax.numpy as jnp

from grpo_jax import masked
from grpo_jax.objectives.kl import k3
from grpo_jax.objectives.ratios import CAP, difference, row_length
from grpo_jax.types import Array, Batch, Metrics


def mismatch(batch: Batch, *, clamp: float | None = CAP) -> Metrics:
    """Divergences and perplexities of behaviour b and old policy o -> name -> f32[], nats where it is a divergence.

    With rho = exp(o - b): ``kl`` the mean of b - o over scored tokens, ``k3_kl`` that of rho - log rho - 1,
    ``chi2_token`` that of rho^2 minus 1, ``chi2_seq`` the mean over rows of exp(2 sum_t log rho_t) minus 1. With a_i
    and b_i the mean of o and b over the row (0 for an empty one): the mean over all rows of exp(-a_i)
    (``training_ppl``), of -a_i (``training_log_ppl``), the same of b_i (``rollout_...``), of b_i - a_i
    (``log_ppl_diff``, with its maximum, minimum and absolute value) and of exp(b_i - a_i) (``ppl_ratio``). Names and
    formulas are those of verl's rollout correction; log rho, or its sum, is clipped to +- `clamp` in the chi-squares,
    where None leaves it as it is.
    """
    delta = difference(batch.logp_old, batch.logp_behavior, batch.mask)
    old, behavior = _row_mean(batch.logp_old, batch), _row_mean(batch.logp_behavior, batch)
    gap = behavior - old
    clipped, total = delta, jnp.sum(delta, axis=1)
    if clamp is not None:
        clipped, total = (jnp.clip(x, -clamp, clamp) for x in (clipped, total))
    return {
        "kl": masked.mean(-delta, batch.mask),
        "k3_kl": masked.mean(k3(delta), batch.mask),
        "chi2_token": masked.mean(jnp.exp(2 * clipped), batch.mask) - 1.0,
        "chi2_seq": jnp.mean(jnp.exp(2 * total)) - 1.0,
        "training_ppl": jnp.mean(jnp.exp(-old)),
        "training_log_ppl": jnp.mean(-old),
        "rollout_ppl": jnp.mean(jnp.exp(-behavior)),
        "rollout_log_ppl": jnp.mean(-behavior),
        "log_ppl_diff": jnp.mean(gap),
        "log_ppl_abs_diff": jnp.mean(jnp.abs(gap)),
        "log_ppl_diff_max": jnp.max(gap),
        "log_ppl_diff_min": jnp.min(gap),
        "ppl_ratio": jnp.mean(jnp.exp(gap)),
    }


def _row_mean(x: Array, batch: Batch) -> Array:
    return jnp.sum(masked.select(batch.mask, x), axis=1) / row_length(batch, x.dtype)[:, 0]
