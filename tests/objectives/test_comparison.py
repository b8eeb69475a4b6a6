"""Gradients of variants compared, by hand: a bandit of three actions whose policy starts uniform.

With p = (1/3, 1/3, 1/3) the derivative of log p_a by the logits is e_a - p. Two prompts are answered twice each, by the
actions 0, 1 and 2, 1. Advantages of a prompt sum to 0, so p cancels: with weights 1/4 and advantages (a, -a), (b, -b)

    g_0 = -1/4 a (e_0 - e_1),    g_1 = -1/4 b (e_2 - e_1),    g = g_0 + g_1 = (-a, a + b, -b) / 4.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import objectives as o
from grpo_jax import train
from grpo_jax.advantages import group_centered, group_standardized
from grpo_jax.groups import by_prompt, drop_tied
from grpo_jax.objectives import Part, Recipe, ppo_clip, reinforce, sequence_mean_token_sum
from grpo_jax.types import Batch, Collected, Params, Prompts, Reward, Rollouts, TokenStats

ACTIONS, REWARDS = (0, 1, 2, 1), (1.0, 0.0, 3.0, 0.0)
UNIFORM: Params = {"logits": jnp.zeros(3)}
RAW = Recipe((Part(sequence_mean_token_sum, reinforce),), group_centered, by_prompt)
UNIT = dataclasses.replace(RAW, advantage=partial(group_standardized, std="population", eps=0.0))
CLIPPED = dataclasses.replace(RAW, parts=(Part(sequence_mean_token_sum, ppo_clip),))
VARIANTS = {"raw": RAW, "unit": UNIT, "clipped": CLIPPED, "dropped": dataclasses.replace(RAW, grouping=drop_tied)}
THREE = ("raw", "unit", "clipped")
quick = partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)
"""For programs that are compiled once and run a few times on next to nothing."""


def bandit(params: Params, rollouts: Rollouts) -> TokenStats:
    """A softmax over three actions, whatever the prompt."""
    logp = jax.nn.log_softmax(params["logits"])
    entropy = jnp.broadcast_to(-jnp.sum(jnp.exp(logp) * logp), rollouts.tokens.shape)
    return TokenStats(logp=logp[rollouts.tokens], entropy=entropy)


def record(kind: Any, **fields: Any) -> Any:
    """A record of numpy arrays."""
    return kind(**fields)


def collected(
    actions: tuple = ACTIONS,
    rewards: tuple = REWARDS,
    *,
    prompt: tuple = (0, 0, 1, 1),
    prompts: int = 2,
    ratio: tuple | None = None,
    valid: tuple | None = None,
) -> Collected:
    """Rows of one token, sampled where the uniform policy's ratios are `ratio`."""
    rows, index = len(actions), np.arange(prompts, dtype=np.int32)
    logp = (
        np.full((rows, 1), -np.log(3.0), np.float32) - np.log(np.asarray(ratio or (1.0,) * rows, np.float32))[:, None]
    )
    ones = np.ones(rows, np.int32)
    rollouts = record(
        Rollouts,
        prompts=record(Prompts, tokens=index[:, None], length=np.ones_like(index), draw=index, row=index),
        prompt=np.asarray(prompt, np.int32),
        sample=np.arange(rows, dtype=np.int32),
        tokens=np.asarray(actions, np.int32)[:, None],
        length=ones,
        stopped=ones > 0,
        mask=np.ones((rows, 1), bool),
        logp=logp,
        logp_full=logp,
        version=0 * ones,
    )
    rollouts = jax.tree.map(jnp.asarray, rollouts)
    scored = jnp.asarray(valid or (True,) * rows)
    reward = Reward(outcome=jnp.asarray(rewards, jnp.float32), valid=scored)
    return Collected(rollouts=rollouts, reward=reward, logp_old=rollouts.logp_full)


def batches(recipes: Mapping[str, Recipe], given: Collected) -> dict[str, Batch]:
    """The batch of every recipe, made as training makes it."""
    made = {}
    for name, recipe in recipes.items():
        labels, memory = train.label(given, {}, recipe)
        values, _ = train.advantage(given, labels, memory, recipe)
        made[name] = train.make_batch(given, labels, values, recipe, o.initial_values(recipe.coefficients))
    return made


@cache
def program(names: tuple[str, ...], **how) -> Callable:
    """Rows -> the variants of these `names` compared on them, and their gradients."""
    recipes = {name: VARIANTS[name] for name in names}

    def call(given: Collected) -> tuple[o.Comparison, Params]:
        made = batches(recipes, given)
        return o.compare(recipes, made, bandit, UNIFORM, **how), o.gradients(recipes, made, bandit, UNIFORM, **how)

    return quick(call)


