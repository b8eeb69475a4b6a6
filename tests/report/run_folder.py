"""Folders of runs written by hand, small enough that every number on their pages can be worked out."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SETTINGS = {"name": "'sums'", "seed": "0", "optimizer.learning_rate": "0.001"}


def metrics_of(accuracy: float, **more: Any) -> list[dict[str, Any]]:
    """Two evaluations, before GRPO with 25 % right and at step 4 with `accuracy`, and the steps between."""
    bounds = {"accuracy/heldout/low": accuracy - 0.05, "accuracy/heldout/high": accuracy + 0.05}
    steps = [{"phase": "grpo", "step": s, "reward/mean": s / 4, "entropy": 1 / s} for s in (1, 2, 3, 4)]
    steps[-1] |= {"accuracy/heldout": accuracy, **bounds, **more}
    return [{"phase": "warm_start", "step": 8, "accuracy/heldout": 0.25, "entropy": 2.0}, *steps]


def sample_of(step: int, number: int, reward: float | None, **more: Any) -> dict[str, Any]:
    """One completion of training."""
    text = {"prompt": f"ask {number}=", "completion": f"said {number} in step {step}"}
    worth = {"components": {"accuracy": reward}, "reward": reward, "valid": reward is not None, "stopped": True}
    return {"phase": "grpo", "step": step, "set": "train", "sample": number, **text, **worth, **more}


def write_run(
    folder: Path,
    metrics: Sequence[Mapping[str, Any]],
    samples: Sequence[Mapping[str, Any]],
    *,
    settings: Mapping[str, str] | None = None,
    timing: Sequence[Mapping[str, Any]] = (),
    **config: Any,
) -> Path:
    """A folder as a run leaves it."""
    folder.mkdir(parents=True)
    content = {"settings": {**SETTINGS, **(settings or {})}, "versions": {"jax": "0.10.1"}, **config}
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    for name, lines in (("metrics", metrics), ("samples", samples), ("timing", timing)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder
