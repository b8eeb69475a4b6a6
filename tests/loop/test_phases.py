"""Phases of a step: their clock, their memory, and what they share."""

import dataclasses
import time
from typing import Any

import jax
import numpy as np
import pytest

from grpo_jax import compiled
from grpo_jax.experiment import Experiment, step_settings
from grpo_jax.loop import phases
from grpo_jax.loop.phases import Phases, Scored, Stopwatch
from grpo_jax.loop.setup import judge, problems, workers
from grpo_jax.objectives import dr_grpo
from grpo_jax.rewards.guards import FailureLimit
from grpo_jax.rewards.pool import Pool
from grpo_jax.train import init_state
from tests.laws import tiny
from tests.system.small_run import DATA, PLAIN, VARIANTS


def test_the_first_run_of_a_process_pays_for_all_of_it_and_a_later_one_for_itself(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(phases, "_UNCLAIMED", [(12.0, 0.0)])
    assert phases.begun() == (12.0, 0.0)
    before = (time.monotonic(), time.process_time())
    later = phases.begun()
    assert all(a <= b for a, b in zip(before, later, strict=True))


def test_a_stopwatch_accounts_for_every_second():
    now = iter([10.0, 11.0, 13.0, 13.5, 20.0])
    clock = Stopwatch(now=lambda: next(now))
    for name in ("a", "b", "a"):
        clock.mark(name)
    assert clock.lap() == {"a": 1.0 + 0.5, "b": 2.0}
    clock.mark("b")
    assert clock.lap() == {"b": 6.5} and clock.lap() == {}


def test_the_chunks_of_a_step_are_joined_row_by_row():
    chosen = np.arange(2 * tiny.P * tiny.G * tiny.T, dtype=np.int32).reshape(2, -1, tiny.T, 1)
    part = tiny.rows().replace(experts=chosen)
    both = phases.joined([part, part])
    np.testing.assert_array_equal(both.experts, np.concatenate([chosen, chosen], axis=1))
    np.testing.assert_array_equal(both.tokens, np.concatenate([part.tokens, part.tokens]))
    np.testing.assert_array_equal(both.prompt, np.repeat(np.arange(2 * tiny.P), tiny.G))


def ready(experiment: Experiment, pool: Pool | None = None, chunks: int = 1) -> Phases:
    found = judge(experiment, problems(experiment), pool)
    reference = init_state(0, step_settings(experiment).gradient).params
    how = {"clock": Stopwatch(), "failures": FailureLimit(), "chunks": chunks}
    return Phases(step_settings(experiment), found, reference, **how)


def test_runs_that_differ_in_their_recipe_share_all_but_the_update(monkeypatch: pytest.MonkeyPatch):
    made: list[object] = []

    def noted(*args: Any, **kwargs: Any) -> object:
        made.append(compiled.compiled(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(phases, "compiled", noted)
    ready(PLAIN)
    ready(dataclasses.replace(PLAIN, recipe=dr_grpo(), optimizer=dataclasses.replace(PLAIN.optimizer, b1=0.5)))
    (sample, refer, learn, reward), others = made[:4], made[4:]
    assert (others[0], others[1], others[3]) == (sample, refer, reward) and others[2] is not learn


@pytest.mark.parametrize(
    "own", [pytest.param(False, marks=pytest.mark.slow), True], ids=["in this process", "in workers"]
)
def test_chunks_change_neither_tokens_nor_rewards(own: bool):
    experiment = VARIANTS["text"] if own else dataclasses.replace(VARIANTS["text"], text_rewards=DATA.text_rewards())
    state, prompts = init_state(0, step_settings(experiment).gradient), experiment.data.draw(0, np.arange(16, 24))
    whole: Scored | None = None
    with workers(experiment) as pool:
        assert (pool is not None) == own
        for count in (1, 2, 8):
            run = ready(experiment, pool, count)
            parts = run.rollout(state, prompts)
            assert [part.prompts.length.shape[0] for part in parts] == [8 // count] * count
            found = run.score(state, parts)
            whole = whole or found
            assert found.scores == whole.scores and found.texts == whole.texts
            jax.tree.map(np.testing.assert_array_equal, found.reward, whole.reward)
            for name in ("prompts", "prompt", "sample", "tokens", "length", "stopped", "mask", "version"):
                jax.tree.map(
                    np.testing.assert_array_equal, getattr(found.rollouts, name), getattr(whole.rollouts, name)
                )
            np.testing.assert_allclose(found.rollouts.logp_full, whole.rollouts.logp_full, atol=1e-5)


@pytest.mark.parametrize("variant", ["plain", "text"])
def test_a_step_goes_through_its_phases_in_order(variant: str):
    experiment = VARIANTS[variant]
    run, clock = ready(experiment), Stopwatch()
    run._clock = clock
    state = init_state(0, step_settings(experiment).gradient)
    state, learned = run.learn(state, run.score(state, run.rollout(state, experiment.data.draw(0, np.arange(8)))))
    assert list(clock.lap()) == ["rollout", "reward"]  # nobody has to look at the rows
    assert (learned.scored.scores is None) == (learned.scored.texts is None) == (variant == "plain")
    assert int(state.step) == 1 and learned.batch.logp_ref is None  # the recipe has no use for a reference
