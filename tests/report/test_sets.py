"""The newest numbers of every held-out set and category are found by their names."""

import math

from grpo_jax.report import rendered
from grpo_jax.report.sets import Interval, by_set, interval, measures, parsed, table_of_sets

METRICS = [
    {"phase": "grpo", "step": 5, "accuracy/heldout": 0.5, "accuracy/heldout[sums]": 0.25, "accuracy/hard": 0.125},
    {"phase": "grpo", "step": 6, "reward/accuracy": 0.9},
    {
        "phase": "grpo",
        "step": 9,
        "accuracy/heldout": 0.75,
        "accuracy/heldout/low": 0.7,
        "accuracy/heldout/high": 0.8,
        "pass@4/heldout": 1.0,
        "n/heldout": 128.0,
        "n/heldout[sums]": 32.0,
        "accuracy/heldout[sums]": 0.5,
        "accuracy/heldout[\x1b[2J]": 1.0,
        "maj@4/hard": None,
    },
]


def test_names_of_metrics_are_taken_apart():
    assert parsed("accuracy/heldout") == ("accuracy", "heldout", None)
    assert parsed("pass@16/hard[two digits]") == ("pass@16", "hard", "two digits")
    assert parsed("accuracy/heldout[a/b [c]]") == ("accuracy", "heldout", "a/b [c]")
    for name in ("accuracy/heldout/low", "accuracy/heldout[x]/high", "reward/accuracy", "length/heldout", "accuracy"):
        assert parsed(name) is None


def test_each_set_has_its_newest_evaluation_and_its_categories_after_it():
    found = by_set(METRICS)
    assert [(each.label, each.step) for each in found] == [
        ("heldout", 9),
        ("heldout [sums]", 9),
        ("heldout [\x1b[2J]", 9),
        ("hard", 5),
    ]
    assert found[0].values["accuracy"] == (0.75, 0.7, 0.8)
    assert found[0].values["pass@4"].value == 1.0 and math.isnan(found[0].values["pass@4"].low)
    assert interval(METRICS[2], "accuracy/heldout") == (0.75, 0.7, 0.8)
    assert measures(found) == ["accuracy", "pass@4"]
    assert by_set([{"phase": "grpo", "step": 1, "entropy": 1.0}]) == []


def test_intervals_are_said_in_per_cent_where_they_are_known():
    assert Interval(0.75, 0.7, 0.8).words() == "75.0 % (70.0 to 80.0)"
    assert Interval(0.75, 0.7, 0.8).short() == "75.0 (70.0-80.0)"
    assert Interval(0.75).words() == "75.0 %" and Interval(0.75).short() == "75.0" and Interval(math.nan).words() == "-"


def test_the_table_has_a_row_for_each_set_and_category_and_moves_no_cursor():
    table = table_of_sets(METRICS)
    assert table is not None
    lines = [line.split() for line in rendered(table).splitlines()]
    assert lines[0] == ["held-out", "set,", "%", "accuracy", "pass@4", "problems", "step"]
    assert lines[1] == ["heldout", "75.0", "(70.0-80.0)", "100.0", "128", "9"]
    assert lines[2:] == [["sums", "50.0", "32", "9"], ["[2J", "100.0", "9"], ["hard", "12.5", "5"]]
    assert table_of_sets([]) is None
