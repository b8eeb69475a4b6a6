"""Every rule is proved by gradients in float64 on random batches, and met by a case in which its condition fails."""

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import objectives as o
from grpo_jax.ablation.coincide import Setting, canonical, claims, effective
from grpo_jax.advantages import batch_centered, group_centered, group_leave_one_out, group_standardized
from grpo_jax.experiment import Experiment
from grpo_jax.groups import by_prompt, drop_tied
from grpo_jax.objectives import Part, Recipe
from grpo_jax.objectives.control import Coefficient, doubling, following
from grpo_jax.train import make_batch
from grpo_jax.types import Array, Batch, Collected, Prompts, Reward, Rollouts, TokenStats
from grpo_jax.updates import SGD, Optimizer, build
from tests.system import small_run

P, G, T = 4, 3, 5
SETTING = Setting(group_size=G, rows=P * G, updates=4, gap=1e-3)
ONCE = dataclasses.replace(SETTING, updates=1)


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    """Differences of rounding are then far below those of mathematics."""
    with jax.enable_x64(True):
        yield


def rows(seed: int, *, unscored: bool = False, moved: bool = True) -> tuple[TokenStats, Collected]:
    """P prompts with G rows of random length; one group is tied. `moved`: the policy is not that of the sampler."""
    rng = np.random.default_rng(seed)
    length = rng.integers(1, T + 1, P * G)
    mask = np.arange(T)[None, :] < length[:, None]
    logp = -rng.uniform(0.05, 3.0, (P * G, T))
    index = jnp.arange(P, dtype=jnp.int32)
    old = logp + (rng.normal(0, 0.4, logp.shape) if moved else 0.0)
    rollouts = Rollouts(
        prompts=Prompts(tokens=index[:, None], length=jnp.ones_like(index), draw=index, row=index),
        prompt=jnp.repeat(index, G),
        sample=jnp.tile(jnp.arange(G, dtype=jnp.int32), P),
        tokens=jnp.zeros(mask.shape, jnp.int32),
        length=jnp.asarray(length, jnp.int32),
        stopped=jnp.ones(P * G, bool),
        mask=jnp.asarray(mask),
        logp=jnp.asarray(old),
        logp_full=jnp.asarray(old),
        version=jnp.zeros(P * G, jnp.int32),
    )
    outcome = rng.normal(size=P * G)
    outcome[:G] = 0.5
    valid = np.ones(P * G, bool)
    valid[-1] = not unscored
    reward = Reward(outcome=jnp.asarray(outcome), valid=jnp.asarray(valid))
    reference = jnp.asarray(logp + rng.normal(0, 0.4, logp.shape))
    collected = Collected(rollouts=rollouts, reward=reward, logp_old=rollouts.logp_full, logp_ref=reference)
    return TokenStats(logp=jnp.asarray(logp), entropy=jnp.asarray(rng.uniform(0.1, 2.0, logp.shape))), collected


def gradient(recipe: Recipe, stats: TokenStats, collected: Collected) -> np.ndarray:
    """Derivative of the loss by log-probability and entropy of every token: by any parameter it is linear in these."""
    labels, memory = recipe.grouping(collected, {})
    advantage, _ = recipe.advantage(collected, labels, memory)
    batch = make_batch(collected, labels, advantage, recipe, {"beta": jnp.asarray(0.3)})

    def loss(logp: Array, entropy: Array) -> Array:
        return o.loss(recipe.parts, stats.replace(logp=logp, entropy=entropy), batch)

    return np.stack(jax.grad(loss, argnums=(0, 1))(stats.logp, stats.entropy))


def recipe(
    term: o.Term = o.ppo_clip,
    aggregation: o.Aggregation = o.sequence_mean_token_mean,
    advantage: Any = group_centered,
    grouping: Any = by_prompt,
    *more: Part,
    prepare: tuple = (),
) -> Recipe:
    """A recipe of one part, and perhaps more."""
    return Recipe((Part(aggregation, term), *more), advantage, grouping, prepare)


