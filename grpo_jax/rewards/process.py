"""One worker process as its parent sees it: started, written to, read from with a deadline, killed with all it started.

The parent never waits without a limit. It reads what has arrived before it judges that nothing came in time, so a
parent that was itself held up does not blame a worker that had answered.
"""

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from grpo_jax.rewards.text import STATUSES, Score
from grpo_jax.rewards.warden import end_descendants
from grpo_jax.rewards.worker import OUT_OF_MEMORY, PROGRAM, Settings

START_S = 180.0
"""Seconds that a worker may take to load the rewards; their file may import large libraries on a busy machine."""
LONGEST_LINE = 1 << 20
_TAIL = 8000
_SLICE_S = 0.05  # how often a silent worker is looked after: the end of its pipe may be held open by a child of it
_ALONE = {
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "HIP_VISIBLE_DEVICES": "",
    "ROCR_VISIBLE_DEVICES": "",
    "PYTHONHASHSEED": "0",  # sets of strings are walked in the same order by every worker
    "OMP_NUM_THREADS": "1",  # there are as many workers as processors already
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


class Lost(Exception):
    """The worker gave no score: `status` is "timeout" or "error"; the text is the reason."""

    def __init__(self, status: str, reason: str, *, out_of_memory: bool = False):
        super().__init__(reason)
        self.status, self.reason, self.out_of_memory = status, reason, out_of_memory


class StartError(Exception):
    """A worker did not come as far as having loaded its rewards."""


class Process:
    """A worker process. Only `kill` may be called by other threads than the one that started it.

    The kernel ends the process with that thread, so this has to live as long as the process is wanted.
    """

    def __init__(self, path: Sequence[str]) -> None:
        self.scored = 0
        self.pace = math.inf  # seconds that a score has taken of late
        self._path = json.dumps(list(path))
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._over = False
        self._outgoing, self._buffer, self._tail = bytearray(), bytearray(), bytearray()
        self._poll = select.poll()
        self._write = self._read = self._errors = -1

    def start(self, settings: Settings) -> None:
        """Start it and wait until it has loaded the rewards. Raises StartError with what it said."""
        try:
            self._spawn()
            self.send(json.dumps(settings).encode() + b"\n")
            said = json.loads(self._line(START_S))
        except (Lost, OSError, ValueError) as error:
            said = {"failed": f"{error}\n{self._tail.decode(errors='replace')}"}
        if "ready" not in said:
            raise StartError(str(said["failed"]).strip())

    def _spawn(self) -> None:
        work, self._write = os.pipe()
        self._read, result = os.pipe()
        try:
            with self._lock:
                if self._over:
                    raise Lost("error", "stopped before it was started")
                self._child = subprocess.Popen(
                    [sys.executable, "-P", "-c", PROGRAM, self._path, str(work), str(result)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    pass_fds=(work, result),
                    env={**os.environ, **_ALONE},
                    start_new_session=True,
                )
        finally:
            os.close(work)
            os.close(result)
        if self._child.stderr is not None:
            self._errors = self._child.stderr.fileno()
            self._poll.register(self._errors, select.POLLIN)
        self._poll.register(self._read, select.POLLIN)
        os.set_blocking(self._write, False)

    def send(self, data: bytes) -> None:
        """Hand over `data` while the next lines are waited for: a worker that is busy keeps nobody waiting."""
        self._outgoing += data
        self._flush()

    def _flush(self) -> None:
        try:
            while self._outgoing:
                del self._outgoing[: os.write(self._write, self._outgoing)]
        except BlockingIOError:
            self._poll.register(self._write, select.POLLOUT)
            return
        except BrokenPipeError:
            self._outgoing.clear()  # it is dead or dying; what it said before comes first, then the end of its pipe
        with contextlib.suppress(KeyError):
            self._poll.unregister(self._write)

    def receive(self, limit_s: float) -> Score:
        """The next score. Raises Lost where none comes within `limit_s`, or the worker ends or speaks nonsense."""
        start = time.monotonic()
        line = self._line(limit_s)
        taken = time.monotonic() - start
        self.pace = 0.8 * self.pace + 0.2 * taken if self.scored else taken
        try:
            number, value, status, detail = json.loads(line)
            score = Score(float(value), status, str(detail))
            sound = number == self.scored and status in STATUSES
        except (ValueError, TypeError):
            score, sound = Score(0.0), False
        if not sound:
            raise Lost("error", f"something else wrote into the pipe of the scores: {bytes(line[:80])!r}")
        self.scored += 1
        return score

    def _line(self, limit_s: float) -> bytes:
        deadline = time.monotonic() + limit_s
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > LONGEST_LINE:
                raise Lost("error", f"it wrote more than {LONGEST_LINE} bytes into the pipe of the scores")
            left = deadline - time.monotonic()
            ready = {descriptor for descriptor, _ in self._poll.poll(max(0.0, min(left, _SLICE_S)) * 1000)}
            if self._write in ready:
                self._flush()
            if self._errors in ready:
                self._listen()
            if self._read in ready:
                data = os.read(self._read, 1 << 16)
                if not data:
                    raise self._death()
                self._buffer += data
            elif left <= 0:
                raise Lost("timeout", f"nothing came within {limit_s:g} s")
            elif not ready and self._ended():
                raise self._death()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _listen(self) -> None:
        """Keep the end of what the worker says while it loads; it closes its end when it has."""
        data = os.read(self._errors, 1 << 16)
        if data:
            self._tail = (self._tail + data)[-_TAIL:]
        else:
            self._poll.unregister(self._errors)
            self._errors = -1

    def _ended(self) -> bool:
        """Whether the process has ended. It is left in the table of processes, so its number stays its own."""
        if self._child is None or self._child.returncode is not None:
            return True
        return os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _death(self) -> Lost:
        """Why a worker that has closed its pipe is no more; it gets seconds to be gone with all that it started."""
        limit = time.monotonic() + 3.0
        while not self._ended() and time.monotonic() < limit:
            time.sleep(0.005)
        alive = not self._ended()
        self.kill()
        if self._child is None or alive:
            return Lost("error", "its process closed the pipe of the scores")
        code = self._child.wait()
        if code == OUT_OF_MEMORY:
            return Lost("error", "its process ran out of memory", out_of_memory=True)
        if code >= 0:
            return Lost("error", f"it ended its process with exit code {code}")
        number = -code
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        hint = "; the system does that to what uses too much memory" if name == "SIGKILL" else ""
        return Lost("error", f"its process died of {name}{hint}")

    def kill(self) -> None:
        """Kill the process, all that it started and its group, from any thread; a start under way fails."""
        with self._lock:
            self._over = True
            if self._child is not None and self._child.returncode is None:
                end_descendants(self._child.pid)
                try:
                    os.killpg(self._child.pid, signal.SIGKILL)
                except ProcessLookupError:
                    self._child.kill()  # it has not yet become the leader of its group

    def end(self) -> None:
        """Kill it, wait for it and give back what it used."""
        self.kill()
        if self._child is not None:
            with self._lock:
                self._child.wait()
            if self._child.stderr is not None:
                self._child.stderr.close()
        for descriptor in {self._write, self._read} - {-1}:
            os.close(descriptor)
        self._write = self._read = -1
