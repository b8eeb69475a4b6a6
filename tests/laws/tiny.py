"""A model, rows and rewards so small that a law can be held for every recipe in one compilation."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from grpo_jax import models, objectives, train
from grpo_jax.groups import GROUPINGS
from grpo_jax.sampling import Sampling
from grpo_jax.types import Batch, Metrics, Params, Prompts, Reward, Rollouts, TrainState
from grpo_jax.updates import Gradient, Optimizer

P, G, S, T, V = 8, 4, 4, 5, 12
MODEL = models.ModelConfig(
    vocab=V, width=16, layers=2, heads=2, kv_heads=1, head_width=8, hidden=32, rope_theta=100.0, head_std=0.3
)
LINEAR = Optimizer(learning_rate=1.0, eps=1.0, clip_norm=0.0)
"""The first step is -g / (|g| + 1), nearly -g: unlike Adam's usual step, nearly a sign, it shows a wrong scale."""

SPINE = ("grpo", "dapo", "reinforce", "kl_cov")
"""The recipes that go through a whole update: one for every way in which a recipe meets it, a reference, none, rewards
that are compared with nothing, and a prepare step. All recipes go through a model in test_recipe_laws.py, and what they
compute from the statistics of a forward pass is held to the same laws in tests/objectives/test_recipes.py."""
RECIPES = {
    **{name: objectives.RECIPES[name] for name in SPINE},
    "grpo_without_penalty": objectives.grpo(beta=0),
    "grpo_by_category": dataclasses.replace(objectives.grpo(beta=0), grouping=GROUPINGS["by_category"]),
}
CATEGORIES = (np.arange(P, dtype=np.int32) * 5) % 3
"""Three, such that prompts of one lie on several shards and in several minibatches."""
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""For programs that are compiled once and run a few times on next to nothing."""

Record = TypeVar("Record")
Results = Mapping[str, tuple[Params, Metrics]]
"""Recipe -> parameters and metrics after one update."""


def record(kind: type[Record], **fields: Any) -> Record:
    """A record of numpy arrays, which the tests can index and change."""
    return kind(**fields)


def settings(recipe: objectives.Recipe, **changes: Any) -> Gradient:
    """One update on a whole batch by a linear optimiser."""
    usual = Gradient(model=MODEL, recipe=recipe, optimizer=LINEAR, group_size=G, updates=1)
    return dataclasses.replace(usual, **changes)


def policy(seed: int = 0) -> Params:
    return models.init(jax.random.key(seed), MODEL)


def nearby(params: Params, seed: int = 1, distance: float = 0.05) -> Params:
    """Another policy, not far away."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: np.asarray(x) + rng.normal(0, distance, x.shape).astype(np.float32), params)


def rows(seed: int = 0) -> Rollouts:
    """G completions of P prompts, of all lengths; one has a token that nobody sampled in front."""
    rng = np.random.default_rng(seed)
    n, count = P * G, np.arange(P, dtype=np.int32)
    length = rng.integers(1, T + 1, n).astype(np.int32)
    mask = np.arange(T)[None] < length[:, None]
    length[3], mask[3] = T, [False, True, True, True, True]
    logp = -rng.uniform(0.5, 4.0, (n, T)).astype(np.float32)
    prompts = rng.integers(0, V, (P, S)).astype(np.int32)
    return record(
        Rollouts,
        prompts=record(
            Prompts,
            tokens=prompts,
            length=(1 + count % S).astype(np.int32),
            draw=count,
            row=count,
            label={"category": CATEGORIES},
        ),
        prompt=np.repeat(count, G),
        sample=np.tile(np.arange(G, dtype=np.int32), P),
        tokens=rng.integers(0, V, (n, T)).astype(np.int32),
        length=length,
        stopped=length < T,
        mask=mask,
        logp=logp,
        logp_full=logp,
        version=np.zeros(n, np.int32),
    )


def rewards(seed: int = 0) -> Reward:
    """Rewards 0, 1/2 and 1; those of prompt 2 are all equal."""
    outcome = np.random.default_rng(seed).integers(0, 3, P * G).astype(np.float32) / 2
    outcome[2 * G : 3 * G] = 0.5
    return record(Reward, outcome=outcome, valid=np.ones(P * G, bool))


def batch_of(rollouts: Rollouts, reward: Reward, change: Gradient, reference: Params) -> Batch:
    """The phases between sampling and the update."""
    given = {"model": change.model, "temperature": change.temperature, "group_size": change.group_size}
    seen = train.look_rows(None, reference, rollouts, want=train.looks(change.recipe), **given)
    collected = train.collect(rollouts, reward, seen, recipe=change.recipe)
    labels, memory = train.label(collected, {}, change.recipe)
    values, _ = train.advantage(collected, labels, memory, change.recipe)
    return train.make_batch(collected, labels, values, change.recipe)


