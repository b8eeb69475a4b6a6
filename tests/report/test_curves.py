"""The figure shows numbers where they belong, is well-formed whatever the texts, and depends on numbers alone."""

import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from grpo_jax.report import PANELS, Panel, Series, figure
from grpo_jax.report.curves import draw
from grpo_jax.report.plot import binned, smoothed, ticks

SVG = "{http://www.w3.org/2000/svg}"
ONE = (Panel("A", (Series("a", "line", "#123456"), Series("b", "points", "#654321", points=True))),)


def some_run(warm=20, steps=30):
    rows: list[dict] = [{"phase": "warm_start", "step": s, "entropy": 3.0 / s} for s in range(1, warm + 1)]
    rows += [
        {"phase": "grpo", "step": s, "reward/mean": s / steps, "entropy": 0.5, "groups/tied": 0.25, "loss": None}
        for s in range(1, steps + 1)
    ]
    rows[-1]["accuracy/heldout"] = 0.75
    return rows


def texts(svg):
    return ["".join(node.itertext()) for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_ticks_are_round_numbers_inside_the_range():
    assert ticks(0.0, 1.0) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert ticks(0, 60, 3) == [0, 20, 40, 60]
    assert ticks(-0.3, 0.3) == [-0.2, 0.0, 0.2]
    assert ticks(2.0, 2.0) == [2.0]
    for low, high in ((0.0, 1e-7), (12.0, 13.7), (-5e6, 3.0)):
        found = ticks(low, high)
        assert 2 <= len(found) <= 6 and all(low - 1e-9 <= t <= high + 1e-9 for t in found)


def test_binning_keeps_the_mean_and_smoothing_keeps_a_straight_line():
    values = [(float(i), 2.0 * i + 1.0) for i in range(12)]
    # Runs of three: x = 1, 4, 7, 10 and y = 2x + 1.
    assert binned(values, 4) == [(1.0, 3.0), (4.0, 9.0), (7.0, 15.0), (10.0, 21.0)]
    assert binned(values, 12) == values and binned([], 4) == []
    np.testing.assert_allclose(smoothed(values, 3), values)


def test_points_and_lines_stand_where_their_numbers_say():
    rows = [{"phase": "grpo", "step": s, "a": float(s), "b": 4.0 - s} for s in (0, 2, 4)]
    root = ElementTree.fromstring(draw(rows, title="t", panels=ONE))
    line = next(node for node in root.iter(f"{SVG}polyline") if node.get("stroke-width") == "1.8")
    x, y = np.array([[float(v) for v in pair.split(",")] for pair in line.attrib["points"].split()]).T
    dots = [(float(node.attrib["cx"]), float(node.attrib["cy"])) for node in root.iter(f"{SVG}circle")]
    # The curve rises in equal strides; the points fall, and meet it in the middle, at 2.
    rounded = 0.15  # coordinates have one decimal
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=rounded) and x[1] > x[0]
    assert y[0] - y[1] == pytest.approx(y[1] - y[2], abs=rounded) and y[1] > y[2]
    np.testing.assert_allclose(dots, [(x[0], y[2]), (x[1], y[1]), (x[2], y[0])])


def test_the_end_of_the_warm_start_is_a_dashed_line_and_only_then():
    with_warm, without = draw(some_run(), title="t"), draw(some_run(warm=0), title="t")
    root = ElementTree.fromstring(with_warm)
    dashed = [node for node in root.iter(f"{SVG}line") if node.get("stroke-dasharray")]
    panels = 4  # accuracy, reward, entropy and tied groups have numbers
    assert len(dashed) == panels and all(node.get("x1") == node.get("x2") for node in dashed)
    assert texts(with_warm).count("warm 20") == panels
    assert "stroke-dasharray" not in without and "warm" not in "".join(texts(without))


def test_panels_without_numbers_are_left_out_and_no_numbers_at_all_still_give_a_figure():
    shown = texts(draw(some_run(), title="t"))
    assert "Reward, mean" in shown and "Accuracy" in shown and "KL to the reference, nats" not in shown
    for rows in ([], [{"phase": "grpo", "step": 1, "reward/mean": None}], [{"step": 1, "entropy": math.nan}]):
        assert "no numbers yet" in texts(draw(rows, title="t"))


@pytest.mark.parametrize("rows", [some_run(steps=0), some_run(warm=0, steps=1), some_run(warm=1, steps=1)], ids=len)
def test_short_runs_and_constant_numbers_give_finite_coordinates(rows):
    text = draw(rows, title="t")
    ElementTree.fromstring(text)
    assert "nan" not in text.replace("nats", "") and "inf" not in text


def test_texts_are_escaped_and_lose_control_characters():
    title = '<script>alert(1)</script> & \x1b[31m"quoted"'
    text = draw(some_run(), title=title)
    root = ElementTree.fromstring(text)
    assert not list(root.iter(f"{SVG}script")) and "\x1b" not in text
    assert root.findtext(f"{SVG}title") == '<script>alert(1)</script> & [31m"quoted"'


def test_equal_numbers_give_equal_bytes_and_a_small_file(tmp_path):
    long = some_run(warm=3000, steps=5000)
    figure(tmp_path / "a.svg", long, title="t")
    figure(tmp_path / "b.svg", [dict(reversed(row.items())) for row in long], title="t")
    content = (tmp_path / "a.svg").read_bytes()
    assert content == (tmp_path / "b.svg").read_bytes() and len(content) < 120_000
    for outside in (b"href", b"url(http", b"<image", b"<style", b"@import"):
        assert outside not in content


def test_every_panel_has_a_title_and_no_metric_twice():
    for panel in PANELS:
        names = [series.name for series in panel.series]
        assert panel.title and len(set(names)) == len(names)
