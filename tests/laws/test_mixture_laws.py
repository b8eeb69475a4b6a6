"""A mixture says the same whoever asks, and what the sampler chose is what the trainer goes through."""

import dataclasses
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from grpo_jax import models, objectives, train
from grpo_jax.sampling import Sampling, generate
from grpo_jax.sharding import make_mesh, place, place_rows
from grpo_jax.types import Array, Params, Prompts, Rollouts
from tests.laws import tiny
from tests.laws.tiny import ASKED, STOP, G, P, S, T

E, K = 5, 2
MODEL = dataclasses.replace(
    tiny.MODEL,
    layers=3,
    activation="silu",
    gated=True,
    experts=E,
    experts_per_token=K,
    expert_hidden=12,
    dense_layers=(0,),
)
SAMPLING = Sampling(max_tokens=T, stop=(STOP,), cache_chunk=3)
PARAMS = jax.jit(lambda: models.init(jax.random.key(0), MODEL))()


def sampled(params: Params, prompts: Prompts, *, model=MODEL, mesh: Mesh | None = None) -> Rollouts:
    return generate(params, model, prompts, SAMPLING, jax.random.key(2), mesh, group_size=G)


def said(params: Params, rows: Rollouts, *, model=MODEL, replay: bool = True, mesh: Mesh | None = None) -> Array:
    return models.logprobs(params, model, rows, temperature=1.0, replay=replay, group_size=G, mesh=mesh).logp


def by_forward(params: Params, rows: Rollouts) -> Array:
    """f32[N, T], each completion behind a copy of its prompt, through `models.forward`."""
    prompts = rows.prompts
    length = prompts.length[rows.prompt][:, None]
    place = jnp.arange(S + T, dtype=jnp.int32)[None]
    own = jnp.clip(place - length, 0, T - 1)
    completion = jnp.take_along_axis(rows.tokens, own, axis=1)
    asked = jnp.pad(prompts.tokens, ((0, 0), (0, T)))[rows.prompt]
    tokens = jnp.where(place < length, asked, completion)
    logits = models.forward(params, MODEL, tokens, place < length + rows.length[:, None])
    at = length - 1 + jnp.arange(T, dtype=jnp.int32)[None]
    logp = jax.nn.log_softmax(jnp.take_along_axis(logits, at[:, :, None], axis=1), axis=-1)
    return jnp.take_along_axis(logp, rows.tokens[:, :, None], axis=2)[:, :, 0]


def foreign(rows: Rollouts) -> Rollouts:
    """The experts after those that were chosen."""
    chosen = np.asarray(rows.experts)
    return rows.replace(experts=np.where(chosen < 0, chosen, (chosen + 1) % E))


def exchanged(rows: Rollouts) -> float:
    """How many of the choices of `rows`, as a share, are not among the foreign ones: those of {e, f} without e + 1."""
    one, two = np.moveaxis(np.asarray(rows.experts)[1:, rows.mask], -1, 0)
    return float(np.mean((one != (two + 1) % E).astype(float) + (two != (one + 1) % E)) / 2)


def at(rows: Rollouts, index: np.ndarray) -> Rollouts:
    """The rows `index` of all."""
    apart = rows.replace(prompts=None, experts=None)
    picked = jax.tree.map(lambda x: x[index], apart)
    return picked.replace(prompts=rows.prompts, experts=None if rows.experts is None else rows.experts[:, index])


ONE, AFTER = 7, 2
"""A row, and the token of it from which on its recorded experts are exchanged."""
SHUFFLED = np.random.default_rng(5).permutation(P * G)


SAMPLER = jax.jit(sampled, compiler_options=tiny.QUICK)
SCORER = jax.jit(said, compiler_options=tiny.QUICK)
"""Compiled once: what is recorded is data."""


@pytest.fixture(scope="module", name="rows")
def rows_of_the_policy() -> Rollouts:
    return jax.device_get(SAMPLER(PARAMS, ASKED))


@pytest.fixture(scope="module", name="by_foreign")
def what_is_said_after_foreign_choices(rows: Rollouts) -> np.ndarray:
    return np.asarray(SCORER(PARAMS, foreign(rows)))


def assert_close(a: np.ndarray, b: np.ndarray, mask: np.ndarray, atol: float = 5e-6) -> None:
    np.testing.assert_allclose(np.where(mask, a, 0), np.where(mask, b, 0), rtol=0, atol=atol)


def test_what_is_recorded_are_experts_of_layers_that_have_some(rows):
    assert rows.experts.shape == (MODEL.layers, P * G, T, K)
    assert (rows.experts[0] == -1).all()  # the layer without experts
    chosen = rows.experts[1:]
    assert ((chosen >= 0) == rows.mask[None, :, :, None]).all() and chosen.max() < E
    assert (chosen[..., 0] != chosen[..., 1])[:, rows.mask].all()
    assert len(np.unique(chosen[:, rows.mask])) == E  # or the laws below would see little


def test_the_sampler_the_scorer_and_the_definition_agree(rows):
    """And repeating what one would choose anyway changes nothing, to the last bit."""
    forward = jax.jit(by_forward, compiler_options=tiny.QUICK)(PARAMS, rows)
    replayed = np.asarray(SCORER(PARAMS, rows))
    assert_close(np.asarray(forward), rows.logp_full, rows.mask)
    assert_close(replayed, rows.logp_full, rows.mask)
    np.testing.assert_array_equal(SCORER(PARAMS, rows.replace(experts=np.full_like(rows.experts, -1))), replayed)


