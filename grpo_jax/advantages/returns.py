"""Advantages token by token: discounted returns, values of a critic, the reward of the greedy completion.

What `holes` does with positions inside a row that do not train, such as the output of a tool:

=========  =========================================================================================
``carry``  the next value and what runs are carried across them, without discount (GAE of verl, tunix and NeMo-RL)
``zero``   reward and value are 0 there, and the recursion runs through them with its discount (OpenRLHF, slime, rlax)
``reset``  what runs starts at 0 again: a reward is not paid to what came before the hole (REINFORCE++ of verl)
=========  =========================================================================================

What `rewards` says a token is paid: "outcome", the reward of the row on its last trained token; "token",
``Reward.token``; "both", their sum.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from grpo_jax import masked
from grpo_jax.advantages.deviations import check
from grpo_jax.advantages.strategy import Advantage, counted, given, reads, rows, teaches
from grpo_jax.advantages.whitening import whiten
from grpo_jax.groups import Memory
from grpo_jax.types import Array, Collected


def at_last_token(outcome: Array, mask: Array) -> Array:
    """Reward of the row f[N] on its last trained token, 0 elsewhere -> f[N,T]; a row without tokens keeps nothing."""
    place = jnp.arange(mask.shape[1], dtype=jnp.int32)[None, :]
    last = jnp.max(jnp.where(mask, place, -1), axis=1, initial=-1)
    return jnp.where(place == last[:, None], outcome[:, None], jnp.zeros((), outcome.dtype))


def token_rewards(collected: Collected, mask: Array, *, rewards: str = "outcome") -> Array:
    """f[N,T], what every token is paid, 0 outside `mask`; see the module for `rewards`.

    Raises:
        ValueError: `rewards` is unknown, or ``Reward.token`` is absent.
    """
    check(rewards=rewards)
    at_end = at_last_token(collected.reward.outcome, mask)
    if rewards == "outcome":
        return at_end
    remedy = "let the reward fill it, or take rewards='outcome'"
    each = masked.select(mask, given(collected.reward.token, "Reward.token", f"rewards={rewards!r}", remedy))
    return each if rewards == "token" else at_end + each


def discounted_returns(reward: Array, mask: Array, *, gamma: float = 1.0, holes: str = "carry") -> Array:
    """G_t = r_t + gamma G_{t+1} over the trained tokens of a row -> f[N,T], 0 outside `mask`.

    Args:
        reward: f[N,T].
        mask: bool[N,T].
        gamma: discount of a token.
        holes: see the module.

    Raises:
        ValueError: `holes` is unknown.
    """
    check(holes=holes)

    def step(later: Array, column: tuple[Array, Array]) -> tuple[Array, Array]:
        paid, trained = column
        now = paid + gamma * later
        beside = {"carry": later, "zero": now, "reset": jnp.zeros_like(later)}[holes]
        now = jnp.where(trained, now, beside)
        return now, now

    paid = masked.select(mask, reward)
    _, found = jax.lax.scan(step, jnp.zeros_like(paid[:, 0]), (paid.T, mask.T), reverse=True)
    return masked.select(mask, found.T)


def token_returns(
    collected: Collected, mask: Array, *, gamma: float = 1.0, holes: str = "carry", rewards: str = "outcome"
) -> Array:
    """`discounted_returns` of `token_rewards` -> f[N,T]; undiscounted outcomes are known without a recursion."""
    check(holes=holes, rewards=rewards)
    if rewards == "outcome" and gamma == 1.0 and holes != "reset":
        outcome = collected.reward.outcome
        return jnp.where(mask, outcome[:, None], jnp.zeros((), outcome.dtype))
    reward = token_rewards(collected, mask, rewards=rewards)
    return discounted_returns(reward, mask, gamma=gamma, holes=holes)


def generalized_advantages(
    reward: Array,
    value: Array,
    mask: Array,
    *,
    gamma: float = 1.0,
    lam: float | Array = 0.95,
    bootstrap: float = 0.0,
    holes: str = "carry",
) -> tuple[Array, Array]:
    """GAE (arXiv 1506.02438): advantages and returns, both f[N,T] and 0 outside `mask`.

    delta_t = r_t + gamma V_{t+1} - V_t, A_t = delta_t + gamma lam A_{t+1}, and the returns, targets of the critic, are
    A + V.

    Args:
        reward: f[N,T].
        value: f[N,T], of the state before the token.
        mask: bool[N,T].
        gamma: discount of a token.
        lam: one number, or f[N] with one a row.
        bootstrap: value of what follows the last position.
        holes: see the module.

    Raises:
        ValueError: `holes` is unknown.
    """
    check(holes=holes)

    def step(later: tuple[Array, Array], column: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], Array]:
        (next_value, running), (paid, worth, trained) = later, column
        now = paid + gamma * next_value - worth + gamma * lam * running
        nothing = jnp.zeros_like(now)
        beside = {"carry": (next_value, running), "zero": (worth, now), "reset": (nothing, nothing)}[holes]
        carry = jnp.where(trained, worth, beside[0]), jnp.where(trained, now, beside[1])
        return carry, carry[1]

    paid, worth = masked.select(mask, reward), masked.select(mask, value)
    start = jnp.full_like(worth[:, 0], bootstrap), jnp.zeros_like(worth[:, 0])
    _, found = jax.lax.scan(step, start, (paid.T, worth.T, mask.T), reverse=True)
    advantage = masked.select(mask, found.T)
    return advantage, advantage + worth


def length_adaptive_lambda(length: Array, *, alpha: float = 0.05) -> Array:
    """1 - 1 / max(alpha n, 1), within [0, 1] -> the shape of `length`, a float array (VAPO, arXiv 2504.05118)."""
    return jnp.clip(1.0 - 1.0 / jnp.maximum(alpha * length, 1.0), 0.0, 1.0)


def length_adaptive_advantages(
    reward: Array,
    value: Array,
    mask: Array,
    *,
    gamma: float = 1.0,
    alpha: float = 0.05,
    lam_value: float = 1.0,
    bootstrap: float = 0.0,
    holes: str = "carry",
) -> tuple[Array, Array]:
    """`generalized_advantages` with a lambda by the length of the row, and returns with `lam_value` (VAPO)."""
    recursion = {"gamma": gamma, "bootstrap": bootstrap, "holes": holes}
    lam = length_adaptive_lambda(masked.count(mask, axis=1, dtype=reward.dtype), alpha=alpha)
    advantage, _ = generalized_advantages(reward, value, mask, lam=lam, **recursion)
    _, returns = generalized_advantages(reward, value, mask, lam=lam_value, **recursion)
    return advantage, returns


def above_greedy(
    reward: Array, greedy: Array, mask: Array, *, gamma: float = 1.0, holes: str = "zero"
) -> tuple[Array, Array]:
    """(G_t - `greedy`, G_t), both f[N,T] and 0 outside `mask`: ReMax (arXiv 2310.10505; verl).

    `greedy` f[N] is the reward of the greedy completion of the row's prompt.
    """
    returns = discounted_returns(reward, mask, gamma=gamma, holes=holes)
    return masked.select(mask, returns - greedy[:, None]), returns


@reads("value_old")
def value_targets(
    collected: Collected,
    labels: Array,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    bootstrap: float = 0.0,
    holes: str = "carry",
    rewards: str = "outcome",
) -> Array:
    """f[N,T], what a critic learns (`Batch.returns`): GAE's advantage before any whitening, plus the value."""
    value, mask = _critic(collected, labels, "value_targets")
    reward = token_rewards(collected, mask, rewards=rewards)
    return generalized_advantages(reward, value, mask, gamma=gamma, lam=lam, bootstrap=bootstrap, holes=holes)[1]