def compared(names: tuple[str, ...] = THREE, given: Collected | None = None, **how) -> o.Comparison:
    return program(names, **how)(given or collected())[0]


@cache
def category_program(names: tuple[str, ...]) -> Callable:
    """(rows, category of each prompt) -> how the categories pull."""

    def call(given: Collected, category) -> o.Conflict:
        batch = batches({"raw": RAW}, given)["raw"]
        return o.conflicts(RAW, batch, bandit, UNIFORM, category=category, names=names)

    return quick(call)


def test_norm_cosine_variance_and_signal_by_hand():
    got = compared()
    # raw: advantages +-1/2 and +-3/2; unit: +-1 and +-1; clipping does nothing where every ratio is 1.
    g = {"raw": np.asarray([-0.5, 2.0, -1.5]) / 4, "unit": np.asarray([-1.0, 2.0, -1.0]) / 4}
    g["clipped"] = g["raw"]
    parts = {"raw": (0.5, 1.5), "unit": (1.0, 1.0), "clipped": (0.5, 1.5)}
    for k, name in enumerate(("raw", "unit", "clipped")):
        square = g[name] @ g[name]
        each = [2 * (a / 4) ** 2 for a in parts[name]]  # |g_m|^2: two entries a / 4
        variance = 2 / 1 * (sum(each) - square / 2)  # M = 2
        np.testing.assert_allclose(got.norm[k], np.sqrt(square), rtol=1e-5)
        np.testing.assert_allclose(got.variance[k], variance, rtol=1e-5)
        np.testing.assert_allclose(got.snr[k], (square - variance) / variance, rtol=1e-4)
        for j, other in enumerate(("raw", "unit", "clipped")):
            cosine = g[name] @ g[other] / np.sqrt(square * (g[other] @ g[other]))
            np.testing.assert_allclose(got.cosine[k, j], cosine, rtol=1e-5)
    np.testing.assert_allclose(got.variance, [0.21875, 0.125, 0.21875], rtol=1e-5)  # the same, worked out
    np.testing.assert_allclose(got.cosine[0, 1], 0.375 / np.sqrt(0.40625 * 0.375), rtol=1e-5)
    assert got.names == ("raw", "unit", "clipped")


def test_the_gradients_themselves_by_hand():
    got = program(THREE)(collected())[1]["logits"]
    np.testing.assert_allclose(got, np.asarray([[-0.5, 2.0, -1.5], [-1, 2, -1], [-0.5, 2.0, -1.5]]) / 4, atol=1e-7)


def test_effective_sizes_by_hand():
    got = compared()
    # |advantage| of the rows: 1/2, 1/2, 3/2, 3/2, so (sum)^2 / (4 sum of squares) = 16 / 20; unit: all the same.
    np.testing.assert_allclose(got.ess_advantage, [16 / 20, 1.0, 16 / 20], rtol=1e-5)
    np.testing.assert_allclose(got.ess_gradient, [16 / 20, 1.0, 16 / 20], rtol=1e-5)
    np.testing.assert_allclose(got.ess_ratio, 1.0, rtol=1e-5)
    np.testing.assert_array_equal(np.isnan(got.clipped), [True, True, False])  # two recipes have no bounds
    assert got.clipped[2] == 0 and not got.silent.any()


def test_away_from_the_sampler_ratios_weigh_and_clipping_acts():
    """Ratios 2, 1, 1/2, 1 and advantages 1/2, -1/2, 3/2, -3/2: only the first is past a bound on its side."""
    got = compared(given=collected(ratio=(2.0, 1.0, 0.5, 1.0)))
    np.testing.assert_allclose(got.ess_ratio, (4.5**2) / (4 * 6.25), rtol=1e-5)
    assert got.clipped[2] == 0.25 and got.silent.tolist() == [0.0, 0.0, 0.25]
    # -1/4 sum A r (e_a - p) over rows 1 to 3, where A r = -1/2, 3/4, -3/2
    p, weighted = np.full(3, 1 / 3), {1: -0.5 - 1.5, 2: 0.75}
    g = -sum(x * (np.eye(3)[a] - p) for a, x in weighted.items()) / 4
    np.testing.assert_allclose(got.norm[2], np.linalg.norm(g), rtol=1e-5)
    weights = np.asarray([0.0, 0.5, 0.75, 1.5])
    np.testing.assert_allclose(got.ess_gradient[2], weights.sum() ** 2 / (4 * (weights**2).sum()), rtol=1e-5)


