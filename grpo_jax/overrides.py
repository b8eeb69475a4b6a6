"""``--set a.b=v``: settings of an experiment changed from the command line, typed by their annotations.

Paths go through nested dataclasses and into the keywords of `functools.partial`; a value is read by the annotation of the
field, or by the type of the keyword's present value.
"""

import dataclasses
import difflib
import functools
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any


def override(experiment: Any, assignments: Sequence[str]) -> Any:
    """`experiment` with every ``path=value`` of `assignments` applied in order.

    Raises ValueError for an unknown path (naming the nearest) and for a value that is not of the setting's type.
    """
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path.strip():
            raise ValueError(f"--set: got {assignment!r}, allowed is path=value, for instance train.steps=20")
        experiment = _set(experiment, path.strip().split("."), text.strip(), path.strip())
    return experiment


def _set(value: Any, path: list[str], text: str, whole: str) -> Any:
    head, rest = path[0], path[1:]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        if head not in names:
            raise ValueError(_unknown(head, names, whole))
        old = getattr(value, head)
        new = (
            _set(old, rest, text, whole) if rest else _read(text, typing.get_type_hints(type(value))[head], old, whole)
        )
        return dataclasses.replace(value, **{head: new})
    if isinstance(value, functools.partial):
        known = {
            name: p.annotation
            for name, p in inspect.signature(value.func).parameters.items()
            if p.kind == p.KEYWORD_ONLY
        }
        if head not in known:
            raise ValueError(_unknown(head, list(known), whole))
        old = value.keywords.get(head)
        new = _set(old, rest, text, whole) if rest else _read(text, known[head], old, whole)
        return functools.partial(value.func, *value.args, **{**value.keywords, head: new})
    if isinstance(value, tuple) and head.isdigit() and int(head) < len(value):
        new = (
            _set(value[int(head)], rest, text, whole)
            if rest
            else _read(text, type(value[int(head)]), value[int(head)], whole)
        )
        items = [*value[: int(head)], new, *value[int(head) + 1 :]]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if hasattr(value, "_fields") and head in value._fields:
        return _set(value, [str(value._fields.index(head)), *rest], text, whole)
    raise ValueError(f"--set {whole}: {head!r} is looked for in {value!r}, which has no settings; shorten the path")


def _unknown(name: str, known: Sequence[str], whole: str) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"--set {whole}: got {name!r}, allowed {', '.join(sorted(known))}{hint}"


def _read(text: str, kind: Any, old: Any, whole: str) -> Any:
    """`text` as a value of the annotation `kind`, or of the type of `old` where the annotation says nothing."""
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if text in ("None", "none") and type(None) in options:
            return None
        return _first(text, [option for option in options if option is not type(None)], old, whole)
    if origin is typing.Literal:
        if text not in options:
            raise ValueError(f"--set {whole}: got {text!r}, allowed {', '.join(map(str, options))}")
        return text
    if origin is tuple:
        return _read_tuple(text, options, old, whole)
    if origin in (Mapping, dict):
        pairs = [pair.partition(":") for pair in text.split(",") if pair]
        return {name.strip(): _read(size.strip(), options[1], None, whole) for name, _, size in pairs}
    readers = {bool: _boolean, int: _integer, float: float, str: str}
    target = kind if kind in readers else type(old)
    if target not in readers:
        raise ValueError(
            f"--set {whole}: this setting holds {kind}, which no text can give; change it in the experiment's file"
        )
    try:
        return readers[target](text)
    except ValueError:
        raise ValueError(f"--set {whole}: got {text!r}, allowed is a value of type {target.__name__}") from None


def _first(text: str, options: Sequence[Any], old: Any, whole: str) -> Any:
    error: ValueError | None = None
    for option in options:
        try:
            return _read(text, option, old, whole)
        except ValueError as problem:
            error = error or problem
    raise error or ValueError(f"--set {whole}: got {text!r}, which fits none of its types")


def _read_tuple(text: str, options: tuple, old: Any, whole: str) -> tuple:
    parts = [part.strip() for part in text.strip("()").split(",") if part.strip()]
    if len(options) == 2 and options[1] is Ellipsis:
        return tuple(_read(part, options[0], None, whole) for part in parts)
    if len(parts) != len(options):
        raise ValueError(f"--set {whole}: got {len(parts)} values, allowed are {len(options)}, separated by commas")
    return tuple(_read(part, kind, None, whole) for part, kind in zip(parts, options, strict=True))


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise ValueError(text)
    return text.lower() in ("true", "1", "yes")


def _integer(text: str) -> int:
    return int(text.replace("_", ""))
