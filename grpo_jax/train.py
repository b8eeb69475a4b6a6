"""The phases of a GRPO step as pure functions.

    rollouts = sample_rows(params, prompts, key, step)            sampling
    reward = score_rows(rollouts)                                 rewards on token ids; those on text are Python
    seen = look_rows(params, reference, rollouts)                 what the recipe wants to know of the rows, if anything
    state, metrics, batch = learn_rows(state, rollouts, reward, key, seen)

Each is bound to what decides it and to nothing else, so that runs which differ in their recipe share a sampler. The
last one is a row of public functions too:

    collected = collect(rollouts, reward, seen)                   what groupings and advantages read
    labels, memory = label(collected, memory)                     which rows are compared with which
    advantage, memory = advantage(collected, labels, memory)      what each row is worth among them
    batch = make_batch(collected, labels, advantage)              reduction becomes data
    state, metrics = update(state, batch)                         gradient, optimiser

Where only some of the parameters are trained, these are ``state.params``, and every phase takes the others as `frozen`
(`models.divide`). A reference policy has the same frozen part, so that its own is as large as what is trained.

An experiment that wants another order of phases writes its own ten lines with the same functions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from grpo_jax import advantages, groups, objectives
from grpo_jax import metrics as measure
from grpo_jax.groups import Memory
from grpo_jax.models import AnyModel, axes, init, join, like, logprobs, without_critic
from grpo_jax.sampling import Sampling, generate
from grpo_jax.sharding import place, replicate
from grpo_jax.types import Array, Batch, Collected, Metrics, Params, Prompts, Reward, Rollouts, Seen, TrainState
from grpo_jax.updates import Gradient, advance, begin_reference, update
from grpo_jax.updates import begin as begin_updates
from grpo_jax.updates.gradient import OF_THE_RECORD, statistics

TokenReward = Callable[[Rollouts], Reward]
"""A reward that reads token ids with jnp alone, so that it can be compiled."""


Record = TypeVar("Record")


class Stream(IntEnum):
    """Independent streams of randomness, folded into the key of the run first."""

    INIT = 0
    ROLLOUT = 1
    UPDATE = 2
    EVALUATION = 3
    WARM_START = 4


def stream(seed: int | Array, name: Stream) -> Array:
    """Key of one stream of the run with `seed`."""
    return jax.random.fold_in(jax.random.key(seed), int(name))


@dataclass(frozen=True)
class Step:
    """Everything fixed that the phases of a GRPO step compile in."""

    gradient: Gradient
    sampling: Sampling
    reward: TokenReward | None = None
    demonstrations: int = 0  # rows of each prompt, of its group, that are not sampled

    def __post_init__(self) -> None:
        temperature = float(self.sampling.temperature)
        if not temperature > 0:
            raise ValueError(
                f"sampling.temperature: got {temperature}, allowed > 0: greedy samples have no log-probability to train"
                " on; evaluate greedily instead (evaluation.greedy)"
            )
        if temperature != self.gradient.temperature:
            raise ValueError(
                f"gradient.temperature: got {self.gradient.temperature}, allowed {temperature}: the trainer scores"
                " tokens at the temperature they were sampled at; set both to the same number"
            )


def init_state(seed: int | Array, settings: Gradient) -> TrainState:
    """A fresh state that trains all parameters: these from the seed, a new optimiser, no draws."""
    return start(init(stream(seed, Stream.INIT), settings.model), settings)


def start(params: Params, settings: Gradient) -> TrainState:
    """A state that begins a phase at `params`, which are all trained."""

    def zero() -> Array:
        return jnp.zeros((), jnp.int32)

    return TrainState(
        params=params,
        opt_state=begin_updates(params, settings),
        step=zero(),
        cursor=zero(),
        skipped=zero(),
        coef=objectives.initial_values(settings.recipe.coefficients),
        memory=first_memory(settings),
        reference=begin_reference(settings.reference, without_critic(params)) if refers(settings.recipe) else None,
    )


def first_memory(settings: Gradient) -> dict[str, Array]:
    """What the stateful parts of a step remember before the first one, name -> array: each part has its own names."""
    recipe = settings.recipe
    return {**advantages.initial_memory(recipe.grouping), **advantages.initial_memory(recipe.advantage)}


def place_state(state: TrainState, model: AnyModel, mesh: Mesh | None) -> TrainState:
    """`state` on the mesh: parameters and what the optimiser keeps of each by their rules, the rest everywhere.

    Without a mesh: on the first device, committed to it. A restored state is placed too, so it meets the same programs.
    """
    if mesh is None:
        return jax.device_put(state, jax.local_devices()[0])
    shape = jax.tree.structure(state.params)

    def lay(part: Any) -> Any:
        alike = jax.tree.structure(part) == shape and jax.tree.all(jax.tree.map(_same_shape, part, state.params))
        # Rows and columns that stand for a matrix are small, and whole everywhere.
        return place_params(part, model, mesh) if alike else replicate(part, mesh)

    opt_state = jax.tree.map(lay, state.opt_state, is_leaf=lambda x: jax.tree.structure(x) == shape)
    rest = replicate(state.replace(params={}, opt_state=(), reference=None), mesh)
    reference = None if state.reference is None else place_params(state.reference, model, mesh)
    return rest.replace(params=lay(state.params), opt_state=opt_state, reference=reference)


def _same_shape(one: Array, other: Array) -> bool:
    return one.shape == other.shape


def place_params(params: Params, model: AnyModel, mesh: Mesh | None) -> Params:
    """Any part of the parameters on the mesh, by the rules of the whole; without a mesh on the first device."""
    if mesh is None:
        return jax.device_put(params, jax.local_devices()[0])
    return place(params, mesh, like(axes(model), params))


def looks(recipe: objectives.Recipe) -> tuple[str, ...]:
    """The fields of `Seen` that `recipe` reads: what `look_rows` has to find out of every row."""
    asked = {*advantages.fields_read(recipe.advantage), *set(objectives.wants(recipe)).intersection(OF_THE_RECORD)}
    return tuple(field for field in Seen.__dataclass_fields__ if field in asked)


def refers(recipe: objectives.Recipe) -> bool:
    """Whether `recipe` compares the policy with a reference policy."""
    return not {"logp_ref", "kl_full"}.isdisjoint(objectives.wants(recipe))


def collect(rollouts: Rollouts, reward: Reward, seen: Seen | None = None, *, recipe: objectives.Recipe) -> Collected:
    """Rollouts with their rewards and what the recipe reads of `seen`; the rest of that is left out."""
    seen = Seen() if seen is None else seen
    read = {name: getattr(seen, name) for name in looks(recipe)}
    for name, found in read.items():
        if found is None:
            raise ValueError(f"{name}: got None, but the recipe reads it: pass what look_rows makes of the rows")
    return Collected(rollouts=rollouts, reward=reward, **{"logp_old": rollouts.logp_full, **read})


def label(collected: Collected, memory: Memory, recipe: objectives.Recipe) -> tuple[Array, Memory]:
    """Labels of the rows under the grouping of the recipe: rows with one label are compared with each other."""
    return recipe.grouping(collected, memory)


def advantage(collected: Collected, labels: Array, memory: Memory, recipe: objectives.Recipe) -> tuple[Array, Memory]:
    """f32[N, T], the advantage of every token under the estimator of the recipe."""
    return recipe.advantage(collected, labels, memory)


def make_batch(
    collected: Collected, labels: Array, advantage: Array, recipe: objectives.Recipe, coef: dict | None = None
) -> Batch:
    """The batch an update reads. Rows that could not be scored or belong to no group are masked: they count nowhere."""
    rollouts = collected.rollouts
    row = collected.reward.valid[:, None]
    token_labels = labels.ndim == 2 and labels.shape == rollouts.mask.shape
    member = labels >= 0 if token_labels else (jnp.atleast_2d(labels) >= 0).all(0)[:, None]
    batch = Batch(
        rollouts=rollouts,
        mask=rollouts.mask & row & member,
        weight={},
        advantage=jax.lax.stop_gradient(advantage),
        logp_old=collected.logp_old,
        logp_behavior=rollouts.logp,
        group=labels,
        reward=collected.reward,
        logp_ref=collected.logp_ref,
        returns=advantages.critic_targets(recipe.advantage, collected, labels),
        value_old=collected.value_old,
        coef=dict(coef or {}),
    )
    return batch.replace(weight=objectives.weights(recipe.parts, batch))


def sample_rows(
    params: Params,
    prompts: Prompts,
    key: Array,
    step: Array,
    *,
    model: AnyModel,
    sampling: Sampling,
    group_size: int,
    mesh: Mesh | None = None,
    frozen: Params | None = None,
) -> Rollouts:
    """G completions of every prompt. `key` is that of the rollout stream; the prompts' draw numbers do the rest."""
    params = join(params, frozen)
    return generate(params, model, prompts, sampling, key, mesh, group_size=group_size, version=step)


