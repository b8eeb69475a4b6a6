"""How much a prompt weighs, by its probability of success: what each advantage climbs instead of the mean reward.

Prompts are coins: an answer is right with probability p. The gradient of the expected reward in the logit of the right
answer is p (1 - p); what an estimator has in its place, divided by that, is the weight that it gives to the prompt. It
is the derivative by p of the function of p that the estimator climbs on average.
"""

from collections.abc import Callable
from functools import partial
from math import comb

import jax
import numpy as np
import pytest

from grpo_jax import laboratory as lab
from grpo_jax import objectives as o
from grpo_jax.advantages import gpg, group_centered, group_leave_one_out, group_standardized, maxrl, passk
from grpo_jax.groups import drop_tied
from tests.laboratory.worlds import compiled, measured, near, recipe

P = np.asarray([0.02, 0.2, 0.5, 0.7, 0.95])
G, K = 4, 2


def coins(success: np.ndarray) -> lab.World:
    completions, logits, reward = lab.coins(success)
    # The reward of a prompt is averaged over the prompts: with one prompt in a world that is the prompt's own.
    return lab.World(completions=completions, logits=logits, reward=reward)


def binomial(function: Callable[[int], float], p: float, size: int = G) -> float:
    """E[function(c)] for c right answers of `size`."""
    return sum(comb(size, c) * p**c * (1 - p) ** (size - c) * function(c) for c in range(size + 1))


@pytest.fixture(scope="module")
def weight():
    """Estimator -> weight of a prompt f[P]."""
    with jax.enable_x64(True):
        rules = {
            "grpo": recipe(partial(group_standardized, eps=0.0)),
            "dr_grpo": recipe(group_centered),
            "rloo": recipe(group_leave_one_out),
            "maxrl": recipe(partial(maxrl, eps=0.0)),
            "passk": recipe(partial(passk, k=K, eps=0.0)),
            "passk, undivided": recipe(partial(passk, k=K, eps=1.0, eps_mode="max")),
        }
        worlds = {str(p): coins(np.asarray([p])) for p in P}
        found = measured(worlds, rules, group_size=G)
        return {name: np.asarray([found[str(p), name].factor for p in P]) for name in rules}


def test_dividing_by_the_deviation_favours_prompts_of_low_variance(weight: dict):
    """Dr. GRPO (arXiv 2503.20783, section 3.1): very easy and very hard prompts weigh more.

    With c right ones of G the standardised advantages add up to sqrt(c (G - c) (G - 1) / G) on the right ones, so the
    weight is sqrt((G - 1) / G^3) E[sqrt(c (G - c))] / (p (1 - p)).
    """
    expected = [((G - 1) / G**3) ** 0.5 * binomial(lambda c: (c * (G - c)) ** 0.5, p) / (p * (1 - p)) for p in P]
    near(weight["grpo"], expected)
    assert weight["grpo"][0] > weight["grpo"][1] > weight["grpo"][2] < weight["grpo"][3] < weight["grpo"][4]


@pytest.mark.slow
def test_with_groups_of_two_the_division_changes_nothing_but_the_scale():
    """Of two answers one is right or the group is tied: sqrt(c (G - c)) has one value. The preference grows with G."""
    with jax.enable_x64(True):
        worlds = {str(p): coins(np.asarray([p])) for p in P}
        found = measured(worlds, {"grpo": recipe(partial(group_standardized, eps=0.0))}, group_size=2)
    near([found[str(p), "grpo"].factor for p in P], np.full(len(P), 2**-0.5))


@pytest.mark.parametrize(("name", "constant"), [("dr_grpo", (G - 1) / G), ("rloo", 1.0)])
def test_without_the_division_every_prompt_weighs_the_same(weight: dict, name: str, constant: float):
    near(weight[name], np.full(len(P), constant))


def test_maxrl_climbs_the_series_of_the_log_likelihood_up_to_one_less_than_the_group(weight: dict):
    """MaxRL (arXiv 2602.02710): log p = -sum_k (1 - p)^k / k, cut off; the derivative is sum_{k < n} (1 - p)^k.

    The mean over right rows alone has n = G terms. Its baseline, the mean score of the group, is dropped with the
    groups that have no right row, which costs the last term: n = G - 1.
    """
    near(weight["maxrl"], [sum((1 - p) ** k for k in range(G - 1)) for p in P])


def test_passk_without_its_deviation_climbs_passk(weight: dict):
    """Arxiv 2508.10751: the gradient of 1 - (1 - p)^k, times (G - k) / (G k), the share of its own in the baseline."""
    near(weight["passk, undivided"], [(G - K) / (G * K) * K * (1 - p) ** (K - 1) for p in P])


def test_passk_as_published_climbs_something_else(weight: dict):
    """The division by the deviation of pass@k does to it what that of rewards does to GRPO."""

    def both(c: int, p: float) -> float:
        none = comb(G - c, K) / comb(G, K)
        beside = comb(G - c - 1, K - 1) / comb(G - 1, K - 1) if c < G else 0.0
        deviation = (none * (1 - none)) ** 0.5
        return 0.0 if deviation == 0 else (c * none * (1 - p) - (G - c) * (none - beside) * p) / G / deviation

    expected = [binomial(partial(both, p=p), p) / (p * (1 - p)) for p in P]
    near(weight["passk"], expected)
    share = np.asarray(expected) / [K * (1 - p) ** (K - 1) for p in P]
    assert share.max() > 1.25 * share.min()  # at G = 4; without a bound as G grows


def test_dropping_tied_groups_changes_the_objective():
    """DAPO (arXiv 2503.14476, equation 11): a prompt weighs the more, the more often the other one is dropped.

    With t the probability of a tied group, the share of a prompt in the mean goes from 1/2 to (1 + t of the other) / 2.
    GPG (arXiv 2504.02546) multiplies by rows / rows of groups that tell something: the same as dropping.
    """
    size, p = 3, np.asarray([0.05, 0.4])
    tied = p**size + (1 - p) ** size
    with jax.enable_x64(True):
        world = coins(p)
        rules = {
            "kept": recipe(group_centered, aggregation=o.token_mean),
            "dropped": recipe(group_centered, aggregation=o.token_mean, grouping=drop_tied),
            "gpg": recipe(gpg, aggregation=o.token_mean),
        }
        every = compiled(lambda x: {name: lab.exact(x, rule, group_size=size).ascent for name, rule in rules.items()})
        found = {name: ascent[:, 0, 1] for name, ascent in every(world).items()}
    gradient = (size - 1) / size * p * (1 - p)
    near(found["kept"], gradient / 2)
    near(found["dropped"], gradient * (1 + tied[::-1]) / 2)
    near(found["gpg"], found["dropped"])
