"""A panel shows numbers where they belong, with intervals and words where there are some."""

import xml.etree.ElementTree as ElementTree

import pytest

from grpo_jax.report.plot import Curve, Pen, Scale, axis_of, panel

SCALE = Scale("Shares", 0.0, 1.0, percent=True)
ROWS = [{"phase": "warm_start", "step": 10}, {"phase": "grpo", "step": 4}]


def drawn(*curves: Curve, legend: bool = True) -> ElementTree.Element:
    lines = panel(SCALE, curves, Pen(axis_of(ROWS), legend=legend), corner=(0.0, 0.0), size=(240.0, 148.0), name="n")
    return ElementTree.fromstring("<svg>" + "".join(lines) + "</svg>")


def test_the_warm_start_takes_its_share_of_the_axis_and_the_steps_the_rest():
    axis = axis_of(ROWS)
    # 28 % for the warm start; half of the remaining 72 % is 36 %.
    assert axis.at("warm_start", 10) == axis.at("grpo", 0) == 0.28
    assert axis.at("grpo", 2) == pytest.approx(0.64) and axis.at("grpo", 4) == 1.0
    assert axis_of(ROWS[1:]).at("grpo", 2) == 0.5 and axis_of(ROWS[:1]).at("warm_start", 10) == 1.0
    assert axis_of([]) == (0.0, 0.0, 0.0)


def test_points_have_their_interval_and_say_their_number():
    points = Curve(
        "held out", "red", [(0.5, 0.5), (1.0, 0.75)], True, [(0.5, 0.25, 0.75)], ["half", "<three> quarters"]
    )
    root = drawn(points)
    (bar,) = [line for line in root.iter("line") if line.get("stroke") == "red"]
    # The plot is 240 - 40 wide from 40, and 148 - 26 - 22 = 100 high from 26: 0.25 is at 26 + 75, 0.75 at 26 + 25.
    assert (bar.get("x1"), bar.get("x2"), bar.get("y1"), bar.get("y2")) == ("140", "140", "101", "51")
    first, second = root.iter("circle")
    assert (first.get("cx"), first.get("cy")) == ("140", "76") and (second.get("cx"), second.get("cy")) == ("240", "51")
    assert [circle.findtext("title") for circle in (first, second)] == ["half", "<three> quarters"]


def test_a_dashed_curve_is_dashed_and_a_legend_names_more_than_one():
    one, two = Curve("one", "red", [(0.5, 0.1), (1.0, 0.2)], dash="6 3"), Curve("two", "blue", [(0.5, 0.3), (1.0, 0.4)])
    root = drawn(one, two)
    assert [line.get("stroke") for line in root.iter("polyline") if line.get("stroke-dasharray")] == ["red"]
    assert {text.text for text in root.iter("text")} >= {"one", "two", "Shares", "50%"}
    assert "one" not in {text.text for text in drawn(one, two, legend=False).iter("text")}
    assert "one" not in {text.text for text in drawn(one).iter("text")}
