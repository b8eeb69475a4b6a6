"""How a command ends: whatever happened becomes one message on standard error and one exit code.

A message says what was wrong, what was given, what is allowed and what to do; the traceback of it is there for the
asking (``GRPO_JAX_TRACEBACK=1``). What is left without a sentence is a mistake of the program, and keeps its traceback.
"""

import errno
import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from grpo_jax.lifeline import BadData, Exit, RunStopped, say
from grpo_jax.report import clean

INTERRUPTED = 130
"""What a shell expects of a program that the user stopped with Ctrl-C."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Unloadable(Exception):
    """The file of an experiment raised while it was imported."""


def guarded(act: Callable[[], int]) -> int:
    """What `act` returns, or the code of the way in which it failed, after a message."""
    before = _leave_on_sigterm()
    try:
        return act()
    except RunStopped as stop:
        _tell(f"stopped: {stop.sentence}")
        return int(stop.code)
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from the last checkpoint")
        return INTERRUPTED
    except (ValueError, Unloadable, OSError, MemoryError, RuntimeError) as error:
        said = sentence(error)
        if said is None or os.environ.get("GRPO_JAX_TRACEBACK"):
            raise
        _tell(f"error: {said[1]}\n(GRPO_JAX_TRACEBACK=1 shows where)")
        return int(said[0])
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def sentence(error: BaseException) -> tuple[Exit, str] | None:
    """Code and words for `error`; None where it is a mistake of the program, which no words make better."""
    if isinstance(error, RuntimeError | MemoryError):
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            return Exit.CONFIGURATION, _out_of_memory(error)
        return None
    if isinstance(error, OSError):
        return Exit.DATA, _of_the_system(error)
    return (Exit.DATA if isinstance(error, BadData) else Exit.CONFIGURATION), str(error)


def _out_of_memory(error: BaseException) -> str:
    first = (str(error).splitlines() or [""])[0]
    return (
        f"memory: the experiment needs more than there is ({first or 'out of memory'}); allowed is what fits on the"
        " device, see --dry-run for the sizes: raise train.microbatches, or lower train.prompts, train.group_size or"
        " the model"
    )


def _of_the_system(error: OSError) -> str:
    what = f"{error.filename}: " if error.filename is not None else ""
    remedy = "free some space" if error.errno in FULL else "check the path, its permissions and the disk"
    return f"{what}{error.strerror or error}; allowed is a file that can be read and written: {remedy}"


def _tell(message: str) -> None:
    """`message` without control characters: parts of it may come from a file, a model or a path."""
    say("\n".join(clean(line) for line in message.split("\n")))


def _leave_on_sigterm() -> Callable[[int, FrameType | None], object] | int | None:
    """Until a run watches for SIGTERM itself there is nothing to save: leave with the code of a preemption.

    Returns what to put back, None where the handler is somebody else's or this is not the main thread.
    """
    try:
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            return None
        return signal.signal(signal.SIGTERM, _preempted)
    except ValueError:  # not the main thread
        return None


def _preempted(number: int, frame: FrameType | None) -> NoReturn:
    del number, frame
    raise RunStopped(Exit.PREEMPTED, "SIGTERM before the run began or after its end; run the same command again.")
