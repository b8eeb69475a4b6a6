"""A sentence is said once, again when its cause came back or has stayed for long, and never twice for a flicker."""

from collections.abc import Collection

import pytest

from grpo_jax.alerts import Alerts, Thresholds, said, watch


def cut_off(steps: Collection[int], count: int) -> list[dict[str, float | str]]:
    """A run in which everything is cut off at `steps` and nothing elsewhere."""
    return [{"phase": "grpo", "step": s, "length/stopped": 0.0 if s in steps else 1.0} for s in range(1, count + 1)]


def steps_said(records, **thresholds: int) -> list[int]:
    return [step for step, _ in said(records, thresholds=Thresholds(recent=1, **thresholds))]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (range(4, 30), [4]),  # it stays
        ([4, 6, 8, 15], [4]),  # it flickers: never 10 steps in a row without it
        ([4, 15], [4, 15]),  # 10 steps, 5 to 14, without it
        ([4, 14], [4]),  # 9 steps
        ([], []),
    ],
)
def test_a_sentence_comes_again_only_when_its_cause_was_away(steps, expected):
    assert steps_said(cut_off(steps, 40)) == expected


def test_a_cause_that_stays_is_called_to_mind():
    assert steps_said(cut_off(range(5, 500), 499), repeat=200) == [5, 205, 405]


def test_what_is_no_trouble_is_said_once_in_a_run():
    rows = [
        {"phase": "grpo", "step": s, "loss": 0.0 if s in (1, 50) else 0.1, "grad_norm": 1.0, "kl/old": 0.0}
        for s in range(1, 60)
    ]
    assert steps_said(rows) == [1]


def test_equal_records_give_equal_sentences_whether_the_run_was_interrupted_or_not():
    rows = cut_off([4, 5, 6, 20, 21], 30)
    whole = said(rows)
    alerts = Alerts()
    for row in rows[:5]:
        alerts.see(row)
    assert [sentence for row in rows[5:] for sentence in alerts.see(row)] == [s for step, s in whole if step > 5]
    assert len(whole) == 2


def test_settings_are_named_with_their_value_where_it_is_known():
    rows = cut_off([1], 1)
    assert "raise sampling.max_tokens (now 11) or" in said(rows, {"sampling.max_tokens": "11"})[0][1]
    assert "raise sampling.max_tokens or" in said(rows)[0][1]


def test_the_warm_start_and_evaluations_before_the_first_step_are_no_steps():
    alerts = Alerts()
    assert alerts.see({"phase": "warm_start", "step": 5, "length/stopped": 0.0}) == []
    assert alerts.see({"phase": "grpo", "step": 0, "accuracy/heldout": 0.1, "length/stopped": 0.0}) == []


def test_a_rule_that_breaks_is_named_and_stops_nothing(monkeypatch: pytest.MonkeyPatch):
    def broken(history, thresholds):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(watch, "RULES", {**watch.RULES, "broken": broken})
    assert [sentence for _, sentence in said(cut_off([], 20))] == [
        "the alert 'broken' could not be worked out (ZeroDivisionError: by zero)."
    ]
