"""Rewards that behave, and one that does not: what it does is what the completion says."""

import ctypes
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from grpo_jax.rewards.text import Record, Score

_seen: list[str] = []


def length(record: Record) -> float:
    """Characters of the completion."""
    return float(len(record.completion))


def level(record: Record, *, levels: tuple[str, ...], weight: float = 0.5) -> Score:
    """`weight` times the place of the record's level, with words."""
    return Score(weight * levels.index(str(record.metadata["level"])), "ok", f"é {record.answer} {type(levels)}")


def anything(record: Any, **settings: Any) -> float:
    """1, whatever it is called with."""
    return 1.0


def nap(record: Record, *, seconds: float) -> float:
    """Sleep, then the answer as a number."""
    time.sleep(seconds)
    return float(record.answer)


def trouble(record: Record) -> Any:
    """Whatever the completion says."""
    return _TROUBLES[record.completion]() if record.completion in _TROUBLES else float(record.answer)


def alone(record: Record) -> float:
    """1 in a process without accelerator, JAX or input, in a session of its own, that passes nothing on."""
    inherited = [fd for fd in range(3, 64) if _inheritable(fd)]
    devices = os.environ["JAX_PLATFORMS"] == "cpu" and os.environ["CUDA_VISIBLE_DEVICES"] == ""
    own = os.getsid(0) == os.getppid() and sys.stdin.read() == "" and not inherited
    return float(devices and own and "jax" not in sys.modules)


def forks_and_hangs(record: Record) -> float:
    """Write down the numbers of this process and of a child that sleeps, then sleep too."""
    child = os.fork()
    if child:
        Path(str(record.metadata["file"])).write_text(f"{os.getpid()} {child}", encoding="utf-8")
    time.sleep(60)
    return 0.0


def lets_go(record: Record) -> Any:
    """Start a program in a session of its own whose parent has ended, write down its number, and do what is asked."""
    child = os.fork()
    if child == 0:
        os.setsid()
        grandchild = os.fork()
        if grandchild == 0:
            time.sleep(60)
            os._exit(0)
        Path(str(record.metadata["file"])).write_text(str(grandchild), encoding="utf-8")
        os._exit(0)
    os.waitpid(child, 0)
    return _TROUBLES[record.completion]() if record.completion in _TROUBLES else 1.0


def wears_out(record: Record) -> float:
    """Ends the process at the fourth record that it sees."""
    _seen.append(record.completion)
    if len(_seen) > 3:
        os._exit(9)
    return float(record.answer)


def second(record: Record) -> float:
    """Changes its own copy of the record, which no other reward may notice."""
    level = record.metadata["level"]
    assert isinstance(record.metadata, dict)
    record.metadata.clear()
    return float(str(level) == "easy")


def _inheritable(descriptor: int) -> bool:
    try:
        return os.get_inheritable(descriptor)
    except OSError:
        return False


def _interrupt() -> None:
    raise KeyboardInterrupt


def _fork_and_return() -> float:
    os.fork()
    return 1.0


def _orphan() -> None:
    """Ends the process and leaves a child behind that holds its pipes open."""
    if os.fork():
        os._exit(4)
    time.sleep(60)


def _print() -> float:
    for _ in range(50):
        print("x" * 1_000_000)
    os.write(2, b"y" * 1_000_000)
    return 1.0


def _stuff() -> float:
    """Puts a score that nobody asked for into every pipe it finds."""
    for descriptor in range(3, 1024):
        try:
            os.write(descriptor, b'[7, 1.0, "ok", ""]\n')
        except OSError:
            continue
    return 1.0


_TROUBLES = {
    "hang": lambda: time.sleep(60),
    "segfault": lambda: ctypes.string_at(0),
    "exit": lambda: os._exit(3),
    "orphan": _orphan,
    "sys.exit": lambda: sys.exit(0),
    "memory": lambda: len(bytearray(10**10)),
    "raise": lambda: 1 / 0,
    "interrupt": _interrupt,
    "fork": _fork_and_return,
    "print": _print,
    "stuff": _stuff,
    "none": lambda: None,
    "nan": lambda: float("nan"),
    "text": lambda: "1.0",
    "scalar": lambda: np.ones((), np.float32),
    "vector": lambda: np.ones(2),
    "huge": lambda: 10**400,
    "status": lambda: Score(1.0, "fine"),
    "long": lambda: Score(1.0, "ok", "d" * 10**6),
    "detail": lambda: Score(1.0, "ok", str(object)),
}
