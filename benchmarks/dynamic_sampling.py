"""Claim: what dynamic sampling costs, and saves, until the quickstart task is 97 % solved: steps, samples, CPU seconds.

    python benchmarks/dynamic_sampling.py [--seeds 3] [--every 4] [--target 0.97] [--steps 160]

Runs of `experiments/dynamic.py`, with dynamic sampling and as its variant ``without``, each a process of its own. The
sampled held-out accuracy is measured every few steps on 512 problems, one sample each (standard error near 97 %: 0.75
points); a run has got there at the first of two evaluations in a row that reach the target, or of its last one. CPU
seconds are those of the GRPO steps up to there as the run wrote them down, compilation of its first step included. A
lap that held an evaluation is charged with its wall-clock share of work that was no evaluation; what is left out is
reported apart as `evaluation_cpu_seconds`. All seeds begin where their warm starts end, which both cases share, so the
warm start is left out, as is the evaluation before GRPO. Accuracies at the end are on 2,048 problems, 4 samples each.
Written to ``results/dynamic_sampling.json``; the table for docs/dynamic_sampling.md is printed.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _record import measure, write

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "dynamic.py"
CASES = {"without": ("--variant", "without"), "with": ()}
ROWS = 32 * 8
"""Samples of a round of the quickstart."""
MEASURES = ("steps", "samples", "cpu_seconds", "evaluation_cpu_seconds", "accuracy_after")


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--target", type=float, default=0.97)
    parser.add_argument("--steps", type=int, default=160)
    asked = parser.parse_args()
    sets = [f"evaluation.every={asked.every}", f"train.steps={asked.steps}"]
    found: dict[str, list[dict[str, Any]]] = {case: [] for case in CASES}
    with tempfile.TemporaryDirectory() as name:
        for seed in range(asked.seeds):
            for case, words in CASES.items():
                folder = Path(name) / f"{case}{seed}"
                flags = [part for setting in (*sets, f"seed={seed}") for part in ("--set", setting)]
                whole = measure(SCRIPT, folder, Path(name) / f"cache-{case}{seed}", *words, *flags)
                metrics, timing = (lines(folder / f"{kind}.jsonl") for kind in ("metrics", "timing"))
                reached = until(metrics, timing, target=asked.target)
                found[case].append({"seed": seed, **reached, "accuracy_after": whole["accuracy_after"], "whole": whole})
    write(
        "dynamic_sampling",
        {
            "command": f"python benchmarks/dynamic_sampling.py --seeds {asked.seeds} --every {asked.every}"
            f" --target {asked.target:g} --steps {asked.steps}",
            "cases": found,
            "median": {case: middle(runs) for case, runs in found.items()},
        },
    )
    print(table(found))


def lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a journal that belong to GRPO steps."""
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    return [row for row in rows if row["phase"] == "grpo" and row["step"] > 0]


def until(
    metrics: Sequence[Mapping[str, Any]], timing: Sequence[Mapping[str, Any]], *, target: float
) -> dict[str, float | None]:
    """Steps, samples and CPU seconds until the accuracy reaches `target` and stays; None where it does not."""
    evaluated = [row for row in metrics if "accuracy/heldout" in row]
    good = [row["accuracy/heldout"] >= target for row in evaluated]
    stays = [here and all(good[index : index + 2]) for index, here in enumerate(good)]
    step = next((row["step"] for row, there in zip(evaluated, stays, strict=True) if there), None)
    if step is None:
        return dict.fromkeys(MEASURES[:4])
    before = [row for row in metrics if row["step"] <= step]
    drawn = before[-1].get("samples/drawn", float(ROWS * step))
    spent = cost([row for row in timing if row["step"] <= step])
    return {"steps": step, "samples": drawn, "cpu_seconds": spent[0], "evaluation_cpu_seconds": spent[1]}


def cost(timing: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """CPU seconds of training and of evaluation: those of a lap are divided as its wall-clock seconds are."""
    training = evaluation = 0.0
    for row in timing:
        whole = sum(row["phases"].values())
        share = row["phases"].get("evaluation", 0.0) / whole if whole else 0.0
        training += (1 - share) * row["cpu_seconds"]
        evaluation += share * row["cpu_seconds"]
    return training, evaluation


def middle(runs: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Medians over seeds; None where a seed did not get there."""
    values = {name: [run[name] for run in runs] for name in MEASURES}
    return {name: None if None in found else statistics.median(found) for name, found in values.items()}


def table(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The rows of the table in docs/dynamic_sampling.md."""
    rows = ["| case | seed | steps | samples | CPU s | CPU s of evaluation | accuracy at the end |", "|" + "---|" * 7]
    for case, runs in found.items():
        for run in [*runs, {"seed": "median", **middle(runs)}]:
            seconds = [_shown(run[name], "{:.1f}") for name in ("cpu_seconds", "evaluation_cpu_seconds")]
            cells = [case, str(run["seed"]), _shown(run["steps"], "{:g}"), _shown(run["samples"], "{:,.0f}"), *seconds]
            rows.append("| " + " | ".join([*cells, _shown(run["accuracy_after"], "{:.1%}")]) + " |")
    return "\n".join(rows)


def _shown(value: float | None, form: str) -> str:
    return "not reached" if value is None else form.format(value)


if __name__ == "__main__":
    main()
