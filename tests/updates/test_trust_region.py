"""Steps within a trust region: by hand on a softmax, against dense linear algebra on a small model, and as laws."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import models, objectives, train
from grpo_jax.objectives import Part, Recipe, token_mean, unclipped
from grpo_jax.sharding import make_mesh, place_rows
from grpo_jax.types import Array, Batch, Metrics, Params, TrainState
from grpo_jax.updates import Gradient, Optimizer, TrustRegion, trust_region
from grpo_jax.updates.trust_region import chosen, pieces, radius, step
from tests.laws import dense, tiny
from tests.laws.tiny import G, P

KEY = jax.random.key(7)


# A softmax over four arms, whose expected reward is known exactly

REWARD = np.array([0.0, 1.0, 0.25, 0.5])
LOGITS = np.array([0.3, -0.8, 0.1, 0.4])
PROBABILITY = np.exp(LOGITS) / np.exp(LOGITS).sum()
CENTRED = REWARD - PROBABILITY @ REWARD
VARIANCE = PROBABILITY @ CENTRED**2
DELTA = jnp.float32(0.01)
EXACT = TrustRegion(delta=0.01, damping=0.0, tolerance=0.0, iterations=4, backtracks=1)


def bandit(region: TrustRegion, *, stretch: float = 1.0, sign: float = 1.0):
    """One step on minus the expected reward, the logits being `stretch` times the parameters: log-probabilities."""
    start = {"logits": jnp.asarray(LOGITS / stretch, jnp.float32)}

    def policy(params: Params) -> Array:
        return jax.nn.log_softmax(params["logits"] * stretch)

    def loss(params: Params) -> Array:
        return -sign * jnp.exp(policy(params)) @ jnp.asarray(REWARD, jnp.float32)

    def divergence(params: Params) -> Array:
        old = policy(start)
        return jnp.exp(old) @ (old - policy(params))

    def product(vector: Params) -> Params:
        return jax.jvp(jax.grad(divergence), (start,), (vector,))[1]

    @jax.jit
    def run() -> tuple[Params, Array, Metrics]:
        value, slope = jax.value_and_grad(loss)(start)
        return step(start, value, slope, product, lambda x: (loss(x), divergence(x)), region=region, delta=DELTA)

    found, finite, metrics = run()
    return np.asarray(policy(found)), bool(finite), jax.device_get(metrics)


def after(fraction: float, sign: float = 1.0) -> tuple[np.ndarray, float, float]:
    """Log-probabilities after `fraction` of the natural gradient's step, their divergence and the reward gained.

    With z logits and F = diag p - p p^T, the gradient of sum p R is p (R - p R) = F (R - p R): the natural gradient is
    the centred reward, up to a constant that a softmax does not see. Its F-norm is the deviation of the reward.
    """
    z = LOGITS + sign * fraction * np.sqrt(2 * EXACT.delta / VARIANCE) * CENTRED
    new = np.exp(z) / np.exp(z).sum()
    return np.log(new), PROBABILITY @ np.log(PROBABILITY / new), (new - PROBABILITY) @ REWARD


@pytest.mark.parametrize(
    ("sign", "backtracks", "fraction"),
    [
        (-1.0, 1, 1.0),  # its divergence is 0.0097: inside
        (1.0, 2, 0.5),  # 0.0103: outside, and half of it is inside
        (1.0, 0, 1.0),  # nobody looks
    ],
    ids=["whole", "half", "natural"],
)
def test_on_a_softmax_the_step_is_the_centred_reward(sign, backtracks, fraction):
    found, finite, metrics = bandit(dataclasses.replace(EXACT, backtracks=backtracks), sign=sign)
    expected, kl, gain = after(fraction, sign)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert finite and metrics["trust/accepted"] == 1 and metrics["trust/step_fraction"] == fraction
    assert (kl <= EXACT.delta) == (backtracks > 0)
    np.testing.assert_allclose(metrics["trust/kl"], kl, rtol=1e-4)
    np.testing.assert_allclose(metrics["trust/improvement"], sign * gain, rtol=1e-4)
    # the slope along the whole step is its length times its F-norm: sqrt(2 delta / v) v
    np.testing.assert_allclose(metrics["trust/expected_improvement"], np.sqrt(2 * EXACT.delta * VARIANCE), rtol=1e-4)


def test_other_coordinates_give_the_same_policy():
    usual, _, metrics = bandit(dataclasses.replace(EXACT, backtracks=2))
    for stretch in (0.1, 30.0):
        found, _, other = bandit(dataclasses.replace(EXACT, backtracks=2), stretch=stretch)
        np.testing.assert_allclose(found, usual, rtol=0, atol=1e-5)
        np.testing.assert_allclose(other["trust/kl"], metrics["trust/kl"], rtol=1e-3)


def test_damping_shortens_no_step_but_turns_it_to_the_gradient():
    """So much damping that the curvature disappears in it: the step is the gradient, of F-norm d^1/2 |g|."""
    found, _, metrics = bandit(dataclasses.replace(EXACT, damping=1e4))
    slope = PROBABILITY * CENTRED
    z = LOGITS + np.sqrt(2 * EXACT.delta / 1e4) * slope / np.linalg.norm(slope)
    np.testing.assert_allclose(found, np.log(np.exp(z) / np.exp(z).sum()), rtol=0, atol=1e-6)
    assert 0 < metrics["trust/kl"] < 1e-5


def test_a_factor_of_the_loss_changes_no_step():
    usual, _, _ = bandit(dataclasses.replace(EXACT, damping=0.1))
    found, _, _ = bandit(dataclasses.replace(EXACT, damping=0.1), sign=64.0)
    np.testing.assert_allclose(found, usual, rtol=0, atol=1e-6)


# The line search, where loss and divergence are whatever the case says

START = {"w": jnp.asarray([1.0, -2.0], jnp.float32)}
SLOPE = {"w": jnp.asarray([0.6, 0.8], jnp.float32)}  # of norm 1: the step to the border of 2 delta = 0.02 is sqrt(0.02)


def search(trial, loss: float = 1.0, product=None, slope: Params = SLOPE, delta: float = 0.01):
    """One step with the curvature 1 in every direction."""
    region = dataclasses.replace(EXACT, backtracks=4)
    given = (START, jnp.float32(loss), slope, product or (lambda v: v), trial)
    found, finite, metrics = step(*given, region=region, delta=jnp.float32(delta))
    return np.asarray(found["w"]), bool(finite), jax.device_get(metrics)


def reached(params: Params) -> Array:
    """How far the parameters have moved against the slope."""
    return -jnp.sum((params["w"] - START["w"]) * SLOPE["w"])


def test_the_first_step_that_is_low_enough_and_near_enough_is_taken():
    """The divergence is inside from a quarter of the step on, the loss lower from an eighth on."""
    border = np.sqrt(2 * EXACT.delta)

    def trial(params: Params) -> tuple[Array, Array]:
        moved = reached(params)
        return jnp.where(moved < border / 7, 0.5, 2.0), jnp.where(moved < border / 3, 0.001, 0.02)

    found, finite, metrics = search(trial)
    np.testing.assert_allclose(found, START["w"] - border / 8 * SLOPE["w"], rtol=1e-6)
    assert finite and metrics["trust/step_fraction"] == 0.125
    assert metrics["trust/improvement"] == 0.5 and metrics["trust/kl"] == np.float32(0.001)


@pytest.mark.parametrize(
    ("loss", "kl"),
    [(1.0, 0.0), (1.5, 0.0), (0.5, 0.0101), (np.nan, 0.0), (0.5, np.nan), (-np.inf, 0.0)],
    ids=["as-before", "worse", "too-far", "loss-nan", "divergence-nan", "loss-infinite"],
)
def test_a_step_that_is_never_acceptable_is_taken_back(loss, kl):
    found, finite, metrics = search(lambda params: (reached(params) * 0 + loss, reached(params) * 0 + kl))
    np.testing.assert_array_equal(found, START["w"])
    assert finite  # nothing is wrong with the update: it stays where it is
    for name in ("accepted", "kl", "improvement", "step_fraction"):
        assert metrics[f"trust/{name}"] == 0, name
    np.testing.assert_allclose(metrics["trust/expected_improvement"], np.sqrt(2 * EXACT.delta), rtol=1e-6)


def good(params: Params) -> tuple[Array, Array]:
    return reached(params) * 0 + 0.5, reached(params) * 0


@pytest.mark.parametrize("case", ["loss", "gradient", "curvature", "step"])
def test_what_is_not_finite_moves_nothing(case):
    changes = {
        "loss": {"loss": np.nan},
        "gradient": {"slope": {"w": jnp.asarray([np.inf, 0], jnp.float32)}},
        "curvature": {"product": lambda v: jax.tree.map(lambda x: x * jnp.nan, v)},
        "step": {"product": lambda v: jax.tree.map(lambda x: x * 1e-30, v), "delta": 1e12},
    }
    found, finite, metrics = search(good, **changes[case])
    np.testing.assert_array_equal(found, START["w"])
    assert not finite and metrics["trust/accepted"] == 0


def test_a_natural_gradient_into_what_is_not_finite_is_refused():
    region = dataclasses.replace(EXACT, backtracks=0)
    given = (START, jnp.float32(1), SLOPE, lambda v: v, lambda x: (reached(x) * jnp.nan, reached(x)))
    found, finite, _ = step(*given, region=region, delta=DELTA)
    np.testing.assert_array_equal(found["w"], START["w"])
    assert not finite


def test_without_a_gradient_nothing_happens():
    found, finite, metrics = search(good, slope=jax.tree.map(jnp.zeros_like, SLOPE), delta=0.01)
    np.testing.assert_array_equal(found, START["w"])
    assert finite and metrics["trust/expected_improvement"] == 0


def test_the_border_falls_along_a_line():
    region = TrustRegion(delta=0.02, final=0.25)
    found = [float(radius(region, jnp.int32(done), 10)) for done in (0, 5, 10, 12)]
    np.testing.assert_allclose(found, [0.02, 0.0125, 0.005, 0.005], rtol=1e-6)  # 0.02 (1 - 0.75 / 2) in the middle
    assert float(radius(TrustRegion(delta=0.02), jnp.int32(7), 10)) == np.float32(0.02)


# Which prompts the curvature is computed from


def test_the_share_of_prompts_is_spread_evenly_and_filled_up_for_shards():
    index, counts = chosen(8, 0.5)
    assert index.tolist() == [0, 2, 4, 6] and counts.all()
    assert chosen(8, 0.3)[0].tolist() == [0, 2, 5]  # 2.4 prompts are 3, every 8/3-th
    assert chosen(10, 0.7 - 0.6)[0].tolist() == [0]  # 0.1 up to rounding is one of ten, not two
    index, counts = chosen(8, 0.3, shards=4)
    assert index.tolist() == [0, 1, 2, 5] and counts.tolist() == [True, False, True, True]
    assert chosen(8, 1.0, shards=8)[0].tolist() == list(range(8))


def test_pieces_are_equal_and_small_enough():
    assert pieces(8, most=8) == 1
    assert pieces(8, most=3) == 4
    assert pieces(6, most=4) == 2
    assert pieces(7, most=6) == 7
    assert pieces(12, most=6, unit=4) == 3  # 2 pieces of 6 are no multiples of 4


# The update of a small model, against the matrix of its curvature

RECIPE = Recipe(
    parts=(Part(token_mean, unclipped),),
    advantage=objectives.RECIPES["grpo"].advantage,
    grouping=objectives.RECIPES["grpo"].grouping,
)
PARAMS = models.init(jax.random.key(0), dense.MODEL)
TEMPERATURE, DAMPING = 0.8, 0.1
NEAR = TrustRegion(delta=0.003, damping=DAMPING, iterations=60, tolerance=1e-5)
KEPT = np.array([n for n in range(P * G) if n not in (0, 1, 5, 6, 11, 14, 30, 31)])  # groups of 2, 3 and 4 rows


def settings(region: TrustRegion, **changes) -> Gradient:
    model = dataclasses.replace(dense.MODEL, backward="fast")
    return tiny.settings(RECIPE, model=model, optimizer=region, temperature=TEMPERATURE, **changes)


WHOLE = settings(NEAR)
SPLIT = settings(dataclasses.replace(NEAR, fisher_share=0.5), microbatches=4, chunk=7)


@pytest.fixture(scope="module", name="said")
def what_the_policy_says(rollouts) -> dense.Tokens:
    return dense.tokens(PARAMS, rollouts, temperature=TEMPERATURE)


@pytest.fixture(scope="module", name="rollouts")
def ragged_rollouts():
    """Rows of groups of different sizes, some with tokens that nobody sampled."""
    rows = tiny.rows()
    apart = {name: value for name, value in vars(rows).items() if name not in ("prompts", "experts")}
    return rows.replace(**{name: value[KEPT] for name, value in apart.items()})


@pytest.fixture(scope="module", name="batch")
def on_policy_batch(rollouts, said) -> Batch:
    """What the policy itself sampled, as far as ratios tell; two rows could not be scored."""
    logp = np.take_along_axis(said.log_p, rollouts.tokens[:, :, None], axis=2)[:, :, 0].astype(np.float32)
    rows = jax.tree.map(jnp.asarray, rollouts.replace(logp=logp, logp_full=logp))
    reward = tiny.rewards()
    valid = ~np.isin(np.arange(len(KEPT)), (3, 9))
    reward = reward.replace(outcome=jnp.asarray(reward.outcome[KEPT]), valid=jnp.asarray(valid))
    return tiny.batch_of(rows, reward, WHOLE, reference=PARAMS)


def program(change: Gradient, mesh=None):
    def run(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return trust_region.update(state, batch, change, key=KEY, mesh=mesh)

    return jax.jit(run, compiler_options=tiny.QUICK)


@pytest.fixture(scope="module", name="whole")
def whole_program():
    return program(WHOLE)


@pytest.fixture(scope="module", name="start")
def start_of_a_run() -> TrainState:
    return train.start(PARAMS, WHOLE)


def direction(batch: Batch, said: dense.Tokens, prompts: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradient of the surrogate, curvature from some of the prompts, and ``(F + damping)^-1 g``: f64, in NumPy."""
    mask = np.asarray(batch.mask)
    chosen_slope = np.take_along_axis(said.jacobian, np.asarray(batch.rollouts.tokens)[:, :, None, None], axis=2)
    weight = np.where(mask, np.asarray(batch.advantage, np.float64), 0) / mask.sum()
    slope = -np.einsum("nt,ntd->d", weight, chosen_slope[:, :, 0])
    counted = mask & np.isin(np.asarray(batch.rollouts.prompt), prompts)[:, None]
    curvature = dense.information(said, counted / counted.sum())
    return slope, curvature, np.linalg.solve(curvature + DAMPING * np.eye(len(slope)), slope)


