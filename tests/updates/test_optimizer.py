"""The rate over a run and the first steps of the optimiser, by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.updates import SGD, AnyOptimizer, Optimizer, TrustRegion, build, learning_rate


def rates(settings: Optimizer, updates: int, at: list[int]) -> list[float]:
    schedule = learning_rate(settings, updates)
    return [np.asarray(schedule(count)).item() for count in at]


def test_a_constant_rate_is_constant():
    assert rates(Optimizer(learning_rate=0.5), 10, [0, 5, 9]) == [0.5, 0.5, 0.5]


def test_the_rate_rises_to_its_peak_in_the_warm_up():
    settings = Optimizer(learning_rate=1.0, warmup=3)
    assert rates(settings, 10, [0, 1, 2, 3, 9]) == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1.0, 1.0])  # the first is not 0


def test_a_line_falls_to_its_end_when_all_updates_are_done():
    settings = Optimizer(learning_rate=1.0, warmup=2, schedule="linear", final=0.2)
    # after the warm-up 8 updates are left, each 0.8 / 8 lower than the one before
    assert rates(settings, 10, [2, 3, 6, 10, 12]) == pytest.approx([1.0, 0.9, 0.6, 0.2, 0.2])


def test_a_half_cosine_falls_to_its_end_when_all_updates_are_done():
    settings = Optimizer(learning_rate=1.0, schedule="cosine", final=0.2)
    half = 0.2 + 0.8 * (1 + np.cos(np.pi / 4)) / 2
    assert rates(settings, 8, [0, 2, 4, 8]) == pytest.approx([1.0, half, 0.6, 0.2])


def test_a_warm_up_longer_than_the_run_does_not_fail():
    assert rates(Optimizer(learning_rate=1.0, warmup=9, schedule="linear"), 5, [0, 4]) == pytest.approx([0.1, 0.5])


def first_step(settings: Optimizer | SGD, gradient: list[float], params: list[float]) -> np.ndarray:
    optimizer, start = build(settings, 10), {"w": jnp.asarray(params)}
    step, _ = optimizer.update({"w": jnp.asarray(gradient)}, optimizer.init(start), start)
    return np.asarray(jax.tree.leaves(step)[0])


def test_the_first_step_of_adam_by_hand():
    settings = Optimizer(learning_rate=0.1, eps=1.0, clip_norm=0.0)
    # corrected means are g and g^2: step = -0.1 g / (|g| + 1)
    expected = [-0.1 * 3 / 4, 0.1 * 1 / 2, 0.0]
    np.testing.assert_allclose(first_step(settings, [3.0, -1.0, 0.0], [9.0, 9.0, 9.0]), expected, rtol=1e-6)


def test_the_second_step_of_adam_by_hand():
    settings = Optimizer(learning_rate=1.0, b1=0.5, b2=0.75, eps=1.0, clip_norm=0.0)
    optimizer, params = build(settings, 10), {"w": jnp.asarray([0.0])}
    state, steps = optimizer.init(params), []
    for gradient in (2.0, 4.0):
        step, state = optimizer.update({"w": jnp.asarray([gradient])}, state, params)
        steps.append(np.asarray(jax.tree.leaves(step)[0])[0])
    # m = (0.5 (0.5 * 2) + 0.5 * 4) / (1 - 0.5^2) = 10 / 3;  v = (0.75 (0.25 * 4) + 0.25 * 16) / (1 - 0.75^2) = 76 / 7
    np.testing.assert_allclose(steps, [-2 / 3, -(10 / 3) / ((76 / 7) ** 0.5 + 1)], rtol=1e-6)


def test_gradients_are_clipped_by_their_norm_together():
    settings = Optimizer(learning_rate=1.0, eps=1.0, clip_norm=1.0)
    # |(3, 4)| = 5, so the clipped gradient is (0.6, 0.8)
    np.testing.assert_allclose(first_step(settings, [3.0, 4.0], [0.0, 0.0]), [-0.6 / 1.6, -0.8 / 1.8], rtol=1e-6)
    # a shorter one stays as it is
    np.testing.assert_allclose(first_step(settings, [0.3, 0.4], [0.0, 0.0]), [-0.3 / 1.3, -0.4 / 1.4], rtol=1e-6)


def test_weight_decay_is_apart_from_the_gradient():
    settings = Optimizer(learning_rate=0.5, weight_decay=0.1, clip_norm=0.0)
    np.testing.assert_allclose(
        first_step(settings, [0.0, 0.0], [2.0, -4.0]), [-0.5 * 0.1 * 2, 0.5 * 0.1 * 4], rtol=1e-6
    )


def test_gradient_descent_with_momentum_by_hand():
    settings = SGD(learning_rate=0.1, momentum=0.5, clip_norm=0.0)
    optimizer, params = build(settings, 10), {"w": jnp.asarray([0.0])}
    state, steps = optimizer.init(params), []
    for gradient in (2.0, 4.0, 0.0):
        step, state = optimizer.update({"w": jnp.asarray([gradient])}, state, params)
        steps.append(np.asarray(jax.tree.leaves(step)[0])[0])
    # v = 2, then 4 + 0.5 * 2 = 5, then 0 + 0.5 * 5 = 2.5
    np.testing.assert_allclose(steps, [-0.2, -0.5, -0.25], rtol=1e-6)


def test_plain_gradient_descent_is_proportional_and_keeps_nothing():
    settings = SGD(learning_rate=0.1, clip_norm=0.0)
    np.testing.assert_allclose(first_step(settings, [3.0, -4.0], [9.0, 9.0]), [-0.3, 0.4], rtol=1e-6)
    np.testing.assert_allclose(first_step(SGD(learning_rate=0.1), [3.0, -4.0], [9.0, 9.0]), [-0.06, 0.08], rtol=1e-6)
    kept = jax.tree.leaves(build(settings, 10).init({"w": jnp.zeros(3)}))
    assert [x.shape for x in kept] == [()]  # the count of the schedule


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schedule": "step"}, "got 'step', allowed constant, linear, cosine"),
        ({"learning_rate": 0.0}, "learning_rate: got 0.0, allowed > 0"),
        ({"learning_rate": float("nan")}, "learning_rate: got nan"),
        ({"eps": 0.0}, "eps: got 0.0"),
        ({"warmup": -1}, "warmup: got -1, allowed >= 0"),
        ({"clip_norm": -0.5}, "clip_norm: got -0.5"),
        ({"weight_decay": float("nan")}, "weight_decay: got nan"),
        ({"b1": 1.0}, "b1: got 1.0, allowed 0 <= b1 < 1"),
        ({"b2": -0.1}, "b2: got -0.1"),
    ],
)
def test_a_setting_out_of_range_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        Optimizer(**change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"momentum": 1.0}, "momentum: got 1.0, allowed 0 <= momentum < 1"),
        ({"learning_rate": -1.0}, "learning_rate: got -1.0, allowed > 0"),
        ({"schedule": "step"}, "got 'step', allowed constant, linear, cosine"),
        ({"clip_norm": float("nan")}, "clip_norm: got nan"),
    ],
)
def test_a_setting_of_gradient_descent_out_of_range_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        SGD(**change)


POLICY, CRITIC = {"w": jnp.asarray([3.0, -1.0])}, {"weight": jnp.asarray([2.0, 0.5, 1.0]), "bias": jnp.asarray(1.0)}
BOTH = {**POLICY, "critic": CRITIC}
DECAYING = Optimizer(learning_rate=0.1, warmup=1, schedule="linear", weight_decay=0.5, clip_norm=1.0)


def walk(settings: AnyOptimizer, params: dict, *, critic: bool | None, steps: int = 3) -> list[dict]:
    """Parameters before and after every step along gradients that differ from step to step."""
    optimizer, path = build(settings, 5, critic=critic), [params]
    state = optimizer.init(params)
    for number in range(steps):
        gradient = jax.tree.map(lambda x, n=number: x * (1.0 + n), path[-1])
        step, state = optimizer.update(gradient, state, path[-1])
        path.append(jax.tree.map(jnp.add, path[-1], step))
    return path


@pytest.mark.parametrize("settings", [DECAYING, SGD(learning_rate=0.1, momentum=0.5)], ids=["adam", "sgd"])
def test_policy_and_critic_learn_as_by_two_optimisers(settings: Optimizer | SGD):
    together = walk(dataclasses.replace(settings, critic_rate=3.0), BOTH, critic=True)
    policy = walk(settings, POLICY, critic=None)
    critic = walk(dataclasses.replace(settings, learning_rate=3.0 * settings.learning_rate), CRITIC, critic=None)
    expected = [{**a, "critic": b} for a, b in zip(policy, critic, strict=True)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), together, expected)


def test_the_policy_waits_for_the_critic():
    waiting = walk(dataclasses.replace(DECAYING, critic_warmup=2), BOTH, critic=True)
    for late, params in enumerate(waiting[:3]):
        np.testing.assert_array_equal(params["w"], POLICY["w"])
        assert late == 0 or np.all(np.asarray(params["critic"]["weight"]) != CRITIC["weight"])
    assert np.all(np.asarray(waiting[3]["w"]) != POLICY["w"])
    alone = walk(DECAYING, CRITIC, critic=None)
    np.testing.assert_allclose(waiting[3]["critic"]["weight"], alone[3]["weight"], rtol=1e-6)


def test_a_critic_that_nobody_teaches_does_not_decay():
    resting = walk(dataclasses.replace(DECAYING, critic_warmup=9), BOTH, critic=False)
    jax.tree.map(np.testing.assert_array_equal, resting[3]["critic"], CRITIC)
    np.testing.assert_allclose(resting[3]["w"], walk(DECAYING, POLICY, critic=None)[3]["w"], rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"delta": 0.0}, "optimizer.delta: got 0.0, allowed > 0"),
        ({"delta": float("nan")}, "delta: got nan"),
        ({"final": 1.1}, "final: got 1.1, allowed 0 <= final <= 1"),
        ({"damping": -0.1}, "damping: got -0.1, allowed >= 0"),
        ({"iterations": 0}, "iterations: got 0, allowed >= 1"),
        ({"tolerance": 1.0}, "tolerance: got 1.0, allowed 0 <= tolerance < 1"),
        ({"backtracks": -1}, "backtracks: got -1, allowed >= 0"),
        ({"shrink": 1.0}, "shrink: got 1.0, allowed 0 < shrink < 1"),
        ({"fisher_share": 0.0}, "fisher_share: got 0.0, allowed 0 < fisher_share <= 1"),
        ({"fisher_share": 1.5}, "fisher_share: got 1.5"),
    ],
)
def test_a_setting_of_a_trust_region_out_of_range_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        TrustRegion(**change)


def test_a_trust_region_stands_for_no_transformation_of_gradients():
    with pytest.raises(ValueError, match="got TrustRegion, allowed Optimizer, SGD"):
        build(TrustRegion(), 10)
