"""What an estimator makes of a batch, on average and around it: the recipes of the library in a `World`.

A batch is P * G completions; row n answers prompt n // G. `gradient` takes one batch through the functions that a run
uses (grouping, advantage, `train.make_batch`, prepare steps, `objectives.loss`) to the gradient of the loss in the
logits. `exact` does so with every batch there is and weighs it with its probability, `sampled` with batches drawn at
random where there are too many.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from grpo_jax import objectives, train
from grpo_jax.advantages import initial_memory
from grpo_jax.groups import Memory
from grpo_jax.laboratory.truth import World, log_probs, probability, table
from grpo_jax.types import Array, Collected, Prompts, Reward, Rollouts, TokenStats

LIMIT = 2_000_000
"""Batches that `exact` lists at most."""
CHUNK = 4096
"""Batches computed at a time."""


class Moments(struct.PyTreeNode):
    """Mean and spread of the loss and its gradient over batches."""

    loss: Array  # f[], mean
    gradient: Array  # f[P, Z, V], mean; a step of gradient descent goes against it
    variance: Array  # f[], E|g - E g|^2, summed over the parameters
    square: Array  # f[], E|g|^2
    batches: int = struct.field(pytree_node=False)

    @property
    def ascent(self) -> Array:
        """f[P,Z,V], the mean of minus the gradient: where the update goes, to be compared with the truth."""
        return -self.gradient

    @property
    def standard_error(self) -> Array:
        """f[], of the mean gradient of `sampled`, its root mean square length; says nothing of `exact`."""
        return jnp.sqrt(self.variance / self.batches)


class Parallel(NamedTuple):
    """An estimate against the truth: as the truth times a factor, and what is left."""

    factor: Array  # f[], <estimate, truth> / |truth|^2
    aside: Array  # f[], |estimate - factor truth| / |factor truth|; 0: the truth at another learning rate


def parallel(estimate: Array, truth: Array) -> Parallel:
    """`estimate` split into the part along `truth` and the part across; both of one shape, `truth` not 0."""
    factor = jnp.sum(estimate * truth) / jnp.sum(jnp.square(truth))
    across = jnp.linalg.norm((estimate - factor * truth).ravel())
    return Parallel(factor, across / jnp.linalg.norm((factor * truth).ravel()))


def every_batch(completions: int, rows: int) -> np.ndarray:
    """i32[K,N], every choice of a completion for each of N `rows`; K = `completions` to the power `rows`.

    Raises:
        ValueError: more than `LIMIT` of them.
    """
    if completions**rows > LIMIT:
        raise ValueError(
            f"every_batch: got {completions}^{rows} batches, allowed {LIMIT}: take fewer rows or completions, or draw"
            " batches at random with sampled"
        )
    return np.indices((completions,) * rows, np.int32).reshape(rows, -1).T


def _collected(world: World, chosen: Array, group_size: int) -> Collected:
    """The batch in which row n answers prompt n // G with completion ``chosen[n]``."""
    completions, prompts = world.completions, world.logits.shape[0]
    index = jnp.arange(prompts, dtype=jnp.int32)
    prompt = jnp.repeat(index, group_size)
    old = log_probs(completions, world.old_logits)[prompt, chosen]
    sampled_from = world.sampled_from[prompt, chosen]
    squares = jnp.sum(jnp.exp(2 * table(completions, world.old_logits)), axis=-1)
    rollouts = Rollouts(
        prompts=Prompts(tokens=index[:, None], length=jnp.ones_like(index), draw=index, row=index),
        prompt=prompt,
        sample=jnp.tile(jnp.arange(group_size, dtype=jnp.int32), prompts),
        tokens=completions.tokens[chosen],
        length=completions.length[chosen],
        stopped=completions.stopped[chosen],
        mask=completions.mask[chosen],
        # A batch that is never drawn weighs nothing, and what it is made of has to be finite for that.
        logp=jnp.where(jnp.isfinite(sampled_from), sampled_from, old),
        logp_full=old,
        version=jnp.zeros_like(prompt),
    )
    reference = None if world.reference is None else log_probs(completions, world.reference)[prompt, chosen]
    return Collected(
        rollouts=rollouts,
        reward=Reward(
            outcome=world.reward[prompt, chosen],
            valid=jnp.ones(prompt.shape, bool),
            greedy=None if world.greedy is None else world.greedy[prompt],
        ),
        logp_old=old,
        logp_ref=reference,
        value_old=None if world.value is None else world.value[prompt, chosen],
        sum_pi_squared=squares[prompt[:, None], completions.state[chosen]],
    )


