"""What keeps a run alive, or ends it in words: exit codes, signals, a heartbeat, dumps of bad batches.

This module imports neither jax nor anything that does, so that a supervisor may use it too.

Every way in which a run may end has an exit code, for restart policies of schedulers (`MEANINGS`). Only 75 asks for
the same command again at once; 70 may be tried again; after 3, 4 and 5 a person has to look.
"""

import contextlib
import dataclasses
import enum
import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn, TextIO

import numpy as np


class Exit(enum.IntEnum):
    """Exit codes of a run."""

    DONE = 0
    DIVERGED = 3
    CONFIGURATION = 4
    DATA = 5
    HANG = 70
    PREEMPTED = 75


MEANINGS: Mapping[Exit, str] = {
    Exit.DONE: "the run reached its last step",
    Exit.DIVERGED: "numbers stopped being finite; the batch is in the run folder, change the experiment",
    Exit.CONFIGURATION: "the experiment, a flag or the run folder is not usable as given",
    Exit.DATA: "data, rewards or stored results could not be read or written",
    Exit.HANG: "no step finished in time; the stacks of all threads are in stacks.txt",
    Exit.PREEMPTED: "stopped from outside after saving; run the same command again",
}


class RunStopped(Exception):
    """A run that ends for a reason known in words: `code` for the shell, `sentence` for a person."""

    def __init__(self, code: Exit, sentence: str):
        super().__init__(sentence)
        self.code = Exit(code)
        self.sentence = sentence


class Diverged(RunStopped):
    """Numbers that are not finite kept coming."""

    def __init__(self, sentence: str):
        super().__init__(Exit.DIVERGED, sentence)


class DataError(RunStopped):
    """Data, rewards or stored results could not be read or written."""

    def __init__(self, sentence: str):
        super().__init__(Exit.DATA, sentence)


class BadData(ValueError):
    """A file of data, or a line in it, that cannot be used: where, what was found, what is allowed, what to do.

    A ValueError, so that constructors may raise it; the command line ends with the code of `Exit.DATA`.
    """


class Preempted(RunStopped):
    """The machine is wanted for something else; everything is saved."""

    def __init__(self, sentence: str):
        super().__init__(Exit.PREEMPTED, sentence)


def say(sentence: str) -> None:
    """One line on stderr, at once, from any thread; a closed stderr stops nothing."""
    if sys.stderr is None:  # its descriptor is closed
        return
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(sentence + "\n")
        sys.stderr.flush()


def page(text: str) -> None:
    """`text` on standard output, with a question mark for what that cannot spell; a reader who has left is no error.

    Raises OSError, with "standard output" for the name of the file, where it cannot be written otherwise.
    """
    stream = sys.stdout
    if stream is None:  # its descriptor is closed
        return
    spelling = getattr(stream, "encoding", None) or "utf-8"
    try:
        stream.write(text.encode(spelling, "replace").decode(spelling))
        stream.flush()
    except OSError as error:
        give_up(stream)
        if not isinstance(error, BrokenPipeError):
            raise OSError(error.errno, error.strerror, "standard output") from None


