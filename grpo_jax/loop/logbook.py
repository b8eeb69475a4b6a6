"""What a run leaves behind as it goes on, and what ends it when its numbers say so.

A step is written down as lines of metrics, times and completions, shown to whoever watches, and looked at by alerts and
by the two tripwires: updates that are refused again and again, and a sampler that is not the policy that is trained.
"""

import time
from collections.abc import Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np

from grpo_jax import objectives
from grpo_jax.alerts import Alerts
from grpo_jax.display import APART, Display
from grpo_jax.experiment import Experiment, settings, step_settings
from grpo_jax.folder import Position, RunFolder
from grpo_jax.journal import read
from grpo_jax.lifeline import Diverged, Guard, Heartbeat, write_dump
from grpo_jax.loop.phases import Learned, Stopwatch, begun
from grpo_jax.memory import peak_memory
from grpo_jax.rewards.text import status_counts
from grpo_jax.samples import rollout_records
from grpo_jax.train import host
from grpo_jax.types import Batch, Metrics


class Logbook:
    """The journals of one run, its display and its alerts."""

    def __init__(
        self, experiment: Experiment, folder: RunFolder, display: Display, heartbeat: Heartbeat, clock: Stopwatch
    ) -> None:
        self.experiment, self.folder, self.display, self.heartbeat = experiment, folder, display, heartbeat
        self.clock, self.alerts = clock, Alerts(settings(experiment))
        self.guard = Guard(experiment.train.skip_limit)
        self.begun = begun()  # wall and CPU seconds
        self._last = self.begun  # the same at the last line of the journals

    def reread(self, *, show: bool = False) -> None:
        """Have the alerts know what is in the journal already: what was said before is not said again.

        With `show` nothing was said yet: the display is told everything, as if it happened now.
        """
        for row in read(self.folder.path / "metrics.jsonl"):
            sentences = self.alerts.see(_judged(row))
            if show:
                numbers = {name: value for name, value in row.items() if isinstance(value, int | float)}
                self.display.step(Position.of(row).fields(), numbers, seconds={})
                for sentence in sentences:
                    self.display.alert(sentence)

    def step(self, step: int, learned: Learned, extra: Mapping[str, float]) -> None:
        """Write down one GRPO step, and stop the run where its numbers say so: RunStopped with a code."""
        position, scored = Position(1, step), learned.scored
        values, rows = host((learned.metrics, learned.batch))
        self.clock.mark("update")
        found = rollout_records(rows, self.experiment.data, position.fields(), scored.scores, scored.texts)
        written = list(islice(found, scored.written))
        for row in written:
            self.folder.samples.write(row)
        self.display.completions(written)
        counts = scored.statuses or ({} if scored.scores is None else status_counts(scored.scores))
        told = {} if scored.replayed is None else {"replayed": float(scored.replayed)}
        extra = {**extra, **{f"status/{name}": count for name, count in counts.items()}, **told}
        tokens = int(rows.rollouts.length.sum()) if scored.tokens is None else scored.tokens
        self.write(position, values, {**extra, **scored.told}, tokens=tokens)
        self.guard_updates(step, values, rows)
        # Another run sampled what is replayed, with its own policy: there the two differ by construction.
        if not scored.replayed:
            _check_gap(step, values, self.experiment.train.gap_limit)

    def write(
        self, position: Position, metrics: Metrics | dict, extra: Mapping[str, float], *, tokens: int | None = None
    ) -> None:
        """One line of metrics, one of times, one for the reader; the watchdog sees a finished step."""
        values = {name: float(value) for name, value in metrics.items()} | dict(extra)
        self.folder.metrics.write({**position.fields(), **values})
        timing = self.time(position, tokens)
        self.heartbeat.beat()
        self.display.step(position.fields(), values, seconds=timing["phases"])
        for sentence in self.alerts.see(_judged({**position.fields(), **values})):
            self.display.alert(sentence)

    def time(
        self, position: Position, tokens: int | None = None, notes: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """One line of times, returned: seconds since the line before, those of every phase, speed, memory, `notes`."""
        now, phases = (time.monotonic(), time.process_time()), self.clock.lap()
        (seconds, cpu), self._last = (now[0] - self._last[0], now[1] - self._last[1]), now
        memory, of = peak_memory()
        timing: dict[str, Any] = {
            "attempt": self.folder.attempt,
            "seconds": seconds,
            "cpu_seconds": cpu,
            "phases": phases,
            "memory_bytes": memory,
            "memory_of": of,
        }
        whole = sum(value for name, value in phases.items() if name not in APART)
        if tokens is not None and whole > 0:
            timing |= {"tokens": tokens, "tokens_per_second": tokens / whole}
        self.folder.timing.write({**position.fields(), **timing, **(notes or {})})
        return timing

    def guard_updates(self, step: int, values: Mapping[str, Any], batch: Batch | Metrics) -> None:
        """Raises Diverged, and leaves `batch` in the run folder, once too many updates in a row were refused."""
        self.guard.check(int(values["skipped/consecutive"]), step=step, dump=partial(self._dump, step, batch))

    def _dump(self, step: int, batch: Batch | Metrics) -> Path:
        paths, _ = jax.tree.flatten_with_path(host(batch))
        arrays = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths}
        described = objectives.describe(step_settings(self.experiment))
        info = {"step": step, "seed": int(self.experiment.seed), "settings": described}
        return write_dump(self.folder.path / f"dump-{step}", arrays, info)


def _judged(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """What alerts are shown of a line: where rollouts are replayed, the gap to their sampler says nothing."""
    if not row.get("replayed"):
        return row
    return {name: value for name, value in row.items() if not name.startswith("logp_gap/")}


def _check_gap(step: int, values: Mapping[str, Any], limit: float) -> None:
    gap = float(values["logp_gap/max"])
    if not gap <= limit and not int(np.asarray(values["skipped"])):
        raise Diverged(
            f"Step {step}: sampler and trainer disagree by {gap:.3g} nats on a token, allowed are {limit:.3g}."
            " Their parameters, temperature or positions differ; with bfloat16 compute raise train.gap_limit to a"
            " few tenths."
        )
