"""What the mean over tokens does to lengths: claims of the literature, exactly.

The first token says whether the answer is right; every token behind it is filler, until the stop token. The reward is
known with the first token, so the gradient of the expected reward does not touch the choice between filler and stop:
whatever an estimator does there on average is a bias on length.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import laboratory as lab
from grpo_jax import objectives as o
from grpo_jax.advantages import group_centered, group_leave_one_out
from tests.laboratory.worlds import compiled, measured, near, recipe

STOP, RIGHT, WRONG, MOST = 0, 1, 2, 4
GRAMMAR = {(): (RIGHT, WRONG), (RIGHT,): (STOP, RIGHT), (WRONG,): (STOP, WRONG)}


def answers(right: float, *, longer: float = 1.0) -> lab.World:
    """Right with probability `right`; `longer` is the logit of more filler."""
    completions = lab.sentences(vocab=3, length=MOST, stop=STOP, grammar=GRAMMAR)
    states, first = int(completions.state.max()) + 1, np.asarray(completions.tokens[:, 0])
    logits = np.zeros((1, states, 3))
    logits[0, 0, RIGHT] = np.log(right / (1 - right))
    logits[0, 1:, [RIGHT, WRONG]] = longer
    reward = (first == RIGHT).astype(float)[None]
    return lab.World(completions=completions, logits=jnp.asarray(logits), reward=jnp.asarray(reward))


def slopes(world: lab.World) -> dict:
    """Gradients of the mean length of the right, of the wrong and of all completions."""
    length, right = world.completions.length.astype(world.logits.dtype)[None], world.reward

    def mean(logits, rows):
        chance = lab.probability(lab.log_probs(world.completions, logits)) * rows
        return jnp.sum(chance * length) / jnp.sum(chance)

    among = {"right": right, "wrong": 1.0 - right, "all": jnp.ones_like(right)}
    return {name: jax.grad(mean)(world.logits, rows) for name, rows in among.items()}


@pytest.fixture(scope="module")
def drift():
    """(world, recipe) -> change of the mean lengths by an update, to first order; and how it lies to the truth."""
    with jax.enable_x64(True):
        worlds = {"hard": answers(0.1), "even": answers(0.5), "easy": answers(0.9)}
        gspo, luspo = (rule.parts[0] for rule in (o.gspo(), o.luspo()))
        rules = {
            "sum": recipe(group_leave_one_out),
            "fixed": recipe(group_leave_one_out, aggregation=partial(o.fixed_length, constant=float(MOST))),
            "luspo": recipe(group_leave_one_out, luspo.term, luspo.aggregation),
            "row": recipe(group_leave_one_out, aggregation=o.sequence_mean_token_mean),
            "gspo": recipe(group_leave_one_out, gspo.term, gspo.aggregation),
            "token": recipe(group_leave_one_out, aggregation=o.token_mean),
        }
        along = compiled(slopes)
        found = {}
        for (place, rule), x in measured(worlds, rules, group_size=3).items():
            changes = {name: float(np.sum(slope * x.ascent)) for name, slope in along(worlds[place]).items()}
            found[place, rule] = changes | {"factor": float(x.factor), "aside": float(x.aside)}
        return found


@pytest.mark.parametrize("place", ["hard", "even", "easy"])
@pytest.mark.parametrize(("rule", "factor"), [("sum", 1.0), ("fixed", 1 / MOST), ("luspo", 1.0)])
def test_a_sum_over_tokens_leaves_lengths_alone(drift: dict, rule: str, factor: float, place: str):
    """Dr. GRPO (arXiv 2503.20783): a constant in the place of the length; LUSPO (2602.05261): the length put back."""
    found = drift[place, rule]
    near([found["factor"], found["aside"]], [factor, 0.0])
    near([found["right"], found["wrong"]], [0.0, 0.0])


@pytest.mark.parametrize("place", ["hard", "even", "easy"])
@pytest.mark.parametrize("rule", ["row", "gspo"])
def test_the_mean_over_the_row_shortens_right_answers_and_lengthens_wrong_ones(drift: dict, rule: str, place: str):
    """Dr. GRPO (arXiv 2503.20783, section 3.1): 1 / |o| rewards brevity where A > 0 and excuses length where A < 0.

    GSPO's ratio of a row is a mean over its tokens and has the same gradient on-policy.
    """
    found = drift[place, rule]
    assert found["right"] < -1e-3 and found["wrong"] > 1e-3
    assert found["aside"] > 0.05
    near(found["right"], drift[place, "row"]["right"])


def test_while_most_answers_are_wrong_the_mean_over_the_row_lengthens_them(drift: dict):
    """What shows in training curves: with few right answers the mean length grows, with many it falls."""
    assert drift["hard", "row"]["all"] > 0 > drift["easy", "row"]["all"]


def test_the_mean_over_the_tokens_of_the_batch_is_biased_the_same_way(drift: dict):
    """DAPO's mean (arXiv 2503.14476) divides by a number of tokens in which the sample's own length is."""
    for place in ("hard", "even", "easy"):
        assert drift[place, "row"]["right"] < drift[place, "token"]["right"] < -1e-4
        assert drift[place, "row"]["wrong"] > drift[place, "token"]["wrong"] > 1e-4


def test_the_weight_of_a_token_falls_with_the_length_of_its_row():
    """Sequence mean: a token of a right answer of n tokens weighs A / n; its sum over the answer is A whatever n."""
    with jax.enable_x64(True):
        world = answers(0.5)
        short, long, wrong = (
            row_of(world, words) for words in ((RIGHT, 0, 0, 0), (RIGHT, RIGHT, RIGHT, 0), (WRONG, 0, 0, 0))
        )
        rule = recipe(group_centered, aggregation=o.sequence_mean_token_mean)
        batches = jnp.asarray([[short, wrong], [long, wrong]], jnp.int32)
        slope = compiled(jax.vmap(partial(lab.gradient, world, rule, group_size=2)))(batches)[1]
    # Two rows, A = 1/2 and -1/2, the first token's score 1/2: (1/2) (1/2) (1/2) / n from each row of n tokens.
    near(-slope[:, 0, 0, RIGHT], [1 / 16 + 1 / 16, 1 / 32 + 1 / 16])


def row_of(world: lab.World, words: tuple[int, ...]) -> int:
    (place,) = np.nonzero((np.asarray(world.completions.tokens) == np.asarray(words)).all(axis=1))[0]
    return int(place)
