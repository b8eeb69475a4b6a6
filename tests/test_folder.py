"""A run folder belongs to one run: its settings, one process at a time, and nothing of it is ever lost."""

import dataclasses
import errno
import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import objectives
from grpo_jax.checkpoint import CheckpointError, abstract
from grpo_jax.experiment import Experiment
from grpo_jax.folder import Position, RunFolder, open_folder, visit
from grpo_jax.journal import read
from grpo_jax.lifeline import DataError, RunStopped
from grpo_jax.origin import Origin
from grpo_jax.types import TrainState
from tests.system.small_run import PLAIN

OTHER = dataclasses.replace(PLAIN, seed=1, train=dataclasses.replace(PLAIN.train, steps=7))


def state(value: float) -> TrainState:
    return TrainState(
        params={"w": jnp.full((4,), value, jnp.float32)},
        opt_state=(),
        step=jnp.asarray(0, jnp.int32),
        cursor=jnp.asarray(0, jnp.int32),
        skipped=jnp.asarray(0, jnp.int32),
    )


def begun(path: Path, experiment: Experiment = PLAIN) -> Path:
    """A run that has written one line."""
    folder = open_folder(path, experiment)
    folder.metrics.write({"phase": "warm_start", "step": 2})
    folder.close()
    return path


def write(folder: RunFolder, position: Position) -> None:
    folder.metrics.write({**position.fields(), "loss": 1.0})
    folder.samples.write({**position.fields(), "draw": 0})


def steps(path: Path) -> list[tuple[str, int]]:
    return [(row["phase"], row["step"]) for row in read(path)]


def test_positions_are_ordered_as_a_run_passes_them():
    passed = [Position(0, 2), Position(0, 10), Position(1, 0), Position(1, 3)]
    assert sorted(reversed(passed)) == passed
    assert [Position.of(position.fields()) for position in passed] == passed
    assert Position(0, 10).fields() == {"phase": "warm_start", "step": 10}


def test_a_new_folder_holds_the_settings_and_the_versions(tmp_path: Path):
    folder = open_folder(tmp_path / "a" / "b", PLAIN)
    folder.close()
    config = json.loads((tmp_path / "a" / "b" / "config.json").read_text())
    assert config["settings"]["train.prompts"] == "8"
    assert {"jax", "orbax-checkpoint", "grpo-jax", "python"} <= config["versions"].keys()
    assert folder.attempt == 1


def test_a_run_goes_on_behind_its_newest_checkpoint_and_what_it_knew_beyond_is_kept_aside(tmp_path: Path):
    folder = open_folder(tmp_path, PLAIN)
    assert folder.restore(abstract(state(0.0))) is None
    for position in (Position(0, 2), Position(0, 4), Position(1, 1), Position(1, 2)):
        write(folder, position)
        folder.timing.write({**position.fields(), "attempt": folder.attempt})
        if position in (Position(0, 4), Position(1, 1)):
            meta = {"warm_steps": 4 if position.phase else 0}
            folder.save(position, state(position.step), meta)
    folder.close()

    folder = open_folder(tmp_path, PLAIN)
    restored = folder.restore(abstract(state(0.0)))
    folder.close()
    assert restored is not None and restored.index == 5 and Position.of(restored.meta) == Position(1, 1)
    np.testing.assert_array_equal(restored.state.params["w"], np.ones(4, np.float32))
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert steps(tmp_path / name) == [("warm_start", 2), ("warm_start", 4), ("grpo", 1)]
        assert steps(tmp_path / f"{name}.superseded") == [("grpo", 2)]
    # Times of what was done again are times that passed: they stay.
    assert len(read(tmp_path / "timing.jsonl")) == 4 and folder.attempt == 2


