"""Rounds in a run: every draw is trained on, kept, dropped or refused, and a cut between them changes nothing."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import grpo_jax
from grpo_jax import heldout
from grpo_jax.data import Difficulty
from grpo_jax.dynamic import Dynamic
from grpo_jax.experiment import Saving
from grpo_jax.loop import course, rounds
from grpo_jax.loop.phases import Scored
from grpo_jax.loop.rounds import Gathering, nothing
from grpo_jax.loop.setup import first_states
from grpo_jax.train import Stream, sample_rows, stream
from grpo_jax.types import TrainState
from tests.system.small_run import PARTS, VARIANTS

P, G, STEPS = 8, 4, 6
SEED = 8
"""Of both runs: two rounds at steps 1 and 2, groups left over behind every step."""
RUNS = {
    name: dataclasses.replace(VARIANTS[name], warm_start=None, saving=Saving(every=1), seed=SEED)
    for name in ("dynamic", "difficulty")
}


class Cut(Exception):
    """The end of a process."""


Ended = tuple[str, Path, Mapping[str, np.ndarray]]
"""Which run, its folder, and what its last state remembers, the cursor too."""


def ended(which: str, folder: Path, cut: int | None = None) -> Ended:
    """Train in `folder`, to the end or until round number `cut` (from 0) would be added: then it raises Cut."""
    states: list[TrainState] = []
    calls, add, summarise = iter(range(100)), Gathering.add, course.summarise

    def noted(experiment: Any, run: Any, state: TrainState, *rest: Any, **named: Any) -> Any:
        states.append(state)
        return summarise(experiment, run, state, *rest, **named)

    def added(self: Gathering, scored: Scored) -> bool:
        if next(calls) == cut:
            raise Cut
        return add(self, scored)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heldout, "CHUNK", 16)
        patch.setattr(course, "summarise", noted)
        patch.setattr(Gathering, "add", added)
        grpo_jax.run(RUNS[which], folder)
    return which, folder, jax.device_get({**states[0].memory, "cursor": states[0].cursor})


@pytest.fixture(scope="module", params=["dynamic", pytest.param("difficulty", marks=pytest.mark.slow)])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """A run with dynamic sampling, of prompts by their number or by difficulty."""
    return ended(request.param, tmp_path_factory.mktemp("whole") / "run")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def steps_of(folder: Path) -> list[dict[str, Any]]:
    return [row for row in lines(folder / "metrics.jsonl") if row["phase"] == "grpo" and row["step"]]


def test_every_draw_is_trained_on_kept_or_refused_and_none_twice(whole: Ended):
    which, folder, held = whole
    steps, rows = steps_of(folder), [row for row in lines(folder / "samples.jsonl") if row["set"] == "train"]
    assert len(steps) == STEPS and max(row["dynamic/rounds"] for row in steps) > 1
    assert max(row["dynamic/surplus"] for row in steps) > 0
    drawn, found, trained = 0, 0, list[int]()
    left = 0
    for row in steps:
        mine = [sample for sample in rows if sample["step"] == row["step"]]
        earlier, drawn = drawn, drawn + P * int(row["dynamic/rounds"])
        assert row["samples/drawn"] == drawn * G
        groups = [mine[begin : begin + G] for begin in range(0, len(mine), G)]
        draws = [group[0]["draw"] for group in groups]
        assert all(
            [sample["draw"] for sample in group] == [draw] * G for group, draw in zip(groups, draws, strict=True)
        )
        assert all([sample["sample"] for sample in group] == list(range(G)) for group in groups)
        # Of each group some first tokens are right and some wrong: the component that was asked.
        assert all(len({sample["components"]["accuracy"] for sample in group}) == 2 for group in groups)
        assert len(groups) == P - row["dynamic/filled"] and row["groups/count"] == len(groups)
        assert sum(draw < earlier for draw in draws) == row["dynamic/stale"] == left
        found += round((1 - row["dynamic/refused"]) * P * row["dynamic/rounds"])
        trained, left = [*trained, *draws], int(row["dynamic/surplus"])
        assert found == len(trained) + left and row["dynamic/expired"] == 0
        assert row["logp_gap/max"] < 1e-4
    assert trained == sorted(set(trained)) and trained[-1] < drawn
    assert held["cursor"] == drawn and held["dynamic.informative"].sum() == left
    if which != "difficulty":
        return
    # A class is a part of the mixture; all completions count, those of refused groups too.
    assert held["difficulty.seen"].max() == STEPS and 0 < steps[-1]["difficulty/success"] < 1
    assert steps[0]["difficulty/entropy"] == pytest.approx(-(0.25 * np.log(0.25) + 0.75 * np.log(0.75)))


def test_a_run_cut_between_two_rounds_is_the_run_in_one_go(whole: Ended, tmp_path: Path):
    which, folder, remembered = whole
    first, second = steps_of(folder)[:2]
    assert first["dynamic/surplus"] > 0  # what the checkpoint behind step 1 has to hold
    assert first["dynamic/rounds"] == second["dynamic/rounds"] == 2
    with pytest.raises(Cut):
        ended(which, tmp_path / "run", cut=3)  # behind the first round of step 2
    assert [row["step"] for row in steps_of(tmp_path / "run")] == [1]
    _, again, found = ended(which, tmp_path / "run")
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    assert found.keys() == remembered.keys() and sum(name.startswith("dynamic.") for name in found) > 10
    jax.tree.map(np.testing.assert_array_equal, found, remembered)


def test_places_are_of_the_shapes_and_dtypes_that_sampling_gives():
    experiment = VARIANTS["dynamic"]
    state = first_states(experiment, None).state
    prompts = experiment.data.draw(0, np.arange(P))
    how = {"model": experiment.model, "sampling": experiment.sampling, "group_size": G}
    sampled = jax.eval_shape(lambda: sample_rows(state.params, prompts, stream(0, Stream.ROLLOUT), state.step, **how))
    found = nothing(experiment)
    assert jax.tree.structure(found.rollouts) == jax.tree.structure(sampled)
    for ours, theirs in zip(jax.tree.leaves(found.rollouts), jax.tree.leaves(sampled), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    text = nothing(VARIANTS["dynamic_text"])
    assert set(text.status) == {"accuracy", "digits"} == set(text.reward.components)
    assert found.status == {} and rounds.first_memory(VARIANTS["plain"]) == {}


def test_recorded_rollouts_are_refused_with_either_setting(tmp_path: Path):
    plain = dataclasses.replace(VARIANTS["difficulty"].train, dynamic=None)
    for experiment, name in (
        (VARIANTS["dynamic"], "dynamic"),
        (dataclasses.replace(VARIANTS["difficulty"], train=plain), "difficulty"),
    ):
        with pytest.raises(
            ValueError, match=rf"rollouts: got .* with train\.{name}, allowed .* set train\.{name}=None"
        ):
            grpo_jax.run(experiment, tmp_path / "run", rollouts=tmp_path / "file")
    assert not (tmp_path / "run").exists()


WRONG = {
    "no such reward": (
        {"dynamic": Dynamic(component="acuracy")},
        r"train\.dynamic\.component: got 'acuracy', .*accuracy$",
    ),
    "groups of one": ({"dynamic": Dynamic(), "group_size": 1}, "train.group_size: got 1, allowed >= 2"),
    "too many draws": (
        {"dynamic": Dynamic(rounds=2**30)},
        r"train\.steps \* train\.prompts \* train\.dynamic\.rounds: got",
    ),
    "no classes": ({"difficulty": Difficulty()}, r"train\.difficulty: got Difficulty with data of type Chain"),
}


@pytest.mark.parametrize("name", sorted(WRONG))
def test_settings_that_cannot_be_run_are_refused(name: str):
    changed, sentence = WRONG[name]
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(VARIANTS["plain"], train=dataclasses.replace(VARIANTS["plain"].train, **changed))


def test_rates_are_remembered_of_a_reward_that_there_is():
    train = dataclasses.replace(VARIANTS["plain"].train, difficulty=Difficulty(component="right"))
    with pytest.raises(ValueError, match=r"train\.difficulty\.component: got 'right', allowed accuracy, digits"):
        dataclasses.replace(VARIANTS["plain"], data=PARTS, train=train)