def check_step(state: TrainState, metrics: Metrics, batch: Batch, said: dense.Tokens, prompts: list[int]) -> None:
    """The update went along the solution, as far as the border and the line search say."""
    slope, curvature, x = direction(batch, said, prompts)
    length = np.sqrt(2 * NEAR.delta / (x @ curvature @ x + DAMPING * x @ x))
    fraction = float(metrics["trust/step_fraction"])
    assert fraction in (0.25, 0.5, 1.0)
    moved = dense.flat(state.params) - dense.flat(PARAMS)
    np.testing.assert_allclose(moved, -fraction * length * x, rtol=0, atol=2e-3 * np.abs(moved).max())
    np.testing.assert_allclose(metrics["trust/expected_improvement"], length * slope @ x, rtol=1e-3)
    np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(slope), rtol=1e-4)
    assert metrics["trust/cg_residual"] <= NEAR.tolerance


def test_the_step_is_that_of_dense_linear_algebra(whole, start, batch, said):
    state, metrics = whole(start, batch)
    check_step(state, metrics, batch, said, list(range(P)))
    assert state.opt_state.done == 1 and state.opt_state.rollbacks == 0


def test_splits_and_half_of_the_prompts_give_the_step_of_these_prompts(start, batch, said):
    state, metrics = program(SPLIT)(start, batch)
    check_step(state, metrics, batch, said, [0, 2, 4, 6])
    assert metrics["trust/cg_products"] > 5


