"""The figure of an ablation is well-formed, and shows the numbers that it was given."""

from pathlib import Path
from xml.etree import ElementTree

from grpo_jax.ablation.figure import Band, bands, draw, write
from grpo_jax.report.curves import BLUE

SVG = "{http://www.w3.org/2000/svg}"
CURVES = {
    "one & only": [[(0, 0.0), (10, 0.5), (20, 1.0)], [(0, 0.0), (10, 0.25), (20, 0.5)]],
    "two": [[(0, 0.0), (10, 0.125), (20, 0.25)]],
}


def test_a_band_is_mean_and_range_where_every_seed_was_measured():
    curves = [[(0, 0.25), (5, 0.5), (10, 1.0)], [(0, 0.75), (10, 0.5)]]
    assert bands(curves) == [Band(0, 0.5, 0.25, 0.75), Band(10, 0.75, 0.5, 1.0)]
    assert bands([]) == []


def test_every_variant_has_a_panel_with_its_mean_and_its_range():
    tree = ElementTree.fromstring(draw(CURVES, title="A title <b>"))
    texts = [element.text for element in tree.iter(f"{SVG}text")]
    assert {"one & only", "two", "A title <b>", "75.0%", "25.0%"} <= set(texts)  # last means (1 + 0.5) / 2 and 0.25
    assert len(list(tree.iter(f"{SVG}polygon"))) == 2
    # In each panel its own mean in colour, and the other's in grey.
    assert [line.get("stroke") == BLUE for line in tree.iter(f"{SVG}polyline")] == [False, True, False, True]


def test_a_point_lies_where_its_number_says():
    tree = ElementTree.fromstring(draw(CURVES, title="x"))
    polygon = next(tree.iter(f"{SVG}polygon")).get("points", "")
    points = [tuple(map(float, pair.split(","))) for pair in polygon.split()]
    upper, lower = points[:3], points[3:][::-1]
    assert [x for x, _ in upper] == [x for x, _ in lower]
    assert (
        upper[1][0] - upper[0][0] == upper[2][0] - upper[1][0]
        or abs(upper[1][0] * 2 - upper[0][0] - upper[2][0]) <= 0.2
    )  # steps 0, 10, 20 are equally far apart
    rise = [upper[0][1] - y for _, y in (upper[2], lower[2])]
    assert abs(rise[0] - 2 * rise[1]) <= 0.3  # 1.0 is twice as high as 0.5; heights are rounded to tenths


def test_equal_numbers_give_equal_bytes_and_no_numbers_a_figure_that_says_so(tmp_path: Path):
    for name in ("a.svg", "b.svg"):
        write(tmp_path / name, CURVES, title="x")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert "no numbers yet" in draw({"a": [[]]}, title="x")