def test_checkpoints_that_are_all_damaged_are_no_reason_to_start_from_nothing(tmp_path: Path):
    folder = open_folder(tmp_path, PLAIN)
    write(folder, Position(1, 1))
    folder.save(Position(1, 1), state(1.0), {"warm_steps": 0})
    folder.close()
    (tmp_path / "checkpoints" / "1" / "commit_success.txt").unlink()
    folder = open_folder(tmp_path, PLAIN)
    with pytest.raises(CheckpointError, match="none of them is good"):
        folder.restore(abstract(state(0.0)))
    folder.close()
    assert steps(tmp_path / "metrics.jsonl") == [("grpo", 1)]


def test_the_reference_is_a_checkpoint_of_its_own(tmp_path: Path):
    folder = open_folder(tmp_path, PLAIN)
    with folder.beside("reference") as kept:
        assert kept.restore_params(abstract(state(0.0).params)) is None
        kept.save(0, state(3.0), {})
    with folder.beside("reference") as kept:
        params = kept.restore_params(abstract(state(0.0).params))
    folder.close()
    assert params is not None
    np.testing.assert_array_equal(params["w"], np.full(4, 3.0, np.float32))


def test_other_settings_are_refused_with_the_list_of_differences(tmp_path: Path):
    begun(tmp_path / "run")
    with pytest.raises(ValueError, match="holds a run with other settings") as refusal:
        open_folder(tmp_path / "run", OTHER)
    lines = str(refusal.value).splitlines()
    assert lines[1:3] == ["  seed: the run has 0, this command 1", "  train.steps: the run has 6, this command 7"]
    assert "--fresh" in lines[3] and len(lines) == 4
    open_folder(tmp_path / "run", PLAIN).close()


def test_changed_code_and_changed_data_are_refused(tmp_path: Path):
    path = begun(tmp_path / "run") / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "source_digest": "of before", "data_digest": "of before"}))
    with pytest.raises(ValueError, match=r"the code of a function of this experiment has changed\n.*data.* changed"):
        open_folder(tmp_path / "run", PLAIN)


def test_a_run_that_has_written_nothing_takes_new_settings(tmp_path: Path):
    open_folder(tmp_path / "run", OTHER).close()
    open_folder(tmp_path / "run", PLAIN).close()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["settings"]["seed"] == "0"


def test_other_versions_are_said_and_the_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = begun(tmp_path / "run") / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "versions": {**config["versions"], "jax": "0.0.1"}}))
    open_folder(tmp_path / "run", PLAIN).close()
    assert "begun with other versions: jax 0.0.1 -> " in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "{", "[]", '{"settings": 3, "versions": {}}'])