@reads("value_old")
@teaches(value_targets)
def gae(
    collected: Collected,
    labels: Array,
    memory: Memory,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    bootstrap: float = 0.0,
    holes: str = "carry",
    rewards: str = "outcome",
) -> tuple[Array, Memory]:
    """Strategy of the kernel `generalized_advantages`: PPO with a critic. Whitened, as by verl: `whitened` around it.

    The targets of the critic are `value_targets` with the same keywords. Raises ValueError without a critic.
    """
    value, mask = _critic(collected, labels, "gae")
    reward = token_rewards(collected, mask, rewards=rewards)
    recursion = {"gamma": gamma, "lam": lam, "bootstrap": bootstrap, "holes": holes}
    return generalized_advantages(reward, value, mask, **recursion)[0], memory


@reads("value_old")
@teaches(functools.partial(value_targets, lam=1.0))
def gae_length_adaptive(
    collected: Collected,
    labels: Array,
    memory: Memory,
    *,
    gamma: float = 1.0,
    alpha: float = 0.05,
    bootstrap: float = 0.0,
    holes: str = "carry",
    rewards: str = "outcome",
) -> tuple[Array, Memory]:
    """Strategy of the kernel `length_adaptive_advantages`: VAPO. The targets of its critic have ``lam=1.0``."""
    value, mask = _critic(collected, labels, "gae_length_adaptive")
    reward = token_rewards(collected, mask, rewards=rewards)
    recursion = {"gamma": gamma, "alpha": alpha, "bootstrap": bootstrap, "holes": holes}
    return length_adaptive_advantages(reward, value, mask, **recursion)[0], memory


