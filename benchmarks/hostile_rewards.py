"""Claim: with a reward that goes wrong on 5 % of the completions a run ends within one point of the accuracy without.

    python benchmarks/hostile_rewards.py [--seeds 3]

The reward raises, hangs, dies of a segmentation fault, asks for 1 GB, prints 1 GB, returns None, NaN or text, forks
processes into sessions of their own, or ends its process: `_misbehave.py`, a hash of prompt and completion says where.
Each variant of `_hostile.py` is trained with each seed. The accuracy compared is that of the last checkpoint on all
held-out problems with 8 samples each, scored by the library's own reward, which goes wrong nowhere.
"""

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from _hostile import SHARE, VARIANTS
from _record import measure, write

from grpo_jax import heldout
from grpo_jax.folder import visit
from grpo_jax.journal import read
from grpo_jax.loop.setup import judge, problems
from grpo_jax.revisit import restore

SCRIPT = Path(__file__).resolve().with_name("_hostile.py")
HELDOUT, SAMPLES = 192, 8
STATUSES = ("ok", "unparsable", "error", "timeout")


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        runs = {variant: [train(root, variant, seed) for seed in range(seeds)] for variant in VARIANTS}
    final = {variant: statistics.mean(run["accuracy"] for run in rows) for variant, rows in runs.items()}
    lost = 100 * (final["clean"] - final["hostile"])
    write(
        "hostile_rewards",
        {
            "command": f"python benchmarks/hostile_rewards.py --seeds {seeds}",
            "share": SHARE,
            "runs": runs,
            "mean_accuracy": final,
            "points_lost": round(lost, 3),
            "within_one_point": abs(lost) <= 1.0,
        },
    )


def train(root: Path, variant: str, seed: int) -> dict[str, Any]:
    """One run, what became of its rows and what its last policy is worth."""
    folder = root / f"{variant}{seed}"
    measured = measure(SCRIPT, folder, root / "cache", "--variant", variant, "--set", f"seed={seed}")
    rows = [row for row in read(folder / "samples.jsonl") if row["set"] == "train"]
    wrong = [row for row in rows if set(row["statuses"].values()) & {"error", "timeout"}]
    return {
        **measured,
        "accuracy": accuracy(folder, variant, seed),
        "rows": len(rows),
        "rows_lost": len(wrong),
        "share_lost": round(len(wrong) / len(rows), 4),
        "rows_lost_that_counted": sum(row["valid"] or row["advantage"] != 0 for row in wrong),
        "scores": {
            status: int(sum(row.get(f"status/{status}", 0) for row in read(folder / "metrics.jsonl")))
            for status in STATUSES
        },
    }


def accuracy(folder: Path, variant: str, seed: int) -> float:
    """Sampled held-out accuracy of the last checkpoint by the reward that goes wrong nowhere."""
    trained = replace(VARIANTS[variant], seed=seed)
    asked = replace(VARIANTS["clean"].evaluation, full_prompts=HELDOUT)
    clean = replace(VARIANTS["clean"], seed=seed, evaluation=asked)
    with visit(folder, trained) as kept:
        params = restore(kept, trained).policy
        metrics, _ = heldout.evaluate(params, judge(clean, problems(clean)), prompts=None, samples=SAMPLES, show=0)
    return float(metrics["accuracy/heldout"])


if __name__ == "__main__":
    main()
