"""Starts `reference.py`, once for the same question: what it wrote lies in `.cache/reference` of the repository.

A folder is named by a digest of the scripts and the versions, an answer by a digest of the files that it is about, so
nothing there is ever out of date. Workers share it: one asks, the others wait.
"""

import fcntl
import functools
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np

from tests.parity.cases import CASES

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SCRIPTS = ("reference.py", "cases.py")
PACKAGES = ("numpy", "safetensors", "torch", "transformers")
CACHE = ROOT / ".cache" / "reference"


class Expected(dict[str, np.ndarray]):
    """The arrays of a case by name."""


@functools.cache
def folder() -> Path:
    """Where everything of these scripts and versions lies."""
    digest = hashlib.sha256()
    for name in SCRIPTS:
        digest.update((HERE / name).read_bytes())
    digest.update(" ".join(f"{name} {version(name)}" for name in PACKAGES).encode())
    return CACHE / digest.hexdigest()[:16]


@contextmanager
def alone() -> Iterator[None]:
    """No other process is here meanwhile."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def ask(*arguments: str) -> None:
    """Run the script; AssertionError with what it said where it fails."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    environment = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "reference.py"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@functools.cache
def made() -> Path:
    """The folder with all `CASES`, of which the missing ones are made: each has `model`, `gradient`, `expected.npz`."""
    with alone():
        missing = [name for name in CASES if not (folder() / name).exists()]
        if missing:
            folder().mkdir(parents=True, exist_ok=True)
            ask("make", str(folder()), *missing)
    return folder()


@functools.cache
def expected(name: str) -> Expected:
    """What the reference says of a case."""
    return read(made() / name / "expected.npz")


def read(path: Path) -> Expected:
    """The arrays of a file."""
    with np.load(path, allow_pickle=False) as stored:
        return Expected({key: stored[key] for key in stored.files})


def digest(model: Path) -> str:
    """Of names and contents of the files of a model."""
    found = hashlib.sha256()
    for path in sorted(model.iterdir()):
        found.update(f"{path.name} {path.stat().st_size} ".encode() + path.read_bytes())
    return found.hexdigest()[:24]


def answers(models: Mapping[str, Path]) -> dict[str, Expected]:
    """What the reference says when it loads each of these folders: logits `padded`, tokens `greedy`, `complaints`.

    Names are those of cases; the batch is that of the case.
    """
    begun = made()
    places = {name: begun / "answers" / f"{name}-{digest(model)}.npz" for name, model in models.items()}
    with alone():
        (begun / "answers").mkdir(exist_ok=True)
        missing = [name for name, place in places.items() if not place.exists()]
        jobs = [
            {"model": str(models[n]), "expected": str(begun / n / "expected.npz"), "answer": str(places[n])}
            for n in missing
        ]
        if jobs:
            asked = begun / "answers" / f"jobs-{os.getpid()}.json"
            asked.write_text(json.dumps(jobs), encoding="utf-8")
            ask("answer", str(asked))
            asked.unlink()
    return {name: read(place) for name, place in places.items()}
