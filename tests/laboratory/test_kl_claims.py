"""What the estimators of the KL divergence estimate, in value and in gradient: claims of the literature, exactly.

Schulman, "Approximating KL divergence" (2020); "On a few pitfalls in KL divergence gradient estimation for RL", arXiv
2506.09477; DeepSeek-V3.2, arXiv 2512.02556. The aggregation is the mean over rows of the sum over tokens: what is
measured is of a whole completion.
"""

import functools
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
import pytest

from grpo_jax import laboratory as lab
from grpo_jax import objectives as o
from grpo_jax.advantages import group_leave_one_out
from tests.laboratory.worlds import Result, bandit, chain, compiled, measured, near, recipe

BETA = 0.3
PLACES = ("bandit", pytest.param("chain", marks=pytest.mark.slow))
PENALTIES = {
    "k1": partial(o.kl_penalty, estimator=o.k1),
    "k2": partial(o.kl_penalty, estimator=o.k2),
    "k3": partial(o.kl_penalty, estimator=o.k3),
    "abs": partial(o.kl_penalty, estimator=o.absolute),
    "straight_through": partial(o.kl_penalty, estimator=o.straight_through),
    "exact": o.kl_exact,
    "k3 by itself": partial(o.kl_penalty, weight=o.over_itself),
    "k1 by itself": partial(o.kl_penalty, estimator=o.k1, weight=o.over_itself),
    "k3 by old": partial(o.kl_penalty, weight=o.over_old),
}


def truths(world: lab.World) -> dict:
    """Divergences and their gradients, by summing over all completions."""
    listed, policy, reference = world.completions, world.logits, world.reference_logits
    visited = jax.lax.stop_gradient(policy)

    def value_and_slope(function: Callable) -> tuple:
        return jax.value_and_grad(function)(policy)

    return {
        "forward": value_and_slope(lambda z: lab.divergence(listed, z, reference)),
        "backward": value_and_slope(lambda z: lab.divergence(listed, reference, z)),
        "visited": value_and_slope(lambda z: lab.local_divergence(listed, z, reference, visited)),
        "visited backward": value_and_slope(lambda z: lab.local_divergence(listed, reference, z, visited)),
        "visited by old": value_and_slope(lambda z: lab.local_divergence(listed, z, reference, world.old_logits)),
        "reward": lab.policy_gradient(world),
    }


class Seen(NamedTuple):
    """Results and truths of two worlds of one shape, "fresh" and "stale", by name."""

    results: dict[tuple[str, str], Result]
    truth: dict[str, dict]


@functools.cache
def seen(place: str) -> Seen:
    """A bandit, or a chain: on-policy, and with an old policy that is another one."""
    make = {"bandit": bandit, "chain": chain}[place]
    with jax.enable_x64(True):
        fresh = make(3)
        worlds = {"fresh": fresh, "stale": fresh.replace(old=make(1).logits)}
        rules = {name: recipe(term=penalty) for name, penalty in PENALTIES.items()}
        for name, kernel in (("k1", o.k1), ("k3", o.k3)):
            paid = partial(o.penalized_outcome, advantage=group_leave_one_out, coef=BETA, estimator=kernel)
            rules[f"{name} in the reward"] = recipe(paid)
        truth = compiled(lambda given: {name: truths(world) for name, world in given.items()})(worlds)
        return Seen(measured(worlds, rules, group_size=2), truth)


@pytest.mark.parametrize("place", PLACES)
def test_k1_in_the_loss_has_the_right_value_and_no_gradient(place: str):
    """Arxiv 2506.09477, section 3: the derivative of k1 is the score, whose mean is zero."""
    moments = seen(place).results["fresh", "k1"]
    near(moments.loss, seen(place).truth["fresh"]["forward"][0])
    near(moments.ascent, 0.0)
    assert moments.variance > 0.1  # what it adds is noise
    assert np.linalg.norm(seen(place).truth["fresh"]["forward"][1]) > 0.1


