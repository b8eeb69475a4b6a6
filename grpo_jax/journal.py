"""Files of a run as they have to be to survive: lines that are whole, documents that are old or new, one writer.

A journal is a file of JSON lines and the source of truth of a run: figures, trackers and the terminal are made from it
and may fail; a line that cannot be written ends the run (`DataError`, exit code 5), because a run nobody can read back
is not worth its machine. A line goes to the operating system in one write, so that a process killed at any moment
leaves whole lines and at most one torn one at the end. Nothing here imports jax.
"""

import contextlib
import fcntl
import json
import math
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from grpo_jax.lifeline import DataError, Exit, RunStopped, say

NONFINITE = "nonfinite"


def _number(value: float, where: str, nonfinite: dict[str, str]) -> float | None:
    if math.isfinite(value):
        return value
    nonfinite[where] = str(value)
    return None


def _plain(value: Any, where: str, nonfinite: dict[str, str]) -> Any:
    """`value` of things JSON has; what is not finite becomes None and is noted under its path."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and not isinstance(value, np.generic):
        return _number(value, where, nonfinite)
    if isinstance(value, Mapping):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            raise ValueError(f"Keys of a record are strings, got {wrong[0]!r} in {where or 'the record'}.")
        return {key: _plain(item, f"{where}.{key}" if where else key, nonfinite) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]", nonfinite) for i, item in enumerate(value)]
    if isinstance(value, np.generic) or hasattr(value, "__array__"):
        return _array(np.asarray(value), where, nonfinite)
    raise ValueError(f"{where} of a record is a {type(value).__name__}: a record holds numbers, text, lists and dicts.")


def _array(array: np.ndarray, where: str, nonfinite: dict[str, str]) -> Any:
    if array.ndim:
        return [_array(item, f"{where}[{i}]", nonfinite) for i, item in enumerate(array)]
    if array.dtype.kind in "biu":
        return array.item()
    if array.dtype.kind not in "fV" or array.dtype.names is not None:
        raise ValueError(f"{where} of a record is an array of {array.dtype}: a record holds real numbers and text.")
    # The shortest decimal that gives the float32 back: 0.1 and not 0.10000000149011612.
    value = float(array) if array.dtype == np.float64 else float(str(array.astype(np.float32)[()]))
    return _number(value, where, nonfinite)


def plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of Python's own numbers, strings, lists and dicts, whose JSON text is valid anywhere.

    Numpy and jax scalars and arrays become numbers and lists; a float32 becomes the shortest decimal that gives it
    back. What is not finite becomes None, and ``nonfinite`` says what it was: ``{"loss": "nan"}``.
    """
    if NONFINITE in record:
        raise ValueError(f"A record has no field {NONFINITE!r} of its own: it names what was not finite.")
    nonfinite: dict[str, str] = {}
    content = {key: value for key, value in _plain(record, "", nonfinite).items()}
    return {**content, NONFINITE: nonfinite} if nonfinite else content


def encode(record: Mapping[str, Any]) -> bytes:
    """One line: JSON in ASCII, keys in the order given, newline at the end. Equal records give equal bytes."""
    return json.dumps(plain(record), allow_nan=False, separators=(", ", ": ")).encode() + b"\n"


