"""A run knows the file that it was started from, and a run that brings its own program is not trusted with it."""

import json
from pathlib import Path
from typing import Any

import pytest

from grpo_jax.origin import Origin, held, origin_of

KEPT = {"file": "/a/experiment.py", "variant": "cold", "assignments": ["seed=3", "train.steps=2"]}


def run(folder: Path, **more: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"settings": {"seed": "0"}, "versions": {}, **more}))
    return folder


def test_what_is_stored_comes_back(tmp_path: Path):
    origin = Origin("/a/experiment.py", "cold", ("seed=3", "train.steps=2"))
    assert origin.fields() == KEPT
    assert origin_of(run(tmp_path / "run", origin=KEPT)) == origin


def test_what_is_given_counts_before_what_is_stored(tmp_path: Path):
    folder = run(tmp_path / "run", origin=KEPT)
    given = origin_of(folder, file="/b.py", variant="plain", assignments=["seed=4"])
    assert given == Origin("/b.py", "plain", ("seed=4",))
    assert origin_of(folder, file="/b.py") == Origin("/b.py", "cold", ("seed=3", "train.steps=2"))


@pytest.mark.parametrize("kept", [None, 3, {}, {"file": 3}])
def test_a_run_started_from_python_asks_for_its_file(kept: Any, tmp_path: Path):
    folder = run(tmp_path / "run", **({} if kept is None else {"origin": kept}))
    with pytest.raises(ValueError, match="say which with --file FILE"):
        origin_of(folder)
    assert origin_of(folder, file="/b.py") == Origin("/b.py")


def test_a_program_inside_the_run_is_not_run_unless_it_is_named(tmp_path: Path):
    inside = str(tmp_path / "run" / "below" / "experiment.py")
    folder = run(tmp_path / "run", origin={"file": inside})
    with pytest.raises(ValueError, match="lies in the run itself"):
        origin_of(folder)
    assert origin_of(folder, file=inside).file == inside


def test_a_folder_without_a_run_and_a_damaged_one_are_refused(tmp_path: Path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match=r"holds no run \(no config.json\)"):
            held(path)
    (run(tmp_path / "run") / "config.json").write_text('{"settings": 3}')
    with pytest.raises(ValueError, match="is damaged or was edited"):
        held(tmp_path / "run")