def score_rows(rollouts: Rollouts, *, reward: TokenReward, mesh: Mesh | None = None) -> Reward:
    """The `reward` on token ids of every row."""
    del mesh  # rows are scored where they are
    return reward(rollouts)


def against_greedy(rollouts: Rollouts, reward: Reward, greedy: Reward, *, mesh: Mesh | None = None) -> Reward:
    """`reward` whose rows know what the greedy completion of their prompt earned (``Reward.greedy``).

    `greedy` scores one completion of each prompt, in the order of the prompts, drawn by `sample_rows` with a group size
    of 1 and a temperature of 0. Where that could not be scored the rows of the prompt have no baseline: they count
    nowhere.
    """
    del mesh  # every row looks up its prompt
    prompt = rollouts.prompt
    return reward.replace(greedy=greedy.outcome[prompt], valid=reward.valid & greedy.valid[prompt])


def compares_with_greedy(recipe: objectives.Recipe) -> bool:
    """Whether the advantage of `recipe` reads what the greedy completion of a prompt earned."""
    return "greedy" in advantages.fields_read(recipe.advantage)


STATISTICS = {"sum_pi_squared": "sum_pi_squared", "value_old": "value"}
"""Field of `Seen` -> what the pass of the policy is asked for beside log-probabilities."""


