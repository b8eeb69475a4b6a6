"""Which method turns a batch into new parameters: the type of the optimiser's settings says it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from grpo_jax.types import Array, Batch, Metrics, Params, TrainState
from grpo_jax.updates import gradient, trust_region
from grpo_jax.updates.gradient import Gradient
from grpo_jax.updates.optimizer import SGD, Optimizer, TrustRegion


class Method(NamedTuple):
    """A way to update: what it keeps beside the parameters, and how it goes on from there."""

    begin: Callable[[Params, Gradient], Any]
    update: Callable[..., tuple[TrainState, Metrics]]  # with the signature of `update` below


METHODS: dict[type, Method] = {
    Optimizer: Method(gradient.begin, gradient.update),
    SGD: Method(gradient.begin, gradient.update),
    TrustRegion: Method(trust_region.begin, trust_region.update),
}
"""Type of ``Gradient.optimizer`` -> the method that it is the settings of."""


def begin(params: Params, settings: Gradient) -> Any:
    """What the method keeps beside `params` before its first update (``TrainState.opt_state``)."""
    return _method(settings).begin(params, settings)


def update(
    state: TrainState,
    batch: Batch,
    settings: Gradient,
    *,
    key: Array,
    mesh: jax.sharding.Mesh | None = None,
    reference: Params | None = None,
    frozen: Params | None = None,
) -> tuple[TrainState, Metrics]:
    """`state` after the updates on `batch`, and their metrics, by the method that ``settings.optimizer`` belongs to.

    `key` is that of the step; `reference` are the parameters of the policy with which a term compares whole
    distributions, None where none does; `frozen` are the parameters that are not trained, of neither.
    """
    method = _method(settings)
    return method.update(state, batch, settings, key=key, mesh=mesh, reference=reference, frozen=frozen)


def _method(settings: Gradient) -> Method:
    kind = type(settings.optimizer)
    if kind not in METHODS:
        allowed = ", ".join(known.__name__ for known in METHODS)
        raise ValueError(f"optimizer: got {kind.__name__}, allowed {allowed}: give settings of one of these")
    return METHODS[kind]
