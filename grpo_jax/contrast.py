"""The gradients of recipes at a policy of an experiment: a batch that it samples, and what recipes read of it.

One program compares all recipes, one more tells how the categories of a mixture pull under one of them; both are the
step of training up to the gradient (`grpo_jax.objectives.compare`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import jax
import numpy as np

from grpo_jax import objectives
from grpo_jax.advantages import fields_read
from grpo_jax.compiled import compiled
from grpo_jax.experiment import Experiment, step_settings
from grpo_jax.loop.phases import Phases, Stopwatch
from grpo_jax.loop.setup import judge, workers
from grpo_jax.models import AnyModel, join, logprobs
from grpo_jax.objectives import Comparison, Conflict, Recipe
from grpo_jax.rewards.guards import FailureLimit
from grpo_jax.train import advantage, collect, first_memory, host, label, look_rows, looks, make_batch, start
from grpo_jax.types import Array, Batch, Params, Reward, Rollouts, Seen, TokenStats
from grpo_jax.updates import Gradient

CATEGORY = "category"
MOST = 1000
"""Updates away from the policy that sampled, at most: more would be training."""
STATISTICS = ("entropy", "kl_full", "sum_pi_squared")
"""What a policy without a critic can say of a token beside its log-probability."""


@dataclass(frozen=True)
class Sample:
    """A batch with everything that recipes read of it, and the policy whose gradients are compared."""

    params: Params
    reference: Params  # the policy that sampled
    rollouts: Rollouts
    reward: Reward
    seen: Seen
    frozen: Params | None = None  # parameters of both policies that are not trained, and have no gradient

    @property
    def arrays(self) -> tuple[Params, Params, Rollouts, Reward, Seen]:
        """What the programs of this module take."""
        return self.params, self.reference, self.rollouts, self.reward, self.seen


def forward(
    params: Params,
    rows: Rollouts,
    *,
    reference: Params,
    model: AnyModel,
    settings: Gradient,
    want: tuple[str, ...],
    frozen: Params | None = None,
) -> TokenStats:
    """What the policy `params`, with what is `frozen`, says of the tokens of any number of prompts."""
    how: dict[str, Any] = {"group_size": settings.group_size, "temperature": settings.temperature}
    how |= {"chunk": settings.chunk, "want": want, "replay": settings.replay_experts}
    return logprobs(join(params, frozen), model, rows, reference=join(reference, frozen), **how)


def batch_of(rollouts: Rollouts, reward: Reward, seen: Seen, *, recipe: Recipe, settings: Gradient) -> Batch:
    """The batch that training would make of the rows for `recipe` in its first step."""
    collected = collect(rollouts, reward, seen, recipe=recipe)
    labels, memory = label(collected, first_memory(replace(settings, recipe=recipe)), recipe)
    values, _ = advantage(collected, labels, memory, recipe)
    return make_batch(collected, labels, values, recipe, objectives.initial_values(recipe.coefficients))


def compare_at(sample: Sample, recipes: Mapping[str, Recipe], settings: Gradient) -> Comparison:
    """The gradients of `recipes` at the policy of `sample`; numpy arrays."""
    call = compiled(compare_rows, recipes=recipes, names=tuple(recipes), settings=settings)
    return host(call(*sample.arrays, frozen=sample.frozen))


def conflict_at(
    sample: Sample, recipe: Recipe, settings: Gradient, *, category: np.ndarray, names: tuple[str, ...]
) -> Conflict:
    """How the categories i32[P] of the prompts pull under `recipe` at the policy of `sample`; numpy arrays."""
    call = compiled(conflict_rows, recipe=recipe, names=names, settings=settings)
    return host(call(*sample.arrays, category, frozen=sample.frozen))


def compare_rows(
    params: Params,
    reference: Params,
    rollouts: Rollouts,
    reward: Reward,
    seen: Seen,
    *,
    recipes: Mapping[str, Recipe],
    names: tuple[str, ...],
    settings: Gradient,
    mesh: None = None,
    frozen: Params | None = None,
) -> Comparison:
    """The gradients of `recipes`, in the order of `names`, at `params`: one program."""
    del mesh
    chosen = {name: recipes[name] for name in names}
    batches = {n: batch_of(rollouts, reward, seen, recipe=r, settings=settings) for n, r in chosen.items()}
    how = {"model": settings.model, "settings": settings, "want": objectives.wanted(chosen)}
    policy = partial(forward, reference=reference, frozen=frozen, **how)
    return objectives.compare(chosen, batches, policy, params, group_size=settings.group_size)


def conflict_rows(
    params: Params,
    reference: Params,
    rollouts: Rollouts,
    reward: Reward,
    seen: Seen,
    category: Array,
    *,
    recipe: Recipe,
    names: tuple[str, ...],
    settings: Gradient,
    mesh: None = None,
    frozen: Params | None = None,
) -> Conflict:
    """How the categories i32[P] of the prompts pull under `recipe`: one program."""
    del mesh
    batch = batch_of(rollouts, reward, seen, recipe=recipe, settings=settings)
    how = {"model": settings.model, "settings": settings, "want": objectives.wanted({"it": recipe})}
    policy = partial(forward, reference=reference, frozen=frozen, **how)
    given = {"category": category, "names": names, "group_size": settings.group_size}
    return objectives.conflicts(recipe, batch, policy, params, **given)


def sampled(
    experiment: Experiment,
    params: Params,
    *,
    rows: int,
    seed: int,
    draws: int = 0,
    drift: int = 0,
    frozen: Params | None = None,
) -> Sample:
    """`rows` completions of the problems from draw number `draws` on, and the policy `drift` updates later.

    The updates are those of the experiment's recipe, each on all the rows: the policy then stands to the rows as in
    training after the first updates on a batch. `params` are those that are trained, the others are `frozen`. Raises
    ValueError for numbers that `check` refuses.
    """
    check(experiment, rows=rows, drift=drift)
    step = step_settings(drifting(experiment, rows=rows, updates=drift))
    prompts = experiment.data.draw(seed, np.arange(draws, draws + rows // experiment.train.group_size))
    with workers(experiment) as pool:
        judging = replace(judge(experiment, experiment.data.heldout(1), pool), seed=seed)
        limit = FailureLimit(share=experiment.scoring.failure_share)
        phases = Phases(step, judging, params, clock=Stopwatch(), failures=limit, frozen=frozen)
        state = start(jax.tree.map(np.array, params), step.gradient)  # copied: an update uses it up
        scored = phases.score(state, phases.rollout(state, prompts))
        if drift:
            state, _ = phases.learn(state, scored)
    change = step.gradient
    want = ("logp_old", "logp_ref", "sum_pi_squared", *(() if change.model.critic is None else ("value_old",)))
    how = {"model": change.model, "temperature": change.temperature, "chunk": change.chunk}
    look = compiled(look_rows, group_size=change.group_size, want=want, **how)
    seen = look(params, params, scored.rollouts, frozen=frozen)
    return Sample(state.params, params, scored.rollouts, scored.reward, seen, frozen)


def check(experiment: Experiment, *, rows: int, drift: int) -> None:
    """Raise a ValueError unless `rows` completions are of whole prompts, two at least, and `drift` is in its range."""
    group, pieces = experiment.train.group_size, experiment.train.microbatches
    size = group * pieces
    least = -(-2 * group // size) * size
    if rows < least or rows % size:
        raise ValueError(
            f"--rows: got {rows}, allowed are multiples of {size} from {least} up, because every prompt is answered"
            f" {group} times: say for instance --rows {max(rows // size * size, least)}"
        )
    if not 0 <= drift <= MOST:
        raise ValueError(f"--drift-steps: got {drift}, allowed 0 to {MOST}: 0 stays at the policy that sampled")


def drifting(experiment: Experiment, *, rows: int, updates: int) -> Experiment:
    """`experiment` with a step of so many updates on `rows` completions, each on all, at the full learning rate."""
    still = {"warmup": 0, "schedule": "constant"}
    there = {field.name for field in fields(experiment.optimizer)}
    optimizer: Any = replace(experiment.optimizer, **{name: x for name, x in still.items() if name in there})
    sizes = {"prompts": rows // experiment.train.group_size, "steps": 1, "epochs": max(updates, 1), "minibatches": 1}
    return replace(experiment, optimizer=optimizer, train=replace(experiment.train, **sizes))


def absent(recipe: Recipe, sample: Sample) -> list[str]:
    """What `recipe` reads and this sample does not have."""
    reward, there = sample.reward, {"logp_old", "logp_ref", "sum_pi_squared", *STATISTICS}
    there |= {name for name in ("token", "step_end", "greedy") if getattr(reward, name) is not None}
    there |= set() if sample.seen.value_old is None else {"value", "value_old"}
    there |= {"components"} if reward.components else set()
    there |= {"label"} if sample.rollouts.prompts.label else set()
    read = {*objectives.wants(recipe), *fields_read(recipe.advantage), *looks(recipe)}
    return sorted(read - there)


def categories(experiment: Experiment, rollouts: Rollouts) -> tuple[np.ndarray, tuple[str, ...]]:
    """Number of the category of every prompt i32[P], and the names of those that occur."""
    prompts = host(rollouts.prompts)
    if CATEGORY not in prompts.label:
        raise ValueError(
            f"--categories: got prompts of {experiment.name} without the label {CATEGORY!r}; allowed are those of a"
            " mixture, or of a file with that label: use experiments/mixed.py or a run of it"
        )
    codes, facts = np.asarray(prompts.label[CATEGORY]), experiment.data.metadata(prompts)
    known = {int(c): str(fact.get(CATEGORY, c)) for c, fact in zip(codes, facts, strict=True) if c >= 0}
    order = {code: number for number, code in enumerate(sorted(known))}
    return np.asarray([order.get(int(c), -1) for c in codes], np.int32), tuple(known[code] for code in sorted(known))
