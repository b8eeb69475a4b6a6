"""A run looked at again gives the numbers that it wrote itself, and says what it cannot be asked."""

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grpo_jax import cli, heldout, revisit
from grpo_jax.data import Jsonl
from grpo_jax.folder import open_folder
from grpo_jax.journal import looking, read, sole_writer
from grpo_jax.lifeline import RunStopped
from grpo_jax.revisit import evaluations, sample_page, typed
from tests.system import small_run

SMALL = str(Path(small_run.__file__))
FLAGS = ["--variant", "cold", "--set", "train.steps=2"]


@pytest.fixture(scope="module", autouse=True)
def _small_evaluations() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heldout, "CHUNK", 16)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two steps, trained by the command line."""
    folder = tmp_path_factory.mktemp("revisited") / "run"
    assert cli.main(["train", SMALL, *FLAGS, "--run-dir", str(folder)]) == 0
    return folder


def asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main([*arguments]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main([*arguments]) == 4
    return capsys.readouterr().err


def evaluated(run: Path) -> dict[str, Any]:
    """The evaluation made last."""
    return json.loads((run / "eval.json").read_text())["evaluations"][-1]


def last(run: Path) -> dict[str, Any]:
    return read(run / "metrics.jsonl")[-1]


def test_the_same_sizes_give_exactly_what_the_run_wrote(run: Path, capsys: pytest.CaptureFixture[str]):
    before = {path: path.read_bytes() for path in run.glob("*.json*")}
    page = asked(capsys, "eval", str(run))
    found, wrote = evaluated(run), last(run)
    assert found["checkpoint"] == {"phase": "grpo", "step": 2} and (found["prompts"], found["samples"]) == (16, 2)
    held_out = {name: value for name, value in wrote.items() if "/heldout" in name}
    assert len(held_out) > 10 and found["metrics"] == held_out
    share, low, high = (100 * wrote[f"accuracy/heldout{end}"] for end in ("", "/low", "/high"))
    assert f"heldout 16 {share:.1f} ({low:.1f}-{high:.1f})" in re.sub(" +", " ", page)
    assert {path: path.read_bytes() for path in before if path.name != "eval.json"} == {
        path: data for path, data in before.items() if path.name != "eval.json"
    }


def test_other_sizes_and_seeds_are_other_samples_of_the_same_policy(run: Path, capsys: pytest.CaptureFixture[str]):
    asked(capsys, "eval", str(run), "--prompts", "24", "--samples", "4", "--seed", "5")
    found, wrote = evaluated(run), last(run)
    assert (found["prompts"], found["samples"], found["seed"]) == (24, 4, 5)
    assert {"pass@4/heldout", "maj@4/heldout/low"} <= found["metrics"].keys()
    assert found["metrics"]["length/heldout"] != wrote["length/heldout"]
    asked(capsys, "eval", str(run), "--samples", "4", "--ks", "2,3")
    assert {"pass@2/heldout", "maj@3/heldout"} <= (found := evaluated(run))["metrics"].keys()
    assert found["ks"] == [2, 3] and not [name for name in found["metrics"] if "@4" in name]
    found = json.loads((run / "eval.json").read_text())["evaluations"][-2]
    # 96 answers: a share of right ones is a multiple of 1/96.
    assert found["metrics"]["accuracy/heldout"] * 96 == pytest.approx(round(found["metrics"]["accuracy/heldout"] * 96))


def test_held_out_completions_are_those_that_the_run_wrote_down(run: Path, capsys: pytest.CaptureFixture[str]):
    rows = [row for row in read(run / "samples.jsonl") if row["set"] == "heldout" and row["step"] == 2]
    page = asked(capsys, "sample", str(run))
    assert len(rows) == 2
    for row in rows:
        worth = "  ".join(f"{name} {value:.3g}" for name, value in row["components"].items())
        assert row["prompt"] in page and f"{row['completion']}  [{worth}" in page.replace("\n", " ")
    greedy = [r for r in read(run / "samples.jsonl") if r["set"] == "heldout/greedy" and r["step"] == 2]
    page = asked(capsys, "sample", str(run), "--temperature", "0", "--prompt", *(row["prompt"] for row in greedy))
    assert all(row["completion"] in page for row in greedy)


def test_typed_problems_are_answered_and_scored_as_often_as_asked(run: Path, capsys: pytest.CaptureFixture[str]):
    page = asked(capsys, "sample", str(run), "--prompt", "7-7+6", "1*2*3=<think>", "--samples", "3")
    # Left to right, modulo 10: 7 - 7 + 6 is 6, 1 * 2 * 3 is 6 too.
    assert "7-7+6=<think>  (answer 6)" in page and "1*2*3=<think>  (answer 6)" in page
    assert page.count("accuracy ") == 6
    assert page != asked(capsys, "sample", str(run), "--prompt", "7-7+6", "1*2*3", "--samples", "3", "--seed", "9")


def test_what_cannot_be_asked_is_refused(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    name = str(run)
    assert "--prompts: got 0, allowed >= 1" in refused(capsys, "eval", name, "--prompts", "0")
    assert "--samples: got 0, allowed >= 1" in refused(capsys, "sample", name, "--samples", "0")
    assert "--ks: got 3, allowed 1 to the number of samples, 2" in refused(capsys, "eval", name, "--ks", "1,3")
    sets = refused(capsys, "eval", name, "--sets", "heldot")
    assert "--sets: got 'heldot', allowed heldout: did you mean heldout?" in sets
    there = refused(capsys, "eval", name, "--checkpoint", "5")
    assert "--checkpoint: got 5, allowed newest, 2: choose one that is there" in there
    best = refused(capsys, "sample", name, "--checkpoint", "best")
    assert "--checkpoint: got best, which this run does not rank (saving.best), allowed newest, 2:" in best
    assert "--seed: got -1" in refused(capsys, "eval", name, "--seed", "-1")
    assert "--temperature: got -1.0" in refused(capsys, "sample", name, "--temperature", "-1")
    assert "character 'a'" in refused(capsys, "sample", name, "--prompt", "a")
    assert "of 9 tokens; allowed are at most 7" in refused(capsys, "sample", name, "--prompt", "1+2+3+4")
    other = refused(capsys, "eval", name, "--set", "seed=4")
    # The assignments on this command line replace those of the run.
    assert "seed: the run has 0, this command 4" in other and "train.steps: the run has 2, this command 6" in other
    assert "holds no run" in refused(capsys, "eval", str(tmp_path))


def test_a_run_from_python_is_evaluated_with_its_file(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    experiment = cli.load(Path(SMALL)).PLAIN  # its functions go by the name of the file
    open_folder(tmp_path / "run", dataclasses.replace(experiment, seed=3)).close()
    name = str(tmp_path / "run")
    for command in ("eval", "sample"):
        assert "say which with --file FILE" in refused(capsys, command, name)
    assert "without a checkpoint" in refused(capsys, "eval", name, "--file", SMALL, "--set", "seed=3")
    assert not (tmp_path / "run" / "eval.json").exists()


def test_a_typed_question_without_a_line_has_no_answer(tmp_path: Path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{k}?", "answer": str(k)}) + "\n" for k in range(40)))
    task = Jsonl(str(path), prompt_width=16, completion_width=8)
    prompts, known = typed(task, ["7?", "what?"])
    assert known == [True, False] and task.answers(prompts)[0] == "7"
    assert [task.prompt_text(prompts, index) for index in range(2)] == ["7?\n<think>", "what?\n<think>"]
    assert np.asarray(prompts.draw).tolist() == [0, 1]


def test_a_page_of_completions_moves_no_cursor_and_says_what_is_unknown():
    row = {"prompt": "a\x1b[2J", "sample": 0, "completion": "b\x07", "length": 2, "stopped": False}
    page = sample_page([{**row, "answer": None, "scores": None}, {**row, "answer": "1", "scores": None}])
    assert "\x1b" not in page and "\x07" not in page
    assert (
        "(answer unknown)" in page and "b  [cut off  2 tokens]" in page and "b  [no score  cut off  2 tokens]" in page
    )


def test_every_evaluation_is_kept_and_one_of_old_too(run: Path, capsys: pytest.CaptureFixture[str]):
    (run / "eval.json").unlink(missing_ok=True)
    for seed in ("3", "4"):
        asked(capsys, "eval", str(run), "--seed", seed, "--prompts", "8")
    rows = json.loads((run / "eval.json").read_text())["evaluations"]
    assert [row["seed"] for row in rows] == [3, 4] and rows[0]["sets"] == {"heldout": 8}
    (run / "eval.json").write_text(json.dumps(rows[1]))  # one alone, as they were once written
    assert evaluations(run) == [rows[1]]
    (run / "eval.json").write_text('{"evaluations": [')
    assert "eval.json is damaged" in refused(capsys, "eval", str(run))
    (run / "eval.json").unlink()
    assert evaluations(run) == []


def test_a_run_that_cannot_be_written_is_looked_at_and_left_as_it_is(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    copy = shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("eval.json"))

    def stamps() -> dict[str, tuple[int, int]]:
        return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_mode) for path in (copy, *copy.rglob("*"))}

    for path in (copy, *copy.rglob("*")):  # what root may do all the same shows in the stamps
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = stamps()
    monkeypatch.setattr(revisit.os, "access", lambda path, mode: Path(path) != copy)
    assert cli.main(["eval", str(copy)]) == 0
    said = capsys.readouterr()
    assert "heldout" in said.out and "numbers in" not in said.out and "is read-only" in said.err
    asked(capsys, "sample", str(copy), "--checkpoint", "2")
    assert stamps() == before
    for path in (copy, *copy.rglob("*")):
        path.chmod(0o755)


def test_a_run_is_not_looked_at_while_it_goes_on(run: Path, capsys: pytest.CaptureFixture[str]):
    with sole_writer(run):
        assert "is in use by process" in refused(capsys, "eval", str(run))
    with looking(run), pytest.raises(RunStopped, match="is in use by another process"), sole_writer(run):
        pass
    with looking(run):  # two may look at once
        asked(capsys, "sample", str(run))
