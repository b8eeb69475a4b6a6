"""Actor and critic in one state: they learn apart where nothing is shared, together where it is, and on any mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import models, objectives, train
from grpo_jax.models import ModelConfig, without_critic
from grpo_jax.sharding import make_mesh, place_rows
from grpo_jax.types import Batch, Metrics, Params, Reward, Rollouts, TrainState
from tests.laws import tiny
from tests.laws.tiny import G

HEAD = dataclasses.replace(tiny.MODEL, critic="head")
TOWER = dataclasses.replace(tiny.MODEL, critic="tower")
RECIPE = objectives.ppo_critic(lam=0.9, clip_value=0.1)
ROLES = {"both": RECIPE.parts, "actor": RECIPE.parts[:1], "critic": RECIPE.parts[1:]}
ROLLOUTS, REWARD = jax.tree.map(jnp.asarray, (tiny.rows(), tiny.rewards()))
CUTS = {f"(slice({k}, {k + 4}, None),)" for k in (0, 4, 8, 12)}
"""The 16 weights of the value head over fsdp: 4."""


def begun(model: ModelConfig) -> Params:
    """A policy, and a critic that has left its beginning."""
    params = models.init(jax.random.key(0), model)
    return {**params, "critic": tiny.nearby(params["critic"], distance=0.2)}


def step(state: TrainState, rollouts: Rollouts, reward: Reward, change, mesh=None) -> tuple[TrainState, Metrics, Batch]:
    """A step of learning in which the critic looks at the rows first."""
    shape = {"model": change.model, "temperature": change.temperature, "group_size": G, "mesh": mesh}
    seen = train.look_rows(state.params, None, rollouts, want=train.looks(change.recipe), **shape)
    return train.learn_rows(state, rollouts, reward, jax.random.key(0), seen, settings=change, mesh=mesh)


@pytest.fixture(scope="module", name="towers")
def one_step_of_a_tower():
    """``towers(params)``: name of the parts -> state after one step."""

    def learn(params):
        found = {}
        for name, parts in ROLES.items():
            change = tiny.settings(dataclasses.replace(RECIPE, parts=parts), model=TOWER)
            found[name] = step(train.start(params, change), ROLLOUTS, REWARD, change)[0]
        return found

    return jax.jit(learn, compiler_options=tiny.QUICK)


def same(a: object, b: object) -> bool:
    return all(np.array_equal(x, y) for x, y in tiny.both_leaves(a, b))


@pytest.mark.slow
def test_actor_and_tower_learn_apart_and_nobody_moves_who_is_not_taught(towers):
    params = begun(TOWER)
    after = {name: jax.device_get(state.params) for name, state in towers(params).items()}
    policy = {name: without_critic(found) for name, found in after.items()}
    assert same(policy["critic"], without_critic(params)) and same(after["actor"]["critic"], params["critic"])
    tiny.assert_same(without_critic(params), {"": (policy["both"], {})}, {"": (policy["actor"], {})})
    both, critic = ({"": (after[name]["critic"], {})} for name in ("both", "critic"))
    tiny.assert_same(params["critic"], both, critic)
    assert tiny.moves(params["critic"], both)[""] > 1e-3
    assert tiny.moves(without_critic(params), {"": (policy["both"], {})})[""] > 1e-3


@pytest.mark.slow
def test_a_critic_that_is_not_finite_moves_nobody(towers):
    params = begun(TOWER)
    broken = {**params, "critic": {**params["critic"], "bias": jnp.full((), jnp.nan)}}
    state = jax.device_get(towers(broken)["both"])
    assert int(state.skipped) == 1 and same(without_critic(state.params), without_critic(params))


def test_a_head_learns_what_is_to_come():
    """All rewards are 1 and lambda is 1, so every target is 1: the values go there from 0, and the advantages to 0."""
    model = dataclasses.replace(HEAD, critic_detached=True)
    recipe = objectives.ppo_critic(lam=1.0, whiten=False, clip_value=None)
    change = tiny.settings(recipe, model=model, optimizer=dataclasses.replace(tiny.LINEAR, learning_rate=0.5))
    reward = REWARD.replace(outcome=jnp.ones_like(REWARD.outcome))
    learn = jax.jit(lambda state: step(state, ROLLOUTS, reward, change), compiler_options=tiny.QUICK)
    state, seen = train.start(models.init(jax.random.key(0), model), change), []
    for _ in range(16):
        state, metrics, batch = learn(state)
        seen.append(jax.device_get((metrics, batch)))
    values = [float(metrics["value/mean"]) for metrics, _ in seen]
    assert values[0] == 0.0 and abs(values[-1] - 1.0) < 0.1
    assert all(metrics["returns/mean"] == pytest.approx(1.0) for metrics, _ in seen)
    assert "groups/tied" not in seen[0][0]
    worth = [np.abs(batch.advantage[batch.mask]).mean() for _, batch in seen]
    assert worth[0] == pytest.approx(1.0) and worth[-1] < 0.3  # without a critic every advantage would stay 1
    losses = [float(metrics["value/loss"]) for metrics, _ in seen]
    assert losses[0] == pytest.approx(0.5) and losses[-1] < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("model", [HEAD, TOWER], ids=["head", "tower"])
def test_a_mesh_and_micro_batches_change_nothing(model: ModelConfig):
    change = tiny.settings(RECIPE, model=model, minibatches=2, updates=2)
    mesh, params = make_mesh({"data": 2, "fsdp": 4}), begun(model)

    def learn(state, rollouts, reward, change, mesh):
        state, metrics, batch = step(state, rollouts, reward, change, mesh)
        return (state.params, metrics), batch.value_old

    program = jax.jit(learn, static_argnums=(3, 4), compiler_options=tiny.QUICK)
    state = train.place_state(train.start(params, change), model, mesh)
    assert {str(shard.index) for shard in state.params["critic"]["weight"].addressable_shards} == CUTS
    alone, values = program(train.start(params, change), ROLLOUTS, REWARD, change, None)
    spread, values_of_mesh = program(state, *place_rows((ROLLOUTS, REWARD), mesh), change, mesh)
    np.testing.assert_allclose(values_of_mesh, values, atol=1e-5)
    tiny.assert_same(params, {"": jax.device_get(alone)}, {"": jax.device_get(spread)})
    cut = dataclasses.replace(change, microbatches=2)
    pieces, _ = program(train.start(params, cut), ROLLOUTS, REWARD, cut, None)
    tiny.assert_same(params, {"": jax.device_get(alone)}, {"": jax.device_get(pieces)})
