"""Advantages: hand numbers, a float64 twin, and conventions. Their laws are held in `tests/testing`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import advantages
from grpo_jax.advantages import centered, leave_one_out, standardized
from grpo_jax.testing.rows import tiny_collected
from grpo_jax.types import Collected, Prompts, Reward, Rollouts

OF_ROWS = (
    "group_standardized group_centered group_leave_one_out batch_centered outcome opo gpg maxrl passk"
    " passk_max_minus_second"
).split()
"""Entries that read outcomes and give every token of a row one number."""
GROUP = [0, 1, 0, 2, 1, 0, 1, -1, 3, 3]
REWARD = [0.1, 0.7, 0.4, 2.0, 0.7, 1.0, -3.0, np.nan, 0.95, 0.95]
VALID = [True] * 6 + [False, True, True, True]


def rows_of(reward, group, valid=None) -> dict:
    number = len(reward)
    return {
        "reward": jnp.asarray(reward, jnp.float32),
        "group": jnp.asarray(group, jnp.int32),
        "num_groups": number,
        "valid": jnp.ones(number, bool) if valid is None else jnp.asarray(valid),
    }


def collected(reward, group, valid, lengths) -> Collected:
    number, width = len(reward), 4
    index = jnp.arange(number, dtype=jnp.int32)
    mask = jnp.arange(width)[None, :] < jnp.asarray(lengths)[:, None]
    zero = jnp.zeros((number, width))
    rollouts = Rollouts(
        prompts=Prompts(tokens=index[:, None], length=jnp.ones_like(index), draw=index, row=index),
        prompt=jnp.asarray(group, jnp.int32),
        sample=index,
        tokens=jnp.zeros((number, width), jnp.int32),
        length=jnp.asarray(lengths, jnp.int32),
        stopped=jnp.ones(number, bool),
        mask=mask,
        logp=zero,
        logp_full=zero,
        version=index,
    )
    score = Reward(outcome=jnp.asarray(reward, jnp.float32), valid=jnp.asarray(valid))
    return Collected(rollouts=rollouts, reward=score, logp_old=zero)


def twin(reward, group, valid, *, std="sample", scope="group", eps=1e-6, eps_mode="add", others=False):
    """The definitions, group by group, in float64."""
    reward, group = np.asarray(reward, np.float64), np.where(valid, group, -1)
    result = np.zeros(len(reward))
    ddof = {"sample": 1, "population": 0}.get(std)
    for i in np.flatnonzero(group >= 0):
        peers = np.flatnonzero((group == group[i]) & ((np.arange(len(group)) != i) | (not others)))
        if np.sum(group == group[i]) == 1:
            continue
        result[i] = reward[i] - reward[peers].mean()
        if ddof is not None:
            chosen = reward[peers] if scope == "group" else reward[group >= 0]
            spread = chosen.std(ddof=ddof) if len(chosen) > ddof else 0.0
            if not (others and spread == 0.0):
                result[i] /= spread + eps if eps_mode == "add" else max(spread, eps)
    return result


def test_hand_numbers_of_a_group_of_three():
    given = rows_of([1.0, 4.0, 7.0], [0, 0, 0])
    # mean 4; squares 9 + 0 + 9 = 18: sample deviation sqrt(18 / 2) = 3, population sqrt(18 / 3) = 2.4495
    np.testing.assert_allclose(centered(**given), [-3, 0, 3])
    np.testing.assert_allclose(standardized(**given, eps=0.0), [-1, 0, 1], rtol=1e-6)
    np.testing.assert_allclose(standardized(**given, eps=0.5), [-3 / 3.5, 0, 3 / 3.5], rtol=1e-6)
    np.testing.assert_allclose(standardized(**given, eps=6.0, eps_mode="max"), [-3 / 6, 0, 3 / 6], rtol=1e-6)
    np.testing.assert_allclose(standardized(**given, std="population", eps=0.0), [-1.224745, 0, 1.224745], rtol=1e-6)
    np.testing.assert_allclose(standardized(**given, variance_floor=36.0, eps=0.0), [-3 / 6, 0, 3 / 6], rtol=1e-6)
    # the others' means: (4 + 7) / 2 = 5.5, (1 + 7) / 2 = 4, (1 + 4) / 2 = 2.5
    np.testing.assert_allclose(leave_one_out(**given), [1 - 5.5, 0, 7 - 2.5], rtol=1e-6)
    # the others' sample deviations: |7 - 4| / sqrt 2, |7 - 1| / sqrt 2, |4 - 1| / sqrt 2
    expected = [-4.5 / (3 / np.sqrt(2)), 0, 4.5 / (3 / np.sqrt(2))]
    np.testing.assert_allclose(leave_one_out(**given, std="sample", eps=0.0), expected, rtol=1e-6)


def test_the_deviation_of_the_batch_scales_every_group_alike():
    given = rows_of([0.0, 2.0, 5.0, 9.0], [0, 0, 1, 1])
    # all rewards: mean 4, squares 16 + 4 + 1 + 25 = 46, sample variance 46 / 3
    deviation = np.sqrt(46 / 3)
    expected = np.asarray([-1, 1, -2, 2]) / deviation
    np.testing.assert_allclose(standardized(**given, scope="batch", eps=0.0), expected, rtol=1e-6)


KERNELS = {
    **{
        f"standardized {std} {mode} {scope}": (
            partial(standardized, std=std, eps=0.01, eps_mode=mode, scope=scope),
            {"std": std, "eps": 0.01, "eps_mode": mode, "scope": scope},
        )
        for std in ("sample", "population")
        for mode in ("add", "max")
        for scope in ("group", "batch")
    },
    "centered": (centered, {"std": "none"}),
    "leave one out": (leave_one_out, {"std": "none", "others": True}),
    "leave one out, sample": (partial(leave_one_out, std="sample", eps=0.01), {"eps": 0.01, "others": True}),
    "leave one out, population": (
        partial(leave_one_out, std="population", eps=0.01),
        {"std": "population", "eps": 0.01, "others": True},
    ),
}


def test_kernels_equal_the_definitions_in_float64():
    rng = np.random.default_rng(0)
    group = rng.integers(-1, 5, 40)
    reward = np.where(group == 4, 0.95, rng.normal(size=40))
    reward[group == 3] = (rng.uniform(size=np.sum(group == 3)) < 0.2).astype(float)
    valid = rng.uniform(size=40) < 0.8
    with jax.enable_x64(True):
        given = rows_of(reward, group, valid) | {"reward": jnp.asarray(np.where(valid, reward, np.nan))}
        got = jax.jit(lambda: {name: kernel(**given) for name, (kernel, _) in KERNELS.items()})()
        for name, (_, convention) in KERNELS.items():
            expected = twin(reward, group, valid, **convention)
            np.testing.assert_allclose(got[name], expected, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("reward", [0.35, 0.95, 1 / 3, 1e4 + 0.1])
@pytest.mark.parametrize("name", KERNELS)
def test_equal_rewards_give_exactly_zero(name: str, reward: float):
    value = KERNELS[name][0](**rows_of([reward] * 7 + [5.0, 6.0], [0] * 7 + [1, 1]))
    np.testing.assert_array_equal(value[:7], 0.0)
    assert np.all(np.asarray(value[7:]) != 0.0)


CONVENTIONS = {
    f"{baseline} {std} {scope} {mode} {zero} {singleton}": {
        "baseline": baseline,
        "std": std,
        "scope": scope,
        "eps_mode": mode,
        "zero_std": zero,
        "singleton": singleton,
    }
    for baseline in ("group", "others", "length", "batch", "nothing")
    for std, scope, mode, zero, singleton in (
        ("sample", "group", "add", "divide", "raw"),
        ("population", "group", "max", "unscaled", "zero"),
        ("sample", "others", "max", "unscaled", "zero"),
        ("population", "others", "add", "divide", "raw"),
        ("sample", "batch", "add", "unscaled", "zero"),
        ("none", "group", "add", "divide", "raw"),
    )
}


def by_convention(rows, members, *, baseline, std, scope, eps_mode, zero_std, singleton):
    """Any baseline over any deviation, row by row in float64."""
    reward, length, floor, eps = rows["reward"], rows["mask"].sum(axis=1), 1e-4, 0.01
    found, everybody = np.zeros(40), np.concatenate(members)
    for g in members:
        for i in g:
            peers = g[g != i]
            if baseline in ("group", "others", "length") and len(g) == 1:
                unit = 1.0 if std == "none" or eps_mode == "max" else 1.0 + eps
                found[i] = reward[i] / unit if singleton == "raw" else 0.0
                continue
            base = {
                "group": lambda g=g, peers=peers: reward[g].mean(),
                "others": lambda g=g, peers=peers: reward[peers].mean(),
                "length": lambda g=g, peers=peers: np.average(reward[g], weights=length[g]),
                "batch": lambda g=g, peers=peers: reward[everybody].mean(),
                "nothing": lambda g=g, peers=peers: 0.0,
            }[baseline]()
            tied = baseline in ("group", "others", "length") and np.ptp(reward[g]) == 0
            found[i] = 0.0 if tied else reward[i] - base
            if std == "none":
                continue
            chosen = reward[{"group": g, "others": peers, "batch": everybody}[scope]]
            ddof = {"sample": 1, "population": 0}[std]
            s = chosen.std(ddof=ddof) if len(chosen) > ddof and np.ptp(chosen) > 0 else 0.0
            if s == 0.0 and zero_std == "unscaled":
                continue
            s = max(s, floor**0.5)
            found[i] /= s + eps if eps_mode == "add" else max(s, eps)
    return found


def test_every_convention_equals_its_definition_in_float64(rows, doubled, members, compiled):
    reward, group = doubled["reward"], doubled["group"]
    length = jnp.sum(doubled["mask"], axis=1).astype(reward.dtype)
    kernels = {
        "group": partial(standardized, reward, group),
        "others": partial(leave_one_out, reward, group),
        "length": partial(advantages.length_weighted, reward, group, length),
        "batch": partial(advantages.batch_standardized, reward, group),
        "nothing": partial(advantages.uncentered, reward, group),
    }
    functions = {}
    for name, convention in CONVENTIONS.items():
        keywords = {key: x for key, x in convention.items() if key != "baseline"}
        if convention["baseline"] in ("batch", "nothing"):
            del keywords["singleton"]
        shape = {"num_groups": 40, "valid": doubled["valid"], "variance_floor": 1e-4, "eps": 0.01}
        functions[name] = partial(kernels[convention["baseline"]], **shape, **keywords)
    for name, value in compiled(**functions).items():
        expected = by_convention(rows, members, **CONVENTIONS[name])
        np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-12, err_msg=name)


def test_the_baseline_of_opo_weighs_rewards_by_length():
    given = rows_of([1.0, 4.0, 7.0], [0, 0, 0])
    # (1 * 1 + 2 * 4 + 3 * 7) / 6 = 5
    length = jnp.asarray([1.0, 2.0, 3.0])
    np.testing.assert_allclose(advantages.length_weighted(length=length, **given), [-4, -1, 2])
    np.testing.assert_array_equal(advantages.length_weighted(length=jnp.zeros(3), **given), 0.0)


def test_the_batch_is_a_baseline_for_all_groups_and_nothing_is_one_too():
    given = rows_of([0.0, 2.0, 5.0, 9.0], [0, 0, 1, -1])
    # rows of a group: mean 7 / 3, squares 49 + 1 + 64 over 9 = 38 / 3: population variance 38 / 9
    expected = np.asarray([-7 / 3, -1 / 3, 8 / 3, 0])
    np.testing.assert_allclose(advantages.batch_standardized(**given), expected, rtol=1e-6)
    value = advantages.batch_standardized(**given, std="population", eps=0.0)
    np.testing.assert_allclose(value, expected / (38 / 9) ** 0.5, rtol=1e-6)
    np.testing.assert_array_equal(advantages.uncentered(**given), [0, 2, 5, 0])


def test_equal_rewards_give_zero_without_a_guard_too():
    np.testing.assert_array_equal(standardized(**rows_of([0.35] * 3, [0] * 3), eps=0.0), 0.0)


def test_a_group_whose_squares_overflow_has_no_scale_and_is_no_nan():
    # The deviation of the others is infinite in float32: their advantages are 0, as those of `standardized`.
    given = rows_of([1e30, -1e30, 1e30, 0.0], [0] * 4)
    np.testing.assert_array_equal(leave_one_out(**given, std="sample"), 0.0)
    np.testing.assert_array_equal(standardized(**given), 0.0)


def test_the_convention_for_groups_of_one():
    given = rows_of([3.0, 1.0, 2.0], [0, 1, 1])
    assert standardized(**given)[0] == 0.0
    np.testing.assert_allclose(standardized(**given, eps=0.5, singleton="raw")[0], 3.0 / 1.5)
    np.testing.assert_allclose(standardized(**given, eps=0.5, eps_mode="max", singleton="raw")[0], 3.0)
    assert centered(**given, singleton="raw")[0] == 3.0
    assert leave_one_out(**given)[0] == 0.0
    assert leave_one_out(**given, singleton="raw")[0] == 3.0


def test_others_that_are_all_equal_give_no_scale_to_divide_by():
    # Row 0 of (1, 0, 0, 0): the others' deviation is 0, so R - mean = 1 stays; the others' others are 1, 0, 0.
    value = leave_one_out(**rows_of([1.0, 0.0, 0.0, 0.0], [0] * 4), std="sample", eps=0.0)
    scale = np.sqrt(((2 / 3) ** 2 + 2 * (1 / 3) ** 2) / 2)
    np.testing.assert_allclose(value, [1.0, *[-(1 / 3) / scale] * 3], rtol=1e-6)


def test_rewards_may_be_large_beside_their_differences():
    # float32 holds 1000.0, 1000.5 and 1001.0 exactly; a variance as E[x^2] - E[x]^2 would lose them.
    value = standardized(**rows_of([1000.0, 1000.5, 1001.0], [0] * 3), eps=0.0)
    np.testing.assert_allclose(value, [-1, 0, 1], rtol=1e-4)


@pytest.mark.parametrize(
    ("convention", "message"),
    [
        ({"std": "median"}, "std is 'median'; allowed are 'sample', 'population', 'none'"),
        ({"eps_mode": "sub"}, "eps_mode is 'sub'"),
        ({"singleton": "one"}, "singleton is 'one'"),
        ({"scope": "world"}, "scope is 'world'"),
    ],
)
def test_an_unknown_convention_is_refused(convention: dict, message: str):
    with pytest.raises(ValueError, match=message):
        standardized(**rows_of([1.0, 2.0], [0, 0]), **convention)


@pytest.mark.parametrize("name", OF_ROWS)
def test_a_strategy_gives_every_trained_token_the_advantage_of_its_row(name: str):
    lengths = [1, 2, 3, 4, 0, 2, 3, 4, 1, 2]
    given = collected(REWARD, GROUP, VALID, lengths)
    value, _ = advantages.ADVANTAGES[name](given, jnp.asarray(GROUP, jnp.int32), {})
    mask = np.asarray(given.rollouts.mask)
    first = np.where(mask[:, :1], value[:, :1], 0.0)
    np.testing.assert_array_equal(value, np.where(mask, first, 0.0))


def test_strategies_apply_their_kernels():
    given = collected([1.0, 4.0, 7.0, 2.0], [0, 0, 0, 1], [True] * 4, [4] * 4)
    labels = given.rollouts.prompt

    def first_column(strategy):
        return strategy(given, labels, {})[0][:, 0]

    table = advantages.ADVANTAGES
    np.testing.assert_allclose(first_column(table["group_standardized"]), [-1, 0, 1, 0], rtol=1e-5)
    np.testing.assert_allclose(first_column(table["group_centered"]), [-3, 0, 3, 0])
    np.testing.assert_allclose(first_column(table["group_leave_one_out"]), [-4.5, 0, 4.5, 0])
    # the batch's mean is (1 + 4 + 7 + 2) / 4 = 3.5
    np.testing.assert_allclose(first_column(table["batch_centered"]), [-2.5, 0.5, 3.5, -1.5])
    raw = partial(advantages.group_centered, singleton="raw")
    np.testing.assert_allclose(first_column(raw), [-3, 0, 3, 2])


@pytest.mark.parametrize("name", advantages.ADVANTAGES)
def test_labels_of_levels_or_tokens_are_refused_by_row_strategies(name: str):
    given = tiny_collected()
    strategy = advantages.ADVANTAGES[name]
    with pytest.raises(ValueError, match="compares whole rows"):
        strategy(given, jnp.zeros((2, 12), jnp.int32), advantages.initial_memory(strategy))
