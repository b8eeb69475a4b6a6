"""The picture of a run has its numbers and keeps to its width, and nothing a model wrote can move the cursor."""

import math
import time
from typing import Any

import pytest

from grpo_jax.display import Plan, View, frame
from grpo_jax.display.frame import (
    cells,
    chosen,
    cropped,
    duration,
    held_out,
    reward_of,
    seconds_left,
    sparkline,
)
from grpo_jax.report import rendered

PLAN = Plan("sums", {"warm_start": 2600, "grpo": 100}, rows=256)
RECORD = {
    "clip/high": 0.001,
    "clip/low": 0.023,
    "entropy": 0.45,
    "grad_norm": 0.3,
    "groups/tied": 0.0625,
    "kl/old": 0.0033,
    "kl/ref": 0.12,
    "length/mean": 8.0,
    "length/stopped": 0.97,
    "logp_gap/max": 2e-6,
    "logp_gap/mean": 1e-8,
    "loss": -0.0118,
    "reward/accuracy": 0.383,
    "reward/format": 0.719,
    "reward/mean": 0.527,
    "reward/std": 0.25,
    "skipped": 0.0,
    "status/ok": 500,
    "status/error": 12,
}
EVALUATION = {"accuracy/easy": 0.9, "accuracy/easy/low": 0.88, "accuracy/easy/high": 0.92, "accuracy/hard": 0.25}


def row(completion: str, reward: float, **changes: Any) -> dict[str, Any]:
    components = {"accuracy": float(reward > 0.5)}
    return {
        "prompt": "1+1=",
        "completion": completion,
        "reward": reward,
        "components": components,
        "step": 2,
        **changes,
    }


def view(**changes: Any) -> View:
    """Two steps of 4 seconds each, the second evaluated."""
    seen = View(PLAN)
    seconds = {"rollout": 2.5, "update": 1.5, "evaluation": 6.0}
    seen.see({"phase": "grpo", "step": 1}, {**RECORD, "reward/mean": 0.1}, seconds, 100.0)
    seen.see({"phase": "grpo", "step": 2}, {**RECORD, **EVALUATION}, seconds, 104.0)
    seen.rows = [row("2", 1.2), row("3", 0.0, stopped=False)]
    seen.memory = (1.5 * 2**30, "process")
    for name, value in changes.items():
        setattr(seen, name, value)
    return seen


def test_the_numbers_of_a_record_are_in_the_picture():
    text = rendered(frame(view(), 80), width=80)
    assert "sums  GRPO 2 of 100  6:32 left" in text  # 98 steps of 4 seconds
    said = dict(cells(view()))
    assert said == {
        "reward": "0.527 ± 0.250",
        "accuracy": "38.3 %",
        "format": "0.719",
        "accuracy easy": "90.0 % (88.0 to 92.0)",
        "accuracy hard": "25.0 %",
        "length": "8.0, 97 % ended",
        "entropy": "0.45",
        "KL reference": "0.12",
        "KL old": "0.0033",
        "clipped low": "2.3 %",
        "clipped high": "0.1 %",
        "gap": "1e-08, max 2e-06",
        "tied groups": "6.2 %",
        "gradient norm": "0.3",
        "loss": "-0.0118",
        "rewards: error": "12",
        "tokens a second": "512",  # 256 rows of 8 tokens in 4 seconds
        "seconds a step": "4.00",
        "memory, peak": "1.50 GiB process",
    }
    assert [words for words in said.values() if words not in text] == []
    assert "rollout 2.50 s (62 %)  update 1.50 s (38 %)  evaluation 6.00 s" in text  # 2.5 and 1.5 of 4 seconds
    assert "▁█ 0.100 to 0.527" in text
    assert "✓ 1.20  1+1=\n  2\n✗ 0.00 (cut off)  1+1=\n  3\n" in text


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal_and_no_number_is_lost(width: int):
    long = view(rows=[row("<think>" + "19 " * 500 + "</think>42", 1.2, prompt="9" * 300), row("日本" * 200, 0.0)])
    long.alerts.append("97 % of completions reach the length limit: " + "no reward can be earned; " * 20)
    text = rendered(frame(long, width), width=width)
    assert max(map(len, text.splitlines())) <= width
    assert [words for _, words in cells(long) if words not in text] == []
    assert "! 97 % of completions" in text and "</think>42" in text.replace("\n", "")
    assert len(text.splitlines()) < 45


def test_a_warm_start_may_end_before_its_last_step():
    seen = View(PLAN)
    for step, now in ((100, 10.0), (200, 15.0)):
        seen.see({"phase": "warm_start", "step": step}, {"loss": 1.25, "entropy": 1.0}, {"update": 5.0}, now)
    text = rendered(frame(seen, 80), width=80)
    assert "warm start 200 of at most 2600  at most 2:00 left" in text  # 2400 steps, 100 in 5 seconds
    assert "1.25" in text and "tokens" not in text


def test_a_phase_without_a_plan_has_neither_bar_nor_end():
    seen = View(Plan())
    seen.see({"phase": "grpo", "step": 3}, {}, {}, 0.0)
    assert rendered(frame(seen, 40), width=40).strip() == "run  GRPO 3"
    assert rendered(frame(View(), 40), width=40).strip() == "run   0"


