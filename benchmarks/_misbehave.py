"""A reward that goes wrong in ten ways on a share of the completions. It imports little: worker processes load it."""

import ctypes
import hashlib
import math
import os
import time
from typing import Any

from grpo_jax.rewards.text import Record, Score, accuracy

LASTS_S = 30.0
"""How long what should have been killed would live: nothing is left for good where the library fails."""
_FORKS, _MEGABYTES = 3, 1000


def kind(record: Record, *, share: float) -> str | None:
    """Which trouble this completion of this prompt makes, by its hash: the same in every process; None: none."""
    text = f"{record.prompt}\n{record.completion}".encode("utf-8", "surrogatepass")
    number = int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64
    return list(KINDS)[int(number / share * len(KINDS))] if number < share else None


def accuracy_or_trouble(record: Record, *, share: float) -> float | Score:
    """`accuracy`, but for a `share` of the completions trouble and no score."""
    trouble = kind(record, share=share)
    return accuracy(record) if trouble is None else KINDS[trouble]()


def _raise() -> None:
    raise RuntimeError("no idea")


def _hang() -> None:
    time.sleep(LASTS_S)


def _die() -> None:
    ctypes.string_at(0)


def _eat() -> None:
    """Ask for 1 GB in all; a worker is refused it long before."""
    eaten = [bytearray(10_000_000) for _ in range(_MEGABYTES // 10)]
    del eaten


def _print() -> None:
    line = "x" * 999_999
    for _ in range(_MEGABYTES):
        print(line)


def _nothing() -> None:
    return None


def _not_a_number() -> float:
    return math.nan


def _text() -> str:
    return "1.0"


def _fork() -> None:
    """Three children, which leave the group of the process, lose their parent, and stay."""
    for _ in range(_FORKS):
        child = os.fork()
        if child == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(LASTS_S)
            os._exit(0)
        os.waitpid(child, 0)


def _leave() -> None:
    os._exit(0)


KINDS: dict[str, Any] = {
    "raises": _raise,
    "hangs": _hang,
    "segmentation fault": _die,
    "eats memory": _eat,
    "prints 1 GB": _print,
    "returns None": _nothing,
    "returns NaN": _not_a_number,
    "returns text": _text,
    "forks": _fork,
    "ends its process": _leave,
}
"""What it does -> how. None of them gives a score."""