def _decoded(line: bytes) -> dict | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _lines(path: Path) -> Iterator[tuple[bytes, dict | None]]:
    """Lines of a journal with their newline, and records; None for the last one if it is torn."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                whole = line.endswith(b"\n")
                record = _decoded(line) if whole else None
                if whole and record is None:
                    raise DataError(
                        f"{path}, line {number} is no JSON record: the file was damaged or edited. "
                        "Repair or remove that line, or start afresh in another run folder."
                    )
                yield line, record
    except FileNotFoundError:
        return
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}.") from error


def each(path: Path) -> Iterator[dict]:
    """The records of a journal one by one, without a torn last line; none where there is no file.

    Raises:
      DataError: a whole line is no record, or the file cannot be read.
    """
    return (record for _, record in _lines(Path(path)) if record is not None)


def read(path: Path) -> list[dict]:
    """The same as a list: see `each`."""
    return list(each(path))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(path: Path, chunks: Iterable[bytes]) -> None:
    """Old content or new content, whatever happens meanwhile."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        file.writelines(chunks)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    _sync_folder(path.parent)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """A document, indented, by the rules of `plain`; whoever reads it meanwhile finds the old one or the new one.

    Raises:
      DataError: it cannot be written.
    """
    path = Path(path)
    text = json.dumps(plain(content), allow_nan=False, indent=2) + "\n"
    try:
        _replace(path, [text.encode()])
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}.") from error


class Journal:
    """Appends records to a file of JSON lines. Use `rewind` first when a run goes on from a checkpoint.

    Opening moves a torn last line to ``<name>.superseded``.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._descriptor: int | None = None
        self.rewind(_everything)

    @property
    def superseded(self) -> Path:
        """Where records go that no longer count."""
        return self.path.with_name(self.path.name + ".superseded")

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one record: in the hands of the operating system on return, in one piece.

        Raises:
          ValueError: the record holds something that is neither number, text, list nor dict.
          DataError: the disk refuses.
        """
        line = encode(record)
        try:
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            written = os.write(self._descriptor, line)
        except OSError as error:
            raise self._failed(error) from error
        if written != len(line):
            raise self._failed(OSError(f"only {written} of {len(line)} bytes were taken: is the disk full?"))

    def adopt(self, lines: bytes) -> None:
        """Appends whole lines of another journal, byte for byte.

        Raises:
          DataError: the disk refuses.
        """
        try:
            with open(self.path, "ab") as file:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._failed(error) from error

    def sync(self) -> None:
        """Returns when everything written is on the disk itself: wanted before a checkpoint that counts on it."""
        if self._descriptor is None:
            return
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Closes the file; a later `write` opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def rewind(self, keep: Callable[[dict], bool]) -> int:
        """Moves records that `keep` refuses, and a torn last line, to ``<name>.superseded``; returns how many.

        The lines kept are left byte for byte, in order: after rewinding to a checkpoint the file is what an
        uninterrupted run had at that point. Killed in between, the records moved may be in both files; rewinding
        again then repeats them in the superseded one, which nothing counts.
        """
        self.close()
        if self._count_out(keep) == 0:
            return 0
        out: list[bytes] = []
        partial = self.path.with_name(self.path.name + ".partial")
        try:
            with open(partial, "wb") as file:
                for line, record in _lines(self.path):
                    if record is not None and keep(record):
                        file.write(line)
                    else:
                        out.append(line if line.endswith(b"\n") else line + b"\n")
                file.flush()
                os.fsync(file.fileno())
            with open(self.superseded, "ab") as file:
                file.writelines(out)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self.path)
            _sync_folder(self.path.parent)
        except OSError as error:
            raise self._failed(error) from error
        return len(out)

    def _count_out(self, keep: Callable[[dict], bool]) -> int:
        return sum(record is None or not keep(record) for _, record in _lines(self.path))

    def _failed(self, error: OSError) -> DataError:
        return DataError(
            f"{self.path} cannot be written: {error}. Free space or make the folder writable, "
            "then run the same command again: it goes on from the last checkpoint."
        )


def _everything(record: dict) -> bool:
    del record
    return True


@contextlib.contextmanager
def sole_writer(run_dir: Path) -> Iterator[None]:
    """Refuses a second run in one folder while the first lives.

    The lock belongs to the process and ends with it, however it ends; children do not keep it. On file systems without
    locks a sentence on stderr says so and the run goes on.

    Raises:
      RunStopped: another process has it (code 4), named by its id and machine.
    """
    path = Path(run_dir) / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    held = [descriptor]
    # A forked child shares the lock: were it to outlive a killed run, nobody could resume.
    os.register_at_fork(after_in_child=lambda: [os.close(held.pop()) for _ in held[:]])
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stopped = _in_use(run_dir, descriptor)
        os.close(held.pop())
        raise stopped from None
    except OSError as error:
        say(f"{run_dir} cannot be locked ({error}): take care that no second run uses it.")
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
        # Whoever finds the folder locked later, by somebody who only looks, is not sent to a process that has ended.
        os.ftruncate(descriptor, 0)
    finally:
        while held:
            os.close(held.pop())


@contextlib.contextmanager
def looking(run_dir: Path) -> Iterator[None]:
    """Keeps a run from going on in a folder that is looked at, and refuses to look while one does. Writes nothing.

    Several may look at once. Where there is no lock to be had (nobody ever wrote there, or a file system without
    locks), the folder is looked at as it is.

    Raises:
      RunStopped: a run has the folder (code 4), named by its process and machine.
    """
    try:
        descriptor = os.open(Path(run_dir) / ".lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _in_use(run_dir, descriptor) from None
        except OSError as error:
            say(f"{run_dir} cannot be locked ({error}): take care that no run goes on in it meanwhile.")
        yield
    finally:
        os.close(descriptor)


def _in_use(run_dir: Path, descriptor: int) -> RunStopped:
    owner = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
    return RunStopped(
        Exit.CONFIGURATION, f"{run_dir} is in use by {owner}. Wait for it, stop it, or use another run folder."
    )