def test_the_pace_is_that_of_this_phase():
    seen = view()
    assert seconds_left(seen) == 98 * 4.0
    seen.see({"phase": "warm_start", "step": 9}, {}, {}, 200.0)
    assert math.isnan(seconds_left(seen)) and math.isnan(seconds_left(View()))


@pytest.mark.parametrize(
    ("values", "width", "line"),
    [
        ([], 5, ""),
        ([0.3], 5, "▁"),
        ([1.0, 1.0], 5, "▁▁"),
        ([0.0, 7.0, 1.0, 6.0], 9, "▁█▂▇"),
        ([0.0, 0.0, 7.0, 7.0, 2.0, 4.0], 3, "▁█▄"),  # means 0, 7 and 3
    ],
)
def test_a_sparkline_is_as_high_as_its_values(values: list[float], width: int, line: str):
    assert sparkline(values, width) == line


def test_a_long_curve_is_cheap_and_keeps_its_ends():
    begin = time.process_time()
    line = sparkline([float(i) for i in range(100_000)], 50)
    assert (len(line), line[0], line[-1]) == (50, "▁", "█")
    assert time.process_time() - begin < 1.0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(5.4, "0:05"), (65, "1:05"), (3600, "1:00:00"), (7384, "2:03:04"), (183600, "2 d 3 h"), (math.nan, "?")],
)
def test_durations_are_read_at_a_glance(seconds: float, words: str):
    assert duration(seconds) == words


def test_the_best_the_middle_and_the_worst_completion_are_shown():
    rows = [row(str(r), r) for r in (0.2, 1.0, 0.0, 0.6, 0.8)]
    assert [r["reward"] for r in chosen(rows)] == [1.0, 0.6, 0.0]
    assert [r["reward"] for r in chosen(rows[:2])] == [1.0, 0.2]
    assert [r["reward"] for r in chosen(rows, most=1)] == [1.0]
    assert chosen([]) == []


def test_a_row_without_a_score_comes_last_and_says_so():
    lost = row("x", 5.0, valid=False)
    assert chosen([lost, row("y", 0.1)])[-1] is lost
    assert "no score" in rendered(frame(view(rows=[lost]), 60), width=60)
    assert reward_of({"components": {"accuracy": 1.0, "format": 0.5}}) == 1.5


def test_control_characters_reach_no_terminal():
    evil = "\x1b[2J\x1b]0;title\x07a\u202eb\r\nc"
    seen = view(rows=[row(evil, 1.0, prompt=evil), row(evil * 200, 0.0)], plan=Plan(evil, {"grpo": 100}))
    seen.record = {**RECORD, f"reward/{evil}": 0.5}
    seen.see({"phase": "grpo", "step": 3}, {**seen.record, f"accuracy/{evil}": 0.5}, {}, 108.0)
    seen.alerts.append(evil)
    text = rendered(frame(seen, 60), width=60)
    assert [c for c in text if (ord(c) < 32 and c != "\n") or c in "\x7f\u202e"] == []
    assert "[bold]x" in rendered(frame(view(rows=[row("[bold]x", 1.0)]), 60), width=60)


def test_long_texts_keep_their_beginning_and_their_end():
    assert cropped("short", 10) == "short"
    assert cropped("abcdefghijklmnopqrst", 10) == "abc … rst"
    assert cropped("x" * 10_000_000, 60) == f"{'x' * 28} … {'x' * 28}"


def test_held_out_sets_are_found_by_the_name_of_their_accuracy():
    assert held_out({"accuracy/a": 1, "accuracy/a/low": 0, "greedy/a": 1, "reward/accuracy": 1, "accuracy": 1}) == ["a"]


def test_categories_are_rows_and_have_no_curves():
    sets = {"accuracy/heldout": 0.5, "accuracy/heldout/low": 0.4, "accuracy/heldout/high": 0.6}
    kinds = {"accuracy/heldout[two steps]": 0.25, "accuracy/heldout[\x1b[2J]": 0.75}
    seen = view()
    seen.see({"phase": "grpo", "step": 3}, {**RECORD, **sets, **kinds}, {}, 108.0)
    said = dict(cells(seen))
    assert said["accuracy heldout"] == "50.0 % (40.0 to 60.0)" and said["[two steps] of heldout"] == "25.0 %"
    assert [name for name in seen.curves if "[" in name] == []
    text = rendered(frame(seen, 80), width=80)
    assert "[two steps] of h" in text and "75.0 %" in text and "\x1b" not in text


def test_a_record_of_many_steps_counts_seconds_and_tokens_of_one():
    seen = View(PLAN)
    for step in (100, 200):
        seen.see({"phase": "warm_start", "step": step}, {"loss": 1.25}, {"update": 50.0}, float(step))
    assert dict(cells(seen))["seconds a step"] == "0.50"  # 50 seconds for 100 steps
    assert "update 0.50 s (100 %)" in rendered(frame(seen, 80), width=80)
