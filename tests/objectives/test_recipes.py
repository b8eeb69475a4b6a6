"""Laws of every recipe, aggregation and advantage, through the loss and its gradient. One compilation a shape."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import objectives as o
from grpo_jax.advantages import ADVANTAGES, batch_centered, group_standardized
from grpo_jax.groups import by_prompt

AGGREGATIONS = {
    **{name: f for name, f in o.AGGREGATIONS.items() if name != "fixed_length"},
    "sequence_mean_token_mean, skip": partial(o.sequence_mean_token_mean, empty="skip"),
    "sequence_mean_token_sum, skip": partial(o.sequence_mean_token_sum, empty="skip"),
    "prompt_mean, skip": partial(o.prompt_mean, empty="skip"),
    **{
        f"fixed_length, {rows}": partial(o.fixed_length, constant=7.0, rows=rows)
        for rows in ("all", "nonempty", "none")
    },
}
VARIANTS = {
    **o.RECIPES,
    **{
        f"aggregation {name}": o.Recipe((o.Part(f, o.ppo_clip),), group_standardized, by_prompt)
        for name, f in AGGREGATIONS.items()
    },
    **{
        f"advantage {name}": o.Recipe((o.Part(o.token_mean, o.reinforce),), f, by_prompt)
        for name, f in ADVANTAGES.items()
    },
    "two parts": o.Recipe(
        (o.Part(o.sequence_mean_token_mean, o.ppo_clip), o.Part(o.token_mean, partial(o.kl_penalty, estimator=o.k2))),
        group_standardized,
        by_prompt,
    ),
    "KL through old": o.Recipe(
        (o.Part(o.token_mean, o.add(o.ppo_clip, partial(o.kl_penalty, weight=o.over_old))),),
        group_standardized,
        by_prompt,
    ),
}
ROWS = 9


@pytest.fixture(scope="module")
def laws(laboratory):
    """(draw, evaluate): evaluate(arrays) -> name -> (loss, gradient [N,T], what REINFORCE's gradient would be)."""
    draw, records, batch_of = laboratory

    @jax.jit
    def compiled(arrays):
        stats, collected = records(arrays)
        result = {}
        for name, recipe in VARIANTS.items():
            batch = batch_of(collected, recipe)

            def objective(logp, recipe=recipe, batch=batch):
                return o.loss(recipe.parts, dataclasses.replace(stats, logp=logp), batch)

            loss, gradient = jax.value_and_grad(objective)(stats.logp)
            policy = -batch.advantage * batch.weight[o.describe(recipe.parts[0].aggregation)]
            result[name] = loss, gradient, policy
        return result

    return draw, lambda arrays: jax.tree.map(np.asarray, compiled(arrays))


@pytest.fixture(scope="module")
def base(laws):
    draw, evaluate = laws
    return evaluate(draw())


def same(got, expected, rows: slice | np.ndarray = slice(None), columns: slice = slice(None)):
    """Equal losses, and equal gradients at these rows and columns of `got`; the other ones are zero."""
    for name, (loss, gradient, _) in got.items():
        np.testing.assert_allclose(loss, expected[name][0], rtol=2e-5, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(gradient[rows, columns], expected[name][1], rtol=2e-5, atol=1e-7, err_msg=name)
        rest = np.ones(gradient.shape, bool)
        rest[rows, columns] = False
        np.testing.assert_array_equal(gradient[rest], 0.0, err_msg=name)


def test_every_variant_learns_something_and_nothing_is_nan(base):
    for name, (loss, gradient, _) in base.items():
        assert np.isfinite(loss) and np.all(np.isfinite(gradient)) and np.any(gradient != 0), name


def test_the_gradient_is_zero_outside_the_mask(laws, base):
    mask = laws[0]()["mask"]
    for name, (_, gradient, _) in base.items():
        np.testing.assert_array_equal(gradient[~mask], 0.0, err_msg=name)


def test_the_order_of_rows_changes_nothing(laws, base):
    draw, evaluate = laws
    order = np.random.default_rng(5).permutation(ROWS)
    moved = evaluate({name: x[order] for name, x in draw().items()})
    same({name: (loss, gradient[np.argsort(order)], _) for name, (loss, gradient, _) in moved.items()}, base)


def test_padding_changes_nothing(laws, base):
    draw, evaluate = laws
    arrays = draw()
    for name, x in arrays.items():
        if x.ndim == 2:
            fill = False if x.dtype == bool else np.nan
            arrays[name] = np.concatenate([x, np.full((ROWS, 3), fill, x.dtype)], axis=1)
    same(evaluate(arrays), base, columns=slice(0, 6))


@pytest.mark.parametrize("reason", ["no score", "no group"])
def test_masking_a_row_equals_never_having_sampled_it(laws, base, reason: str):
    draw, evaluate = laws
    arrays, more = draw(), draw(seed=9)
    extra = {name: x[[0, 3, 7]].copy() for name, x in more.items()}
    if reason == "no score":
        extra["reward"][:], extra["valid"][:] = np.nan, False
    else:
        extra["sample"][:] = -1
    place = [0, 4, 9]  # before, between and after the others
    joined = {name: np.insert(x, place, extra[name], axis=0) for name, x in arrays.items()}
    kept = np.setdiff1d(np.arange(ROWS + 3), [0, 5, 11])
    same(evaluate(joined), base, rows=kept)


def test_micro_batches_add_up_to_the_whole(laws, base, laboratory):
    draw, records, batch_of = laboratory
    stats, collected = records(draw())
    batches = {name: batch_of(collected, recipe) for name, recipe in VARIANTS.items()}

    @jax.jit
    def pieces(stats, batches):
        result = {}
        for name, recipe in VARIANTS.items():
            cuts = [(0, 2), (2, 3), (3, 9)]
            split = [jax.tree.map(partial(rows_between, a, b), (stats, batches[name])) for a, b in cuts]
            result[name] = sum(o.loss(recipe.parts, s, b) for s, b in split)
        return result

    for name, loss in pieces(stats, batches).items():
        np.testing.assert_allclose(loss, base[name][0], rtol=2e-5, atol=1e-6, err_msg=name)


def rows_between(start: int, stop: int, x):
    return x[start:stop] if x.ndim and x.shape[0] == ROWS else x


@pytest.mark.parametrize("reward", [0.35, 0.95])
def test_equal_rewards_give_exactly_zero(laws, reward: float):
    draw, evaluate = laws
    arrays = draw()
    arrays["reward"][:] = reward
    arrays["logp_ref"] = arrays["logp"]
    for name, (loss, gradient, _) in evaluate(arrays).items():
        assert loss == 0.0, name
        np.testing.assert_array_equal(gradient, 0.0, err_msg=name)


def test_groups_of_one_teach_nothing_and_break_nothing(laws):
    draw, evaluate = laws
    arrays = draw()
    keep = np.isin(np.arange(ROWS), [0, 1, 3, 8])  # one row a prompt
    arrays["valid"] = keep
    arrays["logp_ref"] = arrays["logp"]
    for name, (loss, gradient, _) in evaluate(arrays).items():
        assert np.isfinite(loss), name
        if VARIANTS[name].advantage is batch_centered:
            assert np.any(gradient != 0), name
        else:
            np.testing.assert_array_equal(gradient, 0.0, err_msg=name)


@pytest.mark.parametrize("distance", [200.0, -200.0])
def test_extreme_ratios_stay_finite(laws, distance: float):
    draw, evaluate = laws
    arrays = draw()
    arrays["logp_old"] = arrays["logp"] - np.float32(distance)
    arrays["logp_ref"] = arrays["logp"] + np.float32(distance)
    for name, (loss, gradient, _) in evaluate(arrays).items():
        assert np.isfinite(loss) and np.all(np.isfinite(gradient)), name


def test_the_first_gradient_on_policy_is_that_of_reinforce(laws):
    draw, evaluate = laws
    arrays = draw()
    arrays["logp_old"] = arrays["logp_ref"] = arrays["logp"]
    for name, (_, gradient, policy) in evaluate(arrays).items():
        np.testing.assert_allclose(gradient, policy, rtol=1e-5, atol=1e-8, err_msg=name)


def test_no_row_at_all_gives_zero(laws):
    draw, evaluate = laws
    arrays = draw()
    arrays["valid"][:] = False
    for name, (loss, gradient, _) in evaluate(arrays).items():
        assert loss == 0.0 and not np.any(gradient), name


def test_forward_mode_and_second_derivatives_agree_with_reverse_mode(laboratory):
    draw, records, batch_of = laboratory
    stats, collected = records(draw())
    mask = collected.rollouts.mask
    direction = jnp.where(mask, jnp.cos(jnp.arange(mask.size, dtype=jnp.float32)).reshape(mask.shape), 0.0)

    @jax.jit
    def derivatives(logp):
        result = {}
        for name, recipe in VARIANTS.items():
            batch = batch_of(collected, recipe)

            def objective(logp, recipe=recipe, batch=batch):
                return o.loss(recipe.parts, dataclasses.replace(stats, logp=logp), batch)

            def along(logp, objective=objective):
                return jax.jvp(objective, (logp,), (direction,))[1]

            forward = along(logp)
            reverse = jnp.sum(jax.grad(objective)(logp) * direction)
            over_reverse = jax.jvp(jax.grad(objective), (logp,), (direction,))[1]
            result[name] = forward, reverse, over_reverse, jax.grad(along)(logp)
        return result

    clean = jnp.where(mask, stats.logp, 0.0)
    for name, (forward, reverse, over_reverse, over_forward) in derivatives(clean).items():
        np.testing.assert_allclose(forward, reverse, rtol=1e-4, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(over_reverse, over_forward, rtol=1e-4, atol=1e-6, err_msg=name)
        assert np.all(np.isfinite(over_forward)), name


def test_a_recipe_says_what_it_reads():
    assert o.wants(o.RECIPES["grpo"]) == ("logp_ref",)
    assert o.wants(o.grpo(beta=0.0)) == ()
    assert all(o.wants(o.RECIPES[name]) == () for name in o.RECIPES if name != "grpo")
    bonus = o.Part(o.token_mean, o.scale(o.negative_entropy, by=0.01))
    recipe = dataclasses.replace(o.RECIPES["grpo"], parts=(*o.RECIPES["grpo"].parts, bonus))
    assert o.wants(recipe) == ("entropy", "logp_ref")


def test_recipes_bind_their_hyper_parameters():
    assert "high=0.28" in o.describe(o.RECIPES["dapo"]) and "low=0.2" in o.describe(o.RECIPES["dapo"])
    assert "constant=300.0" in o.describe(o.dr_grpo(constant=300.0))
    assert "by='beta'" in o.describe(o.grpo(beta="beta"))
    texts = [o.describe(recipe) for recipe in o.RECIPES.values()]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("name", o.RECIPES)
def test_every_recipe_names_its_paper(name: str):
    assert o.RECIPES[name].paper
