"""What the alerts look at: the last steps of a run, its evaluations, its settings; and when they speak."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from types import MappingProxyType
from typing import Any, NamedTuple

NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """When to speak. Shares are between 0 and 1; numbers of steps count GRPO steps."""

    window: int = 20  # steps that a change is measured over
    recent: int = 3  # steps averaged for where a metric stands now
    calm: int = 10  # steps without the cause after which a sentence may be said again
    repeat: int = 200  # steps after which a sentence is said again although its cause never left
    solved: float = 0.9  # accuracy from which on little entropy and tied groups are success
    truncated: float = 0.5  # share of completions at the length limit
    tied: float = 0.8  # share of tied groups over the window
    finished: int = 10  # steps in a row without a group that differs, once the task is solved
    hopeless: int = 10  # steps in a row without one right answer
    entropy_fall: float = 0.9  # share of the entropy lost within the window
    entropy_rise: float = 3.0  # factor within the window, of a reward that does not rise
    entropy_noise: float = 0.5  # nats a token below which a rise is harmless
    length_fall: float = 0.5  # share of the length lost within the window, of a reward that hardly rises
    gain: float = 0.1  # rise of accuracy (or, without one, of the reward in deviations) that makes up for it
    reward_fall: float = 0.5  # deviations of the reward
    clipped: float = 0.3  # share of tokens whose gradient the bounds stop
    ess: float = 0.5  # effective share of tokens
    kl_old: float = 0.1  # nats a token, within one batch
    kl_ref: float = 1.0  # nats a token, and growing
    gap_growth: float = 10.0  # factor since the first steps
    gap_floor: float = 1e-4  # nats; rounding in float32 stays below it
    gap_limit_share: float = 0.5  # share of train.gap_limit
    grad_jump: float = 10.0  # factor over the median of the window
    failed: float = 0.05  # share of scores that are errors or timeouts
    unparsable: float = 0.5  # share of scores of answers that could not be read
    drift: float = 0.05  # rise of one component of the reward and fall of accuracy
    accuracy_fall: float = 0.02  # fall on held-out problems, beyond both intervals
    zero_loss: float = 1e-6


class Evaluated(NamedTuple):
    """Accuracy on one held-out set, with its interval, and the training reward around that time."""

    step: int
    name: str
    value: float
    low: float
    high: float
    reward: float  # nan before the first GRPO step


class History:
    """What rules may look at: the last steps, every evaluation, and the settings by dotted path."""

    def __init__(self, settings: Mapping[str, str], keep: int) -> None:
        self.settings = settings
        self.rows: deque[Mapping[str, Any]] = deque(maxlen=keep)
        self.evaluations: list[Evaluated] = []
        self.seen = 0
        self.begun: dict[str, list[float]] = {"reward/mean": [], "logp_gap/mean": []}
        self.largest_norm = 0.0  # of grad_norm, before the last step

    def add(self, record: Mapping[str, Any]) -> bool:
        """Take a record in; True if it is one of a GRPO step."""
        stepped = record.get("phase") != "warm_start" and bool(record.get("step"))
        if stepped:
            norms = self.values("grad_norm", 1)
            self.largest_norm = max([self.largest_norm, *norms])
            self.rows.append(record)
            self.seen += 1
            for name, first in self.begun.items():
                if len(first) < 5:
                    first += self.values(name, 1)
        self.evaluations += _evaluated(record, self.mean("reward/mean", 10) if stepped else math.nan)
        return stepped

    def values(self, name: str, steps: int) -> list[float]:
        """The finite values of a metric in the last `steps` steps, oldest first."""
        values = [_number(row.get(name)) for row in list(self.rows)[-steps:]]
        return [value for value in values if math.isfinite(value)]

    def mean(self, name: str, steps: int) -> float:
        """Mean of `values`; nan where there is none, which makes every comparison false."""
        return mean(self.values(name, steps))

    def levels(self, name: str, window: int, recent: int) -> list[float]:
        """Running mean over `recent` steps of a metric, for the last `window` steps."""
        values = self.values(name, window)
        return [mean(values[max(0, i - recent + 1) : i + 1]) for i in range(len(values))]

    def jitter(self, name: str, steps: int) -> float:
        """Mean change of a metric from one step to the next, either way: how much of a change is chance; 0 of none."""
        values = self.values(name, steps)
        return mean([abs(b - a) for a, b in pairwise(values)]) if len(values) > 1 else 0.0

    def flat(self, steps: int) -> bool:
        """Whether no group had two different rewards in any of the last `steps` steps; False before there are so many.

        A grouping that drops tied groups has no group left instead.
        """
        rows = list(self.rows)[-steps:]
        ends = [_number(row.get("groups/tied")) >= 1 or _number(row.get("groups/count")) == 0 for row in rows]
        return len(ends) == steps and all(ends)

    def accuracy(self) -> float:
        """Share of right answers lately, in training or else held out; nan where nobody knows."""
        trained = self.mean("reward/accuracy", 5)
        return self.evaluations[-1].value if math.isnan(trained) and self.evaluations else trained

    def number(self, path: str) -> float:
        """A setting as a number; nan where it is unknown or is none."""
        try:
            return float(self.settings.get(path, "nan"))
        except ValueError:
            return math.nan


def mean(values: Sequence[float]) -> float:
    """Mean of finite values; nan of none."""
    return math.fsum(values) / len(values) if values else math.nan


def _number(value: object) -> float:
    """A metric as a number: nan where it is missing, none, or was not finite when it was written."""
    return float(value) if isinstance(value, Real) else math.nan


def _evaluated(record: Mapping[str, Any], reward: float) -> list[Evaluated]:
    found = []
    for name in record:
        kind, _, held_out = name.partition("/")
        value = _number(record[name]) if kind == "accuracy" and held_out and "/" not in held_out else math.nan
        if math.isfinite(value):
            low, high = (_number(record.get(f"{name}/{end}", value)) for end in ("low", "high"))
            found.append(Evaluated(int(record.get("step", 0)), held_out, value, low, high, reward))
    return found
