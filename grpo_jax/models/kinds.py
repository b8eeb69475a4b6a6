"""Which functions a model has: the type of its config says it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from grpo_jax.models import decoder, own, own_logprobs, table
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.critic import CRITIC
from grpo_jax.models.fisher import fisher as of_its_curvature
from grpo_jax.models.logprobs import logprobs as of_a_decoder
from grpo_jax.models.lora import is_adapter
from grpo_jax.models.own import OwnModel
from grpo_jax.models.parts import divide, matching, names
from grpo_jax.types import Array, Params, Rollouts, TokenStats

AnyModel = ModelConfig | OwnModel


class Kind(NamedTuple):
    """The functions of a kind of model, with the signatures of those below."""

    init: Callable[..., Params]
    abstract: Callable[..., Params]
    axes: Callable[..., Mapping]
    forward: Callable[..., Array]
    logprobs: Callable[..., TokenStats]
    fisher: Callable[..., Callable[[Params], Params]] | None = None  # None: nobody can tell its curvature
    adapters: Callable[..., Params] | None = None  # None: it has none


KINDS: dict[type, Kind] = {
    ModelConfig: Kind(
        *(table.init, table.abstract, table.axes, decoder.forward, of_a_decoder),
        fisher=of_its_curvature,
        adapters=table.adapters,
    ),
    OwnModel: Kind(own.init, own.abstract, own.axes, own.forward, own_logprobs.logprobs),
}
"""Type of a config -> what it is the config of. `sampling.SAMPLERS` is the other half."""


def kind_of(config: Any) -> Kind:
    """The functions of `config`. Raises ValueError for what is no model."""
    return chosen(KINDS, config)


def chosen(registry: Mapping[type, Any], config: Any) -> Any:
    """The entry of a `registry` by types for `config`. Raises ValueError for what is no model."""
    if type(config) not in registry:
        allowed = ", ".join(known.__name__ for known in registry)
        raise ValueError(
            f"model: got {config!r:.80} of type {type(config).__name__}, allowed are {allowed}: build one, or wrap a"
            " Flax module with models.from_linen or models.from_nnx"
        )
    return registry[type(config)]


def decoder_of(config: AnyModel, *, what: str) -> ModelConfig:
    """`config`, of the library's decoder. Raises ValueError, naming `what` needs it, for a module of the user's own."""
    if not isinstance(config, ModelConfig):
        raise ValueError(
            f"model: got a {type(config).__name__}, allowed with {what} is a ModelConfig: take one, or leave {what} out"
        )
    return config


def init(key: Array, config: AnyModel) -> Params:
    """Initial parameters of the model."""
    return kind_of(config).init(key, config)


def abstract(config: AnyModel) -> Params:
    """The tree of `init` with a `jax.ShapeDtypeStruct` in place of every array."""
    return kind_of(config).abstract(config)


def axes(config: AnyModel) -> Mapping:
    """The tree of `init` with the tuple of logical axes in place of every array."""
    return kind_of(config).axes(config)


def forward(params: Params, config: AnyModel, tokens: Array, valid: Array, segment: Array | None = None) -> Array:
    """Logits f32[B, T, V] of the token after each of tokens i32[B, T]; of a ModelConfig, those of `decoder.forward`.

    ``valid`` bool[B, T] is False for padding. ``segment`` i32[B, T] tells the sequences of a packed row apart, where
    the model can.
    """
    return kind_of(config).forward(params, config, tokens, valid, segment)


def logprobs(params: Params, config: AnyModel, rollouts: Rollouts, **how: Any) -> TokenStats:
    """What the policy says of every token of `rollouts`, f32[N, T]; keywords and meaning as in `logprobs.logprobs`."""
    return kind_of(config).logprobs(params, config, rollouts, **how)


def fisher(params: Params, config: AnyModel, rollouts: Rollouts, weight: Array, **how: Any) -> Callable:
    """Products with the Fisher information of the policy; keywords and meaning as in `fisher.fisher`.

    Raises ValueError for a model without.
    """
    found = kind_of(config).fisher
    if found is None:
        raise ValueError(
            f"model: got a {type(config).__name__}, whose curvature nobody can tell, allowed with a TrustRegion is a"
            " ModelConfig: take it, or another optimizer"
        )
    return found(params, config, rollouts, weight, **how)


def adapters(key: Array, config: AnyModel) -> Params:
    """New adapters, as far as the config asks for any; meaning as in `table.adapters`."""
    found = kind_of(config).adapters
    return {} if found is None else found(key, config)


def trained(config: AnyModel, frozen: Sequence[str] = ()) -> Callable[[str], bool]:
    """Whether the parameter of a name is trained: all are but those that a pattern of `frozen` matches.

    Of a model with adapters these are trained, and the critic; everything else is frozen anyhow.

    Raises ValueError for a pattern that matches nothing, one that splits a stack of layers, and for patterns that leave
    nothing of the policy to train.
    """
    tree = abstract(config)
    known = names(tree)
    stay = matching(frozen, known, what="train.frozen")
    if config.lora is not None:
        stay |= {name for name in known if not is_adapter(name) and name.partition("/")[0] != CRITIC}
    rest = {*known} - stay
    if not any(name.partition("/")[0] != CRITIC for name in rest):
        raise ValueError(
            f"train.frozen: got {', '.join(frozen)}, which leaves nothing of the policy to train, allowed are patterns"
            " that leave a parameter: take one out"
        )
    divide(tree, rest.__contains__)  # refuses to split a stack
    return rest.__contains__
