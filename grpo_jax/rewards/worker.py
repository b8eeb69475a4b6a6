"""The program of a worker process: load rewards from the files of their authors, score records, one line each.

A worker is a fresh interpreter, started by `grpo_jax.rewards.process`. What passes between the two are lines of JSON on
two pipes of their own, so that nothing a reward prints gets in between:

    in   the settings, once (see `Settings`)
    out  ``{"ready": true}``, or ``{"failed": "the traceback"}`` and the end
    in   for every lot of records a line ``[[reward, ...], ...]``: the numbers of the rewards that are to score each
    in   and a line for each record, its fields
    out  ``[n, value, status, detail]`` for each pair, in order, as soon as it is known; n counts them from 0, so that
         nothing a reward might write into the pipe can shift scores to other records

The worker trusts nothing to end well: who waits for it kills it, with all that it started, when a line is too long in
coming. It limits its own memory and ends with its parent, through a process in between (`grpo_jax.rewards.warden`).
"""

import hashlib
import importlib.util
import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, NoReturn, TypedDict

from grpo_jax.rewards.text import Record, Score, TextReward, judge
from grpo_jax.rewards.warden import stand_guard

OUT_OF_MEMORY = 77
"""Exit code of a worker that was refused memory: its next record deserves one that is not full yet."""
LONGEST_DETAIL = 4000
LONGEST_TRACEBACK = 20_000
PROGRAM = (
    "import json, sys\n"
    "sys.path[:] = json.loads(sys.argv[1])\n"
    "from grpo_jax.rewards import worker\n"
    "worker.main(int(sys.argv[2]), int(sys.argv[3]))\n"
)
"""For ``python -P -c``, with the path of modules, and the descriptors to read from and to write to. The path is that of
the parent, whichever way it was made, and the environment, which a reward may hand on, stays clean of it."""

_TUPLE = "(tuple)"


class Address(TypedDict):
    """Where a reward is: all that a fresh interpreter needs to find it."""

    module: str
    file: str | None  # of the module; None where it has none (a builtin)
    digest: str | None  # sha256 of the file: every worker of a run scores with the same code
    function: str  # its qualified name
    keywords: dict[str, Any]  # packed


class Settings(TypedDict):
    """First line that a worker reads."""

    parent: int
    memory_mb: int
    rewards: list[Address]


def pack(value: object) -> Any:
    """`value` as something that JSON keeps apart: tuples stay tuples. Raises ValueError where it cannot be sent."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, tuple):
        return {_TUPLE: [pack(part) for part in value]}
    if isinstance(value, list):
        return [pack(part) for part in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) and key != _TUPLE for key in value):
        return {key: pack(part) for key, part in value.items()}
    raise ValueError(f"{value!r} of type {type(value).__name__}")


def unpack(value: Any) -> Any:
    """What `pack` was given."""
    if isinstance(value, dict):
        if set(value) == {_TUPLE}:
            return tuple(unpack(part) for part in value[_TUPLE])
        return {key: unpack(part) for key, part in value.items()}
    return [unpack(part) for part in value] if isinstance(value, list) else value


def write_record(record: Record) -> bytes:
    """A line that `read_record` reads. Raises ValueError where a value of the metadata cannot be sent."""
    fields = [record.prompt, record.completion, [int(t) for t in record.tokens], record.answer]
    return json.dumps([*fields, pack(record.metadata), record.stopped]).encode() + b"\n"


def read_record(line: bytes) -> Record:
    """The record of a line; its tokens are a tuple."""
    prompt, completion, tokens, answer, metadata, stopped = json.loads(line)
    return Record(prompt, completion, tuple(tokens), answer, unpack(metadata), stopped)


def load(address: Address) -> TextReward:
    """The reward at `address`. Raises whatever its file raises, AttributeError where it is not in it."""
    found: Any = _module(address["module"], address["file"], address["digest"])
    for name in address["function"].split("."):
        found = getattr(found, name)
    keywords = unpack(address["keywords"])
    return partial(found, **keywords) if keywords else found


def _module(name: str, file: str | None, digest: str | None) -> ModuleType:
    """The module by its name, where that leads to this very file, and else the file by itself."""
    if file is None:
        return import_module(name)
    if digest != hashlib.sha256(Path(file).read_bytes()).hexdigest():
        raise ImportError(f"{file} was changed after the run began; all records of a run are scored by the same code")
    try:
        spec = importlib.util.find_spec(name) if name != "__main__" else None
    except (ImportError, ValueError, AttributeError):
        spec = None
    if spec is not None and spec.origin and os.path.realpath(spec.origin) == os.path.realpath(file):
        return import_module(name)
    alias = f"rewards in {file}"  # not a name that anything else could have
    if alias not in sys.modules:
        folder = str(Path(file).parent)
        if folder not in sys.path:
            sys.path.insert(0, folder)  # what Python does for a script, so that it finds its neighbours
        spec = importlib.util.spec_from_file_location(alias, file)
        if spec is None or spec.loader is None:
            raise ImportError(f"{file} cannot be imported: its name has to end in .py")
        sys.modules[alias] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[alias])
    return sys.modules[alias]


def score_line(reward: TextReward, line: bytes, *, number: int) -> bytes:
    """The line ``[number, value, status, detail]`` for what `reward` makes of the record of `line`, its own copy.

    Where memory runs out the process ends with `OUT_OF_MEMORY`.
    """
    score = judge(partial(_contained, reward), read_record(line))
    try:
        text = json.dumps([number, float(score.value), score.status, str(score.detail)[:LONGEST_DETAIL]])
    except Exception as error:  # the detail is an object of the reward's, and its text is of its making
        text = json.dumps([number, 0.0, "error", f"its detail is no text: {type(error).__name__}"])
    return text.encode() + b"\n"


def _contained(reward: TextReward, record: Record) -> float | Score:
    try:
        return reward(record)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    except (Exception, SystemExit):
        raise
    except BaseException as error:  # KeyboardInterrupt and the like mean nothing here: nobody pressed a key
        return Score(0.0, "error", f"{type(error).__name__}: {error}"[:500])


def serve(work: BinaryIO, result: int, rewards: Sequence[TextReward]) -> None:
    """Score lot after lot until `work` ends."""
    me, scored = os.getpid(), 0
    while header := work.readline():
        wanted = json.loads(header)
        lines = [work.readline() for _ in wanted]  # all of them first: the parent may write before it has to read
        for numbers, line in zip(wanted, lines, strict=True):
            for number in numbers:
                answer = score_line(rewards[number], line, number=scored)
                if os.getpid() != me:
                    os._exit(0)  # a child that the reward forked and let return: only one of the two is the worker
                _write(result, answer)
                scored += 1


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def limit_memory(megabytes: int) -> None:
    """Refuse more than so many MB of address space beyond what is in use, and leave no core behind."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    statm = Path("/proc/self/statm")
    used = int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else 0
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = used + megabytes * 1_000_000
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def main(work: int, result: int) -> NoReturn:
    """Be a worker that reads from the descriptor `work` and writes to `result`."""
    for descriptor in (work, result):
        os.set_inheritable(descriptor, False)  # programs that a reward starts have no business with them
    with open(work, "rb") as lines:
        first = lines.readline()
        if not first:
            os._exit(0)
        settings: Settings = json.loads(first)
        stand_guard(settings["parent"], pipes=(work, result))
        sys.argv[:] = [sys.argv[0]]
        rewards = _prepare(settings, partial(_write, result))
        try:
            serve(lines, result, rewards)
        except MemoryError:
            os._exit(OUT_OF_MEMORY)
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)  # no warden, and the parent is gone: take along what rewards started
    os._exit(0)


def _prepare(settings: Settings, write: Callable[[bytes], None]) -> list[TextReward]:
    try:
        rewards = [load(address) for address in settings["rewards"]]
        limit_memory(settings["memory_mb"])
    except BaseException:  # a file may well call sys.exit
        write(json.dumps({"failed": traceback.format_exc()[-LONGEST_TRACEBACK:]}).encode() + b"\n")
        os._exit(1)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)  # what a file says while it is loaded may explain a failure; from here on nobody listens
    write(b'{"ready": true}\n')
    return rewards
