"""Between a run and its worker process: a warden, so that nothing a reward starts outlives the worker (Linux).

A program that a reward starts may leave the worker's process group (``setsid``) and lose its parent (a double fork):
it is then out of reach of whoever kills the group. So the process that the run starts stays behind as a warden and lets
a child of its own be the worker. The kernel hands every orphan among the warden's descendants to the warden (it is
their *subreaper*), so that walking from parent to children in ``/proc`` finds all of them, whoever has ended in
between. That takes no privilege. Three ends are covered:

* the worker ends by itself, in whatever way: the warden ends the rest and then ends itself in the same way;
* the run gives the worker up: it ends the warden's descendants, and then the group;
* the run is killed: the kernel tells the warden, which does the same.

Elsewhere than on Linux there is no warden, and only the process group is killed. Against programs that mean to escape,
by killing the warden or by starting themselves anew faster than they can be looked for, none of this is meant to help:
rewards are code of the person who runs the experiment.
"""

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_WATCHED = {signal.SIGTERM, signal.SIGCHLD}
_ROUNDS = 100


def stand_guard(parent: int, *, pipes: Sequence[int]) -> None:
    """Go on in a child, which alone returns; this process, a child of `parent`, becomes its warden.

    The `pipes` are closed in the warden: their ends tell how the worker is. Where there is no warden, return.
    """
    if sys.platform != "linux":
        return _stay_with(parent)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    _stay_with(parent)
    me = os.getpid()
    worker = os.fork()
    if worker:
        for descriptor in (*pipes, 2):
            os.close(descriptor)
        _watch(worker)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _stay_with(me)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_descendants(process: int) -> None:
    """Kill all that descends from `process`, but not itself.

    They are stopped first, and looked for until twice nobody new is found: what is stopped starts nothing, and one that
    starts while it is looked for may be overlooked once.
    """
    found: set[int] = set()
    quiet = 0
    for _ in range(_ROUNDS):
        new = descendants(process) - found
        quiet = 0 if new else quiet + 1
        if quiet == 2:
            break
        for one in new:
            _signal(one, signal.SIGSTOP)
        found |= new
    for one in found:
        _signal(one, signal.SIGKILL)


def descendants(process: int) -> set[int]:
    """The numbers of the processes that `process` has started, directly or not, and that have not ended."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc") if sys.platform == "linux" else ():
        if not entry.name.isdigit():
            continue
        try:
            # "number (name) state parent ...", where the name may hold anything
            state, parent = Path(entry.path, "stat").read_bytes().rpartition(b")")[2].split()[:2]
        except (OSError, ValueError):
            continue  # it has ended meanwhile
        if state not in (b"Z", b"X"):
            children.setdefault(int(parent), []).append(int(entry.name))
    found: set[int] = set()
    waiting = [process]
    while waiting:
        new = [child for child in children.get(waiting.pop(), ()) if child not in found]
        found.update(new)
        waiting += new
    return found


def _watch(worker: int) -> NoReturn:
    """Wait until the worker has ended or the run is gone, end what is left, and end as the worker did."""
    status = None
    while status is None and signal.sigwait(_WATCHED) == signal.SIGCHLD:
        status = _reap(worker)
    end_descendants(os.getpid())
    if status is not None and os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status) if status is not None and os.WIFEXITED(status) else 0)


def _reap(worker: int) -> int | None:
    """Take note of every child that has ended; the status of the worker if it is among them."""
    status = None
    while True:
        try:
            child, ended = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if child == 0:
            return status
        if child == worker:
            status = ended


def _stay_with(parent: int) -> None:
    if os.getppid() != parent:
        os._exit(0)  # it ended before it could be watched


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _signal(process: int, number: int) -> None:
    try:
        os.kill(process, number)
    except (ProcessLookupError, PermissionError):
        return  # it has ended, or it has become another user's
