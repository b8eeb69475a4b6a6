"""Scoring in worker processes: a reward that hangs, dies or eats memory costs its own record and nothing else.

A `Pool` gives the numbers of `grpo_jax.rewards.text.score`, in the same order, from fresh interpreters that are told
by name where the rewards are (`grpo_jax.rewards.worker`). Every pair of a record and a reward is scored by itself and
has a deadline of its own:

* no score in time: the process is killed with all that it started, the pair has the status "timeout";
* the process ends: had it scored others before, those may have ruined it, and the pair gets one more chance, first in
  line in a fresh process. If it ends that one too, the pair has the status "error", with the reason.

Other pairs of the lot go back to the queue. So scores depend neither on the number of workers nor on who scored what
before. Each worker is driven by a thread of the pool, which reads and kills; no signal is ever handled in a thread.

What this is not: a sandbox for programs that a model wrote. Rewards are code of the person who runs the experiment.
"""

import hashlib
import json
import math
import os
import sys
import threading
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from grpo_jax.lifeline import DataError
from grpo_jax.rewards.process import Lost, Process, StartError
from grpo_jax.rewards.text import Record, Score, Scores, TextReward, TextRewards, weigh
from grpo_jax.rewards.worker import Address, Settings, pack, write_record

if TYPE_CHECKING:
    from grpo_jax.types import Reward

AHEAD_S = 0.02
"""A worker that will be done in so many seconds gets its next lot before it asks: the machine may be busy sampling."""
_ALLOWED = "allowed is a function at the top of a file or module, or functools.partial of one with keywords"


class _Lot(NamedTuple):
    """Pairs (row, number of the reward) of one submission, rows in order."""

    handle: "Handle"
    pairs: Sequence[tuple[int, int]]


class Handle:
    """Scores that are on their way."""

    def __init__(self, records: Sequence[Record], rewards: TextRewards, changed: threading.Condition) -> None:
        self.records, self.rewards = records, rewards
        self._changed = changed
        self._columns: list[list[Score | None]] = [[None] * len(records) for _ in rewards]
        self._missing = len(records) * len(rewards)
        self._error: Exception | None = None

    @property
    def done(self) -> bool:
        """True once `result` answers at once."""
        return self._missing == 0 or self._error is not None

    def result(self) -> tuple["Reward", Scores]:
        """What `grpo_jax.rewards.text.score` would give, when all of it is there.

        Raises DataError when a worker cannot be replaced or the pool was closed before, ValueError where metadata of a
        record cannot be sent.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.done)
        if self._error is not None:
            raise self._error
        columns = [tuple(score for score in column if score is not None) for column in self._columns]
        scores = dict(zip(self.rewards, columns, strict=True))
        return weigh(scores, self.rewards, len(self.records)), scores

    def put(self, pair: tuple[int, int], score: Score) -> None:
        """A pair has its score."""
        row, number = pair
        with self._changed:
            self._columns[number][row] = score
            self._missing -= 1
            if self._missing == 0:
                self._changed.notify_all()

    def fail(self, error: Exception) -> None:
        """There will be no result."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()


