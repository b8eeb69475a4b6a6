"""An experiment that is made by a function: ``--set checkpoint=PATH`` fills the arguments of the function.

    def math(*, checkpoint: str, data: str, full: bool = False) -> Experiment: ...

    EXPERIMENT = math
    VARIANTS = {"full": partial(math, full=True)}

An argument is read by its annotation, as a setting is by that of its field. A path of one name that is an argument is
that argument; a longer one goes into an argument that has settings of its own, such as a dataclass. Every other path is
a setting of the experiment that the function returns.
"""

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeGuard

from grpo_jax.experiment import Experiment
from grpo_jax.overrides import keywords_of, override, parted, parts_of

FIELDS = tuple(field.name for field in dataclasses.fields(Experiment) if field.init)
Maker = Callable[..., Experiment]


def is_maker(value: object) -> TypeGuard[Maker]:
    """Whether `value` is a function, or one with arguments bound, and not an experiment itself."""
    return inspect.isfunction(value) or isinstance(value, partial)


def made(value: object, assignments: Sequence[str], *, what: str = "EXPERIMENT") -> Experiment:
    """The experiment that `value` is, or that the function `value` makes, with every ``path=value`` of `assignments`.

    `what` is the name of `value` in its file, for errors. Raises ValueError for a value that is neither, for a path
    that is neither an argument nor a setting (naming the nearest), and for a required argument that nobody gave.
    """
    if not is_maker(value):
        return override(_checked(value, f"{what} holds"), assignments)
    bound: partial[Any] = partial(value)
    _check_signature(bound, what)
    kinds, present = keywords_of(bound)
    own = [text for text in assignments if _is_argument(parted(text)[0], present)]
    _check_known([parted(text)[0] for text in assignments], present, what)
    filled = override(bound, own)
    _check_complete(filled, kinds, what)
    experiment = _checked(filled(), f"{_name(bound)}(...), which {what} holds, returned")
    return override(experiment, [text for text in assignments if text not in own])


def _checked(value: object, what: str) -> Experiment:
    if not isinstance(value, Experiment):
        raise ValueError(
            f"{what} a {type(value).__name__}, allowed is a grpo_jax.Experiment, or a function that returns one: write"
            " EXPERIMENT = Experiment(...)"
        )
    return value


def _is_argument(path: str, present: dict[str, Any]) -> bool:
    """Whether `path` leads into an argument; `present` are those that there are, with their values."""
    first, _, rest = path.partition(".")
    return first in present and (not rest or first not in FIELDS or bool(parts_of(present[first])))


def _check_signature(bound: partial[Any], what: str) -> None:
    """Raise a ValueError unless every argument can be given by name."""
    parameters = inspect.signature(bound.func).parameters.values()
    loose = [p.name for p in parameters if p.kind != p.KEYWORD_ONLY]
    if loose or bound.args:
        names = ", ".join(p.name for p in parameters) or "seed"
        raise ValueError(
            f"{what}: got the function {_name(bound)} with the positional arguments"
            f" {', '.join(loose) or bound.args}, allowed are keyword-only ones, which --set can name: write def"
            f" {_name(bound)}(*, {names})"
        )


def _check_known(paths: Sequence[str], present: dict[str, Any], what: str) -> None:
    """Raise a ValueError for a path that is neither an argument nor a setting, before anything is made."""
    for path in paths:
        first = path.partition(".")[0]
        if first in present or first in FIELDS:
            continue
        near = difflib.get_close_matches(first, [*present, *FIELDS], n=1)
        arguments = f"the arguments of {what}, {', '.join(sorted(present))}, or " if present else ""
        raise ValueError(
            f"--set {path}: got {first!r}, allowed {arguments}the settings of the experiment,"
            f" {', '.join(sorted(FIELDS))}: " + (f"did you mean {near[0]}?" if near else "choose one of these")
        )


def _check_complete(filled: partial[Any], kinds: dict[str, Any], what: str) -> None:
    """Raise a ValueError that names every required argument without a value, its type and the flag to add."""
    parameters = inspect.signature(filled.func).parameters.values()
    missing = [p.name for p in parameters if p.default is p.empty and p.name not in filled.keywords]
    if missing:
        told = ", ".join(f"{name}: {_kind(kinds[name])}" for name in missing)
        flags = " ".join(f"--set {name}={_placeholder(kinds[name])}" for name in missing)
        raise ValueError(
            f"{what}: got no value for {told}, allowed is one for every argument of {_name(filled)} that has no"
            f" default: add {flags}"
        )


def _kind(kind: Any) -> str:
    """The annotation `kind` in words; an argument without one, and without a default, has that of None."""
    return "any value" if kind is type(None) else kind.__name__ if isinstance(kind, type) else str(kind)


def _placeholder(kind: Any) -> str:
    return kind.__name__.upper() if kind in (str, int, float, bool) else "VALUE"


def _name(bound: partial[Any]) -> str:
    return getattr(bound.func, "__name__", type(bound.func).__name__)
