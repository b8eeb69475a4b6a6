"""Which checkpoints stay: the newest, the best by a metric, milestones; and how the best are ranked.

Both are functions of what was saved and of the evaluations alone, never of when a process was killed, so that an
interrupted run keeps and deletes what an uninterrupted one does.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from orbax.checkpoint.checkpoint_managers import preservation_policy

MODES = ("max", "min")


def ranked(
    ranking: Sequence[Mapping[str, Any]], *, index: int, value: float, keep: int, mode: str
) -> list[dict[str, Any]]:
    """The best `keep` of `ranking` and the checkpoint `index`, best first, as ``{"index": int, "value": float}``.

    Of equal values the earlier one is better. A value that is not finite enters no ranking. ``mode`` is "max" or "min".
    """
    if mode not in MODES:
        raise ValueError(f"mode: got {mode!r}, allowed {', '.join(MODES)}: choose one of these")
    rows = [dict(row) for row in ranking]
    if math.isfinite(value):
        rows.append({"index": int(index), "value": float(value)})
    # Sorting is stable in both directions: what was there first stays in front of its equals.
    return sorted(rows, key=_value, reverse=mode == "max")[:keep]


def _value(row: Mapping[str, Any]) -> float:
    return row["value"]


class Retention:
    """Orbax's policy of preservation for the checkpoints of a run.

    Kept are the newest, the `last` newest that are no passing ones, multiples of `every`, and `best`. A passing
    checkpoint was saved because the process had to leave: an uninterrupted run does not have it, so it goes with the
    next one and pushes none out.
    """

    def __init__(self, *, last: int, every: int | None) -> None:
        self.last, self.every = last, every
        self.best: frozenset[int] = frozenset()
        self.passing: frozenset[int] = frozenset()

    def kept(self, indices: Collection[int]) -> set[int]:
        """Those of `indices` that stay."""
        lasting = sorted(set(indices) - self.passing)
        milestones = {index for index in indices if self.every is not None and index % self.every == 0}
        newest = {max(indices)} if indices else set()
        return newest | set(lasting[-self.last :]) | milestones | (self.best & set(indices))

    def should_preserve(
        self,
        checkpoints: Sequence[preservation_policy.PolicyCheckpointInfo],
        *,
        context: preservation_policy.PreservationContext,
    ) -> list[bool]:
        """What Orbax asks when it saves; what is not preserved is deleted once the new checkpoint is committed."""
        del context
        kept = self.kept([info.step for info in checkpoints])
        return [info.step in kept for info in checkpoints]