def test_what_is_reported_of_the_step_is_so(whole, start, batch, said, rollouts):
    """Divergence, loss and gap again from the policies before and after, in NumPy."""
    state, metrics = whole(start, batch)
    new = dense.tokens(state.params, rollouts, temperature=TEMPERATURE, jacobian=False)
    mask, advantage = np.asarray(batch.mask), np.asarray(batch.advantage, np.float64)
    kl = dense.divergence(said, new)[mask].mean()
    np.testing.assert_allclose(metrics["trust/kl"], kl, rtol=1e-3)
    assert 0.1 * NEAR.delta < kl <= NEAR.delta
    place = rollouts.tokens[:, :, None]
    ratio = np.exp(np.take_along_axis(new.log_p - said.log_p, place, axis=2)[:, :, 0])
    before, after = (-(advantage * r)[mask].mean() for r in (np.ones_like(ratio), ratio))
    np.testing.assert_allclose(metrics["loss"], before, rtol=0, atol=1e-6)
    np.testing.assert_allclose(metrics["trust/improvement"], before - after, rtol=1e-3)
    entropy = -(np.exp(said.log_p) * said.log_p).sum(-1)[mask].mean()
    np.testing.assert_allclose(metrics["entropy"], entropy, rtol=1e-4)
    assert metrics["kl/old"] < 1e-6 and metrics["logp_gap/max"] < 1e-4  # of the policy before the step