def agree(a: Recipe, b: Recipe, setting: Setting = SETTING) -> float | None:
    """Gradient of `b` over that of `a` by the forms of the two; None where they claim nothing."""
    one, two = canonical(a, setting), canonical(b, setting)
    same = (one.atoms, one.advantage, one.grouping, one.prepare) == (
        two.atoms,
        two.advantage,
        two.grouping,
        two.prepare,
    )
    return two.scale / one.scale if same else None


def mine(stats: TokenStats, batch: Batch) -> Array:
    """A term of a user: no form knows that it is proportional to the advantage."""
    return -batch.advantage * jnp.tanh(stats.logp)


def squared(stats: TokenStats, batch: Batch) -> Array:
    """A term that is not proportional to the advantage."""
    return -(batch.advantage + jnp.square(batch.advantage)) * stats.logp


def unchanged(stats: TokenStats, batch: Batch, key: Array) -> Batch:
    """A prepare step, of which nothing is known either."""
    del stats, key
    return batch


KL = partial(o.kl_penalty, estimator=o.k3)
LOO, STANDARD = group_leave_one_out, group_standardized
SUM = o.sequence_mean_token_sum
NONE = partial(o.fixed_length, constant=8.0, rows="none")

# name: two recipes, whether with one update a batch, and the factor between their gradients by hand
PROVED: dict[str, tuple[Recipe, Recipe, bool, float]] = {
    "leave one out": (recipe(), recipe(advantage=LOO), False, G / (G - 1)),
    "leave one out among undropped groups": (
        recipe(grouping=drop_tied),
        recipe(advantage=LOO, grouping=drop_tied),
        False,
        G / (G - 1),
    ),
    "leave one out in two parts": (
        recipe(o.reinforce, o.token_mean, group_centered, by_prompt, Part(SUM, o.ppo_clip)),
        recipe(o.reinforce, o.token_mean, LOO, by_prompt, Part(SUM, o.ppo_clip)),
        False,
        G / (G - 1),
    ),
    "leave one out, reweighted": (
        recipe(o.reweight(o.reinforce, o.over_old)),
        recipe(o.reweight(o.reinforce, o.over_old), advantage=LOO),
        False,
        G / (G - 1),
    ),
    "leave one out beside a penalty that is scaled as well": (
        recipe(o.add(o.ppo_clip, o.scale(KL, by=0.1))),
        recipe(o.add(o.ppo_clip, o.scale(KL, by=0.1 * G / (G - 1))), advantage=LOO),
        False,
        G / (G - 1),
    ),
    "standardised by nothing": (recipe(), recipe(advantage=partial(STANDARD, std="none")), False, 1.0),
    "fixed length and sum of tokens": (
        recipe(o.reinforce, SUM),
        recipe(o.reinforce, partial(o.fixed_length, constant=8.0)),
        False,
        1 / 8,
    ),
    "two fixed lengths under a term of the user": (
        recipe(mine, partial(o.fixed_length, constant=8.0)),
        recipe(mine, partial(o.fixed_length, constant=2.0)),
        False,
        4.0,
    ),
    "fixed length of rows that have tokens": (
        recipe(aggregation=partial(SUM, empty="skip")),
        recipe(aggregation=partial(o.fixed_length, constant=4.0, rows="nonempty")),
        False,
        1 / 4,
    ),
    "sum over rows": (recipe(aggregation=SUM), recipe(aggregation=NONE), False, P * G / 8),
    "tied groups with no denominator": (
        recipe(aggregation=NONE, advantage=STANDARD),
        recipe(aggregation=NONE, advantage=STANDARD, grouping=drop_tied),
        False,
        1.0,
    ),
    "a scaled term": (recipe(), recipe(o.scale(o.ppo_clip, by=3.0)), False, 3.0),
    "a coefficient of the run": (
        recipe(o.scale(o.ppo_clip, by="beta")),
        recipe(o.scale(o.ppo_clip, by="beta"), advantage=LOO),
        False,
        G / (G - 1),
    ),
    "a sum written in two ways": (
        recipe(o.add(o.ppo_clip, o.negative_entropy)),
        Recipe(
            (Part(o.sequence_mean_token_mean, o.negative_entropy), Part(o.sequence_mean_token_mean, o.ppo_clip)),
            group_centered,
            by_prompt,
        ),
        False,
        1.0,
    ),
    "a penalty of weight 0": (recipe(), recipe(o.add(o.ppo_clip, o.scale(KL, by=0.0))), False, 1.0),
    "one update: clipping": (recipe(o.reinforce), recipe(), True, 1.0),
    "one update: bounds": (
        recipe(partial(o.ppo_clip, low=0.1, high=None)),
        recipe(partial(o.ppo_clip, dual=3.0)),
        True,
        1.0,
    ),
    "one update: all at once": (
        o.dr_grpo(constant=8.0),
        o.rloo(),
        True,
        8 * G / (G - 1),
    ),
}


