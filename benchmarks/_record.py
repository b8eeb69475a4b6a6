"""One run measured from outside, and where and when, written beside the figures."""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

RESULTS = Path(__file__).parent / "results"


KEPT = (
    "accuracy_before accuracy_after greedy_before greedy_after format_before format_after length_before length_after"
    " entropy_before entropy_after warm_steps steps estimates state_digest"
).split()


def measure(script: Path, folder: Path, cache: Path, *arguments: str) -> dict[str, Any]:
    """One run: what its summary says, and wall and CPU seconds of the whole process as seen from outside."""
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.monotonic()
    command = [sys.executable, str(script), "--run-dir", str(folder), *arguments]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    summary = json.loads((folder / "summary.json").read_text())
    return {"wall_seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1), **{name: summary[name] for name in KEPT}}


def medians(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Median over runs of everything in them that is a number."""
    numbers = [name for name, value in runs[0].items() if isinstance(value, int | float)]
    return {name: statistics.median(run[name] for run in runs) for name in numbers}


def circumstances() -> dict[str, Any]:
    """Commit, date, processor, cores and versions of this process."""
    root = Path(__file__).parent
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    changed = subprocess.run(
        ["git", "status", "--porcelain", "../grpo_jax", "../experiments"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "commit": commit.stdout.strip() or "unknown",
        "uncommitted_changes": bool(changed.stdout.strip()),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_at_end": os.getloadavg()[0],
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def write(name: str, content: dict[str, Any]) -> None:
    """Print `content` with its circumstances and keep it as ``results/NAME.json``."""
    text = json.dumps({**content, "measured": circumstances()}, indent=2)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(text)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        if names:
            return names[0]
    return platform.processor() or platform.machine()
