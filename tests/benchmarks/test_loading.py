"""The benchmark of loading reads what it says, in both ways, and compares the medians."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest


@pytest.fixture(name="loading")
def the_benchmark(root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(root / "benchmarks")
    return importlib.import_module("loading")


def test_the_ratio_is_that_of_the_medians(loading, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    told = iter([(1.0, 10), (3.0, 20), (9.0, 10), (5.0, 90), (2.0, 10), (4.0, 30)])

    class Ended:
        def __init__(self, *_: Any, **__: Any) -> None:
            seconds, peak = next(told)
            self.stdout = f'noise\n{{"seconds": {seconds}, "peak_bytes": {peak}}}\n'

    monkeypatch.setattr(loading.subprocess, "run", Ended)
    found = loading.compare(tmp_path, "plain", 3, True)
    assert (found["fromfile_seconds"], found["load_seconds"], found["ratio"]) == (2.0, 4.0, 2.0)  # of 1 9 2 and 3 5 4


def test_both_ways_read_all_of_a_checkpoint(loading, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    small = {"vocab": 64, "width": 16, "heads": 2, "kv_heads": 1, "head_width": 8, "hidden": 32, "rope_theta": 1e4}
    monkeypatch.setattr(loading, "SHAPE", small)
    loading.make(tmp_path / "made", 2)
    for way in ("fromfile", "plain", "stacked"):
        found = loading.measured(tmp_path / "made", way)
        assert np.isfinite(found["seconds"]) and found["seconds"] > 0 and found["peak_bytes"] > 1e6
