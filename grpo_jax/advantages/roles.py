"""A baseline that each role of a game remembers: role-conditioned advantages (SPIRAL, arXiv 2506.24119)."""

import jax
import jax.numpy as jnp

from grpo_jax import masked
from grpo_jax.advantages.deviations import check, check_rows
from grpo_jax.advantages.strategy import begins, reads, rows, to_tokens
from grpo_jax.groups import Memory
from grpo_jax.types import Array, Collected

KEY = "role_baseline"
"""Where `Memory` holds the baselines, f32[roles]."""


def role_memory(*, roles: int = 2) -> Memory:
    """The baselines of a beginning: f32[roles], 0. Raises ValueError for no role."""
    if roles < 1:
        raise ValueError(f"roles: got {roles}, allowed 1 and more: say how many labels the roles have")
    return {KEY: jnp.zeros(roles, jnp.float32)}


def above_role(
    reward: Array, role: Array, baseline: Array, *, valid: Array, decay: float = 0.95
) -> tuple[Array, Array]:
    """(R_i - b of its role f[N], the next b f[R]); then b <- decay b + (1 - decay) mean of the role's rewards.

    Rows are scored before the baseline moves. A role without a row keeps its baseline.

    Args:
        reward: f[N].
        role: i32[N]; a row whose role is not in [0, R) counts nowhere.
        baseline: f[R], from the step before.
        valid: bool[N].
        decay: of the moving mean; 0.95 in the paper.
    """
    check_rows(reward, role, valid)
    number = baseline.shape[0]
    known = valid & (role < number)
    member = masked.members(role, known)
    kept = baseline.astype(reward.dtype)
    value = masked.select(member, reward) - masked.spread(kept, jnp.minimum(role, number - 1))
    mean = masked.segment_mean(reward, role, number, known)
    played = masked.segment_count(role, number, known) > 0
    after = jnp.where(played, decay * kept + (1.0 - decay) * mean, kept)
    return masked.select(member, value), after.astype(baseline.dtype)


def above_role_row_by_row(
    reward: Array, role: Array, baseline: Array, *, valid: Array, decay: float = 0.95
) -> tuple[Array, Array]:
    """`above_role` with a baseline that moves after every row, in the order of the arrays (prime-rl).

    b <- decay b + (1 - decay) R_i after row i, for its role: N steps of one role are N decays.
    """
    check_rows(reward, role, valid)
    number = baseline.shape[0]
    member = masked.members(role, valid & (role < number))
    mine = (role[:, None] == jnp.arange(number, dtype=role.dtype)[None, :]) & member[:, None]
    one, nothing = jnp.ones((), reward.dtype), jnp.zeros((), reward.dtype)
    paid = masked.select(member, reward)[:, None]
    # Row i maps b to factor b + term; the maps of rows 0..i are composed.
    factor, term = jnp.where(mine, decay * one, one), jnp.where(mine, (1.0 - decay) * paid, nothing)

    def compose(first: tuple[Array, Array], then: tuple[Array, Array]) -> tuple[Array, Array]:
        return first[0] * then[0], first[1] * then[0] + then[1]

    factor, term = jax.lax.associative_scan(compose, (factor, term))
    moved = factor * baseline.astype(reward.dtype)[None, :] + term
    before = jnp.concatenate([baseline.astype(reward.dtype)[None, :], moved[:-1]])
    value = paid[:, 0] - jnp.sum(jnp.where(mine, before, nothing), axis=1)
    return masked.select(member, value), moved[-1].astype(baseline.dtype)


@reads("label")
@begins(role_memory)
def role_baseline(
    collected: Collected,
    labels: Array,
    memory: Memory,
    *,
    name: str = "role",
    roles: int = 2,
    decay: float = 0.95,
    update: str = "step",
) -> tuple[Array, Memory]:
    """Strategy: R_i minus a moving mean of the rewards of the row's role. The groups only say which rows count.

    Args:
        collected: whose prompts have the label `name`, the role: 0 to `roles` - 1. A row with another number gets 0.
        labels: of the rows.
        memory: with `KEY`, see `initial_memory`; handed on with the baselines moved.
        name: label of the prompts.
        roles: how many there are.
        decay: of the moving mean.
        update: "step", the baseline moves once a step towards the mean of its role's rewards, whatever the order of
            the rows; "row", after every row, in the order of draws and samples (prime-rl).

    Raises:
        ValueError: the prompts lack the label, or the memory lacks the baselines.
    """
    check(update=update)
    rollouts, reward = collected.rollouts, collected.reward
    member = masked.members(rows(labels, "role_baseline"), reward.valid)
    if name not in rollouts.prompts.label:
        raise ValueError(
            f"role_baseline.name: got {name!r}, allowed {', '.join(sorted(rollouts.prompts.label)) or 'none'}, the"
            " labels of these prompts: let the task say which role a prompt is played in"
        )
    if KEY not in memory or memory[KEY].shape != (roles,):
        found = f"shape {memory[KEY].shape}" if KEY in memory else "nothing"
        raise ValueError(
            f"memory[{KEY!r}]: got {found}, allowed f32[{roles}]: begin a run with advantages.initial_memory(advantage)"
        )
    prompt = rollouts.prompt
    answered = (prompt >= 0) & (prompt < rollouts.prompts.draw.shape[0])
    role = jnp.where(answered, rollouts.prompts.label[name].at[prompt].get(mode="clip"), -1)
    if update == "step":
        value, after = above_role(reward.outcome, role, memory[KEY], valid=member, decay=decay)
    else:
        draw = rollouts.prompts.draw.at[prompt].get(mode="clip")
        order = jnp.lexsort((rollouts.sample, draw))
        value, after = above_role_row_by_row(
            reward.outcome[order], role[order], memory[KEY], valid=member[order], decay=decay
        )
        value = jnp.zeros_like(value).at[order].set(value)
    return to_tokens(value, collected), {**memory, KEY: after}