def test_k2_in_the_loss_has_the_gradient_of_the_divergence_from_the_reference_and_another_value():
    """Schulman 2020; arXiv 2506.09477."""
    moments, truth = seen("bandit").results["fresh", "k2"], seen("bandit").truth["fresh"]["forward"]
    near(-moments.ascent, truth[1])
    assert abs(moments.loss / truth[0] - 1) > 0.05


def test_k3_in_the_loss_has_the_value_of_one_divergence_and_the_gradient_of_the_other():
    """Arxiv 2506.09477: the gradient of k3 is that of KL(reference || policy)."""
    moments, truth = seen("bandit").results["fresh", "k3"], seen("bandit").truth["fresh"]
    near(moments.loss, truth["forward"][0])
    near(-moments.ascent, truth["backward"][1])
    assert np.linalg.norm(truth["forward"][1] - truth["backward"][1]) > 0.05


@pytest.mark.parametrize("name", ["straight_through", "k3 by itself", "k1 by itself", "k3 by old", "exact"])
def test_on_policy_these_have_the_right_value_and_the_right_gradient(name: str):
    moments, truth = seen("bandit").results["fresh", name], seen("bandit").truth["fresh"]["forward"]
    near(moments.loss, truth[0])
    near(-moments.ascent, truth[1])


def test_the_absolute_log_ratio_is_no_estimator_of_the_divergence():
    moments, truth = seen("bandit").results["fresh", "abs"], seen("bandit").truth["fresh"]["forward"]
    assert abs(moments.loss / truth[0] - 1) > 0.05
    assert not np.allclose(-moments.ascent, truth[1], atol=0.05)


def test_off_policy_only_the_weighted_form_has_value_and_gradient():
    """DeepSeek-V3.2, arXiv 2512.02556, equation 7: k3 times policy / old, differentiated through both."""
    truth = seen("bandit").truth["stale"]["forward"]
    moments = {name: seen("bandit").results["stale", name] for name in PENALTIES}
    right = [
        name
        for name, x in moments.items()
        if np.allclose(x.loss, truth[0], rtol=1e-9) and np.allclose(-x.ascent, truth[1], rtol=1e-9)
    ]
    assert right == ["exact", "k3 by old"]  # a bandit has one state, which every policy visits


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("k2", "visited"),
        ("straight_through", "visited"),
        ("exact", "visited"),
        ("k3 by itself", "visited"),
        ("k3", "visited backward"),
    ],
)
def test_in_a_sequence_the_gradient_is_that_at_the_states_visited(name: str, truth: str):
    """Token by token the loss does not see that earlier tokens choose the later states: arXiv 2506.09477, section 4."""
    near(-seen("chain").results["fresh", name].ascent, seen("chain").truth["fresh"][truth][1])
    assert not np.allclose(
        seen("chain").truth["fresh"]["visited"][1], seen("chain").truth["fresh"]["forward"][1], atol=0.01
    )


@pytest.mark.slow
def test_in_a_stale_sequence_the_weighted_form_is_right_at_the_states_of_the_old_policy():
    moments, truth = seen("chain").results["stale", "k3 by old"], seen("chain").truth["stale"]["visited by old"]
    near(moments.loss, truth[0])
    near(-moments.ascent, truth[1])


@pytest.mark.parametrize("place", PLACES)
def test_k1_in_the_reward_has_the_whole_gradient_of_the_divergence(place: str):
    """Arxiv 2506.09477: REINFORCE on R - beta sum k1 ascends J - beta KL(policy || reference), states included."""
    truth = seen(place).truth["fresh"]
    near(seen(place).results["fresh", "k1 in the reward"].ascent, truth["reward"] - BETA * truth["forward"][1])


def test_k3_in_the_reward_subtracts_the_other_divergence():
    """E[(e^d - d - 1) score] = sum(ref score) - E[d score]: the gradient of KL(p || q) minus that of KL(q || p)."""
    truth = seen("bandit").truth["fresh"]
    paid = truth["forward"][1] - truth["backward"][1]
    near(seen("bandit").results["fresh", "k3 in the reward"].ascent, truth["reward"] - BETA * paid)
