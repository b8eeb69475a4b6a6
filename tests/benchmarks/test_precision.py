"""The benchmark of precision compares what it says it does."""

import argparse
import dataclasses
import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture(name="precision")
def the_benchmark(root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(root / "benchmarks")
    return importlib.import_module("precision")


def test_figures_are_those_of_the_absolute_differences(precision):
    found = precision.figures(np.asarray([0.0, -0.5, 0.25, 0.25]))
    assert found["mean"] == 0.25 and found["max"] == 0.5  # (0 + 0.5 + 0.25 + 0.25) / 4


@pytest.mark.slow
def test_fewer_bits_make_a_larger_gap(precision):
    small = dataclasses.replace(precision.QWEN3, layers=3, width=64, hidden=96)
    given = argparse.Namespace(prompts=4, group=4, tokens=16)
    whole, half = (
        precision.measured(small, precision.PRECISIONS[name], given)["gap"]["max"]
        for name in ("float32 throughout", "bfloat16 computation")
    )
    assert whole < 1e-5 < 1e-4 < half
