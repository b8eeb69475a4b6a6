"""The phases of a step, each for itself and in a row."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import models, objectives, train
from grpo_jax.compiled import compiled
from grpo_jax.train import Stream
from grpo_jax.types import Array, Batch, Collected, Metrics, Params, Prompts, Seen, TrainState
from tests.laws import tiny
from tests.laws.tiny import ASKED, MODEL, STEP, G, P, S, T

ROLLOUTS, REWARD = tiny.rows(), tiny.rewards()
PLAIN = objectives.grpo(beta=0)
REFERENCE = tiny.nearby(tiny.policy())


def assert_identical(a: object, b: object) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


# Beginning


def test_streams_and_seeds_have_keys_of_their_own():
    keys = [jax.random.key_data(train.stream(seed, name)) for seed in (0, 1) for name in Stream]
    for a, b in itertools.combinations(keys, 2):
        assert not np.array_equal(a, b)


def test_a_fresh_state_follows_from_the_seed():
    settings = tiny.settings(PLAIN)
    state = train.init_state(3, settings)
    assert_identical(state, train.init_state(jnp.int32(3), settings))
    assert not np.array_equal(state.params["embed"], train.init_state(4, settings).params["embed"])
    assert (int(state.step), int(state.cursor), int(state.skipped)) == (0, 0, 0)
    assert all(counter.dtype == jnp.int32 for counter in (state.step, state.cursor, state.skipped))
    assert state.coef == {} and state.memory == {}


# Settings of a step


def test_greedy_samples_cannot_be_trained_on():
    with pytest.raises(ValueError, match=r"temperature: got 0.0, allowed > 0.*evaluate greedily"):
        dataclasses.replace(STEP, sampling=STEP.sampling.replace(temperature=0.0))


def test_sampler_and_trainer_have_one_temperature():
    with pytest.raises(ValueError, match=r"gradient.temperature: got 0.8, allowed 1.1"):
        dataclasses.replace(STEP, sampling=STEP.sampling.replace(temperature=1.1))


# Phases


def test_a_recipe_with_a_penalty_needs_a_reference():
    with pytest.raises(ValueError, match=r"logp_ref: got None.*look_rows"):
        train.collect(ROLLOUTS, REWARD, recipe=objectives.grpo())


def test_a_recipe_without_a_penalty_has_no_reference():
    collected = train.collect(ROLLOUTS, REWARD, Seen(logp_ref=jnp.asarray(ROLLOUTS.logp)), recipe=PLAIN)
    assert collected.logp_ref is None
    np.testing.assert_array_equal(collected.logp_old, ROLLOUTS.logp_full)


def test_rows_without_a_score_or_a_group_are_masked():
    labels = ROLLOUTS.prompt.copy()
    labels[G : 2 * G] = -1
    valid = np.arange(P * G) != 2
    collected = Collected(rollouts=ROLLOUTS, reward=REWARD.replace(valid=valid), logp_old=ROLLOUTS.logp_full)
    values = np.ones((P * G, T), np.float32)
    batch = train.make_batch(collected, jnp.asarray(labels), jnp.asarray(values), PLAIN, {"beta": jnp.float32(2)})
    counts = valid & (labels >= 0)
    np.testing.assert_array_equal(batch.mask, ROLLOUTS.mask & counts[:, None])
    np.testing.assert_array_equal(batch.rollouts.mask, ROLLOUTS.mask)
    (weight,) = batch.weight.values()
    np.testing.assert_array_equal(np.asarray(weight) > 0, batch.mask)
    # the mean over the 27 rows that count of the mean over their tokens
    np.testing.assert_allclose(np.asarray(weight).sum(axis=1)[counts], 1 / 27, rtol=1e-6)
    assert batch.coef == {"beta": 2.0}
    np.testing.assert_array_equal(batch.logp_behavior, ROLLOUTS.logp)


def test_a_row_counts_if_it_belongs_to_a_group_at_every_level():
    collected = Collected(rollouts=ROLLOUTS, reward=REWARD, logp_old=ROLLOUTS.logp_full)
    levels = np.stack([ROLLOUTS.prompt, ROLLOUTS.prompt, np.arange(P * G, dtype=np.int32) - 1])
    batch = train.make_batch(collected, jnp.asarray(levels), jnp.ones((P * G, T)), PLAIN)
    np.testing.assert_array_equal(batch.mask, ROLLOUTS.mask & (np.arange(P * G) > 0)[:, None])


def test_a_token_counts_if_it_belongs_to_a_group():
    collected = Collected(rollouts=ROLLOUTS, reward=REWARD, logp_old=ROLLOUTS.logp_full)
    tokens = np.where(np.arange(T)[None] % 2 == 0, ROLLOUTS.prompt[:, None], -1).astype(np.int32)
    batch = train.make_batch(collected, jnp.asarray(tokens), jnp.ones((P * G, T)), PLAIN)
    np.testing.assert_array_equal(batch.mask, ROLLOUTS.mask & (np.arange(T) % 2 == 0)[None])


def test_host_brings_numbers_home():
    record = train.host({"x": jnp.ones(2), "state": tiny.begin()})
    assert {type(leaf) for leaf in jax.tree.leaves(record)} == {np.ndarray}


# A step


def own_step(state: TrainState, prompts: Prompts, seed: Array, reference: Params) -> tuple[TrainState, Metrics, Batch]:
    """The step as an experiment with an order of its own would write it."""
    change = STEP.gradient
    key = train.stream(seed, Stream.ROLLOUT)
    shape = {"model": MODEL, "group_size": G}
    rollouts = train.sample_rows(state.params, prompts, key, state.step, sampling=STEP.sampling, **shape)
    reward = tiny.even_tokens(rollouts)
    looking = {"temperature": change.temperature, "want": ("logp_ref",)}
    seen = train.look_rows(None, reference, rollouts, **looking, **shape)
    collected = train.collect(rollouts, reward, seen, recipe=change.recipe)
    labels, memory = train.label(collected, {}, change.recipe)
    values, memory = train.advantage(collected, labels, memory, change.recipe)
    batch = train.make_batch(collected, labels, values, change.recipe)
    key = jax.random.fold_in(train.stream(seed, Stream.UPDATE), state.step)
    state, metrics = train.update(state.replace(memory=memory), batch, change, key=key)
    return state.replace(step=state.step + 1, cursor=state.cursor + P), metrics, batch


def prompts_of(step: int) -> Prompts:
    draws = np.arange(step * P, (step + 1) * P, dtype=np.int32)
    return ASKED.replace(draw=draws, tokens=np.roll(ASKED.tokens, step))


@pytest.mark.slow
def test_a_loop_of_the_public_phases_is_the_step_bit_for_bit():
    whole, own = tiny.step_program(), jax.jit(own_step, donate_argnums=0, compiler_options=tiny.QUICK)
    state, mine, seed = tiny.begin(), tiny.begin(), np.int32(5)
    for step in range(3):
        before = state
        state, metrics, batch = whole(state, prompts_of(step), seed, reference=REFERENCE)
        mine, my_metrics, my_batch = own(mine, prompts_of(step), seed, REFERENCE)
        assert_identical((state, batch), (mine, my_batch))
        assert_identical({name: metrics[name] for name in my_metrics}, my_metrics)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))  # the state is used up, in place
        assert (int(state.step), int(state.cursor), int(state.skipped)) == (step + 1, (step + 1) * P, 0)
        assert metrics["logp_gap/max"] < 1e-4
        assert set(np.asarray(batch.rollouts.version)) == {step}
    assert tiny.moves(tiny.policy(), {"": (jax.device_get(state.params), {})})[""] > 1e-2


# Imitation


DEMONSTRATED = ROLLOUTS.tokens[::G], ROLLOUTS.length[::G]


def mean_nll(params: Params, prompts: Prompts, tokens: Array, length: Array) -> Array:
    """Mean over all completion tokens of -log p, from the plain forward pass on rows of prompt and completion."""
    rows, read, answer = (np.zeros((P, S + T), kind) for kind in (np.int32, bool, bool))
    for p in range(P):
        start, end = int(prompts.length[p]), int(prompts.length[p] + length[p])
        rows[p, :end] = [*prompts.tokens[p, :start], *tokens[p, : end - start]]
        read[p, :end], answer[p, start:end] = True, True
    logp = jax.nn.log_softmax(models.forward(params, MODEL, jnp.asarray(rows), jnp.asarray(read)))
    own = jnp.take_along_axis(logp[:, :-1], rows[:, 1:, None], axis=2)[:, :, 0]
    return -jnp.sum(jnp.where(answer[:, 1:], own, 0.0)) / float(answer.sum())


def test_imitation_follows_the_gradient_of_the_mean_negative_log_likelihood():
    settings = tiny.settings(train.IMITATION, group_size=1)
    step = compiled(train.supervised_step, donate=("state",), settings=settings)
    state = train.start(tiny.policy(), settings)
    after, metrics = step(state, ROLLOUTS.prompts, *DEMONSTRATED)
    loss, gradient = jax.jit(jax.value_and_grad(lambda params: mean_nll(params, ROLLOUTS.prompts, *DEMONSTRATED)))(
        tiny.policy()
    )
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(
        metrics["grad_norm"], np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(gradient))), rtol=1e-5
    )
    expected = jax.tree.map(lambda x, g: x - g / (jnp.abs(g) + 1), tiny.policy(), gradient)
    tiny.assert_same(tiny.policy(), {"": (expected, {})}, {"": (after.params, {})})
    assert (int(after.step), int(after.cursor)) == (1, P)
    assert jax.tree.leaves(state.params)[0].is_deleted()
    assert set(metrics) == {"loss", "grad_norm", "entropy", "skipped", "skipped/consecutive"}
