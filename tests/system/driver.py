"""Runs an experiment in a process of its own and ends it at a chosen moment: ``driver.py FAULT COUNT ARGUMENTS``.

A fault replaces one function of the program by one that kills the process with SIGKILL at its call number COUNT (from
0), so that a test can kill a run at the same moment every time. The arguments are those of the command line; paths in
the JSON object ``RUN_KEYWORDS`` of the environment go to `run` as keywords.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint._src.path import async_path

from grpo_jax import cli, heldout, journal, loop
from grpo_jax.checkpoint import Checkpoints
from grpo_jax.folder import RunFolder
from grpo_jax.journal import Journal
from grpo_jax.loop import course, finish, imitation, recorded, rounds, warm_starts

heldout.CHUNK = 16


def kill() -> None:
    """End this process as the kernel would: nothing is flushed, nothing cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


def terminate() -> None:
    """What a scheduler sends first."""
    os.kill(os.getpid(), signal.SIGTERM)


def tear(journal: Journal, record: dict) -> None:
    """Half a line, and the end."""
    line = b'{"phase": "grpo", "step": 1, "lo'
    descriptor = os.open(journal.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, line)
    kill()


PLACES: dict[str, tuple[Any, str]] = {
    "config": (os, "replace"),
    "imitation": (imitation.Lessons, "at"),
    "evaluation": (heldout, "measure"),
    "write": (Journal, "write"),
    "torn": (Journal, "write"),
    "save": (RunFolder, "save"),
    "saving": (ocp.CheckpointManager, "save"),
    "commit": (async_path, "rename"),
    "saved": (Checkpoints, "wait"),
    "begin": (course, "begin"),
    "reference": (course, "Phases"),
    "rewind": (Journal, "rewind"),
    "sync": (journal, "_sync_folder"),
    "summary": (course, "summarise"),
    "figure": (finish.report, "figure"),
    "term": (Journal, "write"),
    "taken": (warm_starts.Session, "save"),
    "leaving": (warm_starts, "_fill"),
    "filling": (warm_starts, "_digest"),
    "recorded": (recorded.Tape, "keep"),
    "round": (rounds.Gathering, "add"),
    "rounds": (rounds.Gathering, "close"),
}
"""Name of a fault -> the function whose call it replaces."""
AFTER = {"saving", "leaving", "recorded", "round"}
"""Faults that come when the function has done its work."""


def injected(function: Callable, fault: str, count: int) -> Callable:
    """`function` with `fault` at its call number `count`."""
    calls = iter(range(1_000_000))

    def replaced(*args: Any, **kwargs: Any) -> Any:
        due = next(calls) == count
        if due and fault == "torn":
            tear(*args)
        if due and fault == "term":
            terminate()
        elif due and fault not in AFTER:
            kill()
        result = function(*args, **kwargs)
        if due and fault in AFTER:
            kill()
        return result

    return replaced


def main() -> int:
    """Inject the fault, if it is one, and run the command line."""
    fault, count, arguments = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    if fault != "none":
        place, name = PLACES[fault]
        setattr(place, name, injected(getattr(place, name), fault, count))
    keywords = {name: Path(path) for name, path in json.loads(os.environ.get("RUN_KEYWORDS", "{}")).items()}
    loop.run = partial(loop.run, **keywords)
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