def test_a_prompt_that_teaches_nothing_is_silent_and_still_a_draw():
    """The second prompt is tied: dropping it changes the denominator (1/2 for 1/4) and so the norm, no direction."""
    got = compared(("raw", "dropped"), collected(rewards=(1.0, 0.0, 2.0, 2.0)))
    np.testing.assert_allclose(got.cosine, np.ones((2, 2)), rtol=1e-6)
    np.testing.assert_allclose(got.norm, [np.sqrt(2) / 8, np.sqrt(2) / 4], rtol=1e-5)
    np.testing.assert_allclose(got.silent, 0.5)
    np.testing.assert_allclose(got.ess_advantage, 0.5, rtol=1e-6)
    # One of M = 2 prompts is all of the gradient: variance = 2 (|g|^2 - |g|^2 / 2) = |g|^2, so no signal is proved.
    np.testing.assert_allclose(got.variance, got.norm**2, rtol=1e-5)
    np.testing.assert_allclose(got.snr, 0.0, atol=1e-5)


def test_no_gradient_and_a_single_prompt_are_told_apart_from_numbers():
    flat = compared(given=collected(rewards=(1.0, 1.0, 2.0, 2.0)))
    assert flat.norm[0] == flat.cosine[0, 0] == flat.variance[0] == 0 and np.isnan(flat.snr[0]) and flat.silent[0] == 1
    one = compared(given=collected(valid=(True, True, False, False)))  # a prompt without a scored row is no draw
    assert one.norm[0] > 0 and np.isnan(one.variance[0]) and np.isnan(one.snr[0])


# What must not change a number


def rows(seed: int = 0, prompts: int = 5, group: int = 3) -> Collected:
    """Bandit rows with rewards of no pattern, away from the policy that sampled."""
    rng = np.random.default_rng(seed)
    count = prompts * group
    return collected(
        tuple(rng.integers(0, 3, count).tolist()),
        tuple(rng.integers(0, 4, count).tolist()),
        prompt=tuple(np.repeat(np.arange(prompts), group).tolist()),
        prompts=prompts,
        ratio=tuple(rng.uniform(0.6, 1.6, count).tolist()),
    )


def assert_equal(a: o.Comparison, b: o.Comparison) -> None:
    for name, value in vars(a).items():
        if name != "names":
            np.testing.assert_allclose(getattr(b, name), value, rtol=1e-4, atol=1e-6, err_msg=name)


def taken(given: Collected, index: np.ndarray) -> Collected:
    rollouts = given.rollouts.replace(prompts=None)
    picked, reward, old = jax.tree.map(lambda x: x[index], (rollouts, given.reward, given.logp_old))
    return given.replace(rollouts=picked.replace(prompts=given.rollouts.prompts), reward=reward, logp_old=old)


def test_neither_order_nor_ragged_groups_nor_prompts_side_by_side_change_a_number():
    given = taken(rows(), np.asarray([0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 12, 13, 14]))  # two prompts lack a row
    mixed = taken(given, np.random.default_rng(1).permutation(13))
    usual, pulled = program(THREE, group_size=3)(given)
    for same in (program(THREE, group_size=3)(mixed), program(THREE, group_size=3, block=3)(mixed)):
        assert_equal(usual, same[0])
        np.testing.assert_allclose(same[1]["logits"], pulled["logits"], rtol=1e-4, atol=1e-6)

    @quick
    def plain(given: Collected) -> list:
        """The gradient of each loss as a whole, without any of what is tested."""
        made, losses = batches({name: VARIANTS[name] for name in THREE}, given), []
        for name in THREE:

            def whole(params: Params, name=name):
                return o.loss(VARIANTS[name].parts, bandit(params, given.rollouts), made[name])

            losses.append(jax.grad(whole)(UNIFORM)["logits"])
        return losses

    np.testing.assert_allclose(pulled["logits"], np.stack(plain(given)), rtol=1e-4, atol=1e-7)


def test_a_row_that_finds_no_place_makes_the_result_nan():
    crowded = collected(prompt=(0, 0, 0, 1))
    assert np.isnan(compared(given=crowded).norm).all()


