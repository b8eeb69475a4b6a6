"""Laws of every recipe, aggregation and advantage, through the loss and its gradient. One compilation a shape."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import objectives as o
from grpo_jax.advantages import (
    ADVANTAGES,
    batch_centered,
    fields_read,
    group_standardized,
    outcome,
    reinforce_batch_norm,
    reinforce_pp,
)
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
        if not fields_read(f)  # the laboratory has outcomes alone
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
quick = partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)
"""For programs that are compiled once and run a few times on next to nothing."""

PULLED = {
    "grpo_k1": "the gradient of k1 is not 0 where policy and reference agree",
    "ppo_adaptive_kl": "a penalty on the distance from the old policy",
    "rloo_kl": "the divergence of the old policy from the reference is paid out of the reward",
    "entropy_bonus": "a bonus for entropy",
    "dppo": "a pull to the sampler",
    "dppo_symmetric": "a pull to the sampler",
    "kl_cov": "a penalty on the distance from the old policy",
    "positive_likelihood": "the likelihood of rows with a positive reward",
    "ppo_critic": "what a row is compared with is what the critic expected, which differs from row to row",
}
"""Variants whose loss is not that of the advantages alone, also at the reference."""
OTHER_FIRST_GRADIENT = {
    "grpo_k1": "the gradient of k1 is not 0 where policy and reference agree",
    "positive_likelihood": "the likelihood of rows with a positive reward",
    "top_entropy": "tokens are left out",
    "clip_cov": "tokens are left out",
    "rloo_ppo": "the ratio of a row is a product over its tokens, so its gradient is that of the sum, not of the mean",
}
"""Variants whose gradient on-policy is not that of REINFORCE under the weights of their aggregation."""


@pytest.fixture(scope="module")
def laws(laboratory):
    """(draw, evaluate): evaluate(arrays) -> name -> (loss, gradient [N,T], what REINFORCE's gradient would be)."""
    draw, records, batch_of = laboratory

    @quick
    def compiled(arrays):
        stats, collected = records(arrays)
        result = {}
        for name, recipe in VARIANTS.items():
            batch = batch_of(collected, recipe, stats)

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


PLACE = (0, 4, 9)
"""Where three more rows go in: before, between and after the others."""


def roomy(arrays: dict[str, np.ndarray], extra: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays with three more rows and three more columns of padding."""
    joined = {name: np.insert(x, PLACE, extra[name], axis=0) for name, x in arrays.items()}
    for name, x in joined.items():
        if x.ndim == 2:
            fill = False if x.dtype == bool else np.nan
            joined[name] = np.concatenate([x, np.full((ROWS + 3, 3), fill, x.dtype)], axis=1)
    return joined


@pytest.mark.parametrize("reason", ["no score", "no group"])
def test_masking_a_row_equals_never_having_sampled_it_and_padding_changes_nothing(laws, base, reason: str):
    draw, evaluate = laws
    arrays, more = draw(), draw(seed=9)
    extra = {name: x[[0, 3, 7]].copy() for name, x in more.items()}
    if reason == "no score":
        extra["reward"][:], extra["valid"][:] = np.nan, False
    else:
        extra["sample"][:] = -1
    kept = np.setdiff1d(np.arange(ROWS + 3), [0, 5, 11])
    same(evaluate(roomy(arrays, extra)), base, rows=kept, columns=slice(0, 6))


def test_micro_batches_add_up_to_the_whole(laws, base, laboratory):
    draw, records, batch_of = laboratory
    stats, collected = records(draw())
    batches = {name: batch_of(collected, recipe, stats) for name, recipe in VARIANTS.items()}

    @quick
    def pieces(stats, batches):
        result = {}
        for name, recipe in VARIANTS.items():
            cuts = [(0, 3), (3, 9)]
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
    arrays["logp_ref"], arrays["kl_full"] = arrays["logp"], 0 * arrays["kl_full"]
    for name, (loss, gradient, policy) in evaluate(arrays).items():
        # The first pays for divergence, the second has no baseline, the third one that differs from row to row.
        if name in ("rloo_kl", "advantage outcome", "ppo_critic"):
            continue
        np.testing.assert_array_equal(policy, 0.0, err_msg=name)
        if name in PULLED:
            assert loss != 0.0 or np.any(gradient), f"{name} is listed without need"
        else:
            assert loss == 0.0, name
            np.testing.assert_array_equal(gradient, 0.0, err_msg=name)


def test_groups_of_one_teach_nothing_and_break_nothing(laws):
    draw, evaluate = laws
    arrays = draw()
    keep = np.isin(np.arange(ROWS), [0, 1, 3, 8])  # one row a prompt
    arrays["valid"] = keep
    arrays["logp_ref"], arrays["kl_full"] = arrays["logp"], 0 * arrays["kl_full"]
    for name, (loss, gradient, _) in evaluate(arrays).items():
        assert np.isfinite(loss), name
        if VARIANTS[name].advantage in (batch_centered, outcome, reinforce_batch_norm, reinforce_pp):
            assert np.any(gradient != 0), name
        elif name in PULLED:
            assert np.all(np.isfinite(gradient)), name
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
    arrays["logp_old"] = arrays["logp_ref"] = arrays["behavior"] = arrays["logp"]
    for name, (_, gradient, policy) in evaluate(arrays).items():
        if name in OTHER_FIRST_GRADIENT:
            assert np.max(np.abs(gradient - policy)) > 1e-3, f"{name} is listed without need"
        else:
            np.testing.assert_allclose(gradient, policy, rtol=1e-5, atol=1e-8, err_msg=name)


def test_no_row_at_all_gives_zero(laws):
    draw, evaluate = laws
    arrays = draw()
    arrays["valid"][:] = False
    for name, (loss, gradient, _) in evaluate(arrays).items():
        assert loss == 0.0 and not np.any(gradient), name


@pytest.mark.slow
def test_forward_mode_and_second_derivatives_agree_with_reverse_mode(laboratory):
    draw, records, batch_of = laboratory
    stats, collected = records(draw())
    mask = collected.rollouts.mask
    direction = jnp.where(mask, jnp.cos(jnp.arange(mask.size, dtype=jnp.float32)).reshape(mask.shape), 0.0)

    @quick
    def derivatives(logp):
        result = {}
        for name, recipe in VARIANTS.items():
            batch = batch_of(collected, recipe, stats)

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


REFERENCE = "grpo grpo_k1 grpo_k2 grpo_straight_through grpo_unbiased_kl grpo_adaptive_kl rloo_kl off_policy_masking"
ENTROPY = "entropy_bonus entropy_target top_entropy"
CORRECTED = "tis tis_sequence icepop mis_sequence geometric_mask rejection decoupled_ppo"
"""They compare the old policy with the sampler, so the trainer says itself what the old policy is."""


def test_a_recipe_says_what_it_reads():
    reads = dict.fromkeys(REFERENCE.split(), ("logp_ref",)) | dict.fromkeys(ENTROPY.split(), ("entropy",))
    reads |= dict.fromkeys(CORRECTED.split(), ("logp_old",)) | {"grpo_exact_kl": ("kl_full",), "ppo_critic": ("value",)}
    assert {name: o.wants(recipe) for name, recipe in o.RECIPES.items()} == dict.fromkeys(o.RECIPES, ()) | reads
    assert o.wants(o.grpo(beta=0.0)) == o.wants(o.off_policy_masking(beta=0.0)) == ()
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
