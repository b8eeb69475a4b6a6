"""The greedy completion of a prompt is a baseline of its rows, and changes nothing else of a step."""

import dataclasses

import jax
import numpy as np
import pytest

from grpo_jax.advantages import remax
from grpo_jax.experiment import Experiment, step_settings
from grpo_jax.loop.phases import Phases, Scored, Stopwatch
from grpo_jax.loop.setup import judge, problems
from grpo_jax.rewards.guards import FailureLimit
from grpo_jax.sampling import generate
from grpo_jax.train import init_state
from tests.system.small_run import DATA, PLAIN, VARIANTS

RECIPE = dataclasses.replace(PLAIN.recipe, advantage=remax)
IN_PROCESS = dataclasses.replace(VARIANTS["text"], text_rewards=DATA.text_rewards())


def scored(experiment: Experiment, chunks: int = 1) -> tuple[Phases, Scored]:
    how = {"clock": Stopwatch(), "failures": FailureLimit(), "chunks": chunks}
    phases = Phases(step_settings(experiment), judge(experiment, problems(experiment)), None, **how)
    state = init_state(0, step_settings(experiment).gradient)
    return phases, phases.score(state, phases.rollout(state, experiment.data.draw(0, np.arange(8))))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "chunks"),
    [(PLAIN, 1), (IN_PROCESS, 2)],
    ids=["on tokens", "on text in two chunks"],
)
def test_rows_know_what_the_greedy_completion_of_their_prompt_earns(experiment: Experiment, chunks: int):
    _, plain = scored(experiment, chunks)
    phases, found = scored(dataclasses.replace(experiment, recipe=RECIPE), chunks)
    for name in ("tokens", "logp", "length"):
        np.testing.assert_array_equal(getattr(found.rollouts, name), getattr(plain.rollouts, name))
    np.testing.assert_array_equal(found.reward.outcome, plain.reward.outcome)
    assert plain.reward.greedy is None
    greedy = np.asarray(found.reward.greedy).reshape(8, -1)
    assert np.all(greedy == greedy[:, :1]) and len(np.unique(greedy)) > 1
    # The same again by hand: the most likely token at every place.
    settings = step_settings(experiment)
    params = init_state(0, settings.gradient).params
    prompts = jax.tree.map(np.asarray, experiment.data.draw(0, np.arange(8)))
    sampling = experiment.sampling.replace(temperature=0.0)
    rows = generate(params, experiment.model, prompts, sampling, jax.random.key(9), group_size=1)
    if settings.reward is not None:
        np.testing.assert_allclose(greedy[:, 0], np.asarray(settings.reward(rows).outcome))
    # Rollouts that were recorded without a baseline get one when they are learned from.
    state = init_state(0, step_settings(dataclasses.replace(experiment, recipe=RECIPE)).gradient)
    _, learned = phases.learn(state, Scored(found.rollouts, found.reward.replace(greedy=None)))
    np.testing.assert_array_equal(np.asarray(learned.batch.reward.greedy).reshape(8, -1), greedy)
    advantage = np.asarray(learned.batch.advantage)[:, 0]
    np.testing.assert_allclose(advantage, np.asarray(found.reward.outcome) - greedy.reshape(-1), atol=1e-6)
