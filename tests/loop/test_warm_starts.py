"""A warm start that another run did is the one that a run would have done itself, or it is not taken."""

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import grpo_jax
from grpo_jax import heldout
from grpo_jax.experiment import Evaluation, Experiment, Saving, Scoring, Train
from grpo_jax.journal import read
from grpo_jax.loop import warm_starts
from grpo_jax.loop.warm_starts import Entry, deciding
from grpo_jax.objectives import dr_grpo, grpo
from grpo_jax.rewards.tokens import combine
from grpo_jax.updates import Optimizer
from tests.system.small_run import DATA, PLAIN, VARIANTS, digits, right
from tests.system.small_text import always

OTHER = dataclasses.replace(
    PLAIN,
    name="other",
    recipe=dr_grpo(),
    optimizer=Optimizer(learning_rate=2e-2),
    train=Train(steps=2, prompts=4, group_size=8),
    saving=Saving(every=1, warm_every=3),
    scoring=Scoring(workers=1, failure_share=0.5, canary=False),
    evaluation=dataclasses.replace(PLAIN.evaluation, every=1),
)


@pytest.fixture(autouse=True)
def _small_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heldout, "CHUNK", 16)


def refuse(*_: object) -> None:
    raise AssertionError("this run does a warm start of its own")


def outcome(folder: Path, summary: grpo_jax.Summary) -> dict[str, Any]:
    return {name: (folder / name).read_bytes() for name in warm_starts.JOURNALS} | {
        "digest": summary.state_digest,
        "steps": summary.warm_steps,
        "before": summary.estimates["before"],
    }


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `OTHER` has left its warm start."""
    folder = tmp_path_factory.mktemp("shelf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heldout, "CHUNK", 16)
        grpo_jax.run(OTHER, folder / "run", warm_starts=folder / "warm")
    return folder / "warm"


def test_a_run_that_takes_a_warm_start_is_the_run_that_does_it(
    shelf: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    alone = grpo_jax.run(PLAIN, tmp_path / "alone")
    monkeypatch.setattr(warm_starts, "imitate", refuse)
    taken = grpo_jax.run(PLAIN, tmp_path / "taken", warm_starts=shelf)
    assert outcome(tmp_path / "taken", taken) == outcome(tmp_path / "alone", alone)
    first = read(tmp_path / "taken" / "timing.jsonl")[0]
    (entry,) = shelf.iterdir()
    spent = [row for row in read(shelf.parent / "run" / "timing.jsonl") if row["phase"] == "warm_start"]
    assert (first["phase"], first["step"], first["taken_from"]) == ("warm_start", 4, entry.name)
    assert first["seconds_elsewhere"] == pytest.approx(sum(row["seconds"] for row in spent))


@pytest.mark.parametrize("place", ["params", "metrics.jsonl", "metadata"])
def test_a_damaged_warm_start_is_put_aside_and_done_anew(
    place: str, shelf: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    mine = tmp_path / "warm"
    (entry,) = shelf.iterdir()
    copy(entry, mine / entry.name)
    if place == "metadata":
        for path in (mine / entry.name).rglob("meta/*"):
            path.unlink()
    else:
        for path in (mine / entry.name).rglob("*"):
            if path.is_file() and place in path.parts:
                spoil(path)
    begun = dataclasses.replace(PLAIN, train=dataclasses.replace(PLAIN.train, steps=0))
    one = grpo_jax.run(begun, tmp_path / "one", warm_starts=mine)
    assert "is damaged" in capfd.readouterr().err
    assert sorted(path.name for path in mine.iterdir()) == [entry.name, f"{entry.name}.bad"]
    assert outcome(tmp_path / "one", one) == outcome(tmp_path / "two", grpo_jax.run(begun, tmp_path / "two"))


def copy(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            there = target / path.relative_to(source)
            there.parent.mkdir(parents=True, exist_ok=True)
            there.write_bytes(path.read_bytes())


def spoil(path: Path) -> None:
    """Flip a bit in every 64 bytes."""
    content = bytearray(path.read_bytes())
    for place in range(0, len(content), 64):
        content[place] ^= 4
    path.write_bytes(content)


def test_a_shelf_that_cannot_be_written_stops_no_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    (tmp_path / "warm").write_text("a file stands here")
    begun = dataclasses.replace(PLAIN, train=dataclasses.replace(PLAIN.train, steps=0))
    assert grpo_jax.run(begun, tmp_path / "run", warm_starts=tmp_path / "warm").warm_steps == 4
    assert "other runs repeat this warm start" in capfd.readouterr().err


def test_a_run_without_a_warm_start_leaves_the_shelf_alone(tmp_path: Path):
    cold = dataclasses.replace(VARIANTS["cold"], train=dataclasses.replace(PLAIN.train, steps=1))
    grpo_jax.run(cold, tmp_path / "run", warm_starts=tmp_path / "warm")
    assert not (tmp_path / "warm").exists()


def test_what_only_grpo_reads_decides_no_warm_start():
    assert deciding(OTHER) == deciding(PLAIN)
    assert Entry.of(Path("a"), OTHER) == Entry.of(Path("a"), PLAIN)


def changed(group: str, **values: Any) -> Experiment:
    """`PLAIN` with other values in one of its groups."""
    fields: dict[str, Any] = {group: dataclasses.replace(getattr(PLAIN, group), **values)}
    return dataclasses.replace(PLAIN, **fields)


DECIDING = {
    "seed": dataclasses.replace(PLAIN, seed=1),
    "mesh": VARIANTS["mesh"],
    "gate": changed("warm_start", gate=0.01),
    "limit": changed("warm_start", limit=9),
    "its optimiser": changed("warm_start", optimizer=Optimizer()),
    "data": dataclasses.replace(PLAIN, data=dataclasses.replace(DATA, styles=(1.0, 0.0, 0.0))),
    "model": changed("model", hidden=64),
    "critic": changed("model", critic="head"),
    "temperature": dataclasses.replace(PLAIN, sampling=PLAIN.sampling.replace(temperature=0.9)),
    "problems": changed("evaluation", full_prompts=17),
    "shown": changed("evaluation", show=1),
    "text rewards": dataclasses.replace(PLAIN, text_rewards={**PLAIN.text_rewards, "more": (always, 0.0)}),
    "token reward": dataclasses.replace(
        PLAIN, reward=partial(combine, rewards=(("accuracy", right, 1.0), ("digits", digits, 0.5)))
    ),
    "no token reward": VARIANTS["text"],
    "deadline": changed("scoring", timeout_s=1.0),
    "memory": changed("scoring", memory_mb=100),
    "chunk": changed("train", chunk=3),
    "tripwire": changed("train", skip_limit=1),
}


@pytest.mark.parametrize("name", DECIDING)
def test_everything_else_does(name: str):
    mine, other = deciding(PLAIN), deciding(DECIDING[name])
    assert "settings" in {key for key in mine if mine[key] != other[key]} <= {"settings", "source_digest"}
    assert Entry.of(Path("a"), DECIDING[name]).path != Entry.of(Path("a"), PLAIN).path


def test_the_code_of_a_reward_decides_it_and_that_of_an_objective_does_not():
    mine = json.loads(deciding(PLAIN)["settings"])
    assert not any(name.startswith(("recipe", "optimizer", "saving")) for name in mine)
    longer = dataclasses.replace(PLAIN, evaluation=Evaluation(**{**vars(PLAIN.evaluation), "every": 7}))
    assert deciding(longer) == deciding(PLAIN)
    with_own = dataclasses.replace(PLAIN, recipe=dataclasses.replace(grpo(beta=0.0), advantage=own_advantage))
    assert deciding(with_own) == deciding(PLAIN)


def own_advantage(collected: Any, labels: Any, memory: Any) -> Any:
    """An estimator of the user's, which a warm start never calls."""
    return PLAIN.recipe.advantage(collected, labels, memory)