class Pool:
    """Worker processes that score records with `rewards`; close it, or use it as a context.

    Args:
      rewards: name -> (reward, weight). A reward is a function at the top of a module or of the user's own file, or
        `functools.partial` of one with keywords of plain values.
      workers: processes; None: one for each processor.
      timeout_s: seconds that one reward may take over one record.
      memory_mb: MB of address space that a worker may take beyond what it has when everything is loaded.
      chunk: pairs of record and reward that a worker is handed at a time; None: from the number of records.

    Raises:
      ValueError: a reward cannot be found by name, or its file cannot be loaded; the text holds the traceback.
    """

    def __init__(
        self,
        rewards: TextRewards,
        *,
        workers: int | None = None,
        timeout_s: float = 10.0,
        memory_mb: int = 2048,
        chunk: int | None = None,
    ) -> None:
        self.workers = (os.cpu_count() or 1) if workers is None else workers
        for name, value, least in (("workers", self.workers, 1), ("memory_mb", memory_mb, 1), ("chunk", chunk or 1, 1)):
            if value < least:
                raise ValueError(f"{name}: got {value}, allowed >= {least}: set a positive number")
        if not 0 < timeout_s < math.inf:
            raise ValueError(f"timeout_s: got {timeout_s}, allowed is a number of seconds above 0: a hang has to end")
        self.rewards, self.timeout_s, self.memory_mb, self.chunk = dict(rewards), timeout_s, memory_mb, chunk
        addresses = [locate(reward, name=name) for name, (reward, _) in self.rewards.items()]
        self._settings = Settings(parent=os.getpid(), memory_mb=memory_mb, rewards=addresses)
        self._path = [entry or os.getcwd() for entry in sys.path]
        self._changed = threading.Condition()
        self._lots: deque[_Lot] = deque()
        self._pending: set[Handle] = set()
        self._processes: set[Process] = set()
        self._replaced: Counter[str] = Counter()
        self._ready = 0
        self._broken: Exception | None = None
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"rewards {n}", daemon=True) for n in range(self.workers)
        ]
        self._open()

    @property
    def replaced(self) -> Mapping[str, int]:
        """Workers lost and replaced so far, by the status that they left behind: "timeout" or "error"."""
        with self._changed:
            return {status: self._replaced[status] for status in ("timeout", "error")}

    def score(self, records: Sequence[Record]) -> tuple["Reward", Scores]:
        """Apply every reward to every record, as `grpo_jax.rewards.text.score` does, and wait for it."""
        return self.submit(records).result()

    def submit(self, records: Sequence[Record]) -> Handle:
        """Begin to score `records`, in the order of submissions, and return at once."""
        handle = Handle(records, self.rewards, self._changed)
        pairs = [(row, number) for row in range(len(records)) for number in range(len(self.rewards))]
        with self._changed:
            if self._closed:
                raise ValueError("the pool of rewards: got records after close(); allowed only before")
            if self._broken is not None:
                raise self._broken
            self._pending = {waiting for waiting in self._pending if not waiting.done} | {handle}
            self._lots.extend(_Lot(handle, pairs[part]) for part in _parts(len(pairs), self.workers, self.chunk))
            self._changed.notify_all()
        return handle

    def close(self) -> None:
        """Kill the workers, and what they started. Results that are still on their way become errors."""
        self._stop(DataError("The pool of rewards was closed before everything was scored."))
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _open(self) -> None:
        """Start the workers and wait for the first."""
        for thread in self._threads:
            thread.start()
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._ready or self._broken is not None)
        except BaseException:
            self.close()
            raise
        if self._broken is not None:
            self.close()
            raise ValueError(
                f"text_rewards: a worker process could not load {', '.join(map(repr, self.rewards))}; allowed are"
                f" functions that a fresh interpreter finds under their names: correct what it says\n{self._broken}"
            ) from self._broken

    def _stop(self, reason: Exception) -> None:
        with self._changed:
            self._closed = True
            processes, pending = list(self._processes), list(self._pending)
            self._lots.clear()
            self._changed.notify_all()
        for process in processes:
            process.kill()
        for handle in pending:
            if not handle.done:
                handle.fail(reason)

    def _work(self) -> None:
        """The life of one thread: a worker, its successors, and lots until the pool is closed."""
        process: Process | None = None
        retry: _Lot | None = None
        try:
            process = self._start()
            while process is not None:
                with self._changed:
                    if retry is None:
                        self._changed.wait_for(lambda: self._lots or self._closed)
                    lot = None if self._closed else retry or self._lots.popleft()
                if lot is None:
                    return
                process, retry = self._serve(process, lot)
        except Exception as error:  # whatever it is, who waits for a result has to hear of it
            with self._changed:
                self._broken = self._broken or error
            self._stop(DataError(f"A worker process of the text rewards could not be replaced: {error}"))
        finally:
            if process is not None:
                self._remove(process)

    def _start(self) -> Process | None:
        """A worker that has loaded the rewards, or None where the pool was closed meanwhile."""
        process = Process(self._path)
        with self._changed:
            self._processes.add(process)
        try:
            if self._closed:
                raise StartError("closed")
            process.start(self._settings)
        except BaseException as error:
            self._remove(process)
            if self._closed and isinstance(error, StartError):
                return None
            raise
        with self._changed:
            self._ready += 1
            self._changed.notify_all()
        return process

    def _remove(self, process: Process) -> None:
        process.end()
        with self._changed:
            self._processes.discard(process)

    def _serve(self, process: Process, lot: _Lot) -> tuple[Process | None, _Lot | None]:
        """Have `process` score `lot`, and what is ready behind it.

        Gives the worker to go on with, None after `close`, and what that one has to begin with.
        """
        waiting: deque[tuple[Handle, tuple[int, int]]] = deque()
        try:
            self._hand(process, lot, waiting)
            while waiting:
                score = process.receive(self.timeout_s)
                handle, pair = waiting.popleft()
                handle.put(pair, score)
                if len(waiting) <= len(lot.pairs) and len(waiting) * process.pace < AHEAD_S:
                    with self._changed:
                        following = self._lots.popleft() if self._lots else None
                    if following is not None:
                        lot = following
                        self._hand(process, lot, waiting)
        except Lost as lost:
            if self._closed:
                self._remove(process)
                return None, None
            return self._replace(process, waiting, lost)
        return process, None

    def _hand(self, process: Process, lot: _Lot, waiting: deque[tuple[Handle, tuple[int, int]]]) -> None:
        try:
            data = _encode(lot.handle.records, lot.pairs)
        except ValueError as error:
            lot.handle.fail(error)
        else:
            process.send(data)
            waiting.extend((lot.handle, pair) for pair in lot.pairs)

    def _replace(
        self, process: Process, waiting: deque[tuple[Handle, tuple[int, int]]], lost: Lost
    ) -> tuple[Process | None, _Lot | None]:
        """A new worker for `process`, lost over the first that are `waiting`; the others are for whoever has time."""
        handle, first = waiting.popleft()
        guilty = lost.status == "timeout" or process.scored == 0
        others = [_Lot(owner, [pair for _, pair in pairs]) for owner, pairs in groupby(waiting, itemgetter(0))]
        with self._changed:
            self._replaced[lost.status] += 1
            self._lots.extendleft(reversed(others))
            self._changed.notify_all()
        self._remove(process)
        if guilty:
            handle.put(first, Score(0.0, lost.status, self._reason(lost)))
        return self._start(), None if guilty else _Lot(handle, [first])

    def _reason(self, lost: Lost) -> str:
        if lost.status == "timeout":
            return f"no score within {self.timeout_s:g} s"
        return f"it needs more than {self.memory_mb} MB of memory" if lost.out_of_memory else lost.reason


