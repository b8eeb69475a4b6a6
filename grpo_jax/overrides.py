"""``--set a.b=v``: settings of an experiment changed from the command line, typed by their annotations.

Paths go through nested dataclasses, into the keywords of `functools.partial`, into tuples by number (or by the name of
a field) and into mappings by key. A value is read by the annotation of its place, or by the type of what stands there.
A recipe, an advantage and a grouping of the library are given by their names: ``--set recipe=dapo``.
All assignments are applied at once, so that settings which only fit together can be changed together in any order.
"""

import dataclasses
import difflib
import functools
import inspect
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from grpo_jax.advantages import ADVANTAGES
from grpo_jax.groups import GROUPINGS
from grpo_jax.objectives import RECIPES

_Tree = dict[str, "str | _Tree"]
_CHOOSE = ": choose one of these"
_BRACKETS = {"(": ")", "[": "]", "{": "}"}
NAMED: Mapping[str, Mapping[str, Any]] = {
    "recipe": RECIPES,
    "recipe.advantage": ADVANTAGES,
    "recipe.grouping": GROUPINGS,
}
"""Path of a setting that holds functions -> those of the library that may stand there, by name."""


def override(experiment: Any, assignments: Sequence[str]) -> Any:
    """`experiment` with every ``path=value`` of `assignments`; of two values for one path the later counts.

    Raises ValueError for an unknown path (naming the nearest), for a value that is not of the setting's type, and for
    what the experiment refuses.
    """
    tree: _Tree = {}
    for assignment in assignments:
        path, text = parted(assignment)
        _plant(tree, path.split("."), text)
    try:
        return _apply(experiment, tree, "") if tree else experiment
    except _Unread as error:
        raise ValueError(error.sentence(_limits(experiment, error.path))) from None


def repeated(assignments: Sequence[str]) -> dict[str, list[str]]:
    """Path -> its values in order, for every path that `assignments` give more than one."""
    found: dict[str, list[str]] = {}
    for path, text in map(parted, assignments):
        found.setdefault(path, []).append(text)
    return {path: texts for path, texts in found.items() if len(texts) > 1}


class _Unread(ValueError):
    """A text that is no value of the setting at `path`."""

    def __init__(self, path: str, text: str, *, kinds: str, example: object):
        self.path, self.example, self._got, self._kinds = path, example, text, kinds
        super().__init__(self.sentence(""))

    def sentence(self, limits: str) -> str:
        """The whole message, with the range of the setting where one is known."""
        return (
            f"--set {self.path}: got {self._got!r}, allowed is a value of type {self._kinds}"
            f"{', ' + limits if limits else ''}: write for instance {self.path}={self.example}"
        )


def _limits(experiment: Any, path: str) -> str:
    """The range of a number, in the words in which its own constructor refuses one that is below it; "" if unknown."""
    tree: _Tree = {}
    _plant(tree, path.split("."), "-1")
    try:
        _apply(experiment, tree, "")
    except _Unread:
        return ""
    except ValueError as error:
        name = re.escape(path.rpartition(".")[2])
        said = re.search(rf"\b{name}\b.*?-1.*?allowed (?:are |is )?(.*?)(?:[:;]|$)", str(error))
        return said[1] if said else ""
    return ""


def parted(assignment: str) -> tuple[str, str]:
    """Path and text of ``path=value``, without spaces around them."""
    path, equals, text = assignment.partition("=")
    names = [name.strip() for name in path.split(".")]
    if not equals or not all(names):
        raise ValueError(
            f"--set: got {assignment!r}, allowed is path=value: write it like --set train.steps=20, in quotes if it has"
            " spaces"
        )
    return ".".join(names), text.strip()


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
    if inspect.isfunction(value):
        value = functools.partial(value)
    if isinstance(value, functools.partial):
        kinds, old = keywords_of(value)
        return functools.partial(value.func, *value.args, **{**value.keywords, **_changed(old, kinds, tree, where)})
    if isinstance(value, tuple):
        fields = getattr(value, "_fields", ())
        names = fields or tuple(map(str, range(len(value))))
        named = {names[int(key)] if key.isdecimal() and int(key) < len(names) else key: c for key, c in tree.items()}
        old = dict(zip(names, value, strict=True))
        new = {**old, **_changed(old, {}, named, where)}
        return type(value)(*new.values()) if fields else tuple(new.values())
    if isinstance(value, Mapping):
        return {**value, **_changed(dict(value), {}, tree, where)}
    raise ValueError(
        f"--set {_join(where, next(iter(tree)))}: {where} is {_shown(value)}, which has no settings of its own; allowed"
        f" is {where} itself: write --set {where}=VALUE, or change it in the experiment's file"
    )


def _changed(old: Mapping[str, Any], kinds: Mapping[str, Any], tree: _Tree, where: str) -> dict[str, Any]:
    """New values of the names in `tree`, which must be names of `old`."""
    new = {}
    for name, change in tree.items():
        path = _join(where, name)
        if name not in old:
            near = difflib.get_close_matches(name, old, n=1)
            hint = f": did you mean {_join(where, near[0])}? It is now {_shown(old[near[0]])}" if near else _CHOOSE
            raise ValueError(f"--set {path}: got {name!r}, allowed {', '.join(sorted(old)) or 'nothing'}{hint}")
        if isinstance(change, dict):
            new[name] = _apply(old[name], change, path)
        else:
            new[name] = _read(change, kinds.get(name, type(old[name])), old[name], path)
    return new