def updates(
    params: Params,
    reference: Params,
    rollouts: Rollouts,
    reward: Reward,
    *,
    names: tuple[str, ...] = tuple(RECIPES),
    mesh: Mesh | None = None,
    **changes: Any,
) -> Results:
    """One update from `params` under every recipe of `names`; `changes` as in `settings`."""
    found = {}
    for name in names:
        change = settings(RECIPES[name], **changes)
        batch = batch_of(rollouts, reward, change, reference)
        state, metrics = train.update(train.start(params, change), batch, change, key=jax.random.key(7), mesh=mesh)
        found[name] = (state.params, metrics)
    return found


def program(**changes: Any) -> Callable[..., Results]:
    """`updates` with `changes`, jitted."""
    return jax.jit(partial(updates, **changes), compiler_options=QUICK)


STOP = 1
ASKED = record(
    Prompts,
    tokens=np.random.default_rng(3).integers(0, V, (P, S)).astype(np.int32),
    length=(1 + np.arange(P) % S).astype(np.int32),
    draw=np.arange(P, dtype=np.int32),
    row=np.arange(P, dtype=np.int32),
    label={"category": CATEGORIES},
)


def even_tokens(rollouts: Rollouts) -> Reward:
    """The share of even tokens; completions of a single token cannot be scored."""
    even = (rollouts.mask & (rollouts.tokens % 2 == 0)).sum(axis=1, dtype=jnp.float32)
    return Reward(outcome=even / rollouts.length.astype(jnp.float32), valid=rollouts.length > 1)


STEP = train.Step(
    gradient=settings(objectives.grpo(beta=0.1), temperature=0.8, epochs=2, minibatches=2, updates=12),
    sampling=Sampling(max_tokens=T, stop=(STOP,), temperature=0.8, cache_chunk=3),
    reward=even_tokens,
)


def begin() -> TrainState:
    """A state with buffers of its own, which a step may use up."""
    return train.start(policy(), STEP.gradient)


def whole_step(
    state: TrainState,
    prompts: Prompts,
    seed: Any,
    *,
    reference: Params,
    change: Gradient = STEP.gradient,
    mesh: Mesh | None = None,
) -> tuple[TrainState, Metrics, Batch]:
    """The phases of `STEP` in a row, as one program."""
    given = {"model": MODEL, "group_size": G, "mesh": mesh}
    keys = [train.stream(seed, name) for name in (train.Stream.ROLLOUT, train.Stream.UPDATE)]
    rollouts = train.sample_rows(state.params, prompts, keys[0], state.step, sampling=STEP.sampling, **given)
    reward = train.score_rows(rollouts, reward=even_tokens)
    want = train.looks(change.recipe)
    seen = train.look_rows(state.params, reference, rollouts, temperature=change.temperature, want=want, **given)
    return train.learn_rows(state, rollouts, reward, keys[1], seen, settings=change, mesh=mesh)


def step_program(mesh: Mesh | None = None) -> Callable[..., tuple[TrainState, Metrics, Batch]]:
    """`whole_step`, jitted: ``(state, prompts, seed, reference=)``."""
    return jax.jit(partial(whole_step, mesh=mesh), donate_argnums=0, compiler_options=QUICK)


def moves(params: Params, results: Results) -> dict[str, float]:
    """Recipe -> the largest change of a parameter."""

    def largest(new: Params) -> float:
        return max(float(np.abs(np.asarray(a) - b).max()) for a, b in both_leaves(new, params))

    return {name: largest(new) for name, (new, _) in results.items()}


def both_leaves(a: Any, b: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return [(np.asarray(x), np.asarray(y)) for x, y in pairs]


def assert_same(params: Params, a: Results, b: Results, *, rtol: float = 2e-5, metrics: bool = True) -> None:
    """Both updates from `params` agree: in new parameters, to `rtol` of the largest change, and in every metric.

    What is allowed beside that is two units in the last place of a parameter near 1.
    """
    assert a.keys() == b.keys()
    size = moves(params, a)
    for name in a:
        for x, y in both_leaves(a[name][0], b[name][0]):
            np.testing.assert_allclose(x, y, rtol=0, atol=rtol * size[name] + 2.4e-7, err_msg=name)
        if metrics:
            assert a[name][1].keys() == b[name][1].keys()
            for key, value in a[name][1].items():
                np.testing.assert_allclose(value, b[name][1][key], rtol=1e-4, atol=1e-6, err_msg=f"{name} {key}")