def test_one_program_for_all_recipes_and_for_other_numbers():
    """The forward pass is traced twice however many recipes there are, and other rollouts are no reason to compile."""
    counts = []

    def counting(params: Params, rollouts: Rollouts) -> TokenStats:
        counts.append(rollouts.tokens.shape)
        return bandit(params, rollouts)

    able = {name: o.RECIPES[name] for name in ("dr_grpo", "dapo", "kl_cov")}
    call, made = quick(partial(o.compare, able, forward=counting)), quick(partial(batches, able))
    for seed in (0, 1):
        found = call(made(rows(seed)), params=UNIFORM)
        assert np.isfinite(found.norm).all() and found.cosine.shape == (len(able), len(able))
    assert counts == [(15, 1), (3, 1)]


# Categories


def test_conflict_by_hand():
    """Prompts reward 0 over 1 and 1 over 2: g_0 = (-1, 1, 0) / 8 and g_1 = 3 (0, -1, 1) / 8, so they are opposed."""
    given = collected(rewards=(1.0, 0.0, 0.0, 3.0))
    got = category_program(("b", "a", "nobody"))(given, np.asarray([1, 0], np.int32))
    np.testing.assert_allclose(got.norm, [3 * np.sqrt(2) / 8, np.sqrt(2) / 8, 0.0], rtol=1e-5)
    np.testing.assert_allclose(got.cosine, [[1, -0.5, 0], [-0.5, 1, 0], [0, 0, 0]], rtol=1e-5)
    assert got.negative == 1.0  # of the one pair of categories that have a gradient
    np.testing.assert_allclose(got.opposed, [[0, 1, 0], [1, 0, 0], [0, 0, 0]])
    # g = (-1, -2, 3) / 8: <g_1, g> = (6 + 9) / 64, <g_0, g> = (1 - 2) / 64, |g|^2 = 14 / 64
    np.testing.assert_allclose(got.share, [15 / 14, -1 / 14, 0], rtol=1e-4)
    assert got.prompts.tolist() == got.telling.tolist() == [1, 1, 0]


def test_pairs_of_prompts_are_counted_within_a_category_too_and_silent_ones_are_not():
    given = collected(
        (0, 1, 1, 0, 2, 1, 0, 2),
        (1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 5.0, 5.0),  # prompts want 0 over 1, 1 over 0, 2 over 1; the last is tied
        prompt=(0, 0, 1, 1, 2, 2, 3, 3),
        prompts=4,
    )
    got = category_program(("x", "y"))(given, np.asarray([0, 0, 1, 1], np.int32))
    # Within x the prompts are opposed, in both orders; prompt 2 agrees with 0 on action 1, and is opposed to 1.
    np.testing.assert_allclose(got.opposed, [[1, 0.5], [0.5, 0]])
    assert got.prompts.tolist() == [2, 2] and got.telling.tolist() == [2, 1]
    np.testing.assert_allclose(got.norm[0], 0.0, atol=1e-7)  # they cancel


# Refusals


def test_what_cannot_be_compared_is_refused_by_name():
    recipes = {name: VARIANTS[name] for name in ("raw", "clipped")}
    made = quick(partial(batches, recipes))(collected())
    with pytest.raises(ValueError, match=r"batches: got raw, allowed is one for every recipe.* raw, clipped"):
        o.compare(recipes, {"raw": made["raw"]}, bandit, UNIFORM)
    with pytest.raises(ValueError, match="batches: got none, allowed"):
        o.compare({}, {}, bandit, UNIFORM)
    other = {**made, "raw": made["raw"].replace(mask=jnp.ones((15, 1), bool))}
    with pytest.raises(ValueError, match=r"batches: got sizes .* allowed is one"):
        o.compare(recipes, other, bandit, UNIFORM)
    for recipe, words in (
        (o.grpo_exact_kl(), r"kl_full, .*let forward ask for kl_full"),
        (o.grpo(), r"logp_ref, .*of a reference"),
    ):
        with pytest.raises(ValueError, match=rf"recipes: got 'it', which reads {words}"):
            o.compare({"it": recipe}, {"it": made["raw"]}, bandit, UNIFORM)
    with pytest.raises(ValueError, match="group_size: got None for 13 rows of 5 prompts"):
        compared(given=taken(rows(), np.arange(13)))
    with pytest.raises(ValueError, match="block: got 0, allowed >= 1"):
        compared(block=0)
    with pytest.raises(ValueError, match="names: got none"):
        o.conflicts(RAW, made["raw"], bandit, UNIFORM, category=jnp.zeros(2, jnp.int32), names=())


def test_what_forward_has_to_give_is_read_off_the_recipes():
    assert o.wanted({"grpo": o.RECIPES["grpo"]}) == ()
    assert o.wanted({"a": o.grpo_exact_kl(), "b": o.RECIPES["entropy_bonus"]}) == ("entropy", "kl_full")
