"""The phases of a GRPO step as pure functions, and the steps made of them.

    rollouts = generate(params, prompts)                  sampling
    collected = collect(rollouts, reward)                 + reference log-probabilities
    labels, memory = label(collected, memory)             which rows are compared with which
    advantage, memory = advantages(collected, labels)     what each row is worth among them
    batch = make_batch(collected, labels, advantage)      reduction becomes data
    state, metrics = update(state, batch)                 gradient, optimiser

`grpo_step` is all of it, rewards on token ids included, as one function of (state, prompts); `sample_rows` and
`learn_rows` are its two halves for rewards that live outside the compiled program. An experiment that wants another
order of phases writes its own ten lines with the same functions.
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
from grpo_jax.models import ModelConfig, axes, init, logprobs
from grpo_jax.sampling import Sampling, generate
from grpo_jax.sharding import place, replicate
from grpo_jax.types import Array, Batch, Collected, Metrics, Params, Prompts, Reward, Rollouts, TrainState
from grpo_jax.updates import Gradient, build, update

TokenReward = Callable[[Rollouts], Reward]
"""A reward that reads token ids with jnp alone, so that it runs inside the compiled step."""


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
    """Everything fixed that a GRPO step compiles in."""

    gradient: Gradient
    sampling: Sampling
    reward: TokenReward | None = None

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
    """A fresh state: parameters from the seed, a new optimiser, no draws."""
    return start(init(stream(seed, Stream.INIT), settings.model), settings)


def start(params: Params, settings: Gradient) -> TrainState:
    """A state that begins a phase at `params`."""

    def zero() -> Array:
        return jnp.zeros((), jnp.int32)

    opt_state = build(settings.optimizer, settings.updates).init(params)
    return TrainState(params=params, opt_state=opt_state, step=zero(), cursor=zero(), skipped=zero())


def place_state(state: TrainState, model: ModelConfig, mesh: Mesh | None) -> TrainState:
    """`state` on the mesh: parameters and what the optimiser keeps of each by their rules, the rest everywhere.

    Without a mesh: on the first device, committed to it. A restored state is placed too, so it meets the same programs.
    """
    if mesh is None:
        return jax.device_put(state, jax.local_devices()[0])
    names, shape = axes(model), jax.tree.structure(state.params)

    def lay(part: Any) -> Any:
        return place(part, mesh, names) if jax.tree.structure(part) == shape else replicate(part, mesh)

    opt_state = jax.tree.map(lay, state.opt_state, is_leaf=lambda x: jax.tree.structure(x) == shape)
    rest = replicate(state.replace(params={}, opt_state=()), mesh)
    return rest.replace(params=lay(state.params), opt_state=opt_state)


def collect(
    rollouts: Rollouts, reward: Reward, *, settings: Gradient, reference: Params | None = None, mesh: Mesh | None = None
) -> Collected:
    """Rollouts, their rewards and, where the recipe asks for it, their log-probabilities under the reference policy."""
    logp_ref = None
    if "logp_ref" in objectives.wants(settings.recipe):
        if reference is None:
            raise ValueError(
                "reference: got None, but the recipe has a KL term: pass the parameters of the reference policy"
            )
        stats = logprobs(
            reference,
            settings.model,
            rollouts,
            temperature=settings.temperature,
            group_size=settings.group_size,
            chunk=settings.chunk,
            mesh=mesh,
        )
        logp_ref = jax.lax.stop_gradient(stats.logp)
    return Collected(rollouts=rollouts, reward=reward, logp_old=rollouts.logp_full, logp_ref=logp_ref)


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
        value_old=collected.value_old,
        coef=dict(coef or {}),
    )
    return batch.replace(weight=objectives.weights(recipe.parts, batch))


def sample_rows(
    params: Params, prompts: Prompts, key: Array, step: Array, *, settings: Step, mesh: Mesh | None = None
) -> Rollouts:
    """G completions of every prompt. `key` is that of the rollout stream; the prompts' draw numbers do the rest."""
    return generate(
        params,
        settings.gradient.model,
        prompts,
        settings.sampling,
        key,
        mesh,
        group_size=settings.gradient.group_size,
        version=step,
    )


def learn_rows(
    state: TrainState,
    rollouts: Rollouts,
    reward: Reward,
    key: Array,
    *,
    settings: Step,
    reference: Params | None = None,
    mesh: Mesh | None = None,
) -> tuple[TrainState, Metrics, Batch]:
    """One step of learning from scored rollouts: labels, advantages, batch, update; the draw counter moves on."""
    recipe = settings.gradient.recipe
    collected = collect(rollouts, reward, settings=settings.gradient, reference=reference, mesh=mesh)
    labels, memory = label(collected, dict(state.memory), recipe)
    values, memory = advantage(collected, labels, memory, recipe)
    batch = make_batch(collected, labels, values, recipe, dict(state.coef))
    state, metrics = update(
        state.replace(memory=memory), batch, settings.gradient, key=jax.random.fold_in(key, state.step), mesh=mesh
    )
    draws = rollouts.prompts.length.shape[0]
    state = state.replace(step=state.step + 1, cursor=state.cursor + draws)
    metrics = {
        **metrics,
        **measure.reward_metrics(reward),
        **measure.length_metrics(rollouts),
        **measure.group_metrics(reward, labels),
    }
    return state, metrics, batch


def grpo_step(
    state: TrainState,
    prompts: Prompts,
    seed: Array,
    *,
    settings: Step,
    reference: Params | None = None,
    mesh: Mesh | None = None,
) -> tuple[TrainState, Metrics, Batch]:
    """A whole step: sample, score on token ids, compare, update. `seed` i32[] is data: seeds share a compilation."""
    if settings.reward is None:
        raise ValueError("reward: got None, but a whole step scores token ids: give the experiment a token reward")
    rollouts = sample_rows(
        state.params, prompts, stream(seed, Stream.ROLLOUT), state.step, settings=settings, mesh=mesh
    )
    reward = settings.reward(rollouts)
    key = stream(seed, Stream.UPDATE)
    return learn_rows(state, rollouts, reward, key, settings=settings, reference=reference, mesh=mesh)


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
) -> tuple[TrainState, Metrics]:
    """One step of imitation on demonstrations tokens i32[P, T] with lengths i32[P], one for each prompt.

    The same update as that of GRPO with the negative log-likelihood as its only term.
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
    state, metrics = update(state, batch, settings, key=key, mesh=mesh)
    state = state.replace(step=state.step + 1, cursor=state.cursor + rows)
    kept = ("loss", "grad_norm", "entropy", "skipped", "skipped/consecutive")
    return state, {name: metrics[name] for name in kept}


def host(record: Record) -> Record:
    """`record` with numpy leaves, in one transfer."""
    return jax.tree.map(np.asarray, jax.device_get(record))
