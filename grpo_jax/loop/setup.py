"""What a run is set up from: held-out problems, what judges with them, processes that score, what a display is told."""

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, cast

import numpy as np
from jax.sharding import Mesh

from grpo_jax import heldout, weights
from grpo_jax.data import assert_disjoint
from grpo_jax.data.difficulty import Classed
from grpo_jax.display import Plan
from grpo_jax.experiment import Experiment, fitting_chunks, most_draws, step_settings, warm_settings
from grpo_jax.heldout import Judge
from grpo_jax.loop.rounds import first_memory
from grpo_jax.models import adapters, decoder_of, divide, init, join, trained
from grpo_jax.objectives import functions
from grpo_jax.questions import further_sets
from grpo_jax.rewards.pool import Pool
from grpo_jax.sharding import make_mesh
from grpo_jax.train import Stream, place_params, place_state, start, stream
from grpo_jax.types import Params, Prompts, TrainState

CHECKED = 1 << 17
"""Draws that are compared with the held-out problems one by one; for later ones their class says that they differ."""

CHUNKS = 4
"""Pieces that a step is sampled in where rewards are the user's own, as far as the number of prompts allows."""
WAITING = 8
"""Worker processes on a machine of fewer cores: rewards that wait for something wait side by side."""


def plan(experiment: Experiment) -> Plan:
    """What the display is told of the run beforehand."""
    warm, train = experiment.warm_start, experiment.train
    steps: Mapping[str, int] = {"warm_start": warm.limit if warm else 0, "grpo": train.steps}
    return Plan(experiment.name, steps, rows=train.prompts * train.group_size)


def own_rewards(experiment: Experiment) -> bool:
    """Whether a text reward is the user's own: then all are applied by processes of their own."""
    return any(
        not function.__module__.startswith("grpo_jax.")
        for reward, _ in experiment.text_rewards.values()
        for function, _ in functions(reward)
    )


def chunks(experiment: Experiment) -> int:
    """In how many pieces the prompts of a step are sampled, so that each is scored while the next is sampled."""
    given = experiment.scoring.chunks
    if given is not None:
        return given
    most = CHUNKS if experiment.reward is None and own_rewards(experiment) else 1
    return max(count for count in fitting_chunks(experiment) if count <= most)


def workers(experiment: Experiment) -> AbstractContextManager[Pool | None]:
    """The processes that score text, if a reward is the user's own; None where all are the library's."""
    scoring, rewards = experiment.scoring, experiment.text_rewards
    if not own_rewards(experiment):
        return nullcontext()
    count = scoring.workers or max(os.cpu_count() or 1, WAITING)
    return Pool(rewards, workers=count, timeout_s=scoring.timeout_s, memory_mb=scoring.memory_mb)


def judge(experiment: Experiment, prompts: Prompts, pool: Pool | None = None) -> Judge:
    """What evaluates the policies of `experiment` on the held-out `prompts`."""
    return Judge(
        task=experiment.data,
        model=experiment.model,
        sampling=experiment.sampling,
        text_rewards=experiment.text_rewards,
        reward=experiment.reward,
        seed=experiment.seed,
        prompts=prompts,
        mesh=None if experiment.mesh is None else make_mesh(experiment.mesh),
        pool=pool,
        further=further_sets(experiment.heldout, count=experiment.evaluation.full_prompts),
        category=experiment.evaluation.category,
        ks=experiment.evaluation.ks,
    )


def problems(experiment: Experiment) -> Prompts:
    """The held-out problems. Raises ValueError where data, devices or weights are not those that the run asks for."""
    warm, train = experiment.warm_start, experiment.train
    if experiment.mesh is not None:
        make_mesh(experiment.mesh)  # refuses a shape that these devices do not have
    if experiment.weights is not None:
        weights.check(experiment.weights, decoder_of(experiment.model, what="weights"))
    prompts = experiment.data.heldout(experiment.evaluation.full_prompts)
    if warm:
        experiment.data.demonstrations(experiment.seed, np.arange(warm.rows))
    draws = min(max(most_draws(train), warm.limit * warm.rows if warm else 0), CHECKED)
    judging = judge(experiment, prompts)
    heldout.check(judging, experiment)
    further = {name: given for name, (_, given) in judging.further.items()}
    how: dict[str, Any] = {"seed": experiment.seed, "draws": draws, "further": further}
    assert_disjoint(experiment.data, prompts, **how)
    if train.difficulty is not None:
        assert_disjoint(experiment.data, prompts, **how, draw=cast(Classed, experiment.data).drawable)
    return prompts


class Beginning(NamedTuple):
    """What a run can begin with."""

    state: TrainState  # with which it does
    grpo: TrainState  # one of GRPO; they differ where the warm start has its own optimiser or trains more parameters
    frozen: Params | None  # parameters that GRPO leaves as they are; with a warm start only their shapes are those


def first_states(experiment: Experiment, mesh: Mesh | None) -> Beginning:
    """The states that the run begins with, in each of its phases. A checkpoint holds one of the two kinds."""
    warm = experiment.warm_start
    base = place_params(first_params(experiment, mesh), experiment.model.without_lora, mesh)
    grpo, frozen = grpo_state(experiment, base, mesh)
    if warm is None:
        return Beginning(grpo, grpo, frozen)
    return Beginning(
        place_state(start(base, warm_settings(experiment, warm)), experiment.model.without_lora, mesh), grpo, frozen
    )


def first_params(experiment: Experiment, mesh: Mesh | None) -> Params:
    """All parameters that the run begins with, before anything is added to them."""
    if experiment.weights is not None:
        return weights.load(experiment.weights, decoder_of(experiment.model.without_lora, what="weights"), mesh)
    return init(stream(experiment.seed, Stream.INIT), experiment.model.without_lora)


def grpo_state(experiment: Experiment, params: Params, mesh: Mesh | None) -> tuple[TrainState, Params | None]:
    """The state that GRPO begins with at `params`, and what it leaves as it is, None where that is nothing.

    New adapters where the model has some, a new optimiser, no steps, and what its rounds remember.
    """
    model, frozen = experiment.model, None
    if model.lora is not None or experiment.train.frozen:
        params = join(params, adapters(stream(experiment.seed, Stream.INIT), model))
        params, frozen = divide(params, trained(model, experiment.train.frozen))
    begun = start(params, step_settings(experiment).gradient)
    begun = begun.replace(memory={**begun.memory, **first_memory(experiment)})
    return place_state(begun, model, mesh), None if frozen is None else place_params(frozen, model, mesh)
