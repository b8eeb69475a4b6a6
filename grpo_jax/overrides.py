"""``--set a.b=v``: settings of an experiment changed from the command line, typed by their annotations.

Paths go through nested dataclasses, into the keywords of `functools.partial`, into tuples by number (or by the name of
a field) and into mappings by key. A value is read by the annotation of its place, or by the type of what stands there.
All assignments are applied at once, so that settings which only fit together can be changed together in any order.
"""

import dataclasses
import difflib
import functools
import inspect
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

_Tree = dict[str, "str | _Tree"]
_BRACKETS = {"(": ")", "[": "]", "{": "}"}


def override(experiment: Any, assignments: Sequence[str]) -> Any:
    """`experiment` with every ``path=value`` of `assignments`; of two values for one path the later counts.

    Raises ValueError for an unknown path (naming the nearest), for a value that is not of the setting's type, and for
    what the experiment refuses.
    """
    tree: _Tree = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        names = [name.strip() for name in path.split(".")]
        if not equals or not all(names):
            raise ValueError(
                f"--set: got {assignment!r}, allowed is path=value: write it like --set train.steps=20, in quotes if it"
                " has spaces"
            )
        _plant(tree, names, text.strip())
    return _apply(experiment, tree, "") if tree else experiment


def _plant(tree: _Tree, names: Sequence[str], text: str) -> None:
    for depth, name in enumerate(names[:-1], start=1):
        branch = tree.setdefault(name, {})
        if isinstance(branch, str):
            raise _conflict(".".join(names[:depth]), ".".join(names))
        tree = branch
    if isinstance(tree.get(names[-1]), dict):
        raise _conflict(".".join(names), f"{'.'.join(names)}.{next(iter(tree[names[-1]]))}")
    tree[names[-1]] = text


def _conflict(whole: str, part: str) -> ValueError:
    return ValueError(
        f"--set: got {whole} and {part}, allowed is a setting or a part of it: give {whole} as a whole, or its parts"
    )