def locate(reward: TextReward, *, name: str) -> Address:
    """Where a fresh interpreter finds `reward`, which an experiment calls `name`. Raises ValueError if nowhere."""
    function: Any = reward
    keywords: dict[str, object] = {}
    while isinstance(function, partial):
        if function.args:
            raise _refusal(name, f"a partial with positional arguments {function.args!r}", "bind by name, f(x=1)")
        function, keywords = function.func, {**function.keywords, **keywords}
    module_name, qualified = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not isinstance(module_name, str) or not isinstance(qualified, str) or hasattr(function, "__self__"):
        raise _refusal(name, f"{function!r}", "write a function and bind its settings with functools.partial")
    if "<" in qualified:
        raise _refusal(name, f"{qualified}, which has no name of its own", "move it to the top of its file")
    module = sys.modules.get(module_name)
    found: Any = module
    for part in qualified.split("."):
        found = getattr(found, part, None)
    if module is None or found is not function:
        raise _refusal(
            name, f"{qualified}, which is not what {module_name} calls so", "give it a name of its own there"
        )
    spec = getattr(module, "__spec__", None)
    if module_name == "__main__" and spec is not None:
        module_name = spec.name  # started by `python -m`
    file = getattr(module, "__file__", None)
    if file is None and module_name == "__main__":
        raise _refusal(name, f"{qualified} of an interactive session", "write it into a file")
    try:
        packed = pack(keywords)
    except ValueError as error:
        raise _refusal(name, f"a keyword that holds {error}", "bind text, numbers, tuples and dicts of them") from None
    digest = None if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()
    path = None if file is None else str(Path(file).resolve())
    return Address(module=module_name, file=path, digest=digest, function=qualified, keywords=packed)


def _refusal(name: str, what: str, remedy: str) -> ValueError:
    return ValueError(f"text_rewards[{name!r}]: got {what}; {_ALLOWED}: {remedy}")


def _parts(count: int, workers: int, chunk: int | None) -> Iterator[slice]:
    """Slices of `count` pairs. Without a `chunk` they get smaller, so that all workers end at about the same moment."""
    least, start = max(1, count // (32 * workers)), 0
    while start < count:
        size = chunk or max(least, (count - start) // (2 * workers))
        yield slice(start, start + size)
        start += size


def _encode(records: Sequence[Record], pairs: Sequence[tuple[int, int]]) -> bytes:
    """What a worker reads: the numbers of the rewards that each row is to be given to, then the rows."""
    wanted: dict[int, list[int]] = {}
    for row, number in pairs:
        wanted.setdefault(row, []).append(number)
    return json.dumps(list(wanted.values())).encode() + b"\n" + b"".join(_line(records[row], row) for row in wanted)


def _line(record: Record, row: int) -> bytes:
    try:
        return write_record(record)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"record {row}: got {error} in it, which cannot be sent to a worker process; allowed are text, numbers,"
            " lists, tuples and dicts of them by name: convert it in the task's metadata"
        ) from error