@pytest.mark.parametrize("name", PROVED)
def test_forms_that_agree_belong_to_proportional_gradients(name: str):
    a, b, once, factor = PROVED[name]
    claimed = agree(a, b, ONCE if once else SETTING)
    assert claimed == pytest.approx(factor, rel=1e-8)
    for seed in range(2):
        stats, collected = rows(seed, moved=not once)
        one, two = gradient(a, stats, collected), gradient(b, stats, collected)
        assert np.abs(one).max() > 1e-3
        np.testing.assert_allclose(two, factor * one, rtol=1e-10, atol=1e-13)


# name: two recipes whose gradients are not proportional, with one update a batch or several
REFUTED: dict[str, tuple[Recipe, Recipe, bool]] = {
    "leave one out beside a penalty": (
        recipe(o.add(o.ppo_clip, o.scale(KL, by=0.1))),
        recipe(o.add(o.ppo_clip, o.scale(KL, by=0.1)), advantage=LOO),
        False,
    ),
    "leave one out, divided by a deviation": (
        recipe(advantage=STANDARD),
        recipe(advantage=partial(LOO, std="sample")),
        False,
    ),
    "the whole batch as one group": (recipe(), recipe(advantage=batch_centered), False),
    "dropping rows that are counted": (
        recipe(aggregation=o.token_mean),
        recipe(aggregation=o.token_mean, grouping=drop_tied),
        False,
    ),
    "dropping rows from the mean of the batch": (
        recipe(aggregation=NONE, advantage=batch_centered),
        recipe(aggregation=NONE, advantage=batch_centered, grouping=drop_tied),
        False,
    ),
    "dropping rows that have a penalty": (
        recipe(o.add(o.reinforce, KL), NONE),
        recipe(o.add(o.reinforce, KL), NONE, grouping=drop_tied),
        False,
    ),
    "several updates: clipping": (recipe(o.reinforce), recipe(), False),
    "several updates: bounds": (recipe(partial(o.ppo_clip, high=0.1)), recipe(partial(o.ppo_clip, high=0.3)), False),
    "token mean": (recipe(aggregation=o.token_mean), recipe(aggregation=SUM), False),
    "a term that is not proportional to the advantage": (recipe(squared), recipe(squared, advantage=LOO), False),
    "a penalty with a weight": (recipe(), recipe(o.add(o.ppo_clip, o.scale(KL, by=0.1))), False),
}


@pytest.mark.parametrize("name", REFUTED)
def test_where_a_condition_fails_gradients_are_not_proportional_and_nothing_is_claimed(name: str):
    a, b, once = REFUTED[name]
    assert agree(a, b, ONCE if once else SETTING) is None
    batches = [rows(seed, moved=not once) for seed in range(3)]
    one, two = (np.stack([gradient(r, *batch) for batch in batches]) for r in (a, b))
    nearest = np.vdot(one, two) / np.vdot(one, one)  # one factor for all batches, or it is no constant
    assert np.abs(two - nearest * one).max() > 1e-4


