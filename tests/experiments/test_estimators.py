"""The page on estimators says what its command prints."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from experiments.estimators import Table, everything, filled, number


def test_numbers_have_three_digits_and_what_rounding_leaves_of_zero_is_none():
    assert [number(x) for x in (0.12345, 1e-13, -0.5, 1.0, 12345.6)] == ["0.123", "0", "-0.5", "1", "12346"]


def test_a_table_takes_the_place_of_the_one_before():
    page = "a\n<!-- table x -->\nold\n<!-- end -->\nb\n<!-- table y -->\n<!-- end -->\n"
    new = filled(page, [Table("x", ("h", "k"), [("1", "2")])])
    assert "old" not in new and "| h | k |\n| --- | --: |\n| 1 | 2 |\n<!-- end -->\nb" in new
    assert new.endswith("<!-- table y -->\n<!-- end -->\n")


def test_the_page_has_every_table_and_its_figure(root: Path):
    page = (root / "docs" / "estimators.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"<!-- table (\w+) -->\n(.*?)<!-- end -->", page, re.DOTALL))
    assert len(blocks) == 9 and all(block.count("\n") >= 4 for block in blocks.values())
    assert ElementTree.fromstring((root / "docs" / "estimators.svg").read_text(encoding="utf-8")).tag.endswith("svg")


@pytest.mark.slow
def test_the_page_is_what_the_command_prints(root: Path):
    page = (root / "docs" / "estimators.md").read_text(encoding="utf-8")
    tables, svg = everything()
    assert filled(page, tables) == page
    assert {table.name for table in tables} == set(re.findall(r"<!-- table (\w+) -->", page))
    assert svg == (root / "docs" / "estimators.svg").read_text(encoding="utf-8")
