from functools import partial

import pytest

from grpo_jax.lifeline import Exit, RunStopped
from grpo_jax.rewards.guards import FailureLimit, check_canary, failed, show
from grpo_jax.rewards.pool import Pool
from grpo_jax.rewards.text import Record, Score, Scores, TextRewards, accuracy, r1_format
from tests.rewards import odd

GOLD = [Record("q", f"x</think><answer>{n}</answer>", (), str(n)) for n in range(3)]
JUNK = [Record("q", text, (), "8") for text in ("", "8", "x</think><answer>9</answer>", "<answer>88</answer>")]
REWARDS: TextRewards = {"accuracy": (accuracy, 1.0), "format": (r1_format, 0.2)}


def test_a_canary_passes_where_right_is_1_and_wrong_is_0():
    check_canary(REWARDS, GOLD, JUNK)
    with Pool(REWARDS, workers=1) as pool:
        check_canary(pool, GOLD, JUNK)


def test_a_canary_names_the_record_that_scores_wrongly():
    with pytest.raises(ValueError, match=r"got 0 for a right completion, allowed is 1.*\n.*\n.*<answer>3</answer>"):
        check_canary(REWARDS, [*GOLD, Record("q", "<answer>3</answer>", (), "4")], JUNK)
    with pytest.raises(ValueError, match="got 1 for a wrong completion, allowed is 0"):
        check_canary(REWARDS, GOLD, [*JUNK, GOLD[0]])


def test_a_canary_refuses_a_reward_that_fails_on_a_wrong_completion():
    rewards: TextRewards = {"accuracy": (odd.trouble, 1.0)}
    gold = [Record("q", "good", (), "1")]
    with pytest.raises(ValueError, match=r"got error \(ZeroDivisionError: .*\) on a wrong completion"):
        check_canary(rewards, gold, [Record("q", "raise", (), "0")])
    # The best score is a setting: `trouble` gives the answer as a number.
    check_canary(rewards, [Record("q", "good", (), "2")], [Record("q", "good", (), "-1")], best=2.0, worst=-1.0)


def test_a_canary_has_to_know_which_reward_tells_right_from_wrong():
    with pytest.raises(ValueError, match=r"got 'acuracy', allowed are \['accuracy', 'format'\]"):
        check_canary(REWARDS, GOLD, JUNK, component="acuracy")


def step(*statuses: str) -> tuple[list[Record], Scores]:
    """Records of one step, the second of whose two rewards has these statuses."""
    records = [Record("the prompt", f"completion {n}\x1b", (), "8") for n in range(len(statuses))]
    scores = tuple(Score(0.0, status, f"reason {n}") for n, status in enumerate(statuses))
    return records, {"fine": (Score(1.0),) * len(records), "mine": scores}


def test_too_many_failures_of_the_last_ones_stop_the_run_with_an_example():
    limit = FailureLimit(share=0.25, window=8)
    limit.check(*step("ok", "error", "unparsable", "ok"))  # 1 of 4
    limit.check(*step("ok", "timeout", "ok", "ok"))  # 2 of 8: just what is allowed
    limit.check(*step("error", "ok", "ok", "ok"))  # the first four are forgotten: 2 of 8 again
    with pytest.raises(RunStopped, match="failed on 3 of the last 8 completions; allowed are 2 of 8") as stopped:
        limit.check(*step("ok", "error", "timeout", "ok"))  # 1 + 2
    assert stopped.value.code == Exit.DATA
    assert "'mine' ended with error: reason 1" in str(stopped.value)
    assert r"completion 1\x1b" in str(stopped.value) and "\x1b" not in str(stopped.value)


def test_a_window_need_not_be_full_to_be_past_its_limit_and_none_may_be_all():
    with pytest.raises(RunStopped, match="3 of the last 3 completions; allowed are 2 of 8"):
        FailureLimit(share=0.25, window=8).check(*step("error", "error", "timeout"))
    with pytest.raises(RunStopped, match="1 of the last 1"):
        FailureLimit(share=0.0).check(*step("error"))
    FailureLimit(share=1.0, window=2).check(*step("error", "error"))


@pytest.mark.parametrize("settings", [{"share": 1.5}, {"share": -0.1}, {"window": 0}])
def test_settings_out_of_range_are_refused(settings: dict):
    with pytest.raises(ValueError, match="got"):
        FailureLimit(**settings)


def test_a_row_has_failed_where_one_reward_could_not_score_it():
    _, scores = step("ok", "unparsable", "error")
    assert [failed(scores, row) for row in range(3)] == [None, None, ("mine", Score(0.0, "error", "reason 2"))]


def test_a_record_is_shown_in_three_short_lines():
    lines = show(Record("p" * 400, "a\n\x1b", (), "8")).splitlines()
    assert len(lines) == 3 and lines[0].endswith("' ...") and len(lines[0]) < 330
    assert lines[1] == r"  completion 'a\n\x1b'" and lines[2] == "  answer     '8'"


def test_settings_of_rewards_reach_the_canary():
    numeric: TextRewards = {"accuracy": (partial(accuracy, match="numeric"), 1.0)}
    half = Record("q", "<answer>50%</answer>", (), "0.5")
    check_canary(numeric, [half], [])
    with pytest.raises(ValueError, match="got 0 for a right completion"):
        check_canary(REWARDS, [half], [])