def _apply(value: Any, tree: _Tree, where: str) -> Any:
    """`value`, which stands at the path `where`, with the changes of `tree` below it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kinds = typing.get_type_hints(type(value))
        old = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        return dataclasses.replace(value, **_changed(old, kinds, tree, where))
    if isinstance(value, functools.partial):
        kinds, old = _keywords(value)
        return functools.partial(value.func, *value.args, **{**value.keywords, **_changed(old, kinds, tree, where)})
    if isinstance(value, tuple):
        fields = getattr(value, "_fields", ())
        numbered = {str(fields.index(name)) if name in fields else name: change for name, change in tree.items()}
        old = {str(index): item for index, item in enumerate(value)}
        new = {**old, **_changed(old, {}, numbered, where)}
        return type(value)(*new.values()) if fields else tuple(new.values())
    if isinstance(value, Mapping):
        return {**value, **_changed(dict(value), {}, tree, where)}
    raise ValueError(
        f"--set {_join(where, next(iter(tree)))}: {where} is {value!r}, which has no settings of its own; allowed is"
        f" {where} itself: write --set {where}=VALUE, or change it in the experiment's file"
    )


def _changed(old: Mapping[str, Any], kinds: Mapping[str, Any], tree: _Tree, where: str) -> dict[str, Any]:
    """New values of the names in `tree`, which must be names of `old`."""
    new = {}
    for name, change in tree.items():
        path = _join(where, name)
        if name not in old:
            near = difflib.get_close_matches(name, old, n=1)
            hint = f": did you mean {_join(where, near[0])}?" if near else ": choose one of these"
            raise ValueError(f"--set {path}: got {name!r}, allowed {', '.join(sorted(old)) or 'nothing'}{hint}")
        if isinstance(change, dict):
            new[name] = _apply(old[name], change, path)
        else:
            new[name] = _read(change, kinds.get(name, type(old[name])), old[name], path)
    return new


def _keywords(bound: functools.partial) -> tuple[dict[str, Any], dict[str, Any]]:
    """Annotations and present values of what can be bound by name."""
    function: Any = bound.func
    parameters = inspect.signature(function).parameters.values()
    free = [p for p in parameters if p.kind == p.KEYWORD_ONLY or p.name in bound.keywords]
    empty = inspect.Parameter.empty
    old = {p.name: bound.keywords.get(p.name, None if p.default is empty else p.default) for p in free}
    hints = typing.get_type_hints(function if inspect.isfunction(function) else type(function))
    return {name: hints.get(name, type(value)) for name, value in old.items()}, old


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _read(text: str, kind: Any, old: Any, path: str) -> Any:
    """`text` as a value of the annotation `kind`, or of the type of `old` where the annotation says nothing."""
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _read_union(text, options, old, path)
    if origin is typing.Literal:
        named = {str(option): option for option in options}
        if text not in named:
            near = difflib.get_close_matches(text, named, n=1) or list(named)[:1]
            raise ValueError(f"--set {path}: got {text!r}, allowed {', '.join(named)}: write for instance {near[0]}")
        return named[text]
    if origin is tuple or kind is tuple:
        return _read_tuple(text, options, old, path)
    if origin in (Mapping, dict) or kind in (Mapping, dict):
        return _read_mapping(text, options[1] if options else type(next(iter((old or {"": 0}).values()))), path)
    known = {bool: _boolean, int: _integer, float: _float, str: _string}
    target = next((t for t in (kind, type(old)) if t in known), None)
    if target is None:
        raise ValueError(
            f"--set {path}: got {text!r}, but this setting holds {old!r:.200}, which no text can give: change it in the"
            " experiment's file"
        )
    try:
        return known[target](text)
    except ValueError:
        example = {bool: "true", int: "8", float: "0.5"}[target]
        raise ValueError(
            f"--set {path}: got {text!r}, allowed is a value of type {target.__name__}: write for instance"
            f" {path}={example}"
        ) from None


def _read_union(text: str, options: Sequence[Any], old: Any, path: str) -> Any:
    if type(None) in options and text in ("None", "none"):
        return None
    problem: ValueError | None = None
    for option in (option for option in options if option is not type(None)):
        try:
            return _read(text, option, old, path)
        except ValueError as error:
            problem = problem or error
    raise problem or ValueError(f"--set {path}: got {text!r}, allowed is None: write {path}=None")


def _read_tuple(text: str, kinds: Sequence[Any], old: Any, path: str) -> tuple:
    parts = _parts(text, "([", path)
    present = old if isinstance(old, tuple) else ()
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        example = present[0] if present else None
        return tuple(_read(part, kinds[0], example, path) for part in parts)
    wanted = len(kinds) or len(present)
    if len(parts) != wanted:
        raise ValueError(
            f"--set {path}: got {len(parts)} values, allowed are {wanted}: write them with commas between, like"
            f" {path}={','.join(map(str, present)) or '1,2'}"
        )
    items = present if len(present) == wanted else (None,) * wanted
    return tuple(
        _read(part, kind, item, path)
        for part, kind, item in zip(parts, kinds or [type(item) for item in items], items, strict=True)
    )


def _read_mapping(text: str, kind: Any, path: str) -> dict[str, Any]:
    pairs = [part.partition(":") for part in _parts(text, "{", path)]
    if any(not colon for _, colon, _ in pairs):
        raise ValueError(
            f"--set {path}: got {text!r}, allowed is name:value,name:value: write for instance {path}=data:2"
        )
    return {_string(name.strip()): _read(value.strip(), kind, None, path) for name, _, value in pairs}


def _parts(text: str, brackets: str, path: str) -> list[str]:
    """The parts of `text` between its outermost commas, without a pair of `brackets` around them all."""
    if (
        text[:1]
        and text[0] in brackets
        and text.endswith(_BRACKETS[text[0]])
        and _closes_at(text, path) == len(text) - 1
    ):
        text = text[1:-1]
    parts, begin, at = [], 0, 0
    while at < len(text):
        if text[at] == ",":
            parts.append(text[begin:at])
            begin = at + 1
        elif text[at] in _BRACKETS:
            at += _closes_at(text[at:], path)
        at += 1
    return [part.strip() for part in (*parts, text[begin:]) if part.strip()]


def _closes_at(text: str, path: str) -> int:
    """Where the bracket that begins `text` is closed."""
    waiting = []
    for at, character in enumerate(text):
        if character in _BRACKETS:
            waiting.append(_BRACKETS[character])
        elif character in _BRACKETS.values() and (not waiting or character != waiting.pop()):
            break
        if not waiting:
            return at
    raise ValueError(f"--set {path}: got {text!r}, allowed are brackets in pairs: close what is open")


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise ValueError(text)
    return text.lower() in ("true", "1", "yes")


def _integer(text: str) -> int:
    return int(text.replace("_", ""))


def _float(text: str) -> float:
    value = float(text.replace("_", ""))
    if math.isnan(value):
        raise ValueError(text)
    return value


def _string(text: str) -> str:
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text
