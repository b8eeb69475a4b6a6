"""Rollouts in a file: what comes back is what was sampled, to the last bit, and only to those it was recorded for."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import grpo_jax
from grpo_jax import heldout
from grpo_jax.experiment import Train
from grpo_jax.journal import read
from grpo_jax.lifeline import DataError, RunStopped
from grpo_jax.loop.phases import Phases, Scored
from grpo_jax.loop.recorded import _packed, _unpacked, recorded
from grpo_jax.objectives import dr_grpo
from grpo_jax.rewards.text import Score
from grpo_jax.updates import Optimizer
from tests.laws import tiny
from tests.system.small_run import DATA, VARIANTS
from tests.system.small_text import always

COLD = VARIANTS["cold"]
TEXT = dataclasses.replace(COLD, reward=None)
OTHER = dataclasses.replace(COLD, name="other", recipe=dr_grpo(), optimizer=Optimizer(learning_rate=3e-2))


@pytest.fixture(autouse=True)
def _small_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heldout, "CHUNK", 16)


def outcome(folder: Path, summary: grpo_jax.Summary, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    metrics = [{k: v for k, v in row.items() if k not in without} for row in read(folder / "metrics.jsonl")]
    return {"metrics": metrics, "samples": read(folder / "samples.jsonl"), "digest": summary.state_digest}


def steps(folder: Path) -> list[dict[str, Any]]:
    return [row for row in read(folder / "metrics.jsonl") if row["step"]]


def rows(folder: Path, *fields: str) -> list[tuple]:
    found = [row for row in read(folder / "samples.jsonl") if row["set"] == "train"]
    return [tuple(str(row[name]) for name in fields) for row in found]


# Numbers


ODD = np.array([0.1, -0.0, np.nan, np.inf, -np.inf, np.float32(1e-45), 16777216.0, np.pi], np.float32)


@pytest.mark.parametrize(
    "array",
    [ODD, ODD.reshape(2, 4), ODD[:0], np.arange(6, dtype=np.int32).reshape(2, 3), np.array([True, False])],
    ids=["floats", "table", "empty", "integers", "booleans"],
)
def test_arrays_come_back_bit_for_bit(array: np.ndarray):
    back = _unpacked(json.loads(json.dumps(_packed(array))))
    assert back.dtype == array.dtype and back.shape == array.shape and back.tobytes() == array.tobytes()


def test_an_array_that_is_not_what_it_says_is_refused():
    whole = _packed(ODD)
    for wrong in ({"shape": [9]}, {"dtype": "float64"}, {"base64": "?"}):
        with pytest.raises(ValueError, match=r"another length|an array of float64|base64"):
            _unpacked({**whole, **wrong})


def test_a_step_comes_back_with_every_field(tmp_path: Path):
    chosen = np.arange(3 * tiny.P * tiny.G * tiny.T * 2, dtype=np.int32).reshape(3, -1, tiny.T, 2)
    rollouts = tiny.rows().replace(version=np.full(tiny.P * tiny.G, 5, np.int32), experts=chosen)
    token = np.random.default_rng(1).normal(size=rollouts.tokens.shape).astype(np.float32)
    reward = tiny.rewards().replace(token=token, components={"accuracy": ODD.repeat(4)})
    scores = {"accuracy": tuple(Score(float(v), "ok", "why\n\u001b[31m") for v in ODD.repeat(4))}
    with recorded(tmp_path / "a.jsonl", COLD) as tape:
        assert tape.find(3, rollouts.prompts) is None
        assert tape.keep(3, Scored(rollouts, reward, scores)).replayed is False
    with recorded(tmp_path / "a.jsonl", COLD) as tape:
        found = tape.find(3, rollouts.prompts)
        assert found is not None and found.replayed is False and found.scores is not None
        for x, y in zip(
            jax.tree.leaves((found.rollouts, found.reward)), jax.tree.leaves((rollouts, reward)), strict=True
        ):
            assert x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()
        assert [(s.status, s.detail) for s in found.scores["accuracy"]] == [
            (s.status, s.detail) for s in scores["accuracy"]
        ]
        other = rollouts.prompts.replace(draw=rollouts.prompts.draw + 1)
        with pytest.raises(DataError, match="they answer other draws"):
            tape.find(3, other)
    with recorded(tmp_path / "a.jsonl", OTHER) as tape:
        found = tape.find(3, rollouts.prompts)
        assert found is not None and found.replayed is True
    with recorded(tmp_path / "a.jsonl", dataclasses.replace(COLD, seed=1)) as tape:
        assert tape.find(3, rollouts.prompts) is None


# Runs


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A file that `COLD` has recorded, and what that run came to."""
    folder = tmp_path_factory.mktemp("recorded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heldout, "CHUNK", 16)
        summary = grpo_jax.run(COLD, folder / "run", rollouts=folder / "rollouts.jsonl")
    return folder / "rollouts.jsonl", outcome(folder / "run", summary)


def test_recording_changes_nothing_but_says_so(first: tuple[Path, dict[str, Any]], tmp_path: Path):
    alone = outcome(tmp_path / "run", grpo_jax.run(COLD, tmp_path / "run"))
    file, found = first
    assert {row.get("replayed") for row in found["metrics"] if row["step"]} == {0.0}
    assert [{k: v for k, v in row.items() if k != "replayed"} for row in found["metrics"]] == alone["metrics"]
    assert (found["samples"], found["digest"]) == (alone["samples"], alone["digest"])
    assert len(file.read_bytes().splitlines()) == 1 + 6


def copied(file: Path, folder: Path) -> Path:
    (folder / "copy.jsonl").write_bytes(file.read_bytes())
    return folder / "copy.jsonl"


@pytest.mark.slow
def test_another_recipe_trains_on_the_very_same_rollouts(
    first: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    file = copied(first[0], tmp_path)
    sampled: list[int] = []
    sample = Phases.rollout
    monkeypatch.setattr(Phases, "rollout", lambda self, *a: (sampled.append(1), sample(self, *a))[1])
    # A gap that no step may have: what is replayed was sampled by another policy, and is not measured by it.
    train = dataclasses.replace(COLD.train, steps=8, gap_limit=1e-9)
    with pytest.raises(RunStopped, match="Step 7: sampler and trainer disagree"):
        grpo_jax.run(dataclasses.replace(OTHER, train=train), tmp_path / "strict", rollouts=file)
    assert len(sampled) == 2  # the first of its own, and the next one, which was under way already
    longer = dataclasses.replace(OTHER, train=dataclasses.replace(COLD.train, steps=8))
    file = copied(first[0], tmp_path)
    grpo_jax.run(longer, tmp_path / "run", rollouts=file)
    assert [row["replayed"] for row in steps(tmp_path / "run")] == [1.0] * 6 + [0.0] * 2
    fields = ("draw", "sample", "tokens", "reward", "components", "valid")
    mine = rows(tmp_path / "run", *fields)
    assert mine[: 6 * 32] == rows(first[0].parent / "run", *fields) and len(mine) == 8 * 32
    assert max(row["logp_gap/max"] for row in steps(tmp_path / "run")[1:6]) > 1e-3  # other policies, truly
    assert max(row["logp_gap/max"] for row in steps(tmp_path / "run")[6:]) < 1e-4
    assert len(file.read_bytes().splitlines()) == 1 + 8


def test_replaying_ones_own_rollouts_gives_ones_own_run(first: tuple[Path, dict[str, Any]], tmp_path: Path):
    again = grpo_jax.run(COLD, tmp_path / "run", rollouts=copied(first[0], tmp_path))
    assert outcome(tmp_path / "run", again) == first[1]


def test_rewards_on_text_are_replayed_with_their_statuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    short = dataclasses.replace(TEXT, train=dataclasses.replace(COLD.train, steps=2))
    one = grpo_jax.run(short, tmp_path / "one", rollouts=tmp_path / "rollouts.jsonl")
    monkeypatch.delattr(Phases, "score")  # nothing is scored any more
    two = grpo_jax.run(dataclasses.replace(short, name="two"), tmp_path / "two", rollouts=tmp_path / "rollouts.jsonl")
    without = ("replayed",)
    assert outcome(tmp_path / "two", two, without=without) == outcome(tmp_path / "one", one, without=without)
    assert {row["status/ok"] for row in steps(tmp_path / "two")} == {64}
    assert {row["replayed"] for row in steps(tmp_path / "two")} == {1.0}


# Files


REFUSED = {
    "model": ("model:", dataclasses.replace(COLD, model=dataclasses.replace(COLD.model, hidden=64))),
    "data": ("data:", dataclasses.replace(COLD, data=dataclasses.replace(DATA, dropped_tag=0.5))),
    "sampling": ("sampling:", dataclasses.replace(COLD, sampling=COLD.sampling.replace(temperature=0.9))),
    "group size": (
        "train.group_size: the file has 4, this run 2",
        dataclasses.replace(COLD, train=Train(prompts=8, group_size=2)),
    ),
    "prompts": (
        "train.prompts: the file has 8, this run 16",
        dataclasses.replace(COLD, train=Train(prompts=16, group_size=4)),
    ),
    "reward": ("reward:", TEXT),
    "text rewards": (
        "text_rewards:",
        dataclasses.replace(COLD, text_rewards={**COLD.text_rewards, "more": (always, 0.5)}),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_rollouts_of_something_else_are_refused_by_name(name: str, first: tuple[Path, dict[str, Any]], tmp_path: Path):
    said, experiment = REFUSED[name]
    with (
        pytest.raises(ValueError, match="was recorded for something else") as refusal,
        recorded(copied(first[0], tmp_path), experiment),
    ):
        pass
    assert said in str(refusal.value) and "use the settings that it was recorded with" in str(refusal.value)


def test_a_half_written_line_is_sampled_again(first: tuple[Path, dict[str, Any]], tmp_path: Path):
    file = copied(first[0], tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) - 100])
    again = grpo_jax.run(COLD, tmp_path / "run", rollouts=file)
    assert outcome(tmp_path / "run", again) == first[1]
    assert file.read_bytes() == whole


def test_other_files_are_refused_and_left_alone(tmp_path: Path):
    for content in (b"hello\n", b'{"prompt": "1+1", "answer": "2"}\n', b"[1]\n"):
        (tmp_path / "file").write_bytes(content)
        with (
            pytest.raises((ValueError, DataError), match=r"no file of recorded rollouts|no JSON record"),
            recorded(tmp_path / "file", COLD),
        ):
            pass
        assert (tmp_path / "file").read_bytes() == content
    with pytest.raises(ValueError, match="cannot be used"), recorded(tmp_path, COLD):
        pass


def test_a_line_that_was_edited_is_an_error(first: tuple[Path, dict[str, Any]], tmp_path: Path):
    file = copied(first[0], tmp_path)
    lines = file.read_bytes().splitlines(keepends=True)
    step = json.loads(lines[1])
    step["rollouts"]["tokens"]["shape"] = [1, 1]
    file.write_bytes(b"".join([lines[0], json.dumps(step).encode() + b"\n", *lines[2:]]))
    with pytest.raises(DataError, match="step 1, cannot be used") as stop:
        grpo_jax.run(COLD, tmp_path / "run", rollouts=file)
    assert stop.value.code == 5


def test_two_runs_do_not_share_a_file_at_a_time(tmp_path: Path):
    file = tmp_path / "a.jsonl"
    with (
        recorded(file, COLD),
        pytest.raises(RunStopped, match="in use by another run"),
        recorded(file, OTHER),
    ):
        pass
    with recorded(tmp_path / "a.jsonl", OTHER):
        pass