def test_damaged_settings_are_said_to_be_damaged(content: str, tmp_path: Path):
    (begun(tmp_path / "run") / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json is damaged or was edited"):
        open_folder(tmp_path / "run", PLAIN)


def test_fresh_moves_a_run_aside_and_overwrites_nothing(tmp_path: Path):
    for _ in range(3):
        folder = open_folder(tmp_path / "run", PLAIN, fresh=True)
        folder.metrics.write({"phase": "grpo", "step": 1})
        folder.close()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["run", "run.1", "run.2"]
    assert all(steps(entry / "metrics.jsonl") == [("grpo", 1)] for entry in tmp_path.iterdir())
    open_folder(tmp_path / "new", PLAIN, fresh=True).close()


def test_what_is_no_run_is_left_alone(tmp_path: Path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    for fresh in (False, True):
        with pytest.raises(ValueError, match=r"holds 'thesis\.tex' and no run"):
            open_folder(tmp_path / "precious", PLAIN, fresh=fresh)
        with pytest.raises(ValueError, match="which is a file"):
            open_folder(tmp_path / "file", PLAIN, fresh=fresh)
        with pytest.raises(ValueError, match="cannot be used"):
            open_folder(tmp_path / "file" / "below", PLAIN, fresh=fresh)
        with pytest.raises(ValueError, match="cannot be used"):
            open_folder(tmp_path / ("x" * 300), PLAIN, fresh=fresh)
    assert [entry.name for entry in (tmp_path / "precious").iterdir()] == ["thesis.tex"]


def test_a_run_killed_before_its_first_line_goes_on(tmp_path: Path):
    (tmp_path / ".lock").write_text("process 1 on a machine that is gone\n")
    (tmp_path / "config.json.partial").write_text('{"set')
    open_folder(tmp_path, PLAIN).close()
    assert (tmp_path / "config.json").exists()


def test_a_second_process_is_refused_and_moves_nothing(tmp_path: Path):
    folder = open_folder(tmp_path / "run", PLAIN)
    # Locks are those of an open file: a second one in this process is refused as well as one in another.
    for fresh in (False, True):
        with pytest.raises(RunStopped, match="is in use by process") as stop:
            open_folder(tmp_path / "run", PLAIN, fresh=fresh)
        assert stop.value.code == 4
    program = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    lock = str(tmp_path / "run" / ".lock")
    held = subprocess.run([sys.executable, "-c", program, lock], capture_output=True, check=False)
    assert held.returncode == 1 and b"BlockingIOError" in held.stderr
    folder.close()
    assert subprocess.run([sys.executable, "-c", program, lock], check=False).returncode == 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


def test_a_folder_that_is_refused_is_released(tmp_path: Path):
    begun(tmp_path / "run")
    with pytest.raises(ValueError, match="other settings"):
        open_folder(tmp_path / "run", OTHER)
    open_folder(tmp_path / "run", PLAIN).close()


def test_a_relative_folder_is_found_from_where_the_run_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    folder = open_folder(Path("run"), PLAIN)
    assert folder.path == tmp_path / "run"
    folder.close()


def test_where_a_run_came_from_is_kept_and_is_no_part_of_what_it_is(tmp_path: Path):
    def come() -> object:
        return json.loads((tmp_path / "config.json").read_text()).get("origin")

    begun(tmp_path)
    assert come() is None
    before = json.loads((tmp_path / "config.json").read_text())
    for origin in (Origin("/a.py"), Origin("/b.py", "cold", ("seed=0",))):
        open_folder(tmp_path, PLAIN, origin=origin).close()
        assert come() == origin.fields()
    open_folder(tmp_path, PLAIN).close()
    assert come() == {"file": "/b.py", "variant": "cold", "assignments": ["seed=0"]}
    after = json.loads((tmp_path / "config.json").read_text())
    assert {name: value for name, value in after.items() if name != "origin"} == before


def test_a_visit_finds_the_checkpoints_of_a_run_with_the_same_settings(tmp_path: Path):
    folder = open_folder(tmp_path / "run", PLAIN)
    write(folder, Position(1, 1))
    folder.save(Position(1, 1), state(5.0), {"warm_steps": 0})
    with pytest.raises(RunStopped, match="is in use by process"), visit(tmp_path / "run", PLAIN):
        pass
    folder.close()
    with visit(tmp_path / "run", PLAIN) as kept:
        restored = kept.restore(abstract(state(0.0)))
    assert restored is not None and float(restored.state.params["w"][0]) == 5.0
    others = "holds a run with other settings:\n  seed: the run has 0, this command 1"
    with pytest.raises(ValueError, match=others), visit(tmp_path / "run", OTHER):
        pass
    with pytest.raises(ValueError, match="holds no run"), visit(tmp_path / "none", PLAIN):
        pass
    assert not (tmp_path / "none").exists()


RIGHT, DIGITS = (f"tests.system.small_text.{name}" for name in ("right_in_text", "digits_in_text"))


def edited(run: Path, *names: str) -> dict:
    """The config of `run`, rewritten as if these functions had had another source when it was begun."""
    config = json.loads((run / "config.json").read_text())
    assert set(names) <= set(config["sources"])
    config |= {"source_digest": "of before", "sources": {**config["sources"], **dict.fromkeys(names, "of before")}}
    (run / "config.json").write_text(json.dumps(config))
    return config


def test_which_function_has_changed_is_named(tmp_path: Path):
    run = begun(tmp_path / "run")
    edited(run, RIGHT, DIGITS)
    with pytest.raises(ValueError, match=rf"the code of the functions {DIGITS}, {RIGHT} has changed\n.*--accept-code"):
        open_folder(run, PLAIN)
    begun(tmp_path / "other")
    edited(tmp_path / "other", RIGHT)
    with pytest.raises(ValueError, match=f"the function {RIGHT} has changed"), visit(tmp_path / "other", PLAIN):
        pass


def accepted(run: Path) -> list[dict]:
    """Restore the run in `run` with code that may have changed; its history afterwards."""
    folder = open_folder(run, PLAIN, accept_code_change=True)
    assert folder.restore(abstract(state(0.0))) is not None
    folder.close()
    return json.loads((run / "config.json").read_text()).get("history", [])


def test_a_run_whose_code_was_changed_goes_on_and_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    sources, digest = objectives.source_digests(PLAIN), objectives.source_digest(PLAIN)
    folder = open_folder(tmp_path, PLAIN)
    for step in (1, 2):
        write(folder, Position(1, step))
    folder.save(Position(1, 2), state(5.0), {"warm_steps": 0})
    folder.close()
    assert accepted(tmp_path) == []  # nothing has changed, nothing is written

    for number, other in enumerate(("second", "third"), start=1):
        monkeypatch.setattr(objectives, "source_digests", lambda _, text=other: {**sources, RIGHT: text})
        monkeypatch.setattr(objectives, "source_digest", lambda _, text=other: text)
        with pytest.raises(ValueError, match=f"the function {RIGHT} has changed"):
            open_folder(tmp_path, PLAIN)
        history = accepted(tmp_path)
        assert len(history) == number
        was = digest if other == "second" else "second"
        assert history[-1] == {"phase": "grpo", "step": 2, "functions": [RIGHT], "was": was, "is": other}
        assert f"goes on with code that has changed: {RIGHT}." in capsys.readouterr().err
        # From now on this is the code of the run, for those who look at it as well.
        with visit(tmp_path, PLAIN) as kept:
            assert kept.restore(abstract(state(0.0))) is not None
        open_folder(tmp_path, PLAIN).close()


def test_accepting_code_accepts_nothing_else(tmp_path: Path):
    begun(tmp_path / "run")
    edited(tmp_path / "run", RIGHT)
    with pytest.raises(ValueError, match="other settings") as refusal:
        open_folder(tmp_path / "run", OTHER, accept_code_change=True)
    assert "seed: the run has 0" in str(refusal.value) and "the code of" not in str(refusal.value)


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_journal_that_was_cut_is_noticed(missing: int, tmp_path: Path):
    folder = open_folder(tmp_path, PLAIN)
    for step in (1, 2, 3):
        write(folder, Position(1, step))
    folder.save(Position(1, 3), state(5.0), {"warm_steps": 0})
    folder.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(lines[: missing - 1] + lines[missing:]))
    folder = open_folder(tmp_path, PLAIN)
    with pytest.raises(DataError, match=f"lacks the lines of 1 of 3 GRPO steps, the first of them step {missing},"):
        folder.restore(abstract(state(0.0)))
    folder.close()


def test_a_folder_of_a_format_to_come_is_left_alone(tmp_path: Path):
    path = begun(tmp_path / "run") / "config.json"
    config = json.loads(path.read_text())
    assert config["format"] == 1
    path.write_text(json.dumps({**config, "format": 2}))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"config\.json has format 2, .* allowed are up to 1: update grpo-jax"):
        open_folder(tmp_path / "run", PLAIN)
    assert path.read_bytes() == before
    path.write_text(json.dumps({name: value for name, value in config.items() if name != "format"}))
    open_folder(tmp_path / "run", PLAIN).close()  # what was written before there was a number
    assert json.loads(path.read_text())["format"] == 1


def test_a_full_disk_is_not_a_wrong_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("grpo_jax.folder.sole_writer", full)
    with pytest.raises(DataError, match=r"cannot be written: No space left on device\. Free some space"):
        open_folder(tmp_path / "run", PLAIN)