def look_rows(
    params: Params | None,
    reference: Params | None,
    rollouts: Rollouts,
    *,
    model: AnyModel,
    temperature: float,
    want: tuple[str, ...],
    group_size: int,
    chunk: int | None = None,
    replay: bool = True,
    mesh: Mesh | None = None,
    frozen: Params | None = None,
) -> Seen:
    """What the policy `params` and the policy `reference` say of the rows, over the full vocabulary: fields of `Seen`.

    `want` names the fields, see `looks`. Parameters that none of them is about may be None: each policy reads the rows
    once at most. What is `frozen` belongs to both policies. With `replay` the policy `params` of a mixture goes through
    the experts that the sampler chose; the reference, another policy, through its own.
    """
    given: dict[str, Any] = {"temperature": temperature, "group_size": group_size, "chunk": chunk, "mesh": mesh}
    found = {}
    own = [name for name in want if name != "logp_ref"]
    if own and params is not None:
        asked = tuple(STATISTICS[name] for name in own if name in STATISTICS)
        stats = logprobs(join(params, frozen), model, rollouts, want=asked, replay=replay, **given)
        found = {name: getattr(stats, STATISTICS.get(name, "logp")) for name in own}
    if "logp_ref" in want and reference is not None:
        found["logp_ref"] = logprobs(join(reference, frozen), model, rollouts, replay=False, **given).logp
    missing = [name for name in want if name not in found]
    if missing:
        raise ValueError(
            f"want: got {', '.join(missing)} without the parameters to look with: pass those of the policy"
        )
    return jax.lax.stop_gradient(Seen(**found))


