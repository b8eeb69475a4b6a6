"""What holds for every recipe, through batch and update: the new parameters are compared, not only a loss.

Most laws are other data for one of two compiled programs: `exact`, with arrays of just the size that is needed, and
`roomy`, with two more prompts, two more rows a prompt and wider arrays, all of which must count nowhere.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import models, objectives, train
from grpo_jax.types import Array, Collected, Params, Prompts, Reward, Rollouts, TokenStats
from tests.laws import tiny
from tests.laws.tiny import LINEAR, MODEL, RECIPES, G, P, S, T, V

PARAMS = tiny.policy()
REFERENCE = tiny.nearby(PARAMS)
ROLLOUTS, REWARD = tiny.rows(), tiny.rewards()
MORE = {"prompts": P + 2, "group": G + 2, "prompt_width": S + 2, "width": T + 2}
ROOMY_ROWS = MORE["prompts"] * MORE["group"]
GROUP_BASELINE = sorted(set(RECIPES) - {"reinforce", "grpo_by_category"})
NO_PENALTY = sorted(set(RECIPES) - {"grpo", "kl_cov"})


@pytest.fixture(scope="module", name="exact")
def arrays_of_the_size_needed():
    return tiny.program()


@pytest.fixture(scope="module", name="roomy")
def arrays_with_room():
    return tiny.program(group_size=MORE["group"])


@pytest.fixture(scope="module", name="usual")
def result_of_the_usual_batch(exact) -> tiny.Results:
    return jax.device_get(exact(PARAMS, REFERENCE, ROLLOUTS, REWARD))


def into(shape: tuple[int, ...], x: Array | np.ndarray, fill: np.ndarray | float) -> np.ndarray:
    """`x` in the first corner of an array of `shape`, `fill` around it."""
    x = np.asarray(x)
    found = np.array(np.broadcast_to(fill, shape), x.dtype)
    found[tuple(slice(n) for n in x.shape)] = x
    return found


def in_a_larger_array(*, garbage: bool) -> tuple[Rollouts, Reward]:
    """The usual rows with padding on every side: rows that could not be scored, prompts that nobody answered.

    The padding is quiet (zeros) or garbage: any token, any length, and nan where numbers stand.
    """
    rng = np.random.default_rng(11)
    prompts, group = MORE["prompts"], MORE["group"]
    narrow, wide = (prompts, MORE["prompt_width"]), (prompts, group, MORE["width"])
    nan = np.nan if garbage else 0.0

    def any_below(top: int, shape: tuple[int, ...]) -> np.ndarray | int:
        return rng.integers(0, top, shape) if garbage else 0

    def by_row(x: Array | np.ndarray, fill: np.ndarray | float) -> np.ndarray:
        x = x.reshape(P, G, *x.shape[1:])
        return into(wide[: x.ndim], x, fill).reshape(ROOMY_ROWS, *wide[2 : x.ndim])

    length = by_row(ROLLOUTS.length, 1 + any_below(wide[2], wide[:2]))
    sampled = by_row(np.ones(P * G, bool), False)
    unscored = (np.arange(wide[2])[None] < length[:, None]) & ~sampled[:, None]
    asked = ROLLOUTS.prompts
    rollouts = tiny.record(
        Rollouts,
        prompts=tiny.record(
            Prompts,
            tokens=into(narrow, asked.tokens, any_below(V, narrow)),
            length=into(narrow[:1], asked.length, 1 + any_below(narrow[1], narrow[:1])),
            draw=np.arange(prompts, dtype=np.int32),
            row=np.arange(prompts, dtype=np.int32),
            label={"category": into(narrow[:1], asked.label["category"], any_below(3, narrow[:1]))},
        ),
        prompt=np.repeat(np.arange(prompts, dtype=np.int32), group),
        sample=np.tile(np.arange(group, dtype=np.int32), prompts),
        tokens=by_row(ROLLOUTS.tokens, any_below(V, wide)),
        length=length,
        stopped=by_row(ROLLOUTS.stopped, garbage),
        mask=by_row(ROLLOUTS.mask, False) | unscored,
        logp=by_row(ROLLOUTS.logp, nan),
        logp_full=by_row(ROLLOUTS.logp_full, nan),
        version=np.zeros(ROOMY_ROWS, np.int32),
    )
    return rollouts, tiny.record(Reward, outcome=by_row(REWARD.outcome, nan), valid=sampled)


def shuffled(rollouts: Rollouts, reward: Reward, *, prompts: bool) -> tuple[Rollouts, Reward]:
    """Rows in another order; with `prompts` the prompts too, so that every row has another number for its prompt."""
    rng = np.random.default_rng(12)
    order = rng.permutation(rollouts.prompt.shape[0])
    asked = rng.permutation(rollouts.prompts.length.shape[0]) if prompts else np.arange(len(rollouts.prompts.length))
    number = np.argsort(asked).astype(np.int32)
    moved = jax.tree.map(lambda x: x[order], rollouts.replace(prompts=None))
    moved = moved.replace(prompts=jax.tree.map(lambda x: x[asked], rollouts.prompts), prompt=number[moved.prompt])
    return moved, jax.tree.map(lambda x: x[order], reward)


def ragged(rollouts: Rollouts, reward: Reward) -> tuple[Rollouts, Reward]:
    """The rows that could not be scored answer no prompt at all, so that prompts have four rows or none."""
    return rollouts.replace(prompt=np.where(reward.valid, rollouts.prompt, -1)), reward


ROOMY = {
    "wider arrays": in_a_larger_array(garbage=False),
    "garbage in the padding": in_a_larger_array(garbage=True),
    "rows in any order": shuffled(*in_a_larger_array(garbage=False), prompts=False),
    "rows that answer no prompt": ragged(*shuffled(*in_a_larger_array(garbage=True), prompts=False)),
    "prompts in any order": shuffled(*in_a_larger_array(garbage=True), prompts=True),
}


@pytest.mark.parametrize("case", ROOMY)
def test_what_was_never_sampled_counts_nowhere(roomy, usual, case):
    tiny.assert_same(PARAMS, usual, roomy(PARAMS, REFERENCE, *ROOMY[case]))


def test_the_comparison_sees_a_row_that_counts(roomy, usual):
    rollouts, reward = in_a_larger_array(garbage=False)
    reward.valid[G] = True  # a fifth row of the first prompt, with reward 0
    results = roomy(PARAMS, REFERENCE, rollouts, reward)
    for name in RECIPES:
        with pytest.raises(AssertionError):
            tiny.assert_same(PARAMS, {name: usual[name]}, {name: results[name]})


def test_every_update_moves_and_no_two_recipes_move_alike(usual):
    assert min(tiny.moves(PARAMS, usual).values()) > 1e-4
    for a, b in itertools.combinations(sorted(RECIPES), 2):
        with pytest.raises(AssertionError):
            tiny.assert_same(PARAMS, {"": usual[a]}, {"": usual[b]}, metrics=False)


def test_rows_in_another_order_give_the_same_update(exact, usual):
    tiny.assert_same(PARAMS, usual, exact(PARAMS, REFERENCE, *shuffled(ROLLOUTS, REWARD, prompts=True)))


def test_eight_micro_batches_give_the_update_of_one(usual):
    names = tiny.SPINE
    results = tiny.program(names=names, microbatches=8)(PARAMS, REFERENCE, ROLLOUTS, REWARD)
    tiny.assert_same(PARAMS, {name: usual[name] for name in names}, results)


@pytest.mark.slow
def test_a_prompt_of_its_own_for_every_row_gives_the_update_of_a_shared_one(usual):
    def repeated(rollouts: Rollouts) -> Rollouts:
        own = jax.tree.map(lambda x: x[rollouts.prompt], rollouts.prompts)
        return rollouts.replace(prompts=own, prompt=jnp.arange(P * G, dtype=jnp.int32))

    def apart(params, reference, rollouts, reward):
        found = {}
        for name in tiny.SPINE:
            recipe = RECIPES[name]
            batch = tiny.batch_of(rollouts, reward, tiny.settings(recipe), reference)
            batch = batch.replace(rollouts=repeated(batch.rollouts))
            change = tiny.settings(recipe, group_size=1)
            state, metrics = train.update(train.start(params, change), batch, change, key=jax.random.key(7))
            found[name] = (state.params, metrics)
        return found

    jitted = jax.jit(apart, compiler_options=tiny.QUICK)
    results = jitted(PARAMS, REFERENCE, ROLLOUTS, REWARD)
    tiny.assert_same(PARAMS, {name: usual[name] for name in tiny.SPINE}, results)


def slopes(logp: Array, rollouts: Rollouts, reward: Reward) -> dict[str, Array]:
    """Gradient of every recipe's loss in the log-probabilities of the tokens, from the records alone."""
    found = {}
    for name, recipe in RECIPES.items():
        collected = Collected(
            rollouts=rollouts, reward=reward, logp_old=rollouts.logp_full, logp_ref=rollouts.logp - 0.1
        )
        labels, memory = train.label(collected, {}, recipe)
        values, _ = train.advantage(collected, labels, memory, recipe)
        batch = train.make_batch(collected, labels, values, recipe)
        for prepare in recipe.prepare:
            batch = prepare(TokenStats(logp=logp), batch, jax.random.key(0))
        found[name] = jax.grad(objectives.loss, argnums=1)(recipe.parts, TokenStats(logp=logp), batch).logp
    return found