def keywords_of(bound: functools.partial) -> tuple[dict[str, Any], dict[str, Any]]:
    """Annotations and present values of what can be bound by name."""
    function: Any = bound.func
    if isinstance(function, type):  # a metaclass may hide what its classes are made from
        function = function.__init__
    parameters = inspect.signature(function).parameters.values()
    free = [p for p in parameters if p.kind == p.KEYWORD_ONLY or p.name in bound.keywords]
    empty = inspect.Parameter.empty
    old = {p.name: bound.keywords.get(p.name, None if p.default is empty else p.default) for p in free}
    try:
        hints = typing.get_type_hints(function if inspect.isfunction(function) else type(function))
    except NameError:  # a name that its author imports for checkers only
        hints = {}
    return {name: hints.get(name, type(value)) for name, value in old.items()}, old


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _read(text: str, kind: Any, old: Any, path: str) -> Any:
    """`text` as a value of the annotation `kind`, or of the type of `old` where the annotation says nothing."""
    if path in NAMED:
        return _of_the_library(text, path)
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if not text and (isinstance(old, tuple | Mapping) or origin in (tuple, Mapping, dict)):
        brackets = "()" if isinstance(old, tuple) or origin is tuple else "{}"
        raise ValueError(f"--set {path}: got nothing, allowed is at least {brackets}: write {path}={brackets} for none")
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
    known = {bool: _boolean, int: int, float: _float, str: _string}
    target = next((t for t in (kind, type(old)) if t in known), None)
    if target is None:
        parts = parts_of(old)
        remedy = (
            f"a part of it: set for instance {_join(path, parts[0])}"
            if parts
            else "another one in the experiment's file: change it there"
        )
        raise ValueError(
            f"--set {path}: got {text!r}, but this setting holds {_shown(old)}, which no text can give; allowed"
            f" is {remedy}"
        )
    try:
        return known[target](text)
    except ValueError:
        raise _Unread(path, text, kinds=target.__name__, example=_example(text, target, old)) from None


def _example(text: str, target: type, old: Any) -> object:
    """A value that would be taken: the whole number that `text` comes to, or else what stands there now."""
    try:
        whole = float(text)
        if target is int and whole == int(whole):
            return int(whole)
    except (OverflowError, ValueError):
        pass
    return old if type(old) is target else {bool: True, int: 8, float: 0.5}[target]


def parts_of(value: Any) -> list[str]:
    """Names of the settings inside `value`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [field.name for field in dataclasses.fields(value) if field.init]
    if inspect.isfunction(value) or isinstance(value, functools.partial):
        return list(keywords_of(functools.partial(value))[1])
    if isinstance(value, tuple):
        return list(getattr(value, "_fields", map(str, range(len(value)))))
    return list(value) if isinstance(value, Mapping) else []


def _shown(value: Any) -> str:
    """`value` in a sentence: a number as it is, a group of settings by its type and their names."""
    parts = ", ".join(parts_of(value))
    if inspect.isfunction(value) or isinstance(value, functools.partial):
        inner = value
        while isinstance(inner, functools.partial):
            inner = inner.func
        return f"the function {getattr(inner, '__name__', inner)}" + (f" with {parts}" if parts else "")
    if (dataclasses.is_dataclass(value) and not isinstance(value, type)) or hasattr(value, "_fields"):
        return f"a {type(value).__name__} of {parts}"
    return f"{value!r:.80}"


def _of_the_library(text: str, path: str) -> Any:
    """The recipe, advantage or grouping that the library calls `text`."""
    table = NAMED[path]
    if text not in table:
        near = difflib.get_close_matches(text, table, n=1)
        remedy = f"did you mean {path}={near[0]}?" if near else f"write for instance {path}={next(iter(table))}"
        raise ValueError(f"--set {path}: got {text!r}, allowed {', '.join(table)}: {remedy}")
    return table[text]


def _read_union(text: str, options: Sequence[Any], old: Any, path: str) -> Any:
    if type(None) in options and text in ("None", "none"):
        return None
    problem: ValueError | None = None
    for option in (option for option in options if option is not type(None)):
        try:
            return _read(text, option, old, path)
        except _Unread as error:
            kinds = " or ".join(getattr(option, "__name__", str(option)) for option in options).replace("Type", "")
            problem = problem or _Unread(path, text, kinds=kinds, example=error.example)
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
    read = {}
    for name, _, value in pairs:
        try:
            read[_string(name.strip())] = _read(value.strip(), kind, None, path)
        except _Unread:
            raise ValueError(
                f"--set {path}: got {value.strip()!r} for {name.strip()}, allowed is a value of type {kind.__name__}:"
                f" write for instance {path}=data:2"
            ) from None
    return read


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


def _float(text: str) -> float:
    value = float(text)
    if math.isnan(value):
        raise ValueError(text)
    return value


def _string(text: str) -> str:
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text
