"""What a run came to, as the numbers of an ablation: read off its journals, nothing is computed twice."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_jax.ablation.student import Interval, interval
from grpo_jax.journal import NONFINITE, read
from grpo_jax.report import ends

LATE = 10
"""The last tenth of the GRPO steps stands for the end of training."""
Numbers = Mapping[str, float]
"""Name of a measure -> value; nan where the run has none."""


@dataclass(frozen=True)
class Measure:
    """A number of a run: how the column is called, and whether it is a share, shown in per cent."""

    name: str
    label: str
    share: bool = False


OUTCOMES = (
    Measure("accuracy", "accuracy %", share=True),
    Measure("greedy", "greedy %", share=True),
    Measure("before", "before %", share=True),
    Measure("reward", "reward"),
    Measure("length", "tokens"),
    Measure("entropy", "entropy"),
)
TRAINING = (Measure("clipped", "clipped %", share=True), Measure("kl", "KL(old)"), Measure("grad_norm", "grad norm"))
REWARDS = (
    Measure("start", "before"),
    Measure("first", "first"),
    Measure("end", "end"),
    Measure("first_rise", "first rise"),
    Measure("rise", "rise"),
    TRAINING[0],
    Measure("skipped", "refused"),
    Measure("nonfinite", "not finite"),
)
OUTCOMES_ARE = (
    "Of the last held-out evaluation: accuracy of samples and of greedy completions, tokens of a completion, entropy in"
    " nats a token. Before: accuracy of samples before GRPO. Reward: mean over the last tenth of the training steps."
)
TRAINING_IS = (
    "Means over all GRPO steps: the share of tokens that a clip bound stops, KL(old), the divergence from the policy"
    " that sampled in nats a token, and the norm of the gradient before any clipping of it."
)
REWARDS_ARE = (
    "The reward of held-out problems, sampled as in training: before GRPO, at the first evaluation after it began, and"
    " at the end; a rise is the difference to that before GRPO. Refused: optimiser updates that were not finite. Not"
    " finite: numbers of the metrics that are not."
)
CLAIMED = (*OUTCOMES, *TRAINING, *REWARDS)
"""Measures of which a file may say where they have to lie."""
TIMES = (Measure("seconds", "seconds"), Measure("cpu_seconds", "CPU s"))
"""What differs from one time to the next, and therefore stands apart."""


def numbers(run: Path, weights: Mapping[str, float] | None = None) -> dict[str, float]:
    """The measures of a run, finished or not.

    `reward` is the mean over the last tenth of the steps, what is in `TRAINING` over all of them; accuracies, length
    and entropy are those of the last held-out evaluation, `before` that of the evaluation before GRPO; `clipped` is the
    share of tokens that either bound stops; times are sums over all attempts.

    `start`, `first` and `end` are the sampled held-out reward before GRPO, at the first evaluation behind its first
    step and at the last: the sum over text rewards of weight times mean score, with the `weights` of the experiment.
    `skipped` and `nonfinite` count refused updates and numbers that are not finite, over all GRPO steps.
    """
    metrics, timing = read(run / "metrics.jsonl"), read(run / "timing.jsonl")
    before, after = ends(metrics)
    steps = [row for row in metrics if row.get("phase") != "warm_start" and row.get("step")]
    late = steps[-max(1, len(steps) // LATE) :] if steps else []
    evaluated = [row for row in steps if any(name.endswith("/heldout") for name in row)]
    start, first, end = (_weighed(row, weights or {}) for row in (before, (evaluated or [{}])[0], after))
    clipped = [_sum(row, ("clip/low", "clip/high")) for row in steps]
    return {
        "accuracy": _value(after, "accuracy/heldout"),
        "greedy": _value(after, "greedy/heldout"),
        "before": _value(before, "accuracy/heldout"),
        "reward": _mean([_value(row, "reward/mean") for row in late]),
        "length": _value(after, "length/heldout"),
        "entropy": _value(after, "entropy/heldout"),
        "clipped": _mean(clipped),
        "kl": _mean([_value(row, "kl/old") for row in steps]),
        "grad_norm": _mean([_value(row, "grad_norm") for row in steps]),
        "start": start,
        "first": first,
        "end": end,
        "first_rise": first - start,
        "rise": end - start,
        "skipped": math.fsum(_value(row, "skipped") for row in steps) if steps else math.nan,
        "nonfinite": float(sum(len(row.get(NONFINITE, ())) for row in steps)) if steps else math.nan,
        "seconds": math.fsum(row["seconds"] for row in timing),
        "cpu_seconds": math.fsum(row["cpu_seconds"] for row in timing),
    }


def curve(run: Path, name: str = "accuracy/heldout") -> list[tuple[int, float]]:
    """(GRPO step, value) of what was measured now and then; step 0 is before GRPO."""
    metrics = read(run / "metrics.jsonl")
    before, _ = ends(metrics)
    points = {int(r["step"]): _value(r, name) for r in metrics if r.get("phase") != "warm_start"}
    points.setdefault(0, _value(before, name))
    return sorted((step, value) for step, value in points.items() if math.isfinite(value))


def means(runs: Sequence[Numbers], measures: Sequence[Measure]) -> dict[str, Interval | None]:
    """Mean and interval of every measure over the runs of a variant."""
    return {m.name: interval([row[m.name] for row in runs]) for m in measures}


def paired(
    runs: Mapping[int, Numbers], reference: Mapping[int, Numbers], measures: Sequence[Measure]
) -> dict[str, Interval | None]:
    """Mean and interval of the differences to `reference` over the seeds that both have.

    What a seed does to both, its warm start above all, cancels.
    """
    seeds = [seed for seed in runs if seed in reference]
    return {m.name: interval([runs[s][m.name] - reference[s][m.name] for s in seeds]) for m in measures}


def _value(row: Mapping[str, Any], name: str) -> float:
    value = row.get(name)
    return float(value) if isinstance(value, int | float) else math.nan


def _weighed(row: Mapping[str, Any], weights: Mapping[str, float]) -> float:
    """The sampled held-out reward of an evaluation; nan where a part of it is missing."""
    parts = [weight * _value(row, f"{name}/heldout") for name, weight in weights.items()]
    return math.fsum(parts) if parts else math.nan


def _sum(row: Mapping[str, Any], names: Sequence[str]) -> float:
    """Sum of those of `names` that a row has; nan where it has none."""
    found = [value for value in (_value(row, name) for name in names) if math.isfinite(value)]
    return math.fsum(found) if found else math.nan


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan
