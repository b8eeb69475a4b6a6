"""How many bytes of a run lie on one device at once, by arithmetic on shapes: no device is asked, no array made.

What a run keeps all the time is counted exactly: parameters, the optimiser's state, a reference policy. Of what comes
and goes, parameters laid out for sampling, keys and values, gradients and the input of every layer are counted exactly
too; what one layer and one chunk of logits need inside is an estimate, and buffers of the compiler are left out. So a
run needs somewhat more than `Footprint.peak`: leave a tenth of the memory free.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from grpo_jax.experiment import Experiment, step_settings
from grpo_jax.models import (
    AnyModel,
    ModelConfig,
    abstract,
    axes,
    divide,
    like,
    trained,
    without_adapters,
    without_critic,
)
from grpo_jax.models.logprobs import chunk_of
from grpo_jax.sharding import AXES, BATCH_AXES, ROLLOUT_RULES, RULES, LogicalAxes, Rules, targets
from grpo_jax.train import refers, start
from grpo_jax.updates import begin_reference, moves


class Footprint(NamedTuple):
    """Bytes on one device. Of several devices each holds the same, or less where a dimension does not divide."""

    parameters: int
    """Those that are trained."""
    frozen: int
    optimizer: int
    reference: int
    """Of the reference policy what is no part of the policy."""
    sampler: int
    """A copy of the parameters that sampling reads, where its layout or its dtype is another."""
    cache: int
    """Keys and values of all prompts and completions of a step."""
    gradients: int
    layers: int
    """Inputs of all layers for a micro-batch, and what the layer needs that is computed again."""
    logits: int

    @property
    def peak(self) -> int:
        """The larger of what sampling and learning need, with what stays."""
        stays = self.parameters + self.frozen + self.optimizer + self.reference
        return stays + max(self.sampler + self.cache, self.gradients + self.layers + self.logits)


def footprint(experiment: Experiment) -> Footprint:
    """What a step of GRPO of `experiment` needs on each device of its mesh; without a mesh on its only one.

    What a module of the user's keeps between its layers and while it samples is its own affair: 0 stands for it here.
    """
    model, train = experiment.model, experiment.train
    sizes = {axis: int((experiment.mesh or {}).get(axis, 1)) for axis in AXES}
    params = abstract(model)
    own, frozen = divide(params, trained(model, train.frozen))
    learned = _bytes(own, model, sizes)
    stays = {
        "parameters": learned,
        "frozen": _bytes(frozen, model, sizes),
        "optimizer": _optimizer(experiment, own, sizes),
        "reference": _bytes(_reference(experiment, own), model, sizes),
        "logits": _logits(experiment, sizes),
    }
    gradients = learned * (2 if train.microbatches > 1 else 1)
    if not isinstance(model, ModelConfig):
        return Footprint(**stays, sampler=0, cache=0, gradients=gradients, layers=0)
    compute = jnp.dtype(model.compute_dtype).itemsize
    cast = 0 if model.compute_dtype == model.param_dtype else _bytes(params, model, sizes, itemsize=compute)
    return Footprint(
        **stays,
        sampler=_sampler(model, sizes, compute),
        cache=_cache(experiment, model, sizes, compute),
        gradients=gradients + cast,
        layers=_layers(experiment, model, sizes, compute),
    )


def _bytes(
    tree: Any, model: AnyModel, sizes: Mapping[str, int], *, rules: Rules = RULES, itemsize: int | None = None
) -> int:
    """Of the parameters in `tree`, or of what has their shapes, on a device."""
    names = like(axes(model), tree)
    leaves = jax.tree.map(lambda leaf, axes: _leaf(leaf, axes, sizes, rules, itemsize), tree, names)
    return sum(jax.tree.leaves(leaves))


def _leaf(leaf: Any, axes: LogicalAxes, sizes: Mapping[str, int], rules: Rules, itemsize: int | None) -> int:
    parts = 1
    if len(axes) == len(leaf.shape):  # else it is no moment of a whole parameter, and lies whole on every device
        parts = math.prod(sizes[axis] for target in targets(axes, rules, sizes, leaf.shape) for axis in target)
    return math.prod(leaf.shape) * (itemsize or leaf.dtype.itemsize) // parts


def _reference(experiment: Experiment, own: Any) -> Any:
    """What a run keeps of the reference policy: nothing where that is the policy without its adapters."""
    rule, policy = experiment.train.reference, without_critic(own)
    if not refers(experiment.recipe):
        return {}
    if moves(rule):
        return jax.eval_shape(functools.partial(begin_reference, rule), policy)
    return without_adapters(policy)


def _optimizer(experiment: Experiment, own: Any, sizes: Mapping[str, int]) -> int:
    gradient, shape = step_settings(experiment).gradient, jax.tree.structure(own)
    state = jax.eval_shape(lambda tree: start(tree, gradient).opt_state, own)
    parts = jax.tree.leaves(state, is_leaf=lambda x: jax.tree.structure(x) == shape)
    spread = [_bytes(part, experiment.model, sizes) for part in parts if jax.tree.structure(part) == shape]
    rest = [part for part in parts if jax.tree.structure(part) != shape]
    return sum(spread) + sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(rest))


def _sampler(model: ModelConfig, sizes: Mapping[str, int], compute: int) -> int:
    """Where parameters are gathered or cast for sampling there are two of them; a tied embedding is turned over."""
    policy = without_critic(abstract(model))
    another = sizes["fsdp"] > 1 or model.compute_dtype != model.param_dtype
    copy = _bytes(policy, model, sizes, rules=ROLLOUT_RULES, itemsize=compute) if another else 0
    head = model.vocab * model.width * compute // (sizes["tensor"] if model.vocab % sizes["tensor"] == 0 else 1)
    return copy + (head if model.tied else 0)


def _shards(sizes: Mapping[str, int]) -> int:
    return math.prod(sizes[axis] for axis in BATCH_AXES)


def _split(count: int, sizes: Mapping[str, int]) -> int:
    """How many of `count` heads, or anything that is split over tensor, a device holds."""
    return count // sizes["tensor"] if count % sizes["tensor"] == 0 else count


def _cache(experiment: Experiment, model: ModelConfig, sizes: Mapping[str, int], compute: int) -> int:
    train, data = experiment.train, experiment.data
    tokens = data.prompt_width + train.group_size * experiment.sampling.max_tokens
    numbers = 2 * model.layers * _split(model.kv_heads, sizes) * model.head_width
    return -(-train.prompts // _shards(sizes)) * tokens * numbers * compute


def _micro(experiment: Experiment, sizes: Mapping[str, int]) -> int:
    """Prompts of a micro-batch on a device."""
    train = experiment.train
    return -(-train.prompts // (train.minibatches * train.microbatches * _shards(sizes)))


def _layers(experiment: Experiment, model: ModelConfig, sizes: Mapping[str, int], compute: int) -> int:
    """Inputs of the layers, all of which are kept, and of one layer what its backward pass has beside them.

    Without ``remat="full"`` every layer keeps what one has there.
    """
    group, prompts = experiment.train.group_size, _micro(experiment, sizes)
    before, own = experiment.data.prompt_width, experiment.sampling.max_tokens
    tokens = prompts * (before + group * own)
    heads, kv_heads = _split(model.heads, sizes), _split(model.kv_heads, sizes)
    hidden = max(_split(model.hidden, sizes), model.experts_per_token * _split(model.expert_hidden, sizes))
    inside = tokens * (2 * model.width + 2 * (heads + kv_heads) * model.head_width + 3 * hidden) * compute
    pairs = prompts * heads * (before**2 + group * own * (before + own))
    one = inside + 2 * pairs * 4  # scores and their gradient, float32
    return tokens * model.width * compute * model.layers + one * (1 if model.remat == "full" else model.layers)


def _logits(experiment: Experiment, sizes: Mapping[str, int]) -> int:
    """Of a chunk of tokens, in float32: logits, their gradient, and what the softmax makes of them."""
    train, model = experiment.train, experiment.model
    tokens = _micro(experiment, sizes) * train.group_size * experiment.sampling.max_tokens
    return 3 * 4 * min(train.chunk or chunk_of(model), tokens) * _split(model.vocab, sizes)


def told(found: Footprint, *, devices: int) -> str:
    """`found` in a line, in MB of 10^6 bytes."""
    where = "the device" if devices == 1 else f"each of {devices} devices"
    parts = ", ".join(f"{name} {value / 1e6:.3f}" for name, value in found._asdict().items() if value)
    return f"memory of {where}, about: {parts}; peak {found.peak / 1e6:.3f} MB"
