"""Reading a JSONL file of questions and answers, every error with file and line."""

import codecs
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from grpo_jax.lifeline import BadData

REQUIRED = ("prompt", "answer")
OPTIONAL = ("solution",)
_MARKS = {codecs.BOM_UTF8: "UTF-8", codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}


@dataclass(frozen=True)
class Line:
    """One validated line."""

    path: str
    number: int  # from 1
    prompt: str
    answer: str
    solution: str | None
    metadata: Mapping[str, object]


def read_lines(path: str, tags: tuple[str, ...]) -> list[Line]:
    """The lines of the file at `path`, in order.

    A `BadData` names file, line, what was found, what is allowed and what to do: no file, not UTF-8, not a JSON
    object, a repeated key, a missing or empty field, a field that is no string, one of `tags` in an answer or solution,
    an empty line, an empty file.
    """
    return [_line(path, number, row, tags) for number, row in enumerate(_rows(path), start=1)]


def objects(path: str, *, whole: bool = False) -> Iterator[tuple[str, dict]]:
    """Where each JSON object of the file stands, and the object: one a line, or one that is the `whole` file.

    Raises BadData as `read_lines` does; which fields there are is not looked at.
    """
    if whole:
        yield f"{path}:1", _object(f"{path}:1", b" ".join(_rows(path)), "fields")
        return
    for number, row in enumerate(_rows(path), start=1):
        yield f"{path}:{number}", _object(f"{path}:{number}", row, "fields")


def _rows(path: str) -> list[bytes]:
    data = _bytes(path)
    rows = data.removesuffix(b"\n").split(b"\n") if data.strip() else []
    if not rows:
        raise BadData(f"{path}: the file is empty; allowed is one JSON object a line; write at least one")
    return rows


def _bytes(path: str) -> bytes:
    """The content of a regular file in UTF-8."""
    try:
        with open(path, "rb", opener=_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise BadData(
                    f"{path}: got a pipe or a device; allowed is a JSONL file, which can be read more than once; write"
                    " it to a file"
                )
            data = file.read()
    except BadData:
        raise
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise BadData(f"{path}: cannot be read ({why}); allowed is a JSONL file; check it") from None
    for mark, name in _MARKS.items():
        if data.startswith(mark):
            raise BadData(
                f"{path}:1: the file begins with the byte order mark of {name}; allowed is UTF-8 without one; save it"
                " so"
            )
    return data


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # opening a pipe that nobody writes to would wait for ever


def label_codes(lines: Sequence[Line], name: str) -> np.ndarray:
    """i32[lines], the place of the value under the key `name` among the sorted distinct ones; whole numbers go first.

    Raises BadData, naming file and line, where the key is missing or its value is neither text nor a whole number.
    """
    for line in lines:
        value = line.metadata.get(name)
        if not isinstance(value, str | int) or isinstance(value, bool):
            got = f"{value!r:.80}" if name in line.metadata else f"no such key among {sorted(line.metadata)}"
            raise BadData(
                f'{line.path}:{line.number}: label "{name}": got {got}; allowed is text or a whole number in every'
                f' line; add "{name}" to the line, or take it out of labels'
            )
    values = sorted({line.metadata[name] for line in lines}, key=_rank)
    place = {value: code for code, value in enumerate(values)}
    return np.array([place[line.metadata[name]] for line in lines], np.int32)


def _rank(value: object) -> tuple[int, object]:
    return (isinstance(value, str), value)


def _line(path: str, number: int, row: bytes, tags: tuple[str, ...]) -> Line:
    where = f"{path}:{number}"
    fields = _object(where, row, '"prompt" and "answer"')
    for name in (*REQUIRED, *OPTIONAL):
        if name in fields or name in REQUIRED:
            _check_field(where, name, fields, tags)
    known = (*REQUIRED, *OPTIONAL)
    return Line(
        path=path,
        number=number,
        prompt=fields["prompt"],
        answer=fields["answer"],
        solution=fields.get("solution"),
        metadata={key: value for key, value in fields.items() if key not in known},
    )


def _object(where: str, row: bytes, names: str) -> dict:
    if not row.strip():
        raise BadData(f"{where}: the line is empty; allowed is one JSON object a line; remove it")
    try:
        fields = json.loads(row.decode("utf-8"), object_pairs_hook=_pairs, parse_constant=_constant)
    except UnicodeDecodeError as error:
        raise BadData(
            f"{where}: byte 0x{row[error.start]:02x} at column {error.start + 1} is not UTF-8; allowed is a file in"
            " UTF-8; save it so"
        ) from None
    except (ValueError, RecursionError) as error:
        # The decoder counts lines inside this one, which would contradict `where`.
        what = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
        raise BadData(
            f"{where}: not valid JSON ({what}), got {_shortened(row)}; allowed is one JSON object a line; correct it"
        ) from None
    if not isinstance(fields, dict):
        raise BadData(
            f"{where}: got {type(fields).__name__} {_shortened(row)}; allowed is a JSON object with {names}; write"
            ' {"prompt": "...", "answer": "..."} or what the format of the file asks for'
        )
    return fields


def _check_field(where: str, name: str, fields: dict, tags: tuple[str, ...]) -> None:
    if name not in fields:
        raise BadData(
            f'{where}: field "{name}" is missing, got {sorted(fields)}; allowed is a line with {REQUIRED}; add "{name}"'
        )
    value = fields[name]
    if not isinstance(value, str):
        raise BadData(
            f'{where}: field "{name}" is {type(value).__name__} {value!r:.80}; allowed is a string; put it in quotes'
            + (" or leave the field out" if name in OPTIONAL else "")
        )
    if name in REQUIRED and not value.strip():
        raise BadData(f'{where}: field "{name}" is {value!r}; allowed is a string that is not blank; fill it in')
    found = [tag for tag in tags if tag in value] if name != "prompt" else []
    if found:
        raise BadData(
            f'{where}: field "{name}" holds the special token {found[0]!r}, which would change what is read as the'
            " answer; allowed is text without it; remove it"
        )
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise BadData(f'{where}: field "{name}" holds a lone surrogate; allowed is Unicode text; remove it')


def _pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        keys = [key for key, _ in pairs]
        raise BadData(f"key {next(k for k in keys if keys.count(k) > 1)!r} stands twice")
    return fields


def _constant(name: str) -> float:
    raise BadData(f"{name} is not JSON")


def _shortened(row: bytes) -> str:
    text = row.decode("utf-8", errors="replace")
    return repr(text if len(text) <= 60 else text[:60] + "...")
