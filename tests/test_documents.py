"""The Python in the pages of docs/ runs as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import grpo_jax.testing

CHECKS = sorted(name for name in grpo_jax.testing.__all__ if name.startswith("check_"))
PAGES = (
    "testing",
    pytest.param("loading", marks=pytest.mark.slow),
    pytest.param("compare_gradients", marks=pytest.mark.slow),
    pytest.param("estimators", marks=pytest.mark.slow),
    pytest.param("from_policy_gradient_to_grpo", marks=pytest.mark.slow),
)
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def test_every_check_has_an_example(root: Path):
    blocks = BLOCK.findall((root / "docs/testing.md").read_text(encoding="utf-8"))
    assert sorted(re.findall(r"^(check_\w+)\(", "".join(blocks), re.MULTILINE)) == CHECKS


@pytest.mark.parametrize("page", PAGES)
def test_its_python_runs(root: Path, tmp_path: Path, page: str):
    blocks = BLOCK.findall((root / f"docs/{page}.md").read_text(encoding="utf-8"))
    assert blocks
    script = tmp_path / "page.py"
    # One process for all, each block with names of its own: as a script of the user's, and with one start of JAX.
    script.write_text("\n\n".join(blocks), encoding="utf-8")
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
