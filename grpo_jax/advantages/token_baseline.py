"""The baseline of each token that makes the variance of the gradient small: returns weighted by squared scores."""

import jax
import jax.numpy as jnp

from grpo_jax import masked
from grpo_jax.advantages.deviations import check, guarded
from grpo_jax.advantages.returns import token_returns
from grpo_jax.advantages.strategy import counted, given, reads, rows
from grpo_jax.groups import Memory
from grpo_jax.types import Array, Collected


def score_energy(logp: Array, sum_pi_squared: Array, mask: Array) -> Array:
    """f[N,T], W_t = sum_{s <= t} (1 - 2 pi_s + sum pi^2): squared norm of the gradient of the logits up to a token.

    Args:
        logp: f[N,T], of the sampled token; pi is its exponential.
        sum_pi_squared: f[N,T], over the vocabulary.
        mask: bool[N,T], the tokens that count.
    """
    w = 1.0 - 2.0 * jnp.exp(masked.select(mask, logp)) + masked.select(mask, sum_pi_squared)

    def step(before: Array, column: Array) -> tuple[Array, Array]:
        return before + column, before + column

    # A scan over columns: jnp.cumsum costs a multiple of it on a CPU.
    return jax.lax.scan(step, jnp.zeros_like(w[:, 0]), masked.select(mask, w).T)[1].T


def above_token_baseline(
    returns: Array,
    energy: Array,
    mask: Array,
    group: Array,
    *,
    num_groups: int,
    valid: Array,
    eps: float = 1e-8,
    eps_mode: str = "max",
    singleton: str = "zero",
) -> Array:
    """G_t - B_t on the tokens of `mask` -> f[N,T], B_t = sum G_t W_t / (sum W_t + eps) over the group's tokens at t.

    With `eps_mode` "max" the divisor is max(sum W, eps), and equal returns give exactly 0; with "add" (verl) they give
    G eps / (sum W + eps), which is not 0.

    Args:
        returns: f[N,T], G.
        energy: f[N,T], W, see `score_energy`.
        mask: bool[N,T].
        group: i32[N].
        num_groups: more than the largest label.
        valid: bool[N].
        eps: guard of the division.
        eps_mode: where it goes.
        singleton: a group of one has the advantage "zero", or "raw": the baseline 0 (verl).

    Raises:
        ValueError: an unknown convention.
    """
    check(eps_mode=eps_mode, singleton=singleton)
    member = masked.members(group, valid)
    mask = mask & member[:, None]
    slot = jnp.where(member, group, num_groups)
    g, w = masked.select(mask, returns), masked.select(mask, energy)
    if eps_mode == "max":
        # Measured from the largest return of the group, equal returns are their own baseline, whatever the rounding of
        # their weighted mean.
        largest = jax.ops.segment_max(masked.select(mask, g, -jnp.inf), slot, num_groups + 1)
        largest = jnp.where(jnp.isfinite(largest), largest, jnp.zeros_like(largest))
        sums = jax.ops.segment_sum(jnp.concatenate([w, (g - largest[slot]) * w], axis=1), slot, num_groups + 1)
        total, weighted = jnp.split(sums, 2, axis=1)
        small = total < eps
        baseline = jnp.where(small, (weighted + largest * total) / eps, largest + weighted / jnp.maximum(total, eps))
    else:
        sums = jax.ops.segment_sum(jnp.concatenate([w, g * w], axis=1), slot, num_groups + 1)
        total, weighted = jnp.split(sums, 2, axis=1)
        baseline = weighted / guarded(total, eps=eps, eps_mode=eps_mode)
    value = g - baseline[slot]
    alone = masked.spread(masked.segment_count(group, num_groups, valid), group) == 1.0
    lonely = g if singleton == "raw" else jnp.zeros_like(g)
    return masked.select(mask, jnp.where(alone[:, None], lonely, value))


@reads("sum_pi_squared")
def optimal_token_baseline(
    collected: Collected,
    labels: Array,
    memory: Memory,
    *,
    gamma: float = 1.0,
    eps: float = 1e-8,
    eps_mode: str = "max",
    singleton: str = "zero",
    holes: str = "carry",
    rewards: str = "outcome",
) -> tuple[Array, Memory]:
    """Strategy of the kernel `above_token_baseline`. verl: eps_mode "add", singleton "raw".

    Raises ValueError without ``Collected.sum_pi_squared``.
    """
    mask = counted(collected, rows(labels, "optimal_token_baseline"))
    remedy = "let the pass that recomputes log-probabilities at collection want sum_pi_squared"
    squares = given(collected.sum_pi_squared, "Collected.sum_pi_squared", "optimal_token_baseline", remedy)
    returns = token_returns(collected, mask, gamma=gamma, holes=holes, rewards=rewards)
    advantage = above_token_baseline(
        returns,
        score_energy(collected.logp_old, squares, mask).astype(returns.dtype),
        mask,
        labels,
        num_groups=labels.shape[0],
        valid=collected.reward.valid,
        eps=eps,
        eps_mode=eps_mode,
        singleton=singleton,
    )
    return advantage, memory
