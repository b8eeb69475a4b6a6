"""What the benchmark of the losses measures, and the memory that it promises: by the compiler's own account."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import pytest

from grpo_jax.objectives import RECIPES

ROWS = WIDTH = 1024


@pytest.fixture(name="losses")
def the_benchmark(root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(root / "benchmarks")
    return importlib.import_module("losses")


def test_what_goes_in_and_comes_out_is_counted(losses):
    def doubled(x, y):
        return 2 * x, jnp.sum(y)

    array = jnp.zeros((ROWS, WIDTH))
    compiled = jax.jit(doubled).lower(array, array).compile()
    assert losses.arrays_in_memory(compiled, ROWS, WIDTH) == pytest.approx(3.0, abs=0.01)  # x, y and 2 x


@pytest.mark.parametrize("name", ["grpo", "kl_cov"])
def test_a_loss_and_its_gradient_hold_at_most_twelve_arrays(losses, name: str):
    found = losses.figures(name, rows=ROWS, width=WIDTH, repeats=0)
    assert 4 < found["arrays"] <= losses.LIMIT_ARRAYS == 12  # x, o, A, weights, and what comes out


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*RECIPES} - {"grpo", "kl_cov"}))
def test_the_loss_and_gradient_of_any_recipe_hold_at_most_twelve_arrays(losses, name: str):
    assert 4 < losses.figures(name, rows=ROWS, width=WIDTH, repeats=0)["arrays"] <= losses.LIMIT_ARRAYS


def test_the_figures_say_what_was_measured_and_whether_it_is_within_the_limits(losses, tmp_path, monkeypatch):
    record = sys.modules["_record"]
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    words = "losses.py --rows 8 --width 4 --repeats 1 --only grpo kl_cov"
    monkeypatch.setattr(sys, "argv", words.split())
    losses.main()
    found = json.loads((tmp_path / "losses.json").read_text())
    assert found["command"] == "python benchmarks/losses.py --rows 8 --width 4 --repeats 1"
    assert found["recipes"].keys() == {"grpo", "kl_cov"}
    assert all(row["ms"] > 0 and row["arrays"] > 0 for row in found["recipes"].values())
    assert "prepare_ms" in found["recipes"]["kl_cov"] and "prepare_ms" not in found["recipes"]["grpo"]
    assert found["measured"]["jax"] == jax.__version__
