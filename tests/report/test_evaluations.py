"""A table of held-out sets has a row for each of them and, below it, for each of its categories."""

import pytest

from grpo_jax.report import places, rendered, sets_change, sets_table
from grpo_jax.report.evaluations import measures, value

BEFORE = {
    "phase": "warm_start",
    "reward/mean": 0.5,
    "length/mean": 5.0,
    "clip/low": 0.0,
    "format/heldout": 0.5,
    "accuracy/heldout": 0.25,
    "accuracy/heldout/low": 0.2,
    "accuracy/heldout/high": 0.3,
    "length/heldout": 6.0,
    "entropy/heldout": 2.0,
    "n/heldout": 40.0,
    "n/heldout[b c]": 10.0,
    "accuracy/heldout[b c]": 0.5,
    "n/heldout[a]": 30.0,
    "accuracy/heldout[a]": None,
    "greedy/heldout": 0.5,
    "n/hard": 7.0,
    "accuracy/hard": 0.125,
    "pass@4/hard": 0.5,
    "maj@4/hard": 0.25,
    "pass@2/hard": 0.375,
    "points/hard": 12.5,
}
AFTER = {**BEFORE, "accuracy/heldout": 0.75, "accuracy/hard": 0.25, "greedy/heldout": 0.25}


def lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_sets_come_in_the_order_of_the_record_and_categories_below_them():
    assert places(BEFORE) == ["heldout", "heldout[a]", "heldout[b c]", "hard"]
    assert places() == places({"reward/mean": 1.0, "length/mean": 2.0}) == []
    assert places(BEFORE, {"n/more": 1.0}) == ["heldout", "heldout[a]", "heldout[b c]", "hard", "more"]
    # A journal from before there were counts.
    assert places({"accuracy/heldout": 0.5, "accuracy/heldout/low": 0.4, "reward/accuracy": 0.5}) == ["heldout"]


def test_measures_come_with_the_accuracy_first_and_the_length_last():
    assert measures(BEFORE, ["heldout"]) == ["accuracy", "greedy", "format", "length"]
    assert measures(BEFORE, ["hard"]) == ["accuracy", "pass@4", "pass@2", "maj@4", "points"]
    both = measures(BEFORE, places(BEFORE))
    assert both == ["accuracy", "greedy", "pass@4", "pass@2", "maj@4", "format", "points", "length"]


@pytest.mark.parametrize(
    ("measure", "place", "text"),
    [
        ("accuracy", "heldout", "25.0 (20.0-30.0)"),
        ("accuracy", "hard", "12.5"),
        ("accuracy", "heldout[a]", "-"),
        ("length", "heldout", "6"),
        ("points", "hard", "12.5"),
        ("pass@4", "heldout", "-"),
    ],
)
def test_shares_are_percent_and_other_numbers_are_as_they_are(measure: str, place: str, text: str):
    assert value(BEFORE, measure, place) == text


def test_one_evaluation_is_a_row_for_each_set_and_category():
    rows = lines(rendered(sets_table(BEFORE), width=200))
    assert rows[0] == "set, category n accuracy % greedy % pass@4 % pass@2 % maj@4 % format % points length".split()
    assert rows[1] == "heldout 40 25.0 (20.0-30.0) 50.0 - - - 50.0 - 6".split()
    assert rows[2] == "a 30 - - - - - - - -".split() and rows[3][:4] == ["b", "c", "10", "50.0"]
    assert rows[4] == "hard 7 12.5 - 50.0 37.5 25.0 - 12.5 -".split()


def test_two_evaluations_side_by_side_say_what_changed():
    rows = lines(rendered(sets_change(BEFORE, AFTER), width=200))
    assert rows[1] == "heldout 40 25.0 (20.0-30.0) 75.0 (20.0-30.0) +50.0 50.0 25.0 -25.0".split()
    assert rows[4] == "hard 7 12.5 25.0 +12.5 - - -".split()


def test_a_name_from_a_file_moves_no_cursor():
    page = rendered(sets_table({"n/heldout": 1.0, "n/heldout[\x1b[2J]": 1.0, "accuracy/heldout": 1.0}))
    assert "\x1b" not in page
