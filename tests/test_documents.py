"""The Python in the pages of docs/ runs as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import grpo_jax.testing
from tests.text import published

CHECKS = sorted(name for name in grpo_jax.testing.__all__ if name.startswith("check_"))
PAGES = (
    "testing",
    "own_model",
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
    ended = subprocess.run(
        [sys.executable, str(script)], cwd=root, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
def test_the_python_of_the_page_on_text_runs_on_a_small_tokenizer(root: Path, tmp_path: Path):
    published.write(tmp_path / "model", "qwen3")
    (tmp_path / "train.jsonl").write_text('{"prompt": "1+1?", "answer": "2"}\n{"prompt": "1+2?", "answer": "3"}\n')
    blocks = BLOCK.findall((root / "docs/text.md").read_text(encoding="utf-8"))
    assert len(blocks) == 3
    (tmp_path / "page.py").write_text("\n\n".join(blocks), encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, "page.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "<|im_start|>assistant\n<think>\n" in ended.stdout
