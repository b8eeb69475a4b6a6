"""Canonical text of a composition of functions: what a run stores, compares and memoises compiled steps by.

A composition is built of functions, ``functools.partial`` with keywords, tuples, frozen dataclasses, dictionaries and
plain Python values. Two compositions that compute the same thing in the same way have the same description; what cannot
be described without running it (a lambda, a closure, an array) is refused with the remedy.
"""

import dataclasses
import functools
import hashlib
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jax.numpy as jnp

_PACKAGE = __name__.split(".", maxsplit=1)[0]
_PLAIN = (type(None), bool, int, float, str)
_BIND = "bind its keywords with functools.partial"
_KNOWN_NEEDS = ("entropy", "hidden", "kl_full", "logp_old", "logp_ref", "sum_pi_squared", "value")


def needs(*names: str) -> Callable[[Callable], Callable]:
    """Decorator: the term reads these fields, which are not there unless asked for.

    Args:
        *names: fields of `TokenStats` beside ``logp``; ``"logp_ref"`` of `Batch`; ``"logp_old"`` of `Batch` where it
            has to be what the trainer says of the policy at collection, and not the sampler.

    Raises:
        ValueError: a name is none of these.
    """
    for name in names:
        if name not in _KNOWN_NEEDS:
            raise ValueError(f"needs({name!r}): allowed are {', '.join(_KNOWN_NEEDS)}")

    def mark(function: Callable) -> Callable:
        vars(function)["needs"] = tuple(sorted(names))
        return function

    return mark


def wants(x: Any) -> tuple[str, ...]:
    """Sorted names of all that the functions inside `x` declared with `needs`."""
    return tuple(sorted({name for function, _ in functions(x) for name in getattr(function, "needs", ())}))


def describe(x: Any, *, name: str = "x") -> str:
    """Canonical text of `x`, called `name` in errors: ``module.name(keyword=value, ...)``, recursively.

    Keywords are sorted and include the keyword-only defaults: binding a default changes nothing, and the text says
    every hyper-parameter. A field of a dataclass with ``metadata={"describe": False}`` is left out.

    Raises:
        ValueError: `x` holds a lambda, a function defined inside a function, a bound method, an array, a mutable
            container, positional arguments of a partial or an unknown keyword; the text says where and what to do.
    """
    return _describe(x, name)


def _describe(x: Any, path: str) -> str:
    dtype = _dtype_name(x)
    if dtype is not None:
        return dtype
    if isinstance(x, jnp.generic):
        x = x.item()
    if type(x) in _PLAIN:
        return repr(x)
    if hasattr(x, "__array__"):
        _refuse(path, "an array", "bind Python numbers; those that change in a run go into Batch.coef or memory")
    if isinstance(x, tuple):
        return _describe_tuple(x, path)
    if isinstance(x, Mapping):
        return _describe_mapping(x, path)
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        return _describe_dataclass(x, path)
    if isinstance(x, (list, set, bytearray)):
        _refuse(path, f"a {type(x).__name__}, which can change", "use a tuple")
    function, keywords = _unbind(x, path)
    keywords = _with_defaults(function, keywords, path)
    inside = _join(keywords, path)
    name = _name(function, path)
    return f"{name}({inside})" if inside else name


def _describe_tuple(x: tuple, path: str) -> str:
    fields = getattr(x, "_fields", None)
    if fields is not None:
        return f"{_name(type(x), path)}({_join(dict(zip(fields, x, strict=True)), path, sort=False)})"
    parts = [_describe(part, f"{path}[{index}]") for index, part in enumerate(x)]
    return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"


def _describe_mapping(x: Mapping, path: str) -> str:
    for key in x:
        if not isinstance(key, str):
            _refuse(path, f"a dictionary with the key {key!r}", "use names (str) as keys")
    return "{" + ", ".join(f"{key!r}: {_describe(x[key], f'{path}[{key!r}]')}" for key in sorted(x)) + "}"


def _describe_dataclass(x: Any, path: str) -> str:
    if not type(x).__dataclass_params__.frozen:
        _refuse(path, f"a mutable {type(x).__name__}", "declare it with @dataclass(frozen=True)")
    shown = {f.name: getattr(x, f.name) for f in dataclasses.fields(x) if f.metadata.get("describe", True)}
    return f"{_name(type(x), path)}({_join(shown, path, sort=False)})"


def _join(named: Mapping[str, Any], path: str, *, sort: bool = True) -> str:
    order = sorted(named) if sort else list(named)
    return ", ".join(f"{name}={_describe(named[name], f'{path}.{name}')}" for name in order)


def _dtype_name(x: Any) -> str | None:
    """Name of a dtype in any of its spellings (``jnp.float32``, ``np.float32``, ``np.dtype``), else None."""
    if isinstance(x, jnp.dtype):
        return x.name
    if isinstance(x, type) and issubclass(x, jnp.generic):
        return jnp.dtype(x).name
    inner = getattr(x, "dtype", None)
    return inner.name if isinstance(x, type) and isinstance(inner, jnp.dtype) else None