def test_without_jit_every_gradient_is_the_same():
    logp = ROLLOUTS.logp_full + np.random.default_rng(4).normal(0, 0.3, (P * G, T)).astype(np.float32)
    arrays = jax.tree.map(jnp.asarray, (logp, ROLLOUTS, REWARD))
    eager, jitted = slopes(*arrays), jax.jit(slopes, compiler_options=tiny.QUICK)(*arrays)
    for name in RECIPES:
        assert np.abs(eager[name]).max() > 1e-5
        np.testing.assert_allclose(eager[name], jitted[name], rtol=1e-6, atol=1e-9, err_msg=name)


@pytest.mark.slow
def test_without_jit_every_update_is_the_same(usual):
    with jax.disable_jit():
        arrays = jax.tree.map(jnp.asarray, (PARAMS, REFERENCE, ROLLOUTS, REWARD))
        tiny.assert_same(PARAMS, usual, tiny.updates(*arrays))


def test_equal_rewards_change_nothing_at_all(exact):
    for value in (0.0, 0.95, -3.0):
        flat = REWARD.replace(outcome=np.full(P * G, value, np.float32))
        results = jax.device_get(exact(PARAMS, REFERENCE, ROLLOUTS, flat))
        moved = tiny.moves(PARAMS, results)
        assert {name: moved[name] for name in NO_PENALTY} == dict.fromkeys(NO_PENALTY, 0.0)
        assert {results[name][1]["grad_norm"].item() for name in NO_PENALTY} == {0.0}
        assert moved["grpo"] > 1e-4  # the penalty pulls to the reference whatever the rewards