FOLLOWING = Coefficient(
    "beta", 0.1, partial(following, name="beta", measure="kl/ref", rule=partial(doubling, target=0.1))
)
UNDECIDED = {
    "a term of the user may not be proportional to the advantage": (recipe(mine), recipe(mine, advantage=LOO), SETTING),
    "a prepare step may read advantages": (
        recipe(prepare=(unchanged,)),
        recipe(advantage=LOO, prepare=(unchanged,)),
        SETTING,
    ),
    "a prepare step may write ratios": (
        recipe(o.reinforce, prepare=(unchanged,)),
        recipe(prepare=(unchanged,)),
        ONCE,
    ),
    "groups of one have no others": (recipe(), recipe(advantage=LOO), dataclasses.replace(SETTING, group_size=1)),
    "a ratio of whole rows has another gradient": (
        recipe(o.reinforce),
        recipe(partial(o.ppo_clip, ratio=o.sequence_log_ratio)),
        ONCE,
    ),
    "coefficients may follow anything": (
        dataclasses.replace(recipe(), coefficients=(FOLLOWING,)),
        dataclasses.replace(recipe(advantage=LOO), coefficients=(FOLLOWING,)),
        SETTING,
    ),
    "a bound that is absolute": (recipe(o.reinforce), recipe(partial(o.ppo_clip, low=1.0, bounds="absolute")), ONCE),
    "rollouts of another policy have ratios": (
        recipe(o.reinforce),
        recipe(),
        dataclasses.replace(ONCE, own_rollouts=False),
    ),
    "a gap as wide as the bounds": (recipe(o.reinforce), recipe(), dataclasses.replace(ONCE, gap=0.3)),
    "a bound at the ratio itself": (recipe(o.reinforce), recipe(partial(o.ppo_clip, high=0.0)), ONCE),
    "0 times what may be infinite": (
        recipe(),
        recipe(o.add(o.ppo_clip, o.scale(partial(KL, clamp_log_ratio=None), by=0.0))),
        SETTING,
    ),
}


@pytest.mark.parametrize("name", UNDECIDED)
def test_in_doubt_nothing_is_claimed(name: str):
    a, b, setting = UNDECIDED[name]
    assert agree(a, b, setting) is None
    assert agree(a, a, setting) == 1.0


def test_leave_one_out_is_no_constant_factor_where_a_row_could_not_be_scored():
    # The condition that the sentence states: the group of the lost row has 2 rows left, 2 / 1 in place of 3 / 2.
    stats, collected = rows(0, unscored=True)
    one, two = gradient(recipe(), stats, collected), gradient(recipe(advantage=LOO), stats, collected)
    np.testing.assert_allclose(two[:, :-G], 1.5 * one[:, :-G], rtol=1e-12)
    np.testing.assert_allclose(two[:, -G:], 2.0 * one[:, -G:], rtol=1e-12)


# The optimiser


def steps(settings: Optimizer | SGD, factor: float) -> np.ndarray:
    """What four gradients times `factor` make of a parameter."""
    rng, optimizer = np.random.default_rng(0), build(settings, 4)
    params = jnp.zeros(5)
    state = optimizer.init(params)
    for _ in range(4):
        step, state = optimizer.update(factor * jnp.asarray(rng.normal(size=5)), state, params)
        params = params + jax.tree.leaves(step)[0]
    return np.asarray(params)