def _stats(world: World, logits: Array, prompt: Array, chosen: Array) -> TokenStats:
    """What a forward pass of `logits` says of the rows."""
    completions = world.completions
    each, known = table(completions, logits), completions.allowed[None]
    finite, zero = jnp.where(known, each, jnp.zeros_like(each)), jnp.zeros_like(each)
    share = jnp.exp(each)
    where = prompt[:, None], completions.state[chosen]
    kl_full = None
    if world.reference is not None:
        other = jnp.where(known, table(completions, world.reference), zero)
        kl_full = jnp.sum(share * (finite - other), axis=-1)[where]
    return TokenStats(
        logp=log_probs(completions, logits)[prompt, chosen],
        entropy=-jnp.sum(share * finite, axis=-1)[where],
        value=None if world.value is None else world.value[prompt, chosen],  # a critic that is given, not learned
        sum_pi_squared=jnp.sum(jnp.square(share), axis=-1)[where],
        kl_full=kl_full,
    )


def gradient(
    world: World,
    recipe: objectives.Recipe,
    chosen: Array,
    *,
    group_size: int,
    coef: Mapping[str, Array] | None = None,
    memory: Memory | None = None,
) -> tuple[Array, Array]:
    """(loss f[], its gradient in the logits f[P,Z,V]) of one batch, by the path that a run takes.

    Args:
        world: policies and rewards.
        recipe: the estimator, its prepare steps included.
        chosen: i32[N], the completion of every row.
        group_size: G; row n answers prompt n // G.
        coef: name -> f[], coefficients that terms read; those of the recipe are at their initial values.
        memory: what groupings and advantages remember; None: what they begin with.
    """
    collected = _collected(world, chosen, group_size)
    labels, memory = recipe.grouping(collected, initial_memory(recipe.advantage) if memory is None else memory)
    values, _ = recipe.advantage(collected, labels, memory)
    coefficients = {**objectives.initial_values(recipe.coefficients), **(coef or {})}
    batch = train.make_batch(collected, labels, values, recipe, coefficients)
    prompt = collected.rollouts.prompt
    for number, prepare in enumerate(recipe.prepare):
        seen = jax.lax.stop_gradient(_stats(world, world.logits, prompt, chosen))
        batch = prepare(seen, batch, jax.random.key(number))

    def loss(logits: Array) -> Array:
        return objectives.loss(recipe.parts, _stats(world, logits, prompt, chosen), batch)

    return jax.value_and_grad(loss)(world.logits)


def exact(
    world: World,
    recipe: objectives.Recipe,
    *,
    group_size: int,
    coef: Mapping[str, Array] | None = None,
    memory: Memory | None = None,
) -> Moments:
    """Mean and variance over all batches of P * G rows, each weighed with its probability under the sampler.

    Arguments as in `gradient`.

    Raises:
        ValueError: there are more than `LIMIT` batches.
    """
    prompts, count = world.reward.shape
    chosen = jnp.asarray(every_batch(count, prompts * group_size))
    prompt = jnp.repeat(jnp.arange(prompts, dtype=jnp.int32), group_size)
    weight = jnp.prod(probability(world.sampled_from)[prompt[None, :], chosen], axis=1)
    one = partial(gradient, world, recipe, group_size=group_size, coef=coef, memory=memory)
    return _moments(one, chosen, weight)


def sampled(
    world: World,
    recipe: objectives.Recipe,
    key: Array,
    *,
    group_size: int,
    batches: int,
    coef: Mapping[str, Array] | None = None,
    memory: Memory | None = None,
) -> Moments:
    """The same over `batches` batches drawn at random; `Moments.standard_error` says how far off the mean may be."""
    logits = jnp.sum(world.sampled_from, axis=-1)
    shape = (batches, group_size, logits.shape[0])
    drawn = jax.random.categorical(key, logits[None, None], shape=shape)
    chosen = jnp.swapaxes(drawn, 1, 2).reshape(batches, -1).astype(jnp.int32)
    one = partial(gradient, world, recipe, group_size=group_size, coef=coef, memory=memory)
    return _moments(one, chosen, jnp.full(batches, 1 / batches, world.logits.dtype))


def _moments(one: Callable[[Array], tuple[Array, Array]], chosen: Array, weight: Array) -> Moments:
    many = chosen.shape[0] > CHUNK
    loss, each = jax.lax.map(one, chosen, batch_size=CHUNK) if many else jax.vmap(one)(chosen)
    mean = jnp.tensordot(weight, each, axes=1)
    length = jnp.sum(jnp.square(each), axis=(1, 2, 3))
    spread = jnp.sum(jnp.square(each - mean[None]), axis=(1, 2, 3))
    return Moments(
        loss=jnp.sum(weight * loss),
        gradient=mean,
        variance=jnp.sum(weight * spread),
        square=jnp.sum(weight * length),
        batches=chosen.shape[0],
    )
