"""What is shown of a run stands in its files, and nothing a model wrote can move the cursor."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from grpo_jax import cli
from grpo_jax.show import curves

BEFORE = {"phase": "warm_start", "step": 4, "accuracy/heldout": 0.25, "length/heldout": 9.0}
# The entropy of step 3 was not finite: a journal has null there.
STEPS = [
    {"phase": "grpo", "step": s, "reward/mean": r, "entropy": e, "length/mean": 8.0, "length/stopped": 0.25}
    for s, r, e in ((1, 0.5, 2.0), (2, 0.125, 1.0), (3, 0.75, None))
]
AFTER = {**STEPS.pop(), "accuracy/heldout": 0.75, "length/heldout": 8.0}
REWARDS = [0.5, 1.0, 0.0, 0.25]


def sample(step: int, number: int, reward: float, **more: Any) -> dict[str, Any]:
    text = {"prompt": f"ask {number}=", "completion": f"said {number}\x1b[2J\u202e"}
    worth = {"components": {"accuracy": reward}, "reward": reward, "valid": True, "stopped": True}
    return {"phase": "grpo", "step": step, "set": "train", "sample": number, **text, **worth, **more}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    settings = {"sampling.max_tokens": "8"}
    rows = [sample(2, n, reward) for n, reward in enumerate([0.0, 0.0])]
    rows += [sample(3, n, reward) for n, reward in enumerate(REWARDS)]
    rows += [sample(3, 4, 0.0, valid=False, statuses={"accuracy": "timeout"}), sample(3, 5, 0.125, stopped=False)]
    held_out = {"phase": "grpo", "step": 3, "set": "heldout", "prompt": "h=", "completion": "x", "stopped": True}
    rows.append({**held_out, "components": {"accuracy": 1.0}, "answer": "7"})
    (tmp_path / "config.json").write_text(json.dumps({"settings": settings, "versions": {}}))
    for name, lines in (("metrics.jsonl", [BEFORE, *STEPS, AFTER]), ("samples.jsonl", rows)):
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["show", *arguments]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["show", *arguments]) == 4
    return capsys.readouterr().err


def test_the_overview_gives_the_table_the_curves_the_alerts_and_the_words(
    run: Path, capsys: pytest.CaptureFixture[str]
):
    lines = [" ".join(line.split()) for line in shown(capsys, str(run)).splitlines()]
    # 25 % to 75 % is +50 points; 9 to 8 tokens is -1.
    assert "accuracy, sampled 25.0 % 75.0 % +50.0 points" in lines
    assert "length, tokens 9 8 -1" in lines
    # Of 0.5, 0.125, 0.75 the range is 0.625: (0.5 - 0.125) / 0.625 * 7 = 4.2, so the fifth of eight blocks.
    assert "reward/mean ▅▁█ 0.5 0.75 0.125 0.75 3" in lines
    assert "accuracy/heldout ▁█ 0.25 0.75 0.25 0.75 2" in lines
    assert "entropy █▁ 2 1 1 2 2" in lines
    # 1 - 0.25 of the completions were cut off; the alert names the setting with its value.
    (alert,) = [line for line in lines if line.startswith("look at this, step 1: 75 % of completions reach")]
    assert "sampling.max_tokens (now 8)" in alert
    assert lines[-1].startswith("In 3 GRPO steps after 4 of warm start accuracy on held-out problems went from 25.0 %")


def test_a_metric_that_was_never_recorded_has_no_row():
    assert curves([{"entropy": None}, {"reward/mean": 1.0}]).row_count == 1


def test_verifiers_that_disagree_are_asked_for_by_name_or_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    verdicts = [(1.0, 1.0, 0.2), (0.0, 1.0, 0.2), (1.0, 0.0, 1.0), (0.0, 0.0, 0.9)]
    names = ("accuracy", "accuracy_numeric", "lean")
    rows = [sample(1, n, 0.5, components=dict(zip(names, values, strict=True))) for n, values in enumerate(verdicts)]
    (tmp_path / "config.json").write_text(json.dumps({"settings": {}, "versions": {}}))
    (tmp_path / "metrics.jsonl").write_text(json.dumps(BEFORE) + "\n")
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = shown(capsys, str(tmp_path), "--samples", "disagreement").partition("disagreement")[2]
    assert page.startswith(" between accuracy, accuracy_numeric of 4 completions, train: 2 of 2")
    assert "said 1" in page and "said 2" in page and "said 0" not in page and "said 3" not in page
    # Of 0.2, 0.2, 1, 0.9 the last two count as right, and accuracy says 1, 0, 1, 0.
    page = shown(capsys, str(tmp_path), "--samples", "disagreement", "--verifiers", "accuracy,lean")
    assert "train: 2 of 2" in page and "said 0" in page and "said 3" in page
    assert (
        "--verifiers: got 'proof', allowed two or more of the components accuracy, accuracy_numeric, lean"
        in refused(capsys, str(tmp_path), "--samples", "disagreement", "--verifiers", "accuracy,proof")
    )


def test_fewer_than_two_verifiers_cannot_disagree(run: Path, capsys: pytest.CaptureFixture[str]):
    sentence = refused(capsys, str(run), "--samples", "disagreement")
    # The rewards of these samples, which stand for accuracy too, are shares.
    assert "--verifiers: got none (components called accuracy... of 0 and 1)" in sentence
    assert "name them with --verifiers A,B or add one to text_rewards" in sentence


def test_held_out_sets_and_categories_have_a_table(run: Path, capsys: pytest.CaptureFixture[str]):
    more = {"accuracy/heldout/low": 0.7, "accuracy/heldout/high": 0.8, "accuracy/heldout[two\x1b[2Jdigits]": 0.5}
    with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({**AFTER, "step": 4, **more, "pass@4/heldout": 1.0, "accuracy/hard": 0.125}) + "\n")
    lines = [" ".join(line.split()) for line in shown(capsys, str(run)).splitlines()]
    begin = lines.index("held-out set, % accuracy pass@4 step")
    assert lines[begin + 1 : begin + 4] == ["heldout 75.0 (70.0-80.0) 100.0 4", "two[2Jdigits 50.0 4", "hard 12.5 4"]


def test_completions_are_of_the_newest_step_and_carry_no_control_characters(
    run: Path, capsys: pytest.CaptureFixture[str]
):
    page = shown(capsys, str(run), "--samples", "best", "--most", "2").partition("best of")[2]
    assert page.startswith(" 6 completions, train: 2 of 5") and "said 1" in page and "said 0" in page
    assert page.index("said 1") < page.index("said 0") and "said 3" not in page
    assert "\x1b" not in page and "\u202e" not in page and "grpo 3" in page
    assert "no score  accuracy 0  accuracy: timeout" in shown(capsys, str(run), "--samples", "invalid")
    assert "0.125  accuracy 0.125  cut off" in shown(capsys, str(run), "--samples", "truncated")


def test_another_step_and_another_set_can_be_asked_for(run: Path, capsys: pytest.CaptureFixture[str]):
    assert "worst of 2 completions, train: 2 of 2" in shown(capsys, str(run), "--samples", "worst", "--step", "2")
    page = shown(capsys, str(run), "--samples", "worst", "--set-name", "heldout")
    assert "grpo 3  1  accuracy 1  answer 7" in page
    assert "truncated of 1 completions, heldout: 0 of 0" in shown(
        capsys, str(run), "--samples", "truncated", "--set-name", "heldout"
    )


def test_what_is_not_there_is_refused_with_what_is(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert "holds no run" in refused(capsys, str(tmp_path / "none"))
    assert "--samples: got longest, allowed worst, best, truncated, invalid, disagreement" in refused(
        capsys, str(run), "--samples", "longest"
    )
    assert "--most: got 0, allowed 1 or more" in refused(capsys, str(run), "--samples", "best", "--most", "0")
    assert "--set-name: got 'test', allowed heldout, train" in refused(
        capsys, str(run), "--samples", "best", "--set-name", "test"
    )
    assert "--step: got 9, allowed are 2 steps from 2 to 3" in refused(
        capsys, str(run), "--samples", "best", "--step", "9"
    )


def test_a_run_that_has_just_begun_says_so(run: Path, capsys: pytest.CaptureFixture[str]):
    (run / "metrics.jsonl").unlink()
    assert "has not written a line" in shown(capsys, str(run))


def test_a_terminal_that_cannot_spell_a_curve_gets_the_numbers(run: Path):
    done = subprocess.run(
        [sys.executable, "-m", "grpo_jax", "show", str(run)],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        capture_output=True,
        check=True,
    )
    assert b"reward/mean ??? " in b" ".join(done.stdout.split())


def test_showing_needs_no_compiler(run: Path):
    program = (
        "import sys; from grpo_jax import cli; assert cli.main(sys.argv[1:]) == 0; assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, "show", str(run), "--samples", "best"], check=True)