def test_a_surrogate_that_cannot_fall_is_taken_back_and_counted(whole, start, batch):
    flat = batch.replace(advantage=jnp.zeros_like(batch.advantage))
    state, metrics = whole(start, flat)
    np.testing.assert_array_equal(dense.flat(state.params), dense.flat(PARAMS))
    assert metrics["trust/accepted"] == 0 and metrics["trust/kl"] == 0 and metrics["trust/rollbacks"] == 1
    assert metrics["skipped"] == 0 and state.skipped == 0
    again, metrics = whole(state, batch)
    assert metrics["trust/accepted"] == 1 and metrics["trust/rollbacks"] == 1 and again.opt_state.done == 2


def test_what_is_not_finite_is_skipped_until_something_is(whole, start, batch):
    row = int(np.flatnonzero(np.asarray(batch.mask).all(1))[0])
    bad = batch.replace(advantage=batch.advantage.at[row, 0].set(jnp.nan))
    state, metrics = whole(start, bad)
    np.testing.assert_array_equal(dense.flat(state.params), dense.flat(PARAMS))
    assert metrics["skipped"] == 1 and metrics["skipped/consecutive"] == 1
    assert metrics["trust/rollbacks"] == 0 and state.opt_state.done == 0
    state, metrics = whole(state, bad)
    assert state.skipped == 2
    state, metrics = whole(state, batch)
    assert state.skipped == 0 and metrics["skipped"] == 0 and metrics["trust/accepted"] == 1