def test_groups_of_one_teach_nothing_and_spoil_nothing(exact):
    alone = REWARD.replace(valid=np.arange(P * G) % G == 1)
    results = jax.device_get(exact(PARAMS, REFERENCE, ROLLOUTS, alone))
    moved = tiny.moves(PARAMS, results)
    still = [name for name in GROUP_BASELINE if name in NO_PENALTY]
    assert {name: moved[name] for name in still} == dict.fromkeys(still, 0.0)
    assert 0 < moved["grpo"] < np.inf and 0 < moved["reinforce"] < np.inf
    assert 0 < moved["grpo_by_category"] < np.inf  # compared with rows of other prompts


def test_nothing_that_could_be_scored_changes_nothing(exact):
    nothing = tiny.record(Reward, outcome=np.full(P * G, np.nan, np.float32), valid=np.zeros(P * G, bool))
    results = jax.device_get(exact(PARAMS, REFERENCE, ROLLOUTS, nothing))
    assert tiny.moves(PARAMS, results) == dict.fromkeys(RECIPES, 0.0)
    assert {results[name][1]["skipped"].item() for name in RECIPES} == {0}  # done, and not refused


@pytest.mark.parametrize("nats", [-200.0, 200.0])
def test_extreme_ratios_stay_finite(exact, nats):
    far = ROLLOUTS.replace(logp_full=ROLLOUTS.logp_full + np.float32(nats))
    results = jax.device_get(exact(PARAMS, REFERENCE, far, REWARD))
    assert np.isfinite(list(tiny.moves(PARAMS, results).values())).all()
    for name, (_, metrics) in results.items():
        assert metrics["skipped"] == 0, name
        assert all(np.isfinite(value) for value in metrics.values()), name