OPTIMIZERS = {
    "adam": (Optimizer(clip_norm=0.0, learning_rate=0.1), Optimizer(clip_norm=0.0, learning_rate=0.1), True),
    "adam, decay": (
        Optimizer(clip_norm=0.0, learning_rate=0.1, weight_decay=0.5),
        Optimizer(clip_norm=0.0, learning_rate=0.1, weight_decay=0.5),
        True,
    ),
    "adam, another rate": (
        Optimizer(clip_norm=0.0, learning_rate=0.1),
        Optimizer(clip_norm=0.0, learning_rate=0.1 / 4),
        False,
    ),
    "adam, clipped": (Optimizer(clip_norm=2.0, learning_rate=0.1), Optimizer(clip_norm=2.0, learning_rate=0.1), False),
    "adam, clipped in proportion": (
        Optimizer(clip_norm=2.0, learning_rate=0.1),
        Optimizer(clip_norm=8.0, learning_rate=0.1),
        True,
    ),
    "sgd": (SGD(clip_norm=0.0), SGD(clip_norm=0.0), False),
    "sgd, rate in proportion": (
        SGD(clip_norm=0.0, momentum=0.9, learning_rate=0.4),
        SGD(clip_norm=0.0, momentum=0.9, learning_rate=0.1),
        True,
    ),
    "sgd, both in proportion": (
        SGD(clip_norm=2.0, momentum=0.9, learning_rate=0.4),
        SGD(clip_norm=8.0, momentum=0.9, learning_rate=0.1),
        True,
    ),
    "sgd, another momentum": (
        SGD(learning_rate=0.4, clip_norm=0.0),
        SGD(learning_rate=0.1, momentum=0.1, clip_norm=0.0),
        False,
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimiser_makes_up_for_a_factor_or_does_not(name: str):
    one, two, same = OPTIMIZERS[name]
    form = canonical(recipe(), SETTING)
    larger = dataclasses.replace(form, scale=4 * form.scale)
    assert (effective(one, form) == effective(two, larger)) == same
    assert np.allclose(steps(one, 1.0), steps(two, 4.0), rtol=1e-6) == same


# The sentences


def variant(recipe: Recipe, **changes: Any) -> Experiment:
    return dataclasses.replace(small_run.PLAIN, recipe=recipe, **changes)


ADAM = Optimizer(learning_rate=1e-3, clip_norm=0.0)


def test_leave_one_out_and_mean_only_should_coincide_under_adam_and_not_under_sgd():
    under = {"mean": variant(recipe(), optimizer=ADAM), "loo": variant(recipe(advantage=LOO), optimizer=ADAM)}
    (claim,) = claims(under)
    assert claim.names == ("mean", "loo") and claim.closeness == "up to Adam's epsilon (1e-08)"
    assert claim.sentence() == (
        "mean and loo should coincide up to Adam's epsilon (1e-08): leave-one-out advantages are the deviations from"
        " the group's mean times G / (G - 1) = 4/3, where every completion could be scored; their gradients differ by"
        " the constant factor 1.33333; AdamW without clipping of the gradient's norm cancels it."
    )
    descent = {name: dataclasses.replace(e, optimizer=SGD(clip_norm=0.0)) for name, e in under.items()}
    assert claims(descent) == []
    clipped = {name: dataclasses.replace(e, optimizer=Optimizer(learning_rate=1e-3)) for name, e in under.items()}
    assert claims(clipped) == []
    descent["loo"] = dataclasses.replace(descent["loo"], optimizer=SGD(learning_rate=1e-2 * 3 / 4, clip_norm=0.0))
    (claim,) = claims(descent)
    assert claim.closeness == "up to rounding" and "learning rates make up for it" in claim.sentence()


def test_the_same_recipe_twice_coincides_exactly_and_another_setting_ends_it():
    twice = {"a": variant(recipe()), "b": variant(recipe(), name="other"), "c": variant(recipe(), seed=1)}
    (claim,) = claims(twice)
    assert (claim.names, claim.closeness) == (("a", "b"), "exactly")
    assert claim.reasons == ("their recipes, optimisers and settings are the same",)


def test_a_reason_that_all_share_is_left_out_and_three_variants_make_one_claim():
    long = partial(o.fixed_length, constant=8.0)
    three = {
        "a": variant(recipe(aggregation=long), optimizer=ADAM),
        "b": variant(recipe(aggregation=long, advantage=LOO), optimizer=ADAM),
        "c": variant(recipe(aggregation=long, advantage=partial(STANDARD, std="none")), optimizer=ADAM),
        "d": variant(recipe(advantage=STANDARD), optimizer=ADAM),
    }
    (claim,) = claims(three)
    assert claim.names == ("a", "b", "c") and "fixed_length" not in claim.sentence()
    assert claim.sentence().startswith("a, b and c should coincide") and len(claim.reasons) == 4


def test_replayed_rollouts_leave_ratios_where_their_own_would_not():
    train = dataclasses.replace(small_run.PLAIN.train, minibatches=1)
    once = {"ppo": variant(recipe(), train=train), "reinforce": variant(recipe(o.reinforce), train=train)}
    (claim,) = claims(once)
    assert claim.closeness == "up to rounding" and "every ratio is 1" in claim.sentence()
    assert claims(once, own_rollouts=False) == []