def test_garbage_where_nothing_is_scored_is_not_seen(whole, start, batch):
    outside = ~batch.mask
    garbage = batch.replace(
        advantage=jnp.where(outside, jnp.nan, batch.advantage), logp_old=jnp.where(outside, jnp.inf, batch.logp_old)
    )
    for a, b in tiny.both_leaves(whole(start, garbage), whole(start, batch)):
        np.testing.assert_array_equal(a, b)


def test_settings_of_another_method_are_refused(start, batch):
    with pytest.raises(ValueError, match="got Optimizer, allowed TrustRegion"):
        trust_region.update(start, batch, dataclasses.replace(WHOLE, optimizer=Optimizer()), key=KEY)


@pytest.mark.slow
def test_on_a_mesh_the_step_is_that_of_one_device(start, batch, said):
    mesh = make_mesh({"data": 2, "fsdp": 4})
    change = dataclasses.replace(SPLIT, microbatches=1)
    given = train.place_state(start, dense.MODEL, mesh), place_rows(batch.replace(coef={}), mesh)
    state, metrics = jax.device_get(program(change, mesh)(*given))
    check_step(state, metrics, batch, said, [0, 2, 4, 6])


@pytest.mark.slow
def test_every_minibatch_is_a_step_of_its_own(start, batch):
    change = settings(NEAR, epochs=2, minibatches=2, updates=4)
    state, metrics = program(change)(start, batch)
    assert state.opt_state.done == 4
    np.testing.assert_allclose(metrics["trust/accepted"] * 4, 4 - state.opt_state.rollbacks)
    np.testing.assert_allclose(metrics["trust/delta"], NEAR.delta, rtol=1e-6)
    assert 0 < metrics["trust/kl"] <= NEAR.delta
