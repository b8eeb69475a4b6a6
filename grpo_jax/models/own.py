"""A user's own Flax module in place of the decoder: what stands for it in an experiment, and how it is called.

The module is a function of tokens i32[B, T] and valid bool[B, T] (False for padding, always behind the tokens of a row)
to logits f[B, T, V] of the token after each of them, and reads nothing to the right of a token. Two pairs of further
methods make it cheaper, where it has them:

    hidden(tokens, valid) -> f[B, T, D]; head(f[..., D]) -> f[..., V]       no array of logits [N, T, V] is ever made
    prefill(tokens, valid, room) -> cache; step(cache, token i32[B], position i32[B]) -> logits f[B, V], cache
                                                                            sampling reads every token once

`prefill` reads prompts, without the last token of each, and leaves room for so many further ones; every leaf of a cache
leads with B, and position counts from the first token of the row.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen, nnx

from grpo_jax.objectives import describe
from grpo_jax.types import Array, Params

MODULE = "module"
"""Where the parameters of the module are in those of the model, so that no name in it can mean something else here."""
Framework = Literal["linen", "nnx"]
_PAIRS = (("hidden", "head"), ("prefill", "step"))
_OF_LINEN = ("parent", "name")  # fields that Flax adds to every module


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class OwnModel:
    """A module of the user's as the model of an experiment; `from_linen` and `from_nnx` make one.

    Two are equal when their descriptions are. Parameters and computation have the dtypes that the module gives them;
    every device holds all of the parameters, and rows are split over the devices of a mesh.
    """

    vocab: int
    module: Callable[..., Any]  # its class, with its settings bound by functools.partial
    framework: Framework
    positions: int = 0  # the longest sequence that it reads; 0: any

    # What a decoder may have beside its layers, and a module of the user's has not.
    critic: ClassVar[None] = None
    critic_detached: ClassVar[bool] = False
    lora: ClassVar[None] = None
    experts: ClassVar[int] = 0
    logprob_dtype: ClassVar[str] = "float32"  # at least: that of its logits where they are wider

    def __post_init__(self) -> None:
        for name, least in (("vocab", 1), ("positions", 0)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"model.{name}: got {getattr(self, name)}, allowed >= {least}: give the number of tokens"
                )
        for pair in _PAIRS:
            given = [name for name in pair if hasattr(self.kind, name)]
            if len(given) == 1:
                raise ValueError(
                    f"model.module: got {self.kind.__name__} with {given[0]} alone, allowed are both of"
                    f" {' and '.join(pair)}, or none: write the other one"
                )
        describe(self, name="model")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OwnModel) and describe(self) == describe(other)

    def __hash__(self) -> int:
        return hash(describe(self))

    @property
    def kind(self) -> type:
        """The class of the module."""
        made = self.module
        while isinstance(made, functools.partial):
            made = made.func
        if not isinstance(made, type):
            raise ValueError(f"model.module: got {made!r:.80}, allowed is a class of Flax modules: pass the class")
        return made

    @property
    def without_lora(self) -> "OwnModel":
        """The model without adapters: itself."""
        return self

    def has(self, pair: Literal["hidden", "prefill"]) -> bool:
        """Whether the module has the pair of methods that begins with this one."""
        return hasattr(self.kind, pair)


def from_linen(module: Any, *, vocab: int, positions: int = 0) -> OwnModel:
    """The `flax.linen` module as the model of an experiment: a class, a partial of one, or a module without parameters.

    Its parameters are those that ``init`` makes with the collection ``params``; it must have no other, no dropout.

    Raises ValueError for anything else, and for settings that cannot be described: a file has to say all of a run.
    """
    if isinstance(module, linen.Module):
        fields = [f.name for f in dataclasses.fields(module) if f.init and f.name not in _OF_LINEN]
        module = functools.partial(type(module), **{name: getattr(module, name) for name in fields})
    return OwnModel(module=_bound(module, linen.Module), framework="linen", vocab=vocab, positions=positions)


def from_nnx(module: Any, *, vocab: int, positions: int = 0) -> OwnModel:
    """The `flax.nnx` module as the model of an experiment: its class, or a partial of it, made with the keyword rngs.

    Its parameters are its variables of the type ``nnx.Param``; it must have no others, no dropout.

    Raises ValueError for anything else, and for settings that cannot be described: a file has to say all of a run.
    """
    if isinstance(module, nnx.Module):
        raise ValueError(
            f"module: got a {type(module).__name__} that has its parameters already, allowed is its class, because a"
            " run makes its parameters from its seed: pass functools.partial(Class, setting=...)"
        )
    return OwnModel(module=_bound(module, nnx.Module), framework="nnx", vocab=vocab, positions=positions)


def _bound(module: Any, parent: type) -> functools.partial:
    """`module` as a partial, whose source is part of what a run remembers of an experiment."""
    kind = module
    while isinstance(kind, functools.partial):
        kind = kind.func
    if not (isinstance(kind, type) and issubclass(kind, parent)):
        wanted = f"{parent.__module__.split('.')[1]}.Module"
        raise ValueError(
            f"module: got {module!r:.80}, allowed is a class of {wanted} or a functools.partial of one: pass that"
        )
    return module if isinstance(module, functools.partial) else functools.partial(module)


def call(params: Params, config: OwnModel, method: str, *args: Any) -> Any:
    """What a method of the module, ``__call__`` among them, returns with these parameters."""
    return _FRAMEWORKS[config.framework].call(params[MODULE], config, method, *args)


def init(key: Array, config: OwnModel) -> Params:
    """The parameters that the module makes itself from `key`."""
    return {MODULE: _FRAMEWORKS[config.framework].init(key, config)}


def abstract(config: OwnModel) -> Params:
    """The tree of `init` with a `jax.ShapeDtypeStruct` in place of every array."""
    return jax.eval_shape(lambda: init(jax.random.key(0), config))


def axes(config: OwnModel) -> Mapping:
    """The tree of `init` with the logical axes of every array in its place: none of them is ever split."""
    return jax.tree.map(lambda leaf: (None,) * len(leaf.shape), abstract(config))


def forward(params: Params, config: OwnModel, tokens: Array, valid: Array, segment: Array | None = None) -> Array:
    """Logits f32[B, T, V] of the token after each of tokens i32[B, T]; valid bool[B, T] is False for padding behind.

    Raises ValueError where rows are packed: the module would read one sequence as the beginning of the next.
    """
    if segment is not None:
        raise ValueError(
            "segment: got packed rows, allowed with a module of one's own is None: give every sequence a row of its own"
        )
    return widened(call(params, config, "__call__", jnp.where(valid, tokens, 0), valid))


def widened(logits: Array) -> Array:
    """Logits in float32 at least, where sums over the vocabulary are exact enough."""
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def check_length(config: OwnModel, width: int) -> None:
    """ValueError when a sequence of `width` tokens is longer than the module reads."""
    if config.positions and width > config.positions:
        raise ValueError(
            f"model.positions: got {config.positions}, allowed >= {width} for sequences of {width} tokens: shorten"
            " prompt or completion, or build the model with more positions"
        )


class _Framework(NamedTuple):
    """How modules of one kind are made and called. Parameters are nested dicts with names as keys."""

    init: Callable[[Array, OwnModel], Params]
    call: Callable[..., Any]


def _linen_init(key: Array, config: OwnModel) -> Params:
    tokens, valid = jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool)
    made = jax.jit(config.module().init)(key, tokens, valid)
    others = sorted(set(made) - {"params"})
    if others:
        raise _stateful(config, ", ".join(others))
    return linen.meta.unbox(made["params"])


def _linen_call(params: Params, config: OwnModel, method: str, *args: Any) -> Any:
    return config.module().apply({"params": params}, *args, method=method)


@functools.lru_cache(maxsize=16)
def _split(config: OwnModel) -> tuple[Any, dict[tuple, Any]]:
    """What of an nnx module is no parameter, and path -> shape of those that are."""
    graph, state = nnx.split(nnx.eval_shape(lambda: config.module(rngs=nnx.Rngs(0))))
    variables = dict(nnx.to_flat_state(state))
    others = sorted({type(v).__name__ for v in variables.values() if not isinstance(v, nnx.Param)})
    if others:
        raise _stateful(config, ", ".join(others))
    return graph, variables


def _nnx_init(key: Array, config: OwnModel) -> Params:
    made = nnx.to_flat_state(nnx.state(config.module(rngs=nnx.Rngs(key)), nnx.Param))
    found: dict[str, Any] = {}
    for path, variable in made:
        place = found
        for name in path[:-1]:
            place = place.setdefault(str(name), {})
        place[str(path[-1])] = variable.get_value()
    _split(config)
    return found


def _nnx_call(params: Params, config: OwnModel, method: str, *args: Any) -> Any:
    graph, variables = _split(config)
    filled = {}
    for path, variable in variables.items():
        value: Any = params
        for name in path:
            value = value[str(name)]
        filled[path] = variable.replace(value)
    return getattr(nnx.merge(graph, nnx.from_flat_state(filled)), method)(*args)


def _stateful(config: OwnModel, what: str) -> ValueError:
    return ValueError(
        f"model.module: got {config.kind.__name__}, which has {what} beside its parameters, allowed are parameters"
        " alone: sampler and trainer must compute the same, so leave out dropout and running statistics"
    )


_FRAMEWORKS = {"linen": _Framework(_linen_init, _linen_call), "nnx": _Framework(_nnx_init, _nnx_call)}