def _unbind(x: Any, path: str) -> tuple[Any, dict[str, Any]]:
    """Function and keywords of a partial of partials; the outer binding wins, as in a call."""
    keywords: dict[str, Any] = {}
    while isinstance(x, functools.partial):
        if x.args:
            _refuse(path, f"a partial with the positional arguments {x.args!r}", "bind by name: partial(f, x=1)")
        keywords = {**x.keywords, **keywords}
        x = x.func
    return x, keywords


def _parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # builtins and classes without a signature
        return {}


def _with_defaults(function: Any, keywords: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Bound keywords, and the defaults of the other keyword-only parameters of a function."""
    parameters = _parameters(function)
    kinds = {p.kind for p in parameters.values()}
    if parameters and inspect.Parameter.VAR_KEYWORD not in kinds:
        for name in keywords:
            if name not in parameters:
                allowed = ", ".join(parameters)
                _refuse(path, f"a partial with the unknown keyword {name!r}", f"allowed are {allowed}")
    if isinstance(function, type):
        return dict(keywords)
    defaults = {
        name: p.default
        for name, p in parameters.items()
        if p.kind is inspect.Parameter.KEYWORD_ONLY and p.default is not inspect.Parameter.empty
    }
    return {**defaults, **keywords}


def _name(x: Any, path: str) -> str:
    """``module.qualname`` of a function or class that can be found again under that name."""
    if isinstance(x, types.MethodType):
        _refuse(path, f"the bound method {x.__qualname__}", f"use a function of a module; {_BIND}")
    module, name = getattr(x, "__module__", None), getattr(x, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or not callable(x):
        allowed = "functions, tuples, dictionaries, frozen dataclasses, strings and numbers"
        _refuse(path, f"{x!r} of type {type(x).__name__}", f"allowed are {allowed}")
    if "<lambda>" in name:
        _refuse(path, "a lambda", f"define a function in a module; {_BIND}")
    if "<locals>" in name:
        _refuse(path, f"the inner function {name}", f"move it to the top of its module; {_BIND}")
    return f"{_module_name(x)}.{name}"


def _module_name(x: Any) -> str:
    """Name of the module of `x`; the script that runs is called by its file, as if it had been imported."""
    name = str(getattr(x, "__module__", ""))
    main = inspect.getmodule(x) if name == "__main__" else None
    if main is None:
        return name
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return spec.name
    file = str(getattr(main, "__file__", None) or name)
    return file.replace("\\", "/").rsplit("/", maxsplit=1)[-1].removesuffix(".py")


def _refuse(path: str, what: str, remedy: str) -> NoReturn:
    raise ValueError(f"{path} is {what}: it has no canonical description. Remedy: {remedy}")


def functions(x: Any) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """All (function, bound keywords) inside `x`, depth first, defaults included; classes and plain values are not."""
    if isinstance(x, tuple):
        for part in x:
            yield from functions(part)
    elif isinstance(x, Mapping):
        for key in sorted(x):
            yield from functions(x[key])
    elif dataclasses.is_dataclass(x) and not isinstance(x, type):
        for field in dataclasses.fields(x):
            yield from functions(getattr(x, field.name))
    elif callable(x) and not isinstance(x, type):
        function, keywords = _unbind(x, "x")
        keywords = _with_defaults(function, keywords, "x")
        yield function, keywords
        for name in sorted(keywords):
            yield from functions(keywords[name])


def source_digest(x: Any) -> str:
    """SHA-256 (hex) of the source of every user function inside `x`, with those it calls in its own module.

    A user function is one outside this package. What has no readable source counts by its name.
    """
    digest = hashlib.sha256()
    for name, function in sorted(_user_functions(x).items()):
        digest.update(f"{name}\n{_source(function)}\n".encode())
    return digest.hexdigest()


def source_digests(x: Any) -> dict[str, str]:
    """Name -> SHA-256 (hex) of the source, of each function that `source_digest` reads: which of them has changed."""
    named = sorted(_user_functions(x).items())
    return {name: hashlib.sha256(_source(function).encode()).hexdigest() for name, function in named}


def _user_functions(x: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for function, _ in functions(x):
        _collect(inspect.unwrap(function), found)
    return found


def _collect(function: Any, found: dict[str, Any]) -> None:
    module, name = str(getattr(function, "__module__", "")), getattr(function, "__qualname__", repr(function))
    key = f"{_module_name(function)}.{name}"
    if module.split(".", maxsplit=1)[0] == _PACKAGE or key in found:
        return
    found[key] = function
    if isinstance(function, types.FunctionType):
        for called in _names(function.__code__):
            callee = function.__globals__.get(called)
            if isinstance(callee, types.FunctionType) and callee.__module__ == module:
                _collect(inspect.unwrap(callee), found)


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _source(function: Any) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return ""