def reinforce_pp(
    collected: Collected,
    labels: Array,
    memory: Memory,
    *,
    gamma: float = 1.0,
    holes: str = "carry",
    rewards: str = "outcome",
    whiten_std: str = "sample",
    whiten_eps: float = 1e-8,
    whiten_eps_mode: str = "add",
) -> tuple[Array, Memory]:
    """Discounted returns of the tokens, whitened over the batch: REINFORCE++ (arXiv 2501.03262, equations 8 to 10).

    Its divergence from the reference is part of the reward: ``partial(penalized_tokens, advantage=partial(reinforce_pp,
    rewards="token"))``. verl has ``holes="reset"``.
    """
    mask = counted(collected, rows(labels, "reinforce_pp"))
    returns = token_returns(collected, mask, gamma=gamma, holes=holes, rewards=rewards)
    return whiten(returns, mask, std=whiten_std, eps=whiten_eps, eps_mode=whiten_eps_mode), memory


@reads("greedy")
def remax(
    collected: Collected,
    labels: Array,
    memory: Memory,
    *,
    gamma: float = 1.0,
    holes: str = "carry",
    rewards: str = "outcome",
) -> tuple[Array, Memory]:
    """Strategy of the kernel `above_greedy`: ReMax; verl has ``holes="zero"``. Raises ValueError without `greedy`."""
    mask = counted(collected, rows(labels, "remax"))
    remedy = "sample every prompt greedily too and store the reward of that completion in each of its rows"
    greedy = given(collected.reward.greedy, "Reward.greedy", "remax", remedy)
    returns = token_returns(collected, mask, gamma=gamma, holes=holes, rewards=rewards)
    return masked.select(mask, returns - greedy[:, None]), memory


def k1(log_ratio: Array) -> Array:
    """-log(ref / policy), the estimator that REINFORCE++ pays with; `grpo_jax.objectives.kl` has it and the others."""
    return -log_ratio


@reads("logp_ref")
def penalized_tokens(
    collected: Collected,
    labels: Array,
    memory: Memory,
    *,
    advantage: Advantage,
    coef: float = 0.01,
    estimator: Callable[[Array], Array] = k1,
    rewards: str = "outcome",
) -> tuple[Array, Memory]:
    """Strategy: `advantage` of token rewards rho_t = r_t - coef k(logp_ref - logp_old), which `advantage` has to read.

    Args:
        collected: with ``logp_ref``.
        labels: of the rows.
        memory: handed on.
        advantage: strategy that reads tokens: ``partial(gae, rewards="token")``.
        coef: what a nat costs.
        estimator: kernel of the divergence, on logp_ref - logp_old; the default is k1 (verl, OpenRLHF).
        rewards: what a token is paid before that; see the module.

    Raises:
        ValueError: the reference log-probabilities are missing.
    """
    mask = counted(collected, rows(labels, "penalized_tokens"))
    remedy = "give the run a reference policy"
    reference = given(collected.logp_ref, "Collected.logp_ref", "penalized_tokens", remedy)
    reward = token_rewards(collected, mask, rewards=rewards)
    cost = estimator(masked.select(mask, reference) - masked.select(mask, collected.logp_old)).astype(reward.dtype)
    paid = dataclasses.replace(collected.reward, token=reward - coef * masked.select(mask, cost))
    return advantage(dataclasses.replace(collected, reward=paid), labels, memory)


def _critic(collected: Collected, labels: Array, strategy: str) -> tuple[Array, Array]:
    """Values of the critic, and where they count."""
    remedy = "train with a critic and store its values at collection"
    value = given(collected.value_old, "Collected.value_old", strategy, remedy)
    return value, counted(collected, rows(labels, strategy))
