"""Rewards of `scoring_overlap.py` that take a known time. It imports little: worker processes load it."""

import time

from grpo_jax.rewards.text import Record

SECONDS = 0.001


def instant(record: Record) -> float:
    """No time at all."""
    return float(len(record.completion) < 10)


def sleeping(record: Record) -> float:
    """A millisecond of waiting, as for a service."""
    time.sleep(SECONDS)
    return instant(record)


def busy(record: Record) -> float:
    """A millisecond of work on a processor."""
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        pass
    return instant(record)