def give_up(stream: TextIO) -> None:
    """Point a stream that cannot be written at nothing; else Python fails to flush it on leaving, with its own code."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)


class Signals:
    """Turns SIGTERM into a question the loop asks between its phases: ``if signals.requested: save and leave``.

    A second SIGTERM leaves at once with code 75, even while the main thread sits in compiled code: Python runs its
    own handlers only between bytecodes, so a thread reads the signal numbers from the wake-up descriptor that the
    interpreter writes in the C handler itself. Handlers are put back on leaving. Off the main thread, where Python
    allows no handlers, this does nothing and `requested` stays False.
    """

    def __init__(self) -> None:
        self._requested = threading.Event()
        self._restore = contextlib.ExitStack()

    @property
    def requested(self) -> bool:
        """True once a SIGTERM has come."""
        return self._requested.is_set()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._requested.set()

    def _watch(self, receiver: socket.socket) -> None:
        terms = 0
        while numbers := receiver.recv(16):
            terms += numbers.count(signal.SIGTERM)
            if terms == 1:
                self._requested.set()
            elif terms > 1:
                say("second SIGTERM: leaving at once; the last checkpoint is what remains")
                os._exit(Exit.PREEMPTED)

    def __enter__(self) -> "Signals":
        if threading.current_thread() is not threading.main_thread():
            return self
        receiver, sender = socket.socketpair()
        sender.setblocking(False)
        watcher = threading.Thread(target=self._watch, args=(receiver,), name="signals", daemon=True)
        watcher.start()
        handler = signal.signal(signal.SIGTERM, self._handle)
        wakeup = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        self._restore.callback(receiver.close)
        self._restore.callback(watcher.join)
        self._restore.callback(sender.close)  # the watcher reads an end of file and ends
        self._restore.callback(signal.set_wakeup_fd, wakeup)
        # None: installed by C code, unknown to Python, and not to be set from here.
        self._restore.callback(signal.signal, signal.SIGTERM, signal.SIG_DFL if handler is None else handler)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore.close()


class Heartbeat:
    """Ends the process with code 70 when no step finishes in time, with the stacks of all threads in a file.

    Until the first `beat` the allowance is that of compiling, and the message says so. Time the process spent stopped
    (a suspended machine, a job paused by its scheduler) does not count: the clock is the sum of the watcher's own
    short ticks. A call that never lets go of the interpreter lock stops the watcher too; compiled steps, waits
    and file access all let go.

    Args:
      path: file for the stacks.
      limit_s: seconds without a `beat` after which the process ends.
      compile_limit_s: the same before the first `beat`.
      leave: what ends the process, replaceable in tests.
    """

    def __init__(
        self, path: Path, limit_s: float, compile_limit_s: float, *, leave: Callable[[int], object] = os._exit
    ):
        for name, value in (("limit_s", limit_s), ("compile_limit_s", compile_limit_s)):
            if not value > 0:
                raise ValueError(f"{name} is a number of seconds above 0, got {value}.")
        self._path, self._leave = Path(path), leave
        self._limit = limit_s
        self._tick = min(1.0, limit_s / 8, compile_limit_s / 8)
        self._lock = threading.Lock()
        self._elapsed = 0.0
        self._phase = ("compiling and running the first step", compile_limit_s)
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def beat(self) -> None:
        """A step has finished: the clock starts again."""
        self._set(("a step", self._limit))

    @contextlib.contextmanager
    def during(self, what: str, limit_s: float) -> Iterator[None]:
        """Another allowance for something known to be long, an evaluation or a compilation; the clock starts anew."""
        before = self._set((what, limit_s))
        try:
            yield
        finally:
            self._set(before)

    def _set(self, phase: tuple[str, float]) -> tuple[str, float]:
        with self._lock:
            before, self._phase, self._elapsed = self._phase, phase, 0.0
        return before

    def _watch(self) -> None:
        then = time.monotonic()
        while not self._over.wait(self._tick):
            now = time.monotonic()
            with self._lock:
                self._elapsed += min(now - then, 2 * self._tick)
                elapsed, (what, limit) = self._elapsed, self._phase
            then = now
            if elapsed > limit:
                self._expire(what, limit)
                return

    def _expire(self, what: str, limit: float) -> None:
        sentence = f"Hang: {what} took more than {limit:g} s. The stacks of all threads are in {self._path}."
        try:
            with open(self._path, "w", encoding="utf-8") as file:
                file.write(sentence + "\n\n")
                file.flush()
                faulthandler.dump_traceback(file=file, all_threads=True)
        except OSError as error:
            sentence += f" (not written: {error})"
        say(sentence)
        self._leave(Exit.HANG)

    def __enter__(self) -> "Heartbeat":
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()


def _storable(name: str, value: object) -> tuple[np.ndarray, str]:
    """The array as numpy can store it without pickle, and the name of the dtype it had."""
    array = np.asarray(value)
    if array.dtype.kind in "biufc":
        return array, array.dtype.name
    if array.dtype.kind == "V" and array.dtype.names is None and array.dtype.name != "void":
        return array.astype(np.float32), array.dtype.name  # bfloat16 and narrower: exact in float32
    raise ValueError(f"{name!r} is no array of numbers but of {array.dtype}; for a random key pass its key_data.")


def write_dump(path: Path, arrays: Mapping[str, object], info: Mapping[str, object]) -> Path:
    """Writes what a step was given, for replay: ``<path>.npz`` and ``<path>.json``, no pickle in either.

    Args:
      path: without ending; its folder is made.
      arrays: name -> array of numbers. bfloat16 is stored as float32, which is exact, and its name is kept.
      info: anything JSON can hold: step, message, names of what was not finite.

    Returns:
      The path of the ``.npz`` file. Both files appear complete or not at all.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {name: _storable(name, value) for name, value in arrays.items()}
    described = {"info": dict(info), "dtypes": {name: dtype for name, (_, dtype) in stored.items()}}
    text = json.dumps(described, indent=2, sort_keys=True)
    archive, sheet = path.with_name(path.name + ".npz"), path.with_name(path.name + ".json")
    partial = path.with_name(path.name + ".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as target:
        for name, (array, _) in stored.items():
            with target.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    os.replace(partial, archive)
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, sheet)
    return archive


def read_dump(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """What `write_dump` wrote under `path` (without ending): arrays, info."""
    path = Path(path)
    described = json.loads(path.with_name(path.name + ".json").read_text(encoding="utf-8"))
    with np.load(path.with_name(path.name + ".npz"), allow_pickle=False) as archive:
        return {name: archive[name] for name in described["dtypes"]}, described["info"]


@dataclasses.dataclass(frozen=True)
class Guard:
    """Ends a run whose updates are refused again and again because something in them is not finite.

    The compiled step already kept parameters and optimiser state as they were; this is the part on the host.

    Attributes:
      limit: refused updates in a row that end the run, at least 1.
    """

    limit: int

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ValueError(f"limit counts refused updates in a row that end a run, from 1; got {self.limit}.")

    def check(self, skipped: int, *, step: int, dump: Callable[[], Path]) -> None:
        """Raises `Diverged` once `skipped` (the counter of the train state) has reached the limit.

        `dump` is called then, writes the batch and returns where.
        """
        if skipped >= self.limit:
            self._stop(skipped, step, dump)

    def _stop(self, skipped: int, step: int, dump: Callable[[], Path]) -> NoReturn:
        try:
            where = f"The batch is in {dump()} for replay."
        except (OSError, ValueError) as error:
            where = f"The batch could not be written: {error}."
        raise Diverged(
            f"Step {step}: the last {skipped} updates were refused because a loss or gradient was not finite. {where} "
            "Weights and optimiser state are those before the first of them. Lower the learning rate, clip gradients, "
            "or look for log-probabilities of minus infinity in the batch."
        )
