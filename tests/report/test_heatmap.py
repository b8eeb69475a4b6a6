"""A heat map shows the numbers that it was given, beside the names that they belong to."""

from xml.etree import ElementTree

import pytest

from grpo_jax.report.curves import BLUE, ORANGE
from grpo_jax.report.heatmap import clustered, colour, draw

SVG = "{http://www.w3.org/2000/svg}"
MATRIX = [[1.0, -0.25, 0.5], [-0.25, 1.0, float("nan")], [0.5, float("nan"), 1.0]]


def squares(svg: str) -> dict[str, str]:
    """What is said under the pointer -> the colour of the square."""
    found = {}
    for element in ElementTree.fromstring(svg).iter(f"{SVG}rect"):
        said = element.find(f"{SVG}title")
        if said is not None:
            found[said.text] = element.get("fill")
    return found


def test_every_square_has_its_number_and_its_colour():
    found = squares(draw(MATRIX, ["a & b", "<c>", "d"], title="T <x>", note="n"))
    assert len(found) == 9
    assert found["a & b, <c>: -0.25"] == found["<c>, a & b: -0.25"] == colour(-0.25)
    assert found["d, d: 1.00"] == BLUE and found["<c>, d: no number"] == found["d, <c>: no number"]
    assert colour(-1.0) == ORANGE and colour(5.0) == BLUE and colour(0.0) == "#f6f5f1"


def test_names_stand_at_rows_and_columns_without_control_characters_and_shortened():
    svg = draw(MATRIX, ["one\x1b[31m", "x" * 60, "three"], title="T")
    texts = [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert texts.count("one[31m") == texts.count("three") == texts.count("x" * 31 + "…") == 2
    assert "\x1b" not in svg and "-0.25" in texts  # three squares are large enough for their numbers
    many = [[1.0] * 40 for _ in range(40)]
    assert "1.00" not in [e.text for e in ElementTree.fromstring(draw(many, ["n"] * 40, title="T")).iter(f"{SVG}text")]


def test_equal_numbers_give_equal_bytes_and_a_table_that_is_not_square_is_refused():
    assert draw(MATRIX, "abc", title="T") == draw(MATRIX, "abc", title="T")
    with pytest.raises(ValueError, match=r"matrix: got 3 rows of .* for each of the 2 names"):
        draw(MATRIX, ["a", "b"], title="T")


def test_what_is_alike_stands_together():
    # 0 and 2 are nearly the same, 1 and 3 too; 4 is opposed to all.
    near = {frozenset((0, 2)): 0.9, frozenset((1, 3)): 0.95}
    matrix = [
        [1.0 if i == j else near.get(frozenset((i, j)), -0.9 if 4 in (i, j) else 0.1) for j in range(5)]
        for i in range(5)
    ]
    order = clustered(matrix)
    assert sorted(order) == [0, 1, 2, 3, 4]
    assert {frozenset(order[:2]), frozenset(order[2:4])} == {frozenset((0, 2)), frozenset((1, 3))}
    assert order[4] == 4
    assert clustered([[1.0]]) == [0] and clustered([]) == []
