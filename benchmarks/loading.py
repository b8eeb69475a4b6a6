"""Claim: loading a 1.5B checkpoint in bfloat16 takes at most 1.5 times `numpy.fromfile` of the same bytes, and memory.

    python benchmarks/loading.py [--repeats 5] [--layers 28] [--stacked] [--folder DIR]

A checkpoint of the shape of Qwen2.5-1.5B (3.1 GB, random bits) is written by `models.save` into a folder that is
removed again, unless `--folder` names one to keep. Then processes take turns: one reads every tensor with
`numpy.fromfile` into fresh arrays, the next calls `models.load` and waits for the arrays. Both are timed from after
their imports, with the files in the page cache and with the files dropped from it (`posix_fadvise`). Limits: the ratio
of the medians is at most 1.5 in either state, and the peak resident memory of the loading process (`ru_maxrss`, with
the interpreter and JAX) is below 1.5 times the size of the files.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _record import write

from grpo_jax import models
from grpo_jax.models.source import tensors

LIMIT_RATIO = 1.5
LIMIT_MEMORY = 1.5
SHAPE: dict[str, Any] = {
    "vocab": 151_936,
    "width": 1536,
    "heads": 12,
    "kv_heads": 2,
    "head_width": 128,
    "hidden": 8960,
    "rope_theta": 1e6,
}


def make(folder: Path, layers: int) -> None:
    """Write the checkpoint, whose numbers are random bits."""
    config = models.ModelConfig(
        **SHAPE, layers=layers, activation="silu", gated=True, qkv_bias=True, tied=True, param_dtype="bfloat16"
    )
    rng = np.random.default_rng(0)

    def drawn(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        return rng.integers(0, 2**16, leaf.shape, dtype=np.uint16).view(jnp.bfloat16)

    models.save(folder, jax.tree.map(drawn, models.abstract(config)), config)


def measured(folder: Path, how: str) -> dict[str, float]:
    """Seconds and peak memory of this process after reading the checkpoint in one of the two ways."""
    placed = tensors(folder)
    jax.block_until_ready(jnp.zeros(1))
    begin = time.perf_counter()
    if how == "fromfile":
        kept: Any = [
            np.fromfile(file, np.uint8, tensor.end - tensor.begin, offset=tensor.begin)
            for file, tensor in placed.values()
        ]
    else:
        kept = jax.block_until_ready(models.load(folder, stacked=how == "stacked"))[0]
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    del kept
    return {"seconds": seconds, "peak_bytes": peak}


def cached(folder: Path, warm: bool) -> None:
    """Bring the files into the page cache, or drop them from it."""
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as opened:
            if warm:
                while opened.read(2**24):
                    pass
            else:
                os.fsync(opened.fileno())
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def compare(folder: Path, how: str, repeats: int, warm: bool) -> dict[str, Any]:
    """Medians of both ways, taken in turns, each in a process of its own."""
    found: dict[str, list[dict[str, float]]] = {"fromfile": [], how: []}
    for _ in range(repeats):
        for way, runs in found.items():
            cached(folder, warm)
            command = [sys.executable, __file__, "--folder", str(folder), "--one", way]
            run = subprocess.run(command, check=True, capture_output=True, text=True)
            runs.append(json.loads(run.stdout.splitlines()[-1]))
    middle = {way: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for way, runs in found.items()}
    return {
        "fromfile_seconds": round(middle["fromfile"]["seconds"], 3),
        "load_seconds": round(middle[how]["seconds"], 3),
        "ratio": round(middle[how]["seconds"] / middle["fromfile"]["seconds"], 3),
        "load_peak_gb": round(middle[how]["peak_bytes"] / 1e9, 3),
        "seconds": {way: [round(run["seconds"], 3) for run in runs] for way, runs in found.items()},
    }


def main() -> None:
    """Make the checkpoint, compare, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("repeats", 5), ("layers", 28)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--stacked", action="store_true", help="the layout with layers on a leading axis")
    parser.add_argument("--folder", type=Path, help="where the checkpoint is kept; made when it is not there")
    parser.add_argument("--one", choices=["fromfile", "plain", "stacked"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measured(given.folder, given.one)))
        return
    with tempfile.TemporaryDirectory(prefix="loading-") as temporary:
        folder = given.folder or Path(temporary) / "checkpoint"
        if not folder.exists():
            make(folder, given.layers)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        how = "stacked" if given.stacked else "plain"
        states = {name: compare(folder, how, given.repeats, name == "warm") for name in ("warm", "cold")}
    peak = max(state["load_peak_gb"] for state in states.values()) * 1e9 / size
    name = "loading_stacked" if given.stacked else "loading"
    write(
        name,
        {
            "command": f"python benchmarks/loading.py --repeats {given.repeats} --layers {given.layers}"
            + (" --stacked" if given.stacked else ""),
            "gigabytes": round(size / 1e9, 3),
            "limit_ratio": LIMIT_RATIO,
            "limit_memory": LIMIT_MEMORY,
            "memory_ratio": round(peak, 3),
            "within_limits": peak < LIMIT_MEMORY and all(s["ratio"] <= LIMIT_RATIO for s in states.values()),
            **states,
        },
    )


if __name__ == "__main__":
    main()
