"""Tables and sentences give the numbers of the records, and nothing a model wrote can move the cursor."""

import pytest

from grpo_jax.report import clean, completions, describe_run, markdown_table, measured, rendered, table
from grpo_jax.report.words import ends

BEFORE = {
    "phase": "warm_start",
    "step": 500,
    "accuracy/heldout": 0.25,
    "accuracy/heldout/low": 0.2,
    "accuracy/heldout/high": 0.3,
    "format/heldout": 0.9,
    "length/heldout": 14.0,
    "entropy/heldout": 0.5,
}
AFTER = {
    "phase": "grpo",
    "step": 10,
    "accuracy/heldout": 0.75,
    "accuracy/heldout/low": 0.7,
    "accuracy/heldout/high": 0.8,
    "format/heldout": 0.95,
    "length/heldout": 16.5,
    "entropy/heldout": 0.25,
}


def a_run(**changes):
    """Ten steps: the first half of every list of values, then the second."""
    series = {"reward/mean": (0.2, 0.8), "entropy": (0.5, 0.3), "groups/tied": (0.2, 0.4), "length/stopped": (1.0, 1.0)}
    series |= changes.pop("series", {})
    steps = [{"phase": "grpo", "step": s, **{k: v[s > 5] for k, v in series.items()}} for s in range(1, 11)]
    steps[-1] |= {**AFTER, **changes}
    return [BEFORE, *steps]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\r\nb\nc", "a↵b↵c"),
        ("a\tb", "a b"),
        ("\x1b[2J\x1b]0;title\x07x", "[2J]0;titlex"),
        ("x\x9b31m\x7f\x00", "x31m"),
        ("safe\u202eevil\u2066\u200b\u2028", "safeevil"),
        ("\ud800 zwölf 😀 数", " zwölf 😀 数"),
    ],
)
def test_control_characters_are_stripped(text, shown):
    assert clean(text) == shown


def test_a_table_shows_both_values_the_interval_and_the_change():
    # 25.0 % to 75.0 % is +50.0 points; 14 to 16.5 tokens is +2.5; the greedy accuracy was not measured.
    lines = markdown_table(BEFORE, AFTER).splitlines()
    assert lines[2] == "| accuracy, sampled | 25.0 % (20.0 to 30.0) | 75.0 % (70.0 to 80.0) | +50.0 points |"
    assert lines[4] == "| length, tokens | 14 | 16.5 | +2.5 |"
    assert len(lines) == 6 and "greedy" not in "".join(lines)
    text = rendered(table(BEFORE, AFTER))
    assert "+50.0 points" in text and "before GRPO" in text and max(map(len, text.splitlines())) <= 100


def test_what_is_missing_on_one_side_is_a_dash():
    assert "| accuracy, sampled | - | 75.0 % (70.0 to 80.0) |  |" in markdown_table({}, AFTER)


def test_completions_stand_beside_those_to_the_same_prompt():
    before = [
        {"prompt": "1+1=", "completion": "3\x1b[2J", "components": {"accuracy": 0.0}},
        {"prompt": "gone", "completion": "only before", "components": {}},
        {"prompt": "2+2=", "completion": "[bold]5", "components": {"accuracy": 0.0}},
    ]
    after = [
        {"prompt": "2+2=", "completion": "4", "components": {"accuracy": 1.0}},
        {"prompt": "1+1=", "completion": "2\nyes", "components": {"accuracy": 1.0}},
        {"prompt": "1+1=", "completion": "another", "components": {"accuracy": 1.0}},
        {"prompt": "new", "completion": "only after", "components": {}},
    ]
    lines = rendered(completions(before, after)).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["2+2=", "✗", "[bold]5", "✓", "4"],
        ["1+1=", "✗", "3[2J", "✓", "2↵yes"],
    ]
    assert len(rendered(completions(before, after, most=1)).splitlines()) == 2


def test_the_ends_are_the_last_evaluation_before_grpo_and_the_last_of_all():
    early = {"phase": "warm_start", "step": 100, "accuracy/heldout": 0.1}
    zero = {"phase": "grpo", "step": 0, "accuracy/heldout": 0.2}
    assert ends([early, *a_run()]) == (BEFORE, a_run()[-1])
    assert ends([zero, {"phase": "grpo", "step": 1}, AFTER]) == (zero, AFTER)
    assert ends([]) == ({}, {})


def test_a_run_is_described_by_its_numbers():
    text = describe_run(a_run())
    assert "In 10 GRPO steps after 500 of warm start" in text
    assert "from 25.0 % to 75.0 %" in text and "from 14 to 16.5 tokens" in text and "from 0.5 to 0.25 nats" in text
    assert "In 30 % of the groups" in text  # five steps of 0.2, five of 0.4
    assert "Look at" not in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"accuracy/heldout/low": 0.29}, "overlap"),
        ({"accuracy/heldout": 0.1}, "gamed"),
        ({"series": {"entropy": (0.5, 0.04)}}, "Entropy fell by more than 90 %"),
        ({"series": {"groups/tied": (0.2, 0.8)}}, "most groups were tied"),
        ({"series": {"length/stopped": (1.0, 0.3)}}, "length limit"),
    ],
)
def test_trouble_is_said_with_what_to_change(changes, words):
    text = describe_run(a_run(**changes))
    assert text.count("Look at this") == 1 and words in text.split("Look at this")[1]


def test_a_run_without_steps_or_evaluations_is_described_too():
    assert describe_run([BEFORE]) == describe_run([]) == "No GRPO step has been recorded yet."
    assert "nothing was evaluated" in describe_run([{"phase": "grpo", "step": 1, "reward/mean": None}])


def test_the_metrics_of_one_record_stand_with_their_intervals():
    record = {
        **AFTER,
        "pass@4/heldout": 0.5,
        "pass@4/heldout/low": 0.25,
        "pass@4/heldout/high": 0.75,
        "digits/heldout": 3.0,
    }
    lines = [" ".join(line.split()) for line in rendered(measured(record)).splitlines()]
    assert lines[0] == "accuracy, sampled 75.0 % (70.0 to 80.0)"
    assert lines[-2:] == ["pass@4/heldout 50.0 % (25.0 to 75.0)", "digits/heldout 3"]
    assert len(lines) == 6  # four that have a name, and two that go by their own