def test_foreign_choices_are_gone_through(by_foreign, rows):
    assert np.abs(by_foreign - rows.logp_full)[rows.mask].min() > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "as_sampled"),
    [
        ({"model": dataclasses.replace(MODEL, expert_path="dense")}, False),
        ({"model": dataclasses.replace(MODEL, backward="plain", remat="full")}, False),
        ({"replay": False}, True),
    ],
    ids=["dense", "plain", "not replayed"],
)
def test_foreign_choices_are_gone_through_in_every_way_unless_they_are_not_to_be(how, as_sampled, by_foreign, rows):
    found = jax.jit(partial(said, **how), compiler_options=tiny.QUICK)(PARAMS, foreign(rows))
    assert_close(np.asarray(found), rows.logp_full if as_sampled else by_foreign, rows.mask)


@pytest.mark.slow
def test_stacked_layers_find_their_own_choices():
    """All three layers have experts."""
    model = dataclasses.replace(MODEL, dense_layers=())
    params = models.init(jax.random.key(1), model)
    rows = foreign(jax.jit(partial(sampled, model=model))(params, ASKED))
    apart = jax.jit(partial(said, model=model))(params, rows)
    stacked = dataclasses.replace(model, stacked=True)
    together = jax.jit(partial(said, model=stacked))(models.stack(params), rows)
    assert_close(np.asarray(apart), np.asarray(together), np.asarray(rows.mask))
    sampled_there = jax.jit(partial(sampled, model=stacked))(models.stack(params), ASKED)
    np.testing.assert_array_equal(foreign(sampled_there).experts, rows.experts)


def test_a_choice_changes_its_own_token_and_those_behind_it(rows):
    assert rows.length[ONE] > AFTER + 1
    there = (np.arange(P * G) == ONE)[:, None] & (np.arange(T) >= AFTER)[None]
    later = np.where(there[None, :, :, None], foreign(rows).experts, rows.experts)
    moved = np.abs(np.asarray(SCORER(PARAMS, rows.replace(experts=later))) - rows.logp_full) > 1e-5
    np.testing.assert_array_equal(moved & rows.mask, there & rows.mask)


def test_choices_go_with_their_rows_in_any_order(by_foreign, rows):
    shuffled = SCORER(PARAMS, at(foreign(rows), SHUFFLED))
    assert_close(np.asarray(shuffled), by_foreign[SHUFFLED], rows.mask[SHUFFLED])


def test_no_row_influences_another(rows):
    """Eight copies of a prompt all get the tokens and the choices that it got among seven others."""
    mine = jax.device_get(SAMPLER(PARAMS, jax.tree.map(lambda x: np.repeat(x[3:4], P, axis=0), ASKED)))
    its = np.tile(np.arange(3 * G, 4 * G), P)
    np.testing.assert_array_equal(mine.tokens, rows.tokens[its])
    np.testing.assert_array_equal(mine.experts, rows.experts[:, its])
    assert_close(mine.logp_full, rows.logp_full[its], rows.mask[its])


# Updates


def updated(params: Params, rows: Rollouts, mesh: Mesh | None = None, **changes) -> tuple[Params, Mapping[str, Array]]:
    recipe = objectives.grpo(beta=0)
    change = tiny.settings(recipe, model=MODEL, **changes)
    batch = tiny.batch_of(rows, jax.tree.map(jnp.asarray, tiny.rewards()), change, params)
    state, metrics = train.update(train.start(params, change), batch, change, key=jax.random.key(7), mesh=mesh)
    return state.params, metrics


def run(rows: Rollouts, params: Params = PARAMS, **changes) -> tuple[Params, Mapping[str, Array]]:
    program = jax.jit(partial(updated, **changes), compiler_options=tiny.QUICK)
    return jax.device_get(program(params, rows))


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"microbatches": 2}, {"mesh": "2x2x2"}], ids=["microbatches", "mesh"])
def test_an_update_by_foreign_choices_is_the_same_however_it_is_cut(changes, rows):
    """Rows in any order, of which some have fewer tokens than others."""
    rows = at(foreign(rows), SHUFFLED)
    whole, params = run(rows), PARAMS
    shape = changes.get("mesh")
    if shape is not None:
        changes = {"mesh": make_mesh({"data": 2, "fsdp": 2, "tensor": 2})}
        rows, params = place_rows(rows, changes["mesh"]), place(PARAMS, changes["mesh"], models.axes(MODEL))
    cut = run(rows, params, **changes)
    tiny.assert_same(PARAMS, {"": whole}, {"": cut}, rtol=2e-4)
    assert 0.5 < whole[1]["experts/replaced"] < 1 and whole[1]["logp_gap/max"] > 0.1


@pytest.mark.slow
def test_without_replay_foreign_choices_are_only_counted(rows):
    own, found = run(rows), run(foreign(rows), replay_experts=False)
    np.testing.assert_allclose(found[1]["experts/replaced"], exchanged(rows), rtol=1e-5)
    assert own[1]["experts/replaced"] == 0.0
    tiny.assert_same(PARAMS, {"": own}, {"": found}, rtol=2e-4, metrics=False)


@pytest.mark.slow
def test_minibatches_go_through_what_the_sampler_chose(rows):
    """With the first of two, replayed choices part from those of the policy, which has moved."""
    _, metrics = run(rows, epochs=2, minibatches=2)
    assert 0 < metrics["experts/replaced"] < 0.5 and metrics["logp_gap/max"] < 1e-5


@pytest.mark.slow
def test_eight_devices_sample_what_one_does(rows):
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    params, prompts = place(PARAMS, mesh, models.axes(MODEL)), place_rows(ASKED, mesh)
    found = jax.device_get(jax.jit(partial(sampled, mesh=mesh))(params, prompts))
    np.testing.assert_array_equal(found.tokens, rows.tokens)
    np.testing.assert_array_equal(found.experts, rows.experts)
    assert_close(found.logp_full, rows.logp_full, rows.mask)
