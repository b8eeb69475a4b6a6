"""One batch, several optimiser updates: what they sum to, what they report and what they refuse."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import models, objectives, train
from grpo_jax.objectives import Part, Recipe, ppo_clip, scale, token_mean, where
from grpo_jax.types import Array, Batch, Metrics, TokenStats, TrainState
from grpo_jax.updates import Gradient, Optimizer, update
from tests.laws import tiny
from tests.laws.tiny import G, P, T

KEY = jax.random.key(7)
PLAIN = objectives.grpo(beta=0)
B1 = 0.999  # the first moment of few updates is then nearly (1 - B1) times the sum of their gradients
ONCE = tiny.settings(PLAIN, optimizer=Optimizer(learning_rate=0.1, b1=B1, clip_norm=0.0))
STILL = tiny.settings(
    PLAIN,
    optimizer=Optimizer(learning_rate=1e-30, b1=B1, clip_norm=0.0),
    epochs=2,
    minibatches=2,
    microbatches=2,
    updates=4,
)


def confident(stats: TokenStats, batch: Batch, key: Array) -> Batch:
    """Selects the tokens that are likelier than the mean of all tokens of the update, and some by chance."""
    assert stats.entropy is not None
    likely = stats.logp > jnp.sum(jnp.where(batch.mask, stats.logp, 0)) / jnp.sum(batch.mask, dtype=jnp.float32)
    return batch.replace(select={"confident": likely ^ jax.random.bernoulli(key, 0.2, likely.shape)})


CLIPPED = partial(ppo_clip, low=0.2, high=0.2)
PREPARED = Recipe(
    parts=(Part(token_mean, where("confident", CLIPPED, scale(CLIPPED, by=0.25))),),
    advantage=PLAIN.advantage,
    grouping=PLAIN.grouping,
    prepare=(confident,),
)


def program(settings: Gradient):
    def run(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        return update(state, batch, settings, key=key)

    return jax.jit(run, compiler_options=tiny.QUICK)


@pytest.fixture(scope="module", name="batch")
def usual_batch() -> Batch:
    make = jax.jit(partial(tiny.batch_of, change=ONCE, reference=tiny.policy(9)))
    return make(tiny.rows(), tiny.rewards())


@pytest.fixture(scope="module", name="once")
def one_update_on_all():
    return program(ONCE)


@pytest.fixture(scope="module", name="still")
def four_updates_that_do_not_move():
    return program(STILL)


@pytest.fixture(scope="module", name="state")
def state_with_a_past(once, batch) -> TrainState:
    """A state whose optimiser remembers something."""
    state, _ = once(train.start(tiny.policy(), ONCE), batch, KEY)
    return state


def first_moment(state: TrainState) -> dict:
    return state.opt_state[1][0].mu


def updates_done(state: TrainState) -> int:
    return int(state.opt_state[1][0].count)


def assert_identical(a: object, b: object) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


# Minibatches


def test_minibatches_have_the_mean_loss_and_diagnostics_of_the_batch(once, still, batch):
    _, whole = once(train.start(tiny.policy(), ONCE), batch, KEY)
    state, parts = still(train.start(tiny.policy(), STILL), batch, KEY)
    assert_identical(state.params, tiny.policy())
    assert updates_done(state) == 4
    assert whole.keys() == parts.keys()
    for name in sorted(whole.keys() - {"grad_norm", "logp_gap/mean", "logp_gap/p99", "logp_gap/max"}):
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-5, atol=1e-7, err_msg=name)


def test_the_gradients_of_an_epoch_have_the_gradient_of_the_batch_as_mean(once, still, batch):
    whole, _ = once(train.start(tiny.policy(), ONCE), batch, KEY)
    state, _ = still(train.start(tiny.policy(), STILL), batch, KEY)
    for total, one in tiny.both_leaves(first_moment(state), first_moment(whole)):
        np.testing.assert_allclose(total / 4, one, rtol=0, atol=4e-3 * np.abs(one).max())


def test_a_prepare_step_sees_the_whole_update_however_small_its_micro_batches(batch):
    batch = batch.replace(weight=objectives.weights(PREPARED.parts, batch))
    start = train.start(tiny.policy(), tiny.settings(PREPARED))
    results = [
        program(tiny.settings(PREPARED, epochs=2, minibatches=2, microbatches=pieces, updates=4))(start, batch, KEY)
        for pieces in (1, 4)
    ]
    a, b = ({"": (state.params, metrics)} for state, metrics in results)
    assert tiny.moves(tiny.policy(), a)[""] > 1e-2
    tiny.assert_same(tiny.policy(), a, b, rtol=1e-4)


def test_the_gap_between_sampler_and_trainer_is_seen_at_the_first_update(once, still, batch):
    """Every row is 0.25 nats off; rows that could not be scored count nowhere."""
    _, metrics = still(train.start(tiny.policy(), STILL), on_policy(batch, 0.25), KEY)
    unscored = np.arange(P * G)[:, None] == 1
    nearly = on_policy(batch, jnp.where(unscored, jnp.inf, 0.25))
    nearly = nearly.replace(reward=batch.reward.replace(valid=jnp.asarray(~unscored[:, 0])))
    _, alone = once(train.start(tiny.policy(), ONCE), nearly, KEY)
    for name in ("logp_gap/mean", "logp_gap/p99", "logp_gap/max"):
        np.testing.assert_allclose((metrics[name], alone[name]), 0.25, rtol=1e-4)


def on_policy(batch: Batch, off: Array | float) -> Batch:
    """Rows that were sampled by `tiny.policy()`, but for `off` nats."""
    score = jax.jit(partial(models.logprobs, temperature=1.0), static_argnums=1)
    logp = score(tiny.policy(), tiny.MODEL, batch.rollouts).logp
    return batch.replace(rollouts=batch.rollouts.replace(logp_full=logp - off), logp_old=logp)


# What is refused


def poison(batch: Batch, name: str, value: float) -> Batch:
    """`batch` with one bad number, at a token that counts."""
    assert all(weight[1, 0] > 0 for weight in batch.weight.values())
    return batch.replace(**{name: getattr(batch, name).at[1, 0].set(value)})


def spoilt(batch: Batch, case: str) -> Batch:
    rollouts = batch.rollouts
    crowded = rollouts.prompt.at[5].set(0)  # a fifth row of the first prompt, which has places for four
    cases = {
        "a nan advantage": poison(batch, "advantage", jnp.nan),
        "an infinite advantage": poison(batch, "advantage", jnp.inf),
        "a nan log-probability of the old policy": poison(batch, "logp_old", jnp.nan),
        "an infinite weight": batch.replace(weight=jax.tree.map(lambda w: w.at[1, 0].set(jnp.inf), batch.weight)),
        "a finite loss with a gradient past float32": batch.replace(
            advantage=jnp.full((P * G, T), -1e28), logp_old=jnp.full((P * G, T), -20.0)
        ),
        "a row without a place": batch.replace(rollouts=rollouts.replace(prompt=crowded)),
    }
    return cases[case]


BAD = (
    "a nan advantage",
    "an infinite advantage",
    "a nan log-probability of the old policy",
    "an infinite weight",
    "a finite loss with a gradient past float32",
    "a row without a place",
)


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_finite_reaches_neither_parameters_nor_optimiser(once, batch, state, case):
    bad = spoilt(batch, case)
    after, metrics = once(state, bad, KEY)
    assert_identical((after.params, after.opt_state), (state.params, state.opt_state))
    assert metrics["skipped"] == 1 and metrics["skipped/consecutive"] == 1
    assert np.isfinite(metrics["loss"]) == (case == "a finite loss with a gradient past float32")
    again, metrics = once(after, bad, KEY)
    assert again.skipped == 2 and metrics["skipped/consecutive"] == 2
    good, metrics = once(again, batch, KEY)
    assert good.skipped == 0 and metrics["skipped"] == 0 and metrics["skipped/consecutive"] == 0
    directly, _ = once(state, batch, KEY)
    assert_identical(good, directly)


def test_a_reward_that_is_not_a_number_is_refused_and_one_that_could_not_be_scored_is_not(once, batch, state):
    make = jax.jit(partial(tiny.batch_of, change=ONCE, reference=tiny.policy(9)))
    reward = tiny.rewards()
    outcome = reward.outcome.copy()
    outcome[1] = np.nan
    after, metrics = once(state, make(tiny.rows(), reward.replace(outcome=outcome)), KEY)
    assert_identical((after.params, after.opt_state), (state.params, state.opt_state))
    assert metrics["skipped"] == 1
    unscored = reward.replace(outcome=outcome, valid=np.arange(P * G) != 1)
    after, metrics = once(state, make(tiny.rows(), unscored), KEY)
    assert metrics["skipped"] == 0 and np.isfinite(metrics["loss"])
    assert updates_done(after) == updates_done(state) + 1


def test_parameters_that_are_not_finite_stay_as_they_are(once, batch, state):
    broken = state.replace(params={**state.params, "norm": state.params["norm"].at[0].set(jnp.inf)})
    after, metrics = once(broken, batch, KEY)
    assert_identical(after.replace(skipped=state.skipped), broken)
    assert metrics["skipped"] == 1


def test_only_the_updates_that_meet_the_bad_prompt_are_refused(still, batch):
    start = train.start(tiny.policy(), STILL)
    after, metrics = still(start, poison(batch, "advantage", jnp.nan), KEY)
    assert metrics["skipped"] == 2  # one of two minibatches in each of two epochs
    assert updates_done(after) == 2
    assert after.skipped == metrics["skipped/consecutive"] <= 2


def test_garbage_where_nothing_is_scored_is_not_refused(once, batch, state):
    outside = ~batch.mask
    rollouts = batch.rollouts.replace(logp_full=jnp.where(outside, jnp.nan, batch.rollouts.logp_full))
    garbage = batch.replace(
        rollouts=rollouts,
        advantage=jnp.where(outside, jnp.nan, batch.advantage),
        logp_old=jnp.where(outside, jnp.inf, batch.logp_old),
    )
    after, metrics = once(state, garbage, KEY)
    usual, expected = once(state, batch, KEY)
    assert_identical(after, usual)
    assert_identical(metrics, expected)


# Settings


@pytest.mark.parametrize(
    ("change", "prompts", "words"),
    [
        ({"minibatches": 3}, 8, "got 8, which 3 minibatches x 1 micro-batches do not divide; .* 6 and 9"),
        ({"minibatches": 2, "microbatches": 3}, 4, "the nearest valid numbers are 6:"),
        ({"epochs": 0}, 8, "train.epochs: got 0, allowed >= 1"),
        ({"microbatches": -1}, 8, "train.microbatches: got -1"),
        ({"group_size": 0}, 8, "train.group_size: got 0"),
    ],
)
def test_a_batch_that_cannot_be_cut_is_refused_with_the_nearest_that_can(change, prompts, words):
    with pytest.raises(ValueError, match=words):
        tiny.settings(PLAIN, **change).check(prompts)


def test_a_batch_that_can_be_cut_passes():
    tiny.settings(PLAIN, minibatches=2, microbatches=3, epochs=5).check(12)
