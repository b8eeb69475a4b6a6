"""What the README says is true: its recipes are those of the library and its code runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_jax.objectives import RECIPES, describe


@pytest.fixture(scope="module")
def readme(root: Path) -> str:
    return (root / "README.md").read_text(encoding="utf-8")


def cells(readme: str) -> dict[str, list[str]]:
    """Name of a recipe -> the other cells of its row."""
    table = re.search(r"\| recipe \|.*?\n\n", readme, re.DOTALL)
    assert table
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines()[2:] if line]
    return {row[0].strip("`"): row[1:] for row in rows}


def test_the_table_of_the_objectives_has_a_row_for_every_recipe_and_names_its_parts(root: Path):
    table = cells((root / "docs" / "objectives.md").read_text(encoding="utf-8") + "\n")
    assert table.keys() == RECIPES.keys()
    for name, row in table.items():
        recipe, text = RECIPES[name], describe(RECIPES[name])
        named = [function for cell in row for function in re.findall(r"`(\w+)`", cell)]
        assert len(named) >= 4
        assert all(f".{function}" in text for function in named), (name, named)
        assert row[-1] in recipe.paper


def test_its_table_is_part_of_that(readme: str, root: Path):
    table = cells((root / "docs" / "objectives.md").read_text(encoding="utf-8") + "\n")
    some = cells(readme)
    assert 6 <= len(some) < len(table) and some.items() <= table.items()
    assert f"of the {len(table)} rows" in readme


def test_its_python_runs(readme: str, tmp_path: Path):
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(blocks) == 2
    for number, block in enumerate(blocks):
        script = tmp_path / f"block{number}.py"
        script.write_text(block, encoding="utf-8")
        ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)
        assert ended.returncode == 0, ended.stderr


def test_every_file_it_names_is_there(readme: str, root: Path):
    named = set(re.findall(r"`((?:experiments|benchmarks|tests|docs)/[\w./]*)`", readme))
    assert len(named) > 8
    assert [name for name in sorted(named) if not (root / name).exists()] == []