def test_a_reference_hundreds_of_nats_away_stays_finite(exact):
    sharp = {**PARAMS, "head": 400 * PARAMS["head"]}
    for params, reference, far in ((PARAMS, sharp, 10), (sharp, REFERENCE, 1e6)):
        _, metrics = jax.device_get(exact(params, reference, ROLLOUTS, REWARD))["grpo"]
        assert metrics["skipped"] == 0
        assert metrics["kl/ref"] > far  # k3 grows as -d where the reference is the lower one, as exp(d) otherwise
        assert all(np.isfinite(value) for value in metrics.values())


def on_policy_reinforce(params: Params, rollouts: Rollouts, reward: Reward):
    """Rows whose log-probabilities are those of `params`, and for every recipe the gradient of sum w (-A log p)."""

    def logp(params: Params):
        return models.logprobs(params, MODEL, rollouts, temperature=1.0, group_size=G).logp

    old, back = jax.vjp(logp, params)
    mine = rollouts.replace(logp=old, logp_full=old)
    slopes = []
    for recipe in RECIPES.values():
        batch = tiny.batch_of(mine, reward, tiny.settings(recipe), params)
        weights = objectives.weights(recipe.parts, batch)
        slopes.append(sum(-weight * batch.advantage for weight in weights.values()))
    return mine, jax.vmap(back)(jnp.stack(slopes))[0]


def test_on_policy_every_update_is_that_of_reinforce(exact):
    oracle = jax.jit(on_policy_reinforce, compiler_options=tiny.QUICK)
    mine, gradients = jax.device_get(oracle(PARAMS, ROLLOUTS, REWARD))
    results = jax.device_get(exact(PARAMS, PARAMS, mine, REWARD))
    expected = {}
    for k, name in enumerate(RECIPES):
        step = jax.tree.map(lambda g, k=k: g[k] / (np.abs(g[k]) + LINEAR.eps), gradients)
        expected[name] = (jax.tree.map(lambda x, d: x - LINEAR.learning_rate * d, PARAMS, step), {})
        norm = np.sqrt(sum(np.sum(np.square(g[k])) for g in jax.tree.leaves(gradients)))
        np.testing.assert_allclose(results[name][1]["grad_norm"], norm, rtol=1e-4)
        assert results[name][1]["logp_gap/max"] < 1e-5
    tiny.assert_same(PARAMS, expected, results, metrics=False)


@pytest.mark.slow
def test_a_temperature_is_a_division_of_the_output_matrix():
    """With logits h W / 2: the update of all other parameters is that at temperature 1 with W / 2, and dW is half."""
    names, half = ("grpo",), {**PARAMS, "head": PARAMS["head"] / 2}
    half_reference = {**REFERENCE, "head": REFERENCE["head"] / 2}
    hot = jax.device_get(tiny.program(names=names, temperature=2.0)(PARAMS, REFERENCE, ROLLOUTS, REWARD))
    cold = jax.device_get(tiny.program(names=names)(half, half_reference, ROLLOUTS, REWARD))

    def head_gradient(before: Params, after: Params) -> np.ndarray:
        step = np.asarray(before["head"]) - after["head"]
        return step / (1 - np.abs(step))  # the inverse of g / (|g| + 1)

    for name in names:
        slope = head_gradient(half, cold[name][0])
        np.testing.assert_allclose(
            head_gradient(PARAMS, hot[name][0]), slope / 2, rtol=0, atol=2e-5 * np.abs(slope).max()
        )
    rest = [{name: ({**p, "head": 0.0}, m | {"grad_norm": 0.0}) for name, (p, m) in r.items()} for r in (cold, hot)]
    tiny.assert_same({**half, "head": 0.0}, *rest)