def learn_rows(
    state: TrainState,
    rollouts: Rollouts,
    reward: Reward,
    key: Array,
    seen: Seen | None = None,
    reference: Params | None = None,
    *,
    settings: Gradient,
    mesh: Mesh | None = None,
    frozen: Params | None = None,
) -> tuple[TrainState, Metrics, Batch]:
    """One step of learning from scored rollouts: labels, advantages, batch, update; the draw counter moves on.

    `key` is that of the update stream. `seen` is what `look_rows` says of the rows where the recipe reads it;
    `reference` are the parameters of the reference policy, for a recipe that compares whole distributions with it; one
    that moves is in the state already. Those that are `frozen` belong to both policies and stay as they are.
    """
    recipe, reference = settings.recipe, reference if state.reference is None else state.reference
    collected = collect(rollouts, reward, seen, recipe=recipe)
    labels, memory = label(collected, dict(state.memory), recipe)
    values, memory = advantage(collected, labels, memory, recipe)
    batch = make_batch(collected, labels, values, recipe, dict(state.coef))
    key = jax.random.fold_in(key, state.step)
    how: dict[str, Any] = {"mesh": mesh, "frozen": frozen}
    state, metrics = update(state.replace(memory=memory), batch, settings, key=key, reference=reference, **how)
    metrics = {**metrics, **measured_after(state.params, batch, settings, **how)}
    draws = rollouts.prompts.length.shape[0]
    coef = objectives.controlled(recipe.coefficients, dict(state.coef), metrics)
    state = state.replace(step=state.step + 1, cursor=state.cursor + draws, coef=coef)
    if state.reference is not None:
        moved = advance(settings.reference, state.reference, without_critic(state.params), state.step)
        state = state.replace(reference=moved)
    metrics = {
        **metrics,
        **measure.reward_metrics(reward.replace(valid=reward.valid & (rollouts.version >= 0))),
        **measure.length_metrics(rollouts),
        **measure.expert_metrics(rollouts, experts=settings.model.experts),
        # A critic compares a row with what was expected of it, and not with the other rows of its group.
        **(measure.group_metrics(reward, labels) if batch.returns is None else measure.value_metrics(batch)),
    }
    return state, metrics, batch


def measured_after(
    params: Params, batch: Batch, settings: Gradient, *, mesh: Mesh | None = None, frozen: Params | None = None
) -> Metrics:
    """What only the policy `params` behind the updates on `batch` can tell, as far as the recipe follows it."""
    recipe, found = settings.recipe, {}
    if measure.AFTER in objectives.measured(recipe.coefficients):
        stats = statistics(params, batch, settings=settings, want=(), mesh=mesh, frozen=frozen)
        found |= measure.kl_after(stats.logp, batch)
    if "logp_old" in looks(recipe):
        found |= measure.mismatch_metrics(batch)
    return found


IMITATION = objectives.Recipe(
    parts=(objectives.Part(objectives.token_mean, objectives.negative_log_likelihood),),
    advantage=advantages.group_centered,
    grouping=groups.by_prompt,
)
"""Supervised learning as a recipe: the mean negative log-likelihood of the tokens; nothing reads its advantages."""


def supervised_step(
    state: TrainState,
    prompts: Prompts,
    tokens: Array,
    length: Array,
    *,
    settings: Gradient,
    mesh: Mesh | None = None,
    frozen: Params | None = None,
) -> tuple[TrainState, Metrics]:
    """One step of imitation on demonstrations tokens i32[P, T] with lengths i32[P], one for each prompt.

    The same update as that of GRPO with the negative log-likelihood as its only term; `frozen` as there.
    """
    rows, width = tokens.shape
    index = jnp.arange(rows, dtype=jnp.int32)
    nothing = jnp.zeros((rows, width), jnp.float32)
    rollouts = Rollouts(
        prompts=prompts,
        prompt=index,
        sample=jnp.zeros_like(index),
        tokens=tokens,
        length=length,
        stopped=jnp.ones((rows,), bool),
        mask=jnp.arange(width)[None, :] < length[:, None],
        logp=nothing,
        logp_full=nothing,
        version=jnp.broadcast_to(state.step, (rows,)),
    )
    reward = Reward(outcome=jnp.zeros((rows,), jnp.float32), valid=jnp.ones((rows,), bool))
    collected = Collected(rollouts=rollouts, reward=reward, logp_old=nothing)
    batch = make_batch(collected, index, nothing, settings.recipe)
    key = jax.random.fold_in(jax.random.key(0), state.step)
    state, metrics = update(state, batch, settings, key=key, mesh=mesh, frozen=frozen)
    state = state.replace(step=state.step + 1, cursor=state.cursor + rows)
    kept = ("loss", "grad_norm", "entropy", "skipped", "skipped/consecutive")
    return state, {name: metrics[name] for name in kept}


def host(record: Record) -> Record:
    """`record` with numpy leaves, in one transfer."""
    return jax.tree.map(np.asarray, jax.device_get(record))
