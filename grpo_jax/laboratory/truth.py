"""What is true of a tabular policy, by summing over all of its completions.

A policy is a table of logits ``f[P,Z,V]``: for each prompt a row for every one of Z states, a state being as much of
the completion so far as the policy can see. C is the number of completions. Everything is computed in the dtype of the
logits; under float64 the sums are right to about 1e-15.
"""

import chex
import jax
import jax.numpy as jnp
from flax import struct

from grpo_jax.sampling import logits as truncation
from grpo_jax.types import Array


class Completions(struct.PyTreeNode):
    """Every completion that there is, each once."""

    tokens: Array  # i32[C, T]; 0 behind the end
    length: Array  # i32[C]
    stopped: Array  # bool[C], False where T cut it off
    state: Array  # i32[C, T], the row of the table from which the token is drawn; 0 behind the end
    allowed: Array  # bool[Z, V], the tokens that can follow a state

    @property
    def mask(self) -> Array:
        """bool[C,T], True up to the end."""
        return jnp.arange(self.tokens.shape[1], dtype=jnp.int32)[None, :] < self.length[:, None]


class World(struct.PyTreeNode):
    """All that decides an expectation: policies, rewards, and what else an estimator may read."""

    completions: Completions
    logits: Array  # f[P, Z, V], the policy being trained
    reward: Array  # f[P, C]
    old: Array | None = None  # f[P, Z, V], the policy of the ratio's denominator; None: `logits`
    behavior: Array | None = None  # f[P, C, T], log-probabilities that samples are drawn with; None: those of `old`
    reference: Array | None = None  # f[P, Z, V]
    value: Array | None = None  # f[P, C, T], what a critic says of the state before each token
    greedy: Array | None = None  # f[P], a number known before sampling: the reward of the greedy completion

    @property
    def old_logits(self) -> Array:
        """f[P,Z,V]."""
        return self.logits if self.old is None else self.old

    @property
    def reference_logits(self) -> Array:
        """f[P,Z,V]. Raises ValueError where there is no reference."""
        if self.reference is None:
            raise ValueError("World.reference: got None, allowed f[P,Z,V]: give the world a reference policy")
        return self.reference

    @property
    def sampled_from(self) -> Array:
        """f[P,C,T], log-probabilities of tokens; -inf for a token that is never drawn."""
        return log_probs(self.completions, self.old_logits) if self.behavior is None else self.behavior


def table(completions: Completions, logits: Array) -> Array:
    """f[P,Z,V], log-probabilities of the next token in every state; -inf where it is not allowed."""
    chex.assert_shape(logits, (None, *completions.allowed.shape))
    return jax.nn.log_softmax(jnp.where(completions.allowed[None], logits, -jnp.inf), axis=-1)


def log_probs(completions: Completions, logits: Array) -> Array:
    """f[P,C,T], log-probabilities of the tokens of every completion, 0 behind its end."""
    each = table(completions, logits)[:, completions.state, completions.tokens]
    return jnp.where(completions.mask[None], each, jnp.zeros((), logits.dtype))


def truncated(
    completions: Completions, logits: Array, *, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Array:
    """f[P,C,T], the log-probabilities under a sampler that truncates as `sampling.logits.truncate` does, renormalised.

    -inf for a token that it never draws; 0 behind the end.
    """
    prompts, (count, width) = logits.shape[0], completions.tokens.shape
    allowed = jnp.where(completions.allowed[None], logits, -jnp.inf)
    rows = allowed[:, completions.state].reshape(prompts * count * width, -1)
    tokens = jnp.broadcast_to(completions.tokens[None], (prompts, count, width)).reshape(-1)
    keep = truncation.truncate(rows, top_k=top_k, top_p=top_p, min_p=min_p)
    each = truncation.log_probs(rows, tokens, keep)[0].reshape(prompts, count, width)
    return jnp.where(completions.mask[None], each, jnp.zeros((), each.dtype))


def probability(logp: Array) -> Array:
    """f[P,C], of every completion, from the log-probabilities of its tokens f[P,C,T]; each row sums to 1."""
    return jnp.exp(jnp.sum(logp, axis=-1))


def expected(completions: Completions, logits: Array, value: Array) -> Array:
    """f[P], the mean of `value` f[P,C] over the completions of each prompt."""
    return jnp.sum(probability(log_probs(completions, logits)) * value, axis=-1)


def expected_reward(world: World, logits: Array) -> Array:
    """f[], J: the mean over prompts of the expected reward of the policy `logits`."""
    return jnp.mean(expected(world.completions, logits, world.reward))


def policy_gradient(world: World) -> Array:
    """f[P,Z,V], the gradient of J in the logits: what an estimator of the policy gradient estimates."""
    return jax.grad(expected_reward, argnums=1)(world, world.logits)


def divergence(completions: Completions, p: Array, q: Array) -> Array:
    """f[], KL(p || q) of whole completions in nats, the mean over prompts; p and q are logits f[P,Z,V]."""
    of_p, of_q = log_probs(completions, p), log_probs(completions, q)
    return jnp.mean(jnp.sum(probability(of_p) * jnp.sum(of_p - of_q, axis=-1), axis=-1))


def local_divergence(completions: Completions, p: Array, q: Array, visitor: Array) -> Array:
    """f[], the mean over prompts of E[sum_t KL(p(.|s_t) || q(.|s_t))], the states being those that `visitor` visits.

    With ``visitor=p`` the value is that of `divergence`; the gradient is not, unless it runs through `visitor` too.
    """
    known = completions.allowed[None]
    log_p, log_q = (jnp.where(known, table(completions, x), jnp.zeros((), x.dtype)) for x in (p, q))
    each = jnp.sum(jnp.where(known, jnp.exp(log_p) * (log_p - log_q), jnp.zeros((), p.dtype)), axis=-1)
    along = jnp.where(completions.mask[None], each[:, completions.state], jnp.zeros((), p.dtype))
    return jnp.mean(expected(completions, visitor, jnp.sum(along, axis=-1)))


def state_values(completions: Completions, logits: Array, reward: Array) -> Array:
    """f[P,C,T], the expected reward f[P,C] of what is written before each token: the value that a critic learns.

    The mean over the completions that agree up to there, weighted by their probability; 0 behind the end.
    """
    mask, tokens = completions.mask, completions.tokens
    same = (tokens[:, None] == tokens[None]) & mask[None]  # [C, C, T]: the second has that token there too
    before = jnp.cumprod(jnp.roll(same, 1, axis=2).at[:, :, 0].set(True), axis=2).astype(logits.dtype)
    weight = probability(log_probs(completions, logits))
    total = jnp.einsum("cdt,pd->pct", before, weight)
    paid = jnp.einsum("cdt,pd->pct", before, weight * reward)
    return jnp.where(mask[None], paid / jnp.where(total > 0, total, 1.0).astype(total.dtype), 0.0).astype(logits.dtype)
